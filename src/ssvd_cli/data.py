"""Looking at corpora and cutting them up: check, stats, split, select, sample, shards."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from ssvd.errors import UserError
from ssvd_cli.options import Language, SkipBad, Where, Window
from ssvd_cli.parts import write_parts, write_split
from ssvd_cli.terminal import console, errors, list_notes, list_skipped, progress

data = typer.Typer(help="Check corpora, count what they hold, split them, choose from them.", no_args_is_help=True)

Corpora = Annotated[list[str], typer.Argument(help="Tables, Kaldi folders, Lhotse cuts, hf:DATASET, lhotse:RECIPE.")]
Corpus = Annotated[str, typer.Argument(help="A table, a Kaldi folder, Lhotse cuts, hf:DATASET or lhotse:RECIPE.")]
File = Annotated[Path, typer.Argument(help="The file of Lhotse cuts to write: NAME.jsonl.gz.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]


@data.command()
def check(
    corpora: Corpora,
    model: Annotated[str | None, typer.Option(help="Could this checkpoint be trained on them?")] = None,
    window: Window = None,
    language: Language = None,
    audio: Annotated[bool, typer.Option(help="Decode all audio, to its end.")] = True,
    shortest: Annotated[float, typer.Option(min=0, help="Seconds; shorter utterances are named.")] = 0.3,
    longest: Annotated[float, typer.Option(min=0, help="Seconds; longer utterances are named.")] = 30.0,
    rate: Annotated[int | None, typer.Option(min=1, help="Hz; lower sampling rates are named.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all findings; a check that was stopped goes on from there.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; default: as many as cores.")] = os.cpu_count() or 1,
    show: Annotated[int, typer.Option(min=0, help="Examples of each kind.")] = 5,
    as_json: Json = False,
) -> None:
    """Find what is wrong with corpora: audio, texts, speech rates, what is there twice, speakers in two parts.

    Give the parts of one division together. Exit code 1 if an error is among the findings.
    """
    from ssvd.corpora.check.checks import Check, Limits

    load_fault, name = None, ""
    if model is not None:
        from ssvd.recognisers.loading import load_check

        load_fault = partial(load_check, model, window=window, language=language)
        load_fault()  # what is wrong with the model is told here, not in a process of the check
        name = json.dumps([model, window, language])
    limits = Limits(audio=audio, shortest=shortest, longest=longest, sampling_rate=rate)
    with Check(corpora, out, limits=limits, load_fault=load_fault, fault_name=name) as checking:
        list_notes(checking.notes)
        with progress("Checking") as tell:
            checking.run(workers, tell)
        summary = checking.as_dict(show)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        _print_check(summary, out)
    if any(kind["severity"] == "error" for kind in summary["findings"].values()):
        raise typer.Exit(1)


def _print_check(summary: dict[str, Any], out: Path | None) -> None:
    from ssvd.corpora.check.checks import KINDS

    table = Table("corpus", "utterances", "hours", "speakers", "sampling rates", box=box.SIMPLE, pad_edge=False)
    for corpus in summary["corpora"]:
        rates = ", ".join(f"{rate} Hz ({count})" for rate, count in corpus["sampling_rates"].items())
        counts = f"{corpus['utterances']:,}", f"{corpus['hours']:.2f}", f"{corpus['speakers']:,}"
        table.add_row(escape(corpus["name"]), *counts, rates)
    console.print(table)
    for kind, found in summary["findings"].items():
        severity, meaning = KINDS[kind]
        colour = {"error": "red", "warning": "yellow"}[severity]
        console.print(f"[{colour}]{severity}[/] {kind}: {meaning} ({found['count']:,})", highlight=False)
        for example in found["examples"]:
            named = f" {example['id']}" if example["id"] else ""
            detail = f": {example['detail']}" if example["detail"] else ""
            line = f"  {example['where']}{named}{detail}"
            console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
        if found["count"] > len(found["examples"]) > 0:
            where = f" in {out / 'findings.jsonl'}" if out else "; with --out all are written to a file"
            console.print(f"  and {found['count'] - len(found['examples']):,} more{where}", style="dim", markup=False)
    if not summary["findings"]:
        console.print("Nothing was found.")


@data.command()
def stats(
    corpora: Corpora,
    by: Annotated[list[str], typer.Option(help="Field to break down by: 'gender', 'age:6-10,11-15'.")] = [],
    html: Annotated[Path | None, typer.Option(help="Write a page with charts to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Hours, utterances, speakers, words and lengths of corpora, in all and by field."""
    from ssvd.corpora.statistics import corpus_statistics

    with errors.status("Reading") as status:
        found = corpus_statistics(corpora, by, partial(_say_counted, status))
    for one in found:
        list_notes(one.notes)
        list_skipped(one.unusable)
    if html is not None:
        from ssvd.reports.corpus_page import statistics_page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(statistics_page(found), encoding="utf-8")
    if as_json:
        print(json.dumps([one.as_dict() for one in found], indent=2, ensure_ascii=False))
        return
    _print_statistics(found)
    if html is not None:
        console.print(f"{html} is the page; open it in a browser.", highlight=False)


