"""`ssvd prepare SOURCE`: any corpus without rules of its own."""

from typing import Annotated, Any

import typer

from ssvd_cli import options
from ssvd_cli.model_options import given_options, with_options_of
from ssvd_cli.prepare.outcome import preparation_status, print_outcome
from ssvd_options.preparation import SourceOptions


@with_options_of(SourceOptions)
def source(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="Table (CSV, TSV or JSON Lines), Kaldi or ESPnet folder, Lhotse cuts, hf:DATASET or lhotse:RECIPE."
        ),
    ],
    out: options.OutFolder,
    **values: Any,
) -> None:
    """Prepare any corpus: a table, a Kaldi or ESPnet folder, Lhotse cuts, a Hugging Face dataset, a Lhotse recipe."""
    from ssvd.preparation.options import checked_options
    from ssvd.preparation.prepare import prepare_source

    chosen = checked_options(SourceOptions, given_options(context, SourceOptions))
    with preparation_status() as report:
        prepared = prepare_source(source, out, chosen, on_progress=report)
    print_outcome(prepared, out)
