"""`ssvd data`: inspect corpora, and select from them."""

from collections.abc import Mapping
from typing import ClassVar

import typer

from ssvd_cli.lazy import Entry, LazyGroup


class _Commands(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {
        "check": Entry("ssvd_cli.data.check:check", "Find what is wrong with corpora."),
        "stats": Entry("ssvd_cli.data.stats:stats", "Count hours, utterances, speakers, words and lengths of corpora."),
        "split": Entry("ssvd_cli.data.split:split", "Split a corpus by speaker into train, dev and test."),
        "select": Entry("ssvd_cli.data.select:select", "Write the utterances of a corpus that meet all conditions."),
        "sample": Entry("ssvd_cli.data.sample:sample", "Write a random sample of the utterances of a corpus."),
        "shards": Entry("ssvd_cli.data.shards:shards", "Write the audio of a corpus into a few large files."),
    }


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Check, count, split, select from and sample corpora.",
)


@app.callback()
def _group() -> None:
    pass
