"""The commands that compare methods: demo, benchmark, report."""

from pathlib import Path
from typing import Annotated

import typer

from ssvd_cli.options import Device
from ssvd_cli.terminal import Bars, console, quiet_lightning


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-results"),
    seed: Annotated[int, typer.Option(help="Of the speech and of the training.")] = 0,
) -> None:
    """Adapt the embedded recogniser to synthetic child-like speech, by SSVD and by LoRA, and show what it gained."""
    from ssvd.demo.demonstration import run_demo

    quiet_lightning()
    with Bars(console) as progress:
        run_demo(out, seed, console, progress)


def benchmark(
    grid: Annotated[Path, typer.Argument(help="What to compare, as YAML; see grids/.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; one that was begun is continued.")] = Path(
        "benchmark-results"
    ),
    small: Annotated[bool, typer.Option("--small", help="On the embedded recogniser and synthetic speech.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Keep the adapters of finished cells.")] = False,
    ray: Annotated[
        str | None, typer.Option(help="Compute on Ray: 'local', or the address of a cluster that shares OUT.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="With --ray: share of a GPU for each cell.")] = 0,
    cpus: Annotated[float, typer.Option(min=0, help="With --ray: cores for each cell.")] = 1,
    device: Device = "auto",
) -> None:
    """Compare methods: learning rates chosen on dev, then every seed trained and tested once."""
    from ssvd.benchmark.grid import read_grid
    from ssvd.benchmark.scheduler import run_benchmark

    quiet_lightning()
    read = read_grid(grid, small=small)
    execute = None
    if ray is not None:
        from ssvd.benchmark.on_ray import on_ray

        execute = on_ray(ray, gpus, cpus)
    run_benchmark(read, out, device=device, keep_runs=keep_runs, retry=retry, console=console, execute=execute)


def report(
    results: Annotated[Path, typer.Argument(help="Folder of `ssvd benchmark`, finished or not.")],
    html: Annotated[Path, typer.Option(help="The page; it opens from disk and asks no network for anything.")] = Path(
        "report.html"
    ),
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG and PDF.")] = None,
    audio: Annotated[bool, typer.Option(help="Put the sound of some utterances into the page.")] = True,
    csv: Annotated[bool, typer.Option("--csv", help="Print the main table as CSV instead.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the main table as LaTeX instead.")] = False,
) -> None:
    """Show the results of a benchmark: one page, and figures for papers."""
    from ssvd.reports import page as reports

    if csv or latex:
        print(reports.results_csv(results) if csv else reports.results_latex(results))
        return
    reports.write_report(results, html, audio=audio)
    console.print(f"{html} is the page; open it in a browser.", highlight=False)
    if figures is not None:
        written = reports.write_figures(results, figures)
        console.print(f"{figures} holds {len(written)} figures.", highlight=False)
