"""Which unit of theta lets one learning rate hold for every portion: the loss over a grid of portions and rates.

    python benchmarks/learning_rate.py

Adam is indifferent to the scale of a loss, so a learning rate lr of theta with K = theta * u is one of lr * u for K
itself. One grid over rates of K therefore answers for every unit u: the right one follows the best rate of K as k grows.
Trains the embedded recogniser on synthetic child-like speech for a fixed number of updates, and takes the cross-entropy
of held-out speakers' utterances.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ssvd.data import read_corpus
from ssvd.data.batches import RoundBatches
from ssvd.data.synthetic import write_corpus
from ssvd.demo import EMBEDDED
from ssvd.methods import apply_method
from ssvd.spectral import step
from ssvd.speech import load_model
from ssvd.tuners import SSVDModel


def held_out_loss(model: str, train: list, dev: list, portion: float, rate: float, updates: int) -> dict[str, float]:
    """Held-out loss, and the largest `||G^T G - I||`, after training at a peak rate of K of `rate`."""
    torch.manual_seed(0)
    speech = load_model(model)
    speech.module = apply_method(speech.module, "ssvd", speech.adaptable_layers(), portion)
    layer = next(m for m in speech.module.modules() if hasattr(m, "ssvd_basis"))
    k = layer.ssvd_basis["default"].k
    trained = [p for p in speech.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate / step(k), betas=(0.9, 0.98), weight_decay=0)
    warmup = max(1, updates // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / warmup, (updates - update) / (updates - warmup))
    )
    speech.module.train()
    for rows in RoundBatches(len(train), 16, updates, seed=0, number=0):
        speech.loss(speech.collate([train[row] for row in rows])).backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    speech.module.eval()
    with torch.no_grad():
        losses = [speech.loss(speech.collate(dev[start : start + 32])).item() for start in range(0, len(dev), 32)]
    assert isinstance(speech.module.base_model, SSVDModel)
    error = max(speech.module.base_model.orthogonality_errors().values())
    return {"k": k, "loss": sum(losses) / len(losses), "orthogonality_error": error}


def main(
    model: str = str(EMBEDDED),
    portions: str = "0.1,0.4,1.0",
    rates: Annotated[str, typer.Option(help="Of K itself.")] = "3e-5,1e-4,3e-4,1e-3,3e-3",
    updates: int = 60,
    threads: int = 1,
    out: Path = Path("benchmarks/results/learning_rate.json"),
) -> None:
    """Print and write the grid."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        train, dev = (
            list(read_corpus(write_corpus(Path(folder) / str(seed), "child", count, speakers, seed)).cuts)
            for count, speakers, seed in ((480, 24, 1), (128, 8, 2))
        )
        cells = []
        for portion in map(float, portions.split(",")):
            for rate in map(float, rates.split(",")):
                started = time.monotonic()
                cell = {"portion": portion, "rate_of_K": rate}
                cells.append(cell | held_out_loss(model, train, dev, portion, rate, updates))
                print(json.dumps(cells[-1] | {"seconds": round(time.monotonic() - started)}), flush=True)
    table = Table("p", "k", *(f"{float(rate):g}" for rate in rates.split(",")), title="held-out loss by rate of K")
    for portion in map(float, portions.split(",")):
        row = [cell for cell in cells if cell["portion"] == portion]
        best = min(cell["loss"] for cell in row)
        table.add_row(
            f"{portion:g}",
            f"{row[0]['k']:g}",
            *(f"[bold]{cell['loss']:.3f}[/]" if cell["loss"] == best else f"{cell['loss']:.3f}" for cell in row),
        )
    Console().print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"command": f"python benchmarks/learning_rate.py --updates {updates}", "cells": cells}
    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
