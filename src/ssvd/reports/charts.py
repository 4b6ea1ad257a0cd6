"""The charts of a benchmark."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

from ssvd.benchmark.records import Result, Texts
from ssvd.reports.html import Chart, Point, Series, View, shown
from ssvd.reports.study import FROZEN, FULL, Row, Study, group_rates, is_peft, is_ssvd
from ssvd.reports.tables import notes, percents

POINTS = "percentage points"

# Colour and marker of each method, by their names in ssvd.reports.html.
METHODS = {
    FROZEN: ("grey", "x"),
    FULL: ("ink", "star"),
    "ssvd": ("blue", "circle"),
    "ssvd strict": ("purple", "hexagon"),
    "ssvd neumann": ("green", "diamond"),
    "ssvd none": ("amber", "triangle-up"),
    "ssvd output": ("brown", "triangle-down"),
    "ssvd both": ("green", "cross"),
    "ssvd smaller": ("purple", "pentagon"),
    "lora": ("vermilion", "square"),
    "dora": ("amber", "diamond"),
    "pissa": ("brown", "cross"),
    "vera": ("purple", "triangle-down"),
    "svft": ("green", "triangle-up"),
    "svft plain": ("purple", "square"),
    "svft random": ("amber", "pentagon"),
    "svft top-k": ("brown", "star"),
    "psoft": ("purple", "diamond"),
    "oft": ("brown", "hexagon"),
}

_view = partial(View, names="Method and budget", level_name="frozen model")


def charts(study: Study, texts: Texts, *, resamples: int = 1000) -> list[Chart]:
    """Return the charts for which a study has the rows.

    Args:
        study: All methods on one model and corpus.
        texts: Hypotheses of every result, for the intervals of groups.
        resamples: Number of draws of each bootstrap.
    """
    made = [
        _parameters(study),
        _costs(study),
        _convergence(study),
        _sweep(study),
        _variants(study),
        _forgetting(study),
        _scales(study),
        _groups(study, texts, resamples),
    ]
    return [chart for chart in made if chart is not None and any(view.series for view in chart.views)]


def _parameters(study: Study) -> Chart:
    level = _frozen_wer(study)
    trained = [row for row in study.rows if row.method != FROZEN]
    front = sorted((row.trainable_parameters, 100 * row.wer) for row in trained if row.pareto and row.wer is not None)
    view = _view(
        "Trained parameters",
        "trained parameters",
        "test WER (%)",
        _by_method(study, trained, lambda row: row.trainable_parameters),
        log=True,
        level=level,
        front=tuple(front),
    )
    note = (
        "Bars: 95 % bootstrap intervals over {units} of the test set. Dotted: the Pareto front, methods that no other "
        "beats with as few trained parameters. Down and left is better."
    )
    return Chart("parameters", "WER against trained parameters", note.format(units=units(study)), (view,))


def _costs(study: Study) -> Chart:
    trained = [row for row in study.rows if row.method != FROZEN]
    costs: list[tuple[str, str, Callable[[Row], float], bool]] = [
        ("Training time", "training time (s)", lambda row: row.training_seconds, False),
        ("Peak memory", "peak memory in training (MB)", lambda row: row.peak_memory_bytes / 1e6, False),
        ("Adapter size", "size of the stored weights (MB)", lambda row: row.adapter_bytes / 1e6, True),
    ]
    views = tuple(
        _view(label, title, "test WER (%)", _by_method(study, trained, of, line=False), log, level=_frozen_wer(study))
        for label, title, of, log in costs
    )
    note = "Times are medians over seeds; compare them only if all ran on the same machine (see the end of the page)."
    return Chart("costs", "WER against costs", note, views)


def _convergence(study: Study) -> Chart:
    usual = _usual_budget(study)
    budgets = _budgets([row for row in study.rows if is_peft(row.method) and not _has_own_budget(study, row)])
    views = []
    for budget in sorted(budgets, key=lambda budget: budget != usual) or [""]:
        by_epoch: list[Series] = []
        by_time: list[Series] = []
        for row in _side_by_side(study, budget):
            if row.method == FROZEN:
                continue
            steps = list(zip(*(result.series for result in row.results), strict=False))
            wers = [100 * fmean(epoch.dev_wer for epoch in step) for step in steps]
            numbers = [float(step[0].epoch) for step in steps]
            times = [fmean(epoch.seconds for epoch in step) for step in steps]
            for series, xs in ((by_epoch, numbers), (by_time, times)):
                marks = (Point(x, y, name=row.name, lines=_lines(study, row)) for x, y in zip(xs, wers, strict=True))
                series.append(Series(row.name, row.method, tuple(marks), line=True))
        at = f", {budget}" if len(budgets) > 1 else ""
        for label, title, curves in (("Epochs", "epoch", by_epoch), ("Seconds", "seconds of training", by_time)):
            views.append(_view(label + at, title, "dev WER (%)", tuple(curve for curve in curves if curve.points)))
    note = "Mean over seeds of the WER on the dev set, by which learning rate and epoch are chosen."
    return Chart("convergence", "Convergence", note, tuple(view for view in views if view.series))


def _sweep(study: Study) -> Chart | None:
    counts = Counter(row.method for row in study.rows if is_peft(row.method))
    swept = [row for row in study.rows if counts[row.method] > 1]
    if not swept:
        return None
    view = _view(
        "Budgets",
        "budget",
        "test WER (%)",
        _by_method(study, swept, lambda row: row.budget),
        categories=_budgets(swept),
        level=_frozen_wer(study),
    )
    return Chart("budgets", "WER against budget", "Methods with several budgets, from the smallest up.", (view,))


def _variants(study: Study) -> Chart | None:
    variants = [row for row in study.rows if is_ssvd(row.method)]
    counts = Counter(row.budget for row in variants)
    compared = [row for row in variants if counts[row.budget] > 1]
    if not compared:
        return None
    view = _view(
        "Variants",
        "budget",
        "test WER (%)",
        _by_method(study, compared, lambda row: row.budget, line=False),
        categories=_budgets(compared),
        bars=True,
        level=_frozen_wer(study),
    )
    note = "Forms of the rotation, and the sides that it turns, at equal budgets."
    return Chart("variants", "Variants of SSVD", note, (view,))


def _forgetting(study: Study) -> Chart | None:
    sources = list(dict.fromkeys(corpus for row in study.rows for corpus in row.forgetting))
    views = []
    for source in sources:
        series: dict[str, list[Point]] = {}
        for row in study.rows:
            gain, loss = row.against_frozen, row.forgetting.get(source)
            if gain is None or loss is None:
                continue
            gains = None if gain.interval is None else (-100 * gain.interval[1], -100 * gain.interval[0])
            x, y = -100 * gain.difference, 100 * loss.difference
            point = Point(x, y, percents(loss.interval), gains, row.name, _lines(study, row))
            series.setdefault(row.method, []).append(point)
        made = tuple(Series(method, method, tuple(points)) for method, points in series.items())
        views.append(_gain_against_forgetting(study, source, made))
    note = (
        "Gain: fewer errors than the frozen model on the test set. Forgetting: more errors than it on a corpus of the "
        "domain that the model comes from. Down and right is better. Bars: paired 95 % bootstrap intervals."
    )
    return Chart("forgetting", "Forgetting against gain", note, tuple(views)) if views else None


def _gain_against_forgetting(study: Study, source: str, series: tuple[Series, ...]) -> View:
    titles = f"gain on {study.corpus} ({POINTS})", f"forgetting on {source} ({POINTS})"
    return _view(source, *titles, series, level=0.0)


def _scales(study: Study) -> Chart | None:
    frozen = study.row(FROZEN)
    if frozen is None:
        return None
    base = frozen.results[0]
    views = []
    for source in base.sources:
        curves = tuple(
            Series(row.name, row.method, points, line=True)
            for row in study.rows
            if (points := _scale_points(study, row, base, source))
        )
        views.append(_gain_against_forgetting(study, source, curves))
    note = (
        "Each curve goes from the frozen model, at the origin, to the adapted one, through the weights between. Gain "
        "and forgetting as in the chart above; means over seeds. Down and right is better."
    )
    return Chart("scales", "Forgetting against gain along the scale", note, tuple(views)) if views else None


def _scale_points(study: Study, row: Row, base: Result, source: str) -> tuple[Point, ...]:
    """Return gain and forgetting of a row at each scale from 0 to 1; none where its tests were not repeated."""
    wers: dict[float, list[tuple[float, float]]] = {}
    for result in row.results:
        ends = {0.0: base, 1.0: result}
        pairs = {scale: (end.test.wer, end.sources[source].wer) for scale, end in ends.items()}
        pairs |= {scaled.scale: (scaled.test_wer, scaled.source_wers.get(source)) for scaled in result.scales}
        for scale, (test, own) in pairs.items():
            if result.scales and test is not None and own is not None:
                wers.setdefault(scale, []).append((test, own))
    if not wers:
        return ()
    start, lines = _means(wers[0.0]), _lines(study, row)
    points = []
    for scale, pairs_of in sorted(wers.items()):
        test, own = _means(pairs_of)
        points.append(
            Point(100 * (start[0] - test), 100 * (own - start[1]), name=f"{row.name}, scale {scale:g}", lines=lines)
        )
    return tuple(points)


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return fmean(first for first, _ in pairs), fmean(second for _, second in pairs)


def _groups(study: Study, texts: Texts, resamples: int) -> Chart | None:
    usual = _usual_budget(study)
    rows = _side_by_side(study, usual)
    views = []
    fields = dict.fromkeys(field for row in rows for r in row.results for field in r.test.groups)
    for field in fields:
        series, values = [], {}
        for row in rows:
            rates = group_rates(row, field, texts, resamples=resamples)
            values.update(dict.fromkeys(rates))
            points = tuple(
                Point(value, 100 * rate.wer, percents(rate.interval), name=row.name) for value, rate in rates.items()
            )
            if points:
                series.append(Series(row.name, row.method, points))
        field_name = field.partition(":")[0]
        label = field if sum(other.partition(":")[0] == field_name for other in fields) > 1 else field_name
        views.append(_view(label, field_name, "test WER (%)", tuple(series), categories=tuple(values), bars=True))
    note = "Bars: 95 % bootstrap intervals within the group; those of small groups are rough."
    if usual:
        note += f" Methods at budget {usual}."
    return Chart("groups", "WER by group", note, tuple(views)) if views else None


def units(study: Study) -> str:
    """Return what the intervals of a study resample: speakers, utterances, or both in words."""
    return " and ".join(sorted({row.resampled for row in study.rows}))


def _by_method(
    study: Study, rows: Sequence[Row], x: Callable[[Row], float | str], line: bool = True
) -> tuple[Series, ...]:
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row.wer is not None:
            point = Point(x(row), 100 * row.wer, percents(row.interval), None, row.name, _lines(study, row))
            series.setdefault(row.method, []).append(point)
    return tuple(Series(method, method, tuple(points), line) for method, points in series.items())


def _lines(study: Study, row: Row) -> tuple[str, ...]:
    lines = [
        f"{row.trainable_parameters:,} trained parameters ({100 * row.share:.3g} %)",
        f"setting {row.setting:g}" if row.setting is not None else "",
        "learning rate " + ", ".join(f"{rate:g}" for rate in row.learning_rates) if row.learning_rates else "",
        f"{len(row.results)} seed" + ("s" if len(row.results) > 1 else ""),
        f"WER {shown(100 * row.wer, '.2f')} % {shown(percents(row.interval), '.2f')}" if row.wer is not None else "",
        f"s over seeds {100 * row.spread:.2f}" if row.spread is not None else "",
        notes(study, row),
    ]
    return tuple(line for line in lines if line)


def _budgets(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the budgets of rows in the order of the parameters that they train."""
    smallest: dict[str, int] = {}
    for row in rows:
        smallest[row.budget] = min(row.trainable_parameters, smallest.get(row.budget, row.trainable_parameters))
    return tuple(sorted(smallest, key=lambda budget: (smallest[budget], budget)))


def _usual_budget(study: Study) -> str:
    """Return the budget at which methods are shown side by side.

    It is the one that most methods have; among several, that of the row with the lowest dev WER.
    """
    counts = Counter(row.budget for row in study.rows if is_peft(row.method))
    return max(
        counts, key=lambda budget: (counts[budget], study.best is not None and budget == study.best.budget), default=""
    )


def _side_by_side(study: Study, budget: str) -> list[Row]:
    """Return the rows that are shown together at a budget."""
    return [row for row in study.rows if row.budget in ("", budget) or _has_own_budget(study, row)]


def _has_own_budget(study: Study, row: Row) -> bool:
    """Return whether a method has a single budget that no other method has; it is then shown at every budget."""
    return is_peft(row.method) and all(
        (other.method == row.method) == (other.budget == row.budget) for other in study.rows
    )


def _frozen_wer(study: Study) -> float | None:
    frozen = study.row(FROZEN)
    return None if frozen is None or frozen.wer is None else 100 * frozen.wer
