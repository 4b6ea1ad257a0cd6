"""What decoding needs in every family of models."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

PAUSE = 0.2  # seconds: a long recording is cut in the middle of the quietest stretch of this length


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Neither gradients nor dropout, until the end, when the module is again in the mode that it was in."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def whole_windows(duration: float, window: float) -> float:
    """Seconds that a model reads which pads to its window; a recording cut at pauses may need a window or so more."""
    return max(1, math.ceil(duration / window - 1e-6)) * window


def split_at_pauses(samples: np.ndarray, limit: int, sampling_rate: int, *, slack: int = 0) -> list[np.ndarray]:
    """Pieces of mono samples (n,) of at most `limit` samples, each cut at the quietest pause of its second half.

    One that exceeds the limit by up to `slack` samples stays whole.
    """
    pieces = []
    while len(samples) > limit + slack:
        tail = samples[limit // 2 : limit].astype(np.float64)
        width = min(round(PAUSE * sampling_rate), len(tail) // 2)
        energy = np.cumsum(tail**2)
        latest = np.argmin((energy[width:] - energy[:-width])[::-1])
        cut = limit - int(latest) - width // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]
