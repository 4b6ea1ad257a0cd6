"""What each method would train of a model, and what that would cost, without loading the model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ssvd.errors import UserError
from ssvd.methods.table import METHODS, Budget, linear_shapes, parameters
from ssvd.recognisers.loading import load_outline

BYTES = 4  # of a number: adapters are trained and stored in float32


@dataclass(frozen=True)
class PlannedMethod:
    """A method at a budget.

    Attributes:
        method: Its name.
        setting: What it is set by, such as "rank=8"; "" for a method without a setting.
        trainable_parameters: Exact.
        trainable_share: Of the model's parameters.
        adapter_bytes: Of the stored weights, but for the names of tensors and the fingerprints of bases (2 %).
        optimiser_bytes: Gradients and the two moments of AdamW.
        operations: Multiplications in the adapted layers in a training step, as a ratio to the frozen layers, forward
            and backward.
        reason: Why the budget is out of reach; the other fields are then empty.
    """

    method: str
    setting: str
    trainable_parameters: int | None = None
    trainable_share: float | None = None
    adapter_bytes: int | None = None
    optimiser_bytes: int | None = None
    operations: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Planned:
    """What `plan_methods` found.

    Attributes:
        model: Name or folder.
        parameters: Of the whole model.
        layers: Number of linear layers that are adapted.
        budget: As it was given.
        tokens: Of a training step, for the operations.
        methods: A row each.
    """

    model: str
    parameters: int
    layers: int
    budget: str
    tokens: int
    methods: list[PlannedMethod]

    def as_dict(self) -> dict[str, Any]:
        """Its fields, ready for JSON."""
        return asdict(self)


def plan_methods(model: str | Path, budget: str = "p=0.4", tokens: int = 8000) -> Planned:
    """Each method at a budget; the model's weights are not read.

    Args:
        model: A checkpoint folder, a config.json, or the name of a model on the hub.
        budget: See `ssvd.methods.table.Budget.parse`. Methods that are not set by what it names are left out.
        tokens: Of a training step in each layer; the forming of changed weights is shared by them.

    Raises:
        UserError: There is no such model, or the budget cannot be read.
    """
    module, layers = load_outline(model)
    shapes, total, wanted = linear_shapes(module, layers), parameters(module), Budget.parse(budget)
    rows = []
    for name, method in METHODS.items():
        if wanted.unit not in ("p", "%", "", method.unit):
            continue
        try:
            setting = method.setting(shapes, wanted, total)
        except UserError as error:
            rows.append(PlannedMethod(name, "", reason=str(error)))
            continue
        try:
            part = method.part(module)
        except UserError as error:
            rows.append(PlannedMethod(name, "", reason=str(error)))
            continue
        count = method.count(shapes, setting) if part is None else parameters(part)
        frozen = 2 * tokens * sum(m * n for m, n in shapes.values())
        trained = shapes if part is None else linear_shapes(module, _inside(module, layers, part))
        rows.append(
            PlannedMethod(
                name,
                f"{method.unit}={setting:.4g}" if method.unit else "",
                count,
                count / total,
                BYTES * (count + method.frozen_numbers(shapes, setting)),
                3 * BYTES * count,
                1 + sum(method.products(shape, setting, tokens) for shape in trained.values()) / frozen,
            )
        )
    return Planned(str(model), total, len(layers), budget, tokens, rows)


def _inside(module: nn.Module, layers: list[str], part: nn.Module) -> list[str]:
    """The layers that belong to a part of a model."""
    inside = set(part.modules())
    return [name for name in layers if module.get_submodule(name) in inside]
