"""How long it takes to decompose the weights of OWSM v3.1 medium (1.02 B parameters): anew, and from the cache.

    python speed/model_setup.py --json speed/results/model_setup.json

The shapes of its 380 linear layers, all but the CTC head, in the order of the model; random weights. Drawing them is
not timed. With p = 0.4, k = 409 everywhere. Needs 5 GB of memory, and 3 GB of disk in the folder for temporary files.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from machine import machine
from ssvd.spectral import Basis, cached_basis
from ssvd.tuners import portion_rank

WIDTH, VOCABULARY = 1024, 50002
ATTENTION = [(WIDTH, WIDTH)] * 4
FEED_FORWARD = [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
# E-Branchformer: two feed-forward modules, attention, the gating MLP, and what merges both branches.
ENCODER_LAYER = [*FEED_FORWARD, *FEED_FORWARD, *ATTENTION, (4 * WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (WIDTH, 2 * WIDTH)]
DECODER_LAYER = [*ATTENTION, *ATTENTION, *FEED_FORWARD]
SHAPES = [(WIDTH, 19 * WIDTH), *ENCODER_LAYER * 18, *DECODER_LAYER * 18, (VOCABULARY, WIDTH)]


def weights(device: str) -> Iterator[Tensor]:
    torch.manual_seed(0)
    for m, n in SHAPES:
        yield torch.randn(m, n, device=device) * n**-0.5


def timed(device: str, layers: int, portion: float) -> float:
    """Seconds for the bases of the first layers."""
    seconds = 0.0
    for weight in islice(weights(device), layers):
        started = time.perf_counter()
        basis: Basis = cached_basis(weight, portion_rank(portion, min(weight.shape)))
        if basis.U.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
    return seconds


def main(
    portion: Annotated[float, typer.Option(help="Portion of the singular triplets.")] = 0.4,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    layers: Annotated[int, typer.Option(help="Only the first so many layers.")] = len(SHAPES),
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Measure the set-up of OWSM v3.1 medium."""
    assert len(SHAPES) == 380
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SSVD_CACHE"] = folder
        anew, cached = (timed(device, layers, portion) for _ in range(2))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    figures = {"layers": layers, "portion": portion, "anew_s": anew, "cached_s": cached, "cache_mib": size / 2**20}
    print(figures)
    if json_file:
        report = {"machine": machine(device), **figures}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
