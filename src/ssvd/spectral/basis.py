"""The frozen basis of an adapted layer: k singular triplets of its weight, by default the first."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Literal, get_args

import torch
from torch import Tensor, nn

SVD_METHODS = ("exact", "randomized")
Subspace = Literal["top", "tail", "ends"]
SUBSPACES: tuple[Subspace, ...] = get_args(Subspace)

# Singular values with a smaller relative distance count as equal: their order is made canonical.
NEARLY_EQUAL = 1e-7
# Allowed deviation of a component's probe; for an unrelated basis it is about 1. Two machines that decompose the same
# weight in float64 differ by less than 1e-6, unless singular values are equal.
SAME_BASIS = 1e-4
_ALIGNMENT = 16
# In groups of up to four components all combinations of signs are tried, in larger ones up to two changed signs. With
# more combinations, one would match the sum of an unrelated basis.
_ALL_SIGNS = 4


class Basis(nn.Module):
    """k singular triplets of a frozen weight W of shape (m, n): `W = U S V^T` in arXiv 2509.02830, section III.

    They are the first k; or, as the subspace "tail", the last k, which carry the least energy (arXiv 2606.09342); or,
    as "ends", the first k - floor(k/2) and the last floor(k/2).

    The signs of a pair (u_i, v_i) and the order of triplets with equal singular values are arbitrary, and differ
    between devices and libraries, but the trained parameters depend on them. So both are made canonical by the *probe*,
    the product of each v_i with a fixed direction: it is positive, and descends among equal singular values. Its sums
    over groups of components are the *fingerprint*, which is saved with the adapter and verified at loading.

    Attributes:
        U: Left singular vectors, (m, k), in the dtype of the weight; see `padded`.
        S: Singular values in descending order, (k,), float32 (float64 for a float64 weight).
        V: Right singular vectors, (n, k), in the dtype of the weight; see `padded`.
        probe: (k,), float32, with a mean square of 1.
        stored: Whether U, S and V are saved too.
        is_canonical: Whether signs and order are those that `of` computes.
        fingerprint: Sums of the probe over interleaved groups of components, (groups,), float32: component i is in
            group i mod groups.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    probe: Tensor
    fingerprint: Tensor

    def __init__(self, U: Tensor, S: Tensor, V: Tensor, probe: Tensor, groups: int, stored: bool = False) -> None:
        super().__init__()
        # If not stored, they are recomputed from the base weight.
        for name, tensor in {"U": U, "S": S, "V": V}.items():
            self.register_buffer(name, tensor, persistent=stored)
        self.stored = stored
        self.is_canonical = True
        self.register_buffer("probe", probe, persistent=False)
        self.register_buffer("fingerprint", _group_sums(probe, groups))

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, k: int, svd: str = "exact", seed: int = 0, *, subspace: Subspace = "top") -> "Basis":
        """Decompose a weight in float64, on its device if that supports float64, else on the CPU.

        In float32 the vectors of close singular values would differ between machines: by 2 % and more at a relative
        distance of 1e-6, which may occur in one of a large model's many layers.

        Args:
            weight: (m, n), any floating dtype.
            k: Number of triplets, 1 <= k <= min(m, n).
            svd: "exact", or "randomized": subspace iteration on k + 16 random directions, which only approximates the
                last of the k triplets and is cheaper only if k is far below min(m, n).
            seed: Random seed of the directions, which are drawn on the CPU: the same for every device.
            subspace: "top", "tail" or "ends", which triplets; the randomised decomposition finds the first alone.

        Raises:
            ValueError: k is out of range, or `svd` or `subspace` is unknown, or they do not go together.
        """
        if not 1 <= k <= min(weight.shape):
            raise ValueError(f"a weight of shape {tuple(weight.shape)} has no basis of {k} singular triplets")
        if svd not in SVD_METHODS:
            raise ValueError(f"svd must be one of {', '.join(SVD_METHODS)}, not {svd!r}")
        if subspace not in SUBSPACES or (svd == "randomized" and subspace != "top"):
            raise ValueError(f"the {svd} decomposition does not find the subspace {subspace!r}")
        if weight.is_meta:  # only shapes, to count parameters or to be loaded over
            (m, n), S = weight.shape, weight.new_empty(k, dtype=torch.promote_types(weight.dtype, torch.float32))
            return cls(weight.new_empty(m, k), S, weight.new_empty(n, k), S.float(), k)
        W = weight.detach()
        W = (W.cpu() if W.device.type == "mps" else W).double()
        if svd == "randomized":
            U, S, V = _randomized_svd(W, k, seed)
        else:
            U, S, V = _triplets(W, _positions(k, min(W.shape), subspace))
        U, S, V, probe = canonical(U, S, V)
        U, V = (vectors.to(weight.device, weight.dtype).contiguous() for vectors in (U, V))
        S = S.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        return cls(U, S, V, probe.to(weight.device, torch.float32), k)

    @classmethod
    def of_triplets(cls, U: Tensor, S: Tensor, V: Tensor, groups: int) -> "Basis":
        """Return a basis of stored triplets with any signs and order; the shapes are those of the attributes."""
        basis = cls(U, S, V, (V.double().mT @ _direction(V.double())).to(S.device, torch.float32), groups, stored=True)
        basis.is_canonical = False
        return basis

    @property
    def k(self) -> int:
        """Number of triplets."""
        return len(self.S)

    def narrow(self, k: int, groups: int | None = None, stored: bool = False) -> "Basis":
        """Return the first k triplets; unless `stored`, the vectors share memory with this basis."""
        U, S, V = self.U[:, :k], self.S[:k], self.V[:, :k]
        if stored:
            U, S, V = U.clone(), S.clone(), V.clone()
        return Basis(U, S, V, self.probe[:k], groups or k, stored)

    def padded(self) -> "Basis":
        """Return this basis with columns of zeros appended to U and V up to a multiple of 16, if these are few.

        Products with aligned rows are 10 % faster on a CPU, and the tensor cores of a GPU need them.
        """
        missing = -self.k % _ALIGNMENT
        if not 0 < missing <= self.k / 8 or self.U.shape[1] > self.k:
            return self
        U, V = (torch.nn.functional.pad(vectors, (0, missing)) for vectors in (self.U, self.V))
        basis = Basis(U, self.S, V, self.probe, len(self.fingerprint), self.stored)
        basis.is_canonical = self.is_canonical
        return basis

    def aligned(self, fingerprint: Tensor) -> "Basis | None":
        """Return this basis with the signs of the one with the given fingerprint; None if that is another basis.

        Within a group the fewest changed signs that match its sum are taken. A component with a very small probe keeps
        its canonical sign.

        Args:
            fingerprint: (groups,), of a basis of the same size.
        """
        groups = len(self.fingerprint)
        probe, other = self.probe.double().cpu(), fingerprint.detach().double().cpu()
        signs = torch.ones(self.k)
        for group in range(groups):
            flips = _flips(probe[group::groups].tolist(), float(other[group]))
            if flips is None:
                return None
            signs[group::groups][list(flips)] = -1
        if bool((signs > 0).all()):
            return self
        signs = signs.to(self.S)
        U, V = (vectors.clone() for vectors in (self.U, self.V))
        for vectors in (U, V):
            vectors[:, : self.k] *= signs.to(vectors.dtype)
        basis = Basis(U, self.S, V, self.probe * signs.to(self.probe), groups, self.stored)
        basis.is_canonical = False
        return basis

    def misfit(self, weight: Tensor) -> float:
        """Return `||U^T W V - S|| / ||S||`: 0 for the weight that was decomposed.

        It is below 0.01 for that weight rounded to bf16 or 8 bits, and about 1 for the weight of another model.
        """
        dtype = self.S.dtype
        with torch.autocast(weight.device.type, enabled=False):
            core = (self.U.to(dtype).mT @ weight.detach().to(dtype) @ self.V.to(dtype))[: self.k, : self.k]
        size = torch.linalg.norm(self.S).clamp(min=torch.finfo(dtype).tiny)
        return float(torch.linalg.norm(core - torch.diag(self.S)) / size)

    def fits(self, weight: Tensor) -> bool:
        """Return whether `W V = U S` and `U^T W = S V^T` up to float32 rounding, with no small singular value in S.

        It is tried with one vector, which costs two products with the weight.
        """
        if (
            self.S.is_meta
            or weight.is_meta
            or min(weight.dtype.itemsize, self.U.dtype.itemsize) < 4
            or not self.S[-1] > 1e-2 * self.S[0]  # true for a weight of zeros too
        ):
            return False
        weight, z = weight.detach(), _direction(self.S).to(self.U.dtype)
        U, V, Sz = self.U[:, : self.k], self.V[:, : self.k], self.S.to(z.dtype) * z
        with torch.autocast(weight.device.type, enabled=False):
            errors = weight @ (V @ z) - U @ Sz, weight.mT @ (U @ z) - V @ Sz
        return bool(torch.stack([torch.linalg.norm(e) for e in errors]).max() <= 1e-5 * torch.linalg.norm(Sz))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Basis":
        # Singular values and probe stay in float32 at least, which the verification needs.
        exact = {name: getattr(self, name) for name in ("S", "probe", "fingerprint")}
        dtype = self.U.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.is_canonical &= self.U.dtype == dtype  # the weight was rounded too, and has a slightly different basis
        for name, tensor in exact.items():
            applied = getattr(self, name)
            if applied.dtype.itemsize < 4:
                setattr(self, name, tensor.to(applied.device))
        return self

    def extra_repr(self) -> str:
        """Return the size for printing."""
        return f"k={self.k}"


