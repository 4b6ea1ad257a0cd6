"""Charts without a plotting library: pages and figures draw the same ones."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ssvd.reports.html.tables import Column, Interval, Table, Value


@dataclass(frozen=True)
class Style:
    """How series are drawn everywhere: a colour on light and on dark ground, and a marker, which bars hatch."""

    light: str
    dark: str
    marker: str  # Plotly's name
    matplotlib: str
    hatch: str  # the same for both


# Told apart by people who see no red or no green, as by their lightness; ink and grey are the grounds' own.
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
    """The style of each name, no two alike: the colour and marker that are `known`, else free ones by the name."""
    free = [
        (colour, marker)
        for marker in MARKERS
        for colour in COLOURS
        if colour not in ("ink", "grey") and (colour, marker) not in known.values()
    ]
    chosen = {}
    for name in sorted(set(names)):
        # When all are given out, series begin to look alike.
        colour, marker = known.get(name) or free[zlib.crc32(name.encode()) % len(free)]
        if name not in known and len(free) > 1:
            free.remove((colour, marker))
        chosen[name] = Style(*COLOURS[colour], marker, *MARKERS[marker])
    return chosen


@dataclass(frozen=True)
class Point:
    """A mark: where, its 95 % intervals, and what is said of it, in lines."""

    x: float | str
    y: float
    y_interval: Interval | None = None
    x_interval: Interval | None = None
    name: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points of one thing, joined by a line or not; `method` is the key of its style."""

    name: str
    method: str
    points: tuple[Point, ...]
    line: bool = False


@dataclass(frozen=True)
class View:
    """One pair of axes: numbers across, on a log scale or not, or categories in their order, as bars or not.

    `level` is a horizontal line with a name, such as the frozen model's error rate, and `front` a Pareto front, from
    left to right. `names` says what the points are named by.
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
        """Whether the level can be drawn without squeezing what the series show."""
        if self.level is None:
            return False
        points = [point for series in self.series for point in series.points]
        bounds = [bound for point in points for bound in (point.y, *(point.y_interval or ()))] or [self.level]
        low, high = (0.0 if self.bars else min(bounds)), max(bounds)
        return self.bars or low - (high - low) <= self.level <= high + (high - low)

    def table(self) -> Table:
        """The numbers behind it."""
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
    """Views of the same thing, of which a reader chooses one."""

    name: str
    title: str
    note: str
    views: tuple[View, ...]
