"""Tables as HTML, CSV and LaTeX."""

import csv
import io
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

Interval = tuple[float, float]
Value = str | float | int | Interval | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: Its heading.
        spec: Format specification of its numbers.
        paper: Whether it is part of LaTeX tables.
    """

    head: str
    spec: str = ".2f"
    paper: bool = True


@dataclass(frozen=True)
class Table:
    """Columns, and rows with a value for each column: None is an empty cell, a pair of numbers an interval."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]


def to_html(table: Table, name: str, *, is_long: bool = False) -> str:
    """Return a table that can be sorted and scrolled, and links that download it as CSV and LaTeX, as HTML.

    Args:
        table: The table.
        name: Name of the downloaded files, without ending.
        is_long: Whether its rows scroll in a box of their own.
    """
    heads = "".join(f'<th scope="col"><button type="button">{escape(c.head)}</button></th>' for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(_html_cell(v, c) for v, c in zip(row, table.columns, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll{" tall" * is_long}"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="downloads">{_download("CSV", f"{name}.csv", to_csv(table))} '
        f"{_download('LaTeX', f'{name}.tex', to_latex(table))}</p>"
    )


def to_csv(table: Table) -> str:
    """Return a table as CSV: numbers are not rounded, and an interval takes two columns.

    Text that a spreadsheet would compute, as it begins with = + - or @, begins with an apostrophe instead.
    """
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    intervals = [any(isinstance(value, tuple) for value in column) for column in columns]
    heads: list[str] = []
    for column, interval in zip(table.columns, intervals, strict=True):
        heads += [f"{column.head}, low", f"{column.head}, high"] if interval else [column.head]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_as_text, heads))
    for row in table.rows:
        cells: list[str] = []
        for value, interval in zip(row, intervals, strict=True):
            parts = value if isinstance(value, tuple) else (value, None) if interval else (value,)
            cells += [_csv_cell(part) for part in parts]
        writer.writerow(cells)
    return out.getvalue()


def _csv_cell(value: str | float | int | None) -> str:
    if isinstance(value, str):
        return _as_text(value)
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _as_text(text: str) -> str:
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def to_latex(table: Table) -> str:
    """Return the columns of a table that are for papers as a tabular of the LaTeX package booktabs."""
    printed = [index for index, column in enumerate(table.columns) if column.paper]
    kinds = "".join("l" if all(isinstance(row[i], str | None) for row in table.rows) else "r" for i in printed)
    lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    lines += [" & ".join(_latex(table.columns[i].head) for i in printed) + r" \\", r"\midrule"]
    for row in table.rows:
        lines.append(" & ".join(_latex(shown(row[i], table.columns[i].spec)) for i in printed) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def shown(value: Value, spec: str) -> str:
    """Return a value as text for people."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return f"[{_number(value[0], spec)}, {_number(value[1], spec)}]"
    return _number(value, spec)


def _number(value: float, spec: str) -> str:
    return format(value, spec).replace("-", "−")


def _html_cell(value: Value, column: Column) -> str:
    text = escape(shown(value, column.spec))
    if isinstance(value, str):
        return f"<td>{text}</td>"
    if value is None:
        return "<td></td>"
    return f'<td class="number" data-value="{value[0] if isinstance(value, tuple) else value!r}">{text}</td>'


def _download(label: str, file: str, text: str) -> str:
    # A data URL needs no script.
    kind = "text/csv" if file.endswith(".csv") else "text/x-tex"
    return f'<a class="button" download="{escape(file)}" href="data:{kind};charset=utf-8,{quote(text)}">{label}</a>'


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
