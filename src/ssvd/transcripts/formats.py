"""The formats of transcripts."""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from ssvd.recognisers.words import Segment
from ssvd.transcripts.cues import CHARACTERS, cues


def plain_text(segments: Sequence[Segment]) -> str:
    """Return the text of a recording on one line."""
    return " ".join(segment.timed.text for segment in segments if segment.timed.text)


def as_text(path: Path, segments: Sequence[Segment]) -> str:
    """Return the text of a recording on one line."""
    return plain_text(segments) + "\n"


def as_json(path: Path, segments: Sequence[Segment]) -> str:
    """Return a JSON object on one line: path, text, and segments with times, words and confidence."""
    rows = [_segment(segment) for segment in segments]
    row = {"path": str(path), "text": plain_text(segments), "segments": rows}
    return json.dumps(row, ensure_ascii=False) + "\n"


def as_srt(path: Path, segments: Sequence[Segment]) -> str:
    """Return SubRip subtitles."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_lines(cue.text)}\n"
        for number, cue in enumerate(cues(segments), start=1)
    ]
    return "\n".join(blocks)


def as_vtt(path: Path, segments: Sequence[Segment]) -> str:
    """Return WebVTT subtitles, https://www.w3.org/TR/webvtt1/."""
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{html.escape(_lines(cue.text), quote=False)}\n"
        for cue in cues(segments)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def as_tsv(path: Path, segments: Sequence[Segment]) -> str:
    """Return a table of cues as OpenAI's Whisper writes it: start and end in milliseconds, and text."""
    rows = [f"{_milliseconds(cue.start)}\t{_milliseconds(cue.end)}\t{cue.text}\n" for cue in cues(segments)]
    return "".join(["start\tend\ttext\n", *rows])


Writer = Callable[[Path, Sequence[Segment]], str]
FORMATS: Mapping[str, Writer] = {
    "text": as_text, "json": as_json, "srt": as_srt, "vtt": as_vtt, "tsv": as_tsv
}  # fmt: skip
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}


def _segment(segment: Segment) -> dict[str, Any]:
    timed = segment.timed
    words = [
        {
            "word": word.text,
            "start": _rounded(word.start),
            "end": _rounded(word.end),
            "confidence": _rounded(word.confidence),
        }
        for word in timed.words
    ]
    times = {"start": _rounded(segment.start), "end": _rounded(segment.end)}
    return times | {"text": timed.text, "confidence": _rounded(timed.confidence), "words": words}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _clock(seconds: float, separator: str) -> str:
    """Return a time as 00:01:02,345."""
    minutes, milliseconds = divmod(_milliseconds(seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{separator}{milliseconds % 1000:03}"


def _lines(text: str) -> str:
    """Return a cue's text on lines of half its greatest length."""
    return "\n".join(wrap(text, CHARACTERS // 2))
