"""MyST, My Science Tutor: English of children in grades 3 to 5 (LDC2021S05; v0.4.x and v0.3.0 of Boulder Learning).

Layout, marks and rules follow the public documentation and recipes that docs/corpora/myst.md names.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from num2words import num2words
from whisper_normalizer.english import EnglishTextNormalizer

from ssvd.corpora.readers.text_files import read_old_text
from ssvd.corpora.utterances import Skipped, Utterance
from ssvd.errors import UserError
from ssvd.preparation.listings import NOT_LISTED, Listings

# Number of utterances that the paper trains and scores on (arXiv 2509.02830, table II).
PAPER = {"train": 55_703, "dev": 9_047, "test": 10_328}
FEWEST_WORDS = 3
LONGEST = 30.0  # seconds

_PARTITIONS = {"train": "train", "development": "dev", "dev": "dev", "test": "test"}
_STUDENT = re.compile(r"\d{6}")
_DATA = ("", "data", "corpora/myst/data")
# myst_<student>_<date>_<time>_<module>_<investigation>_<number>; dates are not read, since many are year-day-month.
_ID = re.compile(r"(?P<session>.+_(?P<module>[A-Z]+)_[^_]+)_\d+")


@dataclass(frozen=True)
class Rules:
    """Rules for transcripts.

    Attributes:
        summary: The rules in words.
        clean: Turns a transcript into its text.
        words: Returns the number of words, which must be at least `FEWEST_WORDS`, of a transcript and its text.
        longest: Maximum length in seconds by part; other parts have no limit.
    """

    summary: str
    clean: Callable[[str], str]
    words: Callable[[str, str], int]
    longest: Mapping[str, float]


class _Student(NamedTuple):
    """The part that a student is in, "" for none, and the folder of the student."""

    part: str
    folder: Path


class _Files(NamedTuple):
    """The files of an utterance: its audio and its transcript, of which it has at least one."""

    name: str
    audio: Path | None
    transcript: Path | None

    @property
    def where(self) -> str:
        return str(self.audio or self.transcript)


# Default rules

_TYPOGRAPHIC = str.maketrans(dict.fromkeys("’‘ʼ`´‛′", "'"))
_MARKS = (
    r"<[^<>]*>",
    r"\{[^{}]*\}",
    r"\[[^][]*\]",
    r"\+(?=\S)[^+]*(?<=\S)\+",
    r"<\s*(?:(?:side|no)[\s_]+)?\S*",  # without its end, as <NO_SIGNAL, or without its start
    r"\S*>",
)
_MARK = [re.compile(pattern, re.IGNORECASE) for pattern in _MARKS]
_PARENTHESES = re.compile(r"\([^()]*\)")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(?:(st|nd|rd|th)\b|\.(\d+))?", re.IGNORECASE)
_CONTRACTION = re.compile(r"(?<=\w)\s+'(re|s|ll|ve|d|m|t)\b", re.IGNORECASE)
_SIGNS = re.compile(r"(?<![^\W_])'|'(?![^\W_])|[^\w']|_")


def clean(transcript: str) -> str:
    """Return the words of a transcript in lower case; marks are removed, and never join the words around them."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", transcript.translate(_TYPOGRAPHIC)))
    for mark in _MARK:
        text = mark.sub(" ", text)
    text = _without_parentheses(text, " ")
    text = _NUMBER.sub(_in_words, text).replace("&", " and ").replace("/", " slash ")
    return " ".join(_SIGNS.sub(" ", _CONTRACTION.sub(r"'\1", text)).lower().split())


def _without_parentheses(text: str, replacement: str) -> str:
    while (inner := _PARENTHESES.sub(replacement, text)) != text:
        text = inner
    return text


def _in_words(match: re.Match[str]) -> str:
    whole, ordinal, decimals = match.groups()
    digits = whole.replace(",", "")
    words = _spoken(digits, "ordinal" if ordinal else "cardinal")
    if decimals:
        words += " point " + " ".join(map(_spoken, decimals))
    return f" {words} "


def _spoken(digits: str, kind: str = "cardinal") -> str:
    """Spell out a whole number; digit by digit if it starts with 0 or is too long to be said as a number."""
    if len(digits) > 15 or (digits[0] == "0" and len(digits) > 1):
        return " ".join(map(_spoken, digits))
    return str(num2words(int(digits), to=kind))


# The rules of the ESPnet recipe egs2/myst/asr1

_ASCII = str.maketrans("‘’ʼ“”–—", "'''\"\"--")
_ESPNET_CONTRACTION = re.compile(  # the blank inside a contraction
    r"(?<=THEY) (?='(?:RE|VE|LL|D))|(?<=I) (?='(?:M|VE|LL|D))|(?<=YOU) (?='RE)|(?<=HE) (?='S)"
)
_ESPNET_MARKS = re.compile(r"\{[^}]*\}|<[^>]*>|\[[^]]*\]|\+[^+]*\+")


