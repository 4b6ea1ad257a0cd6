"""The report on a benchmark: a page that a browser opens from disk, and figures for papers."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ssvd.benchmark.records import Failure, Texts, read_study
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.reports.aligned_utterances import LEGEND, SOUNDS_LIMIT, Players, utterance_html
from ssvd.reports.changed_utterances import most_changed
from ssvd.reports.charts import METHODS, charts, units
from ssvd.reports.figures import save_figure
from ssvd.reports.html import (
    Chart,
    bullets,
    chart_section,
    file_name,
    html_page,
    styles,
    to_csv,
    to_html,
    to_latex,
    write_page,
)
from ssvd.reports.study import FROZEN, FULL, LORA, TEST, Row, Study, is_ssvd, studies
from ssvd.reports.tables import main_table, percents
from ssvd.scoring import Comparison


@dataclass(frozen=True)
class Benchmark:
    """Everything in a folder of results, with the statistics over it.

    Attributes:
        folder: Folder of `ssvd benchmark`, or of a stored study.
        studies: The statistics, for each model and corpus.
        texts: Hypotheses of every result.
        failures: Cells and trials that could not be computed.
        skipped: Files that could not be read.
    """

    folder: Path
    studies: list[Study]
    texts: Texts
    failures: list[Failure]
    skipped: list[Skipped]


def read_benchmark(folder: Path, *, resamples: int = 1000) -> Benchmark:
    """Read a folder of `ssvd benchmark`, or a stored study, and compute the statistics over it.

    Raises:
        UserError: No cell is finished, two are the same, they cannot be compared, or a stored study is damaged.
    """
    records = read_study(folder)
    if not records.results:
        raise UserError(
            f"{folder} holds no finished cell: run `ssvd benchmark` until one is finished, or see its failures."
        )
    statistics = studies(records.results, records.texts, records.failures, resamples=resamples)
    return Benchmark(folder, statistics, records.texts, records.failures, records.skipped)


def write_report(results: Path, html: Path, *, audio: bool = True, resamples: int = 1000) -> None:
    """Write the page of a benchmark: one HTML file of about 5 MB, which needs no network.

    Args:
        results: Folder of `ssvd benchmark`, or of a stored study.
        html: File to write; its folder is made.
        audio: Whether to embed the recordings of the utterances that changed most; everyone who gets the page can hear
            them.
        resamples: Number of draws of each bootstrap.

    Raises:
        UserError: As for `read_benchmark`, or `html` is a file but no page of this package.
    """
    page = render(read_benchmark(results, resamples=resamples), audio=audio, resamples=resamples)
    write_page(html, page)


def write_figures(results: Path, folder: Path, *, resamples: int = 1000) -> list[Path]:
    """Write the charts of the page as MODEL-CORPUS-CHART-VIEW.png and .pdf.

    Args:
        results: Folder of `ssvd benchmark`, or of a stored study.
        folder: Folder to write to; it is made.
        resamples: Number of draws of each bootstrap.

    Returns:
        The files.

    Raises:
        UserError: As for `read_benchmark`.
    """
    benchmark = read_benchmark(results, resamples=resamples)
    folder.mkdir(parents=True, exist_ok=True)
    looks = styles((row.method for study in benchmark.studies for row in study.rows), METHODS)
    written = []
    for study in benchmark.studies:
        for chart in charts(study, benchmark.texts, resamples=resamples):
            for view in chart.views:
                parts = [study.model, study.corpus, chart.name, *([view.label] if len(chart.views) > 1 else [])]
                title = f"{chart.title}: {study.name}{' (synthetic speech)' if study.synthetic else ''}"
                written += save_figure(view, looks, title, folder / file_name(*parts))
    return written


def results_csv(results: Path, *, resamples: int = 1000) -> str:
    """Return the main table of all studies as CSV; errors are those of `read_benchmark`."""
    return to_csv(main_table(read_benchmark(results, resamples=resamples).studies))


def results_latex(results: Path, *, resamples: int = 1000) -> str:
    """Return the main table as LaTeX, with a tabular for each study; errors are those of `read_benchmark`."""
    members = read_benchmark(results, resamples=resamples).studies
    return "\n".join(f"% {' '.join(study.name.split())}\n{to_latex(main_table([study]))}" for study in members)


def render(benchmark: Benchmark, *, audio: bool = True, resamples: int = 1000) -> str:
    """Return the page as HTML.

    Args:
        benchmark: What to show.
        audio: Whether to embed recordings.
        resamples: Number of draws of each bootstrap.
    """
    drawn: list[Chart] = []
    players = Players(SOUNDS_LIMIT if audio else 0)
    parts = []
    if any(study.synthetic for study in benchmark.studies):
        parts.append(
            '<p class="warning"><strong>Synthetic speech.</strong> Studies marked so were made on synthetic speech; '
            "they prove nothing about recorded speakers.</p>"
        )
    if len(benchmark.studies) > 1:
        links = (f'<a href="#study-{n}">{escape(study.name)}</a>' for n, study in enumerate(benchmark.studies))
        parts.append(f"<nav><p>{' · '.join(links)}</p></nav>")
    for number, study in enumerate(benchmark.studies):
        parts.append(f'<section id="study-{number}"><h2>{escape(_title(study))}</h2>')
        parts.append(bullets(summary(study)))
        for chart in charts(study, benchmark.texts, resamples=resamples):
            parts.append(chart_section(len(drawn), chart, (study.model, study.corpus)))
            drawn.append(chart)
        parts.append("<h3>All numbers</h3>")
        parts.append(f'<p class="note">{escape(_NUMBERS.format(units=units(study)))}</p>')
        parts.append(to_html(main_table([study]), file_name(study.model, study.corpus)))
        parts.append(_changed_utterances(study, benchmark, players))
        parts.append("</section>")
    parts += [_failures(benchmark), _origin(benchmark)]
    looks = styles((row.method for study in benchmark.studies for row in study.rows), METHODS)
    title = "Benchmark: " + ", ".join(dict.fromkeys(study.name for study in benchmark.studies))
    return html_page(title, parts, drawn, looks)


def summary(study: Study) -> list[str]:
    """Return the findings of a study as sentences: losses as plainly as gains, and what cannot be distinguished."""
    frozen, full, best = study.row(FROZEN), study.row(FULL), study.best
    findings = []
    if frozen is not None:
        findings.append(f"The frozen model: {_rate(frozen)}.")
    if full is not None:
        findings.append(
            f"Full fine-tuning: {_rate(full)}. {_difference('It', full.against_frozen, 'the frozen model')}".strip()
        )
    if best is not None:
        sentences = [
            f"The adapter with the lowest WER on dev, {best.name}: {_rate(best)}, with "
            f"{best.trainable_parameters:,} trained parameters ({100 * best.share:.3g} % of the model).",
            _difference("It", best.against_frozen, "the frozen model"),
            _difference("It", best.against_lora, "LoRA at the same budget"),
            _difference("It", best.against_full, "full fine-tuning"),
        ]
        if best.recovered is not None:
            sentences.append(f"It recovers {100 * best.recovered:.0f} % of the gain of full fine-tuning.")
        findings.append(" ".join(filter(None, sentences)))
        for corpus, change in best.forgetting.items():
            findings.append(f"On {corpus}, which the model knew: " + _difference(best.name, change, "the frozen model"))
    for method in dict.fromkeys(row.method for row in study.rows if is_ssvd(row.method)):
        findings += _budget_by_budget(method, [row for row in study.rows if row.method == method and row is not best])
    missing = [
        name for name, method in (("the frozen model", FROZEN), ("full fine-tuning", FULL)) if not study.row(method)
    ]
    if all(row.method != LORA for row in study.rows):
        missing.append("LoRA")
    if missing:
        findings.append(f"Not among the results: {', '.join(missing)}; comparisons with them are left out.")
    edges = [f"{row.name} ({row.edge})" for row in study.rows if row.edge in ("lowest", "highest")]
    if edges:
        findings.append(
            f"May be under-tuned, as dev chose an outermost learning rate of those tried: {', '.join(edges)}."
        )
    single = [row.name for row in study.rows if row.edge == "only"]
    if single:
        findings.append(f"Not tuned, as only one learning rate was tried: {', '.join(single)}.")
    if any(len(row.results) == 1 for row in study.rows if row.method != FROZEN):
        findings.append("Some methods have only one seed, so the variation between seeds is unknown for them.")
    failed = {(failure.cell.method, failure.cell.budget, failure.cell.seed) for failure in study.failures}
    if failed:
        findings.append(f"Failed cells: {len(failed)}, listed below.")
    return findings


_NUMBERS = (
    "Means over seeds. Intervals: 95 % bootstrap over {units} of the test set; they do not include the variation "
    "between seeds, whose standard deviation is s. Against another row: paired difference of WER in percentage points, "
    "negative if this row has fewer errors; the two cannot be told apart if the interval includes 0. With many "
    "comparisons, about one in twenty intervals excludes 0 by chance. Click on a heading to sort."
)


def _title(study: Study) -> str:
    return f"{study.name}{' (synthetic speech)' if study.synthetic else ''}"


def _rate(row: Row) -> str:
    if row.wer is None:
        return "no WER, as no reference has words"
    within = f" (95 % interval {100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f})" if row.interval else ""
    seeds = "" if row.method == FROZEN else f", {len(row.results)} seed{'s' if len(row.results) > 1 else ''}"
    return f"WER {100 * row.wer:.1f} %{within}{seeds}"


def _difference(subject: str, comparison: Comparison | None, other: str) -> str:
    """Return a difference as a sentence, or "" if there is none."""
    if comparison is None:
        return ""
    points = 100 * comparison.difference
    if comparison.interval is None:
        return f"{subject} differs from {other} by {_signed(points)} points, on too little speech for an interval."
    low, high = (100 * bound for bound in comparison.interval)
    interval = f"95 % interval {_signed(low)} to {_signed(high)}"
    if low <= 0 <= high:
        return f"{subject} cannot be told apart from {other}: difference {_signed(points)} points, {interval}."
    return (
        f"{subject} has {abs(points):.1f} points {'fewer' if points < 0 else 'more'} errors than {other} ({interval})."
    )


def _budget_by_budget(method: str, rows: Sequence[Row]) -> list[str]:
    """Return a sentence that compares a method with LoRA at every budget that both have; none without such a budget."""
    verdicts: dict[str, list[str]] = {}
    for row in rows:
        if row.against_lora is None:
            continue
        points, interval = 100 * row.against_lora.difference, percents(row.against_lora.interval)
        if interval is None:
            verdict, bounds = "too little speech for an interval", ""
        else:
            tied = interval[0] <= 0 <= interval[1]
            verdict = "cannot be told apart" if tied else f"{'fewer' if points < 0 else 'more'} errors"
            bounds = f", {_signed(interval[0])} to {_signed(interval[1])}"
        verdicts.setdefault(verdict, []).append(f"{row.budget} ({_signed(points)}{bounds})")
    if not verdicts:
        return []
    parts = (f"{verdict} at {', '.join(budgets)}" for verdict, budgets in verdicts.items())
    return [f"{method} against LoRA at the same budget, in points with 95 % intervals: {'; '.join(parts)}."]


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _changed_utterances(study: Study, benchmark: Benchmark, players: Players) -> str:
    frozen, best = study.row(FROZEN), study.best
    if frozen is None or best is None:
        return ""
    before, after, texts = frozen.results[0], best.results[0], benchmark.texts
    changed = most_changed(texts[before.id, TEST], texts[after.id, TEST], after.normaliser)
    if not any(changed):
        return ""
    parts = [
        "<h3>Utterances that changed most</h3>"
        f"<p>From the frozen model to {escape(best.name)}, seed {after.cell.seed}, by the change in word errors; texts "
        f"as normalised for scoring. {LEGEND}.</p>"
    ]
    for title, utterances in zip(("Improved", "Worsened"), changed, strict=True):
        parts.append(f"<h4>{title}</h4>")
        if not utterances:
            parts.append("<p>None.</p>")
        for utterance in utterances:
            recording = benchmark.folder / after.audio.get(utterance.id, "")
            parts.append(utterance_html(utterance, ("frozen", best.name), players.of_file(recording)))
    return "".join(parts)


def _failures(benchmark: Benchmark) -> str:
    rows: list[tuple[str, ...]]
    parts = ["<section><h2>Failures and skipped files</h2>"]
    if benchmark.failures:
        rows = [
            (
                f.cell.model,
                f.cell.corpus,
                f"{f.cell.method} {f.cell.budget}".strip(),
                str(f.cell.seed),
                "" if f.learning_rate is None else f"{f.learning_rate:g}",
                f.reason,
            )
            for f in benchmark.failures
        ]
        parts.append(_table(("Model", "Corpus", "Method", "Seed", "Learning rate", "Reason"), rows))
    if benchmark.skipped:
        # Pages are published: they do not state where the results lay.
        here = f"{benchmark.folder}/"
        rows = [(file.where.replace(here, ""), file.reason.replace(here, "")) for file in benchmark.skipped]
        parts.append(_table(("Skipped", "Reason"), rows))
    if not benchmark.failures and not benchmark.skipped:
        parts.append("<p>None.</p>")
    return "".join(parts) + "</section>"


def _origin(benchmark: Benchmark) -> str:
    results = [result for study in benchmark.studies for row in study.rows for result in row.results]
    origins = [result.origin for result in results]
    trained = [result for result in results if result.cell.method != FROZEN] or results
    common = {
        name: value
        for name, value in trained[0].options.items()
        if all(result.options.get(name) == value for result in trained)
    }
    versions = sorted({f"{name} {version}" for origin in origins for name, version in origin.versions.items()})
    facts = [
        ("Hardware", "; ".join(sorted({origin.hardware for origin in origins}))),
        ("Versions", ", ".join(versions)),
        ("Commits", ", ".join(sorted({origin.commit or "unknown" for origin in origins}))),
        ("Started", f"{min(origin.started for origin in origins)} to {max(origin.started for origin in origins)}"),
        ("Computed", f"{sum(origin.seconds for origin in origins) / 3600:.2f} hours in total, for the cells shown"),
        ("Normaliser", ", ".join(sorted({result.normaliser for result in results}))),
        *((f"Option {name}", _text(value)) for name, value in sorted(common.items())),
    ]
    rows = []
    for result in results:
        others = {name: value for name, value in sorted(result.options.items()) if common.get(name) != value}
        search = ", ".join(
            f"{float(rate):g}: {'failed' if wer is None else f'{100 * wer:.1f} %'}"
            for rate, wer in sorted(result.search.items(), key=lambda item: float(item[0]))
        )
        rows.append((result.id, search, f"{result.origin.seconds:,.0f}", _text(others) if others else ""))
    body = "".join(f'<tr><td>{escape(name)}</td><td class="long">{escape(value)}</td></tr>' for name, value in facts)
    cells = _table(("Cell", "Dev WER by learning rate", "Seconds", "Other options"), rows)
    return (
        f'<section><h2>How it was made</h2><div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div>'
        f"<details><summary>Every cell</summary>{cells}</details></section>"
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a plain table whose last column is running text."""
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(value)}</td>" for value in row[:-1])
        + f'<td class="long">{escape(row[-1])}</td></tr>'
        for row in rows
    )
    return (
        f'<div class="scroll tall"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
