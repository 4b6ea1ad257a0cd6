"""The trained parameters of SSVD, and the k x k core `C = (S + dS) G` that they define.

The code computes the change of the core, `C - S`, which is exactly zero at the start. With `G = I + H`,

    C - S = diag(dS) + diag(S + dS) H.

Sides. The paper rotates the input basis, W' = U (S + dS) G V^T. For a wide layer its reference code factorises
W^T = V S U^T, so that the same core acts from the other side: C = G^T (S + dS), a rotation of the output basis. The
side "both" is C = G_out^T (S + dS) G_in.

Parametrisation. An update of Adam moves every entry of a parameter by about the learning rate. If the parameter were
K itself, the norm of K, which determines the change of the output, would move by up to k times as much, and no learning
rate would suit every k. So the parameter theta is K in units of `step(k)`, K = theta * step(k), and the parameter s is
the relative change of the singular values, dS = S * s. A learning rate of the paper (arXiv 2509.02830), which applies
to K itself, becomes `learning_rate / step(k)` here: the paper's 1e-4 is 2e-3 at k = 409.

Ranks. SSVD-Outer (arXiv 2601.12600) has a budget for each side of "both". Here, of the k triplets, G_in
rotates the first input directions and G_out the first output directions, as many as `Rotation.ranks` states.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssvd.spectral.pattern import sparse_change

Form = Literal["approx", "neumann", "strict", "none"]
Side = Literal["input", "output", "both"]
ROTATIONS: tuple[Form, ...] = get_args(Form)
SIDES: tuple[Side, ...] = get_args(Side)


def step(k: int) -> float:
    """Return the unit of theta: the change of an entry of K (with the form "none", of G) for a change of 1 in theta."""
    return float(k**-0.5)


@dataclass(frozen=True)
class Rotation:
    """The form of G and the singular basis that it rotates.

    Attributes:
        form: "approx", G = I - 2K; "strict", G = (I - K)(I + K)^-1, orthogonal; "neumann", the strict form with the
            first four terms of the series for (I + K)^-1, where "approx" has one; "none", G free.
        side: "input", "output" or "both"; see the top of the module.
        ranks: For the side "both", how many of the k directions of the input and of the output are rotated; None for
            all. The larger one is k.
    """

    form: Form = "approx"
    side: Side = "input"
    ranks: tuple[int, int] | None = None

    @property
    def sides(self) -> int:
        """Number of bases that are rotated, each by a separate G."""
        return 2 if self.side == "both" else 1

    def size(self, k: int) -> int:
        """Return the number of entries of theta.

        A skew-symmetric K has k(k-1)/2; a free G has k^2. With k = 1, every form has none: there is nothing to rotate,
        and a free G would repeat the scale.
        """
        return sum(self._entries(rank) for rank in self.ranks or (k,) * self.sides)

    def _entries(self, k: int) -> int:
        if k == 1:
            return 0
        return k * k if self.form == "none" else k * (k - 1) // 2

    def generators(self, theta: Tensor, k: int) -> Tensor:
        """Compute K of each side, or G - I for the form "none": (..., sides, k, k) of theta (..., size(k))."""
        if self.ranks is None:
            return self._generator(theta.unflatten(-1, (self.sides, -1)), k)
        parts = theta.split([self._entries(rank) for rank in self.ranks], -1)
        built = [self._generator(part, rank) for part, rank in zip(parts, self.ranks, strict=True)]
        return torch.stack([nn.functional.pad(K, 2 * (0, k - K.shape[-1])) for K in built], -3)

    def _generator(self, theta: Tensor, k: int) -> Tensor:
        if self._entries(k) == 0:
            return theta.new_zeros(*theta.shape[:-1], k, k)
        if self.form == "none":
            free: Tensor = theta.unflatten(-1, (k, k)) * step(k)
            return free
        return _skew(theta, k)


def core_change(
    S: Tensor,
    theta: Tensor | None,
    s: Tensor | None,
    rotation: Rotation,
    solved: Tensor | None = None,
) -> Tensor:
    """Compute the change `C - S` of the core, arXiv 2509.02830.

    Args:
        S: Singular values, (k,).
        theta: (rotation.size(k),), or None for G = I. It holds the entries of K below the diagonal, row by row, or
            for the form "none" those of G - I, divided by `step(k)`. For the side "both", those of the input are first.
        s: Relative change of the singular values, (k,), or None for no change.
        rotation: Form and side of G.
        solved: The result of `solve_rotations` for theta, if already computed; only for the form "strict".

    Returns:
        (k, k), in float32 (float64 if S is float64), differentiable in theta and s.
    """
    S = S.to(torch.promote_types(S.dtype, torch.float32))
    dS = torch.zeros_like(S) if s is None else S * s.to(S.dtype)
    change = torch.diag(dS)
    if theta is None:
        return change
    scale = S + dS
    with torch.autocast(S.device.type, enabled=False):
        H = _rotation_changes(theta.to(S.dtype), len(S), rotation, solved)
        if rotation.side == "input":
            return change + scale[:, None] * H[0]
        if rotation.side == "output":
            return change + H[0].mT * scale
        rotated = change + scale[:, None] * H[0]
        return rotated + H[1].mT @ (torch.diag(S) + rotated)


@torch.no_grad()
def core_inverse(
    S: Tensor,
    theta: Tensor | None,
    s: Tensor | None,
    rotation: Rotation,
    solved: Tensor | None = None,
) -> Tensor:
    """Compute C^-1, (k, k), for the arguments of `core_change`, except the form "none", whose G may be singular.

    In the other forms G never shortens a vector. A singular value that was trained to less than a thousandth of its
    start counts as a thousandth, so that the inverse exists.
    """
    S = S.to(torch.promote_types(S.dtype, torch.float32))
    ratio = torch.ones_like(S) if s is None else 1 + s.to(S.dtype)
    scale = S * torch.where(ratio < 0, -1, 1) * ratio.abs().clamp(min=1e-3)
    if theta is None:
        return torch.diag(1 / scale)
    with torch.autocast(S.device.type, enabled=False):
        H = _rotation_changes(theta.to(S.dtype), len(S), rotation, solved)
        G = H + torch.eye(len(S), dtype=S.dtype, device=S.device)
        back = G.mT if rotation.form == "strict" else torch.linalg.inv(G)
        if rotation.side == "input":
            return back[0] / scale
        if rotation.side == "output":
            return (back[0] / scale).mT
        return back[0] / scale @ back[1].mT


def orthogonality_error(theta: Tensor, k: int, rotation: Rotation) -> float:
    """Return how far G is from a rotation: the spectral norm of `G^T G - I`, the larger one of two sides.

    It is 0 for an orthogonal G, and 4 ||K||^2 for the approximate form, which can only lengthen vectors. The cost is
    one symmetric eigenvalue problem of size k.
    """
    H = _rotation_changes(theta.detach().float(), k, rotation)
    return float(torch.linalg.eigvalsh(H + H.mT + H.mT @ H).abs().max())


@torch.no_grad()
def solve_rotations(theta: Tensor, k: int, rotation: Rotation) -> Tensor:
    """Compute `G - I` of many strict rotations at once.

    Args:
        theta: (..., rotation.size(k)); see `core_change`.
        k: Size of the rotations.
        rotation: Their form and side.

    Returns:
        (..., sides, k, k), in float32 (float64 if theta is float64).
    """
    return _Cayley.solve(rotation.generators(theta, k))


def _rotation_changes(theta: Tensor, k: int, rotation: Rotation, solved: Tensor | None = None) -> Tensor:
    """Compute `H = G - I` for each side, (1 or 2, k, k)."""
    K = rotation.generators(theta, k)
    if rotation.form == "none":
        return K
    if rotation.form == "strict":
        result: Tensor = _Cayley.apply(K, solved)  # type: ignore[no-untyped-call]
        return result
    # (I - K)(I + K)^-1 - I = -2 (K - K^2 + K^3 - ...)
    series = K
    for _ in range(0 if rotation.form == "approx" else 3):
        series = K - K @ series
    return -2 * series


def _skew(theta: Tensor, k: int) -> Tensor:
    """Build K, (..., k, k)."""
    # torch.compile makes the positions constants of the graph, and warns of functions with a cache.
    positions = (_below_diagonal.__wrapped__ if torch.compiler.is_compiling() else _below_diagonal)(k, theta.device)
    lower = sparse_change(positions, theta * step(k), k)
    return lower - lower.mT


class _Cayley(torch.autograd.Function):
    """`H = (I - K)(I + K)^-1 - I`, whose backward pass needs no solve: `(I + K)^-1 = I + H / 2`."""

    @staticmethod
    def solve(K: Tensor) -> Tensor:
        # H = -2 (I + K)^-1 K, and I + K is never singular.
        H: Tensor = -2 * torch.linalg.solve(K + torch.eye(K.shape[-1], dtype=K.dtype, device=K.device), K)
        return H

    @staticmethod
    def forward(ctx, K, solved):  # type: ignore[no-untyped-def]
        H = _Cayley.solve(K) if solved is None else solved.clone()
        ctx.save_for_backward(H)
        return H

    @staticmethod
    @once_differentiable
    def backward(ctx, dH):  # type: ignore[no-untyped-def]
        (H,) = ctx.saved_tensors
        back = (H / 2 + torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)).mT
        return -2 * back @ dH @ back, None


@lru_cache(maxsize=64)
def _below_diagonal(k: int, device: torch.device) -> Tensor:
    """Return the positions of the entries below the diagonal in a flattened (k, k) matrix."""
    with torch.inference_mode(False):  # an inference tensor in the cache would break the next training step
        row, column = torch.tril_indices(k, k, -1, device=device)
        positions: Tensor = row * k + column
        return positions
