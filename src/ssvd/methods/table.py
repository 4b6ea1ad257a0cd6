"""Every compared method in one table: how a budget becomes its PEFT configuration, what it trains and what it costs.

A new method is one more row of `METHODS`. LoRA, DoRA, PiSSA, VeRA, PSOFT and OFT are PEFT's own.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, OFTConfig, PeftConfig, PsoftConfig, VeraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ssvd.errors import UserError
from ssvd.spectral import pattern_size, rotation_size, step_products
from ssvd.tuners import SSVDConfig, SVFTConfig, portion_rank

Shapes = Mapping[str, tuple[int, int]]
"""Names of linear layers, and the shape (out, in) of the weight of each."""
Shape = tuple[int, int]

# How far from a budget a method may end up: the block sizes of OFT are a third apart.
TOLERANCE = 0.25


@dataclass(frozen=True)
class Budget:
    """How much of a model to train.

    Attributes:
        unit: "p", as many parameters as SSVD trains at the portion `value`; "%", that share of the model's parameters;
            "", that many parameters; or what a method itself is set by, such as "rank".
        value: The number.
    """

    unit: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A budget as it is written: `p=0.4`, `2%`, `750000`, or `rank=8`, `portion=0.4`, `band=16`, `block=32`.

        Raises:
            UserError: It is none.
        """
        match = re.fullmatch(
            r"(?:([a-z]+)=)?([0-9]{1,3}(?:[_,][0-9]{3})+|[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)(%?)", text.strip().lower()
        )
        units = {"p", *(m.unit for m in METHODS.values() if m.unit)}
        if match is None or (match[1] and (match[3] or match[1] not in units)):
            raise UserError(
                f"The budget {text!r} cannot be read: write p=0.4 (as many parameters as SSVD at that portion), 2% (of "
                f"the model), 750000, or what a method is set by: {', '.join(f'{u}=' for u in sorted(units - {'p'}))}."
            )
        value = float(re.sub("[_,]", "", match[2]))
        if value <= 0 and match[1] != "band":  # SVFT with a band of 0 trains the diagonal
            raise UserError(f"The budget {text!r} trains nothing: give a number above 0.")
        return cls(match[1] or match[3], value)

    def target(self, shapes: Shapes, model_parameters: int) -> int:
        """Number of parameters to train in these layers; not for a budget in what a method is set by."""
        if self.unit == "p":
            if self.value > 1:
                raise UserError(f"The portion {self.value:g} must lie above 0 and be at most 1.")
            return METHODS["ssvd"].count(shapes, self.value)
        target = round(self.value / 100 * model_parameters if self.unit == "%" else self.value)
        if target == 0:
            raise UserError(
                f"The budget {self.value:g}{self.unit} is less than one parameter; a portion is written with p=, as "
                "p=0.4."
            )
        return target


