"""`ssvd prepare`: corpora checked, chosen, and divided into train, dev and test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from ssvd.errors import UserError
from ssvd_cli.options import BatchSize, Device, SkipBad, Where
from ssvd_cli.parts import portions
from ssvd_cli.terminal import console, errors, list_notes, list_skipped

_OTHER = "SOURCE"  # the command for any other corpus, named in the help by what stands in its place


class _WithAnyOther(TyperGroup):
    """Commands by the name of a corpus; whatever else comes first is the source of a corpus without a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [_OTHER, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_WithAnyOther,
    no_args_is_help=True,
    subcommand_metavar="myst|cgn|speechocean762|SOURCE [...] OUT",
    help="Check a corpus, choose utterances, and divide them, the same way each time.\n\nOUT gets train, dev and test "
    "as Lhotse cuts, their ids, a list of what was left out and why, and prepared.json, which says what was done. A "
    "second run with the same options does nothing; an interrupted one goes on.",
)

Corpus = Annotated[Path, typer.Argument(help="Folder of the corpus.")]
Out = Annotated[Path, typer.Argument(help="Folder to make.")]
Balance = Annotated[str | None, typer.Option(help="A field, such as age, to spread evenly over the parts.")]
Seed = Annotated[int, typer.Option(help="Of the division by speaker.")]


