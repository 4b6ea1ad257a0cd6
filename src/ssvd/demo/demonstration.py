"""The demonstration: the embedded recogniser meets child-like speech, before and after adaptation. All synthetic."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ssvd.adapt import AdaptOptions, RunResult, adapt
from ssvd.demo import EMBEDDED
from ssvd.demo.synthetic import Kind, write_corpus
from ssvd.errors import UserError
from ssvd.evaluate import BASE, Evaluation, evaluate
from ssvd.files import is_new, write_json, write_whole
from ssvd.scoring import Score
from ssvd.training.progress import SILENT, Progress

CORPORA: dict[str, tuple[Kind, int, int, int]] = {  # name: kind, utterances, speakers, offset of the seed
    "child-train": ("child", 480, 24, 1),
    "child-dev": ("child", 64, 8, 2),
    "child-test": ("child", 200, 20, 3),
    "adult-test": ("adult", 200, 20, 4),
}
EPOCHS = 6
METHODS = {"ssvd": "SSVD, p = 40 %", "lora": "LoRA, as many parameters"}
COLORS = {"ssvd": "#0b6e4f", "lora": "#c8553d"}


@dataclass(frozen=True)
class System:
    """The base model or an adapted one: what adaptation gained and what it cost.

    Attributes:
        label: What tables and plots call it.
        child: Score on the child-like test utterances.
        adult: Score on the adult test utterances.
        training: Result of the training; None for the base model.
    """

    label: str
    child: Score
    adult: Score
    training: RunResult | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        figures: dict[str, Any] = {
            name: {"wer": score.wer, "interval": score.wer_interval}
            for name, score in (("child-test", self.child), ("adult-test", self.adult))
        }
        if self.training is not None:
            names = ("trainable_parameters", "trainable_share", "training_seconds", "adapter_bytes")
            figures |= {name: getattr(self.training, name) for name in names}
        return figures


def run_demo(out: Path, seed: int, progress: Progress = SILENT) -> dict[str, System]:
    """Make the speech, adapt by each method, score before and after, and write a table, plots and transcripts.

    Args:
        out: Folder for everything that is made; one of an earlier demonstration is continued.
        seed: Random seed of the speech and of the training.
        progress: What the demonstration reports to.

    Returns:
        The base model ("base") and the adapted ones, by name of the method.

    Raises:
        UserError: `out` holds something other than the results of an earlier demonstration.
    """
    started = time.monotonic()
    if not is_new(out) and not any(out.glob("speech/seed-*")):
        raise UserError(f"{out} is not empty: choose another folder.")
    progress.say("1. Speech: synthetic, by eSpeak NG; child-like: a short vocal tract, hesitant.")
    tables = _make_speech(out, seed)
    runs = {method: out / f"{method}-seed-{seed}" for method in METHODS}
    results = {}
    for number, (method, run) in enumerate(runs.items(), start=2):
        progress.say(f"{number}. Adaptation by {METHODS[method]} to {CORPORA['child-train'][1]} utterances")
        results[method] = _adapt(method, tables, run, seed, progress)
    progress.say("4. Test: speakers who were not heard in training")
    tests = [str(tables["child-test"]), str(tables["adult-test"])]
    evaluations, _ = evaluate(
        str(EMBEDDED), tests, adapters=list(runs.values()), batch_size=50, out=out, device="cpu", progress=progress
    )
    systems = _systems(evaluations, results, runs)
    _plot_convergence(out / "wer-per-epoch.png", results)
    _plot_trainables(out / "wer-against-trainables.png", systems)
    examples = _examples(out / "hypotheses", runs)
    text = f"Synthetic speech\n\n{_table(systems)}\n{''.join(map(_transcripts, examples))}"
    write_whole(out / "summary.txt", text)
    seconds = round(time.monotonic() - started)
    figures = {name: system.as_dict() for name, system in systems.items()}
    write_json(out / "summary.json", {"synthetic": True, "seconds": seconds, "systems": figures, "examples": examples})
    progress.say(f"\n{text}")
    progress.say(f"Took {seconds} s. {out} holds the table and transcripts (summary.txt), the plots and the adapters.")
    return systems


def _make_speech(out: Path, seed: int) -> dict[str, Path]:
    """Return the table of each corpus, which is made unless it is there."""
    tables = {}
    for name, (kind, count, speakers, offset) in CORPORA.items():
        table = out / "speech" / f"seed-{seed}" / name / "metadata.csv"
        if not table.is_file():
            write_corpus(table.parent, kind, count, speakers, 100 * seed + offset)
        tables[name] = table
    return tables


def _adapt(method: str, tables: dict[str, Path], run: Path, seed: int, progress: Progress) -> RunResult:
    """Adapt the embedded recogniser by a method, or continue its run."""
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
    return adapt(options, run, resume=(run / "config.yaml").is_file(), progress=progress)


def _systems(evaluations: list[Evaluation], results: dict[str, RunResult], runs: dict[str, Path]) -> dict[str, System]:
    """Return each system with its scores."""
    scores = {(e.system, e.corpus.removesuffix("-metadata")): e.score for e in evaluations}
    labels = {BASE: "before", **METHODS}
    return {
        name: System(labels[name], scores[system, "child-test"], scores[system, "adult-test"], results.get(name))
        for name, system in ((BASE, BASE), *((method, str(run)) for method, run in runs.items()))
    }


def _table(systems: dict[str, System]) -> str:
    """Return the table of all systems as text."""
    rows = [("", "child-like WER, 95 %", "adult WER", "trained", "training", "file")]
    for system in systems.values():
        low, high = system.child.wer_interval or (float("nan"), float("nan"))
        rates = f"{system.child.wer:.1%} ({100 * low:.1f} .. {100 * high:.1f})", f"{system.adult.wer:.1%}"
        training, costs = system.training, ("", "", "")
        if training is not None:
            trained = f"{training.trainable_parameters:,} ({training.trainable_share:.1%})"
            costs = trained, f"{training.training_seconds:.0f} s", f"{training.adapter_bytes / 1e6:.2f} MB"
        rows.append((system.label, *rates, *costs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _transcripts(example: dict[str, str]) -> str:
    """Return what was said in an example and what was recognised, as text."""
    return f"\n  said     {example['reference']}\n  before   {example[BASE]}\n  SSVD     {example['ssvd']}\n"


def _plot_convergence(path: Path, results: dict[str, RunResult]) -> None:
    """Plot the dev WER by epoch."""
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


def _plot_trainables(path: Path, systems: dict[str, System]) -> None:
    """Plot the test WER against the number of trained parameters."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    zero_shot = 100 * systems[BASE].child.wer
    axes.axhline(zero_shot, color="gray", linestyle="--", label=f"before adaptation ({zero_shot:.1f} %)")
    trained = []
    for method, system in systems.items():
        if system.training is None:
            continue
        wer = 100 * system.child.wer
        low, high = (100 * bound for bound in system.child.wer_interval or (system.child.wer, system.child.wer))
        trained.append(system.training.trainable_parameters)
        axes.errorbar(
            trained[-1],
            wer,
            [[wer - low], [high - wer]],
            fmt="o",
            capsize=4,
            color=COLORS[method],
            label=f"{system.label} ({wer:.1f} %)",
        )
    axes.set(xlabel="trained parameters", title="Child-like test utterances (synthetic), 95 % intervals")
    axes.set_xlim(0, 1.5 * max(trained))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _save(figure, axes, path)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    """Save a plot with what all plots share: error rates from 0, and a legend outside the axes."""
    axes.set_ylabel("WER, %")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _examples(folder: Path, runs: dict[str, Path]) -> list[dict[str, str]]:
    """Return three test utterances in which the base model made errors, with the texts of every system."""
    texts: dict[str, dict[str, str]] = {}
    for system, name in {BASE: BASE, **{method: run.name for method, run in runs.items()}}.items():
        path = folder / f"{name}-child-test-metadata.jsonl"
        for row in map(json.loads, filter(None, path.read_text(encoding="utf-8").split("\n"))):
            texts.setdefault(row["id"], {"reference": row["reference"]})[system] = row["hypothesis"]
    wrong = [row for _, row in sorted(texts.items()) if row[BASE] != row["reference"]]
    return wrong[:: max(1, len(wrong) // 3)][:3]
