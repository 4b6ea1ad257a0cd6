"""The utterances that an adapter changes most, word by word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer

from ssvd.benchmark.records import Hypothesis
from ssvd.scoring import normaliser as find_normaliser

Edit = Literal["same", "substitution", "deletion", "insertion"]


@dataclass(frozen=True)
class Word:
    """A word of a hypothesis, or for a deletion the word of the reference that it lacks."""

    text: str
    edit: Edit


@dataclass(frozen=True)
class Change:
    """An utterance before and after, normalised and aligned to its reference.

    Attributes:
        id, speaker: Of the utterance.
        before, after: Word errors.
        words: Of the reference.
        slots: From left to right: a word of the reference, or None between two, and what either hypothesis has there.
    """

    id: str
    speaker: str | None
    before: int
    after: int
    words: int
    slots: tuple[tuple[str | None, Word | None, Word | None], ...]


def largest_changes(
    before: Sequence[Hypothesis], after: Sequence[Hypothesis], normaliser: str, count: int = 5
) -> tuple[list[Change], list[Change]]:
    """The utterances that lost most word errors, and those that gained most, at most `count` of either.

    Of equal changes, the shorter utterance comes first. Utterances that one side lacks, or whose reference is empty,
    are left out.
    """
    normalise = find_normaliser(normaliser)
    other = {text.id: text for text in before}
    found = []
    for text in after:
        reference = normalise(text.reference)
        if reference and text.id in other:
            found.append(_change(text, reference, normalise(other[text.id].hypothesis), normalise(text.hypothesis)))
    improved = sorted((c for c in found if c.after < c.before), key=lambda c: (c.after - c.before, c.words, c.id))
    worsened = sorted((c for c in found if c.after > c.before), key=lambda c: (c.before - c.after, c.words, c.id))
    return improved[:count], worsened[:count]


def _change(text: Hypothesis, reference: str, before: str, after: str) -> Change:
    words = reference.split()
    gaps1, words1 = _aligned(reference, before)
    gaps2, words2 = _aligned(reference, after)
    slots: list[tuple[str | None, Word | None, Word | None]] = []
    for position in range(len(words) + 1):
        first, second = gaps1[position], gaps2[position]
        for index in range(max(len(first), len(second))):
            slots.append((None, *(side[index] if index < len(side) else None for side in (first, second))))  # type: ignore[arg-type]
        if position < len(words):
            slots.append((words[position], words1[position], words2[position]))
    errors1, errors2 = (
        sum(word is not None and word.edit != "same" for word in side)
        for side in ([slot[1] for slot in slots], [slot[2] for slot in slots])
    )
    return Change(text.id, text.speaker, errors1, errors2, len(words), tuple(slots))


def _aligned(reference: str, hypothesis: str) -> tuple[list[list[Word]], list[Word]]:
    """What is inserted before each word of the reference and at its end, and what stands for each of its words."""
    words, heard = reference.split(), hypothesis.split()
    gaps: list[list[Word]] = [[] for _ in range(len(words) + 1)]
    stands = [Word(word, "deletion") for word in words]
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        spoken = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            gaps[chunk.ref_start_idx] += [Word(word, "insertion") for word in spoken]
        elif chunk.type != "delete":
            edit: Edit = "same" if chunk.type == "equal" else "substitution"
            stands[chunk.ref_start_idx : chunk.ref_end_idx] = [Word(word, edit) for word in spoken]
    return gaps, stands
