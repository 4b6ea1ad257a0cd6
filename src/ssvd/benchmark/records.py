"""What a benchmark leaves behind: everything needed to repeat each cell, and its hypotheses.

`ssvd benchmark` fills a folder file by file, so that it can be killed and continued:

    cells/ID.json            a `Result`: a trained and tested model, or the base model (method "frozen")
    trials/ID.json           a `Trial`: a run at one learning rate, scored on dev only
    failures/ID.json         a `Failure`: what went wrong
    hypotheses/ID/NAME.jsonl texts of the test set ("test") and of each source corpus, a line per utterance

`store_study` turns a finished folder into a few files to publish, always the same bytes for the same results:

    grid.yaml                the grid
    records.jsonl            a heading with the numbers of records and the archive's SHA-256, then a line per record
    hypotheses.tar.xz        the files of hypotheses/

`read_study` reads both.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ssvd.benchmark.archive import pack, unpack
from ssvd.corpora.utterances import Skipped
from ssvd.documents import parse_json, parse_yaml, read_json
from ssvd.errors import UserError, shortened
from ssvd.files import check_new, whole_file, write_json, write_json_lines, write_whole
from ssvd.scoring import Unit

SCHEMA = 1


# Ids and names of corpora are names of files: one that leads out of the folder is refused.
_Name = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=200)]
_Count = Annotated[int, Field(ge=0, le=2**62)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class TestScore(_Record):
    """Error rates on one corpus, as fractions; see `ssvd.scoring.Score`.

    `groups` breaks the score down: field -> value -> a score without groups of its own.
    """

    utterances: _Count
    words: _Count
    wer: float | None
    wer_without_fallback: float | None = None  # of the first search; None where decoding had no fallback
    wer_interval: tuple[float, float] | None
    substitutions: _Count
    deletions: _Count
    insertions: _Count
    cer: float | None
    speakers: _Count | None
    resampled: Unit
    empty_references: _Count
    groups: dict[str, dict[str, "TestScore"]] = {}


class Epoch(_Record):
    """What is known after an epoch, 0 being before training; see `ssvd.adapt`."""

    epoch: _Count
    update: _Count
    seconds: float  # of training until then
    loss: float | None
    dev_wer: float
    dev_cer: float
    learning_rate: float | None
    orthogonality_error: float | None = Field(None, allow_inf_nan=True)  # of a training that went wrong


class Origin(_Record):
    """What a record was computed with."""

    ssvd_schema: int = SCHEMA
    hardware: str
    versions: dict[str, str]
    commit: str | None  # of the source tree, where there is one
    started: str  # ISO 8601, UTC
    seconds: float  # in all: set-up, training, decoding


class Cell(_Record):
    """What is compared with what."""

    model: str  # its name in the grid
    corpus: str  # its name in the grid
    method: str  # key of `ssvd.methods.METHODS`
    budget: str  # as in the grid; "" for the frozen model and full fine-tuning
    seed: _Count


class Trial(_Record):
    """A training run at one learning rate, and its dev error rates."""

    id: _Name
    cell: Cell
    origin: Origin
    options: dict[str, Any]  # of `ssvd adapt`: enough to repeat the run
    synthetic: bool
    setting: float | None  # the method's own number at this budget: p, r, d or b
    trainable_parameters: _Count
    model_parameters: int = Field(gt=0, le=2**62)
    learning_rate: float | None
    series: list[Epoch]
    best_epoch: _Count
    best_dev_wer: float | None  # None for the base model
    training_seconds: float
    peak_memory_bytes: _Count
    adapter_bytes: _Count  # of the weights that are to be stored
    orthogonality_error: float | None = Field(None, allow_inf_nan=True)  # of a training that went wrong


class ScaledScore(_Record):
    """WER of an adapted model at a scale, on the way from the base model; see `ssvd.training.interpolation`."""

    scale: float = Field(gt=0)
    test_wer: float | None  # None if no reference has words
    source_wers: dict[_Name, float | None] = {}


class Result(Trial):
    """A trial at the learning rate that was chosen on dev, with its test scores."""

    search: dict[str, float | None] = {}  # learning rate -> best dev WER; None where the training failed
    normaliser: str
    decoding: dict[str, Any] | None = None  # of the test; see `ssvd.recognisers.decoding.Decoding`
    test: TestScore
    sources: dict[_Name, TestScore] = {}  # corpora of the domain that the model comes from
    scales: list[ScaledScore] = []  # where the grid asks for them
    audio: dict[str, str] = {}  # utterance of the test set -> its file, relative to the results where inside

    @field_validator("search")
    @classmethod
    def _by_rate(cls, search: dict[str, float | None]) -> dict[str, float | None]:
        if not all(math.isfinite(float(rate)) for rate in search):
            raise ValueError("the learning rates must be finite")
        return search


class Failure(_Record):
    """A cell, or a trial, that could not be computed."""

    id: _Name
    cell: Cell
    learning_rate: float | None
    reason: str
    origin: Origin


class Hypothesis(_Record):
    """An utterance as it was said and as it was recognised, not normalised."""

    id: str
    speaker: str | None
    reference: str
    hypothesis: str
    without_fallback: str | None = None  # what the first search found, where that is another text
    fields: dict[str, str | float | int | None] = {}


_R = TypeVar("_R", bound=_Record)
_FOLDERS: dict[type[_Record], str] = {Result: "cells", Trial: "trials", Failure: "failures"}

Texts = Mapping[tuple[str, str], Sequence[Hypothesis]]
"""The hypotheses of a result on a corpus: (id of the result, "test" or a source corpus) -> one per utterance."""

GRID, RECORDS, HYPOTHESES = "grid.yaml", "records.jsonl", "hypotheses.tar.xz"
_RESTORE = "restore the folder from where it came"


@dataclass(frozen=True)
class StudyRecords:
    """All records of a folder of results, each kind in order of ids.

    Attributes:
        results: Finished cells whose hypotheses are there.
        trials: Training runs.
        failures: Cells and trials that could not be computed.
        texts: The hypotheses of every result on the test set and on each source corpus.
        skipped: Files that could not be read.
    """

    results: list[Result]
    trials: list[Trial]
    failures: list[Failure]
    texts: Texts
    skipped: list[Skipped] = field(default_factory=list)


def read_study(folder: Path) -> StudyRecords:
    """Read all records of a folder, whether `ssvd benchmark` is filling it or `store_study` wrote it.

    A benchmark may be unfinished or damaged in places: what cannot be read is skipped and listed. A stored study is
    read as a whole or refused.

    Raises:
        UserError: The folder holds no results, or a stored study is damaged.
    """
    if (folder / RECORDS).is_file():
        return _read_stored(folder)
    cells, skipped = read_results(folder)
    trials, damaged_trials = read_records(folder, Trial)
    failures, damaged_failures = read_records(folder, Failure)
    results: list[Result] = []
    texts: dict[tuple[str, str], list[Hypothesis]] = {}
    for result in cells:
        try:
            texts |= {(result.id, name): read_hypotheses(folder, result, name) for name in _corpora(result)}
        except UserError as error:
            skipped.append(Skipped(f"cells/{result.id}.json", str(error)))
        else:
            results.append(result)
    return StudyRecords(results, trials, failures, texts, [*skipped, *damaged_trials, *damaged_failures])


def store_study(folder: Path, target: Path) -> None:
    """Write the results of a benchmark as the few files of a stored study, without speech, logs and adapters.

    The records are written last: they name the archive by its checksum, so a study that was interrupted is refused by
    `read_study`. Other files of `target` stay.

    Args:
        folder: Folder of `ssvd benchmark`, with every hypothesis of its cells.
        target: Folder to write to; it is made.

    Raises:
        UserError: A record or a file of hypotheses is missing or damaged; nothing is written.
    """
    records = read_study(folder)
    if records.skipped:
        first = records.skipped[0]
        raise UserError(f"{first.where} cannot be stored: {first.reason}")
    if not records.results:
        raise UserError(f"{folder} holds no finished cell: run `ssvd benchmark` until one is finished.")
    grid = _grid_text(folder)
    lines = {(name, corpus): _text_lines(texts) for (name, corpus), texts in records.texts.items()}
    archive = pack({f"{name}/{corpus}.jsonl": text for (name, corpus), text in lines.items()})
    kinds: dict[str, Sequence[_Record]] = {
        "cells": records.results,
        "trials": records.trials,
        "failures": records.failures,
    }
    heading = {
        "ssvd_schema": SCHEMA,
        **{kind: len(members) for kind, members in kinds.items()},
        HYPOTHESES: {"sha256": hashlib.sha256(archive).hexdigest()},
    }
    # The paths of recordings mean nothing elsewhere.
    rows = [
        {kind: member.model_dump(exclude={"audio"}, exclude_unset=True)}
        for kind, members in kinds.items()
        for member in members
    ]
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / GRID, grid)
    with whole_file(target / HYPOTHESES) as file:
        file.write(archive)
    write_json_lines(target / RECORDS, [heading, *rows])


def restore_study(stored: Path, folder: Path) -> None:
    """Write a stored study as a folder of `ssvd benchmark`, which goes on from it.

    Args:
        stored: Folder of a stored study.
        folder: Folder to write to, which must be new or empty.

    Raises:
        UserError: The stored study is damaged, or the folder is not empty.
    """
    check_new(folder)
    study, grid = read_study(stored), _grid_without_comments(stored)
    records: list[Trial | Failure] = [*study.results, *study.trials, *study.failures]
    for record in records:
        path = record_path(folder, type(record), record.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record.model_dump())
    for (name, corpus), hypotheses in study.texts.items():
        write_hypotheses(folder, name, corpus, hypotheses)
    write_whole(folder / GRID, grid)


def _grid_without_comments(stored: Path) -> str:
    """Return the text of a stored grid as a benchmark writes it; the scheduler takes any other for a user's own."""
    try:
        return yaml.safe_dump(parse_yaml(_grid_text(stored)), sort_keys=False)
    except ValueError as error:
        raise UserError(f"{stored / GRID} is not YAML ({error}): {_RESTORE}.") from None


