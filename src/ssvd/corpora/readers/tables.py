"""Tables of utterances: CSV, TSV and JSON Lines with the columns path, text and others."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssvd.corpora.readers.segment_columns import SegmentColumns, segment_id
from ssvd.corpora.readers.text_files import is_utf8, read_lines, read_text
from ssvd.corpora.utterances import Skipped, Utterance, number_or_text
from ssvd.documents import parse_json
from ssvd.errors import UserError

JsonObject = dict[str, Any]


class Line(NamedTuple):
    """A line of a file, and its place as file:line."""

    where: str
    text: str


class _CsvRow(NamedTuple):
    """The values of a row, and the number of its first line."""

    line: int
    values: list[str]


_KNOWN = {"path", "text", "id", "speaker", "language", "gender"}


def read_csv(path: Path) -> list[Utterance | Skipped]:
    """Read the utterances of a CSV file, or of a TSV file, in which quotes are ordinary characters.

    Raises:
        UserError: The file cannot be read, is not CSV, or lacks a column.
    """
    rows = _csv_rows(path)
    try:
        _, header = next(rows)
    except StopIteration:
        raise UserError(f"{path} is empty; its first line must name the columns.") from None
    if not is_utf8("".join(header)):
        raise UserError(f"{path}:1: the names of the columns are not UTF-8.")
    columns = [name.strip().lower() for name in header]
    segments = _checked_columns(path, columns)
    known = _KNOWN | segments.names
    items: list[Utterance | Skipped] = []
    for line, values in rows:
        where = f"{path}:{line}"
        if not is_utf8("".join(values)):
            items.append(Skipped(where, "the row is not UTF-8"))
        elif len(values) != len(columns):
            items.append(Skipped(where, f"the row has {len(values)} columns, the first line has {len(columns)}"))
        else:
            texts = dict(zip(columns, values, strict=True))
            others = {name: number_or_text(value.strip()) for name, value in texts.items() if name not in known}
            items.append(_utterance(where, path.parent, texts | others, segments))
    return items


def _csv_rows(path: Path) -> Iterator[_CsvRow]:
    """Yield the rows that are not blank."""
    tabs = path.suffix.lower() == ".tsv"
    text = io.StringIO(read_text(path), newline="")
    if tabs:
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(text, strict=True, skipinitialspace=True)
    line = 1
    try:
        for values in reader:
            if any(value.strip() for value in values):
                yield _CsvRow(line, values)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: the row is not CSV ({error}); look for an unpaired quote.") from error


class JsonLines:
    """The lines of a JSON Lines file, gzipped or not, read again by each iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length: int | None = None

    def __iter__(self) -> Iterator[Line]:
        return (Line(f"{self.path}:{number}", line) for number, line in read_lines(self.path))

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in read_lines(self.path))
        return self._length

    def first(self) -> JsonObject | None:
        """Return the first line that is a JSON object."""
        return next((row for _, line in self if isinstance(row := json_object(line), dict)), None)


def json_object(line: str) -> JsonObject | str:
    """Parse the object that a line of JSON holds, or return what is wrong with the line."""
    if not is_utf8(line):
        return "the line is not UTF-8"
    try:
        row = parse_json(line)
    except ValueError as error:
        return f"the line is not JSON ({error})"
    return row if isinstance(row, dict) else "the line is not a JSON object"


def read_jsonl(lines: JsonLines) -> list[Utterance | Skipped]:
    """Read the utterances of a JSON Lines file, in which the keys of the objects are the columns.

    Raises:
        UserError: The file cannot be read, or lacks a column.
    """
    path = lines.path
    rows = ((where, json_object(line)) for where, line in lines)
    lowered = [(where, row if isinstance(row, str) else _lower_keys(row)) for where, row in rows]
    columns = sorted({name for _, row in lowered if not isinstance(row, str) for name in row})
    segments = _checked_columns(path, columns)
    return [
        Skipped(where, row) if isinstance(row, str) else _utterance(where, path.parent, row, segments)
        for where, row in lowered
    ]


def _lower_keys(row: Mapping[str, Any]) -> JsonObject:
    # pandas writes a missing value as NaN, the only value that differs from itself.
    return {name.strip().lower(): value if value == value else None for name, value in row.items()}


def _checked_columns(path: Path, columns: Sequence[str]) -> SegmentColumns:
    """Return the columns that are about segments, after checking that there are a path and a text."""
    missing = [name for name in ("path", "text") if name not in columns]
    if missing:
        present = ", ".join(columns)[:500] or "none"
        raise UserError(f"{path} has no column {' and no '.join(missing)} (found: {present}); rename or add it.")
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(f"{path} has the column {repeated[0]!r} twice; rename one.")
    return SegmentColumns.find(str(path), columns)


def _utterance(where: str, folder: Path, row: Mapping[str, Any], segments: SegmentColumns) -> Utterance | Skipped:
    known = _KNOWN | segments.names

    def text_of(name: str) -> str | None:
        value = row.get(name)
        return None if value is None else str(value).strip() or None

    if nested := [name for name in known if isinstance(row.get(name), dict | list)]:
        return Skipped(where, f"{min(nested)} must be one value")
    path = text_of("path")
    if path is None or not Path(path).name:
        return Skipped(where, "the row has no path to a file")
    try:
        start, duration = segments.segment(text_of)
    except ValueError as error:
        return Skipped(where, str(error))
    default_id = Path(path).with_suffix("").as_posix()
    if start is not None:
        default_id = segment_id(default_id, start)
    return Utterance(
        where=where,
        id=text_of("id") or default_id,
        path=folder.absolute() / path,
        text=text_of("text") or "",
        recording_id=path,
        start=start or 0.0,
        duration=duration,
        speaker=text_of("speaker"),
        language=text_of("language"),
        gender=text_of("gender"),
        fields={
            name: number_or_text(value) if isinstance(value, str) else value
            for name, value in row.items()
            if name not in known and value not in (None, "")
        },
    )
