"""`ssvd push`."""

from pathlib import Path
from typing import Annotated

import typer

from ssvd_cli.base_model import base_of
from ssvd_cli.terminal import console, in_bytes


def push(
    run: Annotated[str, typer.Argument(help="Run folder or PEFT adapter to publish.")],
    name: Annotated[str, typer.Argument(help="Name on the Hugging Face hub, such as somebody/whisper-children.")],
    licence: Annotated[
        str, typer.Option("--license", help="Licence of the adapted model, in the hub's notation, such as apache-2.0.")
    ],
    base_model: Annotated[
        str | None,
        typer.Option(help="Name of the base model on the hub; by default, as the run names it, if that is no folder."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Code of the language, such as en or nl.")] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="result.json of `ssvd evaluate`, for the model card.")
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Publish a whole checkpoint, not the adapter.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
) -> None:
    """Publish an adapter or a merged model on the Hugging Face hub.

    Only the adapter or checkpoint is sent, and a model card; no options, texts or paths.
    """
    model = base_of([run])
    from ssvd.push import About
    from ssvd.push import push as send

    about = About(licence, base_model or model, language)
    sent = send(model, run, name, about, results=results, merged=merged, public=public, dry_run=dry_run)
    if dry_run:
        for file, size in sent.files.items():
            console.print(f"{file}  {in_bytes(size)}", highlight=False, markup=False)
        console.print(sent.card, highlight=False, markup=False)
    else:
        console.print(f"Sent {len(sent.files)} files to {sent.address}.", highlight=False, markup=False)
