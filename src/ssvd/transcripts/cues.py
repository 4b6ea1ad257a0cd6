"""Subtitles: the words of a recording in groups that can be read while they are shown."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ssvd.recognisers.words import Segment

# Usual in broadcasting: two lines of 42 characters, for at most 7 seconds.
CHARACTERS = 84
LONGEST = 7.0
PAUSE = 0.8  # seconds without a word: what follows begins a new cue
SHORTEST = 0.1  # seconds, for words without a length of their own
_SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")


class Cue(NamedTuple):
    """A text to show from one moment to another, in seconds."""

    start: float
    end: float
    text: str


def cues(segments: Iterable[Segment]) -> Iterator[Cue]:
    """Yield subtitles; segments without word times are shown whole, while they last."""
    for segment in segments:
        timed = segment.timed
        said = [
            Cue(word.start, word.end, word.text)
            for word in timed.words
            if word.start is not None and word.end is not None
        ]
        if said:
            for words in _groups(said):
                end = max(words[-1].end, words[0].start + SHORTEST)
                yield Cue(words[0].start, end, " ".join(word.text for word in words))
        elif timed.text:
            yield Cue(segment.start, segment.end, " ".join(timed.text.split()))


def _groups(words: Iterable[Cue]) -> Iterator[list[Cue]]:
    """Yield words that are shown together: until a sentence ends, a pause, or more than can be read."""
    group: list[Cue] = []
    for word in words:
        if group and (
            group[-1].text.endswith(_SENTENCE_ENDS)
            or word.start - group[-1].end > PAUSE
            or word.end - group[0].start > LONGEST
            or sum(len(part.text) + 1 for part in group) + len(word.text) > CHARACTERS
        ):
            yield group
            group = []
        group.append(word)
    if group:
        yield group
