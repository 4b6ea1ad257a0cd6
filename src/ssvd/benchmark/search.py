"""The search for the learning rate of a method, by the dev WER of trainings with the first seed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssvd.benchmark.grid import Group
from ssvd.benchmark.records import Failure, Trial, read_record, record_path
from ssvd.benchmark.tasks import Task

# Ratio of neighbouring learning rates: about half an order of magnitude.
STEP = 3
# Ratio of the best of them to those that are tried at the end.
FINE_STEP = 2

Outcomes = Mapping[float, float | None]
"""Learning rate -> best dev WER, or None where the training failed."""


def search(
    out: Path, group: Group, seed: int, start: Sequence[float], extensions: int, refine: bool
) -> tuple[dict[float, float | None], list[float]]:
    """Return the outcomes of the rates that were tried, and the rates to try next.

    Args:
        out: Folder of the results.
        group: The method at a budget whose rate is searched.
        seed: Random seed of the trainings.
        start: Rates to try first; see `rates_to_try`.
        extensions: Maximum number of further rates; see `rates_to_try`.
        refine: Whether to try half and twice the best rate at the end.

    Raises:
        UserError: A record cannot be read.
    """
    outcomes: dict[float, float | None] = {}
    rates, former = list(start), None
    while rates != former:
        former = rates
        for rate in rates:
            task = Task(group, seed, rate)
            trial = record_path(out, Trial, task.id)
            if trial.is_file():
                outcomes[rate] = read_record(trial, Trial).best_dev_wer
            elif record_path(out, Failure, task.id).is_file():
                outcomes[rate] = None
        rates = rates_to_try(start, extensions, refine, outcomes)
    return outcomes, rates


def rates_to_try(start: Sequence[float], extensions: int, refine: bool, outcomes: Outcomes) -> list[float]:
    """Return the learning rates to try next.

    Those of `start` come first, then further ones while the best lies on the edge, then half and twice the best.

    Args:
        start: Rates to try in any case; if there is only one, no other is tried.
        extensions: Maximum number of further rates beyond the edges.
        refine: Whether half and twice the best rate are tried at the end.
        outcomes: What was tried.
    """
    rates = list(start)
    while True:
        if missing := [rate for rate in rates if rate not in outcomes]:
            return missing
        beyond = _beyond_the_edge({rate: outcomes[rate] for rate in rates})
        if len(start) == 1 or beyond is None or len(rates) - len(start) >= extensions:
            break
        rates.append(beyond)
    best = best_rate({rate: outcomes[rate] for rate in rates})
    if not refine or len(start) == 1 or best is None:
        return []
    fine = _rounded(best / FINE_STEP), _rounded(best * FINE_STEP)
    return [rate for rate in fine if rate not in outcomes]


def _beyond_the_edge(outcomes: Outcomes) -> float | None:
    tried = sorted(outcomes)
    # If all trainings failed, the rates are too high, and the lowest counts as the best.
    best = best_rate(outcomes) or tried[0]
    if best == tried[0]:
        return _rounded(best / STEP)
    return _rounded(best * STEP) if best == tried[-1] else None


def best_rate(outcomes: Outcomes) -> float | None:
    """Return the rate with the lowest dev WER, the lowest of equal ones; None where all trainings failed."""
    rated = {rate: wer for rate, wer in sorted(outcomes.items()) if wer is not None and not math.isnan(wer)}
    return min(rated, key=lambda rate: rated[rate], default=None)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
