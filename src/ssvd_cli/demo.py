"""`ssvd demo`."""

from pathlib import Path
from typing import Annotated

import typer

from ssvd_cli.terminal import Bars, console, prepare_for_training
from ssvd_options.adapt import LARGEST_SEED


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-results"),
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the speech and of the training.")
    ] = 0,
) -> None:
    """Adapt a small recogniser to synthetic child-like speech.

    The recogniser is adapted with SSVD and with LoRA; the command shows the error rates before and after.
    """
    from ssvd.demo.demonstration import run_demo

    prepare_for_training()
    with Bars(console) as progress:
        run_demo(out, seed, progress)