@app.command(_OTHER)
def source(
    source: Annotated[
        str,
        typer.Argument(
            help="A table (CSV, TSV, JSONL), a Kaldi or ESPnet folder, Lhotse cuts, hf:NAME, lhotse:RECIPE."
        ),
    ],
    out: Out,
    where: Where = [],
    split: Annotated[str, typer.Option(help="Shares of train, dev and test, split by speaker.")] = "80/10/10",
    balance: Balance = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Any other: a table (CSV, TSV, JSONL), a Kaldi or ESPnet folder, Lhotse cuts (./myst if it is called so)."""
    from ssvd.preparation.prepare import Division, prepare_source

    division = Division(portions(split), seed, balance)
    with _progress() as tell:
        prepared = prepare_source(source, out, where=where, division=division, skip_bad=skip_bad, on_progress=tell)
    _report(prepared, out)


@app.command()
def myst(
    corpus: Corpus,
    out: Out,
    rules: Annotated[str, typer.Option(help="Of texts: default, or espnet (its recipe egs2/myst/asr1).")] = "default",
    ids: Annotated[
        list[str],
        typer.Option(help="List of utterances to keep, FILE, or of those of a part, train=FILE; may be repeated."),
    ] = [],
    filter_model: Annotated[
        str | None, typer.Option(help="Drop what this Whisper hears with a WER over 50 %: the filter of Kid-Whisper.")
    ] = None,
    filter_parts: Annotated[str, typer.Option(help="Parts that --filter-model filters.")] = "train,dev,test",
    where: Where = [],
    split: Annotated[str, typer.Option(help="Of version 0.3.0, which has no parts.")] = "80/10/10",
    balance: Balance = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    batch_size: BatchSize = 16,
) -> None:
    """MyST, English of children in grades 3 to 5 (LDC2021S05, v0.4.x, v0.3.0)."""
    from ssvd.preparation.listings import PARTS
    from ssvd.preparation.prepare import Division, prepare_myst

    filtered = filter_parts.split(",")
    if not set(filtered) <= set(PARTS):
        raise UserError(f"--filter-parts {filter_parts} is not some of train,dev,test.")
    with _progress() as tell:
        prepared = prepare_myst(
            corpus,
            out,
            rules=rules,
            ids=ids,
            filter_model=filter_model,
            filtered=filtered,
            where=where,
            division=Division(portions(split), seed, balance),
            skip_bad=skip_bad,
            device=device,
            batch_size=batch_size,
            on_progress=tell,
        )
    _report(prepared, out)


@app.command()
def cgn(
    corpus: Corpus,
    out: Out,
    components: Annotated[str | None, typer.Option(help="Their letters: 'a,b,f'. Default: all, a to o.")] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="The paper's: paper-letters (without c, d, f, as it writes), or paper-names (without b, c, d, f, g: "
            "the interviews, discussions and telephone dialogues that it names)."
        ),
    ] = None,
    varieties: Annotated[str, typer.Option(help="nl (Netherlands), vl (Flanders).")] = "nl,vl",
    overlap: Annotated[str, typer.Option(help="keep or drop what overlaps with another speaker.")] = "keep",
    unknown_speakers: Annotated[
        bool, typer.Option("--unknown-speakers", help="Keep tiers without a speaker's code.")
    ] = False,
    audio: Annotated[Path | None, typer.Option(help="Folder of comp-a and so on, if not data/audio/wav.")] = None,
    recordings: Annotated[
        list[str],
        typer.Option(help="List of recordings to keep, FILE, or of a part, dev=FILE (the rest is train); repeatable."),
    ] = [],
    where: Where = [],
    split: Annotated[str, typer.Option(help="Shares of train, dev and test, split by speaker.")] = "70/10/20",
    balance: Balance = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
) -> None:
    """CGN, Corpus Gesproken Nederlands 2.0.x, Dutch of the Netherlands and Flanders."""
    from ssvd.preparation.cgn import COMPONENTS, SELECTIONS
    from ssvd.preparation.prepare import Division, prepare_cgn

    if selection is not None and (selection not in SELECTIONS or components is not None):
        raise UserError(f"--selection is one of {', '.join(SELECTIONS)}, without --components.")
    if overlap not in ("keep", "drop"):
        raise UserError(f"--overlap {overlap} is neither keep nor drop.")
    letters = SELECTIONS[selection] if selection else (components or COMPONENTS).replace(",", "")
    with _progress() as tell:
        prepared = prepare_cgn(
            corpus,
            out,
            audio=audio,
            components=letters,
            varieties=varieties.split(","),
            overlap=overlap == "keep",
            unknown_speakers=unknown_speakers,
            recordings=recordings,
            where=where,
            division=Division(portions(split), seed, balance),
            skip_bad=skip_bad,
            on_progress=tell,
        )
    _report(prepared, out)
    if selection:
        other = next(name for name in SELECTIONS if name != selection)
        errors.print(
            f"The paper's letters and its names of components disagree with the corpus documentation; {selection} is "
            f"one reading, {other} the other."
        )


@app.command()
def speechocean762(
    corpus: Corpus,
    out: Out,
    where: Where = [],
    dev: Annotated[float, typer.Option(help="Percent of the train part, by speaker, for dev.", min=0, max=99)] = 10,
    balance: Balance = "age",
    seed: Seed = 0,
    skip_bad: SkipBad = False,
) -> None:
    """speechocean762, English read by Mandarin speakers, half of them children, with scores of pronunciation."""
    from ssvd.preparation.prepare import Division, prepare_speechocean762

    portions = {"train": 1 - dev / 100, "dev": dev / 100} if dev else {"train": 1.0}
    division = Division(portions, seed, balance)
    with _progress() as tell:
        prepared = prepare_speechocean762(
            corpus, out, where=where, division=division, skip_bad=skip_bad, on_progress=tell
        )
    _report(prepared, out)


@contextmanager
def _progress() -> Iterator[Any]:
    with errors.status("") as status:
        yield lambda doing: status.update(escape(doing))


def _report(prepared: Any, out: Path) -> None:
    list_notes(prepared.notes)
    record = prepared.record
    paper = record["paper"] or {}
    table = Table("part", "utterances", *(["in the paper"] if paper else []), "speakers", "hours", "file")
    table.add_column("texts also in train", justify="right")
    for name, part in record["parts"].items():
        texts = part["texts_also_in_train"]
        table.add_row(
            name,
            f"{part['utterances']:,}",
            *([f"{paper[name]:,}"] if paper else []),
            str(part["speakers"]),
            f"{part['hours']:.2f}",
            str(out / f"{name}.jsonl.gz"),
            "" if texts is None else f"{texts:.0%}",
        )
        if part["speakers_also_in_train"]:
            errors.print(f"{part['speakers_also_in_train']} speakers of {name} are in train too.")
    console.print(table)
    list_skipped([item for item in prepared.left_out if not item.rule])
    for rule, count in record["left_out"].items():
        errors.print(f"left out: {count:,} {rule}", highlight=False)
    if record["left_out"]:
        errors.print(f"Each stands with its reason in {out / 'left_out.jsonl'}.")
    if prepared.already:
        errors.print(f"{out} was prepared with these options before: nothing was done.")
        errors.print(f"Changes inside the folders of a corpus are not noticed; after one, remove {out}/prepared.json.")
