"""What it costs in learning to estimate the core's gradient from every so many tokens.

    python speed/token_stride.py --json speed/results/token_stride.json

Trains the embedded recogniser on synthetic child-like speech for a fixed number of updates with the default learning
rate, and takes the cross-entropy of held-out speakers' utterances. A seed sets the order of the utterances too.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from learning_rate import held_out_loss, numbers
from machine import machine
from ssvd.corpora.corpus import read_corpus
from ssvd.demo.demonstration import EMBEDDED
from ssvd.demo.synthetic import write_corpus
from ssvd.methods import find_method
from ssvd.recognisers.loading import load_model
from ssvd.spectral import step
from ssvd.tuners import portion_rank


def main(
    model: str = str(EMBEDDED),
    portion: float = 0.4,
    strides: str = "1,4,16",
    seeds: int = 3,
    updates: int = 60,
    threads: int = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Print and write the losses."""
    torch.set_num_threads(threads)
    rate = find_method("ssvd").learning_rate
    unit = step(portion_rank(portion, load_model(model).module.config.d_model))
    with tempfile.TemporaryDirectory() as folder:
        train, dev = (
            list(read_corpus(write_corpus(Path(folder) / str(seed), "child", count, speakers, seed)).cuts)
            for count, speakers, seed in ((480, 24, 1), (128, 8, 2))
        )
        losses = {
            int(stride): [
                held_out_loss(model, train, dev, portion, rate * unit, rate, updates, int(stride), seed)["loss"]
                for seed in range(seeds)
            ]
            for stride in numbers(strides)
        }
    table = Table("stride", "held-out loss, mean", "by seed", title=f"p = {portion:g}, {updates} updates of 16")
    for stride, found in losses.items():
        table.add_row(str(stride), f"{statistics.mean(found):.4f}", ", ".join(f"{loss:.4f}" for loss in found))
    Console().print(table)
    report = {"portion": portion, "updates": updates, "batch": 16, "machine": machine(), "losses": losses}
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
