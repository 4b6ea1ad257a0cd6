"""The errors that users meet, and how what they gave is shown in them."""

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


class UserError(Exception):
    """Something that the user gave is wrong: one sentence that names the file, line or field and what to do.

    The command line prints the sentence and exits with code 2; it never shows a traceback for it.
    """


class StoppedError(UserError):
    """Work was stopped from outside, by the user or a full disk, and can be continued.

    Attributes:
        reason: What stopped it.
    """

    def __init__(self, reason: str, how_to_continue: str) -> None:
        super().__init__(reason, how_to_continue)  # both, so that it can be sent from one process to another
        self.reason = reason

    def __str__(self) -> str:
        return "; ".join(self.args)


def shortened(value: object) -> str:
    """Return a value for a message as Python writes it, cut where it is long; any value that a file can hold."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python does not write out numbers of more than 4,300 digits
        return "a number of thousands of digits"


def printable(text: str) -> str:
    """Return a text that can be printed and stored: names of files may hold bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
