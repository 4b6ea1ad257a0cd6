"""`ssvd benchmark`, and the grids that come with the package."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from ssvd_cli.errors import CommandError
from ssvd_cli.options import Device, finite
from ssvd_cli.shipped import named_file, shipped, shipped_file
from ssvd_cli.terminal import Bars, console, prepare_for_training

_GRIDS = "benchmark/grids"


def benchmark(
    grid: Annotated[
        str | None,
        typer.Argument(metavar="[GRID]", help="What to compare: a YAML file, or the name of a grid that --list shows."),
    ] = None,
    destination: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="With --copy: file or folder to write the grid to.")
    ] = None,
    list_grids: Annotated[bool, typer.Option("--list", help="List the grids that come with the package.")] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Write the grid of that name to a file, for you to edit.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results; an earlier benchmark in it continues.")] = Path(
        "benchmark-results"
    ),
    small: Annotated[
        bool,
        typer.Option(
            "--small", help="Use the grid's small version, if it has one: embedded recogniser, synthetic speech."
        ),
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Repeat what failed before.")] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Keep the adapters of finished cells.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Compute on Ray: 'local', or the address of a cluster whose nodes share the folder --out."),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, callback=finite, help="With --ray: share of a GPU for each cell.")] = 0,
    cpus: Annotated[float, typer.Option(min=0, callback=finite, help="With --ray: number of cores for each cell.")] = 1,
    device: Device = "auto",
) -> None:
    """Compare methods at their best learning rates.

    Learning rates are chosen on dev; then every seed is trained, and tested once.
    """
    if list_grids:
        _print_grids()
        return
    if grid is None:
        raise CommandError("Name a grid: a YAML file, or one of those that ssvd benchmark --list shows.")
    if copy:
        _copy_grid(grid, destination)
        return
    if destination is not None:
        raise CommandError(f"{destination} has no meaning without --copy; name one grid.")
    file = named_file(grid, _GRIDS, "grid")
    from ssvd.benchmark.grid import read_grid
    from ssvd.benchmark.scheduler import run_benchmark

    prepare_for_training()
    read = read_grid(file, small=small)
    execute = None
    if ray is not None:
        from ssvd.benchmark.on_ray import on_ray

        execute = on_ray(ray, gpus, cpus)
    with Bars(console) as progress:
        run_benchmark(read, out, device=device, keep_runs=keep_runs, retry=retry, progress=progress, execute=execute)


def shipped_grids() -> dict[str, Path]:
    """Return the files of the grids that come with the package, by name, without importing the package."""
    return shipped(_GRIDS)


def _print_grids() -> None:
    import yaml

    table = Table("grid", "title", box=box.SIMPLE, pad_edge=False)
    for name, file in shipped_grids().items():
        table.add_row(name, yaml.safe_load(file.read_text(encoding="utf-8"))["title"])
    console.print(table)


def _copy_grid(name: str, destination: Path | None) -> None:
    source, target = shipped_file(name, _GRIDS, "grid"), destination or Path()
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise CommandError(f"{target} exists already; remove it, or name another file.")
    shutil.copyfile(source, target)
    console.print(f"{target} holds the grid {name}; put in your models and corpora.", highlight=False)
