"""Vocal tract length perturbation: the same words from a shorter or longer vocal tract."""

import math

import numpy as np
import torch
from torch import Tensor

# As a share of half the sampling rate: 4.8 kHz of 8 kHz, above which there are few formants.
_BEND = 0.6
_WINDOW, _HOP = 0.032, 0.008  # seconds


def warped(frequency: Tensor, factor: float, nyquist: float) -> Tensor:
    """Return where frequencies (Hz) move: to `factor` times their height, but for the highest, as `nyquist` is fixed.

    This is the piecewise linear map of Jaitly and Hinton, "Vocal Tract Length Perturbation (VTLP) improves speech
    recognition" (ICML workshop 2013). A factor above 1 shortens the vocal tract to be more like a child's.
    """
    return _two_pieces(frequency, factor, nyquist, _BEND * nyquist * min(factor, 1) / factor)


def unwarped(frequency: Tensor, factor: float, nyquist: float) -> Tensor:
    """Return where frequencies (Hz) came from: the inverse of `warped`."""
    return _two_pieces(frequency, 1 / factor, nyquist, _BEND * nyquist * min(factor, 1))


def _two_pieces(frequency: Tensor, slope: float, nyquist: float, bend: float) -> Tensor:
    upper = (nyquist - slope * bend) / (nyquist - bend)
    return torch.where(frequency <= bend, slope * frequency, nyquist - upper * (nyquist - frequency))


def warp_frequencies(samples: np.ndarray, sampling_rate: int, factor: float) -> np.ndarray:
    """Return speech whose frequencies are `warped`; its duration, timing and power stay the same.

    Jaitly and Hinton warp the filters of log-mel features. Here a phase vocoder changes the waveform, which serves
    models of any input: each bin of the short-time spectrum takes the magnitude and phase of the bin where its
    frequency came from, and is then rotated, frame by frame, by the amount that its frequency has moved, so that
    overlapping frames agree on a tone wherever it lies between the bins.

    Args:
        samples: float32 (samples,) or (channels, samples).
        sampling_rate: Hz.
        factor: Between 0.5 and 2; 1 changes rounding only.

    Returns:
        float32 array of the same shape.
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
    # The rotation of a bin in a hop, minus that of its middle, tells how far from the middle the tone in it lies.
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
