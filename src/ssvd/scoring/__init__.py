"""Error rates, their confidence intervals, paired comparisons, and text normalisers."""

from ssvd.scoring.comparison import Comparison, compare
from ssvd.scoring.edits import Unit
from ssvd.scoring.normalisers import normaliser, usual_normaliser
from ssvd.scoring.rates import Score, score, score_by
from ssvd.scoring.word_errors import WordErrors, word_errors

__all__ = [
    "Comparison",
    "Score",
    "Unit",
    "WordErrors",
    "compare",
    "normaliser",
    "score",
    "score_by",
    "usual_normaliser",
    "word_errors",
]
