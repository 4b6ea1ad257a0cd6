"""`ssvd prepare SOURCE`: any corpus without rules of its own."""

from typing import Annotated

import typer

from ssvd_cli import options
from ssvd_cli.divisions import portions
from ssvd_cli.prepare.outcome import preparation_status, print_outcome


def source(
    source: Annotated[
        str,
        typer.Argument(
            help="Table (CSV, TSV or JSON Lines), Kaldi or ESPnet folder, Lhotse cuts, hf:DATASET or lhotse:RECIPE."
        ),
    ],
    out: options.OutFolder,
    where: options.Where = [],
    split: options.Split = "80/10/10",
    balance: options.Balance = None,
    seed: options.SplitSeed = 0,
    skip_bad: options.SkipBad = False,
) -> None:
    """Prepare any corpus: a table, a Kaldi or ESPnet folder, Lhotse cuts, a Hugging Face dataset, a Lhotse recipe."""
    shares = portions(split)
    from ssvd.preparation.prepare import Division, prepare_source

    division = Division(shares, seed, balance)
    with preparation_status() as report:
        prepared = prepare_source(source, out, where=where, division=division, skip_bad=skip_bad, on_progress=report)
    print_outcome(prepared, out)
