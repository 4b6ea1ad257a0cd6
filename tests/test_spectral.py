"""The mathematics: bases and cores, against plain references in float64."""

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssvd.spectral import (
    PATTERNS,
    ROTATIONS,
    SIDES,
    Basis,
    Rotation,
    checksum,
    core_change,
    core_inverse,
    orthogonality_error,
    pattern_positions,
    pattern_size,
    solve_rotations,
    sparse_change,
    step,
)
from ssvd.spectral.basis import canonical

# What adapters in use were trained with: never to change.
RANDOM_POSITIONS = [5, 22, 31, 33, 38, 46]

sizes = st.integers(1, 12)
rotations = st.sampled_from(ROTATIONS)
seeds = st.integers(0, 2**31)


def draw_layer(m, n, k, rotation, seed, dtype=torch.float64):
    """A weight, its basis, and random theta and s (None where a rotation has no theta)."""
    torch.manual_seed(seed)
    W = torch.randn(m, n, dtype=dtype)
    size = Rotation(rotation).size(k)
    theta = torch.randn(size, dtype=dtype, requires_grad=True) if size else None
    s = torch.randn(k, dtype=dtype, requires_grad=True)
    return W, Basis.of(W, k), theta, s


def reference_core(S, theta, s, rotation):
    """C by the letter of the paper, entry by entry."""
    k = len(S)
    eye = torch.eye(k, dtype=S.dtype)
    G = eye
    if theta is not None and rotation == "none":
        G = eye + theta.reshape(k, k) * step(k)
    elif theta is not None:
        K = torch.zeros(k, k, dtype=S.dtype)
        entries = iter(theta * step(k))
        for i in range(k):
            for j in range(i):
                entry = next(entries)
                K[i, j], K[j, i] = entry, -entry
        terms = {"approx": 1, "neumann": 4}.get(rotation)
        if terms:
            G = eye - 2 * sum(-torch.linalg.matrix_power(-K, power) for power in range(1, terms + 1))
        else:
            G = (eye - K) @ torch.linalg.inv(eye + K)
    return torch.diag(S + S * s) @ G


