"""`ssvd transcribe`."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from ssvd_cli.base_model import model_and_rest
from ssvd_cli.decoding import decoding_from
from ssvd_cli.errors import CommandError
from ssvd_cli.options import (
    LARGEST,
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
from ssvd_cli.terminal import Bars, console, errors

if TYPE_CHECKING:
    from ssvd.transcribe import Transcription
    from ssvd.transcripts.folder import TranscriptFolder


def transcribe(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] FILE...",
            help="Base checkpoint (a folder or hub name; not with --run), and audio files of any length, or folders of "
            "them.",
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
    jobs: Annotated[
        int,
        typer.Option(
            min=1, max=LARGEST, help="Number of processes that share the recordings; on GPUs, at most one for each."
        ),
    ] = 1,
    silence: Annotated[
        Literal["energy", "vad"],
        typer.Option(
            help="How silence is found in long recordings: energy cuts them where they are quietest; vad also leaves "
            "out silences of 5 s and more that Silero's voice detector finds (pip install 'ssvd[vad]')."
        ),
    ] = "energy",
    skip_bad: SkipBad = False,
    format: Annotated[
        Literal["text", "json", "srt", "vtt", "tsv"],
        typer.Option(
            help="Text, JSON with the times and the confidence of words, SubRip or WebVTT subtitles, or a table of "
            "them with times in milliseconds."
        ),
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a file for each recording, instead of printing; recordings whose file is there are "
            "left out, so that interrupted work can be continued."
        ),
    ] = None,
) -> None:
    """Write down what is said in audio files.

    Texts are printed, or written to a folder with --out. A folder of recordings stands for all audio files below it.
    """
    runs, adapters = [run] if run else [], [adapter] if adapter else []
    model, names, chosen = model_and_rest(names, runs, adapters, "an audio file", scale)
    from ssvd.training.interpolation import scale_of
    from ssvd.transcribe import transcribe_files
    from ssvd.transcripts.folder import TranscriptFolder, find_recordings

    format = "json" if as_json else format
    recordings = find_recordings([Path(name) for name in names])
    if out is None and format in ("srt", "vtt", "tsv") and len(recordings) > 1:
        raise CommandError(f"Several recordings do not go into one {format} file: name a folder for them with --out.")
    adapter = chosen[0] if chosen else None
    decoding = decoding_from(beams, fallback, seed)
    settings = {
        "model": model,
        "adapter": adapter,
        "scale": None if adapter is None else scale_of(adapter, scale),
        "window": window,
        "language": language,
        "decoding": decoding.as_dict(has_fallback=True),
        "silence": silence,
    }
    folder = None if out is None else TranscriptFolder(out, format, recordings, settings)
    with Bars(errors) as progress:
        transcriptions = transcribe_files(
            model,
            list(recordings) if folder is None else folder.missing,
            adapter,
            words=format != "text",
            scale=scale,
            window=window,
            language=language,
            decoding=decoding,
            silence=silence,
            batch_size=batch_size,
            device=device,
            jobs=jobs,
            progress=progress,
        )
        with closing(transcriptions):  # Ctrl-C ends its processes
            all_read = _write(transcriptions, format, folder, with_paths=len(recordings) > 1)
    if folder is not None:
        console.print(folder.in_words(), highlight=False)
    if not (all_read or skip_bad):
        raise typer.Exit(2)


def _write(
    transcriptions: Iterable["Transcription"], format: str, folder: "TranscriptFolder | None", with_paths: bool
) -> bool:
    """Write transcripts to their folder, or print them, and return whether all files could be read."""
    from ssvd.transcripts.formats import FORMATS

    all_read = True
    for transcription in transcriptions:
        path, segments, error = transcription
        if error is not None:
            errors.print(f"[red]Error:[/] {escape(error)}", highlight=False)
            all_read = False
        elif folder is not None:
            folder.write(path, segments)
        elif format == "text" and with_paths:
            print(f"{path}\t{transcription.text}", flush=True)
        else:
            print(FORMATS[format](path, segments), end="", flush=True)
    return all_read
