"""The errors that users meet."""


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
