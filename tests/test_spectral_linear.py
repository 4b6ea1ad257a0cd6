"""The adapted linear map, on every way that the planner may take, against a plain reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from ssvd.spectral import (
    PATTERNS,
    ROTATIONS,
    SIDES,
    Basis,
    Plan,
    Rotation,
    core_change,
    core_inverse,
    effective_weight,
    pattern_positions,
    pattern_size,
    plan,
    sparse_change,
    spectral_linear,
)
from ssvd.spectral.planner import ways

WAYS = list(ways(5, 4, 3, 2, has_inverse=True))
DIRECT = Plan("weight", "activations", {})


def layer(m, n, k, dtype=torch.float64):
    """A weight whose singular values are far from zero, and its basis."""
    W = torch.randn(m, n, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    W = (U * (S + 0.3 * S[0]) @ Vh).to(dtype)
    return W, Basis.of(W, k)


def rotated(basis, rotation, side, std=0.5):
    """The parameters of a core, away from the start, and the core's inverse where it has one."""
    k, dtype = basis.k, basis.S.dtype
    size = Rotation(rotation, side).size(k)
    theta = (std * torch.randn(size, dtype=dtype)).requires_grad_() if size else None
    s = (std * torch.rand(k, dtype=dtype)).requires_grad_()
    inverse = None if rotation == "none" else core_inverse(basis.S, theta, s, Rotation(rotation, side))
    return theta, s, inverse


@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    tokens=st.lists(st.integers(0, 6), min_size=0, max_size=3),
    core=st.sampled_from([(rotation, side) for rotation in ROTATIONS for side in SIDES] + list(PATTERNS)),
    way=st.sampled_from(WAYS),
    bias=st.booleans(),
    keep_input=st.booleans(),
    has_weight=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=400, deadline=None)
def test_every_way_gives_the_reference_and_its_gradients(
    m, n, tokens, core, way, bias, keep_input, has_weight, strided, seed, data
):
    r = min(m, n)
    k = data.draw(st.one_of(st.just(1), st.just(r), st.integers(1, r)))
    torch.manual_seed(seed)
    W, basis = layer(m, n, k)
    band = None
    if isinstance(core, tuple):
        theta, s, inverse = rotated(basis, *core)
        trained = [s] if theta is None else [s, theta]
        change = core_change(basis.S, theta, s, Rotation(*core))
    else:
        d, inverse = data.draw(st.integers(0, k)), None
        M = torch.randn(pattern_size(k, core, d), dtype=torch.float64, requires_grad=True)
        trained, change = [M], sparse_change(pattern_positions(basis.U, basis.V, core, d), M, k)
        band = {"plain": 0, "banded": d}.get(core)
    if inverse is None and way[1] in ("input gradient", "output"):
        way = WAYS[0]
    x = torch.randn(*tokens, n, dtype=torch.float64)
    if strided:
        x = torch.randn(n, *reversed(tokens), dtype=torch.float64).permute(*reversed(range(len(tokens) + 1)))
    x.requires_grad_()
    b = torch.randn(m, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [x, *trained, *([b] if bias else [])]

    expected = linear(x, W + basis.U @ change @ basis.V.mT, b)
    weight = effective_weight(W, basis.U, basis.V, change, band=band).detach() if has_weight else None
    options = {"weight": weight, "inverse": inverse, "band": band, "keep_input": keep_input}
    y = spectral_linear(x, W, b, basis.U, basis.V, change, **options, way=Plan(*way, {}))
    assert torch.allclose(y, expected)
    dy = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, inputs, dy, retain_graph=True)
    for got, want in zip(torch.autograd.grad(y, inputs, dy), wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-9)


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] == "weight"])
@pytest.mark.parametrize("keep_input", [False, True])
def test_the_gradient_from_some_tokens_is_unbiased(way, keep_input):
    torch.manual_seed(0)
    W, basis = layer(12, 16, 6)
    theta, s, inverse = rotated(basis, "approx", "input")
    x, b = torch.randn(5, 7, 16, dtype=torch.float64, requires_grad=True), torch.randn(12, dtype=torch.float64)
    dy = torch.randn(5, 7, 12, dtype=torch.float64)

    def gradients(stride):
        y = spectral_linear(
            x,
            W,
            b,
            basis.U,
            basis.V,
            core_change(basis.S, theta, s, Rotation("approx")),
            inverse=inverse,
            keep_input=keep_input,
            stride=stride,
            way=Plan(*way, {}),
        )
        return torch.autograd.grad(y, [x, theta], dy)

    dx, exact = gradients(1)
    for stride in (3, 50):  # of 35 tokens
        found = {}
        for seed in range(20 * stride):
            torch.manual_seed(seed)
            same_dx, dtheta = gradients(stride)
            assert torch.equal(same_dx, dx)
            found[tuple(dtheta.tolist())] = dtheta
        # One for each token to begin with; with 50, fifteen begin after the last.
        assert len(found) == min(stride, 36)
        mean = sum(found.values()) / stride
        assert torch.allclose(mean, exact) and not torch.allclose(dtheta, exact, rtol=0.01)


