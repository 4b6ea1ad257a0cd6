"""Write the tables of docs/results.md from the folders of results in docs/results, between their markers.

    python scripts/results_page.py                          # tables, and the charts that the page shows
    python scripts/results_page.py runs/x synthetic         # put what `ssvd benchmark` left in runs/x there before

A folder keeps grid, cells, trials, failures and hypotheses, which is all that `ssvd report` needs; not the speech.
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from performance_page import fill, table
from ssvd.files import write_json
from ssvd.reports.page import read_benchmark, write_figures
from ssvd.reports.study import Row, Study
from ssvd.scoring import Comparison

PAGE = Path("docs/results.md")
RESULTS = Path("docs/results")
CHARTS = ("embedded-child-forgetting.png", "embedded-child-convergence-epochs.png")  # of synthetic
KEPT = ("grid.yaml", "cells", "trials", "failures", "hypotheses")


def adopt(results: Path, name: str) -> None:
    """Copy a folder of results, without speech, logs and adapters, to docs/results; what else is there stays."""
    for old, new in ((RESULTS / name / part, results / part) for part in KEPT):
        shutil.rmtree(old, ignore_errors=True)
        if new.is_dir():
            shutil.copytree(new, old)
        elif new.is_file():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(new, old)
    for cell in (RESULTS / name / "cells").glob("*.json"):
        write_json(cell, json.loads(cell.read_text(encoding="utf-8")) | {"audio": {}})  # of this machine


def studies(name: str) -> str:
    """A table for each study of a folder of results."""
    found = read_benchmark(RESULTS / name).studies
    return "\n\n".join(f"### {study.name}\n\n{_table(study)}" for study in found)


def _table(study: Study) -> str:
    sources = list(dict.fromkeys(corpus for row in study.rows for corpus in row.forgetting))
    head = ["method", "trained", "rate", "WER", "s", "against LoRA", "against full", "recovered"]
    head += [f"on {corpus}" for corpus in sources]
    rows = [
        [
            row.name,
            f"{row.trainable_parameters:,} ({100 * row.share:.3g} %)" if row.trainable_parameters else "",
            ", ".join(f"{rate:g}" for rate in row.learning_rates) + ("*" if row.edge else ""),
            _rate(row),
            "" if row.spread is None else f"{100 * row.spread:.1f}",
            _difference(row.against_lora),
            _difference(row.against_full),
            "" if row.recovered is None else f"{100 * row.recovered:.0f} %",
            *(_difference(row.forgetting.get(corpus)) for corpus in sources),
        ]
        for row in study.rows
    ]
    return table(head, rows)


def _rate(row: Row) -> str:
    low, high = row.interval or (0.0, 0.0)
    return "" if row.wer is None else f"{100 * row.wer:.1f} ({100 * low:.1f} .. {100 * high:.1f})"


def _difference(found: Comparison | None) -> str:
    if found is None or found.interval is None:
        return ""
    low, high = found.interval
    mark = "" if low <= 0 <= high else "**"
    shown = f"{mark}{100 * found.difference:+.1f}{mark} ({100 * low:+.1f} .. {100 * high:+.1f})"
    return shown.replace("-", "−")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        adopt(Path(sys.argv[1]), sys.argv[2])
    grids = sorted(RESULTS.glob("*/grid.yaml"))
    fill(PAGE, {grid.parent.name: studies(grid.parent.name) for grid in grids})
    with TemporaryDirectory() as figures:
        write_figures(RESULTS / "synthetic", Path(figures))
        for chart in CHARTS:
            shutil.copy(Path(figures) / chart, PAGE.parent / "images")
