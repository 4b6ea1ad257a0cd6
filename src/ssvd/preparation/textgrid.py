"""TextGrids of Praat, as text.

No reader on PyPI reads those of CGN as they are (tried with ISO 8859-1, doubled quotes, texts over two lines, and a
truncated file): tgt 1.5 and praat-textgrids 1.4 refuse a text over two lines, textgrid 1.6 and praatio 6.2 only read
UTF-8 and UTF-16, and praatio silently drops the rest of a damaged file.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ssvd.errors import shortened


class Interval(NamedTuple):
    """A span of time, in seconds, and its text."""

    start: float
    end: float
    text: str


class Tier(NamedTuple):
    """A named tier with its intervals, in the order of the file."""

    name: str
    intervals: list[Interval]


# Praat reads separate strings, flags and numbers, and ignores everything else as comments. The long format, which names
# each value, therefore reads like the short one.
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)(<\w+>|[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)|(")')


def parse_textgrid(text: str) -> list[Tier]:
    """Return the interval tiers of a TextGrid in the short or long format.

    Raises:
        ValueError: It is not a TextGrid, or damaged; the message completes "the file ...".
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
        raise ValueError("is cut off: it ends before everything that it announces") from None


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        quoted, plain, stray = match.groups()
        if stray:
            raise ValueError(f"has an unpaired quote in line {text.count(chr(10), 0, match.start()) + 1}")
        yield quoted.replace('""', '"') if quoted is not None else plain


def _tier(tokens: Iterator[str]) -> Tier | None:
    """Read the next tier; return None for a tier of points."""
    kind, name = next(tokens), next(tokens)
    if kind not in ("IntervalTier", "TextTier"):
        raise ValueError(f"has {shortened(kind)} where a tier should begin")
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
        number = float(token)
    except ValueError:
        raise ValueError(f"has {shortened(token)} where a number should be") from None
    if not math.isfinite(number):  # such as 1e999
        raise ValueError(f"has {shortened(token)}, a number beyond all bounds")
    return number
