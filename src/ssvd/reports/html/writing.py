"""Pages that open from disk: one HTML file of about 5 MB, which asks no network for anything."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from ssvd.reports.html.charts import Chart, Point, Series, Style, View
from ssvd.reports.html.tables import to_html


def html_page(title: str, body: Iterable[str], charts: Sequence[Chart], styles: Mapping[str, Style]) -> str:
    """The page as HTML.

    Args:
        title: As text.
        body: Pieces of HTML, among them a `chart_section` for each chart.
        charts: By the numbers of their sections.
        styles: Of the series, by their method.
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
        plotly=get_plotlyjs().replace("</script", r"<\/script"),
        charts=json.dumps(_escaped(data), ensure_ascii=False).replace("<", r"\u003c"),
        script=script,
    )


def chart_section(index: int, chart: Chart, name: Sequence[str]) -> str:
    """HTML of the chart with this number on the page: its views, and their numbers, whose downloads bear `name`."""
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
    def point(one: Point) -> dict[str, Any]:
        lines = one.lines or (str(one.x), f"{one.y:.2f}")
        return {**asdict(one), "text": _Markup("<br>".join(map(_plain, (one.name, *lines))))}

    def series(one: Series) -> dict[str, Any]:
        return {**asdict(one), "points": [point(p) for p in one.points]}

    return {**asdict(view), "level_fits": view.level_fits, "series": [series(one) for one in view.series]}


class _Markup(str):
    """Text that is HTML already."""


def _escaped(value: Any) -> Any:
    """Data for Plotly, which reads every string as HTML."""
    if isinstance(value, dict):
        return {_escaped(name): _escaped(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(part) for part in value]
    return _plain(value) if isinstance(value, str) and not isinstance(value, _Markup) else value


def _plain(text: str) -> str:
    # A pair of "$" makes a formula of a text for Plotly.
    return escape(text).replace("$", "&#36;")


def bullets(sentences: Iterable[str]) -> str:
    """HTML of a list of sentences."""
    items = (escape(sentence).replace(" %", "&nbsp;%") for sentence in sentences)
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def file_name(*parts: str) -> str:
    """A name for a file, made of words, figures, dots and hyphens."""
    return re.sub(r"[^\w.]+", "-", "-".join(parts)).strip("-.").lower() or "page"
