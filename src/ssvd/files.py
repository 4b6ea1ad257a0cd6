"""Files that survive a kill and a full disk: written whole or not at all, or growing line by line.

Everything that this package writes for a user goes through this module, and nothing of the user's is lost by it: no
output may be an input, and what a command did not write itself is not replaced unless the user named it.
"""

import errno
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel

from ssvd.documents import checked, parse_json
from ssvd.errors import UserError

Row = TypeVar("Row", bound=BaseModel)

_STAGING = ".ssvd-partial"  # the folder in which files wait until all of them are written
_LOCK = ".ssvd-lock"


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write; it replaces what is at `path` only when the block ends without an error."""
    if path.exists() and not path.is_file():  # a device or a pipe stays what it is
        with path.open("wb") as file:
            yield file
        return
    # A name of its own, as a file of the user's, or of another process, may have any other.
    partial = path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; the file is written whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write text; the file is written whole or not at all."""
    with whole_file(path) as file:
        file.write(_encoded(text))


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line; the file is written whole or not at all, and its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.writelines(_encoded(json.dumps(row, ensure_ascii=False) + "\n") for row in rows)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # names of files may not be UTF-8; JSON reads "\\udcb7" as it was


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder to write into; what is written is at `path` only when the block ends without an error.

    Raises:
        UserError: `path` is neither new nor empty; what a killed process left of such a block does not count.
    """
    check_new(path)
    with _staging(path) as staging:
        yield staging
        for part in list(staging.iterdir()):
            part.rename(path / part.name)


def is_new(path: Path, own: str = "") -> bool:
    """Return whether a folder to write does not exist yet, or holds only files whose names match a pattern."""
    return not path.exists() or (path.is_dir() and all(re.fullmatch(own, part.name) for part in path.iterdir()))


def check_new(path: Path) -> None:
    """Refuse a folder to write that is neither new nor empty.

    Raises:
        UserError: It is not.
    """
    if not is_new(path, rf"{re.escape(_STAGING)}|{re.escape(_LOCK)}"):
        raise UserError(f"{path} is not empty: give a new folder.")


@contextmanager
def replaced_files(folder: Path, names: Sequence[str], record: str) -> Iterator[Path]:
    """Make a folder for files that replace those of `folder` together, when the block ends without an error.

    Those of `names` that are not written again are removed.

    Args:
        folder: Where the files go; it is made.
        names: Paths in it, in the order in which they are put there.
        record: The file of it with the SHA-256 of each, by which `check_own` knows them again.

    Raises:
        UserError: As `check_own`.
    """
    check_own(folder, names, record)
    with _staging(folder) as staging:
        yield staging
        new = {name: _sha256(staging / name) for name in names if (staging / name).is_file()}
        former = {name: _sha256(folder / name) for name in names if (folder / name).is_file()}
        # Whenever the process is killed, what is there is known again.
        _write_sums(folder / record, [*former.items(), *new.items()])
        for name in names:
            if name in new:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        _write_sums(folder / record, list(new.items()))


def check_own(folder: Path, names: Sequence[str], record: str) -> None:
    """Check that a command may replace files: that they do not exist, or are as `replaced_files` wrote them.

    Raises:
        UserError: A file is somebody else's, or was changed since.
    """
    foreign, sums = [], set()
    if (folder / record).is_file():
        lines = (folder / record).read_text(encoding="utf-8", errors="replace").splitlines()
        sums = {(digest, name) for digest, _, name in (line.partition("  ") for line in lines)}
        foreign = [] if {name for _, name in sums} <= set(names) else [record]
    for name in names:
        path = folder / name
        if path.exists() and not (path.is_file() and (_sha256(path), name) in sums):
            foreign.append(name)
    if foreign:
        raise UserError(
            f"{folder / foreign[0]} exists already and is not what this command wrote; give another folder, or move "
            "that file."
        )


def check_not_input(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that no file that is to be written is one that is read, by whatever path: links count.

    Raises:
        UserError: One is.
    """
    existing = [path for path in outputs if path.exists()]
    if not existing:
        return
    for source in inputs:
        for path in existing:
            if source.exists() and path.samefile(source):
                raise UserError(
                    f"{path} is read by this command, which would overwrite it; give another file to write."
                )


@contextmanager
def exclusive(folder: Path, lock: str) -> Iterator[None]:
    """Keep other processes out of a folder for as long as the block lasts.

    The folder is made, and removed again if it stays empty.

    Args:
        folder: The folder.
        lock: Name of a file in it that the operating system locks, and unlocks when the process ends.

    Raises:
        UserError: Another process is in it.
    """
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another process works in {folder}: wait for it, or give another folder.") from None
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty, or somebody has removed it
            (folder / lock).unlink()
            if not existed:
                folder.rmdir()
        held.release()


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Make a folder inside of another one, in the same file system, for as long as the block lasts."""
    staging = folder / _STAGING
    with exclusive(folder, _LOCK):
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_sums(path: Path, sums: Sequence[tuple[str, str]]) -> None:
    write_whole(path, "".join(f"{digest}  {name}\n" for name, digest in sums))


class Journal(Generic[Row]):
    """JSON Lines that grow while work is done: a kill loses at most the last line; the next `Journal` reads the rest.

    Args:
        path: The file.
        kind: What each line holds.

    Attributes:
        rows: The rows that were in the file when it was opened.

    Raises:
        UserError: A line is damaged; the file is left as it is.
    """

    def __init__(self, path: Path, kind: type[Row]) -> None:
        data = path.read_bytes() if path.exists() else b""
        end = data.rfind(b"\n") + 1
        if not (data.startswith(b'{"', end) or b'{"'.startswith(data[end:])):  # no line of a journal that was killed
            end = len(data)
        self.rows = [self._row(path, number, line, kind) for number, line in enumerate(data[:end].splitlines(), 1)]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if data else "wb")
        self._file.truncate(end)
        self._file.seek(end)

    @staticmethod
    def _row(path: Path, number: int, line: bytes, kind: type[Row]) -> Row:
        try:
            return checked(kind, parse_json(line))
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: the line is damaged ({error}); remove the file to begin again, or move it away."
            ) from None

    def add(self, row: Row) -> None:
        """Append a row, and hand it to the operating system at once."""
        self._file.write(row.model_dump_json().encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> "Journal[Row]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def is_disk_error(error: Exception) -> bool:
    """Return whether an error means a full disk or quota, or was raised while a library handled such an error."""
    words = ("file write failed", "No space left", "quota exceeded", "File too large")  # torch's and safetensors' own
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if any(word in str(cause) for word in words):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def state_of(path: Path) -> str:
    """Return a hash that changes when the file changes or, for a folder, when a file directly in it changes."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]
