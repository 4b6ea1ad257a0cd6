"""What SSVD trains: few parameters, and the k x k core `C = (S + dS) G` that they make of the singular values.

A core is handled as its change `C - S`, which is exactly zero at the start. With `G = I + H`,

    C - S = diag(dS) + diag(S + dS) H.

Sides. The paper rotates the input basis, W' = U (S + dS) G V^T. Its reference code factorises W^T where a layer is
wide, W^T = V S U^T, which makes the same core act from the other side: C = G^T (S + dS), rotation of the output basis.
"both" is C = G_out^T (S + dS) G_in.

Parametrisation. An update of Adam moves every entry of a parameter by about the learning rate. If the parameter were
K itself, the norm of K, which is what the output feels, would move by up to k times as much, and no learning rate
would hold for every k. So the parameter theta is K in units of `step(k)`, K = theta * step(k), and the parameter s is
the relative change of the singular values, dS = S * s. A learning rate of the paper (arXiv 2509.02830), which is one
for K itself, becomes `learning_rate / step(k)` here: the paper's 1e-4 is 2e-3 at k = 409.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .pattern import sparse_change

ROTATIONS = ("approx", "strict", "none")
SIDES = ("input", "output", "both")


def step(k: int) -> float:
    """Unit of theta: how far a change of 1 in theta moves an entry of K (with rotation "none", of G)."""
    return k**-0.5


def rotation_size(k: int, rotation: str, side: str = "input") -> int:
    """Number of entries of theta.

    A skew-symmetric K has k(k-1)/2; a free G, rotation "none", has k^2; side "both" has two of them. At k = 1 there is
    nothing to rotate, and a free G would repeat the scale: every rotation has none then.
    """
    if k == 1:
        return 0
    one = k * k if rotation == "none" else k * (k - 1) // 2
    return 2 * one if side == "both" else one


def core_change(S: Tensor, theta: Tensor | None, s: Tensor | None, rotation: str, side: str = "input") -> Tensor:
    """The change `C - S` of the core with a strict, approximate or free transformation, arXiv 2509.02830.

    Args:
        S: Singular values, (k,).
        theta: (rotation_size(k, rotation, side),), or None for G = I. With rotations "approx" and "strict" it holds
            the entries of K below the diagonal, row by row; with "none" those of G - I; both divided by `step(k)`.
            For side "both", first those of the input.
        s: Relative change of the singular values, (k,), or None for no change.
        rotation: "approx", G = I - 2K; "strict", G = (I - K)(I + K)^-1, orthogonal; "none", G free.
        side: "input", "output" or "both"; see the top of the module.

    Returns:
        (k, k), in float32 (float64 where S is float64), differentiable in theta and s.
    """
    S = S.to(torch.promote_types(S.dtype, torch.float32))
    dS = torch.zeros_like(S) if s is None else S * s.to(S.dtype)
    change = torch.diag(dS)
    if theta is None:
        return change
    parts = [_rotation_change(part, len(S), rotation) for part in _parts(theta.to(S.dtype), side)]
    scale = S + dS
    if side == "input":
        return change + scale[:, None] * parts[0]
    if side == "output":
        return change + parts[0].mT * scale
    turned = change + scale[:, None] * parts[0]
    return turned + parts[1].mT @ (torch.diag(S) + turned)


def orthogonality_error(theta: Tensor, k: int, rotation: str, side: str = "input") -> float:
    """How far G is from a rotation: the spectral norm of `G^T G - I`, 0 for an orthogonal G; of the worse of two sides.

    The approximate form can only stretch: there it is 4 ||K||^2. Costs one symmetric eigenvalue problem of size k: fit
    for the end of a training run, not for each step.
    """
    changes = [_rotation_change(part, k, rotation) for part in _parts(theta.detach().float(), side)]
    return max(float(torch.linalg.eigvalsh(H + H.mT + H.mT @ H).abs().max()) for H in changes)


def _parts(theta: Tensor, side: str) -> tuple[Tensor, ...]:
    return theta.chunk(2) if side == "both" else (theta,)


def _rotation_change(theta: Tensor, k: int, rotation: str) -> Tensor:
    """`H = G - I`, (k, k)."""
    theta = theta * step(k)
    if rotation == "none":
        return theta.view(k, k)
    # The compiler folds the positions by itself, and warns of caches.
    positions = (_below_diagonal.__wrapped__ if torch.compiler.is_compiling() else _below_diagonal)(k, theta.device)
    lower = sparse_change(positions, theta, k)
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
