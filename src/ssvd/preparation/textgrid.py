"""Praat's TextGrids, as text.

Read here because no reader on PyPI takes those of CGN as they are (tried with ISO 8859-1, doubled quotes, texts over
two lines, and a file cut off): tgt 1.5 and praat-textgrids 1.4 refuse a text over two lines, textgrid 1.6 and praatio
6.2 read UTF-8 and UTF-16 alone, and praatio drops the rest of a damaged file without a word.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Interval(NamedTuple):
    """A stretch of time, in seconds, and its text."""

    start: float
    end: float
    text: str


class Tier(NamedTuple):
    """Intervals in the order of the file."""

    name: str
    intervals: list[Interval]


# Praat reads strings, flags and numbers that stand alone, and takes all else for a remark; so the long format, which
# names each value, reads as the short one does.
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)(<\w+>|[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)|(")')


def parse_textgrid(text: str) -> list[Tier]:
    """The interval tiers of a TextGrid, short or long.

    Raises:
        ValueError: It is none, or damaged; the message completes "the file ...".
    """
    tokens = _tokens(text)
    try:
        if not next(tokens).startswith("ooTextFile") or next(tokens) != "TextGrid":
            raise ValueError("is not a TextGrid of Praat")
        _number(tokens), _number(tokens)
        if next(tokens) != "<exists>":
            return []
        return [tier for _ in range(int(_number(tokens))) if (tier := _tier(tokens)) is not None]
    except StopIteration:
        raise ValueError("is cut off: it ends before all that it announces") from None


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        quoted, plain, stray = match.groups()
        if stray:
            raise ValueError(f"has a quote without its pair in line {text.count(chr(10), 0, match.start()) + 1}")
        yield quoted.replace('""', '"') if quoted is not None else plain


def _tier(tokens: Iterator[str]) -> Tier | None:
    """The next tier; None for one of points."""
    kind, name = next(tokens), next(tokens)
    if kind not in ("IntervalTier", "TextTier"):
        raise ValueError(f"has {kind!r} where a tier should begin")
    _number(tokens), _number(tokens)
    count = int(_number(tokens))
    if kind == "TextTier":
        for _ in range(count):
            _number(tokens), next(tokens)
        return None
    return Tier(name, [Interval(_number(tokens), _number(tokens), next(tokens)) for _ in range(count)])


def _number(tokens: Iterator[str]) -> float:
    token = next(tokens)
    try:
        return float(token)
    except ValueError:
        raise ValueError(f"has {token!r} where a number should be") from None
