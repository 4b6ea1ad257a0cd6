"""Utterances as a table or a Kaldi folder describes them, and the checked Lhotse cuts that are made from them."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lhotse import CutSet, Recording, SupervisionSegment
from pydantic import BaseModel, ConfigDict

from ssvd.corpora.audio import is_file, read_recording
from ssvd.corpora.cut import Cut
from ssvd.corpora.lhotse_fields import RecordingFields
from ssvd.errors import UserError, printable
from ssvd.files import Journal
from ssvd.processes import thread_pool

# Times in transcripts are rounded: a segment may end this many seconds after its recording, and is then clipped.
ROUNDING = 0.1

_READERS = 8  # threads

FieldValue = int | float | str
"""The value of a custom field."""

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,17})(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Skipped:
    """An utterance that is left out; bytes of names that are not UTF-8 are written out.

    Attributes:
        where: The file and row.
        reason: A sentence without its full stop.
        id: The id of the utterance; "" if it is not known.
        rule: The rule of its corpus that leaves it out, such as "no transcript" or "over 30 s"; "" for a bad utterance.
    """

    where: str
    reason: str
    id: str = ""
    rule: str = ""

    def __post_init__(self) -> None:
        for name in ("where", "reason", "id"):
            object.__setattr__(self, name, printable(getattr(self, name)))


@dataclass(frozen=True)
class Corpus:
    """Utterances and what was left out.

    Attributes:
        cuts: One cut with one supervision for each utterance, in the order of the source.
        skipped: The utterances that were left out.
        notes: The assumptions that were made in reading, as sentences.
    """

    cuts: CutSet
    skipped: list[Skipped]
    notes: tuple[str, ...] = ()


class _Header(BaseModel):
    """A line of the file that keeps headers: the state of an audio file, and what its header says."""

    model_config = ConfigDict(extra="forbid")

    state: tuple[str, int, int]  # path, bytes, time of modification in ns
    recording: RecordingFields


class LocatedCut(NamedTuple):
    """A cut with one supervision, and the file and row that describe it."""

    where: str
    cut: Cut


@dataclass(frozen=True)
class Utterance:
    """One utterance as a data file describes it, before its audio is read. Times are in seconds.

    Attributes:
        where: The file and row.
        id: The id of the utterance.
        path: The audio file.
        text: The transcript.
        recording_id: The id of the recording.
        start: Where it starts in the recording.
        duration: Its length; None for the rest of the recording.
        speaker: The speaker, if known.
        language: The language, if known.
        gender: The gender of the speaker, if known.
        fields: All other fields.
        part: train, dev or test if its corpus states that; otherwise "".
        longest: The length above which a rule leaves the utterance out.
    """

    where: str
    id: str
    path: Path
    text: str
    recording_id: str
    start: float = 0.0
    duration: float | None = None
    speaker: str | None = None
    language: str | None = None
    gender: str | None = None
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    part: str = ""
    longest: float = math.inf


def number_or_text(value: str) -> FieldValue:
    """Turn "12" and "1.5" into numbers; leave "0005" (an identifier), "nan", "1e400" and "" as they are."""
    if not _NUMBER.fullmatch(value):
        return value
    number = float(value)
    if math.isinf(number):
        return value
    return number if set(value) & set(".eE") else int(value)


def holds_samples(seconds: float, sampling_rate: int) -> bool:
    """Return whether a segment of this length, in seconds, holds at least one sample; NaN does not."""
    return seconds * sampling_rate > 0.5


def cuts_of(
    utterances: Iterable[Utterance | Skipped],
    cache: Path | None = None,
    *,
    outside: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[LocatedCut | Skipped]:
    """Make a cut of each utterance whose audio is valid; the header of each file is read once.

    Args:
        utterances: Skipped ones are returned as they are.
        cache: A file that keeps the headers read so far, so that an interrupted call can continue.
        outside: The rule that leaves out segments beyond the end of their recording; "" if they are bad.
        on_progress: Called with the number of headers read and the number of all headers.
    """
    utterances = [_with_plain_name(item) for item in utterances]
    paths = {item.path: item.recording_id for item in utterances if isinstance(item, Utterance)}
    with (
        thread_pool(_READERS) as pool,
        Journal(cache, _Header) if cache is not None else nullcontext() as journal,
    ):
        headers = {} if journal is None else _known_headers(paths, journal.rows)
        unread = [path for path in paths if path not in headers]
        # Opening files is mostly waiting, in particular on a network disk.
        for path, header in zip(unread, pool.map(lambda path: _header(path, paths[path]), unread), strict=True):
            headers[path] = header
            if journal is not None and isinstance(header, Recording):
                journal.add(_Header(state=_state(path), recording=RecordingFields(**header.to_dict())))
            if on_progress is not None:
                on_progress(len(headers), len(paths))
    return [item if isinstance(item, Skipped) else _cut(item, headers[item.path], outside) for item in utterances]


def _with_plain_name(item: Utterance | Skipped) -> Utterance | Skipped:
    """Return an utterance, or why it is left out: cuts are stored as UTF-8, and so must be the names of its files."""
    if isinstance(item, Skipped) or all(printable(text) == text for text in (str(item.path), item.id)):
        return item
    return Skipped(item.where, f"the name {item.path} is not UTF-8; rename the file or folder", item.id)


def _known_headers(paths: Iterable[Path], rows: Iterable[_Header]) -> dict[Path, Recording | str]:
    """Return the headers, from rows that were written before, of the files that have not changed since."""
    recordings = {row.state: row.recording for row in rows}
    known = {path: recordings.get(_state(path)) for path in paths if recordings and is_file(path)}
    return {
        path: Recording.from_dict(recording.model_dump(exclude_none=True))
        for path, recording in known.items()
        if recording is not None
    }


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def _header(path: Path, recording_id: str) -> Recording | str:
    try:
        return read_recording(path, recording_id)
    except ValueError as error:
        return str(error)


def _cut(utterance: Utterance, recording: Recording | str, outside: str) -> LocatedCut | Skipped:
    if isinstance(recording, str):
        return Skipped(utterance.where, recording, utterance.id)
    start, whole = utterance.start, recording.duration
    end = whole if utterance.duration is None else start + utterance.duration
    if not (0 <= start < min(end, whole) and end <= whole + ROUNDING):  # written so that NaN is refused too
        reason = f"its segment, {start:g} to {end:g} s, is empty or outside its recording, 0 to {whole:g} s"
        return Skipped(utterance.where, reason, utterance.id, outside)
    duration = round(min(end, whole) - start, 8)
    if not holds_samples(duration, recording.sampling_rate):
        return Skipped(utterance.where, f"its segment from {start:g} s on holds no samples", utterance.id, outside)
    if duration > utterance.longest:
        reason = f"it lasts {duration:.2f} s"
        return Skipped(utterance.where, reason, utterance.id, f"over {utterance.longest:g} s")
    cut = recording.to_cut()
    cut.id, cut.start, cut.duration = utterance.id, start, duration
    cut.supervisions = [
        SupervisionSegment(
            id=utterance.id,
            recording_id=recording.id,
            start=0.0,
            duration=cut.duration,
            channel=cut.channel,
            text=" ".join(utterance.text.split()),
            speaker=utterance.speaker,
            language=utterance.language,
            gender=utterance.gender,
            custom=dict(utterance.fields) or None,
        )
    ]
    return LocatedCut(utterance.where, cut)


def collect(items: Iterable[LocatedCut | Skipped], source: str, notes: Sequence[str] = (), *, skip_bad: bool) -> Corpus:
    """Collect the cuts that have a text and a unique id.

    Raises:
        UserError: An utterance is bad and `skip_bad` is false, or none remains.
    """
    cuts: dict[str, Cut] = {}
    first_seen: dict[str, str] = {}
    skipped: list[Skipped] = []
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        where, cut = item
        if not (cut.supervisions[0].text or "").strip():
            skipped.append(Skipped(where, f"utterance {cut.id} has no text", cut.id))
        elif cut.id in cuts:
            skipped.append(Skipped(where, f"the id {cut.id} is already taken by {first_seen[cut.id]}", cut.id))
        else:
            cuts[cut.id], first_seen[cut.id] = cut, where
    bad = [item for item in skipped if not item.rule]
    total = len(cuts) + len(bad)
    if not cuts and not bad:
        rules = ", ".join(f"{count} {rule}" for rule, count in Counter(item.rule for item in skipped).items())
        left_out = f" that can be used; its rules leave out all of them: {rules}" if rules else ""
        raise UserError(f"{source} holds no utterances{left_out}.")
    if bad and (not skip_bad or not cuts):
        count = f"{len(bad)} of {total} utterances are bad" if len(bad) > 1 else f"1 bad utterance of {total}"
        advice = "" if not cuts else " Correct this, or leave out such utterances with the option skip_bad."
        raise UserError(f"{bad[0].where}: {bad[0].reason} ({count}).{advice}")
    return Corpus(CutSet.from_cuts(cuts.values()), skipped, tuple(notes))
