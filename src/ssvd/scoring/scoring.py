"""Word and character error rates with confidence intervals, breakdowns, and paired comparisons. Pure text, no audio.

Rates are fractions, not percent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import jiwer
import numpy as np
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from ssvd.errors import UserError
from ssvd.grouping import UNKNOWN, Grouping
from ssvd.scoring.dutch import normalise_dutch

Unit = Literal["speakers", "utterances"]

# preserve_marks: without it Whisper's normaliser cuts words of Indic and other scripts at their vowel signs. Text whose
# marks all have composed forms, such as all of Latin script in common use, comes out the same.
_NORMALISERS: dict[str, Callable[[], Callable[[str], str]]] = {
    "none": lambda: lambda text: text,
    "basic": lambda: BasicTextNormalizer(preserve_marks=True),
    "english": EnglishTextNormalizer,
    "dutch": lambda: normalise_dutch,
}
_USUAL = {"en": "english", "english": "english", "nl": "dutch", "dutch": "dutch"}


@cache
def normaliser(name: str) -> Callable[[str], str]:
    """The text normaliser of that name; all squeeze blanks.

    "none" changes nothing else, "basic" is Whisper's for any language (lower case, no punctuation, nothing in
    brackets), "english" is Whisper's for English (also spelling, contractions, numbers, fillers), "dutch" is
    our own (see `ssvd.scoring.dutch`).

    Raises:
        UserError: there is no normaliser of that name.
    """
    if name not in _NORMALISERS:
        raise UserError(f"There is no normaliser {name!r}; choose one of {', '.join(_NORMALISERS)}.")
    normalise = _NORMALISERS[name]()
    # Comparisons meet a text again and again, and Whisper's for English takes longer than the alignment.
    return lru_cache(maxsize=1 << 17)(lambda text: " ".join(normalise(text).split()))


def usual_normaliser(language: str | None) -> str:
    """Name of the normaliser for texts of this one language ("nl", "nl-BE", "Dutch"), or for None of several."""
    return _USUAL.get((language or "").partition("-")[0].lower(), "basic")


@dataclass(frozen=True)
class Score:
    """Error rates over utterances whose reference has words.

    `empty_references` counts the utterances left out because their normalised reference has no word; what was
    recognised in them counts nowhere. Rates are NaN where there are no words.

    `wer_interval` is the 95 % percentile bootstrap interval of `wer`, resampling the units in `resampled`; None with
    fewer than two of them. A handful of speakers gives a rough interval.
    """

    utterances: int
    words: int
    wer: float
    wer_interval: tuple[float, float] | None
    substitutions: int
    deletions: int
    insertions: int
    cer: float
    speakers: int | None
    resampled: Unit
    empty_references: int

    def as_dict(self) -> dict[str, Any]:
        """Its fields, ready for JSON: NaN is None."""
        return _json_ready(self)


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances: `difference` is the word error rate of the second minus that of the first.

    `interval` is the 95 % bootstrap interval of the difference, the same draw of units for both systems, and `p_value`
    the two-sided bootstrap p: twice the share of draws on the rarer side of 0, at least 2 / (resamples + 1). Both are
    None with fewer than two units.
    """

    utterances: int
    words: int
    first_wer: float
    second_wer: float
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    speakers: int | None
    resampled: Unit
    empty_references: int

    def as_dict(self) -> dict[str, Any]:
        """Its fields, ready for JSON: NaN is None."""
        return _json_ready(self)


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    speakers: Sequence[str | None] | None = None,
    utterances: Sequence[str] | None = None,
    normaliser: str = "none",
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Score hypotheses against references, one of each per utterance.

    CER counts blanks between words as characters, as jiwer does. The interval resamples speakers where all are known
    and there are at least two (utterances of a speaker share their errors), else utterances. An utterance that comes
    several times, as with a hypothesis for each of several seeds, is drawn whole: `utterances` then names each.

    Raises:
        ValueError: the sequences differ in length.
        UserError: there is no normaliser of that name.
    """
    kept = _Kept.of(references, [hypotheses], speakers, utterances, normaliser)
    words = _edits(jiwer.process_words, kept.references, kept.hypotheses[0])
    characters = _edits(jiwer.process_characters, kept.references, kept.hypotheses[0]).sum(axis=0)
    substitutions, deletions, insertions, length = (int(count) for count in words.sum(axis=0))
    sums = kept.bootstrap(np.stack([words[:, :3].sum(axis=1), words[:, 3]], axis=1), resamples, seed)
    return Score(
        utterances=len(words),
        words=length,
        wer=_rate(substitutions + deletions + insertions, length),
        wer_interval=None if sums is None else _interval(sums[:, 0] / sums[:, 1]),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        cer=_rate(characters[:3].sum(), characters[3]),
        speakers=kept.speakers,
        resampled=kept.resampled,
        empty_references=kept.empty,
    )


def score_by(
    records: Sequence[Mapping[str, Any]],
    field: str,
    *,
    normaliser: str = "none",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """A score for each value of a field, numbers in order, then text, then "(unknown)".

    Args:
        records: one mapping per utterance with `reference`, `hypothesis`, perhaps `speaker`, and any other fields. An
            `id` in all of them names the utterance, as `utterances` of `score` does.
        field: a field, or a field with bands of numbers, both ends included: `age:6-10,11-15`. A number in no band
            counts as "(other)".

    Raises:
        UserError: the bands cannot be read, no record has the field, or there is no normaliser of that name.
    """
    grouping = Grouping.parse(field)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    order: dict[str, tuple[int, float, str]] = {}
    for record in records:
        key, label = grouping.group(record.get(grouping.field))
        groups.setdefault(label, []).append(record)
        order[label] = key
    if not groups.keys() - {UNKNOWN}:
        known = ", ".join(sorted({key for record in records for key in record})) or "none"
        raise UserError(f"No utterance has the field {grouping.field!r}; the fields are: {known}.")
    named = all("id" in record for record in records)
    return {
        label: score(
            [record["reference"] for record in groups[label]],
            [record["hypothesis"] for record in groups[label]],
            speakers=[record.get("speaker") for record in groups[label]],
            utterances=[record["id"] for record in groups[label]] if named else None,
            normaliser=normaliser,
            resamples=resamples,
            seed=seed,
        )
        for label in sorted(groups, key=order.__getitem__)
    }


def compare(
    references: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    speakers: Sequence[str | None] | None = None,
    utterances: Sequence[str] | None = None,
    normaliser: str = "none",
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare the hypotheses of two systems, such as a base and an adapted model, for the same utterances.

    Units are resampled as in `score`.

    Raises:
        ValueError: the sequences differ in length.
        UserError: there is no normaliser of that name.
    """
    kept = _Kept.of(references, [first, second], speakers, utterances, normaliser)
    edits = [_edits(jiwer.process_words, kept.references, hypotheses) for hypotheses in kept.hypotheses]
    columns = np.stack([*(counts[:, :3].sum(axis=1) for counts in edits), edits[0][:, 3]], axis=1)
    errors1, errors2, words = (int(count) for count in columns.sum(axis=0))
    interval = p_value = None
    sums = kept.bootstrap(columns, resamples, seed)
    if sums is not None:
        differences = (sums[:, 1] - sums[:, 0]) / sums[:, 2]
        interval = _interval(differences)
        rarer = min((differences <= 0).sum(), (differences >= 0).sum())
        p_value = min(1.0, 2 * (int(rarer) + 1) / (resamples + 1))
    return Comparison(
        utterances=len(columns),
        words=words,
        first_wer=_rate(errors1, words),
        second_wer=_rate(errors2, words),
        difference=_rate(errors2 - errors1, words),
        interval=interval,
        p_value=p_value,
        speakers=kept.speakers,
        resampled=kept.resampled,
        empty_references=kept.empty,
    )


