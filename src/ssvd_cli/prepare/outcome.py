"""Arguments of the commands that prepare corpora, and what these print."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ssvd_cli.terminal import console, errors, list_notes, list_skipped

if TYPE_CHECKING:
    from ssvd.preparation.prepared_folder import Prepared

CorpusFolder = Annotated[Path, typer.Argument(help="Folder of the corpus.")]


@contextmanager
def preparation_status() -> Iterator[Callable[[str], None]]:
    """Show on a terminal what a preparation is doing, as it is reported to the function that this yields."""
    with errors.status("") as status:
        yield lambda doing: status.update(escape(doing))


def print_outcome(prepared: "Prepared", out: Path) -> None:
    """Print what each part holds, and what was left out."""
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
        errors.print(f"{out / 'left_out.jsonl'} lists each with its reason.")
    if prepared.already:
        errors.print(f"{out} was prepared with these options before: nothing was done.")
        errors.print(f"Changes inside the folders of a corpus are not noticed; after one, remove {out}/prepared.json.")
