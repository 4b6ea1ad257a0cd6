"""CGN, Corpus Gesproken Nederlands 2.0.x: Dutch of the Netherlands and of Flanders.

Layout, marks and rules follow the public documentation and recipes that docs/corpora/cgn.md names.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ssvd.corpora.audio import is_file
from ssvd.corpora.readers.text_files import read_old_text
from ssvd.corpora.utterances import Skipped, Utterance
from ssvd.errors import UserError
from ssvd.preparation.listings import NOT_LISTED, Listings
from ssvd.preparation.textgrid import Interval, Tier, parse_textgrid

COMPONENTS = "abcdefghijklmno"
VARIETIES = ("nl", "vl")  # the Netherlands, Flanders
# The paper (arXiv 2509.02830) leaves out "c (spontaneous interview), d (discussion), f (telephone)". By the corpus
# documentation c and d are the telephone dialogues; interviews are b and f, discussions f and g.
SELECTIONS = {"paper-letters": "abeghijklmno", "paper-names": "aehijklmno"}
PAPER = {"train": 179_440, "dev": 25_766, "test": 51_615}
PORTIONS: Mapping[str, float] = MappingProxyType({"train": 0.7, "dev": 0.1, "test": 0.2})
LONGEST = 30.0  # seconds
OUTSIDE = "beyond the end of the audio"
RULES = (
    "One utterance for each interval with words of a speaker's tier, cut out of its recording; BACKGROUND and COMMENT "
    "never. Marks behind words go, the words stay; ggg and xxx go; punctuation goes, apostrophes, hyphens, accents and "
    "capitals stay. Left out: no words, over 30 s, beyond the end of the audio by more than 0.1 s, recordings without "
    "audio or annotation."
)

_SPEAKER = re.compile(r"[NV]\d{5}")
_NOT_SPEECH = ("BACKGROUND", "COMMENT")
_UNKNOWN = "UNKNOWN"
_RECORDING = re.compile(r"(f[nv]\d{6})\.(ort|ort\.gz|wav)", re.IGNORECASE)


class _Speaker(NamedTuple):
    gender: str | None = None
    fields: Mapping[str, str | int] = MappingProxyType({})


# Praat writes e acute as \e' where it knows no better.
_PRAAT_LETTER = re.compile(r"\\([A-Za-z])([`'^\",~])")
_PRAAT_ACCENTS = dict(zip("`'^\",~", "\u0300\u0301\u0302\u0308\u0327\u0303", strict=True))
_TYPOGRAPHIC = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))
_SUFFIX = re.compile(r"\*[a-z]\b", re.IGNORECASE)  # *v foreign, *d dialect, *a broken off, *u, *z, *x, *n, *t
_NO_WORD = re.compile(r"(?<!\w)(?:ggg|xxx)(?!\w)", re.IGNORECASE)
_SIGNS = re.compile(r"[^\w'-]|_|(?<!\w)-|-(?!\w)")


def clean(text: str) -> str:
    """The words of an interval: without marks and punctuation, with apostrophes, hyphens, accents and capitals."""
    text = _PRAAT_LETTER.sub(lambda match: match[1] + _PRAAT_ACCENTS[match[2]], text).translate(_TYPOGRAPHIC)
    text = _NO_WORD.sub(" ", _SUFFIX.sub("", unicodedata.normalize("NFC", text)))
    return " ".join(word for word in _SIGNS.sub(" ", text).split() if word.strip("'"))


def read_cgn(
    folder: Path,
    *,
    audio: Path | None = None,
    components: Collection[str] = COMPONENTS,
    varieties: Collection[str] = VARIETIES,
    overlap: bool = True,
    unknown_speakers: bool = False,
    listings: Listings | None = None,
) -> list[Utterance | Skipped]:
    """Utterances of CGN, by component, variety, recording, tier and time; each is a segment of its recording.

    Their `part` is "" unless `listings` give it. Fields are component, variety (nl or vl), overlapped (yes where
    another speaker's interval overlaps) and, of speakers in the table, gender, birth_year, region, speaker_language.

    Args:
        folder: The corpus: the folder with data/ in it, or that folder.
        audio: The folder with the components' folders of audio, where it is not data/audio/wav.
        overlap: Whether utterances that overlap with another speaker are kept.
        unknown_speakers: Whether tiers without a speaker's code are kept, as one speaker for each recording.
        listings: Of recordings.

    Raises:
        UserError: The folder does not hold CGN, or nothing of these components and varieties.
    """
    listings = listings or Listings()
    annotation, sounds = _top(folder, "annot/text/ort"), audio or _top(folder, "audio/wav")
    if annotation is None:
        raise UserError(f"{folder} does not hold CGN: there is no data/annot/text/ort in it.")
    if sounds is None or not sounds.is_dir():
        raise UserError(f"{folder} holds no data/audio/wav; give the folder that holds comp-a and so on with --audio.")
    speakers = _speakers(_top(folder, "meta/text"))
    items: list[Utterance | Skipped] = []
    known, number = set(), 0
    for component in sorted(components):
        for variety in sorted(varieties):
            place = Path(f"comp-{component}", variety)
            annotated, recorded = _recordings(annotation / place), _recordings(sounds / place)
            known |= annotated.keys() | recorded.keys()
            for name in sorted(annotated.keys() | recorded.keys()):
                number += 1
                items += _recording(
                    name,
                    annotated.get(name),
                    recorded.get(name),
                    {"component": component, "variety": variety},
                    speakers,
                    part=listings.part_of(name, ""),
                    overlap=overlap,
                    unknown_speakers=unknown_speakers,
                )
    if not number:
        chosen = f"components {', '.join(sorted(components))} and varieties {', '.join(sorted(varieties))}"
        raise UserError(f"{annotation} holds no recordings of the {chosen}.")
    return items + listings.missing(known)


def _top(folder: Path, below: str) -> Path | None:
    """The folder data/BELOW of the corpus, under whichever name data has."""
    return next((path for name in ("data", "Data", "") if (path := folder / name / below).is_dir()), None)


def _recordings(folder: Path) -> dict[str, Path]:
    """The files of a folder by recording."""
    if not folder.is_dir():
        return {}
    matches = ((_RECORDING.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    return {match[1].lower(): path for match, path in matches if match}


def _recording(
    name: str,
    annotation: Path | None,
    audio: Path | None,
    fields: Mapping[str, str],
    speakers: Mapping[str, _Speaker],
    *,
    part: str | None,
    overlap: bool,
    unknown_speakers: bool,
) -> Iterator[Utterance | Skipped]:
    where = str(annotation or audio)
    if part is None:
        yield Skipped(where, "no list that was given has it", name, f"recordings {NOT_LISTED}")
    elif annotation is None or audio is None:
        missing = "annotation (.ort)" if annotation is None else "audio"
        yield Skipped(where, f"there is no {missing} of {name}", name, f"recordings without {missing}")
    else:
        try:
            tiers = parse_textgrid(read_old_text(annotation))
        except ValueError as error:
            yield Skipped(where, f"the file {error}", name)
            return
        except UserError as error:
            yield Skipped(where, str(error).removesuffix("."), name)
            return
        spoken = [
            Tier(tier.name.strip(), sorted(interval for interval in tier.intervals if interval.text.strip()))
            for tier in tiers
            if tier.name.strip() not in _NOT_SPEECH
        ]
        for tier in spoken:
            others = [other.intervals for other in spoken if other is not tier]
            coded = _SPEAKER.fullmatch(tier.name) is not None
            speaker = speakers.get(tier.name, _Speaker())
            for interval in tier.intervals:
                milliseconds = f"{round(interval.start * 1000):07d}-{round(interval.end * 1000):07d}"
                own = Utterance(
                    where=f"{where}, tier {tier.name}, {interval.start:.3f} s",
                    id=f"{name}-{tier.name if coded else _UNKNOWN}-{milliseconds}",
                    path=audio.absolute(),
                    text=clean(interval.text),
                    recording_id=name,
                    start=interval.start,
                    duration=interval.end - interval.start,
                    speaker=tier.name if coded else f"{_UNKNOWN}-{name}",
                    language="nl",
                    gender=speaker.gender,
                    fields={**fields, **speaker.fields, "overlapped": "yes" if _overlaps(interval, others) else "no"},
                    part=part,
                    longest=LONGEST,
                )
                yield _unless_ruled_out(own, interval, coded or unknown_speakers, overlap)


def _unless_ruled_out(utterance: Utterance, interval: Interval, known: bool, overlap: bool) -> Utterance | Skipped:
    if not known:
        reason, rule = "its tier has no speaker's code", "unknown speaker"
    elif interval.start >= interval.end:
        reason, rule = f"it ends at {interval.end:.3f} s", "ends before it starts"
    elif not utterance.text:
        reason, rule = f"{interval.text!r} holds no word", "no words"
    elif not overlap and utterance.fields["overlapped"] == "yes":
        reason, rule = "another speaker's interval overlaps", "overlapping speech"
    else:
        return utterance
    return Skipped(utterance.where, reason, utterance.id, rule)


def _overlaps(interval: Interval, others: Sequence[Sequence[Interval]]) -> bool:
    """Whether an interval of another tier shares time with this one; intervals of a tier follow one another."""
    for intervals in others:
        begun = bisect_left(intervals, interval.end, key=lambda other: other.start)
        if begun and intervals[begun - 1].end > interval.start:
            return True
    return False


def _speakers(folder: Path | None) -> dict[str, _Speaker]:
    """What speakers.txt tells of each speaker; nothing where there is no such file."""
    table = None if folder is None else folder / "speakers.txt"
    if table is None or not is_file(table):
        return {}
    lines = [line.split("\t") for line in read_old_text(table).replace("\r\n", "\n").split("\n") if line.strip()]
    header = [name.strip().lower() for name in lines[0]] if lines else []
    if "id" not in header:
        raise UserError(f"{table}:1: the first line must name the columns, ID among them.")
    # Some headers come twice in a line; the first counts. Some files repeat the header line.
    column = {name: header.index(name) for name in header}
    rows = ({name: values[at].strip() for name, at in column.items() if at < len(values)} for values in lines[1:])
    return {row["id"]: _speaker(row) for row in rows if row.get("id", "ID") != "ID"}


def _speaker(row: Mapping[str, str]) -> _Speaker:
    fields: dict[str, str | int] = {}
    if re.fullmatch(r"\d{4}", row.get("birthyear", "")):  # some are 19nn
        fields["birth_year"] = int(row["birthyear"])
    for field, name in (("region", "birthregion"), ("speaker_language", "language")):
        if row.get(name, "") not in ("", "xxx", "unknown"):
            fields[field] = row[name]
    return _Speaker({"sex1": "m", "sex2": "f"}.get(row.get("sex", "")), fields)
