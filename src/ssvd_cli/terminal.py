"""What the commands print with."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
if not console.is_terminal:
    console.width = 160  # no terminal sets a limit, and tables fold at 80
errors = Console(stderr=True, soft_wrap=True)


def list_notes(notes: Iterable[str]) -> None:
    """Say what was taken for granted."""
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
    """A bar on a terminal while something is done; it is told what is done, and of how many where that is known."""
    columns = TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def in_bytes(size: int | None) -> str:
    """A size in words; "" for none."""
    if not size:
        return ""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
