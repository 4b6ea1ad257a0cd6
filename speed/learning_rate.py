"""Which units of theta and s let one learning rate hold for every portion: the loss over grids of portions and rates.

    python speed/learning_rate.py

Adam is indifferent to the scale of a loss, so a rate lr of theta with K = theta * u is a rate lr * u of K
itself. One grid over rates of K therefore answers for every unit u: the right one follows the best rate of K over k.
The same holds for dS, here relative to S. The first grid trains K alone; the second both, at a given rate of K.

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

from ssvd.corpora.corpus import read_corpus
from ssvd.demo.demonstration import EMBEDDED
from ssvd.demo.synthetic import write_corpus
from ssvd.methods import Budget, apply_method
from ssvd.recognisers.loading import load_model
from ssvd.spectral import step
from ssvd.training.batches import ByCount, EpochBatches
from ssvd.tuners import SSVDModel, portion_rank


def held_out_loss(
    model: str,
    train: list,
    dev: list,
    portion: float,
    rate: float,
    scale_rate: float,
    updates: int,
    token_stride: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Held-out loss, and the largest `||G^T G - I||`, after training at these peak rates of K and of dS / S."""
    torch.manual_seed(seed)
    speech = load_model(model)
    layers = speech.adaptable_layers()
    speech.module = apply_method(speech.module, "ssvd", layers, Budget("p", portion), token_stride=token_stride)
    layer = next(m for m in speech.module.modules() if hasattr(m, "ssvd_basis"))
    k = layer.ssvd_basis["default"].k
    trained = [p for p in speech.module.parameters() if p.requires_grad]
    groups: dict[float, list] = {}
    for name, parameter in speech.module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(scale_rate if "ssvd_s." in name else rate / step(k), []).append(parameter)
    settings = [{"params": parameters, "lr": lr} for lr, parameters in groups.items()]
    optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.98), weight_decay=0)
    warmup = max(1, updates // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / warmup, (updates - update) / (updates - warmup))
    )
    speech.module.train()
    for rows in EpochBatches(ByCount(len(train), 16), updates, seed=seed, number=0):
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


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(
    model: str = str(EMBEDDED),
    portions: str = "0.1,0.4,1.0",
    rates: Annotated[str, typer.Option(help="Of K itself.")] = "5e-5,1.5e-4,5e-4,1.5e-3",
    scale_rates: Annotated[str, typer.Option(help="Of dS / S.")] = "2e-4,2e-3,2e-2",
    scale_study_rate: Annotated[float, typer.Option(help="Of K / step(k), in the second grid.")] = 2e-3,
    updates: int = 60,
    threads: int = 1,
    out: Path = Path("speed/results/learning_rate.json"),
) -> None:
    """Print and write both grids."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        train, dev = (
            list(read_corpus(write_corpus(Path(folder) / str(seed), "child", count, speakers, seed)).cuts)
            for count, speakers, seed in ((480, 24, 1), (128, 8, 2))
        )
        cells = []
        for portion in numbers(portions):
            grid = [(rate, 0.0) for rate in numbers(rates)]
            k = portion_rank(portion, load_model(model).module.config.d_model)
            grid += [(scale_study_rate * step(k), scale_rate) for scale_rate in numbers(scale_rates)]
            for rate, scale_rate in grid:
                started = time.monotonic()
                cell = {"portion": portion, "rate_of_K": rate, "rate_of_scale": scale_rate}
                cells.append(cell | held_out_loss(model, train, dev, portion, rate, scale_rate, updates))
                print(json.dumps(cells[-1] | {"seconds": round(time.monotonic() - started)}), flush=True)
    for title, chosen, rate_name in (
        ("K alone, by its rate", [cell for cell in cells if not cell["rate_of_scale"]], "rate_of_K"),
        ("K and dS / S, by the rate of the latter", [cell for cell in cells if cell["rate_of_scale"]], "rate_of_scale"),
    ):
        columns = sorted({cell[rate_name] for cell in chosen})
        table = Table("p", "k", *(f"{rate:g}" for rate in columns), title=f"held-out loss: {title}")
        for portion in numbers(portions):
            row = [cell for cell in chosen if cell["portion"] == portion]
            table.add_row(f"{portion:g}", str(row[0]["k"]), *(f"{cell['loss']:.3f}" for cell in row))
        Console().print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"model": model, "updates": updates, "batch": 16, "versions": {"torch": torch.__version__}, "cells": cells}
    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
