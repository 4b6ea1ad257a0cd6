"""What the commands print with."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape

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


def in_bytes(size: int | None) -> str:
    """A size in words; "" for none."""
    if not size:
        return ""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
