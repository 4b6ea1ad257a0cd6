"""Training steps in mixed precision (`ssvd adapt --precision bfloat16`) against float32 on a CPU.

    python speed/precision.py --json speed/results/precision.json

Whisper of the dimensions of tiny, with random weights; forward, backward and an AdamW step. The two precisions take
turns, and a ratio is that of a round. Seconds are those of computation, so that other work on the machine counts less.
"""

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from machine import machine
from training_step import Step, build_variants, whisper_workload


def main(
    methods: Annotated[str, typer.Option(help="Methods, by comma.")] = "full,lora,ssvd approx",
    batch: Annotated[int, typer.Option(help="Utterances a step.")] = 16,
    window: Annotated[float, typer.Option(help="Seconds of audio an utterance.")] = 8.0,
    rounds: Annotated[int, typer.Option(help="Timed rounds, after one that is not.")] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Measure how much faster a training step is in mixed precision."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, layers, loss = whisper_workload("tiny", batch, window, 32, "cpu")
    variants, rows = build_variants(0.4), []
    table = Table("method", "float32, s / step", "bfloat16", "float32 / bfloat16")
    for method in methods.split(","):
        steps = [Step(variants[method](copy.deepcopy(model), layers), loss, "cpu", mixed) for mixed in (False, True)]
        timed = [tuple(map(seconds, steps)) for _ in range(rounds + 1)][1:]
        exact, mixed = map(statistics.median, zip(*timed, strict=True))
        ratios = sorted(whole / half for whole, half in timed)
        rows.append({"method": method, "float32": exact, "bfloat16": mixed, "ratios": ratios})
        table.add_row(method, f"{exact:.2f}", f"{mixed:.2f}", f"{statistics.median(ratios):.2f}")
    Console().print(table)
    if json_file:
        options = {"size": "tiny", "batch": batch, "window": window, "rounds": rounds}
        capabilities = torch.cpu.get_capabilities()
        instructions = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
        report = {"options": options, "machine": machine() | {"instructions": instructions}, "rows": rows}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def seconds(step: Step) -> float:
    """Seconds of computation of one step."""
    start = time.process_time()
    step.run()
    return time.process_time() - start


if __name__ == "__main__":
    typer.run(main)
