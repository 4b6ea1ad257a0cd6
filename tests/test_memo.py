"""What adapted layers remember from one forward pass to the next: reused while nothing changes, never stale."""

import copy
import pickle
import warnings
import weakref

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

import ssvd.tuners.formed_weight
import ssvd.tuners.shared_input
import ssvd.tuners.ssvd
from ssvd import SSVDConfig, SVFTConfig
from ssvd.tuners.layer import SpectralLayer

TARGETS = ["0", "2"]


def adapted(config=None, seed=0):
    """Two adapted layers away from the start, ready to train."""
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    model = get_peft_model(base, config or SSVDConfig(target_modules=TARGETS, portion=0.8, rotation="strict"))
    return perturb(model).train()


@torch.no_grad()
def perturb(model):
    for p in model.parameters():
        if p.requires_grad:
            p.add_(0.3 * torch.randn(p.shape))
    return model


def batch(seed):
    # So many that the changed weight is formed.
    return torch.randn(500, 24, generator=torch.Generator().manual_seed(seed))


X = batch(0)


def spectral_layers(model):
    return [module for module in model.modules() if isinstance(module, SpectralLayer)]


@pytest.fixture
def formed(monkeypatch):
    """The weights that layers formed."""
    weights = []
    form = ssvd.tuners.formed_weight.effective_weight

    def recorded(*arguments):
        weight = form(*arguments)
        weights.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(ssvd.tuners.formed_weight, "effective_weight", recorded)
    return weights


def optimisers():
    AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
    for name, make in {
        "loop": lambda p: AdamW(p, lr=0.05, foreach=False),
        "foreach": lambda p: AdamW(p, lr=0.05, foreach=True),
        "fused": lambda p: AdamW(p, lr=0.05, fused=True),  # leaves the version counters of its parameters alone
        "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9),
    }.items():
        yield pytest.param(make, id=name)


class ByHand:
    """An optimiser of a training loop that is written by hand."""

    def __init__(self, parameters, through_data):
        self.parameters, self.through_data = parameters, through_data

    def step(self):
        for p in self.parameters:
            if self.through_data:
                p.data -= 0.01 * p.grad
            else:
                with torch.no_grad():
                    p -= 0.01 * p.grad

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


