"""Charts, independent of the library that draws them: pages and figures show the same ones."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ssvd.reports.html.tables import Column, Interval, Table, Value


@dataclass(frozen=True)
class Style:
    """How the series of a method are drawn.

    Attributes:
        light: Colour on a light background.
        dark: Colour on a dark background.
        marker: Name of the marker in Plotly.
        matplotlib: Name of the marker in Matplotlib.
        hatch: Pattern of bars, the same in both.
    """

    light: str
    dark: str
    marker: str
    matplotlib: str
    hatch: str


# They differ in lightness, so that people who see no red or no green can distinguish them. Ink and grey are for text
# and for references.
COLOURS = {
    "blue": ("#0068b5", "#5cb0f5"),
    "vermilion": ("#c84c00", "#ff8c4a"),
    "green": ("#00805c", "#35cfa1"),
    "purple": ("#a3418c", "#e79bd3"),
    "amber": ("#a87400", "#f2bb3f"),
    "brown": ("#6b4a2f", "#c9a17a"),
    "ink": ("#1c2126", "#f0f2f4"),
    "grey": ("#6a737d", "#9aa4af"),
}
MARKERS = {
    "circle": ("o", ""),
    "square": ("s", "/"),
    "diamond": ("D", "\\"),
    "triangle-up": ("^", "x"),
    "triangle-down": ("v", "-"),
    "hexagon": ("h", "|"),
    "pentagon": ("p", "+"),
    "cross": ("P", "."),
    "star": ("*", ""),
    "x": ("X", "x"),
}


def styles(names: Iterable[str], known: Mapping[str, tuple[str, str]] = {}) -> dict[str, Style]:
    """Return the style of each name, no two alike.

    Args:
        names: Names of methods or corpora.
        known: Colour and marker of some names; the others get free ones that depend on the name.
    """
    free = [
        (colour, marker)
        for marker in MARKERS
        for colour in COLOURS
        if colour not in ("ink", "grey") and (colour, marker) not in known.values()
    ]
    chosen = {}
    for name in sorted(set(names)):
        # Once all styles are taken, the last one is used again.
        colour, marker = known.get(name) or free[zlib.crc32(name.encode()) % len(free)]
        if name not in known and len(free) > 1:
            free.remove((colour, marker))
        chosen[name] = Style(*COLOURS[colour], marker, *MARKERS[marker])
    return chosen


@dataclass(frozen=True)
class Point:
    """A mark of a series.

    Attributes:
        x: Number or category.
        y: Number.
        y_interval: 95 % interval of `y`.
        x_interval: 95 % interval of `x`.
        name: What the mark stands for.
        lines: What is shown when it is pointed at.
    """

    x: float | str
    y: float
    y_interval: Interval | None = None
    x_interval: Interval | None = None
    name: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: Name in the legend.
        method: Key of the style.
        points: The points.
        line: Whether a line joins them.
    """

    name: str
    method: str
    points: tuple[Point, ...]
    line: bool = False


@dataclass(frozen=True)
class View:
    """What one pair of axes shows.

    Attributes:
        label: Name of the view among those of a chart.
        x_title: Title of the x axis.
        y_title: Title of the y axis.
        series: The series.
        log: Whether the x axis is logarithmic.
        categories: Categories of the x axis in their order; empty for numbers.
        bars: Whether the series are drawn as bars.
        level: Height of a horizontal line, such as the frozen model's error rate.
        level_name: Name of that line.
        names: What the names of the points are, such as "Method".
        front: Pareto front, from left to right.
    """

    label: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    log: bool = False
    categories: tuple[str, ...] = ()
    bars: bool = False
    level: float | None = None
    level_name: str = ""
    names: str = ""
    front: tuple[tuple[float, float], ...] = ()

    @property
    def level_fits(self) -> bool:
        """Return whether the level can be drawn without compressing the series."""
        if self.level is None:
            return False
        points = [point for series in self.series for point in series.points]
        bounds = [bound for point in points for bound in (point.y, *(point.y_interval or ()))] or [self.level]
        low, high = (0.0 if self.bars else min(bounds)), max(bounds)
        return self.bars or low - (high - low) <= self.level <= high + (high - low)

    def table(self) -> Table:
        """Return the numbers as a table."""
        points = [point for series in self.series for point in series.points]
        spec = ",d" if all(isinstance(point.x, int) for point in points) else ",.6g"
        columns = [Column(self.names), Column(self.x_title, spec), Column(self.y_title)]
        rows: list[tuple[Value, ...]] = [(point.name, point.x, point.y) for point in points]
        for title, intervals in (
            (f"{self.x_title}: 95 %", [point.x_interval for point in points]),
            (f"{self.y_title}: 95 %", [point.y_interval for point in points]),
        ):
            if any(intervals):
                columns.append(Column(title))
                rows = [(*row, interval) for row, interval in zip(rows, intervals, strict=True)]
        return Table(tuple(columns), tuple(rows))


@dataclass(frozen=True)
class Chart:
    """Views of the same figures, of which the reader chooses one.

    Attributes:
        name: Name in file names.
        title: Title above it.
        note: How to read it.
        views: The views; the first is shown first.
    """

    name: str
    title: str
    note: str
    views: tuple[View, ...]
