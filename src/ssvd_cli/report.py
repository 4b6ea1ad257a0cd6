"""`ssvd report`."""

from pathlib import Path
from typing import Annotated

import typer

from ssvd_cli.terminal import console


def report(
    results: Annotated[Path, typer.Argument(help="Folder of `ssvd benchmark`, finished or not.")],
    html: Annotated[
        Path, typer.Option(help="Page to write; a browser opens it from disk, without the network.")
    ] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG and PDF.")] = None,
    audio: Annotated[bool, typer.Option(help="Embed the sound of some utterances in the page.")] = True,
    csv: Annotated[bool, typer.Option("--csv", help="Print the main table as CSV instead of writing a page.")] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print the main table as LaTeX instead of writing a page.")
    ] = False,
) -> None:
    """Show the results of a benchmark as a page, figures or a table."""
    from ssvd.reports import page as reports

    if csv or latex:
        print(reports.results_csv(results) if csv else reports.results_latex(results))
        return
    reports.write_report(results, html, audio=audio)
    console.print(f"{html} is the page; open it in a browser.", highlight=False)
    if figures is not None:
        written = reports.write_figures(results, figures)
        console.print(f"{figures} holds {len(written)} figures.", highlight=False)
