"""`ssvd prepare myst`."""

from typing import Any

import typer

from ssvd_cli import options
from ssvd_cli.model_options import given_options, with_options_of
from ssvd_cli.prepare.outcome import CorpusFolder, preparation_status, print_outcome
from ssvd_options.preparation import MystOptions


@with_options_of(MystOptions)
def myst(context: typer.Context, corpus: CorpusFolder, out: options.OutFolder, **values: Any) -> None:
    """Prepare MyST, English of children in grades 3 to 5 (LDC2021S05, versions 0.4.x and 0.3.0)."""
    from ssvd.preparation.options import checked_options
    from ssvd.preparation.prepare import prepare_myst

    chosen = checked_options(MystOptions, given_options(context, MystOptions))
    with preparation_status() as report:
        prepared = prepare_myst(corpus, out, chosen, on_progress=report)
    print_outcome(prepared, out)
