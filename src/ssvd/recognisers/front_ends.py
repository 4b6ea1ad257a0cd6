"""What encoders with a CTC head or a transducer read: samples of the wave, or log-mel features."""

from functools import partial
from itertools import count
from math import prod
from typing import Any, Protocol, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import (
    LasrFeatureExtractor,
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderSubsamplingConv2D

from ssvd.recognisers.base import Samples

_Network = TypeVar("_Network", bound=nn.Module)

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


def hide_padding(network: _Network) -> _Network:
    """Let encoders of Parakeet's kind mask the padding behind adapted convolutions too; return the network, changed.

    Transformers does so behind each layer that is a Conv2d, which one with an adapter is not: the encoder would read
    the padding, and take the speech for longer than it is.
    """
    for layer in network.modules():
        if isinstance(layer, ParakeetEncoderSubsamplingConv2D):
            layer.forward = partial(_subsample, layer)
    return network


def _subsample(
    subsampling: ParakeetEncoderSubsamplingConv2D, input_features: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Return frames (rows, frames, width) of features (rows, length, bands), in place of the module's own method."""
    hidden = input_features[:, None]
    lengths = None if attention_mask is None else attention_mask.sum(-1)
    for layer in subsampling.layers:
        hidden = layer(hidden)
        layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        if isinstance(layer, nn.Conv2d) and lengths is not None:
            lengths = subsampling._get_output_length(lengths, layer)
            speech = torch.arange(hidden.shape[2], device=hidden.device) < lengths[:, None]
            hidden = hidden * speech[:, None, :, None]
    frames: Tensor = subsampling.linear(hidden.transpose(1, 2).flatten(2))
    return frames
