"""Training steps on a CPU with memory that is kept once freed (`ssvd.hardware.keep_freed_memory`), against without.

    python speed/allocator.py --json speed/results/allocator.json

Processes take turns, since an allocator is set for a whole process. Times are CPU time, in the program and in the
kernel, medians over the steps of a process; the ratio is the median over pairs of processes. A Whisper with random
weights reads noise.
"""

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from machine import machine
from ssvd.hardware import keep_freed_memory
from training_step import build_variants, build_whisper


def step_times(size: str, window: float, batch: int, steps: int, kept: bool) -> dict[str, float]:
    """Return the median CPU time of a training step in this process, its share in the kernel, and the peak memory."""
    torch.set_num_threads(1)
    if kept:
        keep_freed_memory()
    torch.manual_seed(0)
    base = build_whisper(size, window)
    layers = [name for name, m in base.named_modules() if isinstance(m, nn.Linear) and name != "proj_out"]
    model = build_variants(0.4)["ssvd approx"](base, layers).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    features = torch.randn(batch, base.config.num_mel_bins, 2 * base.config.max_source_positions)
    labels = torch.randint(100, 1000, (batch, 12))
    kernel: list[float] = []
    total: list[float] = []
    for number in range(steps + 1):
        before = resource.getrusage(resource.RUSAGE_SELF)
        model(input_features=features, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after = resource.getrusage(resource.RUSAGE_SELF)
        if number:  # the first sets up
            kernel.append(after.ru_stime - before.ru_stime)
            total.append(after.ru_utime - before.ru_utime + kernel[-1])
    return {
        "cpu_seconds": statistics.median(total),
        "kernel_share": sum(kernel) / sum(total),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main(
    size: Annotated[str, typer.Option(help="Dimensions of the model: tiny, base or small.")] = "tiny",
    window: Annotated[float, typer.Option(help="Seconds of audio in each utterance.")] = 8.0,
    batch: Annotated[int, typer.Option(help="Utterances in each batch.")] = 16,
    steps: Annotated[int, typer.Option(help="Timed steps in each process.")] = 5,
    pairs: Annotated[int, typer.Option(help="Pairs of processes.")] = 3,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Measure what it gains to keep freed memory."""
    if one is not None:
        print(json.dumps(step_times(size, window, batch, steps, one == "kept")))
        return
    options = ["--size", size, "--window", str(window), "--batch", str(batch), "--steps", str(steps)]
    measured: dict[str, list[dict[str, float]]] = {"kept": [], "returned": []}
    for _ in range(pairs):
        for way, results in measured.items():
            command = [sys.executable, __file__, *options, "--one", way]
            results.append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    ratios = [
        kept["cpu_seconds"] / returned["cpu_seconds"]
        for kept, returned in zip(measured["kept"], measured["returned"], strict=True)
    ]
    figures = {
        "command": " ".join(["python speed/allocator.py", *options]),
        **machine(),
        "ratio": statistics.median(ratios),
        **measured,
    }
    print(json.dumps(figures, indent=2))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
