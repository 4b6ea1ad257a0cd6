"""`ssvd prepare`: check corpora, select utterances, and divide them into train, dev and test."""

from collections.abc import Mapping
from typing import Any, ClassVar

import typer

from ssvd_cli.lazy import Entry, LazyGroup

_OTHER = "SOURCE"  # the command for any other corpus, named in the help by what stands in its place


class _Commands(LazyGroup):
    """Commands by the name of a corpus; whatever else comes first is the source of a corpus without a command."""

    table: ClassVar[Mapping[str, Entry]] = {
        _OTHER: Entry(
            "ssvd_cli.prepare.source:source", "Any other corpus: a table, a Kaldi or ESPnet folder, Lhotse cuts, ..."
        ),
        "myst": Entry("ssvd_cli.prepare.myst:myst", "MyST, English of children in grades 3 to 5."),
        "cgn": Entry("ssvd_cli.prepare.cgn:cgn", "Corpus Gesproken Nederlands, Dutch of the Netherlands and Flanders."),
        "speechocean762": Entry(
            "ssvd_cli.prepare.speechocean762:speechocean762",
            "speechocean762, English read by Mandarin speakers, half of them children.",
        ),
    }

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command for any other corpus before a source that is no command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [_OTHER, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    subcommand_metavar="myst|cgn|speechocean762|SOURCE [...] OUT",
    help="Check a corpus, select utterances, and divide them into train, dev and test.\n\nThe same options give the "
    "same division each time. OUT receives train, dev and test as Lhotse cuts, their ids, a list of what was left out "
    "and why, and prepared.json, which states what was done. A second run with the same options does nothing; an "
    "interrupted run continues. If a source has the name of a command, write it with its folder, such as ./myst.",
)


@app.callback()
def _group() -> None:
    pass