def clean_as_espnet(transcript: str) -> str:
    """Return the text in capitals as the ESPnet recipe does: deletions leave no blank, so "A<UH>B" becomes "AB"."""
    decomposed = unicodedata.normalize("NFKD", transcript.strip().translate(_ASCII))
    text = _without_parentheses(_ESPNET_MARKS.sub("", decomposed.encode("ascii", "ignore").decode()), "")
    text = re.sub(r"\d+", lambda match: _spoken(match[0].lstrip("0") or "0"), text).replace("&", " and ")
    text = re.sub(r"[-_*]", "", text).replace("/", " slash ")
    text = re.sub(r"'(EM|CAUSE)", r"\1", _ESPNET_CONTRACTION.sub("", text))
    return " ".join(re.sub(r"\+U[MH]|[,.?!;:+]", "", text).upper().split())


_WHISPER = EnglishTextNormalizer()

RULES = {
    "default": Rules(
        summary="Material in {} <> [] ++ () and damaged <marks become blanks; numbers, & and / become words; "
        "contractions are joined; other signs become blanks; lower case. Left out: no transcript, an empty one, no "
        "words left, fewer than 3 words, over 30 s in train and dev.",
        clean=clean,
        words=lambda transcript, text: len(text.split()),
        longest={"": LONGEST, "train": LONGEST, "dev": LONGEST},
    ),
    "espnet": Rules(
        summary="As ESPnet's recipe egs2/myst/asr1: marks are deleted without a blank, capitals. Left out: no "
        "transcript, an empty one, no words left, fewer than 3 words after Whisper's normaliser, over 30 s in train "
        "and dev, over 300 s in test.",
        clean=clean_as_espnet,
        words=lambda transcript, text: len(_WHISPER(transcript).split()),
        longest={"": LONGEST, "train": LONGEST, "dev": LONGEST, "test": 300.0},
    ),
}


def read_myst(folder: Path, rules: Rules, listings: Listings) -> list[Utterance | Skipped]:
    """Read the utterances of MyST, by student, session and number.

    Fields are session, module (LS, ME ...) and transcript (as in the .trn file). Utterances that are listed are kept
    whatever their length and number of words, because published lists are already filtered.

    Args:
        folder: The folder of the corpus. In version 0.3.0, utterances have no part.
        rules: Rules for transcripts.
        listings: Lists of utterances.

    Raises:
        UserError: The folder does not hold MyST.
    """
    items: list[Utterance | Skipped] = []
    known: set[str] = set()
    for official_part, student in _students(folder):
        for files in _utterances(student):
            known.add(files.name)
            part = listings.part_of(files.name, official_part)
            if part is None:
                items.append(Skipped(files.where, "it is in none of the lists", files.name, NOT_LISTED))
            else:
                items.append(_utterance(files, student.name, part, rules, listings.lists(files.name)))
    return items + listings.missing(known)


def _utterance(files: _Files, student: str, part: str, rules: Rules, listed: bool) -> Utterance | Skipped:
    name, where = files.name, files.where
    if files.transcript is None:
        return Skipped(where, "there is no .trn file beside it", name, "no transcript")
    if files.audio is None:
        return Skipped(where, "there is no .flac or .wav file beside it", name, "no audio file")
    try:
        transcript = " ".join(read_old_text(files.transcript).split())
    except UserError as error:
        return Skipped(where, str(error).removesuffix("."), name)
    text = rules.clean(transcript)
    words = rules.words(transcript, text)
    if not transcript:
        return Skipped(where, f"{files.transcript.name} is empty", name, "empty transcript")
    if not text:
        return Skipped(where, f"the transcript {transcript!r} holds only marks", name, "no words")
    if words < FEWEST_WORDS and not listed:
        return Skipped(where, f"the transcript {transcript!r} has {words}", name, f"fewer than {FEWEST_WORDS} words")
    fields = {"transcript": transcript}
    if match := _ID.fullmatch(name):
        fields |= match.groupdict()
    return Utterance(
        where=where,
        id=name,
        path=files.audio.absolute(),
        text=text,
        recording_id=name,
        speaker=student,
        language="en",
        fields=fields,
        part=part,
        longest=math.inf if listed else rules.longest.get(part, math.inf),
    )


def _students(folder: Path) -> Iterator[_Student]:
    """Yield the students in order."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.")
    for top in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for data in (top / below for below in _DATA if (top / below).is_dir()):
            partitions = [(part, data / name) for name, part in _PARTITIONS.items() if (data / name).is_dir()]
            students = [
                _Student(part, student)
                for part, partition in partitions or [("", data)]
                for student in sorted(partition.iterdir())
                if _STUDENT.fullmatch(student.name) and student.is_dir()
            ]
            if students:
                yield from students
                return
    raise UserError(
        f"{folder} does not hold MyST: there are no folders of students (6 digits) in data/train, data/development or "
        "data/test, nor in data."
    )


def _utterances(student: Path) -> Iterator[_Files]:
    """Yield the files of the utterances of a student, in order."""
    for session in sorted(path for path in student.iterdir() if path.is_dir()):
        files: dict[str, dict[str, Path]] = {}
        for path in sorted(session.iterdir()):  # .flac comes before the .wav that some recipes leave beside it
            kind = {".flac": "audio", ".wav": "audio", ".trn": "trn"}.get(path.suffix.lower())
            if kind and not path.name.startswith("."):
                files.setdefault(path.stem, {}).setdefault(kind, path)
        yield from (_Files(name, kinds.get("audio"), kinds.get("trn")) for name, kinds in sorted(files.items()))
