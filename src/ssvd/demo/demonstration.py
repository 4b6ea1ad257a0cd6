"""The demonstration: the embedded recogniser meets child-like speech, before and after adaptation. All synthetic."""

import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter, MaxNLocator
from rich.console import Console
from rich.table import Table

from ssvd.adapt import AdaptOptions, RunResult, adapt
from ssvd.demo import EMBEDDED
from ssvd.demo.synthetic import write_corpus
from ssvd.errors import UserError
from ssvd.evaluate import BASE, Evaluation, evaluate
from ssvd.files import write_json
from ssvd.training.progress import SILENT, Progress

CORPORA = {  # name: kind, utterances, speakers, offset of the seed
    "child-train": ("child", 480, 24, 1),
    "child-dev": ("child", 64, 8, 2),
    "child-test": ("child", 200, 20, 3),
    "adult-test": ("adult", 200, 20, 4),
}
EPOCHS = 6
METHODS = {"ssvd": "SSVD, p = 40 %", "lora": "LoRA, as many trainables"}
COLORS = {"ssvd": "#0b6e4f", "lora": "#c8553d"}


def run_demo(out: Path, seed: int, console: Console, progress: Progress = SILENT) -> dict[str, Any]:
    """Make the speech, adapt by each method, score before and after, and write tables, plots and transcripts to `out`.

    Raises:
        UserError: `out` holds something else than the results of an earlier demonstration.
    """
    started = time.monotonic()
    if out.exists() and any(out.iterdir()) and not (out / "speech").is_dir():
        raise UserError(f"{out} is not empty; give another folder with --out.")
    console.print("[bold]1. Speech[/]: synthetic, by eSpeak NG; child-like: short vocal tract, hesitant.")
    tables = {}
    for name, (kind, count, speakers, offset) in CORPORA.items():
        table = out / "speech" / f"seed-{seed}" / name / "metadata.csv"
        tables[name] = (
            table if table.is_file() else write_corpus(table.parent, kind, count, speakers, 100 * seed + offset)
        )
    runs = {method: out / f"{method}-seed-{seed}" for method in METHODS}
    results = {}
    for number, (method, run) in enumerate(runs.items(), start=2):
        console.print(f"[bold]{number}. Adaptation[/] by {METHODS[method]} to {CORPORA['child-train'][1]} utterances")
        options = AdaptOptions(
            model=str(EMBEDDED),
            train=[str(tables["child-train"])],
            dev=[str(tables["child-dev"])],
            method=method,
            epochs=EPOCHS,
            seed=seed,
            workers=1,
            device="cpu",
        )
        results[method] = adapt(options, run, resume=(run / "config.yaml").is_file(), progress=progress)
    console.print("[bold]4. Test[/]: speakers never heard in training")
    tests = [str(tables["child-test"]), str(tables["adult-test"])]
    evaluations, _ = evaluate(str(EMBEDDED), tests, adapters=list(runs.values()), batch_size=50, out=out, device="cpu")
    summary = _summary(evaluations, results, runs)
    _plot_convergence(out / "wer-per-epoch.png", results)
    _plot_trainables(out / "wer-against-trainables.png", summary)
    examples = _examples(out / "hypotheses", runs)
    with (out / "summary.txt").open("w", encoding="utf-8") as file:
        for target in (console, Console(file=file, width=120)):
            target.print(_table(summary))
            for example in examples:
                texts = f"\n  said     {example['reference']}\n  before   {example[BASE]}\n  SSVD     {example['ssvd']}"
                target.print(texts, highlight=False, markup=False)
    seconds = round(time.monotonic() - started)
    write_json(out / "summary.json", {"synthetic": True, "seconds": seconds, "systems": summary, "examples": examples})
    console.print(
        f"\nTook {seconds} s. Table and transcripts (summary.txt) and plots are in {out}; "
        f"adapters in {runs['ssvd']} and beside."
    )
    return summary


def _summary(
    evaluations: list[Evaluation], results: dict[str, RunResult], runs: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """For each system what it gained and what it cost."""
    systems = {BASE: BASE} | {str(run): method for method, run in runs.items()}
    summary: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        row = summary.setdefault(systems[evaluation.system], {})
        row[evaluation.corpus.removesuffix("-metadata")] = {
            "wer": evaluation.score.wer,
            "interval": evaluation.score.wer_interval,
        }
    for method, result in results.items():
        names = ("trainable_parameters", "trainable_share", "training_seconds", "adapter_bytes")
        summary[method] |= {name: getattr(result, name) for name in names}
    return summary


def _table(summary: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        "", "child-like WER", "95 %", "adult WER", "trained", "share", "training", "file", title="Synthetic speech"
    )
    for system, row in summary.items():
        child, adult = row["child-test"], row["adult-test"]
        low, high = child["interval"]
        cells = [f"{child['wer']:.1%}", f"{100 * low:.1f} .. {100 * high:.1f}", f"{adult['wer']:.1%}"]
        if system != BASE:
            cells += [f"{row['trainable_parameters']:,}", f"{row['trainable_share']:.1%}"]
            cells += [f"{row['training_seconds']:.0f} s", f"{row['adapter_bytes'] / 1e6:.2f} MB"]
        table.add_row(METHODS.get(system, "before"), *cells)
    return table


def _plot_convergence(path: Path, results: dict[str, RunResult]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for method, result in results.items():
        epochs = [epoch.epoch for epoch in result.series]
        axes.plot(
            epochs,
            [100 * epoch.dev_wer for epoch in result.series],
            "o-",
            color=COLORS[method],
            label=METHODS[method],
        )
        kept = result.best_epoch, 100 * result.best_dev_wer
        axes.plot(*kept, "o", markersize=13, fillstyle="none", color=COLORS[method])
    axes.set(xlabel="epoch (0: before training; ring: kept)", title="Child-like dev utterances (synthetic)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, axes, path)


def _plot_trainables(path: Path, summary: dict[str, dict[str, Any]]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    zero_shot = 100 * summary[BASE]["child-test"]["wer"]
    axes.axhline(zero_shot, color="gray", linestyle="--", label=f"before adaptation ({zero_shot:.1f} %)")
    for method in METHODS:
        row = summary[method]
        wer = 100 * row["child-test"]["wer"]
        low, high = (100 * bound for bound in row["child-test"]["interval"])
        axes.errorbar(
            row["trainable_parameters"],
            wer,
            [[wer - low], [high - wer]],
            fmt="o",
            capsize=4,
            color=COLORS[method],
            label=f"{METHODS[method]} ({wer:.1f} %)",
        )
    axes.set(xlabel="trained parameters", title="Child-like test utterances (synthetic), 95 % intervals")
    axes.set_xlim(0, 1.5 * max(summary[method]["trainable_parameters"] for method in METHODS))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _save(figure, axes, path)


def _save(figure: Any, axes: Any, path: Path) -> None:
    """With what the plots share: error rates from 0, and a legend that hides none of them."""
    axes.set_ylabel("WER, %")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _examples(folder: Path, runs: dict[str, Path]) -> list[dict[str, str]]:
    """Three test utterances on which the untouched model erred, with the texts of every system."""
    texts: dict[str, dict[str, str]] = {}
    for system, name in {BASE: BASE, **{method: run.name for method, run in runs.items()}}.items():
        path = folder / f"{name}-child-test-metadata.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts.setdefault(row["id"], {"reference": row["reference"]})[system] = row["hypothesis"]
    wrong = [row for _, row in sorted(texts.items()) if row[BASE] != row["reference"]]
    return wrong[:: max(1, len(wrong) // 3)][:3]
