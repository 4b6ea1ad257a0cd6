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
    """A word of a hypothesis; for a deletion, the word of the reference that is missing."""

    text: str
    edit: Edit


@dataclass(frozen=True)
class ChangedUtterance:
    """An utterance before and after, normalised and aligned to its reference.

    Attributes:
        id: Its id.
        speaker: Its speaker, if known.
        before: Number of word errors before.
        after: Number of word errors after.
        words: Number of words of the reference.
        slots: From left to right, a word of the reference, or None between two words, with the words that the first and
            the second hypothesis have there.
    """

    id: str
    speaker: str | None
    before: int
    after: int
    words: int
    slots: tuple[tuple[str | None, Word | None, Word | None], ...]


def most_changed(
    before: Sequence[Hypothesis], after: Sequence[Hypothesis], normaliser: str, count: int = 5
) -> tuple[list[ChangedUtterance], list[ChangedUtterance]]:
    """Return the utterances that improved most and those that worsened most, by the change in word errors.

    Among equal changes, the shorter utterance comes first. Utterances that are missing on one side, or whose reference
    is empty, are left out.

    Args:
        before: Hypotheses of the first model.
        after: Hypotheses of the second model.
        normaliser: Name of the normaliser of all texts.
        count: Maximum number of utterances of each kind.
    """
    normalise = find_normaliser(normaliser)
    first = {text.id: text for text in before}
    utterances = []
    for text in after:
        reference = normalise(text.reference)
        if reference and text.id in first:
            utterances.append(
                _compare(text, reference, normalise(first[text.id].hypothesis), normalise(text.hypothesis))
            )
    improved = sorted((c for c in utterances if c.after < c.before), key=lambda c: (c.after - c.before, c.words, c.id))
    worsened = sorted((c for c in utterances if c.after > c.before), key=lambda c: (c.before - c.after, c.words, c.id))
    return improved[:count], worsened[:count]


def _compare(text: Hypothesis, reference: str, before: str, after: str) -> ChangedUtterance:
    """Align both hypotheses of an utterance to its reference."""
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
    return ChangedUtterance(text.id, text.speaker, errors1, errors2, len(words), tuple(slots))


def _aligned(reference: str, hypothesis: str) -> tuple[list[list[Word]], list[Word]]:
    """Return the words inserted before each word of the reference and at its end, and the word in place of each."""
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
