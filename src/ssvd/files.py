"""Files that survive a kill: written whole or not at all, or growing line by line."""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write; it replaces what is at `path` only when the block ends without an error."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; the file is written whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write text; the file is written whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line; the file is written whole or not at all, and its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


class Journal:
    """JSON Lines that grow while work is done: a kill loses at most the last line; the next `Journal` reads the rest.

    Attributes:
        rows: The rows that were in the file when it was opened.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if data else "wb")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, and hand it to the operating system at once."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def is_disk_error(error: Exception) -> bool:
    """Return whether an error means a full disk or quota, whichever library raised it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = ("file write failed", "No space left", "quota exceeded", "File too large")
    return any(word in str(error) for word in words)  # torch's and safetensors' own words


def state_of(path: Path) -> str:
    """Return a hash that changes when the file changes or, for a folder, when a file directly in it changes."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]
