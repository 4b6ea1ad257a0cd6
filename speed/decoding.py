"""Greedy decoding with adapters that are not merged, as ratios to the base model.

    python speed/decoding.py --json speed/results/decoding.json

A Whisper model with random weights writes a fixed number of tokens for the same utterances. The models take turns;
times are medians over rounds, ratios medians of the ratios within a round. *First* is the first utterance alone, in
which SSVD forms the adapted weights.
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
from torch import nn

from machine import machine
from training_step import build_variants, build_whisper


def main(
    size: Annotated[str, typer.Option(help="Dimensions of the model: tiny, base or small.")] = "tiny",
    window: Annotated[float, typer.Option(help="Seconds of audio an utterance.")] = 10.0,
    batches: Annotated[str, typer.Option(help="Utterances at a time, by comma.")] = "1,8",
    tokens: Annotated[int, typer.Option(help="Tokens an utterance.")] = 48,
    rounds: Annotated[int, typer.Option(help="Timed rounds, after one that is not.")] = 9,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Measure decoding with each adapter unmerged."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    base = build_whisper(size, window).eval()
    layers = [name for name, m in base.named_modules() if isinstance(m, nn.Linear) and name != "proj_out"]
    names = {"base": "frozen", "SSVD": "ssvd approx", "SSVD strict": "ssvd strict", "LoRA": "lora", "DoRA": "dora"}
    variants = build_variants(0.4)
    models = {name: variants[row](copy.deepcopy(base), layers).eval() for name, row in names.items()}
    with torch.no_grad():
        for model in models.values():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.01 * torch.randn_like(p))
    rows = []
    for batch in map(int, batches.split(",")):
        features = torch.randn(batch, base.config.num_mel_bins, 2 * base.config.max_source_positions)
        first, seconds = {}, {name: [] for name in models}
        for i in range(rounds + 1):
            for name, model in models.items():
                if not i:
                    model.train().eval()  # forgets what it kept
                started = time.perf_counter()
                model.generate(
                    input_features=features, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, num_beams=1
                )
                elapsed = time.perf_counter() - started
                if i:
                    seconds[name].append(elapsed)
                else:
                    first[name] = elapsed
        for name, own in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(own, seconds["base"], strict=True))
            median = statistics.median(own)
            rows.append({"batch": batch, "model": name, "seconds": median, "x_base": ratio, "first_s": first[name]})
    title = f"whisper-{size}, {window:g} s, {tokens} tokens, {threads} thread(s)"
    table = Table("utterances", "model", "seconds", "x base", "first", title=title)
    for row in rows:
        figures = f"{row['seconds']:.3f}", f"{row['x_base']:.3f}", f"{row['first_s']:.3f}"
        table.add_row(str(row["batch"]), row["model"], *figures)
    Console().print(table)
    if json_file:
        options = {"size": size, "window": window, "tokens": tokens, "rounds": rounds}
        report = {"options": options, "machine": machine(), "rows": rows}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
