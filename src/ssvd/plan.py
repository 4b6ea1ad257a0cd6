"""Plan what a method would train of a model, or a whole run, and what that would cost, without loading the model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, check_layers, find_method, linear_shapes, parameters
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import load_outline
from ssvd.tuners import SSVDConfig, SVFTConfig
from ssvd_options import AdaptOptions

BYTES = 4  # per number: adapters are trained and stored in float32
TEXT_SHARE = 1 / 16  # tokens of a decoder for each of the encoder: text is slower than frames


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


@dataclass(frozen=True)
class PlannedRun:
    """What a run takes, as far as the shapes of the layers and its options tell.

    Attributes:
        model: Name or folder of the model.
        method: Name of the method.
        setting: The method's own setting, such as "rank=8"; "" for a method without one.
        trainable_parameters: Exact number of trained parameters.
        updates: Number of updates, if the run is not stopped early.
        utterances: Number of utterances in these, each counted as often as it is used.
        memory_bytes: Size of weights, singular bases, trained parameters, their gradients and the two moments of AdamW,
            in float32. Activations come on top.
        operations: Floating-point operations of the adapted layers in training, forward and backward; a multiplication
            and its addition count as two. Attention, convolutions and the decoding of the dev utterances come on top.
    """

    model: str
    method: str
    setting: str
    trainable_parameters: int
    updates: int
    utterances: int
    memory_bytes: int
    operations: float

    def as_dict(self) -> dict[str, Any]:
        """Return its fields, ready for JSON."""
        return asdict(self)


def plan_run(options: AdaptOptions, tokens: int = 8000) -> PlannedRun:
    """Plan a run; neither the model's weights nor any corpus are read.

    Args:
        options: Options of the run, which must state the updates of an epoch.
        tokens: Number of tokens of a batch in each layer of the encoder: frames, padding included.

    Raises:
        UserError: There is no such model, or an option does not suit it.
    """
    if options.updates_per_epoch is None:
        raise UserError("The updates of an epoch depend on the corpus, which is not read: state updates_per_epoch.")
    if options.batch_seconds is not None:
        raise UserError(
            "The number of utterances in a batch depends on the corpus, which is not read: state batch_size."
        )
    module, names = load_outline(options.model, options.layers)
    shapes, total, method = linear_shapes(module, names), parameters(module), find_method(options.method)
    check_layers(method, module, names)
    setting, part = method.setting(shapes, Budget.parse(options.budget), total), method.part(module)
    count = method.count(shapes, setting) if part is None else parameters(part)
    config = method.config and method.config(shapes, setting)
    bases = 0
    for name, (m, n) in shapes.items():
        if isinstance(config, SSVDConfig):
            bases += (m + n) * config.rank_of(name, m, n)
        elif isinstance(config, SVFTConfig):
            bases += (m + n) * min(m, n)
    trained = shapes if part is None else linear_shapes(module, _inside(module, names, part))
    products = 0
    for name, (m, n) in shapes.items():
        here = max(1, round(tokens * TEXT_SHARE)) if ".decoder." in f".{name}" else tokens
        products += 2 * here * m * n + (method.products((m, n), setting, here) if name in trained else 0)
    updates = options.epochs * options.updates_per_epoch
    return PlannedRun(
        options.model,
        method.name,
        f"{method.unit}={setting:.4g}" if method.unit else "",
        count,
        updates,
        updates * options.accumulation * options.batch_size,
        BYTES * (total + bases + method.frozen_numbers(shapes, setting) + (4 if part is None else 3) * count),
        2.0 * products * updates * options.accumulation,
    )


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
