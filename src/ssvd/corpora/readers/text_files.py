"""Text files as people keep them: with a byte order mark, Windows line ends, a line in another encoding."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssvd.errors import UserError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, gzipped or not. Bytes that are not UTF-8 stay in it, see `is_utf8`.

    Raises:
        UserError: the file cannot be read or is UTF-16.
    """
    with _open(path) as file:
        data = file.read()
    _refuse_utf16(path, data)
    return data.decode("utf-8-sig", errors="surrogateescape")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of the lines that are not blank, one after another; raises as `read_text`."""
    with _open(path) as file:
        # A binary file ends its lines at line feeds alone, text also at Unicode separators inside a sentence.
        for number, data in enumerate(file, start=1):
            if number == 1:
                _refuse_utf16(path, data)
                data = data.removeprefix(codecs.BOM_UTF8)
            line = data.decode("utf-8", errors="surrogateescape").strip("\r\n")
            if line.strip():
                yield number, line


def read_old_text(path: Path) -> str:
    """The text of a file, gzipped or not, of a corpus that is older than UTF-8 everywhere.

    It is UTF-8 or UTF-16 where it is valid as such, else Windows-1252, which has the letters of ISO 8859-1 and the
    typographic apostrophes.

    Raises:
        UserError: the file cannot be read.
    """
    with _open(path) as file:
        data = file.read()
    if data.startswith(_UTF16):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error


def _refuse_utf16(path: Path, start: bytes) -> None:
    if start.startswith(_UTF16):
        raise UserError(f"{path} is UTF-16; save it as UTF-8.")


_NOT_UTF8 = re.compile("[\udc80-\udcff]")


def is_utf8(text: str) -> bool:
    return text.isascii() or not _NOT_UTF8.search(text)
