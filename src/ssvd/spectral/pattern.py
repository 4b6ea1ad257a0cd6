"""The trained parameters of SVFT: a few entries M of the r x r core in `W' = U (S + M) V^T` (arXiv 2405.19597).

Patterns of trained entries:

- "plain": the diagonal, r entries.
- "banded": the diagonal and d diagonals on either side of it, r(2d + 1) - d(d + 1) entries.
- "random": as many entries as "banded" has, drawn without repetition, the same on every machine.
- "top-k": as many entries as "banded" has, those (i, j) with the largest |u_i^T v_j|. The product exists for square
  weights; for others the longer vector is cut to the length of the shorter one.
"""

import torch
from torch import Tensor

PATTERNS = ("plain", "banded", "random", "top-k")


def pattern_size(k: int, pattern: str, off_diagonals: int) -> int:
    """Return the number of trained entries of a (k, k) core; `off_diagonals` is d, and counts as at most k - 1."""
    d = 0 if pattern == "plain" else min(off_diagonals, k - 1)
    return k * (2 * d + 1) - d * (d + 1)


def pattern_positions(U: Tensor, V: Tensor, pattern: str, off_diagonals: int, seed: int = 0) -> Tensor:
    """Return the positions of the trained entries in the flattened (k, k) core, ascending, int64, on the device of U.

    Args:
        U: (m, k); only "top-k" uses the values.
        V: (n, k); only "top-k" uses the values.
        pattern: One of `PATTERNS`.
        off_diagonals: d, which sets the number of entries of every pattern but "plain".
        seed: Random seed of the pattern "random".
    """
    k, device = U.shape[1], U.device
    size = pattern_size(k, pattern, off_diagonals)
    if U.is_meta:  # only their number, to count parameters
        return torch.empty(size, dtype=torch.int64, device=device)
    if pattern in ("plain", "banded"):
        index = torch.arange(k, device=device)
        d = 0 if pattern == "plain" else off_diagonals
        return ((index[:, None] - index).abs() <= d).flatten().nonzero().flatten()
    if pattern == "random":
        rank = _mixed_bits(torch.arange(k * k, device=device), seed)
    elif pattern == "top-k":
        length = min(len(U), len(V))
        rank = -(U[:length].double().mT @ V[:length].double()).abs().flatten()
    else:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, not {pattern!r}")
    return torch.argsort(rank, stable=True)[:size].sort().values


def sparse_change(positions: Tensor, M: Tensor, k: int) -> Tensor:
    """Place entries M, (..., size), in matrices (..., k, k), differentiable; float32, or float64 if M is float64."""
    M = M.to(torch.promote_types(M.dtype, torch.float32))
    change: Tensor = M.new_zeros(*M.shape[:-1], k * k).index_copy(-1, positions, M).unflatten(-1, (k, k))
    return change


def checksum(positions: Tensor) -> Tensor:
    """Return a hash of positions: 0-dim float32, an integer below 2^24, which float32 represents exactly."""
    return (_mixed_bits(positions, 0) & 0xFFFFFF).sum().remainder(1 << 24).float()


def _mixed_bits(numbers: Tensor, seed: int) -> Tensor:
    """Hash nonnegative integers to others below 2^31, independently of the version of any library.

    It takes two rounds of multiplication by an odd constant and a shifted exclusive or, within int64.
    """
    bits = (numbers + (1 + seed * 0x9E3779B1) % 0x7FFFFFFF) & 0x7FFFFFFF
    for factor in (0x45D9F3B, 0x2C1B3C6D):
        bits = (bits * factor) & 0x7FFFFFFF
        bits = bits ^ (bits >> 15)
    return bits