def canonical(U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return triplets with canonical signs and a canonical order among equal singular values, and their probe.

    Args:
        U: Left singular vectors (m, k), float64.
        S: Singular values (k,) in descending order, float64.
        V: Right singular vectors (n, k), float64.
    """
    probe = V.mT @ _direction(V)
    sign = torch.where(probe < 0, -1.0, 1.0).to(probe)
    U, V, probe = U * sign, V * sign, probe * sign
    if len(S) > 1:
        # Number the runs of equal singular values; sort by run, and within a run by probe.
        run = torch.cat([S.new_zeros(1), (S[:-1] - S[1:] > NEARLY_EQUAL * S[:-1]).to(S).cumsum(0)])
        order = torch.argsort(probe, descending=True, stable=True)
        order = order[torch.argsort(run[order], stable=True)]
        U, S, V, probe = U[:, order], S[order], V[:, order], probe[order]
    return U, S, V, probe


def _group_sums(probe: Tensor, groups: int) -> Tensor:
    padded = torch.nn.functional.pad(probe.double() if probe.device.type != "mps" else probe, (0, -len(probe) % groups))
    return padded.view(-1, groups).sum(0).to(probe.dtype)


def _flips(probe: list[float], wanted: float) -> tuple[int, ...] | None:
    """Return the fewest entries whose signs must change for the sum to be `wanted`; None if no choice matches."""
    tolerance = SAME_BASIS * math.sqrt(len(probe))
    missing = sum(probe) - wanted
    most = len(probe) if len(probe) <= _ALL_SIGNS else 2
    for count in range(most + 1):
        choices = combinations(range(len(probe)), count)
        best = min(choices, key=lambda choice: abs(missing - 2 * sum(probe[i] for i in choice)))
        if abs(missing - 2 * sum(probe[i] for i in best)) <= tolerance:
            return best
    return None


def _direction(V: Tensor) -> Tensor:
    """Return a fixed direction in the input space, (n,), of mean square 1: sqrt(2) cos(2 pi phi j^2)."""
    phi = (math.sqrt(5) - 1) / 2
    j = torch.arange(1, len(V) + 1, dtype=torch.float64)
    return (math.sqrt(2) * torch.cos(2 * math.pi * torch.frac(phi * j * j))).to(V)


def _positions(k: int, r: int, subspace: Subspace) -> list[int]:
    """Return which of r triplets in descending order are taken, ascending."""
    last = {"top": 0, "tail": k, "ends": k // 2}[subspace]
    return [*range(k - last), *range(r - last, r)]


def _triplets(W: Tensor, positions: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, k), S (k,), V (n, k) of a float64 weight, from the eigenvectors of its smaller Gram matrix.

    That takes a fifth of the time of an SVD for a 1:4 layer, but squares the condition number. float64 is precise
    enough down to singular values of 1e-2 of the first: vectors at a relative distance of 1e-6 are exact to 1e-6.
    """
    tall = W.shape[0] >= W.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(W.mT @ W if tall else W @ W.mT)  # in ascending order
    S = eigenvalues.clamp(min=0).sqrt().flip(0)
    if not bool(S[positions[-1]] > 1e-2 * S[0]):
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return U[:, positions], S[positions], Vh[positions].mT
    near = vectors.flip(1)[:, positions]
    far = (W if tall else W.mT) @ near
    S = torch.linalg.vector_norm(far, dim=0)
    return (far / S, S, near) if tall else (near, S, far / S)


def _randomized_svd(W: Tensor, k: int, seed: int, iterations: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose by subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1)."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.randn(W.shape[1], min(k + 16, *W.shape), generator=generator).to(W)
    for _ in range(iterations):
        Q = torch.linalg.qr(W.mT @ torch.linalg.qr(W @ Q).Q).Q
    U, S, Vh = torch.linalg.svd(W @ Q, full_matrices=False)
    return U[:, :k], S[:k], (Vh[:k] @ Q.mT).mT
