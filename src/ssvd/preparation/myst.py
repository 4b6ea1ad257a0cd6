"""MyST, My Science Tutor: English of children in grades 3 to 5 (LDC2021S05; Boulder Learning's v0.4.x and v0.3.0).

Layout, marks and rules follow the public documentation and recipes that docs/corpora/myst.md names.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from num2words import num2words
from whisper_normalizer.english import EnglishTextNormalizer

from ssvd.corpora.readers.text_files import read_old_text
from ssvd.corpora.utterances import Skipped, Utterance
from ssvd.errors import UserError
from ssvd.preparation.listings import NOT_LISTED, Listings

# Utterances that the paper trains and scores on (arXiv 2509.02830, table II).
PAPER = {"train": 55_703, "dev": 9_047, "test": 10_328}
FEWEST_WORDS = 3
LONGEST = 30.0  # seconds

_PARTITIONS = {"train": "train", "development": "dev", "dev": "dev", "test": "test"}
_STUDENT = re.compile(r"\d{6}")
_DATA = ("", "data", "corpora/myst/data")
# myst_<student>_<date>_<time>_<module>_<investigation>_<number>; dates are never read, many are year-day-month.
_ID = re.compile(r"(?P<session>.+_(?P<module>[A-Z]+)_[^_]+)_\d+")


@dataclass(frozen=True)
class Rules:
    """What becomes of transcripts.

    Attributes:
        told: The rules in words.
        clean: From a transcript to its text.
        words: From a transcript and its text to the number of words that must be at least `FEWEST_WORDS`.
        longest: Seconds by part; parts that it lacks have no limit.
    """

    told: str
    clean: Callable[[str], str]
    words: Callable[[str, str], int]
    longest: Mapping[str, float]


# Default rules

_TYPOGRAPHIC = str.maketrans(dict.fromkeys("’‘ʼ`´‛′", "'"))
_MARKS = (
    r"<[^<>]*>",
    r"\{[^{}]*\}",
    r"\[[^][]*\]",
    r"\+(?=\S)[^+]*(?<=\S)\+",
    r"<\s*(?:(?:side|no)[\s_]+)?\S*",  # without its end, <NO_SIGNAL, or without its start
    r"\S*>",
)
_MARK = [re.compile(pattern, re.IGNORECASE) for pattern in _MARKS]
_PARENTHESES = re.compile(r"\([^()]*\)")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(?:(st|nd|rd|th)\b|\.(\d+))?", re.IGNORECASE)
_CONTRACTION = re.compile(r"(?<=\w)\s+'(re|s|ll|ve|d|m|t)\b", re.IGNORECASE)
_SIGNS = re.compile(r"(?<![^\W_])'|'(?![^\W_])|[^\w']|_")


def clean(transcript: str) -> str:
    """The words of a transcript in lower case; marks go, and never join the words around them."""
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
    """A whole number in words; digit by digit where it starts with 0 or is longer than people say."""
    if len(digits) > 15 or (digits[0] == "0" and len(digits) > 1):
        return " ".join(map(_spoken, digits))
    return str(num2words(int(digits), to=kind))


# The rules of ESPnet's recipe egs2/myst/asr1

_ASCII = str.maketrans("‘’ʼ“”–—", "'''\"\"--")
_ESPNET_CONTRACTION = re.compile(  # the blank in it
    r"(?<=THEY) (?='(?:RE|VE|LL|D))|(?<=I) (?='(?:M|VE|LL|D))|(?<=YOU) (?='RE)|(?<=HE) (?='S)"
)
_ESPNET_MARKS = re.compile(r"\{[^}]*\}|<[^>]*>|\[[^]]*\]|\+[^+]*\+")


def clean_as_espnet(transcript: str) -> str:
    """The text in capitals as ESPnet's recipe makes it: what it deletes leaves no blank, so "A<UH>B" becomes "AB"."""
    decomposed = unicodedata.normalize("NFKD", transcript.strip().translate(_ASCII))
    text = _without_parentheses(_ESPNET_MARKS.sub("", decomposed.encode("ascii", "ignore").decode()), "")
    text = re.sub(r"\d+", lambda match: _spoken(match[0].lstrip("0") or "0"), text).replace("&", " and ")
    text = re.sub(r"[-_*]", "", text).replace("/", " slash ")
    text = re.sub(r"'(EM|CAUSE)", r"\1", _ESPNET_CONTRACTION.sub("", text))
    return " ".join(re.sub(r"\+U[MH]|[,.?!;:+]", "", text).upper().split())


_WHISPER = EnglishTextNormalizer()

