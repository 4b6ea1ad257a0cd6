"""The main table of a benchmark."""

from collections.abc import Sequence

from ssvd.reports.html import Column, Interval, Table, Value
from ssvd.reports.study import Row, Study
from ssvd.scoring import Comparison


def main_table(studies: Sequence[Study]) -> Table:
    """Return a table with a row for each method and budget of each study, followed by the cells that failed.

    Rates are in percent and their differences in percentage points. A negative difference means fewer errors.
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


def percent(value: float | None) -> float | None:
    """Return a fraction in percent."""
    return None if value is None else 100 * value


def percents(interval: Interval | None) -> Interval | None:
    """Return an interval of fractions in percent."""
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def notes(study: Study, row: Row) -> str:
    """Return what a reader must know about a row besides its numbers."""
    remarks = []
    if row.pareto:
        remarks.append("Pareto front")
    if row.edge == "only":
        remarks.append("one learning rate tried")
    elif row.edge:
        remarks.append(f"{row.edge} learning rate tried: may be under-tuned")
    failed = sorted({f.cell.seed for f in study.failures if (f.cell.method, f.cell.budget) == (row.method, row.budget)})
    if failed:
        remarks.append(f"failed for seed {', '.join(map(str, failed))}")
    if any(result.synthetic for result in row.results):
        remarks.append("synthetic speech")
    return "; ".join(remarks)


def _values(study: Study, row: Row, sources: Sequence[str]) -> tuple[Value, ...]:
    return tuple(value for _, value in _pairs(study, row, sources))


def _pairs(study: Study, row: Row, sources: Sequence[str]) -> list[tuple[Column, Value]]:
    """Return the columns of the table, each with its value in a row."""
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
        (Column("WER without fallback (%)", paper=False), percent(row.wer_without_fallback)),
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


def _difference(other: str, comparison: Comparison | None, paper: bool = True) -> list[tuple[Column, Value]]:
    return [
        (Column(f"Against {other}", "+.2f", paper), None if comparison is None else 100 * comparison.difference),
        (
            Column(f"Against {other}, 95 %", "+.2f", paper),
            None if comparison is None else percents(comparison.interval),
        ),
    ]


def _rates(row: Row) -> Value:
    rates = row.learning_rates
    return rates[0] if len(rates) == 1 else ", ".join(f"{rate:g}" for rate in rates)
