"""Percentile bootstrap over speakers or utterances, and over trainings. All intervals of error rates come from here."""

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
"""Lower and upper bound."""

_LEVELS = (0.025, 0.975)
_DRAWN_AT_ONCE = 2_000_000


def resample(
    counts: NDArray[np.int64],
    units: NDArray[np.int64],
    trainings: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> NDArray[np.float64] | None:
    """Sum counts over units that are drawn with replacement and, where there are several, over drawn trainings.

    Units and trainings are drawn independently of each other, and a count is taken as often as its unit times as often
    as its training (the pigeonhole bootstrap for crossed factors, arXiv 0712.1111).

    Args:
        counts: (rows, columns), one row for each hypothesis.
        units: (rows,): the unit of each row, numbered from 0.
        trainings: (rows,): the training of each row, numbered from 0.
        resamples: Number of draws.
        seed: Random seed; the same seed draws the same units and trainings.

    Returns:
        (resamples, columns); None with fewer than two units.
    """
    number, repeats = int(units.max(initial=-1)) + 1, int(trainings.max(initial=-1)) + 1
    if number < 2:
        return None
    totals = np.zeros((repeats, number, counts.shape[1]))
    np.add.at(totals, (trainings, units), counts)
    random = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // (number * repeats))  # bounds the memory
    sizes = [min(step, resamples - done) for done in range(0, resamples, step)]
    drawn = [random.integers(number, size=(size, number)) for size in sizes]
    if repeats == 1:
        return np.concatenate([totals[0, some].sum(axis=1) for some in drawn])
    times = np.concatenate([_times_drawn(some, number) for some in drawn])
    times_trained = _times_drawn(random.integers(repeats, size=(resamples, repeats)), repeats)
    sums: NDArray[np.float64] = np.einsum("ru,rt,tuc->rc", times, times_trained, totals, optimize=True)
    return sums


def _times_drawn(drawn: NDArray[np.int64], number: int) -> NDArray[np.float64]:
    """Count how often each of `number` things is in each row of (draws, drawn)."""
    times = np.zeros((len(drawn), number))
    np.add.at(times, (np.arange(len(drawn))[:, None], drawn), 1)
    return times


def interval(values: NDArray[np.float64]) -> Interval:
    """Return the 95 % percentile interval of the values that were drawn."""
    low, high = np.quantile(values, _LEVELS)
    return float(low), float(high)


def two_sided_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided bootstrap p-value of no difference, at least 2 / (resamples + 1)."""
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * (int(rarer) + 1) / (len(differences) + 1))
