"""How long training waits for its batches, and what reading an utterance costs.

    python speed/loading.py --json speed/results/loading.json --plot docs/loading.png

Training steps of the embedded recogniser with SSVD, p = 0.4, batches of 16 as in `ssvd demo`, fed by the loader of
`ssvd adapt`. A *run* is the beginning of an epoch: its workers begin, and so many steps follow. *Wait* is the time
spent in getting batches, that of the first included; its share is of the whole run, and *first* is the first alone.
Runs with other workers, formats and augmentation take turns; figures are medians over the rounds, and × 0 workers is
the median of the ratios within a round of the time of a run. Costs are those of one process and one thread.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import soundfile
import torch
import typer
from rich.console import Console
from rich.table import Table

from machine import machine
from ssvd.corpora.audio import load_audio, read_recording
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import select
from ssvd.demo.demonstration import EMBEDDED
from ssvd.demo.synthetic import write_corpus
from ssvd.methods import apply_method, find_method
from ssvd.recognisers.loading import Recogniser, load_model
from ssvd.training.augmentation import Augmenter
from ssvd.training.batches import ByCount, EpochBatches
from ssvd.training.loading import Loading

BATCH = 16
ALL_AUGMENTED = ("speed", "vtlp", "noise", "volume")


def main(
    corpus: Annotated[Path | None, typer.Option(help="Training data; by default the synthetic speech of demo.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Condition on its utterances.")] = None,
    formats: Annotated[str, typer.Option(help="Of the audio, by comma.")] = "wav,flac,mp3",
    workers: Annotated[str, typer.Option(help="Numbers of them, by comma.")] = "0,1,2",
    threads: Annotated[str, typer.Option(help="CPU threads of training, by comma.")] = "1",
    steps: Annotated[int, typer.Option(help="Of a run.")] = 12,
    rounds: Annotated[int, typer.Option(help="Runs of each kind.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw the curves to.")] = None,
) -> None:
    """Measure the share of training that waits for batches."""
    torch.manual_seed(0)
    speech = load_model(EMBEDDED)
    with tempfile.TemporaryDirectory() as folder:
        source = corpus or write_corpus(Path(folder) / "speech", "child", 480, 24, seed=1)
        chosen = [cut for cut in select(read_corpus(source).cuts, where or []) if speech.check(cut) is None]
        audio = {name: transcoded(chosen, Path(folder) / name, name) for name in formats.split(",")}
        changes = augmentations(Path(folder) / "noise", speech)
        costs = reading_costs(speech, audio, changes)
        speech.module = apply_method(speech.module, "ssvd", speech.adaptable_layers())
        kinds = [
            (int(t), name, augmented, int(w))
            for t in threads.split(",")
            for name in audio
            for augmented in (False, True)
            for w in workers.split(",")
        ]
        timings: dict[Any, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
        for number in range(rounds):
            for threads_, name, augmented, workers_ in kinds:
                torch.set_num_threads(threads_)
                change = partial(changes["all"], epoch=number) if augmented else None
                numbers = EpochBatches(ByCount(len(chosen), BATCH), steps, 0, number)
                batches = [[audio[name][cut] for cut in batch] for batch in numbers]
                loader = Loading(workers_).batches(batches, speech.collate, change)
                timings[threads_, name, augmented, workers_].append(run(speech, loader))
    rows = [row(kind, timings) for kind in kinds]
    seconds = statistics.mean(cut.duration for cut in chosen)
    report = {
        "command": "python speed/loading.py",
        "speech": str(corpus.name) if corpus else "synthetic, as of ssvd demo",
        "options": {"where": where, "steps": steps, "rounds": rounds, "batch": BATCH},
        "utterances": len(chosen),
        "seconds_an_utterance": seconds,
        "machine": machine(),
        "costs_ms": costs,
        "rows": rows,
    }
    show(report)
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if plot:
        draw(rows, plot)


def transcoded(cuts: list[Any], folder: Path, suffix: str) -> list[Any]:
    """The same utterances, each a file of its own at 16 kHz in another format."""
    folder.mkdir()
    written = []
    for number, cut in enumerate(cuts):
        path = folder / f"{number}.{suffix}"
        soundfile.write(path, load_audio(cut, 16_000), 16_000)
        whole = read_recording(path, cut.id).to_cut()
        whole.id, whole.supervisions = cut.id, [cut.supervisions[0].with_offset(-cut.supervisions[0].start)]
        whole.duration = min(whole.duration, cut.duration)  # MP3 comes in whole frames
        written.append(whole)
    return written


def augmentations(folder: Path, speech: Recogniser) -> dict[str, Augmenter]:
    """Each kind alone, and all those that a training may well use together."""
    noises, rooms = folder / "noises", folder / "rooms"
    generator = torch.Generator().manual_seed(0)
    for path, number, seconds in ((noises, 10, 30.0), (rooms, 10, 0.4)):
        path.mkdir(parents=True)
        for index in range(number):
            noise = 0.1 * torch.randn(round(16_000 * seconds), generator=generator)
            if path == rooms:
                noise *= torch.exp(-torch.arange(len(noise)) / 1600)
                noise[0] = 0.9
            soundfile.write(path / f"{index}.wav", noise.clamp(-1, 1).numpy(), 16_000)
    own = {
        "speed": ["speed=0.9:1.1"],
        "vtlp": ["vtlp=0.8:1.2"],
        "reverb": [f"reverb={rooms}"],
        "noise": [f"noise={noises}:5:20"],
        "volume": ["volume=-6:6"],
    }
    own["all"] = [text for name in ALL_AUGMENTED for text in own[name]]
    return {
        name: Augmenter(texts, sampling_rate=speech.sampling_rate, window=speech.window, seed=0)
        for name, texts in own.items()
    }


def reading_costs(speech: Recogniser, audio: dict[str, list[Any]], changes: dict[str, Augmenter]) -> dict[str, float]:
    """Milliseconds an utterance: reading each format, each augmentation on top of WAV, and making a batch of WAV."""
    torch.set_num_threads(1)
    first = next(iter(audio))
    plain = audio[first][: 4 * BATCH]
    work: dict[str, Callable[[], Any]] = {
        f"read {name}": partial(read_all, speech, cuts[: 4 * BATCH]) for name, cuts in audio.items()
    }
    for name, change in changes.items():
        work[name] = partial(read_all, speech, plain, change)
    work["batch"] = lambda: [speech.collate(plain[start : start + BATCH]) for start in range(0, len(plain), BATCH)]
    found: dict[str, list[float]] = {name: [] for name in work}
    for number in range(6):
        for name, do in work.items():
            started = time.perf_counter()
            do()
            if number:  # the first warms up
                found[name].append(1000 * (time.perf_counter() - started) / len(plain))
    medians = {name: statistics.median(values) for name, values in found.items()}
    beyond = {name: medians[name] - medians[f"read {first}"] for name in (*changes, "batch")}
    return {name: round(beyond.get(name, value), 2) for name, value in medians.items()}


def read_all(speech: Recogniser, cuts: list[Any], change: Augmenter | None = None) -> None:
    for cut in cuts:
        load_audio(cut if change is None else change(cut, 0), speech.sampling_rate)


def run(speech: Recogniser, loader: Any) -> tuple[float, float, float]:
    """Seconds in all, of waiting, and of waiting for the first batch."""
    trained = [p for p in speech.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, find_method("ssvd").learning_rate)
    speech.module.train()
    started = time.perf_counter()
    waits = []
    batches = iter(loader)
    for _ in range(len(loader)):
        before = time.perf_counter() if waits else started
        batch = next(batches)
        waits.append(time.perf_counter() - before)
        optimizer.zero_grad()
        speech.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
    return time.perf_counter() - started, sum(waits), waits[0]


def row(kind: Any, timings: dict[Any, list[tuple[float, float, float]]]) -> dict[str, Any]:
    threads, name, augmented, workers = kind
    own, none = timings[kind], timings[threads, name, augmented, 0]
    steady = [(wait - first) / (total - first) for total, wait, first in own]
    return {
        "threads": threads,
        "format": name,
        "augmented": augmented,
        "workers": workers,
        "seconds": statistics.median(total for total, _, _ in own),
        "wait": statistics.median(wait / total for total, wait, _ in own),
        "wait_after_first": statistics.median(steady),
        "first_seconds": statistics.median(first for _, _, first in own),
        "x_no_workers": statistics.median(a / b for (a, _, _), (b, _, _) in zip(own, none, strict=True)),
    }


def show(report: dict[str, Any]) -> None:
    table = Table("threads", "format", "augmented", "workers", "wait", "after the first", "first, s", "x 0 workers")
    for row in report["rows"]:
        cells = str(row["threads"]), row["format"], "yes" if row["augmented"] else "no", str(row["workers"])
        shares = f"{row['wait']:.1%}", f"{row['wait_after_first']:.1%}", f"{row['first_seconds']:.2f}"
        table.add_row(*cells, *shares, f"{row['x_no_workers']:.2f}")
    Console().print(table, report["costs_ms"])


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Share of waiting by workers, a panel for each number of threads."""
    threads = sorted({row["threads"] for row in rows})
    figure, axes = plt.subplots(
        1, len(threads), figsize=(max(6, 4 * len(threads)), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, number in zip(axes[0], threads, strict=True):
        for name in dict.fromkeys(row["format"] for row in rows):
            for augmented, style in ((False, "o-"), (True, "s--")):
                own = [r for r in rows if (r["threads"], r["format"], r["augmented"]) == (number, name, augmented)]
                label = f"{name}{', augmented' if augmented else ''}"
                axis.plot([r["workers"] for r in own], [100 * r["wait"] for r in own], style, label=label)
        axis.axhline(5, color="grey", linewidth=0.8)
        axis.set(xlabel="workers", xticks=[0, 1, 2], title=f"{number} thread{'s' * (number > 1)} of training")
    axes[0][0].set_ylabel("waiting for batches, % of training")
    axes[0][0].set_ylim(bottom=0)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=90)


if __name__ == "__main__":
    typer.run(main)
