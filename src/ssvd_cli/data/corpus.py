"""Arguments that name corpora, and the reading of one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssvd_cli.errors import CommandError
from ssvd_cli.terminal import list_notes, list_skipped

if TYPE_CHECKING:
    from ssvd.corpora.utterances import Corpus

CorpusName = Annotated[
    str, typer.Argument(metavar="CORPUS", help="Table, Kaldi folder, Lhotse cuts, hf:DATASET or lhotse:RECIPE.")
]
CorpusNames = Annotated[
    list[str],
    typer.Argument(metavar="CORPUS...", help="Tables, Kaldi folders, Lhotse cuts, hf:DATASET or lhotse:RECIPE."),
]
CutsFile = Annotated[Path, typer.Argument(help="File of Lhotse cuts to write: NAME.jsonl.gz.")]
DrawSeed = Annotated[int, typer.Option(help="Random seed of the draw.")]


def check_cuts_file(out: Path, corpus: str) -> None:
    """Check that a file to write is named as a file of Lhotse cuts, and is not one that the corpus is read from.

    Raises:
        CommandError: It is named otherwise.
        UserError: The corpus is read from it.
    """
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise CommandError(f"{out} must be a file of Lhotse cuts: name it NAME.jsonl.gz.")
    from ssvd.corpora.sources import files_of
    from ssvd.files import check_not_input

    check_not_input([out], files_of(corpus))


def read(corpus: str, skip_bad: bool) -> "Corpus":
    """Read a corpus, and print what was assumed and what was left out."""
    from ssvd.corpora.corpus import read_corpus

    contents = read_corpus(corpus, skip_bad=skip_bad)
    list_notes(contents.notes)
    list_skipped(contents.skipped)
    return contents
