"""Hugging Face datasets, on the hub or in a folder, read row by row: nothing is downloaded before it is needed.

Audio in separate files is used where it is. Audio inside of a dataset, or on the hub, is written once, unchanged, to
`$SSVD_AUDIO`, by default `~/.local/share/ssvd/audio`, under a name that is made from its content. The cuts refer to
those files: they are data, not a cache.
"""

import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import soundfile

from ssvd.corpora.audio import is_file
from ssvd.corpora.readers.segment_columns import SegmentColumns, segment_id
from ssvd.corpora.sources import Source
from ssvd.corpora.utterances import Skipped, Utterance, number_or_text
from ssvd.errors import UserError
from ssvd.files import whole_file

# The usual names of columns in datasets of speech, the most specific first.
_USUAL = {
    "audio": ("audio", "speech", "file", "path", "file_name", "audio_path", "wav"),
    "text": ("text", "sentence", "transcription", "transcript", "transcripts", "normalized_text", "raw_text", "label"),
    "id": ("id", "utterance_id", "utt_id", "segment_id", "key"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk_id", "speaker_name", "user_id"),
    "language": ("language", "lang", "locale", "lang_id"),
    "gender": ("gender", "sex"),
}
_SEGMENT = ("start", "end", "duration")
_OPTIONS = ("name", "split", "revision", "limit", "store", *_USUAL, *_SEGMENT)
_ROWS_AT_ONCE = 16  # each with its audio
_LONGEST_REASON = 400  # characters of an error of another library


class _Audio(NamedTuple):
    """A file, and the name of the audio in the dataset, which may be empty."""

    path: Path
    name: str


class _Split(NamedTuple):
    """A split: its name, and its data with `features` and rows that are not decoded."""

    name: str
    data: Any


class HuggingFaceRows:
    """The utterances of one split of a Hugging Face dataset, read again by each iteration.

    The source is `hf:NAME?name=CONFIGURATION&split=SPLIT&text=COLUMN`, where NAME is a folder (of Parquet or Arrow
    files, written by `save_to_disk`, or with audio files and a `metadata.csv`) or a dataset on the hub. Options:

    - `name`, `split`, `revision`: those of the dataset; name and split may be omitted if there is only one.
    - `audio`, `text`, `id`, `speaker`, `language`, `gender`: the columns that hold them. Columns that are not given are
      looked for under their usual names, and `notes` says which were used; an empty value (`speaker=`) uses none.
    - `start`, `end`, `duration`: the columns that say, in seconds, which part of its audio an utterance is. They are
      looked for as in `SegmentColumns`, but a duration without a start or an end is a field.
    - `limit`: maximum number of rows.
    - `store`: the folder for audio that is not in a separate file, instead of the usual one.

    Every other column of texts, numbers or classes becomes a field. Without a column of ids, an utterance is named
    after its audio file or, failing that, after the split and row.

    Attributes:
        notes: Which columns are used, as sentences.

    Raises:
        UserError: The library `datasets` is missing, an option is unknown, there is no such dataset, configuration,
            split or column, or it cannot be reached.
    """

    def __init__(self, source: Source) -> None:
        source.require_known(_OPTIONS)
        self._source = source
        self._name = source.name
        self._limit = _row_limit(source)
        self._store = Path(source.value("store") or _default_store())
        self._split, self._data = _load(source)
        self._columns = self._choose_columns()
        self._segments = self._choose_segments()
        of_segments = {role: column for role in _SEGMENT if (column := getattr(self._segments, role)) is not None}
        named = ", ".join(f"{role} = {column}" for role, column in {**self._columns, **of_segments}.items())
        unnamed = any(role not in source.options for role in {**self._columns, **of_segments})
        advice = "; choose others with text=COLUMN" if unnamed else ""
        if any(role not in source.options for role in of_segments):
            advice += ", or with start=&end=&duration= the whole audio"
        self.notes: tuple[str, ...] = (f"hf:{self._name}, split {self._split}: {named}{advice}.",)

    def __iter__(self) -> Iterator[Utterance | Skipped]:
        rows = enumerate(_rows(self._source.text, self._data), start=1)
        return (self._utterance(number, row) for number, row in islice(rows, self._limit))

    def _choose_columns(self) -> dict[str, str]:
        """Return the column of each role that has one."""
        from datasets import Audio

        features = self._data.features or {}
        columns = self._column_names()
        typed = [name for name, feature in features.items() if isinstance(feature, Audio)]
        chosen = {}
        for role, usual in _USUAL.items():
            if role in self._source.options:
                column = self._given(role, columns)
            else:
                likely = [*(typed if role == "audio" else ()), *usual]
                column = next((name for name in likely if name in columns), None)
            if column is not None:
                chosen[role] = column
        for role in ("audio", "text"):
            if role not in chosen:
                raise UserError(
                    f"hf:{self._name} has no column with a usual name for the {role}; give it as {role}=COLUMN. There "
                    f"are {', '.join(columns)}."
                )
        return chosen

    def _column_names(self) -> list[str]:
        # Streams of some formats do not know them.
        return list(self._data.features or {}) or list(next(_rows(self._source.text, self._data), {}))

    def _given(self, role: str, columns: Collection[str]) -> str | None:
        """Return the column that an option names."""
        column = self._source.value(role)
        if column is not None and column not in columns:
            raise UserError(f"hf:{self._name} has no column {column!r}; there are {', '.join(columns)}.")
        return column

    def _choose_segments(self) -> SegmentColumns:
        """Return the columns that are about segments."""
        columns = self._column_names()
        given = {role: self._given(role, columns) for role in _SEGMENT if role in self._source.options}
        if len(given) == len(_SEGMENT):
            return SegmentColumns(**given)
        chosen = {*self._columns.values(), *given.values()}
        try:
            usual = SegmentColumns.find(f"hf:{self._name}", [column for column in columns if column not in chosen])
        except UserError as error:
            raise UserError(f"{error} To use the whole audio instead, add start=&end=&duration= to the name.") from None
        found = replace(usual, **given)
        return found if found.start or found.end or given.get("duration") else SegmentColumns()

    def _utterance(self, number: int, row: dict[str, Any]) -> Utterance | Skipped:
        where = f"hf:{self._name}:{self._split}:{number}"
        values = {name: self._readable(name, value) for name, value in row.items()}
        try:
            path, name = self._audio(row[self._columns["audio"]])
        except (OSError, ValueError) as error:
            return Skipped(where, f"its audio cannot be read ({error})")

        def value_of(column: str) -> str | None:
            value = values.get(column)
            return None if value is None else str(value).strip() or None

        try:
            start, duration = self._segments.segment(value_of)
        except ValueError as error:
            return Skipped(where, str(error))
        used = {*self._columns.values(), *self._segments.names}
        default_id = PurePosixPath(name).with_suffix("").as_posix() if name else ""
        if not default_id or path.is_relative_to(self._store):  # names of files within a dataset are often not unique
            default_id = "-".join(filter(None, (self._split, str(number), default_id)))
        elif start is not None:
            default_id = segment_id(default_id, start)

        def text_of(role: str) -> str | None:
            return value_of(self._columns.get(role, ""))

        return Utterance(
            where=where,
            id=text_of("id") or default_id,
            path=path,
            text=text_of("text") or "",
            recording_id=name or path.stem,
            start=start or 0.0,
            duration=duration,
            speaker=text_of("speaker"),
            language=text_of("language"),
            gender=text_of("gender"),
            fields={
                name.lower(): number_or_text(value.strip()) if isinstance(value, str) else value
                for name, value in values.items()
                if name not in used and isinstance(value, str | int | float) and value != ""
            },
        )

    def _readable(self, column: str, value: Any) -> Any:
        """Return the name of a class, and any other value as it is."""
        names = getattr((self._data.features or {}).get(column), "names", None)
        return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value

    def _audio(self, value: Any) -> _Audio:
        """Return the audio of a row, after writing it to a file if it has none.

        Raises:
            ValueError: There is none.
            OSError: It cannot be read or written.
        """
        if isinstance(value, str):
            value = {"path": value}
        data, name = (value.get("bytes"), value.get("path") or "") if isinstance(value, dict) else (None, "")
        if data is not None:
            return _Audio(_stored(self._store, data, name), name)
        if not name:
            raise ValueError("the column holds neither a file nor the content of one")
        folder = Path(self._name)
        for path in (Path(name), folder / name):
            if is_file(path):
                inside = path.is_relative_to(folder)
                return _Audio(path.absolute(), path.relative_to(folder).as_posix() if inside else path.name)
        if "://" not in name:
            raise ValueError(f"there is no audio file {name}")
        import fsspec

        with fsspec.open(name) as file:
            return _Audio(_stored(self._store, file.read(), name), PurePosixPath(name.partition("::")[0]).name)


def _row_limit(source: Source) -> int | None:
    limit = source.value("limit")
    if limit is not None and not (limit.isdecimal() and int(limit)):
        raise UserError(f"In {source.text}, limit must be a number of rows, 1 or more.")
    return None if limit is None else int(limit)


def _default_store() -> Path:
    return Path(os.environ.get("SSVD_AUDIO") or Path.home() / ".local" / "share" / "ssvd" / "audio")


def _load(source: Source) -> _Split:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "Reading Hugging Face datasets needs the library datasets; install it with: pip install 'ssvd[hf]'"
        ) from None
    folder, split, config = Path(source.name), source.value("split"), source.value("name")
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):  # written by save_to_disk
            data = datasets.load_from_disk(str(folder))
            data = data if isinstance(data, dict) else {str(data.split or "all"): data}
            data = {split: data[split]} if split in data else data
        else:
            data = datasets.load_dataset(
                source.name, config, split=split, revision=source.value("revision"), streaming=True
            )
    except Exception as error:  # files, the hub and the library raise many kinds
        raise UserError(f"{source.text} cannot be read: {_reason(error)}") from error
    if not isinstance(data, dict):
        return _Split(str(split), data)
    if split is not None and split not in data:
        raise UserError(f"{source.text} has no split {split!r}; there is {', '.join(data)}.")
    if len(data) > 1:
        raise UserError(f"{source.text} must name a split, as split={next(iter(data))}; there are {', '.join(data)}.")
    return _Split(*next(iter(data.items())))


def _rows(name: str, data: Any) -> Iterator[dict[str, Any]]:
    # Arrow tables, because rows of Python objects would be decoded by a library that needs FFmpeg.
    tables: Iterable[Any] = iter(data.with_format("arrow").iter(_ROWS_AT_ONCE))
    try:
        for table in tables:
            yield from table.to_pylist()
    except Exception as error:  # as when loading; the rows before it are yielded
        raise UserError(f"{name} cannot be read further: {_reason(error)}") from error


def _stored(folder: Path, data: bytes, name: str) -> Path:
    """Return the file with this content, after writing it if it is missing."""
    digest = hashlib.sha256(data).hexdigest()
    path = folder / digest[:2] / f"{digest}{PurePosixPath(name).suffix.lower() or _suffix(data)}"
    if not (is_file(path) and path.stat().st_size == len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(data)
    return path.absolute()


def _suffix(data: bytes) -> str:
    try:
        return f".{soundfile.info(io.BytesIO(data)).format.lower()}"
    except soundfile.LibsndfileError:
        return ".audio"  # reading the file will say what is wrong with it


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".") + "."
