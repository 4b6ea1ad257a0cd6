"""The charts of a benchmark as figures for papers, by matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from ssvd.files import whole_file
from ssvd.reports.html import Interval, Series, Style, View


def save_figure(view: View, styles: Mapping[str, Style], title: str, stem: Path) -> list[Path]:
    """Draw a view, and return its files.

    Args:
        view: What to draw.
        styles: Style of each method.
        title: Title above the axes.
        stem: Path of the files without their endings, .png and .pdf.
    """
    # Names are data: a "$" in one starts no formula. Type 42: text in a PDF stays text, as journals require.
    with matplotlib.rc_context({"text.parse_math": False, "pdf.fonttype": 42}):
        figure = Figure(figsize=(6, 4.4), layout="constrained")
        axes = figure.subplots()
        count = len(view.series)
        for index, series in enumerate(view.series):
            if view.bars:
                _bars(axes, view, series, styles[series.method], index, count)
            else:
                offset = min(0.06, 0.8 / count) * (index - (count - 1) / 2)
                _points(axes, view, series, styles[series.method], offset)
        _references(axes, view)
        _scales(axes, view)
        axes.set(xlabel=view.x_title, ylabel=view.y_title)
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
        widest = max(len(str(text)) for text in axes.get_legend_handles_labels()[1])
        columns = max(1, min(4, 80 // (widest + 8)))
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
        paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
        for path in paths:
            # Without a date, equal results give equal files.
            kind = path.suffix.removeprefix(".")
            with whole_file(path) as file:
                figure.savefig(file, format=kind, dpi=200, metadata={"CreationDate": None} if kind == "pdf" else None)
        return paths


def _references(axes: Axes, view: View) -> None:
    """Draw what the series are compared with: the Pareto front and the level."""
    if view.front:
        xs, ys = zip(*view.front, strict=True)
        axes.step(xs, ys, where="post", linestyle=":", color="gray", label="Pareto front", zorder=1)
    if view.level is None:
        return
    if view.level_fits:
        axes.axhline(view.level, linestyle="--", color="gray", linewidth=1, label=view.level_name, zorder=1)
    else:
        axes.plot([], [], " ", label=f"{view.level_name}: {view.level:.1f}, outside")


def _scales(axes: Axes, view: View) -> None:
    """Set the scales, limits and ticks of the axes."""
    if view.log:
        axes.set_xscale("log")
        xs = [float(point.x) for series in view.series for point in series.points if float(point.x) > 0]
        wide = bool(xs) and max(xs) > 1000 * min(xs)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        large = EngFormatter(sep="")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x < 1000 else large(x))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if view.categories:
        axes.set_xticks(range(len(view.categories)), view.categories)
        if max(map(len, view.categories)) * len(view.categories) > 60:
            axes.tick_params(axis="x", rotation=45)
    elif view.x_title == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if view.bars:
        axes.set_ylim(bottom=0)
    if not view.log and not view.categories and axes.get_xlim()[0] > 0:
        axes.set_xlim(0, 1.03 * axes.get_xlim()[1])


def _points(axes: Axes, view: View, series: Series, style: Style, offset: float) -> None:
    """Draw points; those of the same category stand beside each other, `offset` from its middle."""
    xs: list[Any] = [point.x for point in series.points]
    if view.categories:
        xs = [view.categories.index(x) + offset for x in xs]
    ys = [point.y for point in series.points]
    axes.errorbar(
        xs,
        ys,
        yerr=_errors(ys, [point.y_interval for point in series.points]),
        xerr=_errors(xs, [point.x_interval for point in series.points]),
        color=style.light,
        marker=style.matplotlib,
        markersize=6,
        linestyle="-" if series.line else "none",
        linewidth=1.2,
        elinewidth=0.9,
        capsize=3,
        label=series.name,
    )


def _bars(axes: Axes, view: View, series: Series, style: Style, index: int, count: int) -> None:
    """Draw a series as bars, the one with this index of `count` series beside each other."""
    width = 0.8 / count
    ys = [point.y for point in series.points]
    axes.bar(
        [view.categories.index(str(point.x)) + (index - (count - 1) / 2) * width for point in series.points],
        ys,
        width,
        yerr=_errors(ys, [point.y_interval for point in series.points]),
        color=style.light,
        hatch=2 * style.hatch,
        alpha=0.75,
        edgecolor="white",
        ecolor="black",
        error_kw={"elinewidth": 0.9, "capsize": 2},
        label=series.name,
    )


def _errors(values: list[float], intervals: list[Interval | None]) -> list[list[float]] | None:
    """Return the lengths of the error bars below and above values, or None without intervals."""
    if not any(intervals):
        return None
    # The bootstrap interval of a mean over seeds can end just short of that mean.
    pairs = [(value - i[0], i[1] - value) if i else (0.0, 0.0) for value, i in zip(values, intervals, strict=True)]
    return [[max(0.0, pair[side]) for pair in pairs] for side in (0, 1)]
