"""Tables of a benchmark, as text for the page (HTML), for programs (CSV) and for papers (LaTeX)."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from ..scoring import Comparison
from .statistics import Interval, Row, Study

Value = str | float | int | Interval | None


@dataclass(frozen=True)
class Column:
    """A column: its head, how its numbers are written, and whether it goes to print."""

    head: str
    spec: str = ".2f"
    paper: bool = True


@dataclass(frozen=True)
class Table:
    """Columns, and rows with a value for each; None is empty, a pair of numbers an interval."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]


def main_table(studies: Sequence[Study]) -> Table:
    """A row for each method and budget of each study, the cells that failed after them.

    Rates and their differences are in percent and percentage points; of a difference, negative is better, but for
    forgetting, where positive is more errors than the frozen model's.
    """
    sources = list(dict.fromkeys(corpus for study in studies for row in study.rows for corpus in row.forgetting))
    values = [_values(study, row, sources) for study in studies for row in study.rows]
    columns = tuple(column for column, _ in _pairs(studies[0], studies[0].rows[0], sources)) if studies else ()
    for study in studies:
        for failure in study.failures:
            cell, rate = failure.cell, failure.learning_rate
            reason = f"seed {cell.seed}{'' if rate is None else f', learning rate {rate:g}'}: {failure.reason}"
            known: dict[str, Value] = {
                "Method": cell.method,
                "Budget": cell.budget,
                "WER (%)": "failed",
                "Notes": reason,
                "Model": cell.model,
                "Corpus": cell.corpus,
            }
            values.append(tuple(known.get(column.head) for column in columns))
    return Table(columns, tuple(values))


def to_html(table: Table, name: str) -> str:
    """A table that the page's script sorts, in a box that scrolls by itself, and its downloads, named `name`."""
    heads = "".join(f'<th scope="col"><button type="button">{escape(c.head)}</button></th>' for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(_html_cell(v, c) for v, c in zip(row, table.columns, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="downloads">{_download("CSV", f"{name}.csv", to_csv(table))} '
        f"{_download('LaTeX', f'{name}.tex', to_latex(table))}</p>"
    )


def to_csv(table: Table) -> str:
    """Comma-separated values with a head; numbers unrounded, an interval as two columns."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    intervals = [any(isinstance(value, tuple) for value in column) for column in columns]
    heads: list[str] = []
    for column, interval in zip(table.columns, intervals, strict=True):
        heads += [f"{column.head}, low", f"{column.head}, high"] if interval else [column.head]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for row in table.rows:
        cells: list[str] = []
        for value, interval in zip(row, intervals, strict=True):
            parts = value if isinstance(value, tuple) else (value, None) if interval else (value,)
            cells += [
                f"{part:.10g}" if isinstance(part, float) else "" if part is None else str(part) for part in parts
            ]
        writer.writerow(cells)
    return out.getvalue()


def to_latex(table: Table) -> str:
    """A tabular for the package booktabs, of the columns that go to print."""
    printed = [index for index, column in enumerate(table.columns) if column.paper]
    kinds = "".join("l" if all(isinstance(row[i], str | None) for row in table.rows) else "r" for i in printed)
    lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    lines += [" & ".join(_latex(table.columns[i].head) for i in printed) + r" \\", r"\midrule"]
    for row in table.rows:
        lines.append(" & ".join(_latex(shown(row[i], table.columns[i].spec)) for i in printed) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def shown(value: Value, spec: str) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return f"[{_number(value[0], spec)}, {_number(value[1], spec)}]"
    return _number(value, spec)


def percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def percents(interval: Interval | None) -> Interval | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def notes(study: Study, row: Row) -> str:
    """What a reader must know of a row that its numbers do not show."""
    found = []
    if row.pareto:
        found.append("Pareto front")
    if row.edge == "only":
        found.append("one learning rate tried")
    elif row.edge:
        found.append(f"{row.edge} learning rate tried: may be under-tuned")
    failed = sorted({f.cell.seed for f in study.failures if (f.cell.method, f.cell.budget) == (row.method, row.budget)})
    if failed:
        found.append(f"failed for seed {', '.join(map(str, failed))}")
    if any(result.synthetic for result in row.results):
        found.append("synthetic speech")
    return "; ".join(found)


def _values(study: Study, row: Row, sources: Sequence[str]) -> tuple[Value, ...]:
    return tuple(value for _, value in _pairs(study, row, sources))


def _pairs(study: Study, row: Row, sources: Sequence[str]) -> list[tuple[Column, Value]]:
    pairs: list[tuple[Column, Value]] = [
        (Column("Method"), row.method),
        (Column("Budget"), row.budget),
        (Column("Setting", "g", paper=False), row.setting),
        (Column("Trained parameters", ",d"), row.trainable_parameters),
        (Column("Share (%)", ".3g"), 100 * row.share),
        (Column("Learning rate", "g", paper=False), _rates(row)),
        (Column("Seeds", "d"), len(row.results)),
        (Column("WER (%)"), percent(row.wer)),
        (Column("WER, 95 %"), percents(row.interval)),
        (Column("WER, s over seeds"), percent(row.spread)),
        (Column("CER (%)"), percent(row.cer)),
        *_difference("frozen", row.against_frozen, paper=False),
        *_difference("LoRA", row.against_lora),
        *_difference("full", row.against_full, paper=False),
        (Column("Gain recovered (%)", ".1f"), percent(row.recovered)),
    ]
    for corpus in sources:
        change = row.forgetting.get(corpus)
        pairs.append((Column(f"Forgetting, {corpus}"), None if change is None else 100 * change.difference))
        pairs.append((Column(f"Forgetting, {corpus}, 95 %"), None if change is None else percents(change.interval)))
    return [
        *pairs,
        (Column("Training (s)", ",.1f", paper=False), row.training_seconds),
        (Column("Peak memory (MB)", ",.0f", paper=False), row.peak_memory_bytes / 1e6),
        (Column("Adapter (MB)", ",.3f", paper=False), row.adapter_bytes / 1e6),
        (Column("Dev WER (%)", paper=False), percent(row.dev_wer)),
        (Column("Orthogonality error", ".1e", paper=False), row.orthogonality_error),
        (Column("Notes", paper=False), notes(study, row)),
        (Column("Model", paper=False), study.model),
        (Column("Corpus", paper=False), study.corpus),
    ]


def _difference(other: str, found: Comparison | None, paper: bool = True) -> list[tuple[Column, Value]]:
    return [
        (Column(f"Against {other}", "+.2f", paper), None if found is None else 100 * found.difference),
        (Column(f"Against {other}, 95 %", "+.2f", paper), None if found is None else percents(found.interval)),
    ]


def _rates(row: Row) -> Value:
    rates = row.learning_rates
    return rates[0] if len(rates) == 1 else ", ".join(f"{rate:g}" for rate in rates)


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
    # A data address and no script: it also works where scripts are off.
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
