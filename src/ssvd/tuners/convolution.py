"""Convolutions adapted in the singular basis of their kernels."""

from typing import Any

from torch import Tensor, nn

from ssvd.spectral import compute_dtype
from ssvd.tuners.layer import SpectralLayer
from ssvd.tuners.memo import Memo

Convolution = nn.Conv1d | nn.Conv2d

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "in_channels", "out_channels")


class ConvolutionLayer(SpectralLayer):
    """A convolution without groups: its kernel (out, in, width) is a matrix (out, in x width) on patches of its input.

    Adapting that matrix changes how a patch is read: for the first convolution of a recogniser, a few frames of a
    spectrum. Methods derive from this class and from their own layer, in this order.
    """

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        base: Any = self.get_base_layer()
        result: Tensor = base._conv_forward(x, self.as_stored(weight), bias)  # also pads as the layer does
        return result

    def _differentiable(self, x: Tensor, adapters: list[str], memo: Memo[Tensor] | None) -> Tensor:
        # A kernel has few entries and many patches, so its gradient is the cheapest way to that of the core.
        base: Any = self.get_base_layer()
        return self._product(x, self._form(adapters, compute_dtype(base.weight)), base.bias)

    def __getattr__(self, name: str) -> Any:
        # Models read these of their convolutions, as the encoder of Whisper does.
        return getattr(self.get_base_layer(), name) if name in _GEOMETRY else super().__getattr__(name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return False: PEFT converts linear layers."""
        return False
