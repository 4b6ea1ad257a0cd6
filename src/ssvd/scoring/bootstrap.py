"""Percentile bootstrap over speakers or utterances. All confidence intervals of error rates are computed here."""

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
"""Lower and upper bound."""

_LEVELS = (0.025, 0.975)
_DRAWN_AT_ONCE = 2_000_000


def resample(
    counts: NDArray[np.int64], units: NDArray[np.int64], resamples: int, seed: int
) -> NDArray[np.float64] | None:
    """Sum counts over units that are drawn with replacement.

    Args:
        counts: (utterances, columns).
        units: (utterances,): the unit of each utterance, numbered from 0.
        resamples: Number of draws.
        seed: Random seed; the same seed draws the same units.

    Returns:
        (resamples, columns); None with fewer than two units.
    """
    number = int(units.max(initial=-1)) + 1
    if number < 2:
        return None
    totals = np.zeros((number, counts.shape[1]))
    np.add.at(totals, units, counts)
    random = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // number)  # bounds the memory
    sizes = [min(step, resamples - done) for done in range(0, resamples, step)]
    return np.concatenate([totals[random.integers(number, size=(size, number))].sum(axis=1) for size in sizes])


def interval(values: NDArray[np.float64]) -> Interval:
    """Return the 95 % percentile interval of the values that were drawn."""
    low, high = np.quantile(values, _LEVELS)
    return float(low), float(high)


def two_sided_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided bootstrap p-value of no difference, at least 2 / (resamples + 1)."""
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * (int(rarer) + 1) / (len(differences) + 1))
