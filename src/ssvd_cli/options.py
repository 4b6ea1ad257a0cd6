"""Options that several commands share."""

from typing import Annotated

import typer

Where = Annotated[list[str], typer.Option(help="Only utterances that fulfil this, as 'age<=15'; may be repeated.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out bad utterances and list them.")]
Window = Annotated[float | None, typer.Option(help="Seconds of input, where shorter than the model's own (30).")]
Language = Annotated[str | None, typer.Option(help="Of utterances that do not state theirs: 'nl', 'Dutch'.")]
Fallback = Annotated[
    bool, typer.Option(help="Search again, at higher temperatures, for texts that repeat themselves (Whisper).")
]
Seed = Annotated[int, typer.Option(help="Random seed of the fallback.")]
Beams = Annotated[int, typer.Option(min=1, help="Width of beam search; 1 is greedy.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Utterances at once.")]
Budget = Annotated[
    str,
    typer.Option(
        help="p=0.4 (as many parameters as SSVD at that portion), 2% (of the model), 750000, or what the method is "
        "set by: portion=, rank=, band=, block=."
    ),
]
Normaliser = Annotated[
    str | None, typer.Option(help="Of texts before scoring: none, basic, english or dutch; default by the language.")
]
