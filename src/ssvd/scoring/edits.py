"""Edit counts of the utterances that are scored, and the units that the bootstrap resamples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jiwer
import numpy as np
from numpy.typing import NDArray

from ssvd.scoring.normalisers import normaliser

Unit = Literal["speakers", "utterances"]
"""What the bootstrap resamples."""

_PRIVATE = 0xF0000  # first of 65,534 characters that mean nothing

_COLUMNS = {"substitute": 0, "delete": 1, "insert": 2}


class _Row(NamedTuple):
    """One utterance with a normalised reference that has words."""

    reference: str
    speaker: str | None
    utterance: object
    training: object
    hypotheses: tuple[str, ...]


@dataclass(frozen=True)
class ScoredUtterances:
    """The normalised texts of the utterances that are scored.

    Attributes:
        references: One text per utterance; each has at least one word.
        hypotheses: For each system, one text per utterance.
        units: int array (utterances,): the number, from 0, of the unit that the utterance belongs to.
        trainings: int array (utterances,): the number, from 0, of the training that the hypotheses come from.
        resampled: What the units are.
        speakers: Number of speakers; None if the speaker of an utterance is not known.
        empty_references: Number of utterances that are left out because their reference has no word.
    """

    references: list[str]
    hypotheses: list[list[str]]
    units: NDArray[np.int64]
    trainings: NDArray[np.int64]
    resampled: Unit
    speakers: int | None
    empty_references: int

    @classmethod
    def normalise(
        cls,
        references: Sequence[str],
        systems: Sequence[Sequence[str]],
        speakers: Sequence[str | None] | None,
        utterances: Sequence[str] | None,
        trainings: Sequence[object] | None,
        normaliser_name: str,
    ) -> "ScoredUtterances":
        """Normalise the texts, leave out empty references, and choose the units.

        Args:
            references: One text per utterance.
            systems: For each system, one hypothesis per utterance.
            speakers: The speaker of each utterance; None if no speaker is known.
            utterances: The name of each utterance; those of the same name form one unit. None if all are different.
            trainings: The training that each hypothesis comes from; None if all come from one.
            normaliser_name: What `ssvd.scoring.normaliser` takes.

        Raises:
            ValueError: The sequences differ in length.
            UserError: There is no normaliser of that name.
        """
        speakers = [None] * len(references) if speakers is None else speakers
        names: Sequence[object] = range(len(references)) if utterances is None else utterances
        trainings = [None] * len(references) if trainings is None else trainings
        lengths = {len(column) for column in (references, *systems, speakers, names, trainings)}
        if len(lengths) > 1:
            raise ValueError(
                "references, hypotheses, speakers, utterances and trainings differ in number: " + str(sorted(lengths))
            )
        normalise = normaliser(normaliser_name)
        normalised = [normalise(reference) for reference in references]
        hypotheses = zip(*systems, strict=True)
        columns = zip(normalised, speakers, names, trainings, hypotheses, strict=True)
        rows = [row for row in map(_Row._make, columns) if row.reference]
        speaker_names, speaker_numbers = np.unique([str(row.speaker) for row in rows], return_inverse=True)
        known = bool(rows) and all(row.speaker is not None for row in rows)
        by_speaker = known and len(speaker_names) > 1
        return cls(
            references=[row.reference for row in rows],
            hypotheses=[[normalise(row.hypotheses[system]) for row in rows] for system in range(len(systems))],
            units=np.asarray(speaker_numbers, np.int64) if by_speaker else _numbered([row.utterance for row in rows]),
            trainings=_numbered([row.training for row in rows]),
            resampled="speakers" if by_speaker else "utterances",
            speakers=len(speaker_names) if known else None,
            empty_references=len(normalised) - len(rows),
        )

    def word_edits(self, system: int = 0) -> NDArray[np.int64]:
        """Count the substituted, deleted, inserted and reference words: int array (utterances, 4)."""
        if not self.references:
            return np.zeros((0, 4), dtype=np.int64)
        return _counts(jiwer.process_words(self.references, self.hypotheses[system]))

    def phone_edits(self, phones: Callable[[str], list[str]], system: int = 0) -> NDArray[np.int64]:
        """Count the substituted, deleted, inserted and reference phones: int array (utterances, 4).

        Args:
            phones: What cuts a text into phones.
            system: Whose texts.
        """
        # Phones may have any characters: each becomes one of Unicode's private ones, which are compared as characters.
        numbers: dict[str, str] = {}
        coded = [
            [
                "".join(numbers.setdefault(phone, chr(_PRIVATE + len(numbers))) for phone in phones(text))
                for text in texts
            ]
            for texts in (self.references, self.hypotheses[system])
        ]
        has_phones = [number for number, reference in enumerate(coded[0]) if reference]
        if not has_phones:
            return np.zeros((0, 4), dtype=np.int64)
        return _counts(jiwer.process_characters(*([texts[number] for number in has_phones] for texts in coded)))

    def character_edits(self, system: int = 0) -> NDArray[np.int64]:
        """Count the substituted, deleted, inserted and reference characters: int array (utterances, 4)."""
        if not self.references:
            return np.zeros((0, 4), dtype=np.int64)
        return _counts(jiwer.process_characters(self.references, self.hypotheses[system]))


def _numbered(values: Sequence[object]) -> NDArray[np.int64]:
    """Number values from 0 in the order in which they first occur."""
    numbers: dict[object, int] = {}
    return np.asarray([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def error_rate(errors: int, length: int) -> float:
    """Divide errors by reference length; NaN if the length is 0."""
    return errors / length if length else math.nan


def _counts(aligned: jiwer.WordOutput | jiwer.CharacterOutput) -> NDArray[np.int64]:
    counts = np.zeros((len(aligned.references), 4), dtype=np.int64)
    for row, chunks, reference in zip(counts, aligned.alignments, aligned.references, strict=True):
        row[3] = len(reference)
        for chunk in chunks:
            if chunk.type in _COLUMNS:
                length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                row[_COLUMNS[chunk.type]] += length
    return counts
