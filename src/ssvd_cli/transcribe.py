"""`ssvd transcribe`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ssvd_cli.base_model import model_and_rest
from ssvd_cli.decoding import decoding_from
from ssvd_cli.options import (
    BatchSize,
    Beams,
    DecodingSeed,
    Device,
    Fallback,
    Language,
    OneAdapter,
    OneRun,
    Scale,
    SkipBad,
    Window,
)
from ssvd_cli.terminal import errors


def transcribe(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] FILE...",
            help="Base checkpoint (a folder or hub name; not with --run), and audio files of any length.",
        ),
    ],
    run: OneRun = None,
    adapter: OneAdapter = None,
    scale: Scale = None,
    window: Window = None,
    language: Language = None,
    beams: Beams = 1,
    fallback: Fallback = True,
    seed: DecodingSeed = 0,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
) -> None:
    """Print the text of audio files."""
    runs, adapters = [run] if run else [], [adapter] if adapter else []
    model, files, chosen = model_and_rest(names, runs, adapters, "an audio file", scale)
    from ssvd.transcribe import transcribe_files

    failed = False
    for path, text, error in transcribe_files(
        model,
        [Path(file) for file in files],
        chosen[0] if chosen else None,
        scale=scale,
        window=window,
        language=language,
        decoding=decoding_from(beams, fallback, seed),
        batch_size=batch_size,
        device=device,
    ):
        if error is not None:
            errors.print(f"[red]Error:[/] {escape(error)}", highlight=False)
            failed = failed or not skip_bad
        elif as_json:
            print(json.dumps({"path": str(path), "text": text}, ensure_ascii=False), flush=True)
        else:
            print(text if len(files) == 1 else f"{path}\t{text}", flush=True)
    if failed:
        raise typer.Exit(2)
