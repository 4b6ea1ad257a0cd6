"""Plan what each method would train of a model and what that would cost, without loading the model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, check_layers, linear_shapes, parameters
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import load_outline

BYTES = 4  # per number: adapters are trained and stored in float32


@dataclass(frozen=True)
class PlannedMethod:
    """A method at a budget.

    Attributes:
        method: Name of the method.
        setting: The method's own setting, such as "rank=8"; "" for a method without one.
        trainable_parameters: Exact number of trained parameters.
        trainable_share: The same as a share of the model's parameters.
        adapter_bytes: Size of the stored weights, without the names of tensors and the fingerprints of bases (2 %).
        optimiser_bytes: Size of the gradients and the two moments of AdamW.
        operations: Multiplications of a training step in the adapted layers, forward and backward, as a ratio to those
            of the frozen layers.
        reason: Why the budget is out of reach; the numbers are then None.
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
    """What each method would train of a model at a budget.

    Attributes:
        model: Name or folder of the model.
        parameters: Number of parameters of the whole model.
        layers: Number of layers that are adapted.
        budget: The budget as it was given.
        tokens: Number of tokens of a training step, for the operations.
        methods: A row for each method.
    """

    model: str
    parameters: int
    layers: int
    budget: str
    tokens: int
    methods: list[PlannedMethod]

    def as_dict(self) -> dict[str, Any]:
        """Return its fields, ready for JSON."""
        return asdict(self)


def plan_methods(
    model: str | Path, budget: str = "p=0.4", tokens: int = 8000, layers: Sequence[str] = USUAL_GROUPS
) -> Planned:
    """Plan each method at a budget; the model's weights are not read.

    Args:
        model: A checkpoint folder, a config.json, or the name of a model on the hub.
        budget: See `ssvd.methods.Budget.parse`. Methods that do not have the setting that it names are left out.
        tokens: Number of tokens of a training step in each layer, over which the forming of weights is spread.
        layers: Layers to adapt, as `ssvd.recognisers.layers.chosen_layers` takes them.

    Raises:
        UserError: There is no such model, it has no such layers, or the budget cannot be read.
    """
    module, names = load_outline(model, layers)
    shapes, total, parsed = linear_shapes(module, names), parameters(module), Budget.parse(budget)
    rows = []
    for name, method in METHODS.items():
        if parsed.unit not in ("p", "%", "", method.unit):
            continue
        try:
            check_layers(method, module, names)
            setting = method.setting(shapes, parsed, total)
            part = method.part(module)
        except UserError as error:
            rows.append(PlannedMethod(name, "", reason=str(error)))
            continue
        count = method.count(shapes, setting) if part is None else parameters(part)
        frozen = 2 * tokens * sum(m * n for m, n in shapes.values())
        trained = shapes if part is None else linear_shapes(module, _inside(module, names, part))
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
    return Planned(str(model), total, len(names), budget, tokens, rows)


def _inside(module: nn.Module, layers: list[str], part: nn.Module) -> list[str]:
    """Return the layers that belong to a part of a model."""
    inside = set(part.modules())
    return [name for name in layers if module.get_submodule(name) in inside]
