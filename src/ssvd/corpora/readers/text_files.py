"""Text files as they occur: with a byte order mark, Windows line ends, or a line in another encoding."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ssvd.errors import UserError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, gzipped or not; bytes that are not UTF-8 are kept, see `is_utf8`.

    Raises:
        UserError: The file cannot be read, or is UTF-16.
    """
    with _open(path) as file:
        data = file.read()
    _refuse_utf16(path, data)
    return data.decode("utf-8-sig", errors="surrogateescape")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line that is not blank.

    Raises:
        UserError: As `read_text`.
    """
    with _open(path) as file:
        # A binary file ends lines only at line feeds; text would also end them at Unicode separators inside a sentence.
        for number, data in enumerate(file, start=1):
            if number == 1:
                _refuse_utf16(path, data)
                data = data.removeprefix(codecs.BOM_UTF8)
            line = data.decode("utf-8", errors="surrogateescape").strip("\r\n")
            if line.strip():
                yield number, line


def read_old_text(path: Path) -> str:
    """Read a file, gzipped or not, of a corpus that is older than the general use of UTF-8.

    It is decoded as UTF-16 if it has a byte order mark, as UTF-8 if that is valid, and otherwise as Windows-1252, which
    has the letters of ISO 8859-1 and typographic apostrophes.

    Raises:
        UserError: The file cannot be read.
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
def _open(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
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
    """Return whether a text that `read_text` or `read_lines` gave was valid UTF-8."""
    return text.isascii() or not _NOT_UTF8.search(text)
