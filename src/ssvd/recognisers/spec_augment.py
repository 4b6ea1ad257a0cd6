"""Masking of features in training."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpecAugment:
    """Masking of bands and stretches of speech (Park et al. 2019, arXiv 1904.08779), drawn from torch's CPU generator.

    Each mask has a width drawn uniformly from 0 to its limit and lies within the speech, never in the padding. Masked
    values become 0, near the middle of Whisper's scale.
    """

    frequency_masks: int = 2
    frequency_width: int = 27  # mel bands
    time_masks: int = 10
    time_share: float = 0.05  # of an utterance's frames, each mask

    def __call__(self, features: Tensor, frames: Tensor) -> Tensor:
        """Masked copy of features (batch, mels, frames) whose rows hold `frames` (batch,) frames of speech."""
        batch, mels, length = features.shape
        frames = frames.cpu()
        widths = torch.full((batch,), min(self.frequency_width, mels))
        bands = _masked(mels, torch.full((batch,), mels), widths, self.frequency_masks)
        times = _masked(length, frames, (frames * self.time_share).long(), self.time_masks)
        return features.masked_fill((bands[:, :, None] | times[:, None, :]).to(features.device), 0.0)


def _masked(length: int, extents: Tensor, widths: Tensor, masks: int) -> Tensor:
    """(batch, length): where one of `masks` intervals of up to `widths` within the first `extents` positions lies."""
    width = (torch.rand(len(extents), masks) * (widths[:, None] + 1)).floor()
    start = (torch.rand(len(extents), masks) * (extents[:, None] - width + 1)).floor()
    position = torch.arange(length)
    return ((position >= start[..., None]) & (position < (start + width)[..., None])).any(dim=1)