RULES = {
    "default": Rules(
        told="Material in {} <> [] ++ () and damaged <marks become blanks; numbers, & and / become words; contractions "
        "are joined; other signs become blanks; lower case. Left out: no transcript, an empty one, no words left, "
        "fewer than 3 words, over 30 s in train and dev.",
        clean=clean,
        words=lambda transcript, text: len(text.split()),
        longest={"": LONGEST, "train": LONGEST, "dev": LONGEST},
    ),
    "espnet": Rules(
        told="As ESPnet's recipe egs2/myst/asr1: marks are deleted without a blank, capitals. Left out: no transcript, "
        "an empty one, no words left, fewer than 3 words after Whisper's normaliser, over 30 s in train and dev, over "
        "300 s in test.",
        clean=clean_as_espnet,
        words=lambda transcript, text: len(_WHISPER(transcript).split()),
        longest={"": LONGEST, "train": LONGEST, "dev": LONGEST, "test": 300.0},
    ),
}


def read_myst(folder: Path, rules: Rules, listings: Listings) -> list[Utterance | Skipped]:
    """Utterances of MyST, by student, session and number; their `part` is "" in v0.3.0, which has no parts.

    Fields are session, module (LS, ME ...) and transcript (as it is in the .trn file). Utterances that `listings` names
    are kept whatever their length and number of words: published lists are filtered already.

    Raises:
        UserError: The folder does not hold MyST.
    """
    items: list[Utterance | Skipped] = []
    known = set()
    for own, student in _students(folder):
        for name, files in _utterances(student):
            known.add(name)
            where = str(files.get("audio", files.get("trn")))
            part = listings.part_of(name, own)
            if part is None:
                items.append(Skipped(where, "no list that was given has it", name, NOT_LISTED))
            else:
                listed = listings.lists(name)
                items.append(_utterance(name, where, files, student.name, part, rules, listed))
    return items + listings.missing(known)


def _utterance(
    name: str, where: str, files: Mapping[str, Path], student: str, part: str, rules: Rules, listed: bool
) -> Utterance | Skipped:
    if "trn" not in files:
        return Skipped(where, "there is no .trn file beside it", name, "no transcript")
    if "audio" not in files:
        return Skipped(where, "there is no .flac or .wav file beside it", name, "no audio file")
    try:
        transcript = " ".join(read_old_text(files["trn"]).split())
    except UserError as error:
        return Skipped(where, str(error).removesuffix("."), name)
    text = rules.clean(transcript)
    words = rules.words(transcript, text)
    if not transcript:
        return Skipped(where, f"{files['trn'].name} is empty", name, "empty transcript")
    if not text:
        return Skipped(where, f"the transcript {transcript!r} holds marks alone", name, "no words")
    if words < FEWEST_WORDS and not listed:
        return Skipped(where, f"the transcript {transcript!r} has {words}", name, f"fewer than {FEWEST_WORDS} words")
    fields = {"transcript": transcript}
    if match := _ID.fullmatch(name):
        fields |= match.groupdict()
    return Utterance(
        where=where,
        id=name,
        path=files["audio"].absolute(),
        text=text,
        recording_id=name,
        speaker=student,
        language="en",
        fields=fields,
        part=part,
        longest=math.inf if listed else rules.longest.get(part, math.inf),
    )


def _students(folder: Path) -> Iterator[tuple[str, Path]]:
    """(part, folder) of each student, in order."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.")
    for top in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for data in (top / below for below in _DATA if (top / below).is_dir()):
            partitions = [(part, data / name) for name, part in _PARTITIONS.items() if (data / name).is_dir()]
            found = [
                (part, student)
                for part, partition in partitions or [("", data)]
                for student in sorted(partition.iterdir())
                if _STUDENT.fullmatch(student.name) and student.is_dir()
            ]
            if found:
                yield from found
                return
    raise UserError(
        f"{folder} does not hold MyST: there are no folders of students (6 digits) in data/train, data/development or "
        "data/test, nor in data."
    )


def _utterances(student: Path) -> Iterator[tuple[str, dict[str, Path]]]:
    """(id, its files: "audio" and "trn") of a student's utterances, in order."""
    for session in sorted(path for path in student.iterdir() if path.is_dir()):
        files: dict[str, dict[str, Path]] = {}
        for path in sorted(session.iterdir()):  # .flac comes before the .wav that some recipes leave beside it
            kind = {".flac": "audio", ".wav": "audio", ".trn": "trn"}.get(path.suffix.lower())
            if kind and not path.name.startswith("."):
                files.setdefault(path.stem, {}).setdefault(kind, path)
        yield from sorted(files.items())
