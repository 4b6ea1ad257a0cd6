"""From the utterances that a table or a Kaldi folder describes to checked Lhotse cuts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import CutSet, Recording, SupervisionSegment

from ..errors import UserError
from .audio import read_recording

# Times in transcripts are rounded; a segment may end this many seconds after its recording and is then clipped.
ROUNDING = 0.1

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,17})(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Skipped:
    """An utterance that cannot be used: `where` is file:row, `reason` a sentence without its full stop."""

    where: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """Utterances (one cut with one supervision each, in the order of the source) and those left out."""

    cuts: CutSet
    skipped: list[Skipped]
    notes: tuple[str, ...] = ()  # what reading took for granted, in sentences


@dataclass(frozen=True)
class Utterance:
    """One utterance as a data file describes it, its audio not yet looked at. Times in seconds."""

    where: str
    id: str
    path: Path
    text: str
    recording_id: str
    start: float = 0.0
    duration: float | None = None  # None: until the recording ends
    speaker: str | None = None
    language: str | None = None
    gender: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def number_or_text(value: str) -> int | float | str:
    """12 for "12" and 1.5 for "1.5", but "0005" (an identifier), "nan" and "" as they are."""
    if not _NUMBER.fullmatch(value):
        return value
    return float(value) if set(value) & set(".eE") else int(value)


def cuts_of(utterances: Iterable[Utterance | Skipped]) -> list[tuple[str, Any] | Skipped]:
    """(where, cut) for each utterance whose audio is in order; each file's header is read once."""
    utterances = list(utterances)
    paths = {item.path: item.recording_id for item in utterances if isinstance(item, Utterance)}
    with ThreadPoolExecutor(8) as pool:  # opening files is waiting, most of all on a network disk
        headers = dict(zip(paths, pool.map(_header, paths, paths.values()), strict=True))
    return [item if isinstance(item, Skipped) else _cut(item, headers[item.path]) for item in utterances]


def _header(path: Path, recording_id: str) -> Recording | str:
    try:
        return read_recording(path, recording_id)
    except ValueError as error:
        return str(error)


def _cut(utterance: Utterance, recording: Recording | str) -> tuple[str, Any] | Skipped:
    if isinstance(recording, str):
        return Skipped(utterance.where, recording)
    start, whole = utterance.start, recording.duration
    end = whole if utterance.duration is None else start + utterance.duration
    if not (0 <= start < min(end, whole) and end <= whole + ROUNDING):  # so written, NaN is refused too
        reason = f"its segment, {start:g} to {end:g} s, is empty or outside its recording, 0 to {whole:g} s"
        return Skipped(utterance.where, reason)
    cut = recording.to_cut()
    cut.id, cut.start, cut.duration = utterance.id, start, round(min(end, whole) - start, 8)
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
    return utterance.where, cut


def collect(
    items: Iterable[tuple[str, Any] | Skipped], source: str, notes: Sequence[str] = (), *, skip_bad: bool
) -> Corpus:
    """The corpus of those cuts that have a text and an id of their own.

    Raises:
        UserError: an utterance is bad and `skip_bad` is false, or no good one remains.
    """
    cuts: dict[str, Any] = {}
    first_seen: dict[str, str] = {}
    skipped: list[Skipped] = []
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        where, cut = item
        if not (cut.supervisions[0].text or "").strip():
            skipped.append(Skipped(where, f"utterance {cut.id} has no text"))
        elif cut.id in cuts:
            skipped.append(Skipped(where, f"the id {cut.id} is taken already by {first_seen[cut.id]}"))
        else:
            cuts[cut.id], first_seen[cut.id] = cut, where
    total = len(cuts) + len(skipped)
    if total == 0:
        raise UserError(f"{source} holds no utterances.")
    if skipped and (not skip_bad or not cuts):
        count = f"{len(skipped)} of {total} utterances are bad" if len(skipped) > 1 else f"1 bad utterance of {total}"
        advice = "" if not cuts else " Correct this, or leave such utterances out with --skip-bad."
        raise UserError(f"{skipped[0].where}: {skipped[0].reason} ({count}).{advice}")
    return Corpus(CutSet.from_cuts(cuts.values()), skipped, tuple(notes))
