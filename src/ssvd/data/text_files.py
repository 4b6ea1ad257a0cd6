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
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16; save it as UTF-8.")
    return data.decode("utf-8-sig", errors="surrogateescape")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, line) of the lines that are not blank."""
    # Not str.splitlines, which also splits at Unicode separators inside a sentence.
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.strip("\r")) for number, line in lines if line.strip()]


def is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)
