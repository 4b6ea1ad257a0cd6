"""Options that several commands share."""

import math
from pathlib import Path
from typing import Annotated

import typer

LARGEST = 1_000_000_000  # count: within it nothing overflows


def finite(value: float | None) -> float | None:
    """Return a number that is finite.

    Raises:
        typer.BadParameter: It is not.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Where = Annotated[
    list[str],
    typer.Option(
        metavar="CONDITION", help="Take only utterances that meet this condition, such as 'age<=15'; repeatable."
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out unusable utterances and list them.")]
Window = Annotated[
    float | None,
    typer.Option(
        callback=finite, help="Length of the model's input in seconds; by default, the run's or the model's own."
    ),
]
Language = Annotated[
    str | None, typer.Option(help="Language of utterances that do not state theirs, such as 'nl' or 'Dutch'.")
]
Fallback = Annotated[
    bool, typer.Option(help="Decode repetitive Whisper output again at higher temperatures, as OpenAI's decoder does.")
]
DecodingSeed = Annotated[int, typer.Option(help="Random seed of the fallback's sampling.")]
Beams = Annotated[int, typer.Option(min=1, max=LARGEST, help="Width of the beam search; 1 is greedy search.")]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu, cuda or mps.")]
BatchSize = Annotated[int, typer.Option(min=1, max=LARGEST, help="Number of utterances per batch.")]
Budget = Annotated[
    str,
    typer.Option(
        help="Number of parameters to train: p=0.4 (as many as SSVD trains at that portion), 2% (of the model), "
        "750000, or the method's own setting (portion=, rank=, band=, block= or width=)."
    ),
]
Normaliser = Annotated[
    str | None,
    typer.Option(
        help="Text normaliser for scoring: none, basic, english or dutch; by default, the usual one of the language."
    ),
]
By = Annotated[
    list[str],
    typer.Option(
        metavar="FIELD",
        help="Break results down by this field: 'gender', or with bands 'age:6-10,11-15'; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Balance = Annotated[
    str | None,
    typer.Option(metavar="FIELD", help="Spread the values of this field, such as age, evenly over the parts."),
]
SplitSeed = Annotated[int, typer.Option(help="Random seed of the division by speaker.")]
Split = Annotated[str, typer.Option(help="Percentages of train, dev and test, which share no speaker.")]

Run = Annotated[
    list[str],
    typer.Option(
        metavar="RUN", help="Run folder or PEFT adapter to use, with the base model that it names; repeatable."
    ),
]
Adapter = Annotated[
    list[str], typer.Option(metavar="RUN", help="Run folder or PEFT adapter to use on MODEL; repeatable.")
]
OneRun = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Run folder or PEFT adapter to use, with the base model that it names."),
]
OneAdapter = Annotated[str | None, typer.Option(metavar="RUN", help="Run folder or PEFT adapter to use on MODEL.")]
Scale = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="How far to go from the base model (0) to the adapted one (1); by default, the run's chosen scale, or 1.",
    ),
]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")]
