"""Vocal tract length perturbation: the same words from a shorter or longer vocal tract."""

import math

import numpy as np
import torch
from torch import Tensor

# Of half the sampling rate: 4.8 kHz of 8 kHz, above which there are few formants.
_BEND = 0.6
_WINDOW, _HOP = 0.032, 0.008  # seconds


def warped(frequency: Tensor, factor: float, nyquist: float) -> Tensor:
    """Where frequencies (Hz) go: `factor` times as high, but for the highest, so that `nyquist` stays where it is.

    The piecewise linear map of Jaitly and Hinton, "Vocal Tract Length Perturbation (VTLP) improves speech recognition"
    (ICML workshop 2013): a factor above 1 shortens the tract, as a child's is.
    """
    return _two_pieces(frequency, factor, nyquist, _BEND * nyquist * min(factor, 1) / factor)


def unwarped(frequency: Tensor, factor: float, nyquist: float) -> Tensor:
    """Where frequencies (Hz) came from: the inverse of `warped`."""
    return _two_pieces(frequency, 1 / factor, nyquist, _BEND * nyquist * min(factor, 1))


def _two_pieces(frequency: Tensor, slope: float, nyquist: float, bend: float) -> Tensor:
    upper = (nyquist - slope * bend) / (nyquist - bend)
    return torch.where(frequency <= bend, slope * frequency, nyquist - upper * (nyquist - frequency))


def warp_frequencies(samples: np.ndarray, sampling_rate: int, factor: float) -> np.ndarray:
    """Speech whose frequencies are `warped`; duration, timing and power stay as they are.

    Jaitly and Hinton warp the filters of log-mel features. Here the waveform is changed, so that it serves models of
    any input, by a phase vocoder: each bin of the short-time spectrum takes the magnitude and phase of the bin where
    its frequency came from, and then turns, frame by frame, by what its frequency has moved; so overlapping frames
    agree on a tone, wherever it lies between the bins.

    Args:
        samples: float32 (samples,) or (channels, samples).
        sampling_rate: Hz.
        factor: Between 0.5 and 2; 1 changes nothing but rounding.

    Returns:
        float32, of the same shape.
    """
    signal = torch.from_numpy(np.atleast_2d(samples).astype(np.float32))
    hop = round(_HOP * sampling_rate)
    size = round(_WINDOW / _HOP) * hop
    padded = torch.nn.functional.pad(signal, (size, size))  # so that as many frames overlap at the ends
    window = torch.hann_window(size)
    bins = torch.linspace(0, sampling_rate / 2, size // 2 + 1)
    # Phases count from the middle of a frame, not from its start, so that what is there stays there.
    sign = (-1.0) ** torch.arange(len(bins))[:, None]
    spectrum = torch.stft(padded, size, hop, window=window, return_complex=True) * sign
    nyquist = sampling_rate / 2
    source = unwarped(bins, factor, nyquist) / bins[1]
    below = source.long().clamp(max=len(bins) - 2)
    share = (source - below)[:, None]
    magnitude = torch.lerp(spectrum.abs()[:, below], spectrum.abs()[:, below + 1], share)
    nearest = source.round().long()
    carrier = spectrum[:, nearest]
    # What a bin turns by in a hop, less what its middle would, is how far from the middle the tone in it lies.
    middle = 2 * math.pi * hop / sampling_rate * bins[nearest][:, None]
    turn = (carrier[..., 1:] * carrier[..., :-1].conj() * torch.polar(torch.ones_like(middle), -middle)).angle()
    frequency = (bins[nearest][:, None] + turn * sampling_rate / (2 * math.pi * hop)).clamp(0, nyquist)
    moved = 2 * math.pi * hop / sampling_rate * (warped(frequency, factor, nyquist) - frequency)
    phase = torch.nn.functional.pad(moved.cumsum(-1), (1, 0)) + carrier.angle()
    turned = torch.polar(magnitude, phase) * sign
    changed = torch.istft(turned, size, hop, window=window, length=padded.shape[-1])[:, size:-size]
    power = changed.square().sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    changed *= (signal.square().sum(-1, keepdim=True) / power).sqrt()
    return changed.reshape(samples.shape).numpy()
