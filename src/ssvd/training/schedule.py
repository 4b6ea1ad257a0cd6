"""The learning rate over the updates of a run."""

import math

from ssvd_options.adapt import Decay


def rate_factor(update: int, *, updates: int, warmup: float, decay: Decay) -> float:
    """Return the learning rate of an update as a share of the peak rate.

    Args:
        update: Number of the update, from 0.
        updates: Number of all updates.
        warmup: Share of all updates in which the rate rises linearly; at least one update.
        decay: How the rate falls afterwards: "linear" and "cosine" reach 0 at the end, "inverse-sqrt" falls with the
            square root of the updates.
    """
    rising = max(1, round(warmup * updates))
    if update < rising:
        return (update + 1) / rising
    done = (update - rising) / max(1, updates - rising)
    match decay:
        case "linear":
            return max(0.0, 1 - done)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case "inverse-sqrt":
            return math.sqrt(rising / (update + 1))
    return 1.0
