"""The interface by which a training or an evaluation reports its progress."""

from typing import IO, Protocol


class Progress(Protocol):
    """What a long computation reports to its caller."""

    def say(self, message: str, *, warning: bool = False) -> None:
        """Report a sentence; `warning` marks one that asks for the user's attention."""

    def advance(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Report how far a stage of the work has come.

        Args:
            stage: Name of the stage; stages may overlap.
            done: Steps done so far; a stage ends when it reaches `total`.
            total: All steps of the stage.
            detail: What else is worth showing, such as the loss.
        """


class Silent:
    """Progress that is not shown."""

    def say(self, message: str, *, warning: bool = False) -> None:
        """Ignore a sentence."""

    def advance(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Ignore how far a stage has come."""


class Log:
    """Progress as lines of a text file: its sentences, without the stages."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def say(self, message: str, *, warning: bool = False) -> None:
        """Write a sentence as a line."""
        print(message, file=self._file, flush=True)

    def advance(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Ignore how far a stage has come."""


SILENT = Silent()
