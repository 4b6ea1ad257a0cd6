"""`ssvd plan`."""

import json
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from ssvd_cli.options import LARGEST, Budget, Json
from ssvd_cli.terminal import console, in_bytes


def plan(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, config.json or hub name; the weights are not read.")],
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
    as_json: Json = False,
) -> None:
    """Show what each method would train at a budget, and at what cost."""
    from ssvd.plan import plan_methods

    planned = plan_methods(model, budget, tokens, layers)
    if as_json:
        print(json.dumps(planned.as_dict(), indent=2))
        return
    title = f"{planned.model}: {planned.parameters:,} parameters, {planned.layers} layers to adapt; budget {budget}"
    table = Table(
        "method", "setting", "trained", "share", "file", "optimiser", "operations", title=title, box=box.SIMPLE
    )
    for row in planned.methods:
        if row.reason is not None:
            continue
        cells = f"{row.trainable_parameters:,}", f"{row.trainable_share:.2%}", in_bytes(row.adapter_bytes)
        table.add_row(row.method, row.setting, *cells, in_bytes(row.optimiser_bytes), f"{row.operations:.2f}")
    console.print(table)
    console.print(
        f"Operations: multiplications of a training step of {tokens:,} tokens in the adapted layers, as a ratio to the "
        "frozen layers. File and optimiser in float32.",
        style="dim",
    )
    for row in planned.methods:
        if row.reason is not None:
            console.print(f"Left out: {escape(row.reason)}", highlight=False)
