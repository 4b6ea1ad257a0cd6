"""The commands of `ssvd`: they parse, call, and print."""

import sys
import warnings
from importlib import metadata
from typing import Annotated

import typer
from rich.markup import escape

from ssvd.errors import UserError
from ssvd_cli.comparison import benchmark, demo, report
from ssvd_cli.data import data
from ssvd_cli.prepare import app as prepare
from ssvd_cli.recognisers import adapt, evaluate, merge, plan, transcribe
from ssvd_cli.terminal import errors

app = typer.Typer(
    help="Adapt speech recognisers to children, dialects and accents with a few percent of their parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"ssvd {metadata.version('ssvd')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


app.add_typer(prepare, name="prepare")
for command in (demo, plan, adapt, evaluate, transcribe, merge, benchmark, report):
    app.command()(command)
app.add_typer(data, name="data")


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries speaking to programmers
    try:
        app(prog_name="ssvd")
    except UserError as error:
        errors.print(f"[red]Error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except OSError as error:  # of a file or folder that the user named, or a full disk
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"[red]Error:[/] {escape(f'{where}{error.strerror}.')}")
        sys.exit(2)
    except SystemExit as error:
        if error.code == 130:  # Typer's answer to Ctrl-C
            errors.print("Interrupted.")
            sys.exit(2)
        raise
