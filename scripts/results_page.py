"""Write the tables and charts of docs/results.md from the stored studies in results/.

    python scripts/results_page.py

The tables of results/NAME stand between the markers <!-- NAME --> and <!-- end --> of the page.
"""

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from ssvd.files import write_whole
from ssvd.reports.page import read_benchmark, write_figures
from ssvd.reports.study import Row, Study
from ssvd.scoring import Comparison

PAGE = Path("docs/results.md")
RESULTS = Path("results")
SECTION = re.compile(r"(<!-- (?!end )([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Charts that the page shows, by study.
CHARTS = {
    "synthetic": ("embedded-child-forgetting.png", "embedded-child-convergence-epochs.png"),
    "recorded-children": ("whisper-tiny.en-speechocean762-groups-age.png",),
}


def fill(page: str) -> str:
    """Return the page with the tables of every marked study that is stored; other sections stay as they are."""

    def filled(section: re.Match[str]) -> str:
        begin, name, end = section.groups()
        folder = RESULTS / name
        return f"{begin}\n{tables(folder)}\n\n{end}" if folder.is_dir() else section[0]

    return SECTION.sub(filled, page)


def tables(folder: Path) -> str:
    """Return a table for each model and corpus of a stored study."""
    return "\n\n".join(f"### {study.name}\n\n{_table(study)}" for study in read_benchmark(folder).studies)


def _table(study: Study) -> str:
    sources = list(dict.fromkeys(corpus for row in study.rows for corpus in row.forgetting))
    with_fallback = any(row.wer_without_fallback is not None for row in study.rows)
    rows = [_cells(row, sources, with_fallback) for row in study.rows]
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row, sources: list[str], with_fallback: bool) -> dict[str, str]:
    """Return what a row of the table shows, by column."""
    trained = f"{row.trainable_parameters:,} ({100 * row.share:.3g} %)"
    return {
        "method": row.name,
        "trained": trained if row.trainable_parameters else "",
        "rate": ", ".join(f"{rate:g}" for rate in row.learning_rates) + ("*" if row.edge else ""),
        "WER": _rate(row),
        **({"no fallback": _percent(row.wer_without_fallback)} if with_fallback else {}),
        "s": _percent(row.spread),
        "against LoRA": _difference(row.against_lora),
        "against full": _difference(row.against_full),
        "recovered": "" if row.recovered is None else f"{100 * row.recovered:.0f} %",
        **{f"on {corpus}": _difference(row.forgetting.get(corpus)) for corpus in sources},
    }


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"


def _rate(row: Row) -> str:
    if row.wer is None or row.interval is None:
        return _percent(row.wer)
    low, high = row.interval
    return f"{_percent(row.wer)} ({_percent(low)} .. {_percent(high)})"


def _difference(comparison: Comparison | None) -> str:
    if comparison is None or comparison.interval is None:
        return ""
    low, high = comparison.interval
    mark = "" if low <= 0 <= high else "**"
    shown = f"{mark}{100 * comparison.difference:+.1f}{mark} ({100 * low:+.1f} .. {100 * high:+.1f})"
    return shown.replace("-", "−")


if __name__ == "__main__":
    write_whole(PAGE, fill(PAGE.read_text(encoding="utf-8")))
    for study, charts in CHARTS.items():
        with TemporaryDirectory() as figures:
            write_figures(RESULTS / study, Path(figures))
            for chart in charts:
                shutil.copy(Path(figures) / chart, PAGE.parent / "images")
