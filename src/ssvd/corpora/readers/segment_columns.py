"""The columns of a table that say which part of a recording an utterance is, in seconds."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ssvd.corpora.utterances import ROUNDING
from ssvd.errors import UserError

_ROLES = {
    **dict.fromkeys(("start", "begin", "offset", "onset", "tmin", "xmin"), "start"),
    **dict.fromkeys(("end", "stop", "tmax", "xmax"), "end"),
    "duration": "duration",
}
_SECONDS = {"time", "timestamp", "s", "sec", "secs", "second", "seconds", "in", "segment", "seg", "utterance", "utt"}
_OF_PLACES = {"audio", "clip", "chunk", "speech"}  # with duration, these mean the length of the file
_OTHER_UNITS = set("ms msec msecs milliseconds us ns sample samples frame frames min minutes hh mm ss timecode".split())
_GLUED = re.compile(rf"({'|'.join(_ROLES)})(time|s|sec|secs|seconds|ms|msec|samples?|frames?)")


class Segment(NamedTuple):
    """Where an utterance starts in its recording, and its length, in seconds; None if that is not said."""

    start: float | None
    duration: float | None


@dataclass(frozen=True)
class SegmentColumns:
    """The columns that hold the start, the end and the duration of each utterance; None for one that is missing."""

    start: str | None = None
    end: str | None = None
    duration: str | None = None

    @classmethod
    def find(cls, table: str, columns: Sequence[str]) -> "SegmentColumns":
        """Find the columns by their usual names: start, begin or offset; end or stop; duration.

        Words such as "time" and "segment", or "s" for seconds, may be added: begin_time, segment_end, "stop (s)".

        Args:
            table: Name of the table, for errors.
            columns: Its columns.

        Raises:
            UserError: Two columns say the same, or one that is needed has another unit than seconds.
        """
        found: dict[str, list[str]] = {"start": [], "end": [], "duration": []}
        unclear: dict[str, str] = {}
        for column in columns:
            role, in_seconds = _meaning(column)
            if role is not None and in_seconds:
                found[role].append(column)
            elif role is not None:
                unclear[role] = column
        for role, names in found.items():
            if len(names) > 1:
                one, other = sorted(names)[:2]
                raise UserError(
                    f"{table} has the columns {one} and {other}, and both say the {role} of a segment; remove "
                    "or rename one."
                )
        chosen = cls(**{role: names[0] for role, names in found.items() if names})
        # A duration without a start is a fact about a file, whatever its unit.
        ends = ("end", "duration") if chosen.start is not None else ("end",)
        needed = [*(() if chosen.start else ("start",)), *(() if chosen.end or chosen.duration else ends)]
        for role in needed:
            if role in unclear:
                raise UserError(
                    f"{table} has the column {unclear[role]}, whose unit is not the second; give the {role} of each "
                    f"segment in seconds in a column {role}, or rename the column if it is not about segments."
                )
        return chosen

    @property
    def names(self) -> set[str]:
        """Return the names of the columns that there are."""
        return {name for name in (self.start, self.end, self.duration) if name is not None}

    def segment(self, value_of: Callable[[str], str | None]) -> Segment:
        """Return the segment of a row.

        Args:
            value_of: Returns the value of a column, None if the row has none.

        Raises:
            ValueError: A value is not a number, or the values contradict each other.
        """
        start, end, duration = map(partial(_number, value_of), (self.start, self.end, self.duration))
        if end is None:
            return Segment(start, duration)
        by_end = end - (start or 0.0)
        if duration is not None and not abs(by_end - duration) <= ROUNDING:
            raise ValueError(
                f"the segment lasts {by_end:g} s by the column {self.end} and {duration:g} s by the column "
                f"{self.duration}; correct one, or rename it if it is not about segments"
            )
        return Segment(start, by_end)


def segment_id(recording: str, start: float) -> str:
    """Return the usual id of a segment: the name of its recording, and its start in milliseconds."""
    return f"{recording}-{start * 1000:07.0f}"


def _number(value_of: Callable[[str], str | None], column: str | None) -> float | None:
    value = None if column is None else value_of(column)
    try:
        return None if value is None else float(value)
    except ValueError:
        raise ValueError(f"{column} must be a number, in seconds") from None


def _meaning(column: str) -> tuple[str | None, bool]:
    """Return the role of a column, None for one that is not about segments, and whether its unit is the second."""
    words = re.split(r"[\W_]+", _GLUED.sub(r"\1 \2", column.lower()))
    roles = [_ROLES[word] for word in words if word in _ROLES]
    others = {word for word in words if word and word not in _ROLES}
    if len(roles) != 1:
        return None, False
    known = _SECONDS if roles[0] == "duration" else _SECONDS | _OF_PLACES
    return (roles[0] if others <= known | _OTHER_UNITS else None), not others & _OTHER_UNITS
