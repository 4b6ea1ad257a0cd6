"""Plan what a method would train of a model, or a whole run, and what that would cost, without loading the model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, apply_method, check_layers, find_method, linear_shapes, parameters
from ssvd.methods.method import Method, Shapes
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import load_outline
from ssvd.recognisers.quantisation import outline_quantised
from ssvd.training.memory import DTYPES, checkpoint_activations, round_frozen
from ssvd.training.step_memory import step_inputs, step_memory
from ssvd.tuners import SSVDConfig, SVFTConfig
from ssvd.tuners.quantised import QuantisedOutline
from ssvd_options import AdaptOptions

BYTES = 4  # per number: adapters are trained and stored in float32
TEXT_SHARE = 1 / 16  # tokens of a decoder for each of the encoder: text is slower than frames


@dataclass(frozen=True)
class Memory:
    """The memory of a training, in bytes, on a CPU.

    Attributes:
        weights: Of the model and of the trained parameters beside it.
        bases: Frozen singular bases, and other buffers.
        moments: Of AdamW.
        step: The most that a step holds at a time: activations, weights that it forms, and gradients.
        total: All of these.
    """

    weights: int
    bases: int
    moments: int
    step: int
    total: int


@dataclass(frozen=True)
class Load:
    """What a training step computes, and what it saves.

    Attributes:
        batch_size: Utterances of a batch on one device.
        seconds: Length of the utterances, or of the window.
        base_dtype: Type of the frozen weights and bases; computation is in mixed precision if it is not float32.
        quantise: "8bit" or "4bit", to which the frozen linear layers are quantised; None for not at all.
        checkpointing: Whether activations are computed again instead of kept.
        precision: "bfloat16" for mixed precision, as a GPU computes by default, or "float32".
    """

    batch_size: int
    seconds: float = 30.0
    base_dtype: str = "float32"
    checkpointing: bool = False
    quantise: str | None = None
    precision: str = "float32"

    @property
    def is_mixed(self) -> bool:
        """Whether the step is computed in mixed precision."""
        return self.precision != "float32" or self.base_dtype != "float32"


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
        memory: What training holds; None where no load was given, or it cannot be found without weights.
        reason: Why the budget is out of reach; the numbers are then None.
    """

    method: str
    setting: str
    trainable_parameters: int | None = None
    trainable_share: float | None = None
    adapter_bytes: int | None = None
    optimiser_bytes: int | None = None
    operations: float | None = None
    memory: Memory | None = None
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
    count, begun, trained = _trained(method, module, part, shapes, setting)
    config = method.config and method.config(shapes, setting)
    bases = 0
    for name, (m, n) in shapes.items():
        if isinstance(config, SSVDConfig):
            bases += (m + n) * config.rotation_of(name, m, n)[0]
        elif isinstance(config, SVFTConfig):
            bases += (m + n) * min(m, n)
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
        BYTES * (total + bases + method.frozen_numbers(shapes, setting) + (4 if part is None else 3) * begun),
        2.0 * products * updates * options.accumulation,
    )


def plan_methods(
    model: str | Path,
    budget: str = "p=0.4",
    tokens: int = 8000,
    layers: Sequence[str] = USUAL_GROUPS,
    load: Load | None = None,
) -> Planned:
    """Plan each method at a budget; the model's weights are not read.

    Args:
        model: A checkpoint folder, a config.json, or the name of a model on the hub.
        budget: See `ssvd.methods.Budget.parse`. Methods that do not have the setting that it names are left out.
        tokens: Number of tokens of a training step in each layer, over which the forming of weights is spread.
        layers: Layers to adapt, as `ssvd.recognisers.layers.chosen_layers` takes them.
        load: A training step whose memory is planned too; it takes about a second for each method.

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
        count, begun, trained = _trained(method, module, part, shapes, setting)
        frozen = 2 * tokens * sum(m * n for m, n in shapes.values())
        rows.append(
            PlannedMethod(
                name,
                f"{method.unit}={setting:.4g}" if method.unit else "",
                count,
                count / total,
                BYTES * (count + method.frozen_numbers(shapes, setting)),
                3 * BYTES * begun,
                1 + sum(method.products(shape, setting, tokens) for shape in trained.values()) / frozen,
                None if load is None else planned_memory(model, name, parsed, layers, load),
            )
        )
    return Planned(str(model), total, len(names), budget, tokens, rows)


def _trained(
    method: Method, module: nn.Module, part: nn.Module | None, shapes: Shapes, setting: float
) -> tuple[int, int, Shapes]:
    """Return how many parameters a method trains in the end and at the start, and the layers that it changes."""
    if part is not None:
        count, inside = parameters(part), set(part.modules())
        return count, count, {name: shape for name, shape in shapes.items() if module.get_submodule(name) in inside}
    return method.count(shapes, setting), method.count(shapes, method.initial(setting)), method.adapted(shapes)


def planned_memory(model: str | Path, method: str, budget: Budget, layers: Sequence[str], load: Load) -> Memory | None:
    """Return the memory of a training by a method; None where it cannot be found without weights.

    So it is for MiCA, which is defined by what it decomposes, for models other than Whisper and those that read
    samples, as wav2vec 2.0 does, and for methods that cannot adapt quantised weights where these are asked for.
    """
    module, names = load_outline(model, layers)
    inputs = step_inputs(module, load.batch_size, load.seconds)
    if inputs is None or method in ("mica", "frozen"):
        return None
    if load.quantise is not None:
        if not find_method(method).adapts_quantised:
            return None
        outline_quantised(module, load_outline(model)[1], load.quantise)  # those that are not adapted too
    start = {"init_lora_weights": False} if method == "pissa" else None  # of another content, and of the same size
    network = apply_method(module, method, names, budget, options=start)
    round_frozen(network, DTYPES[load.base_dtype])
    if load.checkpointing:
        checkpoint_activations(network)
    weights = sum(part.nbytes for part in network.parameters())
    for layer in network.modules():
        if isinstance(layer, QuantisedOutline):
            weights += layer.nbytes - layer.weight.nbytes
    bases = sum(part.nbytes for part in network.buffers())
    moments = 2 * sum(part.nbytes for part in network.parameters() if part.requires_grad)
    step = step_memory(network, inputs, autocast=load.is_mixed)
    return None if step is None else Memory(weights, bases, moments, step, weights + bases + moments + step)
