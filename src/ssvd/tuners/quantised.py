"""Linear layers whose frozen weight is quantised by bitsandbytes, and their adapters in its singular basis."""

from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn

from ssvd.tuners.layer import SpectralLayer

_LARGEST_MISFIT_OF_4_BITS = 0.15  # rounding to NF4 costs 0.09, to 8 bits less than 0.01


def is_quantised(layer: nn.Module) -> bool:
    """Return whether a layer is a linear one of bitsandbytes, of 8 or 4 bits, or the outline of one."""
    return isinstance(layer, QuantisedOutline) or any(
        kind.__module__.startswith("bitsandbytes.") and kind.__name__ in ("Linear8bitLt", "Linear4bit")
        for kind in type(layer).__mro__  # without importing bitsandbytes, which few need
    )


def dequantised_weight(layer: Any) -> Tensor:
    """Return the weight (out, in) that a quantised layer multiplies by, in float32.

    Raises:
        ValueError: bitsandbytes has changed its layout; see `keep_layout`.
    """
    weight: Any = layer.weight
    if weight.dtype == torch.int8:  # PEFT's function loses the scales of a layer that was used before
        scales: Tensor = layer.state.SCB if weight.SCB is None else weight.SCB
        rounded: Tensor = weight.data.float()
        return rounded.mul_(scales.mul(1 / 127).unsqueeze(1))
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        raise ValueError("bitsandbytes laid out the weights for decoding on this CPU: load the model anew.")
    entries: Tensor = weight if isinstance(layer, QuantisedOutline) else dequantize_bnb_weight(weight)
    return entries.detach().float()


def keep_layout(layer: Any) -> None:
    """Let a layer of 4 bits decode on a CPU as it trains.

    Where the CPU has instructions for bfloat16, bitsandbytes would lay out the weight for them in the first product
    without gradients, round its scales, and pass no gradient from then on.
    """
    if hasattr(layer, "support_avx512bf16_for_cpu"):
        layer.support_avx512bf16_for_cpu = False


class QuantisedLayer(SpectralLayer):
    """A linear layer whose frozen weight is quantised.

    The base layer computes its product as it does without an adapter, and the change of the core is added to it, `y +
    x V (C - S)^T U^T`, where the basis is that of the dequantised weight. No adapted weight is formed, so a step keeps
    k numbers a token for the gradient of the core; and an adapter at its start changes no bit.

    Methods derive from this class and from their own layer, in this order.
    """

    def __init__(self, base_layer: nn.Linear, fan_in_fan_out: bool = False) -> None:
        super().__init__(base_layer, fan_in_fan_out)
        self.out_features, self.in_features = base_layer.out_features, base_layer.in_features
        keep_layout(base_layer)

    def frozen_weight(self) -> Tensor:
        """Return the weight of the base layer, (out, in), dequantised."""
        return dequantised_weight(self.get_base_layer())

    def as_stored(self, matrix: Tensor) -> Tensor:
        """Return a matrix (out, in) as it is, which is never stored in place of the quantised weight."""
        return matrix

    @property
    def largest_misfit(self) -> float:
        """How much of the weight a stored basis may lack, as it does if it is that of the weight before rounding."""
        is_8_bits = self.get_base_layer().weight.dtype == torch.int8
        return super().largest_misfit if is_8_bits else _LARGEST_MISFIT_OF_4_BITS

    def _apply_adapters(self, x: Tensor, adapters: list[str], is_whole_batch: bool = True) -> Tensor:
        result: Tensor = self.base_layer(x)
        U, V, change = self._adapted(adapters)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else U.dtype
        moved = (x.to(dtype) @ V.to(dtype)) @ change.to(dtype).mT @ U.to(dtype).mT
        return result + moved.to(result.dtype)

    def _form(self, adapters: list[str], dtype: torch.dtype | None = None) -> Tensor:
        return self.frozen_weight() + sum(self.get_delta_weight(name) for name in adapters)

    def _basis_fits(self, adapter_name: str) -> bool:
        return False  # which only a way to train with the whole weight asks

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise ValueError: a merged weight would be rounded again, and lose most of what an adapter changes."""
        raise ValueError(
            f"{self.method.upper()} is not merged into quantised weights: load the adapter onto the dequantised model "
            "(`model.dequantize()` of transformers), and merge it there."
        )


class QuantisedOutline(nn.Linear):
    """What stands in for a quantised layer in a network without weights: it takes as much memory in a step.

    Its own weight is in float32; `nbytes` says what the quantised one takes.

    Args:
        layer: The layer that would be quantised, on the meta device.
        bits: 8 or 4.
    """

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.requires_grad_(False)
        self.bits = bits

    @property
    def nbytes(self) -> int:
        """Bytes of the quantised weight and its scales: one a row for 8 bits, one for each 64 numbers for 4 bits."""
        numbers = self.out_features * self.in_features
        return numbers + 4 * self.out_features if self.bits == 8 else -(-numbers // 2) + 4 * -(-numbers // 64) + 4 * 16

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as bitsandbytes does: by a weight that is dequantised for this product, and for its gradient."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        result: Tensor = _ByDequantised.apply(x, self.weight, self.bias, self.bits == 8)  # type: ignore[no-untyped-call]
        return result


class _ByDequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keeps_input: bool) -> Tensor:
        ctx.weight, ctx.x = weight, x if keeps_input else None  # bitsandbytes keeps it without need
        return nn.functional.linear(x, weight.to(x.dtype, copy=True), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (dy,) = gradients
        return dy @ ctx.weight.to(dy.dtype, copy=True), None, None, None
