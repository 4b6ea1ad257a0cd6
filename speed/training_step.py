"""Time and memory of one training step, as ratios to the frozen model, to LoRA and to the floor.

    python speed/training_step.py --size tiny --window 30 --batch 2 --portions 0.25,0.4 --json step.json
    python speed/training_step.py --espnet base --batch 2

The model has random weights. The frozen model runs forward, and backward to its inputs: what no method that adapts all
layers can undercut. All other rows run forward, backward (to the same inputs too) and an AdamW step. Methods take turns
within each round, so that a busy machine slows all of them alike; times are medians over rounds, and ratios medians of
the ratios within a round.

LoRA, DoRA, PiSSA and OFT train as many parameters as SSVD does at the portion, as nearly as their ranks and blocks
allow; PSOFT has the same k and the same algebra; VeRA, which would need a rank above ten thousand, has rank 256.

The *floor* adds to the frozen step what an exact gradient of the core costs when it is taken from x and dy, or from the
gradient of the weight: T k (m + n + k) or T m n + m k (n + k) multiplications a layer, at the speed at which the same
layers alone run in the frozen model. *Planned* adds all products of the way that SSVD's planner chooses, with the
forming of the changed weight, which has to be shared by the tokens of the step.

Memory: *peak* is the most that a step allocates at a time (on a CPU by the events of torch's profiler, on a GPU as CUDA
counts it); *total* adds weights, buffers, gradients and the states of the optimiser.
"""

import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import PsoftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

import floor
from machine import machine
from ssvd.methods import Budget, apply_method, linear_shapes, trainable_parameters
from ssvd.spectral import step_products
from ssvd.tuners import portion_rank

SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}  # of Whisper: width, layers, heads
OWSM_SIZES = {"base": (384, 6), "small": (768, 9), "medium": (1024, 18)}  # of OWSM v3.1: width, layers
OWSM_VOCABULARY = 50_002
FRAMES_PER_SECOND = 100
VERA_RANK = 256


