"""Write pages that a browser opens from disk without a network: one HTML file, of about 5 MB if it has charts."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from ssvd.errors import UserError
from ssvd.files import write_whole
from ssvd.reports.html.charts import Chart, Point, Series, Style, View
from ssvd.reports.html.tables import to_html

# Stands in the head of every page.
_GENERATOR = b'<meta name="generator" content="ssvd">'


def html_page(title: str, body: Iterable[str], charts: Sequence[Chart], styles: Mapping[str, Style]) -> str:
    """Return a page as HTML.

    Args:
        title: Title as plain text.
        body: Pieces of HTML, with a `chart_section` for each chart.
        charts: The charts, in the order of the indices of their sections.
        styles: Style of each method.
    """
    data = {
        "charts": [{"name": chart.name, "views": [_view(view) for view in chart.views]} for chart in charts],
        "styles": {name: asdict(style) for name, style in styles.items()},
    }
    folder = files(__package__)
    template, style, script = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    return Template(template).substitute(
        title=escape(title),
        style=style,
        body="\n".join(body),
        # Nothing in a script may look like its end.
        plotly=get_plotlyjs().replace("</script", r"<\/script") if charts else "",
        charts=json.dumps(_escaped(data), ensure_ascii=False).replace("<", r"\u003c"),
        script=script,
    )


def write_page(path: Path, page: str) -> None:
    """Write a page; its folder is made.

    Raises:
        UserError: There is a file that is no page of this package.
    """
    check_page(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def check_page(path: Path) -> None:
    """Check that a page may be written, before anything is computed for it.

    Raises:
        UserError: There is a file that is no page of this package.
    """
    if path.is_file():
        with path.open("rb") as file:
            if _GENERATOR not in file.read(1000):
                raise UserError(f"{path} exists already and is no page of ssvd; give another file.")


def chart_section(index: int, chart: Chart, name: Sequence[str]) -> str:
    """Return the HTML of a chart: its views and the numbers behind them.

    Args:
        index: Number of the chart on the page, from 0.
        chart: The chart.
        name: First parts of the names of its downloads.
    """
    buttons = "".join(
        f'<button type="button" data-chart="{index}" data-view="{n}" aria-pressed="{str(n == 0).lower()}">'
        f"{escape(view.label)}</button>"
        for n, view in enumerate(chart.views)
    )
    tables = "".join(
        f'<div data-table="{index}" data-view="{n}">'
        + to_html(view.table(), file_name(*name, chart.name, view.label))
        + "</div>"
        for n, view in enumerate(chart.views)
    )
    return (
        f'<section class="chart"><h3>{escape(chart.title)}</h3><p class="note">{escape(chart.note)}</p>'
        + (f'<div class="views" role="group" aria-label="View">{buttons}</div>' if len(chart.views) > 1 else "")
        + f'<div class="plot" id="plot-{index}"></div>'
        + f"<details><summary>Its numbers</summary>{tables}</details></section>"
    )


def _view(view: View) -> dict[str, Any]:
    """Return a view as data for the page's script."""

    def point_data(point: Point) -> dict[str, Any]:
        lines = point.lines or (str(point.x), f"{point.y:.2f}")
        return {**asdict(point), "text": _Markup("<br>".join(map(_plain, (point.name, *lines))))}

    def series_data(series: Series) -> dict[str, Any]:
        return {**asdict(series), "points": [point_data(point) for point in series.points]}

    series = [series_data(series) for series in view.series]
    return {**asdict(view), "level_fits": view.level_fits, "series": series}


class _Markup(str):
    """Text that is HTML already."""


def _escaped(value: Any) -> Any:
    """Return data with its strings escaped for Plotly, which reads each as HTML."""
    if isinstance(value, dict):
        return {_escaped(name): _escaped(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(part) for part in value]
    return _plain(value) if isinstance(value, str) and not isinstance(value, _Markup) else value


def _plain(text: str) -> str:
    # Plotly reads text between two "$" as a formula.
    return escape(text).replace("$", "&#36;")


def bullets(sentences: Iterable[str]) -> str:
    """Return a list of sentences as HTML."""
    items = (escape(sentence).replace(" %", "&nbsp;%") for sentence in sentences)
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def file_name(*parts: str) -> str:
    """Return a file name of letters, digits, dots and hyphens."""
    return re.sub(r"[^\w.]+", "-", "-".join(parts)).strip("-.").lower() or "page"
