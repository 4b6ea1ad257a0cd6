"""The adapted weight of a layer as one matrix, formed once and reused while its adapters do not change."""

from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssvd.spectral import compute_dtype, effective_weight
from ssvd.tuners.core_layer import CoreLayer
from ssvd.tuners.memo import Memo

Sources = list[tuple[dict[str, Any], str]]
"""Where the tensors of an adapted weight are: the mapping that holds each, and its key there."""


class ReadyWeight(NamedTuple):
    """The weight of the last forward pass, and what must still hold so that the next one can use it.

    Attributes:
        memo: Holds the weight.
        active: Active adapters.
        sources: Tensors that the weight was formed from.
        base: Parameters of the base layer.
        device: Type of the device.
        dtype: The dtype without autocast.
    """

    memo: Memo[Tensor]
    active: str | list[str]
    sources: Sources
    base: dict[str, Any]
    device: str
    dtype: torch.dtype


class FormedWeightLayer(CoreLayer):
    """A layer that forms its adapted weight and remembers it, for decoding and for accumulated gradients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weights: dict[tuple[str, ...], Memo[Tensor]] = {}  # by the active adapters
        self._ready: ReadyWeight | None = None

    def _memo(self, adapters: list[str], is_whole_batch: bool) -> Memo[Tensor]:
        """Return the memo of the weight with these adapters."""
        if is_whole_batch and tuple(adapters) not in self._weights:
            self._weights = {}  # of adapters that were active before
        return self._weights.setdefault(tuple(adapters), Memo())

    def _formed(self, adapters: list[str], memo: Memo[Tensor]) -> Tensor:
        """Return the adapted weight, (out, in), without gradients; formed now if it is not remembered."""
        sources, dtype = self._source_tensors(adapters), compute_dtype(self.get_base_layer().weight)
        weight = memo.get(sources, dtype)
        if weight is None:
            with torch.inference_mode(False), torch.no_grad():  # so that a backward pass can use it
                weight = memo.set(self._form(adapters, dtype), sources, dtype)
        return weight

    def _form(self, adapters: list[str], dtype: torch.dtype | None = None) -> Tensor:
        return self._form_from(*self._adapted(adapters), dtype, self._band(adapters))

    def _form_from(
        self, U: Tensor, V: Tensor, change: Tensor, dtype: torch.dtype | None = None, band: int | None = None
    ) -> Tensor:
        return effective_weight(self.as_matrix(self.get_base_layer().weight), U, V, change, dtype, band)

    def _prepare_next(self, adapters: list[str], memo: Memo[Tensor]) -> None:
        """Let the next forward pass find the weight quickly."""
        base = self.get_base_layer()
        if {"weight", "bias"} <= base._parameters.keys():  # a parametrisation computes them instead
            sources = [(base._parameters, "weight"), *self._sources(adapters)]
            active = copy(self._active_adapter)
            self._ready = ReadyWeight(
                memo, active, sources, base._parameters, base.weight.device.type, base.weight.dtype
            )

    def _ready_weight(self) -> Tensor | None:
        """Return the weight of the last forward pass if it is still valid, in microseconds: called for each token."""
        if torch.compiler.is_compiling() or self._ready is None or self.training or torch.is_grad_enabled():
            return None
        memo, active, sources, _, device, dtype = self._ready
        if self._disable_adapters or self.merged_adapters or self._active_adapter != active:
            return None
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return memo.get([parameters.get(name) for parameters, name in sources], dtype)

    def _sources(self, adapters: list[str]) -> Sources:
        """Return where the parameters of adapters are."""
        containers = [getattr(self, name)._parameters for name in self.adapter_layer_names]
        return [(container, name) for name in adapters for container in containers if name in container]

    def _source_tensors(self, adapters: list[str]) -> list[Tensor]:
        return [self.get_base_layer().weight, *(container[name] for container, name in self._sources(adapters))]

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return what merging an adapter adds to the weight, in the shape of the weight, in float32 or float64."""
        basis, change = self.bases[adapter_name], self._padded_change(adapter_name)
        U, V = basis.U.to(change.dtype), basis.V.to(change.dtype)
        return self.as_stored(effective_weight(change.new_zeros(()), U, V, change))

    def _forget_weights(self) -> None:
        self._weights, self._ready = {}, None

    def _forget(self) -> None:
        super()._forget()
        self._forget_weights()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}
