"""`ssvd merge`."""

from pathlib import Path
from typing import Annotated

import typer

from ssvd_cli.base_model import base_of
from ssvd_cli.errors import CommandError
from ssvd_cli.options import Scale
from ssvd_cli.terminal import console


def merge(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] RUN OUT",
            help="Base checkpoint (by default, the one that the run names), run folder or PEFT adapter, and folder for "
            "the merged checkpoint.",
        ),
    ],
    scale: Scale = None,
) -> None:
    """Write an adapted model as a plain checkpoint.

    Transformers or ESPnet loads the checkpoint without this package.
    """
    if len(names) not in (2, 3):
        raise CommandError("Write ssvd merge RUN OUT, or ssvd merge MODEL RUN OUT.")
    run, out = names[-2:]
    model = names[0] if len(names) == 3 else base_of([run])
    from ssvd.merge import merge as write_merged

    write_merged(model, run, Path(out), scale=scale)
    console.print(f"{out} holds the merged model; load it with transformers' from_pretrained.")