def _say_counted(status: Any, name: str, utterances: int) -> None:
    if utterances % 1000 == 0:
        status.update(f"Reading {escape(name)}: {utterances:,} utterances")


def _print_statistics(found: list[Any]) -> None:
    from ssvd.corpora.statistics import bin_width, binned
    from ssvd.reports.corpus_page import WHOLE, statistics_table
    from ssvd.reports.html import shown

    facts = statistics_table(found)
    heads = [column.head.lower() for column in facts.columns]
    table = Table(heads[0], *heads[2:], box=box.SIMPLE, pad_edge=False)
    for row in facts.rows:
        name, part, *cells = (shown(value, column.spec) for value, column in zip(row, facts.columns, strict=True))
        table.add_row(escape(name if part == WHOLE else f"  {part}"), *cells)
    console.print(table)
    for one in found:
        width = bin_width(one.total.lengths)
        lengths = binned(one.total.lengths, width)
        most = max(lengths.values())
        histogram = Table("seconds", "utterances", "", box=box.SIMPLE, pad_edge=False, title=escape(one.name))
        for start, count in lengths.items():
            histogram.add_row(f"{start:g} to {start + width:g}", f"{count:,}", "█" * round(40 * count / most))
        console.print(histogram)


@data.command()
def split(
    corpus: Corpus,
    out: Annotated[Path, typer.Argument(help="Folder for train, dev and test (Lhotse cuts).")],
    split: Annotated[str, typer.Option(help="Shares of train, dev and test.")] = "80/10/10",
    balance: Annotated[str | None, typer.Option(help="A field, such as age, to spread evenly over the parts.")] = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Split a corpus by speaker, the same way each time, whatever the order of its utterances."""
    write_split(_read(corpus, skip_bad).cuts, out, split, balance, seed)


@data.command()
def select(corpus: Corpus, out: File, where: Where = [], skip_bad: SkipBad = False) -> None:
    """Write the utterances of a corpus that fulfil all conditions."""
    from ssvd.corpora.selection import select as choose

    _check_file(out)
    write_parts({out: choose(_read(corpus, skip_bad).cuts, where)})


@data.command()
def sample(
    corpus: Corpus,
    out: File,
    utterances: Annotated[int | None, typer.Option(min=1, help="How many.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="As many as fit.")] = None,
    by: Annotated[
        str | None, typer.Option(help="A field of which each value keeps its share: 'gender', 'age:6-10,11-15'.")
    ] = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Write utterances of a corpus drawn at random, the same each time, whatever their order."""
    from ssvd.corpora.sampling import sample as draw

    _check_file(out)
    write_parts({out: draw(_read(corpus, skip_bad).cuts, utterances=utterances, hours=hours, by=by, seed=seed)})


@data.command()
def shards(
    corpus: Corpus,
    out: Annotated[Path, typer.Argument(help="Folder to make; `ssvd` reads it as a corpus, and so does Lhotse.")],
    size: Annotated[int, typer.Option(min=1, help="Utterances a shard.")] = 500,
    where: Where = [],
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads; default: as many as cores.")] = os.cpu_count() or 1,
    skip_bad: SkipBad = False,
) -> None:
    """Write the audio of a corpus into a few large files (Lhotse Shar), for storage that is slow with many small ones.

    Training reads each from its start to its end. A call that was stopped goes on when given again.
    """
    from ssvd.corpora.selection import select as choose
    from ssvd.corpora.shar_writing import write_shar

    cuts = choose(_read(corpus, skip_bad).cuts, where)
    with progress("Writing shards") as tell:
        written = write_shar(cuts, out, size=size, seed=seed, workers=workers, on_progress=tell)
    megabytes = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    console.print(f"{out}: {len(cuts):,} utterances in {written} shards, {megabytes:,.1f} MB.", highlight=False)


def _check_file(out: Path) -> None:
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{out} must be a file of Lhotse cuts: name it NAME.jsonl.gz.")


def _read(corpus: str, skip_bad: bool) -> Any:
    from ssvd.corpora.corpus import read_corpus

    found = read_corpus(corpus, skip_bad=skip_bad)
    list_notes(found.notes)
    list_skipped(found.skipped)
    return found