@given(m=sizes, n=sizes, seed=seeds, data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_basis_holds_the_leading_triplets(m, n, seed, data):
    k = data.draw(st.integers(1, min(m, n)))
    W, basis, _, _ = draw_layer(m, n, k, "approx", seed)
    eye = torch.eye(k, dtype=W.dtype)
    assert torch.allclose(basis.U.mT @ basis.U, eye) and torch.allclose(basis.V.mT @ basis.V, eye)
    assert torch.allclose(basis.U.mT @ W @ basis.V, torch.diag(basis.S))
    assert torch.allclose(basis.S, torch.linalg.svdvals(W)[:k])
    assert (basis.probe > 0).all()


@given(m=sizes, n=sizes, seed=seeds, data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_tail_holds_the_last_triplets_and_the_ends_half_of_each(m, n, seed, data):
    k = data.draw(st.integers(1, min(m, n)))
    W, _, _, _ = draw_layer(m, n, k, "approx", seed)
    values = torch.linalg.svdvals(W)
    last = {"tail": k, "ends": k // 2}
    for subspace, count in last.items():
        basis = Basis.of(W, k, subspace=subspace)
        assert torch.allclose(basis.U.mT @ W @ basis.V, torch.diag(basis.S))
        assert torch.allclose(basis.S, torch.cat([values[: k - count], values[len(values) - count :]]))
    if k <= min(m, n) // 2:  # nothing in common, so that one is never taken for the other
        assert (Basis.of(W, k).V.mT @ Basis.of(W, k, subspace="tail").V).abs().max() < 1e-6


def test_a_basis_refuses_a_size_or_a_method_that_does_not_exist():
    for svd, subspace in (("exact", "middle"), ("randomized", "tail")):
        with pytest.raises(ValueError, match=f"does not find the subspace '{subspace}'"):
            Basis.of(torch.eye(3), 2, svd, subspace=subspace)
    with pytest.raises(ValueError, match="no basis of 4"):
        Basis.of(torch.randn(3, 5), 4)
    with pytest.raises(ValueError, match="svd must be one of"):
        Basis.of(torch.randn(3, 5), 2, svd="quick")


def test_the_randomised_basis_agrees_with_the_exact_one_and_repeats():
    torch.manual_seed(0)
    W = torch.randn(60, 8) @ torch.randn(8, 50) + 0.01 * torch.randn(60, 50)
    exact, randomised = Basis.of(W, 8), Basis.of(W, 8, svd="randomized")
    assert torch.allclose(exact.S, randomised.S, rtol=1e-3)
    assert torch.allclose((exact.V * randomised.V).sum(0), torch.ones(8), atol=1e-3)
    torch.manual_seed(1)
    assert torch.equal(randomised.V, Basis.of(W, 8, svd="randomized").V)


def test_a_padded_basis_does_what_it_did_before():
    torch.manual_seed(0)
    W = torch.randn(40, 30) + 10 * torch.eye(40, 30)
    basis, signs = Basis.of(W, 30), torch.ones(30)
    padded = basis.padded()
    assert padded.U.shape == (40, 32) and padded.padded() is padded and padded.narrow(29).padded().U.shape == (40, 32)
    assert Basis.of(W, 16).padded().U.shape == Basis.of(W, 16).U.shape
    assert padded.fits(W) and padded.misfit(W) < 1e-5 and padded.misfit(torch.randn(40, 30)) > 0.5
    signs[[2, 5]] = -1
    flipped = Basis(basis.U * signs, basis.S, basis.V * signs, basis.probe * signs, 30).fingerprint
    aligned = padded.aligned(flipped)
    assert (
        torch.equal(aligned.U[:, :30], basis.U * signs) and aligned.V.shape == (30, 32) and not aligned.V[:, 30:].any()
    )
    assert torch.equal(padded.V[:, :30], basis.V), "as it was"


@pytest.mark.parametrize("groups", [20, 8, 3])
def test_a_fingerprint_tells_signs_and_bases(groups):
    torch.manual_seed(0)
    W = torch.randn(40, 30)
    basis = Basis.of(W, 20).narrow(20, groups)
    assert basis.aligned(basis.fingerprint) is basis
    assert Basis.of(W.double(), 20).narrow(20, groups).aligned(basis.fingerprint).is_canonical
    signs = torch.ones(20)
    signs[[3, 11]] = -1
    flipped = Basis(basis.U * signs, basis.S, basis.V * signs, basis.probe * signs, groups)
    aligned = basis.aligned(flipped.fingerprint)
    assert torch.equal(aligned.U, flipped.U) and torch.equal(aligned.V, flipped.V) and not aligned.is_canonical
    assert torch.equal(aligned.fingerprint, flipped.fingerprint)
    for other in (torch.randn(40, 30), W + 0.01 * torch.randn(40, 30), W.bfloat16().float()):
        assert basis.aligned(Basis.of(other, 20).narrow(20, groups).fingerprint) is None


def degenerate(equal=3):
    """A weight of shape (40, 30) whose first singular values are equal."""
    torch.manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(40, 30, dtype=torch.float64), full_matrices=False)
    S = torch.linspace(3, 1, 30, dtype=torch.float64)
    S[:equal] = 3
    return U, S, Vh.mT


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
def test_signs_and_the_order_of_equal_singular_values_are_made_canonical(order):
    U, S, V = degenerate()
    order = [*order, *range(3, 30)]
    signs = torch.ones(30, dtype=torch.float64)
    signs[::2] = -1
    found = canonical((U * signs)[:, order], S, (V * signs)[:, order])
    for part, wanted in zip(found, canonical(U, S, V), strict=True):
        assert torch.equal(part, wanted)
    assert torch.allclose(found[0] * found[1] @ found[2].mT, U * S @ V.mT)


def test_vectors_of_close_singular_values_do_not_depend_on_the_routine():
    # 1e-6 apart: in float32 these vectors would be off by several percent.
    U, S, V = degenerate(1)
    S[1] = S[0] * (1 - 1e-6)
    W = (U * S @ V.mT).float()
    left, values, right = scipy.linalg.svd(W.double().numpy(), full_matrices=False, lapack_driver="gesvd")
    left, values, right = torch.tensor(left[:, :12]), torch.tensor(values[:12]), torch.tensor(right[:12]).mT
    left, _, right, probe = canonical(left, values, right)
    basis = Basis.of(W, 12)
    assert torch.allclose(basis.V.double(), right, atol=1e-6) and torch.allclose(basis.U.double(), left, atol=1e-6)
    assert torch.allclose(basis.probe.double(), probe, atol=1e-5)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (30, 30)])
@pytest.mark.parametrize("smallest", [0.5, 1e-3, 1e-7, 0])
def test_the_basis_is_exact_for_every_condition(shape, smallest):
    torch.manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(*shape, dtype=torch.float64), full_matrices=False)
    S = torch.linspace(1, smallest, min(shape), dtype=torch.float64)
    W = (U * S) @ Vh
    basis = Basis.of(W, len(S))
    eye = torch.eye(len(S), dtype=torch.float64)
    assert torch.allclose(basis.U.mT @ basis.U, eye, atol=1e-9) and torch.allclose(basis.V.mT @ basis.V, eye, atol=1e-9)
    assert torch.allclose(basis.U * basis.S @ basis.V.mT, W, atol=1e-9)


