"""The one error that users meet."""


class UserError(Exception):
    """Something that the user gave is wrong: one sentence that names the file, line or field and what to do.

    The command line prints the sentence and exits with code 2; it never shows a traceback for it.
    """
