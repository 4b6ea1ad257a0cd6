"""`ssvd data stats`."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from ssvd_cli.data.corpus import CorpusNames
from ssvd_cli.options import By, Json
from ssvd_cli.terminal import console, errors, list_notes, list_skipped

if TYPE_CHECKING:
    from ssvd.corpora.statistics import Statistics


def stats(
    corpora: CorpusNames,
    by: By = [],
    html: Annotated[Path | None, typer.Option(help="File for a page with charts.")] = None,
    as_json: Json = False,
) -> None:
    """Count hours, utterances, speakers, words and lengths of corpora."""
    from ssvd.corpora.statistics import corpus_statistics

    with errors.status("Reading") as status:
        statistics = corpus_statistics(corpora, by, partial(_say_counted, status))
    for corpus in statistics:
        list_notes(corpus.notes)
        list_skipped(corpus.unusable)
    if html is not None:
        from ssvd.reports.corpus_page import statistics_page
        from ssvd.reports.html import write_page

        write_page(html, statistics_page(statistics))
    if as_json:
        print(json.dumps([corpus.as_dict() for corpus in statistics], indent=2, ensure_ascii=False))
        return
    _print_table(statistics)
    _print_lengths(statistics)
    if html is not None:
        console.print(f"{html} is the page; open it in a browser.", highlight=False)


def _say_counted(status: Status, name: str, utterances: int) -> None:
    if utterances % 1000 == 0:
        status.update(f"Reading {escape(name)}: {utterances:,} utterances")


def _print_table(statistics: "list[Statistics]") -> None:
    from ssvd.reports.corpus_page import WHOLE, statistics_table
    from ssvd.reports.html import shown

    facts = statistics_table(statistics)
    heads = [column.head.lower() for column in facts.columns]
    table = Table(heads[0], *heads[2:], box=box.SIMPLE, pad_edge=False)
    for row in facts.rows:
        name, part, *cells = (shown(value, column.spec) for value, column in zip(row, facts.columns, strict=True))
        table.add_row(escape(name if part == WHOLE else f"  {part}"), *cells)
    console.print(table)


def _print_lengths(statistics: "list[Statistics]") -> None:
    from ssvd.corpora.statistics import bin_width, binned

    for corpus in statistics:
        width = bin_width(corpus.total.lengths)
        lengths = binned(corpus.total.lengths, width)
        most = max(lengths.values())
        histogram = Table("seconds", "utterances", "", box=box.SIMPLE, pad_edge=False, title=escape(corpus.name))
        for start, count in lengths.items():
            histogram.add_row(f"{start:g} to {start + width:g}", f"{count:,}", "█" * round(40 * count / most))
        console.print(histogram)
