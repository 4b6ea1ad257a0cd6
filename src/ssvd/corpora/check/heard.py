"""What is heard of an utterance: the mix of its channels, measured block by block, whatever its length."""

import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssvd.corpora.check.limits import FULL_SCALE


class Heard(NamedTuple):
    """Measures of an utterance.

    Attributes:
        peak: The greatest absolute sample of the mix.
        range: The difference between the greatest and the least sample of the mix.
        full_scale: The share of samples at full scale, in the channel that has most of them.
        cancelled: How much quieter the mix is than its channels on average, in dB; 0 for silent channels.
        key: Hash of the mix, 64 bits.
    """

    peak: float
    range: float
    full_scale: float
    cancelled: float
    key: int


def measure(blocks: Iterable[NDArray[np.float32]]) -> Heard:
    """Measure consecutive blocks of samples of shape (channels, samples), of which there is at least one."""
    digest = hashlib.blake2b(digest_size=8)
    lowest, highest, count = math.inf, -math.inf, 0
    full = energy = mix_energy = np.zeros(1)
    for block in blocks:
        mix = block.mean(axis=0, dtype=np.float32)  # as a model hears it: see `load_audio`
        digest.update(mix.tobytes())
        lowest, highest = min(lowest, float(mix.min())), max(highest, float(mix.max()))
        count += len(mix)
        full = full + (np.abs(block) >= FULL_SCALE).sum(axis=1)
        energy = energy + np.einsum("ct,ct->c", block, block, dtype=np.float64)
        mix_energy = mix_energy + np.einsum("t,t", mix, mix, dtype=np.float64)
    kept = mix_energy.item() / energy.mean() if energy.any() else 1.0
    return Heard(
        peak=max(abs(lowest), abs(highest)),
        range=highest - lowest,
        full_scale=float(full.max()) / count,
        cancelled=10 * math.log10(1 / max(kept, 1e-12)),
        key=int.from_bytes(digest.digest(), "little", signed=True),
    )
