"""Time and exactness of the singular bases: exact in float64, LAPACK's SVD in float32, randomised, and from the cache.

    python speed/bases.py

For weights with random vectors and the singular values 1 / (1 + 9 (i / r)^0.7), which fall steeply and then slowly like
those of trained layers. *Angle* is the largest between a vector and its exact one, *subspace* that between the spaces
of all k, in degrees; *S* the largest relative error of a singular value. The exact basis is that of an SVD in float64.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssvd.spectral import Basis, cached_basis

SHAPES = ((384, 384), (1536, 384), (1024, 1024), (4096, 1024))


def weight(m: int, n: int) -> Tensor:
    torch.manual_seed(0)
    r = min(m, n)
    U, V = (torch.linalg.qr(torch.randn(size, r)).Q for size in (m, n))
    S = 1 / (1 + 9 * (torch.arange(r) / r) ** 0.7)
    return (U * S) @ V.mT


def float32_basis(W: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return S[:k], Vh[:k].mT


def measured(make: Callable[[], tuple[Tensor, Tensor]], exact: tuple[Tensor, Tensor]) -> dict[str, float]:
    started = time.perf_counter()
    S, V = make()
    seconds = time.perf_counter() - started
    V = V.double()
    cosines = (V * exact[1]).sum(0).abs().clamp(max=1)
    inside = torch.linalg.svdvals(V.mT @ exact[1]).min().clamp(max=1)
    return {
        "seconds": seconds,
        "angle": float(torch.rad2deg(torch.acos(cosines.min()))),
        "subspace": float(torch.rad2deg(torch.acos(inside))),
        "S": float(((S.double() - exact[0]) / exact[0]).abs().max()),
    }


def main(portions: str = "0.1,0.4", threads: int = 1, out: Path = Path("speed/results/bases.json")) -> None:
    """Print the table, and write the figures."""
    torch.set_num_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SSVD_CACHE"] = folder
        for m, n in SHAPES:
            W = weight(m, n)
            _, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
            for portion in map(float, portions.split(",")):
                k = int(portion * min(m, n))
                exact = S[:k], Vh[:k].mT
                cached_basis(W, k)

                def parts(basis: Basis) -> tuple[Tensor, Tensor]:
                    return basis.S, basis.V

                ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
                    "exact": lambda W=W, k=k: parts(Basis.of(W, k)),
                    "SVD, float32": lambda W=W, k=k: float32_basis(W, k),
                    "randomised": lambda W=W, k=k: parts(Basis.of(W, k, "randomized")),
                    "cached": lambda W=W, k=k: parts(cached_basis(W, k)),
                }
                for way, make in ways.items():
                    rows.append({"shape": [m, n], "k": k, "way": way, **measured(make, exact)})
    table = Table("weight", "k", "way", "seconds", "angle", "subspace", "S", title=f"{threads} thread(s), CPU")
    for row in rows:
        figures = (f"{row[name]:.1e}" for name in ("angle", "subspace", "S"))
        table.add_row("x".join(map(str, row["shape"])), str(row["k"]), row["way"], f"{row['seconds']:.3f}", *figures)
    Console().print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"threads": threads, "versions": {"torch": torch.__version__}, "rows": rows}
    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
