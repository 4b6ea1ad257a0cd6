"""Every compared method in one table: what it is, how a budget becomes its PEFT configuration, what it trains.

A new method is one more row of `METHODS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from ssvd.errors import UserError
from ssvd.spectral import ROTATIONS, rotation_size
from ssvd.tuners import SSVDConfig, portion_rank

Shapes = Mapping[str, tuple[int, int]]
"""Names of linear layers, and the shape (out, in) of the weight of each."""


@dataclass(frozen=True)
class Budget:
    """How much of a model to train.

    Attributes:
        portion: Portion p of the singular triplets of each layer that SSVD adapts; the other methods train as many
            parameters as SSVD does with rotation "approx" at this portion.
        rank: Rank k of SSVD, or rank of another method, for every layer; overrides `portion`.
        rotation: Form of the inner transformation of SSVD: "approx", "neumann", "strict" or "none".
        token_stride: SSVD estimates its gradient from every so many tokens.
    """

    portion: float = 0.4
    rank: int | None = None
    rotation: str = "approx"
    token_stride: int = 1


@dataclass(frozen=True)
class Method:
    """A method that can be compared with others.

    Attributes:
        name: As on the command line.
        paper: arXiv identifier, or "" where the method has no paper.
        learning_rate: Default peak learning rate for AdamW.
        config: PEFT configuration for these layers at this budget; None for a method without PEFT.
        count: Exact number of trained parameters for these layers at this budget; None where it does not follow from
            the layers, as full fine-tuning trains everything else too.
    """

    name: str
    paper: str
    learning_rate: float
    config: Callable[[Shapes, Budget], PeftConfig] | None
    count: Callable[[Shapes, Budget], int] | None


def apply_method(
    module: nn.Module,
    name: str,
    layers: list[str],
    portion: float = 0.4,
    rank: int | None = None,
    rotation: str = "approx",
    also_train: Sequence[str] = (),
    token_stride: int = 1,
) -> nn.Module:
    """Make a model ready for training with a method.

    Args:
        module: The pretrained model; it is changed in place.
        name: Key of `METHODS`.
        layers: Full names of the linear layers to adapt.
        portion, rank, rotation, token_stride: See `Budget`.
        also_train: Names, or ends of names, of modules to train whole beside the adapter, which saves them too.

    Returns:
        A `PeftModel`, or for full fine-tuning the module itself with all of its parameters trainable.

    Raises:
        UserError: A value is wrong, or a layer does not exist or cannot be adapted.
    """
    method, budget = find_method(name), Budget(portion, rank, rotation, token_stride)
    shapes = linear_shapes(module, layers)
    _check(shapes, budget)
    if method.config is None:
        return module.requires_grad_(True)
    # Full names can be ends of longer ones, which PEFT would adapt too.
    longer = [n for n, _ in module.named_modules() if n not in shapes and n.endswith(tuple(f".{s}" for s in shapes))]
    if longer:
        raise UserError(f"The name of a layer to adapt is also the end of {longer[0]}: adapt both, or rename one.")
    for name in also_train:
        if not any(n == name or n.endswith(f".{name}") for n, _ in module.named_modules()):
            raise UserError(f"The model has no module {name!r} to train; `named_modules` lists what it has.")
    config = method.config(shapes, budget)
    config.modules_to_save = list(also_train) or None
    return get_peft_model(module, config)


def planned_parameters(
    module: nn.Module,
    name: str,
    layers: list[str],
    portion: float = 0.4,
    rank: int | None = None,
    rotation: str = "approx",
) -> int:
    """Number of parameters that `apply_method` with the same arguments would train, without applying it.

    Raises:
        UserError: As `apply_method`.
    """
    method, budget = find_method(name), Budget(portion, rank, rotation)
    shapes = linear_shapes(module, layers)
    _check(shapes, budget)
    return sum(p.numel() for p in module.parameters()) if method.count is None else method.count(shapes, budget)


def trainable_parameters(module: nn.Module) -> int:
    """Number of parameters of a model that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def find_method(name: str) -> Method:
    """The row of `METHODS` with this name.

    Raises:
        UserError: There is none.
    """
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def linear_shapes(module: nn.Module, layers: list[str]) -> dict[str, tuple[int, int]]:
    """Shapes (out, in) of the linear layers with these full names.

    Raises:
        UserError: The list is empty, or a name is not that of a linear layer.
    """
    if not layers:
        raise UserError("There is no layer to adapt: name at least one linear layer of the model.")
    modules = dict(module.named_modules())
    shapes = {}
    for name in layers:
        layer = modules.get(name)
        if layer is None:
            raise UserError(f"The model has no layer {name!r}: give full names, as `named_modules` lists them.")
        if not isinstance(layer, nn.Linear):
            raise UserError(f"The layer {name!r} is {type(layer).__name__}: only torch.nn.Linear can be adapted.")
        shapes[name] = (layer.out_features, layer.in_features)
    return shapes


def _check(shapes: Shapes, budget: Budget) -> None:
    if not 0 < budget.portion <= 1:
        raise UserError(f"The portion {budget.portion} must lie above 0 and be at most 1.")
    if budget.rotation not in ROTATIONS:
        raise UserError(f"There is no rotation {budget.rotation!r}; choose one of {', '.join(ROTATIONS)}.")
    if budget.token_stride < 1:
        raise UserError(f"The token stride {budget.token_stride} must be at least 1.")
    smallest = min(shapes, key=lambda name: min(shapes[name]))
    if budget.rank is not None and not 1 <= budget.rank <= min(shapes[smallest]):
        raise UserError(
            f"The rank {budget.rank} must lie between 1 and {min(shapes[smallest])}, the smaller side of {smallest}."
        )


def _ssvd_config(shapes: Shapes, budget: Budget) -> PeftConfig:
    return SSVDConfig(
        portion=budget.portion,
        rank=budget.rank,
        rotation=budget.rotation,  # type: ignore[arg-type]
        token_stride=budget.token_stride,
        target_modules=list(shapes),
    )


def _ssvd_count(shapes: Shapes, budget: Budget) -> int:
    ranks = (budget.rank or portion_rank(budget.portion, min(shape)) for shape in shapes.values())
    return sum(k + rotation_size(k, budget.rotation) for k in ranks)


def _lora_rank(shapes: Shapes, budget: Budget) -> int:
    if budget.rank is not None:
        return budget.rank
    target = _ssvd_count(shapes, Budget(budget.portion))
    return max(1, round(target / sum(sum(shape) for shape in shapes.values())))


def _lora_config(shapes: Shapes, budget: Budget) -> PeftConfig:
    # alpha = 2 r is common with PEFT, and the setting of SSVD's authors.
    rank = _lora_rank(shapes, budget)
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(shapes))


def _lora_count(shapes: Shapes, budget: Budget) -> int:
    return _lora_rank(shapes, budget) * sum(sum(shape) for shape in shapes.values())


METHODS = {
    method.name: method
    for method in (
        # 1e-4 in the paper for K itself at k of 227 to 409; see ssvd.spectral.rotation on the conversion.
        Method("ssvd", "2509.02830", learning_rate=2e-3, config=_ssvd_config, count=_ssvd_count),
        Method("lora", "2106.09685", learning_rate=1e-3, config=_lora_config, count=_lora_count),
        Method("full", "", learning_rate=1e-5, config=None, count=None),
    )
}
