"""The table of methods: budgets, exact counts, what each method is by its definition, and what a wrong value says."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from torch import nn

from ssvd.errors import UserError
from ssvd.methods import (
    METHODS,
    Budget,
    apply_method,
    find_method,
    linear_shapes,
    parameters,
    trainable_parameters,
)
from ssvd.recognisers.loading import load_model
from ssvd.training.interpolation import merge_adapter

LAYERS = ["encoder.q", "encoder.fc2", "decoder"]
PEFT_METHODS = [name for name, method in METHODS.items() if method.config]
# OWSM v3.1 medium, shapes (out, in): the 380 linear layers but the CTC head.
E_BRANCHFORMER = [(1024, 1024)] * 4 + [(4096, 1024)] * 3 + [(1024, 4096)] * 2 + [(1024, 2048)] * 2
OWSM_1B = [
    (1024, 19456),
    *E_BRANCHFORMER * 18,
    *([(1024, 1024)] * 8 + [(4096, 1024), (1024, 4096)]) * 18,
    (50002, 1024),
]
OWSM_1B = {f"layers.{i}": shape for i, shape in enumerate(OWSM_1B)}
OWSM_1B_PARAMETERS = 1_016_891_044


class Model(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"q": nn.Linear(width, width), "fc2": nn.Linear(width, 96), "norm": nn.LayerNorm(96)}
        )
        self.decoder = nn.Linear(96, 24, bias=False)

    def forward(self, x):
        return self.decoder(self.encoder["norm"](self.encoder["fc2"](self.encoder["q"](x))))


def perturbed(module: nn.Module, size: float = 0.05) -> nn.Module:
    """With other values of what is trained: at the start every bug is invisible."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter) * parameter.abs().mean().clamp(min=0.3)
    return module


@pytest.fixture
def x():
    return torch.randn(5, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "budget", ["p=0.4", "p=0.9", "25%", "600", "rank=5", "rank=1", "portion=0.1", "band=2", "block=8"]
)
def test_the_planned_count_is_what_is_trained(name, budget):
    method, shapes = METHODS[name], linear_shapes(Model(), LAYERS)
    try:
        setting = method.setting(shapes, Budget.parse(budget), parameters(Model()))
    except UserError as error:
        assert any(words in str(error) for words in ("cannot train about", "is set by", "is not possible"))
        return
    module = apply_method(Model(), name, LAYERS, Budget.parse(budget))
    part = method.part(Model())
    expected = method.count(shapes, method.initial(setting)) if part is None else parameters(part)
    assert trainable_parameters(module) == expected
    if name != "frozen":
        perturbed(module)(torch.randn(2, 32)).square().sum().backward()
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PEFT_METHODS)
def test_a_reloaded_adapter_gives_the_same(name, x, tmp_path):
    torch.manual_seed(0)
    base = Model()
    size = 1.0 if name == "adalora" else 0.05  # its change is a product of three small factors
    adapted = perturbed(apply_method(copy.deepcopy(base), name, LAYERS, Budget.parse(_budget(name))), size).eval()
    assert not torch.allclose(adapted(x), base(x), atol=1e-3)
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(reloaded(x), adapted(x), atol=2e-5, rtol=1e-4)


def _budget(name):
    """Near p=0.5, but for methods whose settings are too coarse, or whose parameters too few, for so small a model."""
    return {"vera": "rank=16", "svft plain": "88", "dora": "rank=4", "oft": "block=8"}.get(name, "p=0.5")