def main(
    size: Annotated[str, typer.Option(help="Dimensions of Whisper: tiny, base or small.")] = "tiny",
    espnet: Annotated[str, typer.Option(help="OWSM v3.1 instead: base, small or medium; needs ESPnet.")] = "",
    batch: Annotated[int, typer.Option(help="Utterances a step.")] = 8,
    window: Annotated[float, typer.Option(help="Seconds of audio an utterance.")] = 10.0,
    labels: Annotated[int, typer.Option(help="Tokens an utterance.")] = 32,
    portions: Annotated[str, typer.Option(help="Portions of the singular triplets, by comma.")] = "0.4",
    steps: Annotated[int, typer.Option(help="Timed rounds, after one that is not.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    autocast: Annotated[bool, typer.Option(help="Compute in bfloat16 by autocast.")] = False,
    compiled: Annotated[bool, typer.Option(help="Add the frozen model and SSVD with torch.compile.")] = False,
    methods: Annotated[str, typer.Option(help="Rows to run, by comma; all by default.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Measure one training step of each method on a Whisper model with random weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name = f"owsm-{espnet}" if espnet else f"whisper-{size}"
    workload = owsm_workload if espnet else whisper_workload
    model, layers, loss = workload(espnet or size, batch, window, labels, device)
    options = {
        "size": f"owsm-{espnet}" if espnet else size,
        "batch": batch,
        "window": window,
        "labels": labels,
        "steps": steps,
        "autocast": autocast,
    }
    rows: list[dict[str, Any]] = []
    for portion in map(float, portions.split(",")):
        variants = build_variants(portion, compiled)
        chosen = methods.split(",") if methods else list(variants)
        # What the others, and the floors, are measured by.
        chosen = ["frozen", *(name for name in chosen if name != "frozen")]
        chosen += ["ssvd approx"] if "ssvd approx" not in chosen else []
        steppers = {name: Step(variants[name](copy.deepcopy(model), layers), loss, device, autocast) for name in chosen}
        alone = LayersAlone(steppers["frozen"], layers)
        rows += measured(steppers, alone, steps, portion)
        del steppers
    title = f"{name}, {batch} x {window:g} s, {labels} tokens, {device}, {threads} threads"
    table = Table("p", "method", "trainable", "s / step", "x frozen", "x floor", "x LoRA", "peak", "total", title=title)
    for row in rows:
        ratios = (f"{row[name]:.2f}" if row[name] else "" for name in ("x_frozen", "x_floor", "x_lora"))
        sizes = (f"{row[name]:.0f} MiB" for name in ("peak_mib", "total_mib"))
        figures = f"{row['portion']:g}", row["method"], f"{row['trainable']:,}", f"{row['seconds']:.3f}"
        table.add_row(*figures, *ratios, *sizes)
    Console().print(table)
    if json_file:
        report = {"options": options, "machine": machine(device), "rows": rows}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(steppers: dict[str, "Step"], alone: "LayersAlone", steps: int, portion: float) -> list[dict[str, Any]]:
    """The figures of all methods at a portion."""
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    alone_seconds = []
    for i in range(steps + 1):
        for name, step in steppers.items():
            elapsed = step.timed()
            if i:
                seconds[name].append(elapsed)
        elapsed = alone.timed()
        if i:
            alone_seconds.append(elapsed)
    floors = {
        name: [frozen + share * own for frozen, own in zip(seconds["frozen"], alone_seconds, strict=True)]
        for name, share in alone.floor_shares(steppers["ssvd approx"].model).items()
    }

    def ratio(name: str, others: list[float] | None) -> float | None:
        return others and statistics.median(a / b for a, b in zip(seconds[name], others, strict=True))

    rows = []
    for name, step in steppers.items():
        peak, held = step.peak(), step.held()
        rows.append(
            {
                "portion": portion,
                "method": name,
                "trainable": trainable_parameters(step.model),
                "seconds": statistics.median(seconds[name]),
                "x_frozen": ratio(name, seconds["frozen"]),
                "x_floor": ratio(name, floors["direct"]),
                "x_planned": ratio(name, floors["planned"]),
                "x_lora": ratio(name, seconds.get("lora")),
                "x_psoft": ratio(name, seconds.get("psoft approx")),
                "peak_mib": peak / 2**20,
                "total_mib": (peak + held) / 2**20,
                "bases_mib": step.bases() / 2**20,
            }
        )
    return rows


Loss = Callable[[nn.Module], Tensor]
Workload = tuple[nn.Module, list[str], Loss]
"""A model, the names of the layers to adapt, and its loss on a fixed batch, differentiable by the inputs of encoder and
decoder: without the decoder's, the frozen model would skip most of its backward pass."""


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


def whisper_workload(size: str, batch: int, window: float, labels: int, device: str) -> Workload:
    """Whisper with random weights, on noise."""
    model = build_whisper(size, window).to(device)
    config = model.config
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "proj_out"]
    frames = 2 * config.max_source_positions
    features = torch.randn(batch, config.num_mel_bins, frames, device=device, requires_grad=True)
    tokens = torch.randint(config.vocab_size, (batch, labels), device=device)
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()

    def loss(model: nn.Module) -> Tensor:
        features.grad = embedded.grad = None
        return model(input_features=features, decoder_inputs_embeds=embedded, labels=tokens, use_cache=False).loss

    return model, layers, loss


def owsm_workload(size: str, batch: int, window: float, labels: int, device: str) -> Workload:
    """OWSM v3.1 with random weights, on `window` seconds of noise; its layers are those of SSVD's paper."""
    sys.path.append(str(Path(__file__).parents[1] / "scripts"))
    from pretrain_owsm import config_of, new_model

    if size not in OWSM_SIZES:
        raise typer.BadParameter(f"there is no size {size!r}; choose one of {', '.join(OWSM_SIZES)}")
    width, depth = OWSM_SIZES[size]
    special = ["<blank>", "<unk>", "<na>", "<sos>", "<eos>", "<sop>"]
    pieces = [f"piece{number}" for number in range(OWSM_VOCABULARY - len(special))]
    model = new_model(config_of([*special[:3], *pieces, *special[3:]], width, (depth, depth), heads=width // 64))
    model.error_calculator = None
    model.decoder.embed[0].register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_())
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith("ctc.")]
    speech = torch.randn(batch, round(window * 16000), device=device, requires_grad=True)
    lengths = torch.full((batch,), speech.shape[1], device=device)
    text = torch.randint(len(special), OWSM_VOCABULARY - len(special), (batch, labels), device=device)
    sizes = torch.full((batch,), labels, device=device)
    previous = torch.full((batch, 1), 2, device=device)

    def loss(model: nn.Module) -> Tensor:
        speech.grad = None
        prompt = {"text_prev": previous.clone(), "text_prev_lengths": torch.ones_like(sizes)}
        targets = {"text": text.clone(), "text_lengths": sizes, "text_ctc": text.clone(), "text_ctc_lengths": sizes}
        return model(speech=speech, speech_lengths=lengths, **targets, **prompt)[0].sum()

    return model.to(device), layers, loss


Variant = Callable[[nn.Module, list[str]], nn.Module]


def build_variants(portion: float, compiled: bool = False) -> dict[str, Variant]:
    """The rows: from a model and the names of the layers to adapt to the model ready for training."""

    def method(name: str, budget: str = f"p={portion}", token_stride: int = 1) -> Variant:
        # However far the nearest block size of OFT is.
        return lambda model, layers: apply_method(
            model, name, layers, Budget.parse(budget), token_stride=token_stride, tolerance=math.inf
        )

    def psoft(**series: Any) -> Variant:
        """With the k and the algebra of SSVD: PEFT has one rank for all layers, and in Whisper all have the same k."""

        def apply(model: nn.Module, layers: list[str]) -> nn.Module:
            k = portion_rank(portion, min(next(iter(linear_shapes(model, layers).values()))))
            config = PsoftConfig(r=k, psoft_alpha=k, psoft_mag_a=False, target_modules=layers, **series)
            return get_peft_model(model, config)

        return apply

    def compiled_(variant: Variant) -> Variant:
        return lambda model, layers: torch.compile(variant(model, layers))  # type: ignore[return-value]

    variants = {
        "frozen": method("frozen"),
        "full": method("full"),
        "lora": method("lora"),
        "dora": method("dora"),
        "pissa": method("pissa"),
        "vera": method("vera", f"rank={VERA_RANK}"),
        "oft": method("oft"),
        "psoft approx": psoft(use_cayley_neumann=True, num_cayley_neumann_terms=2),  # I + 2Q, as approx
        "psoft strict": psoft(),
        "ssvd approx": method("ssvd"),
        "ssvd neumann": method("ssvd neumann"),
        "ssvd strict": method("ssvd strict"),
        "ssvd stride 4": method("ssvd", token_stride=4),
    }
    if compiled:
        variants |= {f"{name} compiled": compiled_(variants[name]) for name in ("frozen", "lora", "ssvd approx")}
    return variants


def most_allocated(step: Callable[[], None]) -> int:
    """Return the most bytes that a step on the CPU holds at a time, beside those that it began with."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


class Step:
    """One training step of a model on a fixed batch."""

    def __init__(self, model: nn.Module, loss: Loss, device: str, autocast: bool) -> None:
        self.model = model.train()
        self._loss, self.device, self.autocast = loss, device, autocast
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-5) if trained else None

    def loss(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            return self._loss(self.model)

    def run(self) -> None:
        self.loss().backward()
        if self.optimiser:
            self.optimiser.step()
            self.optimiser.zero_grad()

    def timed(self) -> float:
        """Seconds of one step."""
        return timed(self.run, self.device == "cuda")

    def peak(self) -> int:
        """Bytes: the most that a step holds at a time, beyond what is there before and after it."""
        self.run()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run()
            return torch.cuda.max_memory_allocated() - before
        return most_allocated(self.run)

    def held(self) -> int:
        """Bytes of weights, buffers and states of the optimiser."""
        states = [] if self.optimiser is None else [v for s in self.optimiser.state.values() for v in s.values()]
        return _bytes([*self.model.parameters(), *self.model.buffers(), *states])

    def bases(self) -> int:
        """Bytes of the buffers, of which almost all are frozen bases."""
        return _bytes(list(self.model.buffers()))


class LayersAlone:
    """The linear layers of the frozen model's step, y and dx of each, on inputs of the same shapes."""

    def __init__(self, frozen: Step, layers: list[str]) -> None:
        self.products: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.autocast = frozen.autocast

        def note(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x = inputs[0].detach().flatten(0, -2)
            self.products[name] = x, layer.weight.detach(), torch.randn_like(output).flatten(0, -2)

        modules = {name: frozen.model.get_submodule(name) for name in layers}
        handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
        with torch.no_grad():
            frozen.loss()
        for handle in handles:
            handle.remove()

    def run(self) -> None:
        for x, weight, dy in self.products.values():
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
                torch.nn.functional.linear(x, weight)
                dy @ weight

    def timed(self) -> float:
        return timed(self.run, next(iter(self.products.values()))[0].is_cuda)

    def floor_shares(self, adapted: nn.Module) -> dict[str, float]:
        """Multiplications of the floors beyond the frozen layers, as shares of these; `adapted` by SSVD."""
        extra, alone = {"direct": 0, "planned": 0}, 0
        for name, (x, weight, _) in self.products.items():
            layer = adapted.get_submodule(f"base_model.model.{name}")
            tokens, (m, n), k = len(x), weight.shape, layer.bases["default"].k
            extra["direct"] += floor.direct(tokens, m, n, k)
            extra["planned"] += step_products(tokens, m, n, k, has_inverse=layer._basis_fits("default"))
            alone += 2 * tokens * m * n
        return {name: own / alone for name, own in extra.items()}


def timed(run: Callable[[], None], on_cuda: bool) -> float:
    """Seconds that a call takes."""
    synchronise = torch.cuda.synchronize if on_cuda else lambda: None
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def _bytes(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


if __name__ == "__main__":
    typer.run(main)
