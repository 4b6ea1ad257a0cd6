"""Consoles, lists and progress bars that the commands print with."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console()
if not console.is_terminal:
    console.width = 160  # no terminal sets a limit, and tables fold at 80
errors = Console(stderr=True, soft_wrap=True)


def list_notes(notes: Iterable[str]) -> None:
    """Print notes on what was assumed, such as which columns are used."""
    for note in notes:
        errors.print(escape(note), highlight=False)


def list_skipped(skipped: list[Any]) -> None:
    """Name each utterance that was left out, and their number."""
    for item in skipped:
        errors.print(f"left out: {escape(item.where)}: {escape(item.reason)}", highlight=False)
    if skipped:
        errors.print(f"{len(skipped)} utterances were left out.")


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on a terminal; call the result with the steps done and all steps, None if not known."""
    columns = TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


class Bars:
    """Progress of a training or an evaluation on a console: its sentences, and on a terminal a bar for each stage.

    It fulfils `ssvd.training.progress.Progress`; the sentences stand above the bars.
    """

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        self._console = console
        self._bars = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=600,  # decoding between epochs is part of the time that is left
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, message: str, *, warning: bool = False) -> None:
        """Print a sentence."""
        self._console.print(message, style="yellow" if warning else None, markup=False, highlight=False)

    def advance(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar of a stage, which vanishes once the stage is done."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage)
        description = f"{stage}  {detail}" if detail else stage
        self._bars.update(self._tasks[stage], completed=done, total=total, description=description)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(stage))


def prepare_for_training() -> None:
    """Set up this process for training; see `ssvd.training.trainer.prepare_process`."""
    from ssvd.training.trainer import prepare_process

    prepare_process()


def in_bytes(size: int | None) -> str:
    """Return a size in bytes in words; "" for none."""
    if not size:
        return ""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