def _grid_text(folder: Path) -> str:
    try:
        return (folder / GRID).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{folder / GRID} cannot be read: copy the folder whole.") from None


def _read_stored(folder: Path) -> StudyRecords:
    path = folder / RECORDS
    try:
        heading, *rows = [parse_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        version, checksum = heading["ssvd_schema"], heading[HYPOTHESES]["sha256"]
        members = [(kind, values, f"{path}: {values['id']}") for row in rows for kind, values in row.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: {_RESTORE}.") from None
    if version != SCHEMA:
        raise UserError(_other_version(path, version))
    results, trials, failures = _stored(members, Result), _stored(members, Trial), _stored(members, Failure)
    found = {"cells": len(results), "trials": len(trials), "failures": len(failures)}
    if any(heading.get(name) != count for name, count in found.items()) or len(members) != sum(found.values()):
        raise UserError(f"{path} lacks records that its first line counts: {_RESTORE}.")
    return StudyRecords(results, trials, failures, _read_archive(folder / HYPOTHESES, checksum, results))


def _stored(members: Sequence[tuple[str, dict[str, Any], str]], kind: type[_R]) -> list[_R]:
    """Return the records of a kind among (name of the kind, fields, source) of all records."""
    return [_checked(values, kind, source, _RESTORE) for name, values, source in members if name == _FOLDERS[kind]]


def _read_archive(path: Path, checksum: str, results: Sequence[Result]) -> Texts:
    """Return the hypotheses of all results from the archive of a stored study."""
    try:
        data = path.read_bytes()
    except OSError:
        raise UserError(f"{path} cannot be read: {_RESTORE}.") from None
    if hashlib.sha256(data).hexdigest() != checksum:
        raise UserError(f"{path} does not have the checksum that {RECORDS} states: {_RESTORE}.")
    try:
        files = unpack(data)
    except ValueError as error:
        raise UserError(f"{path}: {error}: {_RESTORE}.") from None
    texts = {}
    for result in results:
        for corpus in _corpora(result):
            name = f"{result.id}/{corpus}.jsonl"
            try:
                texts[result.id, corpus] = _parse_texts(files[name].decode())
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{path}: {name} cannot be read ({type(error).__name__}): {_RESTORE}.") from None
    return texts


def _corpora(result: Result) -> list[str]:
    """Return the names of the corpora that a result was tested on."""
    return ["test", *result.sources]


def read_results(folder: Path) -> tuple[list[Result], list[Skipped]]:
    """Return all finished cells of a benchmark, in order of their ids, and the files that cannot be read.

    Raises:
        UserError: The folder holds no results.
    """
    if not (folder / "cells").is_dir():
        raise UserError(f"{folder} holds no results: it has neither a folder cells nor a file {RECORDS}.")
    return read_records(folder, Result)


def read_records(folder: Path, kind: type[_R]) -> tuple[list[_R], list[Skipped]]:
    """Return all records of a kind in order of their ids, and the files that cannot be read.

    Args:
        folder: Folder of `ssvd benchmark`.
        kind: `Result`, `Trial` or `Failure`.
    """
    records, skipped = [], []
    for path in sorted((folder / _FOLDERS[kind]).glob("*.json")):
        try:
            records.append(read_record(path, kind))
        except UserError as error:
            skipped.append(Skipped(str(path), str(error)))
    return records, skipped


def read_record(path: Path, kind: type[_R]) -> _R:
    """Return a record from its file.

    Raises:
        UserError: The file is damaged, or of another version.
    """
    try:
        values = read_json(path)
        version = values["origin"].get("ssvd_schema")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete it and run `ssvd benchmark` again.") from None
    if version != SCHEMA:
        raise UserError(_other_version(path, version))
    return _checked(values, kind, str(path), "delete it and run `ssvd benchmark` again")


def _other_version(path: Path, version: object) -> str:
    return f"{path} has version {shortened(version)}, but this program reads {SCHEMA}: install a matching version."


def _checked(values: Mapping[str, Any], kind: type[_R], source: str, remedy: str) -> _R:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{source}: {name}: {first['msg']}; {remedy}.") from None


def record_path(folder: Path, kind: type[_Record], name: str) -> Path:
    """Return the file of a record."""
    return folder / _FOLDERS[kind] / f"{name}.json"


def read_hypotheses(folder: Path, result: Result, corpus: str = "test") -> list[Hypothesis]:
    """Return the texts of the test set, or of a source corpus, in the order in which they were scored.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = hypotheses_path(folder, result.id, corpus)
    try:
        return _parse_texts(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): copy the folder whole.") from error


def _parse_texts(text: str) -> list[Hypothesis]:
    # Not splitlines, which also splits at characters that JSON leaves in texts, such as U+2028.
    return [Hypothesis.model_validate(parse_json(line)) for line in text.split("\n") if line]


def _text_lines(hypotheses: Sequence[Hypothesis]) -> bytes:
    rows = (hypothesis.model_dump(exclude_unset=True) for hypothesis in hypotheses)
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write_hypotheses(folder: Path, name: str, corpus: str, hypotheses: Sequence[Hypothesis]) -> None:
    """Write the texts of a result on a corpus."""
    write_json_lines(hypotheses_path(folder, name, corpus), (h.model_dump() for h in hypotheses))


def hypotheses_path(folder: Path, name: str, corpus: str) -> Path:
    """Return the file of the texts of a result on a corpus."""
    return folder / "hypotheses" / name / f"{corpus}.jsonl"
