"""A linear layer adapted in the singular basis of its weight: forward pass, merging and loading."""

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor
from torch.nn.functional import linear

from ssvd.spectral import compute_dtype, plan_step, spectral_linear
from ssvd.tuners.basis_loading import prepare_loading
from ssvd.tuners.formed_weight import FormedWeightLayer
from ssvd.tuners.memo import Memo, count_backward_pass
from ssvd.tuners.shared_input import SharedInput


class SpectralLayer(FormedWeightLayer):
    """A linear layer and, for each adapter, the frozen basis of its weight and the trained core.

    A method derives from it; see `CoreLayer`. The weight of the base layer changes only while adapters are merged. The
    changes of several active adapters are added.

    The adapted weight is formed once and reused as long as the adapters do not change: for decoding token by token, and
    for batches whose gradients are accumulated. `Memo` says how changes are noticed. Only writes through `.data` can be
    missed: between two forward passes of an evaluation, or in a training loop by hand that sets gradients to zero
    instead of None.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared_input = SharedInput()

    def forward(self, x: Tensor, *, adapter_names: list[str] | None = None) -> Tensor:
        """Apply the layer with its active adapters, or each row of a batch with the adapter named for it.

        Args:
            x: (..., in).
            adapter_names: One name for each entry of the first dimension of x; "__base__" for none.

        Returns:
            (..., out).

        Raises:
            ValueError: There are fewer or more names than rows, or adapters are merged.
        """
        if adapter_names is not None:
            return self._mixed(x, adapter_names)
        if self._ready is not None and (weight := self._ready_weight()) is not None:
            return self._product(x, weight, self._ready.base["bias"])
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapters := self._active():
            return self._apply_adapters(x, adapters)
        result: Tensor = self.base_layer(x)
        return result

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a weight, (out, in), in place of that of the base layer."""
        return linear(x, weight, bias)

    def _mixed(self, x: Tensor, adapter_names: list[str]) -> Tensor:
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        result: Tensor = self.base_layer(x)
        for name in set(adapter_names) & set(self.bases):
            rows = [row for row, wanted in enumerate(adapter_names) if wanted == name]
            result[rows] = self._apply_adapters(x[rows], [name], is_whole_batch=False)
        return result

    def _apply_adapters(self, x: Tensor, adapters: list[str], is_whole_batch: bool = True) -> Tensor:
        if torch.compiler.is_compiling():
            return self._differentiable(x, adapters, None)
        memo = self._memo(adapters, is_whole_batch)
        if self.training:
            return self._differentiable(x, adapters, memo)
        # Evaluation always uses the weight: the same numbers with and without gradients, and for any size of a batch.
        weight = self._formed(adapters, memo)
        if torch.is_grad_enabled():
            return self._differentiable(x, adapters, memo)
        if is_whole_batch:
            self._prepare_next(adapters, memo)
        return self._product(x, weight, self.get_base_layer().bias)

    def _differentiable(self, x: Tensor, adapters: list[str], memo: Memo[Tensor] | None) -> Tensor:
        """Apply the layer in training, with the remembered weight or, where that is cheapest, a new one."""
        base, is_single = self.get_base_layer(), len(adapters) == 1
        W, sources, dtype = self.as_matrix(base.weight), self._source_tensors(adapters), compute_dtype(base.weight)
        U, V, change = self._adapted(adapters)
        band = self._band(adapters)
        weight = None if memo is None else memo.get(sources, dtype)
        inverse = self.inverse(adapters[0]) if is_single and self._basis_fits(adapters[0]) else None
        stride = self.token_stride[adapters[0]] if is_single else 1
        way = plan_step(x, W, U, weight is not None, inverse is not None, stride)
        if memo is not None:
            if change.requires_grad:
                change.register_hook(count_backward_pass)
            if weight is None and way.change == "weight":
                with torch.no_grad():
                    weight = self._form_from(U, V, change, dtype, band)
                memo.set(weight, sources, dtype, only_if_reused=True)
        return spectral_linear(
            x,
            W,
            base.bias,
            U,
            V,
            change,
            weight=weight,
            inverse=self._pad(inverse(), adapters[0]) if inverse and way.core in ("input gradient", "output") else None,
            band=band,
            # Each layer converts an input of another dtype separately, so there is no tensor to share.
            keep_input=memo is not None and x.dtype == dtype and self._shared_input.is_kept(x, U.shape[1] // stride),
            stride=stride,
            way=way,
        )

    @property
    def weight(self) -> Tensor:
        """The adapted weight, for models that read it instead of calling the layer, as the attention of WavLM does."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if not (adapters := self._active()):
            return self.frozen_weight()
        return self.as_stored(self._form(adapters))

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the changes of adapters to the weight; the original weight is kept for `unmerge`.

        Args:
            safe_merge: Whether to check the result before it becomes the weight.
            adapter_names: Default: the active ones.

        Raises:
            ValueError: The merged weight has infinite or undefined entries (`safe_merge` only).
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.bases]
        if not names:
            return
        weight = self.get_base_layer().weight
        merged = weight.data.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for name in names:
            merged += self.get_delta_weight(name)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        if self._unmerged_weight is None:
            self._unmerged_weight = weight.data
        weight.data = merged.to(weight.dtype)
        self.merged_adapters.extend(names)
        self._forget()

    def unmerge(self) -> None:
        """Restore the weight from before `merge`, bit for bit."""
        if self._unmerged_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        weight.data = self._unmerged_weight.to(weight)
        self._unmerged_weight = None
        self.merged_adapters.clear()
        self._forget()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: the change of a weight has low rank."""
        return True

    def _replicate_for_data_parallel(self) -> "SpectralLayer":
        replica: SpectralLayer = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._forget()  # the remembered tensors are on another device
        return replica

    def train(self, mode: bool = True) -> "SpectralLayer":
        """Switch between training and evaluation, and forget the weights of the other mode."""
        self._forget_weights()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "SpectralLayer":
        self._forget()  # `to` replaces memory without raising the version counters
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        for name in self.bases:
            self._basis_fits(name)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # All ways of loading call this before anything is copied.
        self._forget()
        prepare_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
