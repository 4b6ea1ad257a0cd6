"""Lists of utterances or recordings, one per line, that a corpus or a part of it is restricted to."""

from collections.abc import Container, Sequence
from pathlib import Path

from ssvd.corpora.readers.text_files import read_lines
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd_options.preparation import PARTS

NOT_LISTED = "not in the list"
__all__ = ["NOT_LISTED", "PARTS", "Listings"]

_SUFFIXES = (".flac", ".wav", ".trn", ".ort", ".ort.gz")


class Listings:
    """Lists given as FILE, which selects from all parts, or as PART=FILE, which states what one part holds.

    A line starts with an id. Folders before it, the suffix of a file, and everything after a blank are ignored.

    Args:
        lists: Names of files, each optionally after `train=`, `dev=` or `test=`.

    Raises:
        UserError: A file cannot be read or is empty, or an id is in the lists of two parts.
    """

    def __init__(self, lists: Sequence[str] = ()) -> None:
        self.files: list[Path] = []
        self._where: dict[str, dict[str, str]] = {}  # part, or "" for all -> id -> file:line
        for item in lists:
            part, equals, file = item.partition("=")
            if not equals or part not in PARTS:
                part, file = "", item
            lines = list(read_lines(Path(file)))
            if not lines:
                raise UserError(f"The list {file} is empty.")
            self.files.append(Path(file))
            ids = self._where.setdefault(part, {})
            for number, line in lines:
                ids.setdefault(_id(line), f"{file}:{number}")
        for part in PARTS:
            for other in PARTS[: PARTS.index(part)]:
                for name in self._where.get(part, {}).keys() & self._where.get(other, {}).keys():
                    places = f"{self._where[other][name]}, and for {part} in {self._where[part][name]}"
                    raise UserError(f"{name} is listed for {other} in {places}; list it for one part only.")

    def __bool__(self) -> bool:
        return bool(self._where)

    def part_of(self, name: str, official: str) -> str | None:
        """Return the part of an utterance or recording; None to leave it out.

        If the corpus has no parts but a list of a part is given, everything that is in no such list is train.

        Args:
            name: The id of the utterance or recording.
            official: The part that its corpus states; "" for none.
        """
        for part in PARTS:
            if name in self._where.get(part, ()):
                return part
        if not official and self._where.keys() & set(PARTS):
            official = "train"
        if (official in self._where and official) or name not in self._where.get("", (name,)):
            return None
        return official

    def lists(self, name: str) -> bool:
        """Return whether an id is in any list."""
        return any(name in ids for ids in self._where.values())

    def missing(self, known: Container[str]) -> list[Skipped]:
        """Return the ids that are listed but not known."""
        return [
            Skipped(where, "the corpus has nothing with this id", name, "listed, not in the corpus")
            for ids in self._where.values()
            for name, where in ids.items()
            if name not in known
        ]


def _id(line: str) -> str:
    name = line.split()[0].replace("\\", "/").rpartition("/")[2]
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)
