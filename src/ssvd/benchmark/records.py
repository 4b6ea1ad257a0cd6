"""What a cell of a benchmark leaves behind: one JSON with everything needed to repeat it, and its hypotheses.

cells/ID.json            a `Result`: a trained and tested model, or the untouched one (method "frozen")
trials/ID.json           a `Trial`: a run at one learning rate, scored on dev alone
failures/ID.json         a `Failure`: what went wrong
hypotheses/ID/NAME.jsonl texts of the test set ("test") and of each source corpus, a line an utterance
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.files import write_json_lines

SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TestScore(_Record):
    """Error rates on one corpus, as fractions; see `ssvd.scoring.Score`.

    `groups` breaks the score down: field -> value -> a score without groups of its own.
    """

    utterances: int
    words: int
    wer: float | None
    wer_without_fallback: float | None = None  # of the first search; None where decoding had no fallback
    wer_interval: tuple[float, float] | None
    substitutions: int
    deletions: int
    insertions: int
    cer: float | None
    speakers: int | None
    resampled: str
    empty_references: int
    groups: dict[str, dict[str, "TestScore"]] = {}


class Epoch(_Record):
    """What is known after an epoch, 0 being before training; see `ssvd.adapt`."""

    epoch: int
    update: int
    seconds: float  # of training until then
    loss: float | None
    dev_wer: float
    dev_cer: float
    learning_rate: float | None
    orthogonality_error: float | None = None


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
    method: str  # key of `ssvd.methods.table.METHODS`
    budget: str  # as in the grid; "" for the frozen model and full fine-tuning
    seed: int


class Trial(_Record):
    """A training run at one learning rate, and its dev error rates."""

    id: str
    cell: Cell
    origin: Origin
    options: dict[str, Any]  # of `ssvd adapt`: enough to repeat the run
    synthetic: bool
    setting: float | None  # the method's own number at this budget: p, r, d or b
    trainable_parameters: int
    model_parameters: int
    learning_rate: float | None
    series: list[Epoch]
    best_epoch: int
    best_dev_wer: float | None  # None for the untouched model
    training_seconds: float
    peak_memory_bytes: int
    adapter_bytes: int  # of the weights that are to be stored
    orthogonality_error: float | None = None


class Result(Trial):
    """A trial at the learning rate that was chosen on dev, with its test scores."""

    search: dict[str, float | None] = {}  # learning rate -> best dev WER; None where the training failed
    normaliser: str
    decoding: dict[str, Any] | None = None  # of the test; see `ssvd.recognisers.decoding.Decoding`
    test: TestScore
    sources: dict[str, TestScore] = {}  # corpora of the domain that the model comes from
    audio: dict[str, str] = {}  # utterance of the test set -> its file, relative to the results where inside


class Failure(_Record):
    """A cell, or a trial, that could not be computed."""

    id: str
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
_FOLDERS: dict[type, str] = {Result: "cells", Trial: "trials", Failure: "failures"}


def read_results(folder: Path) -> tuple[list[Result], list[Skipped]]:
    """All finished cells of a benchmark, in order of their ids, and the files that are no such.

    Raises:
        UserError: The folder holds no results.
    """
    if not (folder / "cells").is_dir():
        raise UserError(f"{folder} holds no results: it has no folder cells (`ssvd benchmark --out` makes one).")
    return read_records(folder, Result)


def read_records(folder: Path, kind: type[_R]) -> tuple[list[_R], list[Skipped]]:
    """All records of a kind, `Result`, `Trial` or `Failure`, in order of their ids, and the files that are no such."""
    records, skipped = [], []
    for path in sorted((folder / _FOLDERS[kind]).glob("*.json")):
        try:
            records.append(read_record(path, kind))
        except UserError as error:
            skipped.append(Skipped(str(path), str(error)))
    return records, skipped


def read_record(path: Path, kind: type[_R]) -> _R:
    """A record.

    Raises:
        UserError: The file is damaged, or of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["origin"].get("ssvd_schema")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no whole record: delete it, and run `ssvd benchmark` again.") from None
    if found != SCHEMA:
        raise UserError(f"{path} is of version {found}, and this program reads {SCHEMA}: use the program of then.")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {name}: {first['msg']}; delete the file, and run `ssvd benchmark` again.") from None


def record_path(folder: Path, kind: type[_Record], name: str) -> Path:
    """The file of a record."""
    return folder / _FOLDERS[kind] / f"{name}.json"


def read_hypotheses(folder: Path, result: Result, corpus: str = "test") -> list[Hypothesis]:
    """Texts of the test set, or of a source corpus, in the order in which they were scored.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = hypotheses_path(folder, result.id, corpus)
    try:
        # Not splitlines, which also cuts at characters that JSON leaves in texts, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
        return [Hypothesis(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): copy results whole.") from error


def write_hypotheses(folder: Path, name: str, corpus: str, hypotheses: Sequence[Hypothesis]) -> None:
    write_json_lines(hypotheses_path(folder, name, corpus), (h.model_dump() for h in hypotheses))


def hypotheses_path(folder: Path, name: str, corpus: str) -> Path:
    return folder / "hypotheses" / name / f"{corpus}.jsonl"
