"""The command `ssvd`: its options and commands, which are imported when they are called."""

import io
import sys
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Annotated, ClassVar

import typer
from rich.markup import escape

from ssvd_cli.errors import in_a_sentence
from ssvd_cli.interrupts import lasting_interrupts
from ssvd_cli.lazy import Entry, LazyGroup
from ssvd_cli.terminal import errors


class _Commands(LazyGroup):
    """All commands, in the order in which they are usually needed."""

    table: ClassVar[Mapping[str, Entry]] = {
        "prepare": Entry(
            "ssvd_cli.prepare:app", "Check a corpus, select utterances, and divide them into train, dev and test."
        ),
        "data": Entry("ssvd_cli.data:app", "Check, count, split, select from and sample corpora."),
        "plan": Entry("ssvd_cli.plan:plan", "Show what each method would train at a budget, and at what cost."),
        "adapt": Entry("ssvd_cli.adapt:adapt", "Fine-tune a recogniser on a corpus."),
        "evaluate": Entry("ssvd_cli.evaluate:evaluate", "Measure the error rates of a model and of its adapters."),
        "transcribe": Entry("ssvd_cli.transcribe:transcribe", "Write down what is said in audio files."),
        "average": Entry("ssvd_cli.average:average", "Average adapted models of one base and method."),
        "merge": Entry("ssvd_cli.merge:merge", "Write an adapted model as a plain checkpoint."),
        "push": Entry("ssvd_cli.push:push", "Publish an adapter or a merged model on the Hugging Face hub."),
        "benchmark": Entry("ssvd_cli.benchmark:benchmark", "Compare methods at their best learning rates."),
        "report": Entry("ssvd_cli.report:report", "Show the results of a benchmark as a page, figures or a table."),
        "demo": Entry("ssvd_cli.demo:demo", "Adapt a small recogniser to synthetic child-like speech."),
    }


app = typer.Typer(
    cls=_Commands,
    help="Adapt speech recognisers to children, dialects and accents with a few percent of their parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: in boxes, long names are cut off at 80 columns
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"ssvd {metadata.version('ssvd')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a mistake of the user is one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may not be UTF-8
    warnings.filterwarnings("ignore", category=FutureWarning)  # such warnings of libraries are for programmers
    try:
        with lasting_interrupts():
            app(prog_name="ssvd")
    except SystemExit as error:
        if error.code == 130:  # Typer's answer to Ctrl-C
            errors.print("Interrupted.")
            sys.exit(2)
        raise
    except Exception as error:
        sentence = in_a_sentence(error)
        if sentence is None:
            raise
        errors.print(f"[red]Error:[/] {escape(sentence)}", highlight=False)
        sys.exit(2)
