"""Corpora checked, chosen and divided once, into a folder that says what was done.

train.jsonl.gz ...     the utterances of each part (Lhotse cuts)
ids/train.txt ...      their ids, to take the same again
left_out.jsonl         every utterance that is in no part, and why
prepared.json          options, rules, normaliser, sizes, versions; written last
hypotheses.jsonl       what the recogniser of a filter heard
headers.partial.jsonl  until all is done: the headers of audio that are read already
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lhotse import CutSet

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import common_language, select
from ssvd.corpora.splits import PORTIONS, split_by_speaker, text_overlap
from ssvd.corpora.utterances import Skipped, Utterance, collect, cuts_of
from ssvd.errors import UserError
from ssvd.files import state_of, write_json, write_json_lines, write_whole
from ssvd.preparation import cgn as cgn_corpus
from ssvd.preparation import myst as myst_corpus
from ssvd.preparation.filtering import drop_mismatched
from ssvd.preparation.listings import PARTS, Listings
from ssvd.preparation.speechocean762 import read_speechocean762
from ssvd.scoring import usual_normaliser

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Division:
    """How utterances that belong to no part are divided; see `ssvd.corpora.splits.split_by_speaker`."""

    portions: Mapping[str, float]
    seed: int = 0
    balance: str | None = None

    def options(self) -> dict[str, Any]:
        return {"portions": dict(self.portions), "seed": self.seed, "balance": self.balance}


@dataclass(frozen=True)
class Prepared:
    """A prepared folder.

    Attributes:
        record: What its prepared.json holds.
        left_out: Utterances that are in no part; empty where nothing was done.
        already: Whether nothing was done, as the folder was prepared with these options before.
        notes: What reading took for granted, in sentences.
    """

    record: dict[str, Any]
    left_out: list[Skipped]
    already: bool
    notes: tuple[str, ...] = ()


def prepare_source(
    source: str,
    out: Path,
    *,
    where: Sequence[str] = (),
    division: Division = Division(PORTIONS),
    skip_bad: bool = False,
    on_progress: Progress = lambda doing: None,
) -> Prepared:
    """Prepare whatever `ssvd.corpora.corpus.read_corpus` reads, divided by speaker.

    Args:
        source: What `read_corpus` takes.
        out: The folder to make.
        where: Conditions that utterances must meet; see `ssvd.corpora.selection.select`.
        skip_bad: Leave out utterances that cannot be used, instead of stopping.
        on_progress: Called with what is being done.

    Raises:
        UserError: The source is bad, or `out` was prepared from another one or with other options.
    """

    notes: list[str] = []

    def build() -> _Utterances:
        on_progress("Reading")
        corpus = read_corpus(
            source, skip_bad=skip_bad, headers=out / _HEADERS, on_progress=_reading_headers(on_progress)
        )
        notes.extend(corpus.notes)
        return _Utterances({"": corpus.cuts}, corpus.skipped).where(where).divide("", division)

    options = {"where": list(where), **division.options(), "skip_bad": skip_bad}
    return replace(_prepare("other", source, out, options, build), notes=tuple(notes))


def prepare_myst(
    corpus: Path,
    out: Path,
    *,
    rules: str = "default",
    ids: Sequence[str] = (),
    filter_model: str | None = None,
    filtered: Sequence[str] = PARTS,
    where: Sequence[str] = (),
    division: Division = Division(PORTIONS),
    skip_bad: bool = False,
    device: str = "auto",
    batch_size: int = 16,
    on_progress: Progress = lambda doing: None,
) -> Prepared:
    """Prepare MyST; see `ssvd.preparation.myst.read_myst`, and `prepare_source` for what is not said here.

    Args:
        rules: A key of `ssvd.preparation.myst.RULES`.
        ids: Lists of utterances; see `ssvd.preparation.listings.Listings`.
        filter_model, filtered, device, batch_size: See `drop_mismatched`; no model: no filter.
        division: Of version 0.3.0, which has no parts.
    """
    if rules not in myst_corpus.RULES:
        raise UserError(f"There are no rules {rules!r} for MyST; choose one of {', '.join(myst_corpus.RULES)}.")
    chosen = myst_corpus.RULES[rules]
    listings = Listings(ids)

    def build() -> _Utterances:
        on_progress("Reading transcripts")
        items = myst_corpus.read_myst(corpus, chosen, listings)
        utterances = _read_audio(items, corpus, out, skip_bad, on_progress).where(where).divide("", division)
        if filter_model is None:
            return utterances
        kept, dropped = drop_mismatched(
            utterances.parts,
            filter_model,
            out / "hypotheses.jsonl",
            filtered=filtered,
            device=device,
            batch_size=batch_size,
            on_progress=lambda done, of: on_progress(f"{filter_model} has heard {done:,} of {of:,}"),
        )
        return _Utterances(kept, utterances.left_out + dropped)

    options = {
        "rules": rules,
        "ids": [[given, state_of(file)] for given, file in zip(ids, listings.files, strict=True)],
        "filter_model": filter_model,
        "filtered": list(filtered) if filter_model else [],
        "where": list(where),
        **division.options(),
        "skip_bad": skip_bad,
    }
    return _prepare("myst", corpus, out, options, build, rules=chosen.told, paper=myst_corpus.PAPER)


def prepare_cgn(
    corpus: Path,
    out: Path,
    *,
    audio: Path | None = None,
    components: str = cgn_corpus.COMPONENTS,
    varieties: Sequence[str] = cgn_corpus.VARIETIES,
    overlap: bool = True,
    unknown_speakers: bool = False,
    recordings: Sequence[str] = (),
    where: Sequence[str] = (),
    division: Division = Division(cgn_corpus.PORTIONS),
    skip_bad: bool = False,
    on_progress: Progress = lambda doing: None,
) -> Prepared:
    """Prepare CGN; see `ssvd.preparation.cgn.read_cgn`, and `prepare_source` for what is not said here.

    Args:
        components: Their letters.
        recordings: Lists of recordings; see `Listings`. With a list of a part, what is in no list of
            a part is train, and no speakers are divided.
    """
    if unknown := sorted(set(components) - set(cgn_corpus.COMPONENTS)):
        raise UserError(f"CGN has no component {unknown[0]!r}; its letters are a to o.")
    if unknown := sorted(set(varieties) - set(cgn_corpus.VARIETIES)):
        raise UserError(f"CGN has no variety {unknown[0]!r}; there are nl (Netherlands) and vl (Flanders).")
    listings = Listings(recordings)

    def build() -> _Utterances:
        on_progress("Reading annotations")
        items = cgn_corpus.read_cgn(
            corpus,
            audio=audio,
            components=components,
            varieties=varieties,
            overlap=overlap,
            unknown_speakers=unknown_speakers,
            listings=listings,
        )
        utterances = _read_audio(items, corpus, out, skip_bad, on_progress, outside=cgn_corpus.OUTSIDE)
        return utterances.where(where).divide("", division)

    options = {
        "audio": None if audio is None else str(audio.absolute()),
        "components": "".join(sorted(components)),
        "varieties": sorted(varieties),
        "overlap": overlap,
        "unknown_speakers": unknown_speakers,
        "recordings": [[given, state_of(file)] for given, file in zip(recordings, listings.files, strict=True)],
        "where": list(where),
        **division.options(),
        "skip_bad": skip_bad,
    }
    return _prepare("cgn", corpus, out, options, build, rules=cgn_corpus.RULES, paper=cgn_corpus.PAPER)


def prepare_speechocean762(
    corpus: Path,
    out: Path,
    *,
    where: Sequence[str] = (),
    division: Division = Division({"train": 0.9, "dev": 0.1}, balance="age"),
    skip_bad: bool = False,
    on_progress: Progress = lambda doing: None,
) -> Prepared:
    """Prepare speechocean762; see `ssvd.preparation.speechocean762`, and `prepare_source` for what is not said here.

    Args:
        division: Of the official train part into train and dev; the official test part stays as it is.
    """

    def build() -> _Utterances:
        on_progress("Reading")
        items = read_speechocean762(corpus)
        utterances = _read_audio(items, corpus, out, skip_bad, on_progress)
        return utterances.where(where).divide("train", division)

    options = {"where": list(where), **division.options(), "skip_bad": skip_bad}
    return _prepare("speechocean762", corpus, out, options, build)


@dataclass(frozen=True)
class _Utterances:
    """Utterances by part, "" for those that belong to none yet, and those left out on the way."""

    parts: dict[str, CutSet]
    left_out: list[Skipped]

    def where(self, conditions: Sequence[str]) -> "_Utterances":
        """Those that meet all conditions."""
        if not conditions:
            return self
        everything = CutSet.from_cuts(cut for cuts in self.parts.values() for cut in cuts)
        chosen = {cut.id for cut in select(everything, conditions)}
        reason = f"it does not meet {' and '.join(conditions)}"
        dropped = [
            Skipped(cut.recording.sources[0].source, reason, cut.id, "not chosen by --where")
            for cut in everything
            if cut.id not in chosen
        ]
        parts = {part: [cut for cut in cuts if cut.id in chosen] for part, cuts in self.parts.items()}
        return _Utterances({part: CutSet.from_cuts(cuts) for part, cuts in parts.items()}, self.left_out + dropped)

    def divide(self, part: str, division: Division) -> "_Utterances":
        """One part divided by speaker; nothing changes where it is empty."""
        if not self.parts.get(part):
            return self
        divided = split_by_speaker(self.parts[part], division.portions, division.seed, balance=division.balance)
        return _Utterances({name: cuts for name, cuts in self.parts.items() if name != part} | divided, self.left_out)


def _read_audio(
    items: Sequence[Utterance | Skipped],
    corpus: Path,
    out: Path,
    skip_bad: bool,
    on_progress: Progress,
    *,
    outside: str = "",
) -> _Utterances:
    """The utterances whose audio is in order, by their own part; headers are kept in `out` until all is done."""
    cuts = cuts_of(
        items,
        out / _HEADERS,
        outside=outside,
        on_progress=_reading_headers(on_progress),
    )
    checked = collect(cuts, str(corpus), skip_bad=skip_bad)
    part_of: dict[str, str] = {}
    for item in items:
        if isinstance(item, Utterance):
            part_of.setdefault(item.id, item.part)
    parts: dict[str, list[Any]] = {}
    for cut in checked.cuts:
        parts.setdefault(part_of[cut.id], []).append(cut)
    return _Utterances({part: CutSet.from_cuts(cuts) for part, cuts in parts.items()}, checked.skipped)


_HEADERS = "headers.partial.jsonl"


def _reading_headers(on_progress: Progress) -> Callable[[int, int], None]:
    return lambda done, of: on_progress(f"Reading the headers of audio files: {done:,} of {of:,}")


def _prepare(
    corpus: str,
    source: str | Path,
    out: Path,
    options: dict[str, Any],
    build: Callable[[], _Utterances],
    *,
    rules: str = "",
    paper: Mapping[str, int] | None = None,
) -> Prepared:
    """The folder `out` with the utterances that `build` gives, unless it holds them already."""
    here = Path(source).exists()
    options = {"source": str(Path(source).absolute()) if here else str(source), **options}
    options |= {"state": state_of(Path(source)) if here else None}
    earlier = _earlier(out, corpus, options)
    if earlier is not None:
        return Prepared(earlier, [], already=True)
    utterances = build()
    parts = {part: utterances.parts[part] for part in PARTS if utterances.parts.get(part)}
    if not parts:
        raise UserError(f"No utterance of {source} is left; {_told(_counts(utterances.left_out))}.")
    (out / "ids").mkdir(parents=True, exist_ok=True)
    for part in set(PARTS) - set(parts):  # of an earlier division, whose speakers may be in other parts now
        (out / f"{part}.jsonl.gz").unlink(missing_ok=True)
        (out / "ids" / f"{part}.txt").unlink(missing_ok=True)
    for part, cuts in parts.items():
        write_cuts(cuts, out / f"{part}.jsonl.gz")
        write_whole(out / "ids" / f"{part}.txt", "".join(f"{cut.id}\n" for cut in cuts))
    write_json_lines(out / "left_out.jsonl", map(asdict, utterances.left_out))
    language = common_language(CutSet.from_cuts(cut for cuts in parts.values() for cut in cuts))
    record = {
        "corpus": corpus,
        "options": options,
        "rules": rules,
        "language": language,
        "normaliser": usual_normaliser(language),
        "parts": _sizes(parts),
        "paper": None if paper is None else dict(paper),
        "left_out": _counts(utterances.left_out),
        "versions": {name: version(name) for name in ("ssvd", "lhotse", "num2words", "whisper-normalizer")}
        | {"python": platform.python_version()},
    }
    write_json(out / "prepared.json", record)
    (out / _HEADERS).unlink(missing_ok=True)
    return Prepared(record, utterances.left_out, already=False)


def _earlier(out: Path, corpus: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a folder that holds all this already; None where there is none."""
    path = out / "prepared.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        before = record["options"] | {"corpus": record["corpus"]}
        files = [out / f"{part}.jsonl.gz" for part in record["parts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another folder, or remove that file.") from error
    now = json.loads(json.dumps({**options, "corpus": corpus}))
    changed = [name for name in now | before if now.get(name) != before.get(name)]
    if changed == ["state"]:
        raise UserError(
            f"{options['source']} has changed since {out} was prepared from it; give another folder, or remove {path}."
        )
    if changed:
        was = ", ".join(f"{name} was {before.get(name)!r}" for name in changed if name != "state")
        raise UserError(
            f"{out} was prepared with other options ({was}); give those, or another folder, or remove {path}."
        )
    return record if all(file.is_file() for file in files) else None


def _sizes(parts: Mapping[str, CutSet]) -> dict[str, dict[str, Any]]:
    texts = text_overlap(parts) if "train" in parts else {}
    speakers = {part: {cut.supervisions[0].speaker for cut in cuts} - {None} for part, cuts in parts.items()}
    return {
        part: {
            "utterances": len(cuts),
            "speakers": len(speakers[part]),
            "hours": round(sum(cut.duration for cut in cuts) / 3600, 4),
            "texts_also_in_train": texts.get(part),
            "speakers_also_in_train": len(speakers[part] & speakers.get("train", set())) if part != "train" else None,
        }
        for part, cuts in parts.items()
    }


def _counts(left_out: Sequence[Skipped]) -> dict[str, int]:
    """How many were left out by each rule, the most frequent first."""
    return dict(Counter(item.rule or "bad" for item in left_out).most_common())


def _told(counts: Mapping[str, int]) -> str:
    return "left out are " + ", ".join(f"{count:,} {rule}" for rule, count in counts.items())