@pytest.mark.parametrize("name", PEFT_METHODS)
def test_every_method_starts_at_the_pretrained_model(name, x):
    base = Model()
    adapted = apply_method(copy.deepcopy(base), name, LAYERS, Budget.parse(_budget(name)))
    torch.testing.assert_close(adapted(x), base(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PEFT_METHODS)
def test_what_is_not_trained_stays_after_train_and_eval(name, x):
    """The DoRA of SSVD's authors merged itself into the frozen weight at each validation."""
    module = apply_method(Model(), name, LAYERS, Budget.parse(_budget(name)))
    frozen = {n: p.detach().clone() for n, p in module.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(10):
        module.train()
        module(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            module.eval()(x)
    for n, p in module.named_parameters():
        if n in frozen:
            assert torch.equal(p, frozen[n]), n


def test_pissa_begins_with_the_principal_components_and_their_residual():
    base = Model()
    W = base.encoder["q"].weight.detach().clone()
    layer = apply_method(base, "pissa", LAYERS, Budget("rank", 4)).base_model.model.encoder["q"]
    U, S, Vh = torch.linalg.svd(W.double())
    principal = (U[:, :4] * S[:4] @ Vh[:4]).float()
    product = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight) * layer.scaling["default"]
    torch.testing.assert_close(product, principal, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.base_layer.weight, W - principal, atol=1e-5, rtol=1e-4)


def test_dora_normalises_rows():
    base = Model()
    W = base.encoder["q"].weight.detach().clone()
    layer = perturbed(apply_method(base, "dora", LAYERS, Budget("rank", 4))).base_model.model.encoder["q"]
    changed = W + layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight[:, None]
    expected = magnitude * changed / changed.norm(dim=1, keepdim=True)
    x = torch.eye(32)
    torch.testing.assert_close((layer(x) - base.encoder["q"].bias).mT, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_gives_the_nearest_count(name):
    shapes = {f"layers.{i}.fc{1 + i % 2}": (384, 1536 if i % 2 else 384) for i in range(8)}
    method, target = METHODS[name], 8 * 153 * 154 // 2
    if not method.unit:
        return
    try:
        setting = method.setting(shapes, Budget.parse("p=0.4"), 10**8)
    except UserError as error:
        assert name in ("vera", "svft plain")
        assert f"about {target:,} parameters" in str(error)
        return
    distance = abs(method.count(shapes, setting) - target)
    assert distance <= min(abs(method.count(shapes, other) - target) for other in method.settings(shapes)) + target / 20


@pytest.mark.parametrize("name", ["ssvd", "ssvd strict", "ssvd neumann", "ssvd output"])
def test_the_counts_of_the_paper(name):
    method = METHODS[name]
    assert len(OWSM_1B) == 380
    counts = {p: method.count(OWSM_1B, method.setting(OWSM_1B, Budget.parse(f"p={p}"), OWSM_1B_PARAMETERS))
              for p in (0.25, 0.4)}  # fmt: skip
    assert counts == {0.25: 380 * 256 * 257 // 2, 0.4: 31_861_100}
    assert METHODS["lora"].count(OWSM_1B, 32) == 40_626_752


@pytest.mark.parametrize(("name", "share"), [("ssvd-o 25", 0.25), ("ssvd both", 0.5), ("ssvd-o 75", 0.75)])
def test_the_budget_of_ssvd_outer_is_divided_between_the_sides(name, share):
    method = METHODS[name]
    portion = method.setting(OWSM_1B, Budget.parse("p=0.4"), OWSM_1B_PARAMETERS)
    assert abs(method.count(OWSM_1B, portion) / 31_861_100 - 1) < 0.01
    config = method.config(OWSM_1B, portion)
    inner, outer = ((share * 1024) ** 2 for share in (portion, config.outer_portion or portion))
    assert outer / (inner + outer) == pytest.approx(share, abs=0.005)
    with pytest.raises(UserError, match="must lie between 0 and"):
        method.setting(OWSM_1B, Budget.parse("portion=1.1"), OWSM_1B_PARAMETERS)


def test_without_a_rotation_twice_the_parameters_are_matched_by_a_smaller_portion():
    none = METHODS["ssvd none"]
    portion = none.setting(OWSM_1B, Budget.parse("p=0.4"), OWSM_1B_PARAMETERS)
    assert abs(none.count(OWSM_1B, portion) / 31_861_100 - 1) < 0.01
    assert 0.28 < portion < 0.29


@pytest.mark.parametrize(("name", "rotation"), [("ssvd strict", "strict"), ("ssvd none", "none"), ("ssvd", "approx")])
def test_the_rotation_reaches_the_adapter(name, rotation):
    assert apply_method(Model(), name, LAYERS).peft_config["default"].rotation == rotation


def test_alpha_is_twice_the_rank_of_lora():
    config = METHODS["lora"].config(linear_shapes(Model(), LAYERS), 5)
    assert (config.r, config.lora_alpha) == (5, 10)


def test_rslora_divides_by_the_root_of_the_rank():
    layer = apply_method(Model(), "rslora", LAYERS, Budget("rank", 4)).base_model.model.encoder["q"]
    assert layer.scaling["default"] == 16 / 4**0.5


def test_lora_plus_trains_b_at_sixteen_times_the_rate_and_loses_no_parameter():
    module = apply_method(Model(), "lora+", LAYERS, Budget("rank", 4))
    usual, faster = METHODS["lora+"].rate_groups(module, 1e-3)
    assert (usual["lr"], faster["lr"]) == (1e-3, 16e-3)
    of_b = {id(p) for name, p in module.named_parameters() if "lora_B" in name}
    assert {id(p) for p in faster["params"]} == of_b
    assert len(usual["params"]) == len(of_b) == len(LAYERS)


@pytest.mark.parametrize("name", METHODS)
def test_the_groups_of_an_optimiser_hold_what_is_trained_in_order(name):
    module = apply_method(Model(), name, LAYERS, Budget.parse(_budget(name)))
    groups = METHODS[name].rate_groups(module, 0.5)
    trained = [id(p) for p in module.parameters() if p.requires_grad]
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(trained)
    if name != "lora+":
        assert listed == trained and {group["lr"] for group in groups} <= {0.5}


def test_mica_trains_the_inputs_of_the_minor_components():
    base = Model()
    U = torch.linalg.svd(base.encoder["q"].weight.detach())[0][:, -4:]
    module = perturbed(apply_method(base, "mica", LAYERS, Budget("rank", 4)))
    layer = module.base_model.model.encoder["q"]
    torch.testing.assert_close(layer.lora_B["default"].weight, U)
    assert layer.lora_A["default"].weight.requires_grad and not layer.lora_B["default"].weight.requires_grad
    assert layer.lora_A["default"].weight.abs().max() > 0


def test_osf_learns_nothing_along_the_leading_directions(x):
    base = Model()
    U, _, Vh = torch.linalg.svd(base.encoder["q"].weight.detach())
    module = perturbed(apply_method(base, "osf", LAYERS, Budget("rank", 4)))
    module(x).square().sum().backward()
    trained = module.base_model.model.encoder["q"].osf_svd_params["default"]
    along_U, along_V = U[:, :28].T @ trained["U_low"].grad, trained["V_low"].grad @ Vh[:28].T
    assert trained["U_low"].grad.abs().max() > 1e-2 and trained["V_low"].grad.abs().max() > 1e-2
    assert along_U.abs().max() < 1e-4 and along_V.abs().max() < 1e-4


def test_full_fine_tuning_trains_everything_and_frozen_nothing():
    model = Model().requires_grad_(False)
    assert apply_method(model, "full", LAYERS) is model
    assert trainable_parameters(model) == parameters(model)
    assert trainable_parameters(apply_method(model, "frozen", LAYERS)) == 0


def test_a_model_without_a_decoder_has_no_encoder_of_its_own_to_train():
    with pytest.raises(UserError, match="use the method 'full'"):
        apply_method(Model().encoder, "full encoder", ["q"])


def test_encoder_only_fine_tuning_trains_the_encoder_of_whisper_and_nothing_else(embedded):
    speech = load_model(embedded)
    module = apply_method(speech.module, "full encoder", speech.adaptable_layers())
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in module.named_parameters() if name.startswith("model.encoder.")}
    assert "model.encoder.conv1.weight" in trained


def test_shapes_are_out_by_in():
    assert linear_shapes(Model(), ["encoder.fc2"]) == {"encoder.fc2": (96, 32)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lore"}, "no method 'lore'; choose one of ssvd, ssvd strict"),
        ({"layers": []}, "no layer to adapt"),
        ({"layers": ["encoder.k"]}, "no layer 'encoder.k'"),
        ({"layers": ["encoder.norm"]}, "'encoder.norm' is LayerNorm"),
        ({"budget": "p=0"}, "'p=0' trains nothing"),
        ({"budget": "p=1.5"}, "portion 1.5 must lie above 0"),
        ({"budget": "a lot"}, "'a lot' cannot be read: write p=0.4"),
        ({"budget": "p=4%"}, "'p=4%' cannot be read"),
        ({"budget": "2,5%"}, "'2,5%' cannot be read"),
        ({"budget": "0.4"}, "budget 0.4 is less than one parameter; a portion is written with p="),
        ({"budget": "0.0001%"}, "less than one parameter"),
        ({"name": "lora", "token_stride": 2}, "'lora' has no token stride"),
        ({"budget": "rank=4"}, "'ssvd' is set by portion=, not by rank="),
        ({"name": "lora", "budget": "rank=33"}, "rank=33 is not possible for 'lora': it must lie between 1 and 32"),
        ({"name": "lora", "budget": "rank=1.5"}, "rank=1.5 is not possible"),
        ({"name": "oft", "budget": "block=5"}, "between 2 and 32 and divide the width of all layers"),
        ({"name": "lora", "budget": "100"}, "cannot train about 100 parameters .* the nearest is 312, with rank=1"),
        ({"name": "vera", "budget": "2000"}, "the nearest is 248, with rank=32"),
        ({"token_stride": 0}, "token stride 0 must be at least 1"),
        ({"also_train": ["head"]}, "no module 'head' to train"),
    ],
)
def test_wrong_values_say_what_to_do(arguments, message):
    with pytest.raises(UserError, match=message):
        budget = Budget.parse(arguments.get("budget", "p=0.4"))
        apply_method(Model(), **{"name": "ssvd", "layers": LAYERS, **arguments, "budget": budget})


class Nested(nn.Module):
    """Layers in modules in modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32)))])
        self.last = nn.Linear(32, 32)

    def forward(self, x):
        return self.last(self.blocks[0](self.first(x)))


NESTED = ["first.0", "blocks.0.0", "blocks.0.1.0", "last"]


@pytest.mark.parametrize("name", [name for name in PEFT_METHODS if METHODS[name].can_merge])
def test_modules_of_several_layers_are_trained_in_full_and_merged(name, x):
    torch.manual_seed(0)
    base, budget = Nested(), "64" if name == "svft plain" else _budget(name)
    adapted = perturbed(apply_method(base, name, NESTED, Budget.parse(budget), ["first", "blocks.0.1"])).eval()
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {f"base_model.model.first.modules_to_save.default.{name}" for name in ("0.weight", "1.bias")} <= trained
    assert not any("first" in name and "modules_to_save" not in name for name in trained)
    wanted = adapted(x)
    speech = SimpleNamespace(module=adapted)
    merge_adapter(speech)
    assert type(speech.module) is Nested and not any("modules_to_save" in name for name in speech.module.state_dict())
    assert torch.allclose(speech.module(x), wanted, atol=1e-5)
    assert not torch.allclose(wanted, Nested()(x), atol=0.1)


@pytest.mark.parametrize(
    ("also_train", "message"),
    [
        (["first", "0.1"], None),
        (["blocks"], "'blocks' is a list of modules, which cannot be trained in full"),
        (["first", "first.1"], r"'first\.1' is part of 'first', which is trained in full anyway"),
        (["first", "blocks.0", "last"], "All layers to adapt are in first, blocks.0, last, trained in full"),
    ],
)
def test_modules_that_cannot_be_trained_in_full_are_refused_before_training(also_train, message):
    if message is None:
        config = apply_method(Nested(), "ssvd", NESTED, also_train=also_train).peft_config["default"]
        assert config.modules_to_save == ["first", "blocks.0.1"] and config.target_modules == {"blocks.0.0", "last"}
        return
    with pytest.raises(UserError, match=message):
        apply_method(Nested(), "ssvd", NESTED, also_train=also_train)


def test_the_token_stride_reaches_the_adapter():
    assert apply_method(Model(), "ssvd", LAYERS, token_stride=4).peft_config["default"].token_stride == 4


def test_default_rates_are_searched_ones():
    assert find_method("ssvd").learning_rate == 2e-3
    for method in METHODS.values():
        assert list(method.learning_rates) == sorted(method.learning_rates)


def test_a_name_that_is_the_end_of_another_is_refused():
    model = Model()
    model.encoder["decoder"] = nn.Linear(96, 96)
    with pytest.raises(UserError, match=r"end of encoder\.decoder"):
        apply_method(model, "ssvd", LAYERS)
