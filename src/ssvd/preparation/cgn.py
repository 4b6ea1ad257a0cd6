"""CGN, Corpus Gesproken Nederlands 2.0.x: Dutch of the Netherlands and of Flanders.

Layout, marks and rules follow the public documentation and recipes that docs/corpora/cgn.md names.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ssvd.corpora.audio import is_file
from ssvd.corpora.readers.text_files import read_old_text
from ssvd.corpora.utterances import Skipped, Utterance
from ssvd.errors import UserError
from ssvd.preparation.listings import NOT_LISTED, Listings
from ssvd.preparation.textgrid import Interval, Tier, parse_textgrid
from ssvd_options.preparation import COMPONENTS, VARIETIES

# Number of utterances that the paper trains and scores on (arXiv 2509.02830).
PAPER = {"train": 179_440, "dev": 25_766, "test": 51_615}
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
    """What the table of speakers states about one."""

    gender: str | None = None
    fields: Mapping[str, str | int] = MappingProxyType({})


class _Recording(NamedTuple):
    """The files of a recording, of which it has at least one, and the fields of its utterances."""

    name: str
    annotation: Path | None
    audio: Path | None
    fields: Mapping[str, str]


# Praat may write e acute as \e'.
_PRAAT_LETTER = re.compile(r"\\([A-Za-z])([`'^\",~])")
_PRAAT_ACCENTS = dict(zip("`'^\",~", "\u0300\u0301\u0302\u0308\u0327\u0303", strict=True))
_TYPOGRAPHIC = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))
_SUFFIX = re.compile(r"\*[a-z]\b", re.IGNORECASE)  # *v foreign, *d dialect, *a broken off, *u, *z, *x, *n, *t
_NO_WORD = re.compile(r"(?<!\w)(?:ggg|xxx)(?!\w)", re.IGNORECASE)
_SIGNS = re.compile(r"[^\w'-]|_|(?<!\w)-|-(?!\w)")


def clean(text: str) -> str:
    """Return the words of an interval without marks and punctuation, but with apostrophes, hyphens and accents."""
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
    """Read the utterances of CGN, by component, variety, recording, tier and time; each is a segment of its recording.

    Utterances have no part unless `listings` state it. Fields are component, variety (nl or vl), overlapped (yes if an
    interval of another speaker overlaps) and, for speakers in the table, gender, birth_year, region, speaker_language.

    Args:
        folder: The folder of the corpus, which holds data/, or data/ itself.
        audio: The folder of the audio, with a folder for each component; None for data/audio/wav.
        components: The letters of the components to read.
        varieties: The varieties to read.
        overlap: Whether to keep utterances that overlap with another speaker's.
        unknown_speakers: Whether to keep tiers without the code of a speaker, as one speaker per recording.
        listings: Lists of recordings.

    Raises:
        UserError: The folder does not hold CGN, or nothing of these components and varieties.
    """
    listings = listings or Listings()
    annotation, sounds = _top(folder, "annot/text/ort"), audio or _top(folder, "audio/wav")
    if annotation is None:
        raise UserError(f"{folder} does not hold CGN: there is no data/annot/text/ort in it.")
    if sounds is None or not sounds.is_dir():
        raise UserError(
            f"{folder} holds no data/audio/wav; give the folder that holds comp-a and so on with the option audio."
        )
    speakers = _speakers(_top(folder, "meta/text"))
    items: list[Utterance | Skipped] = []
    known: set[str] = set()
    for component in sorted(components):
        for variety in sorted(varieties):
            place = Path(f"comp-{component}", variety)
            fields = {"component": component, "variety": variety}
            annotated, recorded = _recordings(annotation / place), _recordings(sounds / place)
            for name in sorted(annotated.keys() | recorded.keys()):
                known.add(name)
                recording = _Recording(name, annotated.get(name), recorded.get(name), fields)
                part = listings.part_of(name, "")
                items += _read_recording(
                    recording, speakers, part=part, overlap=overlap, unknown_speakers=unknown_speakers
                )
    if not known:
        chosen = f"components {', '.join(sorted(components))} and varieties {', '.join(sorted(varieties))}"
        raise UserError(f"{annotation} holds no recordings of the {chosen}.")
    return items + listings.missing(known)


def _top(folder: Path, below: str) -> Path | None:
    """Return the folder data/BELOW of the corpus, whatever the name of data; None if there is none."""
    return next((path for name in ("data", "Data", "") if (path := folder / name / below).is_dir()), None)


def _recordings(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by recording."""
    if not folder.is_dir():
        return {}
    matches = ((_RECORDING.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    return {match[1].lower(): path for match, path in matches if match}


def _read_recording(
    recording: _Recording,
    speakers: Mapping[str, _Speaker],
    *,
    part: str | None,
    overlap: bool,
    unknown_speakers: bool,
) -> Iterator[Utterance | Skipped]:
    """Yield the utterances of a recording, or why it is left out."""
    name, where = recording.name, str(recording.annotation or recording.audio)
    if part is None:
        yield Skipped(where, "it is in none of the lists", name, f"recordings {NOT_LISTED}")
        return
    if recording.annotation is None or recording.audio is None:
        missing = "annotation (.ort)" if recording.annotation is None else "audio"
        yield Skipped(where, f"there is no {missing} of {name}", name, f"recordings without {missing}")
        return
    try:
        tiers = parse_textgrid(read_old_text(recording.annotation))
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
        known = _SPEAKER.fullmatch(tier.name) is not None or unknown_speakers
        speaker = speakers.get(tier.name, _Speaker())
        for interval in tier.intervals:
            utterance = _utterance(recording, recording.audio, tier.name, interval, speaker)
            overlapped = "yes" if _overlaps(interval, others) else "no"
            utterance = replace(utterance, part=part, fields={**utterance.fields, "overlapped": overlapped})
            yield _unless_ruled_out(utterance, interval, known, overlap)


def _utterance(recording: _Recording, audio: Path, tier: str, interval: Interval, speaker: _Speaker) -> Utterance:
    coded = _SPEAKER.fullmatch(tier) is not None
    milliseconds = f"{round(interval.start * 1000):07d}-{round(interval.end * 1000):07d}"
    return Utterance(
        where=f"{recording.annotation}, tier {tier}, {interval.start:.3f} s",
        id=f"{recording.name}-{tier if coded else _UNKNOWN}-{milliseconds}",
        path=audio.absolute(),
        text=clean(interval.text),
        recording_id=recording.name,
        start=interval.start,
        duration=interval.end - interval.start,
        speaker=tier if coded else f"{_UNKNOWN}-{recording.name}",
        language="nl",
        gender=speaker.gender,
        fields={**recording.fields, **speaker.fields},
        longest=LONGEST,
    )


def _unless_ruled_out(utterance: Utterance, interval: Interval, known: bool, overlap: bool) -> Utterance | Skipped:
    """Return an utterance, or the rule that leaves it out."""
    if not known:
        reason, rule = "its tier has no speaker's code", "unknown speaker"
    elif interval.start >= interval.end:
        reason, rule = f"it ends at {interval.end:.3f} s", "ends before it starts"
    elif not utterance.text:
        reason, rule = f"{interval.text!r} has no word", "no words"
    elif not overlap and utterance.fields["overlapped"] == "yes":
        reason, rule = "another speaker's interval overlaps", "overlapping speech"
    else:
        return utterance
    return Skipped(utterance.where, reason, utterance.id, rule)


def _overlaps(interval: Interval, others: Sequence[Sequence[Interval]]) -> bool:
    """Return whether an interval of another tier shares time with this one; the intervals of a tier are sorted."""
    for intervals in others:
        begun = bisect_left(intervals, interval.end, key=lambda other: other.start)
        if begun and intervals[begun - 1].end > interval.start:
            return True
    return False


def _speakers(folder: Path | None) -> dict[str, _Speaker]:
    """Read what speakers.txt states about each speaker; nothing if there is no such file."""
    table = None if folder is None else folder / "speakers.txt"
    if table is None or not is_file(table):
        return {}
    lines = [line.split("\t") for line in read_old_text(table).replace("\r\n", "\n").split("\n") if line.strip()]
    header = [name.strip().lower() for name in lines[0]] if lines else []
    if "id" not in header:
        raise UserError(f"{table}:1: the first line must name the columns, ID among them.")
    # Some headers occur twice in a line, of which the first counts. Some files repeat the header line.
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