def trained_by(make, accumulate, forget, steps=3, **options):
    model = adapted(**options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = make(parameters)
    for step in range(steps):
        for i in range(accumulate):
            for layer in spectral_layers(model) if forget else ():
                layer._forget()
            model(batch(10 * step + i)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("config", [SSVDConfig, SVFTConfig])
@pytest.mark.parametrize(
    "make",
    [
        *optimisers(),
        pytest.param(lambda p: ByHand(p, through_data=False), id="by hand"),
        pytest.param(lambda p: ByHand(p, through_data=True), id="by hand, data"),
    ],
)
def test_training_is_as_without_a_memo(make, config, accumulate, formed):
    options = {"config": config(target_modules=TARGETS)}
    kept = trained_by(make, accumulate, forget=False, **options)
    count = len(formed)
    wanted = trained_by(make, accumulate, forget=True, **options)
    assert all(torch.equal(*pair) for pair in zip(kept, wanted, strict=True))
    # For two layers: before it is known that gradients are accumulated, the second batch of three forms it once more.
    assert count == (2 * 3 if accumulate == 1 else 2 * (2 + 1 + 1))


@pytest.mark.parametrize("config", [SSVDConfig, SVFTConfig])
def test_a_second_run_is_the_same_bit_for_bit(config):
    torch.use_deterministic_algorithms(True)
    try:
        options = {"target_modules": TARGETS, **({"rotation": "strict", "rank": 9} if config is SSVDConfig else {})}
        runs = []
        for _ in range(2):
            torch.manual_seed(5)  # of the token stride
            config_ = config(**options, token_stride=3)
            runs.append(trained_by(lambda p: torch.optim.AdamW(p, lr=0.05), 2, forget=False, config=config_))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_without_accumulation_no_weight_outlives_its_step(formed):
    model = adapted()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(3):
        loss = model(X).square().mean()
        assert any(weight() is not None for weight in formed)  # for the backward pass
        loss.backward()
        del loss
        assert all(weight() is None for weight in formed)
        optimiser.step()
        optimiser.zero_grad()


def write_without_grad(model):
    with torch.no_grad():
        spectral_layers(model)[0].ssvd_theta["default"].add_(0.1)


def write_the_base(model):
    with torch.no_grad():
        spectral_layers(model)[0].base_layer.weight.mul_(1.1)


def load_the_adapter(model):
    halved = {key: v * 0.5 if "theta" in key else v for key, v in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, halved)


def load_everything(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict({key: v * 0.5 if "ssvd_s" in key else v for key, v in model.state_dict().items()})


def set_another_adapter(model):
    torch.manual_seed(7)
    model.add_adapter("other", SSVDConfig(target_modules=TARGETS, init_weights=False))
    model.set_adapter("other")


def set_two_adapters(model):
    set_another_adapter(model)
    model.base_model.set_adapter(["default", "other"])


def replace_a_parameter(model):
    parameters = spectral_layers(model)[0].ssvd_s
    parameters["default"] = nn.Parameter(parameters["default"].detach() + 0.5)


def disable(model):
    model.base_model.disable_adapter_layers()


def merge_and_unmerge(model):
    model.merge_adapter()
    model.unmerge_adapter()


def merge(model):
    model.merge_adapter()


def take_a_step(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.ones_like(p) if p.grad is None else p.grad
    torch.optim.AdamW(trained, lr=0.1, fused=True).step()


@pytest.mark.parametrize(
    "event",
    [
        write_without_grad,
        write_the_base,
        load_the_adapter,
        load_everything,
        set_another_adapter,
        set_two_adapters,
        replace_a_parameter,
        disable,
        merge_and_unmerge,
        merge,
        take_a_step,
        lambda model: model.half().float(),
        lambda model: model.to("meta").to_empty(device="cpu").load_state_dict(adapted(seed=3).state_dict()),
        lambda model: model.eval(),
    ],
    ids=lambda event: event.__name__.strip("<>"),
)
@pytest.mark.parametrize("decoding", [False, True], ids=["accumulating", "decoding"])
@pytest.mark.filterwarnings("ignore:Parameters of SSVD without the fingerprints")
def test_every_change_is_noticed(event, decoding, formed):
    def passes(model):
        with torch.set_grad_enabled(not decoding):
            y = model(X)
            if y.requires_grad:
                y.square().mean().backward()
        return y.detach()

    model = adapted().train(not decoding)
    for _ in range(3):
        before = passes(model)
    formed.clear()
    assert torch.equal(passes(model), before) and not formed, "nothing changed"
    event(model)
    after = passes(model)
    fresh = copy.deepcopy(model)
    assert all(memo.value is None for layer in spectral_layers(fresh) for memo in layer._weights.values())
    assert torch.equal(after, passes(fresh))
    if event not in (merge, merge_and_unmerge) and "lambda" not in event.__name__:
        assert not torch.allclose(after, before, atol=1e-3)


def test_evaluation_gives_the_same_numbers_with_gradients_and_without():
    # Two rows, and with "activations" in training.
    model = adapted().eval()
    rows = X[:2]
    with_gradients = model(rows)
    with torch.no_grad():
        assert torch.equal(model(rows), with_gradients)
    trained = model.train()(rows)
    assert torch.allclose(trained, with_gradients, atol=1e-5)


@torch.no_grad()
def test_each_dtype_of_autocast_has_its_own_weight():
    model = adapted().eval()
    before = model(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X).dtype == torch.bfloat16
    assert torch.equal(model(X), before)


def test_training_goes_on_after_inference_mode():
    model = adapted().eval()
    with torch.inference_mode():
        before = model(X)
    y = model(X)
    assert torch.equal(y.detach(), before)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_copies_and_pickles_start_empty():
    model = adapted().eval()
    with torch.no_grad():
        before = model(X)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for layer in spectral_layers(other):
                assert all(memo.value is None for memo in (*layer._weights.values(), *layer._solved.values()))
            assert torch.equal(other(X), before)


@torch.no_grad()
def test_replicas_for_other_devices_start_empty():
    layer = spectral_layers(adapted().eval())[0]
    layer(X)
    replica = layer._replicate_for_data_parallel()
    assert layer._ready and layer._weights and layer._solved
    assert not (replica._ready or replica._weights or replica._solved)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_use_the_remembered_weight(reentrant, formed):
    def gradients(checkpointed):
        model = adapted()
        for seed in (1, 2, 3, 4):
            x = batch(seed).requires_grad_()
            formed.clear()
            y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
            y.square().mean().backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    plain, checkpointed = gradients(False), gradients(True)
    assert not formed, "of the fourth batch"
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(plain, checkpointed, strict=True))


def test_strict_rotations_of_equal_size_are_solved_together(monkeypatch):
    solved = []
    solve = ssvd.tuners.ssvd.solve_rotations

    def recorded(theta, *others):
        solved.append(len(theta))
        return solve(theta, *others)

    monkeypatch.setattr(ssvd.tuners.ssvd, "solve_rotations", recorded)
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(12, 12) for _ in range(6)), nn.Linear(12, 30), nn.Linear(30, 20))
    model = perturb(get_peft_model(base, SSVDConfig(target_modules="all-linear", rotation="strict", portion=0.5)))
    x = torch.randn(9, 12)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    unused = adapted()
    unused(X)
    for step in range(3):
        solved.clear()
        model(x).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        # k is 6 in seven layers and 10 in the last. At first nobody knows what will be used.
        assert solved == [1] * 8 if step == 0 else sorted(solved) == [1, 7]
    together = model(x)
    assert torch.equal(copy.deepcopy(model)(x), together)
    monkeypatch.setattr(ssvd.tuners.ssvd, "_MOST_SOLVED", 3 * 6**2)  # no more at a time
    optimiser.step()
    solved.clear()
    model(x)
    assert sorted(solved) == [1, 3, 4]


def test_an_input_that_several_layers_read_is_kept_once():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(128, 128) for _ in range(4))

        def forward(self, x):
            return self.out(self.q(x) * self.k(x) * self.v(x))

    torch.manual_seed(0)
    model = perturb(get_peft_model(Attention(), SSVDConfig(target_modules=["q", "k", "v", "out"]))).train()

    def kept():
        x = torch.randn(300, 128, requires_grad=True)
        tensors = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
            loss = model(x).sum()
        loss.backward()
        return {t.data_ptr(): t.shape[1] for t in tensors if len(t) == 300}, x

    others = len(ssvd.tuners.shared_input._readers)
    first, _ = kept()
    second, x = kept()
    # k is 51: three times 51 numbers a token at first, then the 128 of x. The products keep what they multiply.
    assert sorted(first.values()) == [51] * 4 + [128] * 4
    assert sorted(second.values()) == [51] + [128] * 5 and x.data_ptr() in second
    assert pickle.loads(pickle.dumps(x)).shape == x.shape and x in ssvd.tuners.shared_input._readers
    del x, _
    assert len(ssvd.tuners.shared_input._readers) == others, "inputs are forgotten"
    with torch.autocast("cpu", torch.bfloat16):  # each layer converts an input of its own, and keeps 51 of it
        kept()
        third, _ = kept()
    assert sorted(third.values()).count(51) == 4
