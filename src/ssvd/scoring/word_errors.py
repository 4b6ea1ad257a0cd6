"""Errors word by word: which words are taken for which, and which are hard."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

from ssvd.scoring.edits import ScoredUtterances


@dataclass(frozen=True)
class WordErrors:
    """How often each error was made, by one alignment of the fewest edits for each utterance.

    Attributes:
        substitutions: (word that was said, word that was recognised) -> count.
        deletions: Word that was said, and not recognised -> count.
        insertions: Word that was recognised, and not said -> count.
        said: Word that was said -> count.
    """

    substitutions: Counter[tuple[str, str]]
    deletions: Counter[str]
    insertions: Counter[str]
    said: Counter[str]

    def missed(self) -> Counter[str]:
        """Return how often each word that was said was substituted or deleted."""
        missed = Counter(self.deletions)
        for (word, _), count in self.substitutions.items():
            missed[word] += count
        return missed

    def as_dict(self, limit: int) -> dict[str, Any]:
        """Return the most frequent errors of each kind, ready for JSON."""
        return {
            "substitutions": [
                {"said": said, "recognised": recognised, "count": count}
                for (said, recognised), count in _most(self.substitutions, limit)
            ],
            "deletions": [{"said": said, "count": count} for said, count in _most(self.deletions, limit)],
            "insertions": [{"recognised": word, "count": count} for word, count in _most(self.insertions, limit)],
            "words": [
                {"said": said, "missed": count, "of": self.said[said]} for said, count in _most(self.missed(), limit)
            ],
        }


def word_errors(references: Sequence[str], hypotheses: Sequence[str], *, normaliser: str = "none") -> WordErrors:
    """Align texts word by word, and count the errors.

    Args:
        references: What was said.
        hypotheses: What was recognised.
        normaliser: Name of the normaliser of both texts; see `ssvd.scoring.normaliser`.

    Raises:
        ValueError: The sequences differ in length.
        UserError: There is no normaliser of that name.
    """
    scored = ScoredUtterances.normalise(references, [hypotheses], None, None, None, normaliser)
    errors = WordErrors(Counter(), Counter(), Counter(), Counter())
    if not scored.references:
        return errors
    aligned = jiwer.process_words(scored.references, scored.hypotheses[0])
    for said, heard, chunks in zip(aligned.references, aligned.hypotheses, aligned.alignments, strict=True):
        errors.said.update(said)
        for chunk in chunks:
            of_said = said[chunk.ref_start_idx : chunk.ref_end_idx]
            of_heard = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                errors.substitutions.update(zip(of_said, of_heard, strict=True))
            elif chunk.type == "delete":
                errors.deletions.update(of_said)
            elif chunk.type == "insert":
                errors.insertions.update(of_heard)
    return errors


def _most(counts: Counter[Any], limit: int) -> list[tuple[Any, int]]:
    """Return the most frequent entries, those of equal counts in the order of the alphabet."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:limit]
