"""`ssvd prepare cgn`."""

from typing import Any

import typer

from ssvd_cli import options
from ssvd_cli.model_options import given_options, with_options_of
from ssvd_cli.prepare.outcome import CorpusFolder, preparation_status, print_outcome
from ssvd_cli.terminal import errors
from ssvd_options.preparation import SELECTIONS, CgnOptions


@with_options_of(CgnOptions)
def cgn(context: typer.Context, corpus: CorpusFolder, out: options.OutFolder, **values: Any) -> None:
    """Prepare CGN (Corpus Gesproken Nederlands 2.0.x), Dutch of the Netherlands and Flanders."""
    from ssvd.preparation.options import checked_options
    from ssvd.preparation.prepare import prepare_cgn

    chosen = checked_options(CgnOptions, given_options(context, CgnOptions))
    with preparation_status() as report:
        prepared = prepare_cgn(corpus, out, chosen, on_progress=report)
    print_outcome(prepared, out)
    if chosen.selection is not None:
        other = next(name for name in SELECTIONS if name != chosen.selection)
        errors.print(
            f"The paper's letters and its names of components disagree with the corpus documentation; "
            f"{chosen.selection} is one reading, {other} the other."
        )
