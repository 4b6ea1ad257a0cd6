"""The mathematics: bases, cores, and the adapted linear map against a plain reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from ssvd.spectral import (
    ROTATIONS,
    Basis,
    change_signs,
    core_change,
    effective_weight,
    orthogonality_error,
    rotation_size,
    spectral_linear,
    step,
)

sizes = st.integers(1, 12)
rotations = st.sampled_from(ROTATIONS)
seeds = st.integers(0, 2**31)


def draw_layer(m, n, k, rotation, seed, dtype=torch.float64):
    """A weight, its basis, and random theta and s (None where a rotation has no theta)."""
    torch.manual_seed(seed)
    W = torch.randn(m, n, dtype=dtype)
    size = rotation_size(k, rotation)
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
        G = eye - 2 * K if rotation == "approx" else (eye - K) @ torch.linalg.inv(eye + K)
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
    assert (basis.V.gather(0, basis.V.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_basis_refuses_a_size_or_a_method_that_does_not_exist():
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


def test_a_fingerprint_tells_signs_and_bases():
    torch.manual_seed(0)
    W = torch.randn(40, 30)
    basis = Basis.of(W, 20)
    signs = torch.randn(20).sign()
    assert torch.equal(basis.signs_in(basis.fingerprint * signs), signs)
    assert torch.equal(Basis.of(W.double(), 20).signs_in(basis.fingerprint).float(), torch.ones(20))
    assert basis.signs_in(Basis.of(torch.randn(40, 30), 20).fingerprint) is None
    assert basis.signs_in(Basis.of(W + 0.1 * torch.randn(40, 30), 20).fingerprint) is None


@given(k=sizes, rotation=rotations, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_core_is_that_of_the_paper(k, rotation, seed):
    _, basis, theta, s = draw_layer(k, k, k, rotation, seed)
    C = torch.diag(basis.S) + core_change(basis.S, theta, s, rotation)
    assert torch.allclose(C, reference_core(basis.S, theta, s, rotation))
    assert torch.equal(core_change(basis.S, theta * 0 if theta is not None else None, s * 0, rotation), C * 0)


@given(k=st.integers(2, 40), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_strict_form_is_a_rotation_and_the_approximate_one_only_stretches(k, seed):
    torch.manual_seed(seed)
    theta = torch.randn(rotation_size(k, "strict"))
    G = torch.eye(k) + core_change(torch.ones(k), theta, None, "strict")
    assert torch.allclose(G.mT @ G, torch.eye(k), atol=1e-5)
    assert orthogonality_error(theta, k, "strict") < 1e-5
    K = (torch.eye(k) - (torch.eye(k) + core_change(torch.ones(k), theta, None, "approx"))) / 2
    assert torch.equal(K, -K.mT)
    assert orthogonality_error(theta, k, "approx") == pytest.approx(4 * float(torch.linalg.norm(K, 2)) ** 2, rel=1e-4)


def test_counts():
    assert [rotation_size(k, "approx") + k for k in (1, 2, 153, 409)] == [1, 3, 153 * 154 // 2, 409 * 410 // 2]
    assert rotation_size(153, "strict") == rotation_size(153, "approx")
    assert [rotation_size(k, "none") + k for k in (1, 2, 153)] == [1, 6, 153 * 153 + 153]


@given(k=st.integers(2, 10), rotation=rotations, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_core_can_be_carried_over_to_other_signs(k, rotation, seed):
    _, basis, theta, s = draw_layer(k, k, k, rotation, seed)
    signs = torch.randn(k, dtype=torch.float64).sign()
    D = torch.diag(signs)
    carried = core_change(basis.S, change_signs(theta, signs, rotation), s, rotation)
    assert torch.allclose(carried, D @ core_change(basis.S, theta, s, rotation) @ D)


@given(m=sizes, n=sizes, tokens=st.integers(0, 30), rotation=rotations, bias=st.booleans(), seed=seeds, data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_adapted_map_and_its_gradients_equal_the_reference(m, n, tokens, rotation, bias, seed, data):
    k = data.draw(st.integers(1, min(m, n)))
    W, basis, theta, s = draw_layer(m, n, k, rotation, seed)
    x = torch.randn(tokens, n, dtype=torch.float64, requires_grad=True)
    b = torch.randn(m, dtype=torch.float64) if bias else None
    trained = [x, s] if theta is None else [x, s, theta]

    y = spectral_linear(x, W, b, basis.U, basis.V, core_change(basis.S, theta, s, rotation))
    C = reference_core(basis.S, theta, s, rotation)
    expected = linear(x, W + basis.U @ (C - torch.diag(basis.S)) @ basis.V.mT, b)
    assert torch.allclose(y, expected)

    dy = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad(y, trained, dy), torch.autograd.grad(expected, trained, dy), strict=True):
        assert torch.allclose(got, want, atol=1e-9)


@pytest.mark.parametrize(("m", "n", "k", "tokens"), [(5, 4, 2, 3), (4, 6, 4, 9), (6, 3, 1, 4), (8, 8, 7, 200)])
def test_gradcheck(m, n, k, tokens):
    W, basis, _, _ = draw_layer(m, n, k, "none", 0)
    # 200 tokens take the way by the gradient of the weight, which is checked on a few of them.
    x = torch.randn(tokens, n, dtype=torch.float64, requires_grad=tokens < 100)
    bias = torch.randn(m, dtype=torch.float64, requires_grad=True)
    change = torch.randn(k, k, dtype=torch.float64, requires_grad=True)
    W.requires_grad_(tokens < 100)
    assert torch.autograd.gradcheck(lambda *a: spectral_linear(*a[:3], basis.U, basis.V, a[3]), (x, W, bias, change))


def test_any_leading_dimensions_and_strides():
    W, basis, theta, s = draw_layer(5, 7, 3, "approx", 0)
    change = core_change(basis.S, theta, s, "approx")
    weight = effective_weight(W, basis.U, basis.V, change)
    x = torch.randn(2, 7, 3, 4, dtype=torch.float64).permute(3, 0, 2, 1)
    for tokens in (x, x[0, 0, 0], x[:, :0]):
        tokens = tokens.detach().requires_grad_()
        y = spectral_linear(tokens, W, None, basis.U, basis.V, change)
        assert torch.allclose(y, linear(tokens, weight))
        (dx,) = torch.autograd.grad(y.sum(), tokens, retain_graph=True)
        assert torch.allclose(dx, weight.sum(0).expand_as(tokens))


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_change_gives_the_plain_layer_bit_for_bit(shape, dtype):
    torch.manual_seed(0)
    W = torch.randn(shape).to(dtype)
    basis = Basis.of(W, 12)
    x, b = torch.randn(2, 9, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
    assert torch.equal(spectral_linear(x, W, b, basis.U, basis.V, torch.zeros(12, 12)), linear(x, W, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients(dtype):
    torch.manual_seed(0)
    W, basis, theta, s = draw_layer(32, 48, 12, "strict", 0, torch.float32)
    theta, s = (theta * 0.1).detach().requires_grad_(), (s * 0.1).detach().requires_grad_()
    x, b = torch.randn(4, 10, 48, requires_grad=True), torch.randn(32)

    def run():
        y = spectral_linear(x, W, b, basis.U, basis.V, core_change(basis.S, theta, s, "strict"))
        return y, torch.autograd.grad(y.float().square().mean(), [x, theta, s])

    exact, gradients = run()
    with torch.autocast("cpu", dtype):
        y, autocast_gradients = run()
        plain = spectral_linear(x, W, b, basis.U, basis.V, torch.zeros(12, 12))
        assert torch.equal(plain, linear(x, W, b))
    assert y.dtype == dtype
    assert torch.allclose(y.float(), exact, atol=0.05 * float(exact.detach().std()))
    for got, want in zip(autocast_gradients, gradients, strict=True):
        assert got.dtype == torch.float32
        assert torch.linalg.norm(got - want) < 0.02 * torch.linalg.norm(want)


@pytest.mark.parametrize(("k", "width"), [(6, 6), (16, 24)])
def test_little_of_the_input_is_kept_for_the_backward_pass(k, width):
    W, basis, theta, s = draw_layer(16, 24, k, "approx", 0, torch.float32)
    x = torch.randn(1000, 24, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        spectral_linear(x, W, None, basis.U, basis.V, core_change(basis.S, theta, s, "approx"))
    assert [t.shape for t in kept if len(t) == 1000] == [(1000, width)]


def test_few_tokens_go_without_the_changed_weight():
    W, basis, theta, s = draw_layer(64, 64, 8, "approx", 0, torch.float32)
    change = core_change(basis.S, theta, s, "approx").detach()

    def kept(tokens):
        shapes = []
        x = torch.randn(tokens, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t) or t, lambda t: t):
            spectral_linear(x, W, None, basis.U, basis.V, change.requires_grad_())
        return [t.data_ptr() == W.data_ptr() for t in shapes if t.shape == W.shape]

    assert kept(4) == [True]
    assert kept(400) == [False]
