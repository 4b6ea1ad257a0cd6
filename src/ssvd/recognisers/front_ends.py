"""What encoders with a CTC head read: samples of the wave, or log-mel features."""

from itertools import count
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    LasrFeatureExtractor,
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)

from ssvd.recognisers.base import Samples

# Kaldi's frames, which the class of Transformers does not let one change.
_KALDI_WINDOW, _KALDI_SHIFT = 400, 160


class FrontEnd(Protocol):
    """How samples become the input of a network.

    Attributes:
        argument: Name of the input in the network's `forward`.
        is_masked: Whether the network is told which of its input is padding.
        shortest: Number of samples below which there is not one frame.
        frame: Seconds of one frame of the network's output.
    """

    argument: str
    is_masked: bool
    shortest: int
    frame: float

    def __call__(self, samples: Samples) -> Tensor:
        """Return the input of one row, its length first, without padding: (samples,) or (features, bands), float32."""

    def length(self, samples: int) -> int:
        """Return the length of the input of so many samples."""


class Wave:
    """The samples themselves, normalised as the checkpoint asks.

    Args:
        extractor: Feature extractor of Transformers.
        config: Config of the network.
    """

    argument = "input_values"

    def __init__(self, extractor: Wav2Vec2FeatureExtractor, config: Any) -> None:
        self._extractor = extractor
        self.is_masked: bool = extractor.return_attention_mask  # else it was trained without, as the smallest were
        self.frame = prod(config.conv_stride) / extractor.sampling_rate
        self.shortest = getattr(config, "squeeze_factor", 1)  # frames of SEW that become one in its encoder
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.shortest = (self.shortest - 1) * stride + kernel

    def __call__(self, samples: Samples) -> Tensor:
        """Return the input of one row, (samples,)."""
        values = self._extractor(samples, sampling_rate=self._extractor.sampling_rate).input_values[0]
        return torch.from_numpy(values)

    def length(self, samples: int) -> int:
        """Return the length of the input of so many samples: the same."""
        return samples


class LogMel:
    """Log-mel features as the checkpoint's own extractor makes them of each utterance alone.

    Args:
        extractor: Feature extractor of Transformers.
        subsampling: How many of its features become one frame of the network's output.
        fewest: Number of features without which there is not one frame.
    """

    argument = "input_features"
    is_masked = True

    def __init__(
        self,
        extractor: ParakeetFeatureExtractor | LasrFeatureExtractor | SeamlessM4TFeatureExtractor,
        subsampling: int,
        fewest: int,
    ) -> None:
        self._extractor = extractor
        if isinstance(extractor, SeamlessM4TFeatureExtractor):  # stacks neighbours
            self._window, self._shift = _KALDI_WINDOW, _KALDI_SHIFT * extractor.stride
            self._window += self._shift - _KALDI_SHIFT
        else:
            self._shift = extractor.hop_length
            # Parakeet's windows overlap the ends of the audio.
            self._window = extractor.win_length if isinstance(extractor, LasrFeatureExtractor) else self._shift
        self.frame = subsampling * self._shift / extractor.sampling_rate
        # By the deviation of several features they are normalised.
        self.shortest = self._window + (max(2, fewest) - 1) * self._shift

    def __call__(self, samples: Samples) -> Tensor:
        """Return the input of one row, (features, bands)."""
        rate = self._extractor.sampling_rate
        made = self._extractor([samples], sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
        features: Tensor = made["input_features"][0, : int(made["attention_mask"][0].sum())]
        return features.float()

    def length(self, samples: int) -> int:
        """Return the number of features of so many samples."""
        return max(0, (samples - self._window) // self._shift + 1)


def front_end_of(extractor: Any, network: Any) -> FrontEnd:
    """Return the front end of a network, which its feature extractor fits.

    Args:
        extractor: Feature extractor of Transformers.
        network: The network, with or without weights.
    """
    if isinstance(extractor, Wav2Vec2FeatureExtractor):
        return Wave(extractor, network.config)
    encoder: Any = getattr(network.config, "encoder_config", None)
    fewest = next(length for length in count(1) if output_frames(network, torch.tensor(length)) > 0)
    if isinstance(extractor, LasrFeatureExtractor):
        return LogMel(extractor, encoder.subsampling_conv_stride**2, fewest)
    return LogMel(extractor, 1 if encoder is None else encoder.subsampling_factor, fewest)


def output_frames(network: Any, lengths: Tensor) -> Tensor:
    """Return the number of frames that a network makes of inputs of these lengths, int64."""
    if hasattr(network, "_get_subsampling_output_length"):
        frames: Tensor = network._get_subsampling_output_length(lengths)
    else:
        frames = network._get_feat_extract_output_lengths(lengths)
    return frames.long()
