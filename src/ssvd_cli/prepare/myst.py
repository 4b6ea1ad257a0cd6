"""`ssvd prepare myst`."""

from typing import Annotated

import typer

from ssvd_cli import options
from ssvd_cli.divisions import portions
from ssvd_cli.errors import CommandError
from ssvd_cli.prepare.outcome import CorpusFolder, preparation_status, print_outcome


def myst(
    corpus: CorpusFolder,
    out: options.OutFolder,
    rules: Annotated[
        str, typer.Option(help="Rules for texts: default, or espnet (those of its recipe egs2/myst/asr1).")
    ] = "default",
    ids: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="Keep only the utterances of this list; train=FILE restricts one part; repeatable.",
        ),
    ] = [],
    filter_model: Annotated[
        str | None,
        typer.Option(help="Drop utterances that this Whisper decodes with a WER over 50 %: Kid-Whisper's filter."),
    ] = None,
    filter_parts: Annotated[
        str, typer.Option(help="Parts that --filter-model filters, separated by commas.")
    ] = "train,dev,test",
    where: options.Where = [],
    split: Annotated[
        str, typer.Option(help="Percentages of train, dev and test for version 0.3.0, which has no parts.")
    ] = "80/10/10",
    balance: options.Balance = None,
    seed: options.SplitSeed = 0,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 16,
) -> None:
    """Prepare MyST, English of children in grades 3 to 5 (LDC2021S05, versions 0.4.x and 0.3.0)."""
    shares = portions(split)
    from ssvd.preparation.listings import PARTS
    from ssvd.preparation.prepare import Division, prepare_myst

    filtered = filter_parts.split(",")
    if not set(filtered) <= set(PARTS):
        raise CommandError(f"--filter-parts {filter_parts} must name some of train,dev,test.")
    with preparation_status() as report:
        prepared = prepare_myst(
            corpus,
            out,
            rules=rules,
            ids=ids,
            filter_model=filter_model,
            filtered=filtered,
            where=where,
            division=Division(shares, seed, balance),
            skip_bad=skip_bad,
            device=device,
            batch_size=batch_size,
            on_progress=report,
        )
    print_outcome(prepared, out)
