"""The table of methods: budgets, exact counts, and what a wrong value says."""

import pytest
import torch
from torch import nn

from ssvd.errors import UserError
from ssvd.methods import METHODS, apply_method, linear_shapes, planned_parameters, trainable_parameters

LAYERS = ["encoder.q", "encoder.fc", "out"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"q": nn.Linear(40, 40), "fc": nn.Linear(40, 100), "norm": nn.LayerNorm(100)})
        self.out = nn.Linear(100, 30, bias=False)

    def forward(self, x):
        return self.out(self.encoder["norm"](self.encoder["fc"](self.encoder["q"](x))))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [{}, {"portion": 0.9}, {"rank": 5}, {"rank": 1}, {"portion": 0.01}])
def test_the_planned_count_is_what_is_trained(name, budget):
    planned = planned_parameters(Model(), name, LAYERS, **budget)
    module = apply_method(Model(), name, LAYERS, **budget)
    assert trainable_parameters(module) == planned
    module(torch.randn(2, 40)).sum().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("rotation", ["approx", "neumann", "strict", "none"])
def test_the_rotation_reaches_the_adapter(rotation):
    module = apply_method(Model(), "ssvd", LAYERS, rotation=rotation)
    assert module.peft_config["default"].rotation == rotation
    assert trainable_parameters(module) == planned_parameters(Model(), "ssvd", LAYERS, rotation=rotation)


def test_lora_gets_the_budget_of_ssvd():
    shapes = {f"layers.{i}": (384, 1536 if i % 2 else 384) for i in range(8)}
    ssvd, lora = METHODS["ssvd"], METHODS["lora"]
    from ssvd.methods import Budget

    counts = [method.count(shapes, Budget(0.4)) for method in (ssvd, lora)]
    assert counts[0] == 8 * 153 * 154 // 2
    assert abs(counts[1] - counts[0]) <= sum(sum(shape) for shape in shapes.values()) / 2
    config = lora.config(shapes, Budget(0.4))
    assert config.lora_alpha == 2 * config.r


def test_full_fine_tuning_trains_everything():
    model = Model().requires_grad_(False)
    assert apply_method(model, "full", LAYERS) is model
    assert trainable_parameters(model) == sum(p.numel() for p in model.parameters())


def test_shapes_are_out_by_in():
    assert linear_shapes(Model(), ["encoder.fc"]) == {"encoder.fc": (100, 40)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lore"}, "no method 'lore'; choose one of ssvd, lora, full"),
        ({"layers": []}, "no layer to adapt"),
        ({"layers": ["encoder.k"]}, "no layer 'encoder.k'"),
        ({"layers": ["encoder.norm"]}, "'encoder.norm' is LayerNorm"),
        ({"portion": 0.0}, "portion 0.0 must lie above 0"),
        ({"portion": 1.5}, "portion 1.5 must lie above 0"),
        ({"rank": 0}, "rank 0 must lie between 1 and 30"),
        ({"rank": 31}, "rank 31 must lie between 1 and 30, the smaller side of out"),
        ({"rotation": "exact"}, "no rotation 'exact'"),
    ],
)
@pytest.mark.parametrize("function", [apply_method, planned_parameters])
def test_wrong_values_say_what_to_do(function, arguments, message):
    with pytest.raises(UserError, match=message):
        function(Model(), **{"name": "ssvd", "layers": LAYERS, **arguments})


def test_the_token_stride_reaches_the_adapter():
    assert apply_method(Model(), "ssvd", LAYERS, token_stride=4).peft_config["default"].token_stride == 4
    with pytest.raises(UserError, match="token stride 0 must be at least 1"):
        apply_method(Model(), "ssvd", LAYERS, token_stride=0)


def test_a_name_that_is_the_end_of_another_is_refused():
    model = Model()
    model.encoder["out"] = nn.Linear(100, 100)
    with pytest.raises(UserError, match=r"end of encoder\.out"):
        apply_method(model, "ssvd", LAYERS)
