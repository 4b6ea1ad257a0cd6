"""What `ssvd plan --batch-size` says of the memory of training, against what torch's profiler measures on a CPU.

    python speed/memory.py                    # the embedded recogniser
    python speed/memory.py --size tiny --seconds 10 --batch 2 --json results.json

Models have random weights. The last rows are of a batch so small that activations count for little: what SSVD holds for
each number of an adapted weight.
"""

import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import WhisperConfig, WhisperForConditionalGeneration

import ssvd
from machine import machine
from ssvd.methods import Budget, apply_method, linear_shapes
from ssvd.plan import Load, Memory, planned_memory
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import load_outline
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.transformers_checkpoint import load_network
from ssvd.training.memory import DTYPES, checkpoint_activations, round_frozen
from ssvd.training.step_memory import step_inputs
from ssvd.tuners.quantised import is_quantised
from training_step import build_whisper, most_allocated

EMBEDDED = Path(ssvd.__file__).parent / "demo" / "embedded"
SAVINGS = [("float32", False), ("bfloat16", False), ("float32", True), ("bfloat16", True)]
QUANTISED = [("float32", False, "8bit"), ("float32", False, "4bit"), ("float32", True, "4bit")]


def random_network(outline: Any, layers: list[str], bits: str | None) -> Any:
    network = WhisperForConditionalGeneration(outline.config)
    if bits is None:
        return network
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        quantisation = Quantisation.of(bits, outline, layers)
        return load_network(WhisperForConditionalGeneration, folder, outline, quantisation=quantisation)[0]


def weight_bytes(network: torch.nn.Module) -> int:
    """Bytes of all parameters, and of the scales of quantised ones."""
    scales = 0
    for layer in filter(is_quantised, network.modules()):
        weight: Any = layer.weight
        state = getattr(weight, "quant_state", None)
        scales += weight.SCB.nbytes if state is None else state.absmax.nbytes + state.code.nbytes
    return scales + sum(part.nbytes for part in network.parameters())


def measured(model: str, method: str, load: Load) -> tuple[int, int]:
    """Bytes: of the weights, and the most that a step holds at a time, beyond what was there before."""
    torch.manual_seed(0)
    outline, layers = load_outline(model)
    inputs = step_inputs(outline, load.batch_size, load.seconds)
    assert inputs is not None
    network = apply_method(random_network(outline, layers, load.quantise), method, layers, Budget("p", 0.4)).train()
    round_frozen(network, DTYPES[load.base_dtype])
    weights = weight_bytes(network)
    if load.checkpointing:
        checkpoint_activations(network)
    values = inputs()
    values["input_features"].normal_()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=load.is_mixed):
            logits = network(**values, use_cache=False).logits
        tokens = values["decoder_input_ids"]
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()
        network.zero_grad()

    step()
    step()  # layers that read the same input know of each other from here on
    return weights, most_allocated(step)


def in_its_own_process(function: Any, *arguments: Any) -> Any:
    """What a function returns in a new process: shapes without content disturb the profiler of theirs."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measured_all(cases: list[tuple[str, str, Load]]) -> list[tuple[int, int]]:
    return [measured(*case) for case in cases]


def state(model: str, method: str, load: Load) -> float:
    """Bytes of weights, bases and a step for each number of the adapted weights."""
    outline, layers = load_outline(model)
    numbers = sum(m * n for m, n in linear_shapes(outline, layers).values())
    others = sum(part.numel() for part in outline.parameters()) - numbers
    memory = planned_memory(model, method, Budget("p", 0.4), USUAL_GROUPS, load)
    assert isinstance(memory, Memory)
    return (memory.total - others * DTYPES[load.base_dtype].itemsize) / numbers


def main(
    size: Annotated[str, typer.Option(help="embedded, or a size of Whisper.")] = "embedded",
    methods: str = "ssvd,ssvd strict,svft,lora,full",
    quantised: Annotated[str, typer.Option(help="Methods that are measured on quantised weights too.")] = "",
    few: Annotated[bool, typer.Option("--few", help="Only float32 and 4 bits, without checkpointing.")] = False,
    states: Annotated[bool, typer.Option(help="What is held for each number of an adapted weight.")] = True,
    batch: int = 4,
    seconds: float = 4.0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = str(EMBEDDED)
        if size != "embedded":
            model = folder
            build_whisper(size, 30).config.save_pretrained(folder)
            assert isinstance(WhisperConfig.from_pretrained(folder), WhisperConfig)
        cases = [
            (model, method, Load(batch, seconds, dtype, again))
            for method in methods.split(",")
            for dtype, again in SAVINGS[: 1 if few else None]
            if method != "full" or dtype == "float32"
        ]
        cases += [
            (model, method, Load(batch, seconds, *saved))
            for method in filter(None, quantised.split(","))
            for saved in (QUANTISED[1:2] if few else QUANTISED)
        ]
        found = in_its_own_process(measured_all, cases)
        rows: list[dict[str, Any]] = []
        for (_, method, load), (weights, most) in zip(cases, found, strict=True):
            memory = planned_memory(model, method, Budget("p", 0.4), USUAL_GROUPS, load)
            assert memory is not None
            rows.append(
                {
                    "method": method,
                    "base_dtype": load.base_dtype,
                    "checkpointing": load.checkpointing,
                    "quantise": load.quantise,
                    "weights_mib": memory.weights / 2**20,
                    "measured_weights_mib": weights / 2**20,
                    "bases_mib": memory.bases / 2**20,
                    "planned_step_mib": memory.step / 2**20,
                    "measured_step_mib": most / 2**20,
                    "ratio": memory.step / most,
                }
            )
        small = [
            {
                "method": method,
                "base_dtype": dtype,
                "checkpointing": again,
                "bytes_per_number": state(model, method, load),
            }
            for method in ("ssvd", "svft", "lora")
            for dtype, again in SAVINGS
            for load in [Load(1, 0.5, dtype, again)]
            if states
        ]
    names = "weights_mib", "measured_weights_mib", "bases_mib", "planned_step_mib", "measured_step_mib"
    table = Table("method", "base", "checkpointing", "weights", "measured", "bases", "step", "measured", "ratio")
    for row in rows:
        sizes = (f"{row[name]:.1f}" for name in names)
        base = row["quantise"] or row["base_dtype"]
        table.add_row(row["method"], base, str(row["checkpointing"]), *sizes, f"{row['ratio']:.3f}")
    Console().print(table)
    for row in small:
        Console().print(row)
    if json_file:
        options = {"size": size, "batch": batch, "seconds": seconds}
        report = {"options": options, "machine": machine(), "rows": rows, "state": small}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
