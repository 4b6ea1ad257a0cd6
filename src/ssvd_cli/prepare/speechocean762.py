"""`ssvd prepare speechocean762`."""

from typing import Annotated

import typer

from ssvd_cli import options
from ssvd_cli.prepare.outcome import CorpusFolder, preparation_status, print_outcome


def speechocean762(
    corpus: CorpusFolder,
    out: options.OutFolder,
    where: options.Where = [],
    dev: Annotated[
        float, typer.Option(help="Percentage of the corpus's train part to take as dev, by speaker.", min=0, max=99)
    ] = 10,
    balance: options.Balance = "age",
    seed: options.SplitSeed = 0,
    skip_bad: options.SkipBad = False,
) -> None:
    """Prepare speechocean762, English read by Mandarin speakers, half of them children, with pronunciation scores."""
    from ssvd.preparation.prepare import Division, prepare_speechocean762

    shares = {"train": 1 - dev / 100, "dev": dev / 100} if dev else {"train": 1.0}
    division = Division(shares, seed, balance)
    with preparation_status() as report:
        prepared = prepare_speechocean762(
            corpus, out, where=where, division=division, skip_bad=skip_bad, on_progress=report
        )
    print_outcome(prepared, out)
