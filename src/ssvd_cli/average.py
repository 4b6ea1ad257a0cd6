"""`ssvd average`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssvd_cli.base_model import base_of
from ssvd_cli.errors import CommandError
from ssvd_cli.terminal import console


def average(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Run folders or PEFT adapters of one base and method.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to write, which must be new or empty.")] = Path("average"),
    of: Annotated[
        Literal["cores", "weights"] | None,
        typer.Option(
            help="What is averaged: the cores of SSVD or SVFT, which gives an adapter, or the weights of any method, "
            "which gives a whole model; by default, cores where there are any."
        ),
    ] = None,
) -> None:
    """Average adapted models of one base and method.

    The result is a run folder, for `ssvd evaluate`, `transcribe` and `merge` with --run.
    """
    if len(runs) < 2:
        raise CommandError("Name two or more runs: ssvd average RUN RUN --out OUT.")
    base = base_of(runs)
    from ssvd.average import average as write_average

    averaged = write_average(base, runs, out, of)
    console.print(f"{out} holds the average of the {averaged} of {len(runs)} runs.", highlight=False)
