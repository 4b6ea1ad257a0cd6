"""The frozen basis of an adapted layer: the top-k singular triplets of its weight."""

import math

import torch
from torch import Tensor, nn

SVD_METHODS = ("exact", "randomized")

# Deviations of a fingerprint, whose entries have a variance of about 1. Two devices that decompose one weight in
# fp32 differ by far less than the first, but for pairs of nearly equal singular values, where it may come to a few
# times 1e-3; two different weights differ by about 1 in nearly every component.
_SAME_SIGN = 1e-4
_SAME_BASIS = 0.05


class Basis(nn.Module):
    """Top-k singular triplets of a frozen weight W of shape (m, n): `W = U S V^T` in arXiv 2509.02830, section III.

    The signs of a pair (u_i, v_i) are arbitrary, and differ between devices and libraries, but a trained rotation
    depends on them. So each pair gets a canonical sign (the largest entry of v_i in magnitude is positive), and the
    *fingerprint*, the only state that is saved, tells signs and bases apart: its i-th entry is the product of v_i
    and a fixed direction.

    Attributes:
        U: Left singular vectors, (m, k), in the dtype of the weight.
        S: Singular values in descending order, (k,), float32 (float64 for a float64 weight).
        V: Right singular vectors, (n, k), in the dtype of the weight.
        fingerprint: (k,), in the dtype of S.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    fingerprint: Tensor

    def __init__(self, U: Tensor, S: Tensor, V: Tensor, fingerprint: Tensor) -> None:
        super().__init__()
        self.register_buffer("U", U, persistent=False)
        self.register_buffer("S", S, persistent=False)
        self.register_buffer("V", V, persistent=False)
        self.register_buffer("fingerprint", fingerprint)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, k: int, svd: str = "exact", seed: int = 0) -> "Basis":
        """Decompose a weight on its own device, in float32 (float64 for a float64 weight).

        Args:
            weight: (m, n), any floating dtype.
            k: Number of triplets, 1 <= k <= min(m, n).
            svd: "exact" (`torch.linalg.svd`), or "randomized": subspace iteration on k + 16 random directions, which
                approximates the last of the k triplets and is cheaper only where k is far below min(m, n).
            seed: Of the random directions; they are drawn on the CPU, so that every device draws the same.

        Raises:
            ValueError: k is out of range, or `svd` is unknown.
        """
        if not 1 <= k <= min(weight.shape):
            raise ValueError(f"a weight of shape {tuple(weight.shape)} has no basis of {k} singular triplets")
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        if svd == "exact":
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        elif svd == "randomized":
            U, S, Vh = _randomized_svd(W, min(k + 16, *W.shape), seed)
        else:
            raise ValueError(f"svd must be one of {', '.join(SVD_METHODS)}, not {svd!r}")
        U, S, V = U[:, :k], S[:k].clone(), Vh[:k].mT
        peak = V.gather(0, V.abs().argmax(dim=0, keepdim=True))
        sign = torch.where(peak < 0, -1.0, 1.0).to(V.dtype)
        U, V = (U * sign).contiguous(), (V * sign).contiguous()
        return cls(U.to(weight.dtype), S, V.to(weight.dtype), V.mT @ _direction(V))

    @property
    def k(self) -> int:
        """Number of triplets."""
        return len(self.S)

    def narrow(self, k: int) -> "Basis":
        """The first k triplets, whose vectors share memory with this basis."""
        return Basis(self.U[:, :k], self.S[:k], self.V[:, :k], self.fingerprint[:k].clone())

    def signs_in(self, fingerprint: Tensor) -> Tensor | None:
        """Signs that the triplets of this basis have in the basis with another fingerprint.

        Args:
            fingerprint: (k,), of a basis of the same size.

        Returns:
            (k,) of 1 and -1, or None where the fingerprint is that of another basis.
        """
        other = fingerprint.to(self.fingerprint)
        if not bool(((self.fingerprint.abs() - other.abs()).abs() < _SAME_BASIS).all()):
            return None
        # A product with the direction that is about zero tells no sign; the canonical one then stands.
        flipped = (self.fingerprint * other < 0) & ((self.fingerprint - other).abs() > _SAME_SIGN)
        return torch.where(flipped, -1.0, 1.0).to(self.fingerprint)

    def extra_repr(self) -> str:
        return f"k={self.k}"


def _direction(V: Tensor) -> Tensor:
    """A fixed direction in the input space, (n,), with entries of mean square 1: sqrt(2) cos(2 pi phi j^2)."""
    phi = (math.sqrt(5) - 1) / 2
    j = torch.arange(1, len(V) + 1, dtype=torch.float64)
    return (math.sqrt(2) * torch.cos(2 * math.pi * torch.frac(phi * j * j))).to(V)


def _randomized_svd(W: Tensor, size: int, seed: int, iterations: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1)."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.randn(W.shape[1], size, generator=generator).to(W)
    for _ in range(iterations):
        Q = torch.linalg.qr(W.mT @ torch.linalg.qr(W @ Q).Q).Q
    U, S, Vh = torch.linalg.svd(W @ Q, full_matrices=False)
    return U, S, Vh @ Q.mT
