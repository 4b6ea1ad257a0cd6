"""Pages with charts and tables; nothing here is specific to speech."""

from ssvd.reports.html.charts import Chart, Point, Series, Style, View, styles
from ssvd.reports.html.tables import Column, Interval, Table, Value, shown, to_csv, to_html, to_latex
from ssvd.reports.html.writing import bullets, chart_section, check_page, file_name, html_page, write_page

__all__ = [
    "Chart",
    "Column",
    "Interval",
    "Point",
    "Series",
    "Style",
    "Table",
    "Value",
    "View",
    "bullets",
    "chart_section",
    "check_page",
    "file_name",
    "html_page",
    "shown",
    "styles",
    "to_csv",
    "to_html",
    "to_latex",
    "write_page",
]
