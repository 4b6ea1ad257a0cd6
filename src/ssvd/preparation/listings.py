"""Lists of utterances or recordings, one a line: what a corpus, or a part of it, shall hold."""

from collections.abc import Container, Sequence
from pathlib import Path

from ssvd.corpora.readers.text_files import read_lines
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError

PARTS = ("train", "dev", "test")
NOT_LISTED = "not in the list"
_SUFFIXES = (".flac", ".wav", ".trn", ".ort", ".ort.gz")


class Listings:
    """Lists given as FILE, which chooses out of all parts, or as PART=FILE, which says what one part holds.

    A line starts with an id; folders before it and the suffix of a file are ignored, and so is what follows a blank.

    Args:
        given: Names of files, each perhaps after `train=`, `dev=` or `test=`.

    Raises:
        UserError: A file cannot be read or is empty, or an id is in the lists of two parts.
    """

    def __init__(self, given: Sequence[str] = ()) -> None:
        self.files: list[Path] = []
        self._where: dict[str, dict[str, str]] = {}  # part, or "" for all -> id -> file:line
        for item in given:
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
                    raise UserError(f"{name} is listed for {other} in {places}; a part shares nothing with another.")

    def __bool__(self) -> bool:
        return bool(self._where)

    def part_of(self, name: str, own: str) -> str | None:
        """The part of an utterance or recording that by its corpus belongs to `own` ("": none); None to leave it out.

        Where the corpus has no parts but there is a list of one, all that is in no list of a part is train.
        """
        for part in PARTS:
            if name in self._where.get(part, ()):
                return part
        if not own and self._where.keys() & set(PARTS):
            own = "train"
        if (own in self._where and own) or name not in self._where.get("", (name,)):
            return None
        return own

    def lists(self, name: str) -> bool:
        return any(name in ids for ids in self._where.values())

    def missing(self, known: Container[str]) -> list[Skipped]:
        """What is listed and not known."""
        return [
            Skipped(where, "the corpus has nothing of this id", name, "listed, not in the corpus")
            for ids in self._where.values()
            for name, where in ids.items()
            if name not in known
        ]


def _id(line: str) -> str:
    name = line.split()[0].replace("\\", "/").rpartition("/")[2]
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)