@dataclass(frozen=True)
class Method:
    """A method that can be compared with others.

    Its *setting* is the number that it is set by, such as a rank: one for all layers.

    Attributes:
        name: As on the command line and in grids.
        paper: arXiv identifier, or "" where the method has no paper.
        learning_rates: Peak rates for AdamW that are searched, ascending: the range of its authors, where they state
            one, in steps of three; by default the middle one is taken.
        unit: What the setting is, or "" where there is none.
        settings: All settings that these layers allow, ascending.
        count: Exact number of trained parameters of these layers at a setting.
        config: PEFT configuration of these layers at a setting; None for methods without PEFT.
        products: Multiplications of a training step of a layer at a setting for so many tokens, beyond the two products
            y and dx of the frozen layer.
        part: What a method without PEFT trains of a model; None for nothing.
        frozen_numbers: What the adapter file holds beside the trained parameters.
    """

    name: str
    paper: str
    learning_rates: tuple[float, ...]
    unit: str
    settings: Callable[[Shapes], Sequence[float]]
    count: Callable[[Shapes, float], int]
    config: Callable[[Shapes, float], PeftConfig] | None
    products: Callable[[Shape, float, int], int]
    part: Callable[[nn.Module], nn.Module | None] = lambda module: None
    frozen_numbers: Callable[[Shapes, float], int] = lambda shapes, setting: 0

    @property
    def learning_rate(self) -> float:
        """The default."""
        return self.learning_rates[len(self.learning_rates) // 2]

    def setting(self, shapes: Shapes, budget: Budget, model_parameters: int, tolerance: float = TOLERANCE) -> float:
        """The setting for a budget: what the budget says, or the one whose count is nearest to the budget's.

        Args:
            shapes: Of the adapted layers.
            budget: How much to train.
            model_parameters: Of the whole model.
            tolerance: How far the count may be off, as a share of the budget.

        Returns:
            The setting; 0 for methods without one.

        Raises:
            UserError: No setting is near enough, these layers do not allow the one that the budget states, or the
                method is not set by what the budget states.
        """
        if not self.unit:
            return 0
        settings = self.settings(shapes)
        if budget.unit not in ("p", "%", ""):
            return self._stated(settings, budget)
        target = budget.target(shapes, model_parameters)
        if self.unit == "portion" and budget.unit == "p" and self.count(shapes, budget.value) == target:
            return budget.value
        after = bisect_left(settings, target, key=lambda setting: self.count(shapes, setting))
        near = settings[max(0, after - 1) : after + 1]
        nearest = min(near, key=lambda setting: abs(math.log(self.count(shapes, setting) / target)))
        count = self.count(shapes, nearest)
        if abs(count - target) > tolerance * target:
            raise UserError(
                f"The method {self.name!r} cannot train about {target:,} parameters of these layers: the nearest is "
                f"{count:,}, with {self.unit}={nearest:g}."
            )
        return nearest

    def _stated(self, settings: Sequence[float], budget: Budget) -> float:
        if budget.unit != self.unit:
            raise UserError(f"The method {self.name!r} is set by {self.unit}=, not by {budget.unit}=.")
        low, high = settings[0], settings[-1]
        if self.unit == "portion":
            low, allowed = 0, budget.value <= 1
        else:
            allowed = budget.value in settings
        if not allowed:
            kind = "" if self.unit == "portion" or len(settings) == high - low + 1 else " and divide all layers"
            raise UserError(
                f"{self.unit}={budget.value:g} is not possible for {self.name!r}: it must lie between {low:g} and "
                f"{high:g}{kind}."
            )
        return budget.value


def apply_method(
    module: nn.Module,
    name: str,
    layers: list[str],
    budget: str = "p=0.4",
    also_train: Sequence[str] = (),
    token_stride: int = 1,
    tolerance: float = TOLERANCE,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Make a model ready for training with a method.

    Args:
        module: The pretrained model; it is changed in place.
        name: Key of `METHODS`.
        layers: Full names of the linear layers to adapt.
        budget: See `Budget.parse`.
        also_train: Names, or ends of names, of modules to train whole beside the adapter, which saves them too.
        token_stride: SSVD and SVFT estimate their gradient from every so many tokens.
        tolerance: See `Method.setting`.
        options: Further fields of the method's PEFT configuration, which come before those of the table.

    Returns:
        A `PeftModel`, or the module itself with all of its parameters trainable (method "full"), those of its encoder
        ("full encoder") or none ("frozen").

    Raises:
        UserError: A value is wrong, or a layer does not exist or cannot be adapted.
    """
    method = find_method(name)
    shapes = linear_shapes(module, layers)
    if token_stride < 1:
        raise UserError(f"The token stride {token_stride} must be at least 1.")
    if token_stride > 1 and not name.startswith(("ssvd", "svft")):
        raise UserError(f"The method {name!r} has no token stride: leave it at 1.")
    setting = method.setting(shapes, Budget.parse(budget), parameters(module), tolerance)
    if method.config is None:
        module.requires_grad_(False)
        part = method.part(module)
        if part is not None:
            part.requires_grad_(True)
        return module
    # Full names can be ends of longer ones, which PEFT would adapt too.
    longer = [n for n, _ in module.named_modules() if n not in shapes and n.endswith(tuple(f".{s}" for s in shapes))]
    if longer:
        raise UserError(f"The name of a layer to adapt is also the end of {longer[0]}: adapt both, or rename one.")
    for name in also_train:
        if not any(n == name or n.endswith(f".{name}") for n, _ in module.named_modules()):
            raise UserError(f"The model has no module {name!r} to train; `named_modules` lists what it has.")
    config = method.config(shapes, setting)
    config.modules_to_save = list(also_train) or None
    for field, value in (options or {}).items():
        if not hasattr(config, field):
            raise UserError(f"The method {method.name!r} has no option {field!r}.")
        setattr(config, field, value)
    if isinstance(config, SSVDConfig | SVFTConfig):
        config.token_stride = token_stride
    return get_peft_model(module, config)


def parameters(module: nn.Module) -> int:
    """Number of parameters of a model, whether they are trained or not."""
    return sum(p.numel() for p in module.parameters())


def encoder(module: nn.Module) -> nn.Module:
    """The encoder of a recogniser that has a decoder beside it.

    Raises:
        UserError: It has none.
    """
    has_decoder = getattr(module, "decoder", None) is not None or (
        hasattr(module, "get_decoder") and getattr(module.config, "is_encoder_decoder", False)
    )
    if not has_decoder:
        raise UserError("The model has no decoder beside its encoder: use the method 'full'.")
    found: nn.Module = module.get_encoder() if isinstance(module, PreTrainedModel) else module.get_submodule("encoder")
    return found


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


def _sides(shapes: Shapes) -> int:
    """Sum of the sides of all layers: what a unit of LoRA's rank trains."""
    return sum(m + n for m, n in shapes.values())


def _largest_rank(shapes: Shapes) -> int:
    return max(min(shape) for shape in shapes.values())


def _ranks(shapes: Shapes) -> range:
    return range(1, _largest_rank(shapes) + 1)


# -- rows; each function makes one


def _ssvd(name: str, rotation: str = "approx", rotate: str = "input") -> Method:
    def k(shape: Shape, portion: float) -> int:
        return portion_rank(portion, min(shape))

    def settings(shapes: Shapes) -> Sequence[float]:
        r = _largest_rank(shapes)
        return [k / r for k in range(1, r + 1)]

    def count(shapes: Shapes, portion: float) -> int:
        ranks = (k(shape, portion) for shape in shapes.values())
        return sum(k + rotation_size(k, rotation, rotate) for k in ranks)

    def config(shapes: Shapes, portion: float) -> PeftConfig:
        return SSVDConfig(
            portion=portion,
            rotation=rotation,  # type: ignore[arg-type]
            rotate=rotate,  # type: ignore[arg-type]
            target_modules=list(shapes),
        )

    def products(shape: Shape, portion: float, tokens: int) -> int:
        return step_products(tokens, *shape, k(shape, portion), has_inverse=rotation != "none")

    # 1e-4 to 1e-3 in the paper for K itself at k of 227 to 409; see ssvd.spectral.rotation on the conversion.
    rates = (7e-4, 2e-3, 6e-3)
    return Method(name, "2509.02830", rates, "portion", settings, count, config, products)


def _svft(name: str, pattern: str, rates: tuple[float, ...]) -> Method:
    def settings(shapes: Shapes) -> Sequence[float]:
        return range(1) if pattern == "plain" else range(_largest_rank(shapes))

    def count(shapes: Shapes, band: float) -> int:
        return sum(pattern_size(min(shape), pattern, int(band)) for shape in shapes.values())

    def config(shapes: Shapes, band: float) -> PeftConfig:
        return SVFTConfig(
            pattern=pattern,  # type: ignore[arg-type]
            off_diagonals=int(band),
            target_modules=list(shapes),
        )

    def products(shape: Shape, band: float, tokens: int) -> int:
        return step_products(tokens, *shape, min(shape))

    return Method(name, "2405.19597", rates, "band", settings, count, config, products)


def _lora(
    name: str, paper: str, rates: tuple[float, ...], scale: int = 2, dora: bool = False, pissa: bool = False
) -> Method:
    def count(shapes: Shapes, rank: float) -> int:
        return int(rank) * _sides(shapes) + dora * sum(m for m, _ in shapes.values())

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        # The randomised decompositions of PiSSA differ from one process to the next, and then a reloaded adapter does.
        return LoraConfig(
            r=int(rank),
            lora_alpha=scale * int(rank),
            use_dora=dora,
            init_lora_weights="pissa" if pissa else True,
            target_modules=list(shapes),
        )

    def products(shape: Shape, rank: float, tokens: int) -> int:
        m, n = shape
        # DoRA: W + B A for its norms, and the frozen product once more, since it is scaled before B A x is added.
        return 3 * tokens * int(rank) * (m + n) + dora * int(rank) * m * n

    return Method(name, paper, rates, "rank", _ranks, count, config, products)


def _vera() -> Method:
    def count(shapes: Shapes, rank: float) -> int:
        return sum(m + int(rank) for m, _ in shapes.values())

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        return VeraConfig(r=int(rank), target_modules=list(shapes))

    def products(shape: Shape, rank: float, tokens: int) -> int:
        return 2 * tokens * int(rank) * sum(shape)

    def shared(shapes: Shapes, rank: float) -> int:
        return int(rank) * (max(m for m, _ in shapes.values()) + max(n for _, n in shapes.values()))

    rates = (3e-3, 1e-2, 3e-2)
    return Method("vera", "2310.11454", rates, "rank", _ranks, count, config, products, frozen_numbers=shared)


def _psoft() -> Method:
    def settings(shapes: Shapes) -> Sequence[float]:
        return range(1, min(min(shape) for shape in shapes.values()) + 1)

    def count(shapes: Shapes, rank: float) -> int:
        k = int(rank)
        return len(shapes) * (k * (k - 1) // 2 + 2 * k)

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        return PsoftConfig(r=int(rank), psoft_alpha=int(rank), target_modules=list(shapes))

    def products(shape: Shape, rank: float, tokens: int) -> int:
        k = int(rank)
        return 2 * tokens * k * sum(shape) + 3 * tokens * k * k

    return Method("psoft", "2505.11235", (1e-4, 3e-4, 1e-3), "rank", settings, count, config, products)


def _oft() -> Method:
    def settings(shapes: Shapes) -> Sequence[float]:
        divided = math.gcd(*(n for _, n in shapes.values()))
        return [b for b in range(2, divided + 1) if divided % b == 0]

    def count(shapes: Shapes, block: float) -> int:
        return sum(n // int(block) * (int(block) * (int(block) - 1) // 2) for _, n in shapes.values())

    def config(shapes: Shapes, block: float) -> PeftConfig:
        return OFTConfig(r=0, oft_block_size=int(block), target_modules=list(shapes))

    def products(shape: Shape, block: float, tokens: int) -> int:
        return 3 * tokens * int(block) * shape[1]

    return Method("oft", "2306.07280", (1e-4, 3e-4, 1e-3), "block", settings, count, config, products)


def _without_peft(
    name: str, rates: tuple[float, ...], part: Callable[[nn.Module], nn.Module | None], layers: str | None
) -> Method:
    """Trains a part of the model and of its linear layers those whose names hold `layers`; None for none."""

    def products(shape: Shape, setting: float, tokens: int) -> int:
        return 0 if layers is None else tokens * shape[0] * shape[1]

    # What is trained of the layers; the part has other parameters too.
    def count(shapes: Shapes, setting: float) -> int:
        return sum(m * n for name, (m, n) in shapes.items() if layers is not None and layers in name)

    return Method(name, "", rates, "", lambda shapes: (), count, None, products, part)


METHODS = {
    method.name: method
    for method in (
        _ssvd("ssvd"),
        _ssvd("ssvd strict", rotation="strict"),
        _ssvd("ssvd neumann", rotation="neumann"),
        _ssvd("ssvd none", rotation="none"),
        _ssvd("ssvd output", rotate="output"),
        _ssvd("ssvd both", rotate="both"),
        # alpha = 2 r is common with PEFT, and the setting of SSVD's authors; PiSSA's own is alpha = r.
        _lora("lora", "2106.09685", (3e-4, 1e-3, 3e-3)),
        _lora("dora", "2402.09353", (1e-4, 3e-4, 1e-3), dora=True),
        _lora("pissa", "2404.02948", (1e-4, 3e-4, 1e-3), scale=1, pissa=True),
        _vera(),
        _svft("svft", "banded", (1e-3, 3e-3, 1e-2)),
        _svft("svft plain", "plain", (2e-2, 5e-2, 1.5e-1)),
        _svft("svft random", "random", (1e-3, 3e-3, 1e-2)),
        _svft("svft top-k", "top-k", (1e-3, 3e-3, 1e-2)),
        _psoft(),
        _oft(),
        _without_peft("full", (1e-5, 3e-5, 1e-4), lambda module: module, ""),
        _without_peft("full encoder", (1e-5, 3e-5, 1e-4), encoder, "encoder."),
        _without_peft("frozen", (1e-5,), lambda module: None, None),
    )
}
