"""Load the linear layers of a network in 8 or 4 bits, by bitsandbytes as Transformers calls it."""

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
import transformers
from torch import nn
from transformers import BitsAndBytesConfig

from ssvd.errors import UserError
from ssvd.tuners.quantised import QuantisedOutline, is_quantised, keep_layout

Bits = Literal["8bit", "4bit"]


@dataclass(frozen=True)
class Quantisation:
    """How linear layers are held: in 8 bits (LLM.int8, arXiv 2208.07339) or 4 bits (NF4, arXiv 2305.14314).

    Attributes:
        bits: Their size.
        layers: Full names of the layers.
        dequantise: Whether the rounded weights are held in float32 after all, so that an adapter can be merged.
    """

    bits: Bits
    layers: Collection[str]
    dequantise: bool = False

    @classmethod
    def of(cls, bits: str, outline: nn.Module, layers: Collection[str], *, dequantise: bool = False) -> "Quantisation":
        """Return the quantisation of those of the layers that are linear.

        Raises:
            UserError: There is none of so many bits, or bitsandbytes is not installed.
        """
        linear = [name for name in layers if _is_linear(outline.get_submodule(name))]
        return cls(checked_bits(bits), linear, dequantise)

    def loading_options(self, outline: nn.Module) -> dict[str, Any]:
        """Return what `from_pretrained` of Transformers is given, for a network of this outline."""
        kept = [name for name, layer in outline.named_modules() if _is_linear(layer) and name not in self.layers]
        return {
            # Rounded on the CPU, so that all devices have the same weights.
            "device_map": {"": "cpu"},
            "quantization_config": BitsAndBytesConfig(
                load_in_8bit=self.bits == "8bit",
                load_in_4bit=self.bits == "4bit",
                bnb_4bit_quant_type="nf4",
                llm_int8_skip_modules=kept or ["nothing"],  # an empty list would be replaced by a guess
            ),
        }

    def finish(self, name: str, network: Any) -> Any:
        """Return a network that was loaded with these options from a checkpoint of that name, ready for use.

        Raises:
            UserError: Its weights were no finite numbers.
        """
        if self.dequantise:
            verbosity = transformers.utils.logging.get_verbosity()
            transformers.utils.logging.set_verbosity_error()  # it names the dtype
            network = network.dequantize()
            transformers.utils.logging.set_verbosity(verbosity)
            return network.requires_grad_(True)
        for place, layer in network.named_modules():
            if not is_quantised(layer):
                continue
            scales = layer.weight.SCB if self.bits == "8bit" else layer.weight.quant_state.absmax
            if not scales.isfinite().all():
                raise UserError(f"The weights of {name} are not all finite numbers, those of {place} for one.")
            keep_layout(layer)
            layer.register_forward_pre_hook(_follow)
        return network


def checked_bits(bits: str) -> Bits:
    """Return the number of bits, or raise UserError if weights cannot be quantised to so many here."""
    if bits not in get_args(Bits):
        raise UserError(f"Weights are quantised to {' or '.join(get_args(Bits))}, not to {bits!r}.")
    if find_spec("bitsandbytes") is None:
        raise UserError("Quantised weights need the package bitsandbytes: pip install 'ssvd[quantise]'.")
    return cast(Bits, bits)


def outline_quantised(network: nn.Module, layers: Collection[str], bits: str) -> None:
    """Put outlines of quantised layers in the place of those that are linear, in a network on the meta device."""
    for name in layers:
        layer = network.get_submodule(name)
        if _is_linear(layer):
            network.set_submodule(name, QuantisedOutline(cast(nn.Linear, layer), int(bits.removesuffix("bit"))))


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear  # others have products of their own, and Transformers leaves them


def _follow(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Compute in the dtype of autocast, as other layers do, and on the device that the weight was moved to."""
    x, *others = inputs
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    layer.compute_dtype = x.dtype  # of 4 bits
    weight = layer.weight
    if weight.dtype == torch.int8:
        if weight.CB is not None and weight.SCB is None:  # as after PEFT has dequantised it, or `weight.to`
            weight.SCB = layer.state.SCB
        for holder in (weight, layer.state):  # before and after its first product
            if holder.CB is not None and holder.CB.device != weight.device:
                holder.CB, holder.SCB = weight.data, holder.SCB.to(weight.device)
    return (x, *others)