@dataclass(frozen=True)
class _Kept:
    """The normalised texts of the utterances that count, and the bootstrap unit of each."""

    references: list[str]
    hypotheses: list[list[str]]  # one list per system
    units: np.ndarray  # (utterances,), numbered from 0
    resampled: Unit
    speakers: int | None
    empty: int

    @classmethod
    def of(
        cls,
        references: Sequence[str],
        systems: Sequence[Sequence[str]],
        speakers: Sequence[str | None] | None,
        utterances: Sequence[str] | None,
        normaliser_name: str,
    ) -> "_Kept":
        speakers = [None] * len(references) if speakers is None else speakers
        names_of: Sequence[object] = range(len(references)) if utterances is None else utterances
        lengths = {len(column) for column in (references, *systems, speakers, names_of)}
        if len(lengths) > 1:
            raise ValueError(f"references, hypotheses, speakers and utterances differ in number: {sorted(lengths)}")
        normalise = normaliser(normaliser_name)
        normalised = [normalise(reference) for reference in references]
        rows = [row for row in zip(normalised, speakers, names_of, *systems, strict=True) if row[0]]
        number_of: dict[object, int] = {}
        names, speaker_of = np.unique([str(row[1]) for row in rows], return_inverse=True)
        utterance_of = np.array([number_of.setdefault(row[2], len(number_of)) for row in rows], dtype=np.int64)
        known = bool(rows) and all(row[1] is not None for row in rows)
        by_speaker = known and len(names) > 1
        return cls(
            references=[row[0] for row in rows],
            hypotheses=[[normalise(row[3 + system]) for row in rows] for system in range(len(systems))],
            units=speaker_of if by_speaker else utterance_of,
            resampled="speakers" if by_speaker else "utterances",
            speakers=len(names) if known else None,
            empty=len(normalised) - len(rows),
        )

    def bootstrap(self, columns: np.ndarray, resamples: int, seed: int) -> np.ndarray | None:
        """Sums of per-utterance counts (utterances, c) over draws of units with replacement: (resamples, c)."""
        count = int(self.units.max(initial=-1)) + 1
        if count < 2:
            return None
        totals = np.zeros((count, columns.shape[1]))
        np.add.at(totals, self.units, columns)
        rng = np.random.default_rng(seed)
        step = max(1, 2_000_000 // count)  # so that memory stays small
        sizes = [min(step, resamples - done) for done in range(0, resamples, step)]
        return np.concatenate([totals[rng.integers(count, size=(size, count))].sum(axis=1) for size in sizes])


def _edits(process: Callable[..., Any], references: list[str], hypotheses: list[str]) -> np.ndarray:
    """Substitutions, deletions, insertions and reference length of each utterance: (utterances, 4)."""
    counts = np.zeros((len(references), 4), dtype=np.int64)
    if not references:
        return counts
    aligned = process(references, hypotheses)
    column = {"substitute": 0, "delete": 1, "insert": 2}
    for row, chunks, reference in zip(counts, aligned.alignments, aligned.references, strict=True):
        row[3] = len(reference)
        for chunk in chunks:
            if chunk.type in column:
                length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                row[column[chunk.type]] += length
    return counts


def _rate(errors: int, length: int) -> float:
    return float(errors / length) if length else math.nan


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _json_ready(result: Any) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(result).items()
    }
