"""`ssvd plan`."""

import json
from dataclasses import astuple
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from ssvd_cli.errors import CommandError
from ssvd_cli.options import LARGEST, Budget, Json
from ssvd_cli.recipes import read_options
from ssvd_cli.terminal import console, in_bytes

DTYPES = ("float32", "bfloat16", "float16")
_SPEED = 1e14  # operations a second: between a consumer's and a data centre's GPU of 2022, in bf16


def plan(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint folder, config.json or hub name; the weights are not read.")
    ] = None,
    budget: Budget = "p=0.4",
    layers: Annotated[
        list[str],
        typer.Option(
            metavar="GROUP",
            help="Layers to adapt: encoder, projector, decoder, front-end, all, or a regular expression.",
        ),
    ] = ["encoder", "projector", "decoder"],  # Typer copies it
    tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST, help="Number of tokens per training step, for counting operations.")
    ] = 8000,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST, help="Plan the memory of training too, with so many utterances on a device."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Length of these utterances, or the window.")] = 30,
    precision: Annotated[
        str,
        typer.Option(
            metavar="float32|bfloat16", help="Arithmetic, for the memory; on a GPU, training is in bfloat16 by default."
        ),
    ] = "float32",
    base_dtype: Annotated[
        str, typer.Option(metavar="|".join(DTYPES), help="Type of the frozen weights, for the memory.")
    ] = "float32",
    quantise: Annotated[
        str | None, typer.Option(metavar="8bit|4bit", help="Bits of the frozen linear layers, for the memory.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again, for the memory.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Plan the run of these options instead: a YAML file, or a recipe that ssvd adapt --list shows.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what each method would train at a budget, and at what cost."""
    if config is not None:
        _plan_run(config, model, tokens, as_json)
        return
    if model is None:
        raise CommandError("Name a model: ssvd plan MODEL.")
    if precision not in ("float32", "bfloat16"):
        raise CommandError(f"--precision must be float32 or bfloat16, but is {precision!r}.")
    if base_dtype not in DTYPES:
        raise CommandError(f"--base-dtype must be {', '.join(DTYPES)}, but is {base_dtype!r}.")
    if quantise not in (None, "8bit", "4bit"):
        raise CommandError(f"--quantise must be 8bit or 4bit, but is {quantise!r}.")
    from ssvd.plan import Load, plan_methods

    load = None if batch_size is None else Load(batch_size, seconds, base_dtype, checkpointing, quantise, precision)
    planned = plan_methods(model, budget, tokens, layers, load)
    if as_json:
        print(json.dumps(planned.as_dict(), indent=2))
        return
    title = f"{planned.model}: {planned.parameters:,} parameters, {planned.layers} layers to adapt; budget {budget}"
    parts = ["weights", "bases", "moments", "step", "memory"] if load else []
    columns = "method", "setting", "trained", "share", "file", "optimiser", "operations"
    table = Table(*columns, *parts, title=title, box=box.SIMPLE)
    for row in planned.methods:
        if row.reason is not None:
            continue
        cells = f"{row.trainable_parameters:,}", f"{row.trainable_share:.2%}", in_bytes(row.adapter_bytes)
        memory = map(in_bytes, astuple(row.memory)) if row.memory else ()
        table.add_row(row.method, row.setting, *cells, in_bytes(row.optimiser_bytes), f"{row.operations:.2f}", *memory)
    console.print(table)
    console.print(
        f"Operations: multiplications of a training step of {tokens:,} tokens in the adapted layers, as a ratio to the "
        "frozen layers. File and optimiser in float32.",
        style="dim",
    )
    if load:
        console.print(
            f"Memory of training on a CPU, {load.batch_size} x {load.seconds:g} s on a device: a step holds "
            "activations, weights that it forms, and gradients. The libraries themselves come on top.",
            style="dim",
        )
    for row in planned.methods:
        if row.reason is not None:
            console.print(f"Left out: {escape(row.reason)}", highlight=False)


def _plan_run(config: Path, model: str | None, tokens: int, as_json: bool) -> None:
    from ssvd.plan import plan_run
    from ssvd.training.options import checked_options

    stated = read_options(config)
    given = {"train": ["train"]} | stated | ({"model": model} if model else {})
    planned = plan_run(checked_options(given, f"{config}: "), tokens)
    if as_json:
        print(json.dumps(planned.as_dict(), indent=2))
        return
    hours = planned.operations / _SPEED / 3600
    table = Table(show_header=False, box=box.SIMPLE, title=f"{planned.model}: {planned.method} {planned.setting}")
    table.add_row("trained parameters", f"{planned.trainable_parameters:,}")
    table.add_row("updates", f"{planned.updates:,}, of {planned.utterances:,} utterances in all")
    table.add_row("memory without activations", in_bytes(planned.memory_bytes))
    table.add_row("operations", f"{planned.operations:.2g}: {hours:.1f} h at a sustained {_SPEED / 1e12:.0f} TFLOP/s")
    console.print(table)
    console.print(
        f"Of the adapted layers, with {tokens:,} tokens per batch in the encoder. Activations, attention, convolutions "
        "and the decoding of the dev utterances come on top. Float32.",
        style="dim",
    )
