"""What is trained: few parameters, and the k x k core `C = (S + dS) G` that they make of the singular values.

A core is handled as its change `C - S`, which is exactly zero at the start. With `G = I + H`,

    C - S = diag(dS) + diag(S + dS) H.

Parametrisation. An update of Adam moves every entry of a parameter by about the learning rate. If the parameter were
K itself, the norm of K, which is what the output feels, would move by up to k times as much, and no learning rate
would hold for every k. So the parameter theta is K in units of `step(k)`, K = theta * step(k), and the parameter s is
the relative change of the singular values, dS = S * s. A learning rate of the paper (arXiv 2509.02830), which is one
for K itself, becomes `learning_rate / step(k)` here: the paper's 1e-4 is 2e-3 at k = 409.
"""

from functools import lru_cache

import torch
from torch import Tensor

ROTATIONS = ("approx", "strict", "none")


def step(k: int) -> float:
    """Unit of theta: how far a change of 1 in theta moves an entry of K (with rotation "none", of G)."""
    return k**-0.5


def rotation_size(k: int, rotation: str) -> int:
    """Number of entries of theta.

    A skew-symmetric K has k(k-1)/2; a free G, rotation "none", has k^2. At k = 1 there is nothing to rotate, and a free
    G would repeat the scale: every rotation has none then.
    """
    if k == 1:
        return 0
    return k * k if rotation == "none" else k * (k - 1) // 2


def core_change(S: Tensor, theta: Tensor | None, s: Tensor | None, rotation: str) -> Tensor:
    """The change `C - S` of the core with a strict, approximate or free inner transformation, arXiv 2509.02830.

    Args:
        S: Singular values, (k,).
        theta: (rotation_size(k, rotation),), or None for G = I. With rotations "approx" and "strict" it holds the
            entries of K below the diagonal, row by row; with "none" those of G - I; both divided by `step(k)`.
        s: Relative change of the singular values, (k,), or None for no change.
        rotation: "approx", G = I - 2K; "strict", G = (I - K)(I + K)^-1, orthogonal; "none", G free.

    Returns:
        (k, k), in float32 (float64 where S is float64), differentiable in theta and s.
    """
    S = S.to(torch.promote_types(S.dtype, torch.float32))
    dS = torch.zeros_like(S) if s is None else S * s.to(S.dtype)
    change = torch.diag(dS)
    if theta is not None:
        change = change + (S + dS)[:, None] * _rotation_change(theta.to(S.dtype), len(S), rotation)
    return change


def orthogonality_error(theta: Tensor, k: int, rotation: str) -> float:
    """How far G is from a rotation: the spectral norm of `G^T G - I`, 0 for an orthogonal G.

    The approximate form can only stretch: there it is 4 ||K||^2. Costs one symmetric eigenvalue problem of size k: fit
    for the end of a training run, not for each step.
    """
    H = _rotation_change(theta.detach().float(), k, rotation)
    return float(torch.linalg.eigvalsh(H + H.mT + H.mT @ H).abs().max())


def change_signs(theta: Tensor, signs: Tensor, rotation: str) -> Tensor:
    """The theta that does to a basis with changed signs what `theta` does to the basis itself.

    Args:
        theta: (rotation_size(k, rotation),).
        signs: (k,) of 1 and -1.
    """
    signs = signs.to(theta)
    both = torch.outer(signs, signs).flatten()
    return theta * (both if rotation == "none" else both[_below_diagonal(len(signs), theta.device)])


def _rotation_change(theta: Tensor, k: int, rotation: str) -> Tensor:
    """`H = G - I`, (k, k)."""
    theta = theta * step(k)
    if rotation == "none":
        return theta.view(k, k)
    lower = theta.new_zeros(k * k).index_copy(0, _below_diagonal(k, theta.device), theta).view(k, k)
    K = lower - lower.mT
    if rotation == "approx":
        return -2 * K
    # (I - K)(I + K)^-1 - I = -2 (I + K)^-1 K, and I + K is never singular.
    return -2 * torch.linalg.solve(K + torch.eye(k, dtype=K.dtype, device=K.device), K)


@lru_cache(maxsize=64)
def _below_diagonal(k: int, device: torch.device) -> Tensor:
    """Positions of the entries below the diagonal in a flattened (k, k) matrix."""
    with torch.inference_mode(False):  # an inference tensor in the cache would break the next training step
        row, column = torch.tril_indices(k, k, -1, device=device)
        return row * k + column
