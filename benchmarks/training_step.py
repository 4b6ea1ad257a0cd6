"""Time and memory of one training step, as ratios to those of the frozen model.

    python benchmarks/training_step.py --size tiny --window 30 --batch 8 --json step.json

The model is a Whisper of the given size with random weights. The frozen model runs forward, and backward to its inputs:
what no method that adapts all layers can undercut. All other columns run forward, backward (to the same inputs too) and
an AdamW step. The methods take turns within each round, so that a busy machine slows all of them alike; times are
medians over rounds, and ratios medians of the ratios within a round.

Memory is the peak that CUDA reports on a GPU. On a CPU, where nothing reports it, it is the size of what autograd keeps
from the forward pass for the backward pass, parameters and buffers left out: temporary tensors are not in it.
"""

import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import peft
import torch
import transformers
import typer
from peft import PsoftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

import ssvd
from ssvd.methods import apply_method, trainable_parameters

SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}  # width, layers, heads
FRAMES_PER_SECOND = 100


def main(
    size: Annotated[str, typer.Option(help="Dimensions of the model: tiny, base or small.")] = "tiny",
    batch: Annotated[int, typer.Option(help="Utterances a step.")] = 4,
    window: Annotated[float, typer.Option(help="Seconds of audio an utterance.")] = 30.0,
    labels: Annotated[int, typer.Option(help="Tokens an utterance.")] = 32,
    portion: Annotated[float, typer.Option(help="Portion of the singular triplets that SSVD and PSOFT adapt.")] = 0.4,
    steps: Annotated[int, typer.Option(help="Timed rounds, after one that is not.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    autocast: Annotated[bool, typer.Option(help="Compute in bfloat16 by autocast.")] = False,
    methods: Annotated[str, typer.Option(help="Columns to run, by comma; all by default.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Measure one training step of each method on a Whisper model with random weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_whisper(size, window).to(device)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "proj_out"]
    frames = 2 * model.config.max_source_positions
    features = torch.randn(batch, model.config.num_mel_bins, frames, device=device, requires_grad=True)
    tokens = torch.randint(model.config.vocab_size, (batch, labels), device=device)

    variants = build_variants(portion)
    chosen = methods.split(",") if methods else list(variants)
    # The frozen model is what the others are measured by.
    chosen = ["frozen", *(name for name in chosen if name != "frozen")]
    steppers = {name: Step(variants[name](copy.deepcopy(model), layers), features, tokens, autocast) for name in chosen}
    del model

    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for i in range(steps + 1):
        for name, step in steppers.items():
            elapsed = step.timed()
            if i:
                seconds[name].append(elapsed)

    floor_memory = steppers["frozen"].memory()
    rows = []
    for name, step in steppers.items():
        memory = step.memory()
        rows.append(
            {
                "method": name,
                "trainable": trainable_parameters(step.model),
                "seconds": statistics.median(seconds[name]),
                "time_ratio": statistics.median(
                    own / floor for own, floor in zip(seconds[name], seconds["frozen"], strict=True)
                ),
                "memory_mib": memory / 2**20,
                "memory_ratio": memory / floor_memory,
            }
        )

    on_cuda = torch.device(device).type == "cuda"
    what = "peak MiB" if on_cuda else "MiB kept for backward"
    title = f"whisper-{size}, {batch} x {window:g} s, {labels} tokens, portion {portion:g}, {device}, {threads} threads"
    table = Table("method", "trainable", "s / step", "x frozen", what, "x frozen", title=title)
    for row in rows:
        table.add_row(
            str(row["method"]),
            f"{row['trainable']:,}",
            f"{row['seconds']:.3f}",
            f"{row['time_ratio']:.2f}",
            f"{row['memory_mib']:.0f}",
            f"{row['memory_ratio']:.2f}",
        )
    Console().print(table)
    if json_file:
        report = {
            "options": {
                "size": size,
                "batch": batch,
                "window": window,
                "labels": labels,
                "portion": portion,
                "steps": steps,
                "threads": threads,
                "device": device,
                "autocast": autocast,
            },
            "memory": "peak allocated on the GPU" if on_cuda else "kept by autograd for the backward pass",
            "hardware": torch.cuda.get_device_name() if on_cuda else f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, ssvd)},
            "rows": rows,
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def build_whisper(size: str, window: float) -> WhisperForConditionalGeneration:
    """A Whisper model with random weights and an encoder for `window` seconds of audio."""
    if size not in SIZES:
        raise typer.BadParameter(f"there is no size {size!r}; choose one of {', '.join(SIZES)}")
    width, depth, heads = SIZES[size]
    config = WhisperConfig(
        d_model=width,
        encoder_layers=depth,
        decoder_layers=depth,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=round(window * FRAMES_PER_SECOND / 2),
    )
    return WhisperForConditionalGeneration(config)


Variant = Callable[[nn.Module, list[str]], nn.Module]


def build_variants(portion: float) -> dict[str, Variant]:
    """The columns: from a model and the names of the layers to adapt to the model ready for training."""

    def psoft(strict: bool) -> Variant:
        # PEFT has one rank for all layers; in Whisper all have the same smaller side, so k is the same everywhere.
        def apply(model: nn.Module, layers: list[str]) -> nn.Module:
            k = ssvd.SSVDConfig(portion=portion).rank_of("", *model.get_submodule(layers[0]).weight.shape)
            neumann = {} if strict else {"use_cayley_neumann": True, "num_cayley_neumann_terms": 2}
            config = PsoftConfig(r=k, psoft_alpha=k, psoft_mag_a=False, target_modules=layers, **neumann)
            return get_peft_model(model, config)

        return apply

    def method(name: str, rotation: str = "approx") -> Variant:
        return lambda model, layers: apply_method(model, name, layers, portion=portion, rotation=rotation)

    return {
        "frozen": lambda model, layers: model.requires_grad_(False),
        "full": method("full"),
        "lora": method("lora"),
        "psoft approx": psoft(strict=False),
        "psoft strict": psoft(strict=True),
        "ssvd approx": method("ssvd"),
        "ssvd strict": method("ssvd", rotation="strict"),
    }


class Step:
    """One training step of a model on a fixed batch."""

    def __init__(self, model: nn.Module, features: Tensor, tokens: Tensor, autocast: bool) -> None:
        self.model = model.train()
        self.features, self.tokens, self.autocast = features, tokens, autocast
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-5) if trained else None
        embedding = model.get_input_embeddings()
        # The decoder's inputs too: without them the frozen model would skip most of the decoder's backward pass.
        self.embedded = embedding(tokens).detach().requires_grad_()

    def loss(self) -> Tensor:
        with torch.autocast(self.features.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.model(
                input_features=self.features, decoder_inputs_embeds=self.embedded, labels=self.tokens, use_cache=False
            )
        loss: Tensor = output.loss
        return loss

    def run(self) -> None:
        self.features.grad = self.embedded.grad = None
        self.loss().backward()
        if self.optimiser:
            self.optimiser.step()
            self.optimiser.zero_grad()

    def timed(self) -> float:
        """Seconds of one step."""
        synchronise = torch.cuda.synchronize if self.features.is_cuda else lambda: None
        synchronise()
        start = time.perf_counter()
        self.run()
        synchronise()
        return time.perf_counter() - start

    def memory(self) -> int:
        """Bytes: see the top of the file. What other models hold on the GPU is left out."""
        if self.features.is_cuda:
            self.run()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run()
            return torch.cuda.max_memory_allocated() - before
        own = {t.untyped_storage().data_ptr() for t in [*self.model.parameters(), *self.model.buffers()]}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.loss()
        del loss
        return sum(kept.values())


if __name__ == "__main__":
    typer.run(main)
