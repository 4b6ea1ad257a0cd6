"""`ssvd adapt`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ssvd_cli.errors import CommandError
from ssvd_cli.model_options import given_options, with_options_of
from ssvd_cli.recipes import print_recipes, read_options
from ssvd_cli.terminal import Bars, console, errors, prepare_for_training
from ssvd_options.adapt import AdaptOptions


@with_options_of(
    AdaptOptions,
    arguments=["model"],
    metavars={
        "model": "[MODEL]",
        "train": "CORPUS",
        "dev": "CORPUS",
        "where": "CONDITION",
        "also_train": "NAME",
        "vocabulary": "FILE",
        "batch_seconds": "NUMBER|auto",
        "augment": "KIND=RANGE",
        "keep": "CORPUS:POINTS",
    },
)
def adapt(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Run folder to write, which must be new or empty.")] = Path("run"),
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file of options by name, such as the config.yaml of another run, or the name of a recipe that "
            "--list shows; options on the command line replace its values.",
        ),
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes that come with the package.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
    **options: Any,
) -> None:
    """Fine-tune a recogniser on a corpus.

    The best adapter by dev WER is stored in OUT/adapter.
    """
    if list_recipes:
        print_recipes()
        return
    given = given_options(context, AdaptOptions)
    if config is not None and resume:
        raise CommandError("--resume takes the options of the run itself: leave out --config.")
    if config is None and not resume:
        _check_named(given)
    from ssvd.adapt import adapt as fine_tune
    from ssvd.errors import StoppedError, UserError
    from ssvd.training.options import checked_options
    from ssvd.training.placement import find_placement
    from ssvd.training.progress import SILENT
    from ssvd.training.run_folder import read_config

    source = ""
    if resume:
        given = read_config(out) | given
    elif config is not None:
        given, source = read_options(config) | given, f"{config}: "
    checked = checked_options(given, source)
    prepare_for_training()
    is_first = find_placement(checked).rank == 0
    with Bars(errors) if is_first else nullcontext(SILENT) as progress:
        try:
            result = fine_tune(checked, out, resume=resume, progress=progress)
        except StoppedError as error:
            raise UserError(f"{error}: ssvd adapt --resume --out {out}") from error
    if not is_first:
        return
    table = Table(show_header=False)
    table.add_row("method", result.method)
    table.add_row("trained parameters", f"{result.trainable_parameters:,} ({result.trainable_share:.2%})")
    table.add_row("dev WER before", f"{result.zero_shot_dev_wer:.1%}")
    table.add_row("dev WER after", f"{result.best_dev_wer:.1%} (epoch {result.best_epoch}, chosen on dev)")
    if result.scale is not None:
        table.add_row("scale", f"{result.scale:g} (chosen on dev)")
    table.add_row("training", f"{result.training_seconds:.0f} s")
    table.add_row("adapter", f"{result.adapter_bytes / 1e6:.2f} MB in {out}")
    console.print(table)


def _check_named(given: dict[str, Any]) -> None:
    if "model" not in given:
        raise CommandError("Name the model to adapt: ssvd adapt MODEL --train CORPUS --out RUN.")
    if "train" not in given:
        raise CommandError("Name the corpus to train on with --train.")
