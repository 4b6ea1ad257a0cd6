"""The utterances that an adapter changes most."""

from collections.abc import Sequence

from ssvd.benchmark.records import Hypothesis
from ssvd.reports.aligned_utterances import AlignedUtterance, align
from ssvd.scoring import normaliser as find_normaliser


def most_changed(
    before: Sequence[Hypothesis], after: Sequence[Hypothesis], normaliser: str, count: int = 5
) -> tuple[list[AlignedUtterance], list[AlignedUtterance]]:
    """Return the utterances that improved most and those that worsened most, by the change in word errors.

    Each is aligned with both hypotheses, the former first. Among equal changes, the shorter utterance comes first.
    Utterances that are missing on one side, or whose reference is empty, are left out.

    Args:
        before: Hypotheses of the first model.
        after: Hypotheses of the second model.
        normaliser: Name of the normaliser of all texts.
        count: Maximum number of utterances of each kind.
    """
    normalise = find_normaliser(normaliser)
    first = {text.id: normalise(text.hypothesis) for text in before}
    utterances = [
        align(text.id, text.speaker, reference, (first[text.id], normalise(text.hypothesis)))
        for text in after
        if text.id in first and (reference := normalise(text.reference))
    ]
    improved = sorted((u for u in utterances if _gain(u) > 0), key=lambda u: (-_gain(u), u.words, u.id))
    worsened = sorted((u for u in utterances if _gain(u) < 0), key=lambda u: (_gain(u), u.words, u.id))
    return improved[:count], worsened[:count]


def _gain(utterance: AlignedUtterance) -> int:
    before, after = utterance.errors
    return before - after
