"""A fingerprint of all weights of a base model, by which an adapter is not used on another one.

It is the same on every device, up to the order of additions. A copy that was rounded to bf16 or fp16 is known by its
entries, and compared with a tolerance. So is a quantised one, as its dequantised weights.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ssvd.documents import checked
from ssvd.tuners.quantised import dequantised_weight, is_quantised

_BLOCK = 2**16  # entries of a weight for each sum; a smaller weight has _FEWEST sums
_FEWEST = 4
# Largest differences of sums relative to the norm of the block: by the order of additions, and by rounding entries
# (the largest that rounding did in 120 weights was 6e-3 for bf16).
_EXACT = 2e-5
_ROUNDED = {"bfloat16": 1e-2, "float16": 2e-3, "quantised": 1e-2}
_SAMPLES, _SAMPLE_TOLERANCE = 8, 5e-3
# Used only for masking in training, and random if the checkpoint lacks it.
_UNUSED = ("masked_spec_embed",)
# Truncated to the window, of which adapters and decoding may use different ones: a sum for each row.
_TRUNCATED = ("encoder.embed_positions.weight",)


Precision = Literal["bfloat16", "float16", "float32", "quantised"]


class Weight(BaseModel):
    """Fingerprint of one weight.

    Attributes:
        precision: The least precise dtype that represents all entries; "quantised" for a weight of 8 or 4 bits.
        sums: Sum of the entries of each block, with weights of mean square 1.
    """

    precision: Precision
    sums: list[float]


class BaseFingerprint(BaseModel):
    """Fingerprints of all floating-point parameters and buffers of a network, by their names."""

    weights: dict[str, Weight]


def base_fingerprint(module: nn.Module) -> dict[str, Any]:
    """Return the fingerprint of a network that is not wrapped, as JSON values."""
    weights = {name: _fingerprint(weight, name.endswith(_TRUNCATED)) for name, weight in _weights(module).items()}
    return BaseFingerprint(weights=weights).model_dump()


def differing_weight(module: nn.Module, stored: Any) -> str | None:
    """Return the name of a weight that is not as in a stored fingerprint; None if all are.

    Args:
        module: The network, not wrapped.
        stored: What `base_fingerprint` returned, or samples of the adapted layers alone, as former versions stored.

    Raises:
        ValueError: The stored value is neither.
    """
    if isinstance(stored, dict) and "weights" not in stored:
        return _differing_sample(module, checked(dict[str, list[float]], stored))
    expected = checked(BaseFingerprint, stored).weights
    weights = _weights(module)
    if others := sorted(expected.keys() ^ weights.keys()):
        return others[0]
    for name, weight in weights.items():
        if not _is_same(weight, expected[name], name.endswith(_TRUNCATED)):
            return name
    return None


def _weights(module: nn.Module) -> dict[str, Tensor | nn.Module]:
    """Return the weights by name; in the place of a quantised one its layer, as dequantised it takes more memory."""
    quantised = {f"{name}.weight": layer for name, layer in module.named_modules() if is_quantised(layer)}
    scales = tuple(name.removesuffix("weight") + "SCB" for name in quantised), tuple(f"{name}." for name in quantised)
    floating = {
        name: tensor.detach()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and tensor.numel() and not name.endswith(_UNUSED)
    }
    others = {n: t for n, t in floating.items() if n not in scales[0] and not n.startswith(scales[1])}
    return others | quantised


def _fingerprint(weight: Tensor | nn.Module, by_row: bool) -> Weight:
    entries, precision = _entries(weight)
    sums, _ = _block_sums(entries, by_row)
    # Eight digits are enough, and keep the file small.
    return Weight(precision=precision, sums=[float(f"{value:.8g}") for value in sums.tolist()])


def _entries(weight: Tensor | nn.Module) -> tuple[Tensor, Precision]:
    """Return the entries of a weight and their precision."""
    if isinstance(weight, nn.Module):
        return dequantised_weight(weight), "quantised"
    return weight, _precision(weight)


def _is_same(weight: Tensor | nn.Module, stored: Weight, by_row: bool) -> bool:
    entries, precision = _entries(weight)
    sums, norms = _block_sums(entries, by_row)
    expected = torch.tensor(stored.sums, dtype=sums.dtype)
    if by_row:
        common = min(len(sums), len(expected))
        sums, norms, expected = sums[:common], norms[:common], expected[:common]
    if len(expected) != len(sums):
        return False
    # Rounding a weight a second time to the same precision changes nothing.
    tolerance = _EXACT if precision == stored.precision else _ROUNDED.get(precision, _EXACT)
    if stored.precision == "quantised":  # elsewhere an entry may be rounded up instead of down
        tolerance = _ROUNDED["quantised"]
    return bool(((sums - expected).abs() <= tolerance * norms).all())  # false for NaN


def _precision(weight: Tensor) -> Precision:
    weight = weight.float()
    if torch.equal(weight, weight.bfloat16().float()):
        return "bfloat16"
    return "float16" if torch.equal(weight, weight.half().float()) else "float32"


def _block_sums(weight: Tensor, by_row: bool) -> tuple[Tensor, Tensor]:
    """Return the weighted sum and the norm of each block of a weight, (blocks,), float64, on the CPU."""
    entries = weight.flatten().float()
    blocks = max(min(_FEWEST, len(entries)), math.ceil(len(entries) / _BLOCK))
    length = weight.shape[-1] if by_row else math.ceil(len(entries) / blocks)
    padded = nn.functional.pad(entries, (0, -len(entries) % length)).view(-1, length)
    return (padded @ _direction(length).to(padded)).double().cpu(), padded.norm(dim=1).double().cpu()


@lru_cache
def _direction(length: int) -> Tensor:
    """Return quasi-random numbers of mean square 1, (length,), float32: exchanged entries or rows change the sum."""
    index = torch.arange(1, length + 1, dtype=torch.float64)
    return (math.sqrt(2) * torch.cos(2 * math.pi * torch.frac(index * index * (math.sqrt(5) - 1) / 2))).float()


def _differing_sample(module: nn.Module, stored: Mapping[str, list[float]]) -> str | None:
    """Compare a few entries of the weights of some layers, as former versions stored them."""
    layers = dict(module.named_modules())
    for name, values in stored.items():
        if len(values) != _SAMPLES:
            raise ValueError(f"{name} has {len(values)} samples instead of {_SAMPLES}")
        expected = torch.tensor(values)
        weight = getattr(layers.get(name), "weight", None)
        if weight is None:
            return name
        places = torch.linspace(0, weight.numel() - 1, _SAMPLES).long().clamp(max=weight.numel() - 1)
        samples = weight.detach().flatten()[places.to(weight.device)].float().cpu()
        if not (samples - expected).abs().max() <= _SAMPLE_TOLERANCE * expected.abs().max():
            return f"{name}.weight"
    return None
