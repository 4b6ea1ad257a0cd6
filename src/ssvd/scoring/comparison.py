"""Paired comparison of the word error rates of two systems on the same utterances."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssvd.scoring.bootstrap import Interval, interval, resample, two_sided_p
from ssvd.scoring.edits import ScoredUtterances, Unit, error_rate


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances.

    Attributes:
        utterances: Number of utterances that are counted.
        words: Number of reference words.
        first_wer: Word error rate of the first system; NaN without words.
        second_wer: Word error rate of the second system; NaN without words.
        difference: `second_wer` - `first_wer`.
        interval: 95 % bootstrap interval of the difference, with the same draws for both systems; None with fewer than
            two units.
        p_value: Two-sided bootstrap p-value: twice the share of draws on the rarer side of 0, at least
            2 / (resamples + 1); None with fewer than two units.
        speakers: Number of speakers; None if the speaker of an utterance is not known.
        resampled: Whether the bootstrap draws speakers or utterances.
        empty_references: Number of utterances that are left out because their normalised reference has no word.
    """

    utterances: int
    words: int
    first_wer: float
    second_wer: float
    difference: float
    interval: Interval | None
    p_value: float | None
    speakers: int | None
    resampled: Unit
    empty_references: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON: NaN becomes None."""
        fields = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()
        }


def compare(
    references: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    speakers: Sequence[str | None] | None = None,
    utterances: Sequence[str] | None = None,
    trainings: Sequence[object] | None = None,
    normaliser: str = "none",
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare the hypotheses of two systems, such as a base model and an adapted one, for the same utterances.

    Args:
        references: What was said.
        first: What the first system recognised.
        second: What the second system recognised.
        speakers: As in `score`, and so are all other arguments.
        utterances: As in `score`.
        trainings: As in `score`: the training that both hypotheses come from, or that the second comes from where the
            first is the base model.
        normaliser: As in `score`.
        resamples: As in `score`.
        seed: As in `score`.

    Raises:
        ValueError: The sequences differ in length.
        UserError: There is no normaliser of that name.
    """
    scored = ScoredUtterances.normalise(references, [first, second], speakers, utterances, trainings, normaliser)
    first_edits, second_edits = scored.word_edits(0), scored.word_edits(1)
    counts = np.stack([first_edits[:, :3].sum(axis=1), second_edits[:, :3].sum(axis=1), first_edits[:, 3]], axis=1)
    first_errors, second_errors, words = (int(count) for count in counts.sum(axis=0))
    sums = resample(counts, scored.units, scored.trainings, resamples, seed)
    differences = None if sums is None else (sums[:, 1] - sums[:, 0]) / sums[:, 2]
    return Comparison(
        utterances=len(counts),
        words=words,
        first_wer=error_rate(first_errors, words),
        second_wer=error_rate(second_errors, words),
        difference=error_rate(second_errors - first_errors, words),
        interval=None if differences is None else interval(differences),
        p_value=None if differences is None else two_sided_p(differences),
        speakers=scored.speakers,
        resampled=scored.resampled,
        empty_references=scored.empty_references,
    )
