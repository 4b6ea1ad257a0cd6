"""How the step of one adapted layer grows with tokens, portion and width, beside the frozen layer, LoRA and the floor.

    python speed/layer_growth.py --json speed/results/layer_growth.json --plot docs/layer-growth.png

The shapes are those of OWSM v3.1 and Whisper: d x d (attention), 4d x d and d x 4d (feed-forward), with random weights;
d = 1024, p = 0.4 and 2000 tokens but where they grow. A step is y, dx and the gradients of what is trained, without
the optimiser. Methods take turns; figures are medians of the ratios to the frozen layer within a round. LoRA trains as
many parameters as SSVD, PSOFT has the same k and algebra. Two floors: *direct* is what the core's gradient costs from x
and dy or from the gradient of the weight; *planned* is what the products cost that SSVD's planner chose.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import torch
import typer
from peft import LoraConfig, PsoftConfig, get_peft_model
from torch import Tensor, nn

import floor
from machine import machine
from ssvd import SSVDConfig
from ssvd.spectral import plan, step_products
from ssvd.tuners import portion_rank

KINDS = {"d x d": (1, 1), "4d x d": (4, 1), "d x 4d": (1, 4)}
SWEEPS = {
    "tokens": (64, 128, 256, 512, 1024, 2048, 4096),
    "portion": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    "width": (256, 384, 512, 768, 1024, 1536),
}
DEFAULTS = {"tokens": 2000, "portion": 0.4, "width": 1024}


def steps_of(m: int, n: int, k: int) -> dict[str, nn.Module]:
    """The layer, frozen and adapted by each method."""

    def layer() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(n, m))

    rank = max(1, round(k * (k + 1) / 2 / (m + n)))
    series = {"use_cayley_neumann": True, "num_cayley_neumann_terms": 2}
    return {
        "frozen": layer().requires_grad_(False),
        "SSVD": get_peft_model(layer(), SSVDConfig(rank=k, target_modules=["0"])),
        "SSVD, stride 4": get_peft_model(layer(), SSVDConfig(rank=k, target_modules=["0"], token_stride=4)),
        "LoRA": get_peft_model(layer(), LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])),
        "PSOFT": get_peft_model(
            layer(), PsoftConfig(r=k, psoft_alpha=k, psoft_mag_a=False, target_modules=["0"], **series)
        ),
    }


def seconds_of(module: nn.Module, x: Tensor, dy: Tensor) -> float:
    x.grad = None
    module.zero_grad()
    started = time.perf_counter()
    module(x).backward(dy)
    return time.perf_counter() - started


def measured(kind: str, tokens: int, portion: float, width: int, rounds: int) -> dict[str, Any]:
    """Ratios to the frozen layer."""
    m, n = (factor * width for factor in KINDS[kind])
    k = portion_rank(portion, width)
    x, dy = torch.randn(tokens, n, requires_grad=True), torch.randn(tokens, m)
    modules = steps_of(m, n, k)
    times: dict[str, list[float]] = {name: [] for name in modules}
    for i in range(rounds + 2):
        for name, module in modules.items():
            elapsed = seconds_of(module, x, dy)
            if i > 1:
                times[name].append(elapsed)
    frozen = 2 * tokens * m * n
    fits = modules["SSVD"].base_model.model[0]._basis_fits("default")
    chosen = plan(tokens, m, n, k, has_inverse=fits)
    floors = {"direct": floor.direct(tokens, m, n, k), "planned": step_products(tokens, m, n, k, has_inverse=fits)}
    return {
        "kind": kind,
        "tokens": tokens,
        "portion": portion,
        "width": width,
        "way": [chosen.change, chosen.core],
        "frozen_s": statistics.median(times["frozen"]),
        "x_frozen": {
            name: statistics.median(a / b for a, b in zip(own, times["frozen"], strict=True))
            for name, own in times.items()
        },
        "floor": {name: 1 + extra / frozen for name, extra in floors.items()},
    }


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    figure, axes = plt.subplots(len(SWEEPS), len(KINDS), figsize=(13, 11), sharey="row", layout="constrained")
    for line, sweep in zip(axes, SWEEPS, strict=True):
        for axis, kind in zip(line, KINDS, strict=True):
            own = [row for row in rows if row["sweep"] == sweep and row["kind"] == kind]
            at = [row[sweep] for row in own]
            for name, style in {"SSVD": "o-", "SSVD, stride 4": "o:", "LoRA": "s-", "PSOFT": "^-"}.items():
                axis.plot(at, [row["x_frozen"][name] for row in own], style, label=name)
            for name, style in {"direct": "k:", "planned": "k--"}.items():
                axis.plot(at, [row["floor"][name] for row in own], style, label=f"floor, {name}")
            axis.axhline(1, color="grey", linewidth=0.8)
            axis.set(title=f"{kind}, by {sweep}", xlabel=sweep, xscale="linear" if sweep == "portion" else "log")
            if sweep != "portion":
                axis.set_xticks(at, map(str, at))
                axis.minorticks_off()
        line[0].set_ylabel("time of a step / frozen layer")
        line[0].set_ylim(0.9, 3.5)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(file, dpi=80)


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds, after two that are not.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw the curves to.")] = None,
) -> None:
    """Measure one layer while its sizes grow."""
    torch.set_num_threads(threads)
    rows = []
    for sweep, values in SWEEPS.items():
        for kind in KINDS:
            for value in values:
                row = {"sweep": sweep, **measured(kind, **{**DEFAULTS, sweep: value}, rounds=rounds)}
                rows.append(row)
                ratios = {name: round(ratio, 2) for name, ratio in (row["x_frozen"] | row["floor"]).items()}
                print(sweep, kind, value, row["way"], ratios, flush=True)
    if json_file:
        report = {"defaults": DEFAULTS, "rounds": rounds, "machine": machine(), "rows": rows}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if plot:
        draw(rows, plot)


if __name__ == "__main__":
    typer.run(main)