@pytest.mark.parametrize("band", [0, 8])
@pytest.mark.parametrize("way", WAYS[:4])
def test_cores_of_several_blocks(band, way):
    torch.manual_seed(0)
    W, basis = layer(170, 200, 170)
    x = torch.randn(30, 200, dtype=torch.float64, requires_grad=True)
    positions = pattern_positions(basis.U, basis.V, "banded", band)
    M = torch.randn(len(positions), dtype=torch.float64, requires_grad=True)
    change = sparse_change(positions, M, 170)
    results = [
        spectral_linear(x, W, None, basis.U, basis.V, change, band=band, way=Plan(*way, {})),
        linear(x, W + basis.U @ change @ basis.V.mT),
    ]
    assert torch.allclose(*results)
    assert torch.allclose(*(torch.autograd.grad(y.square().sum(), M, retain_graph=True)[0] for y in results))


@pytest.mark.parametrize("way", WAYS)
def test_gradcheck(way):
    torch.manual_seed(0)
    W, basis = layer(5, 6, 3)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    theta, s, _ = rotated(basis, "strict", "both")
    W.requires_grad_(way[1] == "weight gradient")

    def apply(x, W, bias, theta, s):
        core = basis.S, theta, s, Rotation("strict", "both")
        inverse = core_inverse(*core)
        return spectral_linear(x, W, bias, basis.U, basis.V, core_change(*core), inverse=inverse, way=Plan(*way, {}))

    assert torch.autograd.gradcheck(apply, (x, W, bias, theta, s))


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_change_gives_the_plain_layer_bit_for_bit(shape, dtype):
    torch.manual_seed(0)
    W = torch.randn(shape).to(dtype)
    basis = Basis.of(W, 12)
    x, b = torch.randn(2, 9, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
    for way in WAYS:
        y = spectral_linear(x, W, b, basis.U, basis.V, torch.zeros(12, 12), way=Plan(*way, {}))
        assert torch.equal(y, linear(x, W, b))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients(dtype, way):
    torch.manual_seed(0)
    W, basis = layer(32, 48, 12, torch.float32)
    theta, s, inverse = rotated(basis, "strict", "input", std=0.1)
    x, b = torch.randn(4, 10, 48, requires_grad=True), torch.randn(32)

    def run(way):
        change = core_change(basis.S, theta, s, Rotation("strict"))
        y = spectral_linear(x, W, b, basis.U, basis.V, change, inverse=inverse, way=way)
        return y, torch.autograd.grad(y.float().square().mean(), [x, theta, s])

    exact, gradients = run(DIRECT)
    with torch.autocast("cpu", dtype):
        y, autocast_gradients = run(Plan(*way, {}))
    assert y.dtype == dtype
    assert torch.allclose(y.float(), exact, atol=0.05 * float(exact.detach().std()))
    for got, want in zip(autocast_gradients, gradients, strict=True):
        assert got.dtype == torch.float32
        assert torch.linalg.norm(got - want) < 0.04 * torch.linalg.norm(want)


@pytest.mark.parametrize("shape", [(128, 32), (32, 128), (64, 64)])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_short_ways_are_as_exact_as_the_direct_one(shape, autocast):
    torch.manual_seed(0)
    W = torch.randn(shape)  # with the small singular values of a random matrix
    basis = Basis.of(W, min(shape) * 4 // 10)
    theta, s, inverse = rotated(basis, "approx", "input", std=0.2)
    x = torch.randn(500, shape[1]) * torch.logspace(0, 2, shape[1])  # with the outliers of a transformer
    dy = torch.randn(500, shape[0])

    def error(way):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            change = core_change(basis.S, theta, s, Rotation("approx"))
            inputs = x.clone().requires_grad_()
            y = spectral_linear(inputs, W, None, basis.U, basis.V, change, inverse=inverse, way=way)
        got = torch.cat(torch.autograd.grad(y, [theta, s], dy.to(y.dtype)))
        return float(torch.linalg.norm(got - exact) / torch.linalg.norm(exact))

    change = core_change(basis.S.double(), theta, s, Rotation("approx"))
    plain = linear(x.double(), W.double() + basis.U.double() @ change @ basis.V.double().mT)
    exact = torch.cat(torch.autograd.grad(plain, [theta, s], dy.double()))
    direct = error(DIRECT)
    assert direct < (0.02 if autocast else 1e-5)
    for core in ("input gradient", "output"):
        assert error(Plan("weight", core, {})) < 3 * direct


@pytest.mark.parametrize(
    ("way", "keep_input", "width"), [(WAYS[0], False, 6), (WAYS[0], True, 24), (WAYS[1], True, 24)]
)
def test_what_is_kept_of_the_tokens(way, keep_input, width):
    torch.manual_seed(0)
    W, basis = layer(16, 24, 6, torch.float32)
    theta, s, _ = rotated(basis, "approx", "input")
    x = torch.randn(1000, 24, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        change = core_change(basis.S, theta, s, Rotation("approx"))
        spectral_linear(x, W, None, basis.U, basis.V, change, keep_input=keep_input, way=Plan(*way, {}))
    tokens = [t for t in kept if len(t) == 1000]
    assert [t.shape for t in tokens] == [(1000, width)]
    assert (tokens[0].data_ptr() == x.data_ptr()) == keep_input


def test_without_gradients_nothing_is_kept():
    torch.manual_seed(0)
    W, basis = layer(16, 24, 6, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = torch.randn(100, 24, requires_grad=True)
        for way in WAYS:
            spectral_linear(x, W, None, basis.U, basis.V, torch.ones(6, 6), inverse=torch.eye(6), way=Plan(*way, {}))
    assert not [t for t in kept if len(t) == 100]


# --- the planner


def products(way, tokens, m, n, k, **known):
    return sum(a * b * c for a, b, c in ways(tokens, m, n, k, **known)[way])


def test_the_costs_are_those_of_the_products():
    # A square layer with k = 0.4 d, of many tokens: 0.8 of the frozen layer's product for the gradient of the core.
    tokens, d, k = 10**6, 1000, 400
    assert products(("weight", "activations"), tokens, d, d, k) == pytest.approx(0.8 * tokens * d * d, rel=0.01)
    assert products(("weight", "weight gradient"), tokens, d, d, k) == pytest.approx(tokens * d * d, rel=0.01)
    # In a 1:4 layer 0.5 of it on the direct way, 0.2 on the short ones.
    for m, n, short in ((4 * d, d, "input gradient"), (d, 4 * d, "output")):
        direct, shorter = (
            products(("weight", core), tokens, m, n, k, has_inverse=True) / (tokens * m * n)
            for core in ("activations", short)
        )
        assert direct == pytest.approx(0.5, rel=0.01) and shorter == pytest.approx(0.2, rel=0.01)
    few = plan(4, d, d, k)
    assert few.change == "activations" and few.costs["activations", "activations"] < few.costs["weight", "activations"]


@pytest.mark.parametrize(
    ("shape", "known", "way"),
    [
        ((4000, 384, 384, 153), {}, ("weight", "activations")),
        ((4000, 1536, 384, 153), {}, ("weight", "activations")),
        ((4000, 1536, 384, 153), {"has_inverse": True}, ("weight", "input gradient")),
        ((4000, 384, 1536, 153), {"has_inverse": True}, ("weight", "output")),
        ((4000, 1536, 384, 153), {"has_inverse": True, "wants_input": False}, ("weight", "activations")),
        ((4000, 384, 384, 384), {}, ("weight", "weight gradient")),
        ((4000, 384, 384, 153), {"wants_weight": True}, ("weight", "weight gradient")),
        ((16, 384, 384, 153), {}, ("activations", "activations")),
        ((16, 384, 384, 153), {"has_weight": True}, ("weight", "activations")),
    ],
)
def test_the_cheapest_way_is_taken(shape, known, way):
    found = plan(*shape, **known)
    assert (found.change, found.core) == way
    assert found.costs[way] == min(found.costs.values())


def test_the_way_is_seen_in_what_is_kept():
    """Few tokens go without the changed weight."""
    torch.manual_seed(0)
    W, basis = layer(64, 64, 8, torch.float32)

    def kept_weights(tokens):
        kept = []
        x, change = torch.randn(tokens, 64, requires_grad=True), torch.randn(8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            spectral_linear(x, W, None, basis.U, basis.V, change)
        return [t.data_ptr() == W.data_ptr() for t in kept if t.shape == W.shape]

    assert kept_weights(2) == [True]
    assert kept_weights(400) == [False]


@pytest.mark.parametrize("shape", [(90, 50), (50, 90)])
def test_whether_a_basis_fits(shape):
    torch.manual_seed(0)
    W, basis = layer(*shape, 8, torch.float32)
    assert basis.fits(W)
    assert not basis.fits(W + 1e-3 * torch.randn(shape)) and not basis.fits(W.bfloat16())
    assert not Basis.of(W, 8, svd="randomized").fits(W)
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    singular = U * torch.logspace(0, -4, 50) @ Vh
    assert Basis.of(singular, 20).fits(singular) and not Basis.of(singular, 50).fits(singular)
