"""`ssvd prepare speechocean762`."""

from typing import Any

import typer

from ssvd_cli import options
from ssvd_cli.model_options import given_options, with_options_of
from ssvd_cli.prepare.outcome import CorpusFolder, preparation_status, print_outcome
from ssvd_options.preparation import Speechocean762Options


@with_options_of(Speechocean762Options)
def speechocean762(context: typer.Context, corpus: CorpusFolder, out: options.OutFolder, **values: Any) -> None:
    """Prepare speechocean762, English read by Mandarin speakers, half of them children, with pronunciation scores."""
    from ssvd.preparation.options import checked_options
    from ssvd.preparation.prepare import prepare_speechocean762

    chosen = checked_options(Speechocean762Options, given_options(context, Speechocean762Options))
    with preparation_status() as report:
        prepared = prepare_speechocean762(corpus, out, chosen, on_progress=report)
    print_outcome(prepared, out)
