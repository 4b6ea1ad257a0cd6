"""`ssvd prepare cgn`."""

from pathlib import Path
from typing import Annotated

import typer

from ssvd_cli import options
from ssvd_cli.divisions import portions
from ssvd_cli.errors import CommandError
from ssvd_cli.prepare.outcome import CorpusFolder, preparation_status, print_outcome
from ssvd_cli.terminal import errors


def cgn(
    corpus: CorpusFolder,
    out: options.OutFolder,
    components: Annotated[
        str | None, typer.Option(help="Letters of components to take, such as 'a,b,f'; by default, all from a to o.")
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="Components of the paper instead: paper-letters (all but c, d and f, as it writes), or paper-names "
            "(all but b, c, d, f and g: the interviews, discussions and telephone dialogues that it names)."
        ),
    ] = None,
    varieties: Annotated[str, typer.Option(help="Varieties of Dutch: nl (the Netherlands), vl (Flanders).")] = "nl,vl",
    overlap: Annotated[str, typer.Option(help="Speech that overlaps with another speaker: keep or drop.")] = "keep",
    unknown_speakers: Annotated[
        bool, typer.Option("--unknown-speakers", help="Keep the tiers of speakers without a code.")
    ] = False,
    audio: Annotated[
        Path | None, typer.Option(help="Folder that holds comp-a and so on; by default, data/audio/wav.")
    ] = None,
    recordings: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="Keep only the recordings of this list; dev=FILE makes a part of them, and the rest is train; "
            "repeatable.",
        ),
    ] = [],
    where: options.Where = [],
    split: options.Split = "70/10/20",
    balance: options.Balance = None,
    seed: options.SplitSeed = 0,
    skip_bad: options.SkipBad = False,
) -> None:
    """Prepare CGN (Corpus Gesproken Nederlands 2.0.x), Dutch of the Netherlands and Flanders."""
    shares = portions(split)
    if overlap not in ("keep", "drop"):
        raise CommandError(f"--overlap {overlap} is neither keep nor drop.")
    from ssvd.preparation.prepare import Division, prepare_cgn

    with preparation_status() as report:
        prepared = prepare_cgn(
            corpus,
            out,
            audio=audio,
            components=_letters(components, selection),
            varieties=varieties.split(","),
            overlap=overlap == "keep",
            unknown_speakers=unknown_speakers,
            recordings=recordings,
            where=where,
            division=Division(shares, seed, balance),
            skip_bad=skip_bad,
            on_progress=report,
        )
    print_outcome(prepared, out)
    if selection is not None:
        _print_readings(selection)


def _letters(components: str | None, selection: str | None) -> str:
    from ssvd.preparation.cgn import COMPONENTS, SELECTIONS

    if selection is None:
        return (components or COMPONENTS).replace(",", "")
    if selection not in SELECTIONS or components is not None:
        raise CommandError(f"--selection is one of {', '.join(SELECTIONS)}, without --components.")
    return SELECTIONS[selection]


def _print_readings(selection: str) -> None:
    from ssvd.preparation.cgn import SELECTIONS

    other = next(name for name in SELECTIONS if name != selection)
    errors.print(
        f"The paper's letters and its names of components disagree with the corpus documentation; {selection} is one "
        f"reading, {other} the other."
    )