@given(k=st.integers(1, 12), d=st.integers(0, 12), seed=seeds, pattern=st.sampled_from(PATTERNS))
@settings(max_examples=80, deadline=None)
def test_patterns_have_the_entries_of_their_definition(k, d, seed, pattern):
    torch.manual_seed(seed)
    U, V = torch.randn(k + 3, k), torch.randn(k, k)
    positions = pattern_positions(U, V, pattern, d, seed)
    assert len(positions) == len(set(positions.tolist())) == pattern_size(k, pattern, d)
    assert ((positions >= 0) & (positions < k * k)).all() and torch.equal(positions, positions.sort().values)
    chosen = torch.zeros(k * k, dtype=torch.bool)
    chosen[positions] = True
    if pattern in ("plain", "banded"):
        row, column = torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij")
        width = 0 if pattern == "plain" else d
        assert torch.equal(chosen.view(k, k), (row - column).abs() <= width)
    if pattern == "top-k" and not chosen.all():
        weight = (U[:k].double().mT @ V.double()).abs().flatten()
        assert weight[chosen].min() >= weight[~chosen].max()
    M = torch.randn(len(positions), requires_grad=True)
    change = sparse_change(positions, M, k)
    assert torch.equal(change.detach().flatten()[positions], M.detach()) and int((change != 0).sum()) <= len(M)
    change.sum().backward()
    assert torch.equal(M.grad, torch.ones_like(M))


