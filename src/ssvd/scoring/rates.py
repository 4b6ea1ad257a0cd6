"""Word and character error rates with confidence intervals, for a whole corpus and for the values of a field.

Rates are fractions, not percentages. Only texts are needed, no audio.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssvd.errors import UserError
from ssvd.grouping import UNKNOWN, Grouping
from ssvd.scoring.bootstrap import Interval, interval, resample
from ssvd.scoring.edits import ScoredUtterances, Unit, error_rate


@dataclass(frozen=True)
class Score:
    """Error rates over the utterances whose reference has words.

    Attributes:
        utterances: Number of utterances that are counted.
        words: Number of reference words.
        wer: Word error rate; NaN without words.
        wer_interval: 95 % percentile bootstrap interval of `wer`, over the units in `resampled`; None with fewer than
            two units. A handful of speakers gives a rough interval.
        substitutions: Number of substituted words.
        deletions: Number of deleted words.
        insertions: Number of inserted words.
        cer: Character error rate, in which blanks between words count as characters; NaN without words.
        speakers: Number of speakers; None if the speaker of an utterance is not known.
        resampled: Whether the bootstrap draws speakers or utterances.
        empty_references: Number of utterances that are left out because their normalised reference has no word; their
            hypotheses are not counted anywhere.
        per: Phone error rate: substituted, deleted and inserted phones by those of the references; the boundaries of
            words are none. None where texts are not cut into phones; NaN without phones.
    """

    utterances: int
    words: int
    wer: float
    wer_interval: Interval | None
    substitutions: int
    deletions: int
    insertions: int
    cer: float
    speakers: int | None
    resampled: Unit
    empty_references: int
    per: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON: NaN becomes None; `per` is left out where it is None."""
        fields = asdict(self)
        if self.per is None:
            del fields["per"]
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()
        }


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    speakers: Sequence[str | None] | None = None,
    utterances: Sequence[str] | None = None,
    trainings: Sequence[object] | None = None,
    normaliser: str = "none",
    phones: Callable[[str], list[str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Score hypotheses against references, one of each per utterance.

    The interval resamples speakers if all are known and there are at least two, since the errors of one speaker are not
    independent; otherwise it resamples utterances.

    Args:
        references: What was said.
        hypotheses: What was recognised.
        speakers: The speaker of each utterance.
        utterances: The name of each utterance. An utterance that occurs several times, such as once for each of several
            seeds, is drawn as a whole.
        trainings: The training that each hypothesis comes from, such as its seed; None if all come from one. With
            several, the interval resamples trainings too, independently of the speakers or utterances.
        normaliser: Name of the normaliser of both texts; see `ssvd.scoring.normaliser`.
        phones: What cuts a text into phones, for the phone error rate.
        resamples: Number of draws of the bootstrap.
        seed: Random seed of the bootstrap.

    Raises:
        ValueError: The sequences differ in length.
        UserError: There is no normaliser of that name.
    """
    scored = ScoredUtterances.normalise(references, [hypotheses], speakers, utterances, trainings, normaliser)
    words = scored.word_edits()
    characters = scored.character_edits().sum(axis=0)
    edits = None if phones is None else [int(count) for count in scored.phone_edits(phones).sum(axis=0)]
    substitutions, deletions, insertions, length = (int(count) for count in words.sum(axis=0))
    errors_and_words = np.stack([words[:, :3].sum(axis=1), words[:, 3]], axis=1)
    sums = resample(errors_and_words, scored.units, scored.trainings, resamples, seed)
    return Score(
        utterances=len(words),
        words=length,
        wer=error_rate(substitutions + deletions + insertions, length),
        wer_interval=None if sums is None else interval(sums[:, 0] / sums[:, 1]),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        cer=error_rate(int(characters[:3].sum()), int(characters[3])),
        speakers=scored.speakers,
        resampled=scored.resampled,
        empty_references=scored.empty_references,
        per=None if edits is None else error_rate(sum(edits[:3]), edits[3]),
    )


def score_by(
    records: Sequence[Mapping[str, Any]],
    field: str,
    *,
    trainings: Sequence[object] | None = None,
    normaliser: str = "none",
    phones: Callable[[str], list[str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Score the utterances of each value of a field: numbers in order, then text, then "(unknown)".

    Args:
        records: One mapping per utterance with `reference`, `hypothesis`, optionally `speaker`, and any other fields.
            If all of them have an `id`, it names the utterance as `utterances` does in `score`.
        field: A field, optionally with bands of numbers that include both ends: `age:6-10,11-15`. A number in no band
            counts as "(other)".
        trainings: As in `score`, one for each record.
        normaliser: As in `score`.
        phones: As in `score`.
        resamples: As in `score`.
        seed: As in `score`.

    Raises:
        UserError: The bands cannot be read, no record has the field, or there is no normaliser of that name.
    """
    grouping = Grouping.parse(field)
    groups: dict[str, list[tuple[Mapping[str, Any], object]]] = {}
    order: dict[str, tuple[int, float, str]] = {}
    for record, training in zip(records, trainings or [None] * len(records), strict=True):
        key, label = grouping.group(record.get(grouping.field))
        groups.setdefault(label, []).append((record, training))
        order[label] = key
    if not groups.keys() - {UNKNOWN}:
        known = ", ".join(sorted({key for record in records for key in record})) or "none"
        raise UserError(f"No utterance has the field {grouping.field!r}; the fields are: {known}.")
    named = all("id" in record for record in records)
    return {
        label: score(
            [record["reference"] for record, _ in groups[label]],
            [record["hypothesis"] for record, _ in groups[label]],
            speakers=[record.get("speaker") for record, _ in groups[label]],
            utterances=[record["id"] for record, _ in groups[label]] if named else None,
            trainings=[training for _, training in groups[label]],
            normaliser=normaliser,
            phones=phones,
            resamples=resamples,
            seed=seed,
        )
        for label in sorted(groups, key=order.__getitem__)
    }
