"""`ssvd data check`."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from ssvd_cli.data.corpus import CorpusNames
from ssvd_cli.options import LARGEST, Json, Language, finite
from ssvd_cli.terminal import console, list_notes, progress


def check(
    corpora: CorpusNames,
    model: Annotated[
        str | None, typer.Option(help="Also report utterances that this checkpoint cannot be trained on.")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(callback=finite, help="Length of the model's input in seconds; by default, the model's own."),
    ] = None,
    language: Language = None,
    vocabulary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Symbols of a new head that the checkpoint shall get.")
    ] = None,
    audio: Annotated[bool, typer.Option(help="Decode all audio to its end.")] = True,
    shortest: Annotated[
        float, typer.Option(min=0, callback=finite, help="Report utterances shorter than this, in seconds.")
    ] = 0.3,
    longest: Annotated[
        float, typer.Option(min=0, callback=finite, help="Report utterances longer than this, in seconds.")
    ] = 30.0,
    rate: Annotated[int | None, typer.Option(min=1, help="Report sampling rates below this, in Hz.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all findings, from which an interrupted check continues.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=1024, help="Number of processes.", show_default="number of cores")
    ] = os.cpu_count() or 1,
    show: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Number of examples to print of each kind of finding.")
    ] = 5,
    as_json: Json = False,
) -> None:
    """Find what is wrong with corpora.

    The command checks audio, texts and speech rates, and looks for duplicates and for speakers in two corpora; give the
    parts of one division together. The exit code is 1 if any finding is an error.
    """
    from ssvd.corpora.check import Check, Limits

    load_fault, name = None, ""
    if model is not None:
        from ssvd.recognisers.loading import load_check
        from ssvd.recognisers.vocabulary import Vocabulary

        symbols = None if vocabulary is None else Vocabulary.read(vocabulary)
        load_fault = partial(load_check, model, window=window, language=language, vocabulary=symbols)
        load_fault()  # so that an unusable model is reported here, and not by a process of the check
        name = json.dumps([model, window, language, *([] if symbols is None else symbols.symbols)])
    limits = Limits(audio=audio, shortest=shortest, longest=longest, sampling_rate=rate)
    with Check(corpora, out, limits=limits, load_fault=load_fault, fault_name=name) as checking:
        list_notes(checking.notes)
        with progress("Checking") as report:
            checking.run(workers, report)
        summary = checking.as_dict(show)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        _print_corpora(summary)
        _print_findings(summary, out)
    if any(kind["severity"] == "error" for kind in summary["findings"].values()):
        raise typer.Exit(1)


def _print_corpora(summary: dict[str, Any]) -> None:
    table = Table("corpus", "utterances", "hours", "speakers", "sampling rates", box=box.SIMPLE, pad_edge=False)
    for corpus in summary["corpora"]:
        rates = ", ".join(f"{rate} Hz ({count})" for rate, count in corpus["sampling_rates"].items())
        counts = f"{corpus['utterances']:,}", f"{corpus['hours']:.2f}", f"{corpus['speakers']:,}"
        table.add_row(escape(corpus["name"]), *counts, rates)
    console.print(table)


def _print_findings(summary: dict[str, Any], out: Path | None) -> None:
    from ssvd.corpora.check import KINDS

    for kind, findings in summary["findings"].items():
        severity, meaning = KINDS[kind]
        colour = {"error": "red", "warning": "yellow"}[severity]
        console.print(f"[{colour}]{severity}[/] {kind}: {meaning} ({findings['count']:,})", highlight=False)
        for example in findings["examples"]:
            utterance = f" {example['id']}" if example["id"] else ""
            detail = f": {example['detail']}" if example["detail"] else ""
            line = f"  {example['where']}{utterance}{detail}"
            console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
        more = findings["count"] - len(findings["examples"])
        if findings["examples"] and more:
            where = f" in {out / 'findings.jsonl'}" if out else "; with --out all are written to a file"
            console.print(f"  and {more:,} more{where}", style="dim", markup=False)
    if not summary["findings"]:
        console.print("Nothing was found.")