def test_random_patterns_are_the_same_everywhere_and_another_for_each_seed():
    U = torch.zeros(50, 50)
    assert pattern_positions(U, U, "random", 2, seed=5)[:6].tolist() == RANDOM_POSITIONS
    first, second = (pattern_positions(U, U, "random", 8, seed=seed) for seed in (0, 1))
    shared = len(set(first.tolist()) & set(second.tolist()))
    assert abs(shared - len(first) ** 2 / 2500) < 60, "as many as chance gives"
    assert checksum(first) != checksum(second)
    counts = torch.bincount(first // 50, minlength=50)
    assert counts.min() > 3 and counts.max() < 33, "spread over the rows"


@given(k=sizes, rotation=rotations, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_core_is_that_of_the_paper(k, rotation, seed):
    _, basis, theta, s = draw_layer(k, k, k, rotation, seed)
    C = torch.diag(basis.S) + core_change(basis.S, theta, s, Rotation(rotation))
    assert torch.allclose(C, reference_core(basis.S, theta, s, rotation))
    assert torch.equal(core_change(basis.S, theta * 0 if theta is not None else None, s * 0, Rotation(rotation)), C * 0)


@given(k=st.integers(2, 40), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_strict_form_is_a_rotation_and_the_approximate_one_only_stretches(k, seed):
    torch.manual_seed(seed)
    theta = torch.randn(Rotation("strict").size(k))
    G = torch.eye(k) + core_change(torch.ones(k), theta, None, Rotation("strict"))
    assert torch.allclose(G.mT @ G, torch.eye(k), atol=1e-5)
    assert orthogonality_error(theta, k, Rotation("strict")) < 1e-5
    K = (torch.eye(k) - (torch.eye(k) + core_change(torch.ones(k), theta, None, Rotation("approx")))) / 2
    assert torch.equal(K, -K.mT)
    assert orthogonality_error(theta, k, Rotation("approx")) == pytest.approx(
        4 * float(torch.linalg.norm(K, 2)) ** 2, rel=1e-4
    )


def test_counts():
    assert [Rotation("approx").size(k) + k for k in (1, 2, 153, 409)] == [1, 3, 153 * 154 // 2, 409 * 410 // 2]
    assert Rotation("strict").size(153) == Rotation("approx").size(153)
    assert [Rotation("none").size(k) + k for k in (1, 2, 153)] == [1, 6, 153 * 153 + 153]


@given(k=sizes, rotation=rotations, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_sides(k, rotation, seed):
    torch.manual_seed(seed)
    S, s = torch.rand(k, dtype=torch.float64), torch.randn(k, dtype=torch.float64)
    size = Rotation(rotation).size(k)
    theta = torch.randn(2, size, dtype=torch.float64) if size else [None, None]

    def core(theta, side, scale=s):
        return torch.diag(S) + core_change(S, theta, scale, Rotation(rotation, side))

    assert Rotation(rotation, "output").size(k) == size and Rotation(rotation, "both").size(k) == 2 * size
    # The output form on W is the input form on its transpose, which is what the reference code does on wide layers.
    assert torch.allclose(core(theta[0], "output"), core(theta[0], "input").mT)
    unscaled = torch.diag(1 / (S + S * s)) @ core(theta[1], "input")  # G of the output side
    both = core(None if size == 0 else theta.flatten(), "both")
    assert torch.allclose(both, unscaled.mT @ core(theta[0], "input"))


@given(inner=sizes, outer=sizes, rotation=rotations, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_each_side_has_a_rank(inner, outer, rotation, seed):
    """C = G_out^T (S + dS) G_in, where each G is the identity beyond its own directions."""
    torch.manual_seed(seed)
    k = max(inner, outer)
    S, s = torch.rand(k, dtype=torch.float64), torch.randn(k, dtype=torch.float64)
    ranks = Rotation(rotation, "both", (inner, outer))
    thetas = [torch.randn(Rotation(rotation).size(rank), dtype=torch.float64) for rank in (inner, outer)]
    theta = torch.cat(thetas)
    assert len(theta) == ranks.size(k)
    sides = []
    for rank, part in zip((inner, outer), thetas, strict=True):
        G = torch.eye(k, dtype=torch.float64)
        one = torch.ones(rank, dtype=torch.float64)
        G[:rank, :rank] = reference_core(one, part if len(part) else None, 0 * one, rotation)
        sides.append(G)
    C = torch.diag(S) + core_change(S, theta if len(theta) else None, s, ranks)
    assert torch.allclose(C, sides[1].mT @ torch.diag(S + S * s) @ sides[0])
    if rotation == "strict" and len(theta):
        solved = solve_rotations(theta, k, ranks)
        assert torch.allclose(torch.diag(S) + core_change(S, theta, s, ranks, solved), C)


@given(k=sizes, side=st.sampled_from(SIDES), rotation=st.sampled_from(["approx", "neumann", "strict"]), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_inverse_of_the_core(k, side, rotation, seed):
    torch.manual_seed(seed)
    S, s = 0.1 + torch.rand(k, dtype=torch.float64), torch.randn(k, dtype=torch.float64)
    s = torch.where((1 + s).abs() < 0.01, 0, s)
    theta = 0.5 * torch.randn(Rotation(rotation, side).size(k), dtype=torch.float64) if k > 1 else None
    C = torch.diag(S) + core_change(S, theta, s, Rotation(rotation, side))
    inverse = core_inverse(S, theta, s, Rotation(rotation, side))
    assert torch.allclose(C @ inverse, torch.eye(k, dtype=torch.float64), atol=1e-8)
    s[0] = -1
    assert torch.isfinite(core_inverse(S, theta, s, Rotation(rotation, side))).all()


@given(k=st.integers(2, 12), sides=st.integers(1, 2), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_rotations_that_were_solved_together(k, sides, seed):
    torch.manual_seed(seed)
    theta = torch.randn(5, sides * k * (k - 1) // 2, dtype=torch.float64, requires_grad=True)
    S, side = torch.rand(k, dtype=torch.float64), "both" if sides == 2 else "output"
    together = solve_rotations(theta, k, Rotation("strict", side))
    assert not together.requires_grad

    def change(i, solved):
        return core_change(S, theta[i], None, Rotation("strict", side), solved)

    for i in range(5):
        assert torch.allclose(change(i, together[i]), change(i, None))
        wanted, got = (torch.autograd.grad(change(i, H).square().sum(), theta)[0] for H in (None, together[i]))
        assert torch.allclose(got, wanted)
    assert torch.autograd.gradcheck(lambda theta: core_change(S, theta, None, Rotation("strict", side)), theta[0])


def test_the_series_approaches_the_rotation():
    torch.manual_seed(0)
    theta = 0.2 * torch.randn(20 * 19 // 2)
    approx, neumann, strict = (
        core_change(torch.ones(20), theta, None, Rotation(r)) for r in ("approx", "neumann", "strict")
    )
    assert torch.linalg.norm(neumann - strict) < 0.1 * torch.linalg.norm(approx - strict)
    errors = [orthogonality_error(theta, 20, Rotation(rotation)) for rotation in ("approx", "neumann", "strict")]
    assert errors[0] > 10 * errors[1] > 10 * errors[2]


@torch.no_grad()
def test_cores_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    S = torch.rand(6)
    for rotation in ROTATIONS:
        theta, s = torch.randn(Rotation(rotation, "both").size(6)), torch.randn(6)
        arguments = S, theta, s, Rotation(rotation, "both")
        functions = [core_change] if rotation == "none" else [core_change, core_inverse]
        exact = [function(*arguments) for function in functions]
        with torch.autocast("cpu", torch.bfloat16):
            assert all(torch.equal(function(*arguments), e) for function, e in zip(functions, exact, strict=True))
