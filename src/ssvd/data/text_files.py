"""Text files as people keep them: with a byte order mark, Windows line ends, a line in another encoding."""

import gzip
import zlib
from pathlib import Path

from ..errors import UserError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, gzipped or not. Bytes that are not UTF-8 stay in it, see `is_utf8`.

    Raises:
        UserError: the file cannot be read or is UTF-16.
    """
    data = _read_bytes(path)
    if data[:2] in _UTF16:
        raise UserError(f"{path} is UTF-16; save it as UTF-8.")
    return data.decode("utf-8-sig", errors="surrogateescape")


def read_old_text(path: Path) -> str:
    """The text of a file, gzipped or not, of a corpus that is older than UTF-8 everywhere.

    It is UTF-8 or UTF-16 where it is valid as such, else Windows-1252, which has the letters of ISO 8859-1 and the
    typographic apostrophes.

    Raises:
        UserError: the file cannot be read.
    """
    data = _read_bytes(path)
    if data[:2] in _UTF16:
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, line) of the lines that are not blank."""
    # Not str.splitlines, which also splits at Unicode separators inside a sentence.
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.strip("\r")) for number, line in lines if line.strip()]


def is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)
