"""One method: its settings, the number of parameters that each trains, and the setting for a budget."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from ssvd.errors import UserError
from ssvd.methods.budget import Budget, Setting
from ssvd.spectral import Rotation
from ssvd.tuners import portion_rank

Shape = tuple[int, int]
"""Shape (out, in) of the weight of a linear layer."""
Shapes = Mapping[str, Shape]
"""Shapes of linear layers by their names."""

# How far a count may be from its budget: the block sizes of OFT are a third apart.
TOLERANCE = 0.25


class Trained(Enum):
    """What a method trains."""

    NOTHING = "nothing"
    ADAPTER = "an adapter of PEFT"
    ENCODER = "the encoder"
    EVERYTHING = "everything"


@dataclass(frozen=True)
class Method:
    """A method that can be compared with others.

    Its *setting* is one number for all layers, such as a rank.

    Attributes:
        name: Name on the command line and in grids.
        paper: arXiv identifier, or "" where the method has no paper.
        learning_rates: Peak rates for AdamW to search, ascending, in steps of three: the range of the method's authors
            where they state one. The middle one is the default.
        trains: What is trained.
        unit: What the setting is, or "" where there is none.
        settings: All settings that these layers allow, ascending.
        count: Exact number of trained parameters of these layers at a setting, the same in all of them.
        config: PEFT configuration of these layers at a setting; None for methods without an adapter.
        products: Multiplications in a training step of a layer, for a setting and a number of tokens, beyond the two
            products y and dx of the frozen layer.
        frozen_numbers: Numbers in the adapter file beside the trained parameters.
        rate_factors: Factors of the learning rate of single parameters, by a part of their names.
        adapts_convolutions: Whether convolutions can be adapted too.
        adapts_quantised: Whether layers with quantised weights can be adapted.
        adapted: Which of these layers are changed.
        initial: Setting that training begins with, for the one that it ends with.
        allocates_ranks: Whether training allocates the ranks; see `ssvd.methods.rank_allocation`.
        starts_from_inputs: Whether the start comes from what layers read; see `ssvd.training.input_start`.
        can_merge: Whether what is trained can become part of the weights.
    """

    name: str
    paper: str
    learning_rates: tuple[float, ...]
    trains: Trained
    unit: Setting | Literal[""]
    settings: Callable[[Shapes], Sequence[float]]
    count: Callable[[Shapes, float], int]
    config: Callable[[Shapes, float], PeftConfig] | None
    products: Callable[[Shape, float, int], int]
    frozen_numbers: Callable[[Shapes, float], int] = lambda shapes, setting: 0
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    adapts_convolutions: bool = False
    adapts_quantised: bool = True
    adapted: Callable[[Shapes], Shapes] = lambda shapes: shapes
    initial: Callable[[float], float] = lambda setting: setting
    allocates_ranks: bool = False
    starts_from_inputs: bool = False
    can_merge: bool = True

    @property
    def learning_rate(self) -> float:
        """The default peak learning rate."""
        return self.learning_rates[len(self.learning_rates) // 2]

    @property
    def has_part_in_training(self) -> bool:
        """Whether more belongs to it than its configuration, which the training code of others would leave out."""
        return self.allocates_ranks or self.starts_from_inputs

    def rate_groups(self, module: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Return the trained parameters as groups of an optimiser, each with its rate; the usual rate comes first."""
        groups: dict[float, list[nn.Parameter]] = {1.0: []}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                factor = next((factor for part, factor in self.rate_factors.items() if part in name), 1.0)
                groups.setdefault(factor, []).append(parameter)
        return [{"params": group, "lr": factor * learning_rate} for factor, group in groups.items() if group]

    def part(self, module: nn.Module) -> nn.Module | None:
        """Return the part of the model whose own parameters are trained; None for an adapter or nothing.

        Raises:
            UserError: The model does not have that part.
        """
        if self.trains is Trained.ENCODER:
            return encoder(module)
        return module if self.trains is Trained.EVERYTHING else None

    def setting(self, shapes: Shapes, budget: Budget, model_parameters: int, tolerance: float = TOLERANCE) -> float:
        """Return the setting that the budget states, or the one whose count is nearest to the budget.

        Args:
            shapes: Shapes of the adapted layers.
            budget: How much to train.
            model_parameters: Number of parameters of the whole model.
            tolerance: How far the count may be off, as a share of the budget.

        Returns:
            The setting; 0 for methods without one.

        Raises:
            UserError: No setting is near enough, these layers do not allow the stated one, or the budget states the
                setting of other methods.
        """
        if not self.unit:
            return 0
        settings = self.settings(shapes)
        if budget.is_setting:
            return self._stated_setting(settings, budget)
        target = _target(budget, shapes, model_parameters)
        states_portion = self.unit == "portion" and budget.unit == "p" and budget.value <= settings[-1]
        if states_portion and self.count(shapes, budget.value) == target:
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

    def _stated_setting(self, settings: Sequence[float], budget: Budget) -> float:
        if budget.unit != self.unit:
            raise UserError(f"The method {self.name!r} is set by {self.unit}=, not by {budget.unit}=.")
        low, high = settings[0], settings[-1]
        if self.unit == "portion":
            low, is_allowed = 0, budget.value <= high
        else:
            is_allowed = budget.value in settings
        if not is_allowed:
            has_gaps = self.unit != "portion" and len(settings) != high - low + 1
            raise UserError(
                f"{self.unit}={budget.value:g} is not possible for {self.name!r}: it must lie between {low:g} and "
                f"{high:g}{' and divide the width of all layers' if has_gaps else ''}."
            )
        return budget.value


def ssvd_parameters(shapes: Shapes, portion: float) -> int:
    """Count what SSVD as in the paper trains at a portion, by which other methods are measured too."""
    ranks = (portion_rank(portion, min(shape)) for shape in shapes.values())
    return sum(k + Rotation().size(k) for k in ranks)


def _target(budget: Budget, shapes: Shapes, model_parameters: int) -> int:
    """Return the number of parameters to train for a budget that is not a setting."""
    if budget.unit == "p":
        return ssvd_parameters(shapes, budget.value)
    target = round(budget.value / 100 * model_parameters if budget.unit == "%" else budget.value)
    if target == 0:
        raise UserError(
            f"The budget {budget.value:g}{budget.unit} is less than one parameter; a portion is written with p=, as "
            "p=0.4."
        )
    return target


def encoder(module: nn.Module) -> nn.Module:
    """Return the encoder of a recogniser that also has a decoder.

    Raises:
        UserError: The model has no decoder.
    """
    has_decoder = getattr(module, "decoder", None) is not None or (
        hasattr(module, "get_decoder") and getattr(module.config, "is_encoder_decoder", False)
    )
    audio_tower = getattr(getattr(module, "model", None), "audio_tower", None)
    if isinstance(audio_tower, nn.Module):  # before a language model
        return audio_tower
    if not has_decoder:
        raise UserError("The model has no decoder beside its encoder: use the method 'full'.")
    if isinstance(module, PreTrainedModel):
        part: nn.Module = module.get_encoder()
        return part
    return module.get_submodule("encoder")
