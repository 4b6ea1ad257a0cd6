"""A linear layer adapted in the singular basis of its weight."""

import warnings
from collections.abc import Callable, MutableMapping
from copy import copy
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.utils.weak import WeakTensorKeyDictionary

from ssvd.spectral import Basis, cached_basis, compute_dtype, effective_weight, plan_step, spectral_linear
from ssvd.tuners.config import SpectralConfig
from ssvd.tuners.kept import Kept, in_backward, note_backward_pass

# A stored basis must hold this share of the base weight: rounding to bf16 or 8 bits costs less than 1 %.
_LARGEST_MISFIT = 0.02


# Inputs in use, the layers that read each, and how many numbers a token each of these would keep of it.
_readers: MutableMapping[Tensor, "WeakKeyDictionary[SpectralLayer, int]"] = WeakTensorKeyDictionary()


class SpectralLayer(nn.Module, BaseTunerLayer):
    """A linear layer, and for each adapter the frozen basis of its weight and the core that is trained.

    A method derives from it: `create_core` makes the parameters of an adapter, `change` the change of the core that
    they stand for. Two more methods say what is known of the core, and make training faster.

    The weight of the layer is left as it is, but while adapters are merged. Several active adapters add up their
    changes of it.

    The adapted weight is formed once, and kept for as long as the adapter stays the same: for decoding token by token,
    and over the batches whose gradients are accumulated. See `Kept` for how changes are noticed. Only a write through
    `.data` can go unseen: between two forward passes of an evaluation, or in a training loop by hand that sets
    gradients to zero instead of None.

    Args:
        base_layer: `nn.Linear`, or `Conv1D` of transformers with `fan_in_fan_out`.
        fan_in_fan_out: Whether the weight is stored as (in, out).
    """

    method: ClassVar[str]

    # PEFT comes without types.
    get_base_layer: Callable[[], nn.Linear]
    set_adapter: Callable[..., None]
    active_adapters: list[str]
    merged: bool
    disable_adapters: bool
    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...]
    _unmerged_weight: Tensor | None

    def __init__(self, base_layer: nn.Linear, fan_in_fan_out: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.fan_in_fan_out = fan_in_fan_out
        # Under a name of the method's own, by which PEFT knows what to save.
        setattr(self, f"{self.method}_basis", nn.ModuleDict())
        self.svd: dict[str, str] = {}
        self.token_stride: dict[str, int] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.out_features, self.in_features = self._stored(base_layer.weight).shape
        self.register_buffer("_unmerged_weight", None, persistent=False)
        self._weights: dict[tuple[str, ...], Kept[Tensor]] = {}  # by the adapters that are active
        self._ready: tuple[Kept[Tensor], Any, list[tuple[dict[str, Any], str]], str, torch.dtype] | None = None
        self._fits: dict[str, Kept[bool]] = {}
        self._has_shared_input = self._keeps_input = False

    @property
    def bases(self) -> MutableMapping[str, Basis]:
        """The basis of each adapter."""
        bases: MutableMapping[str, Basis] = getattr(self, f"{self.method}_basis")
        return bases

    def create_core(self, adapter_name: str, config: Any, layer: str) -> None:
        """Set the basis of an adapter and create its parameters, on the device and in the dtype of the weight.

        Raises:
            ValueError: The configuration does not fit the layer, whose name is `layer`.
        """
        raise NotImplementedError

    def change(self, adapter_name: str) -> Tensor:
        """The change of the core, (k, k), float32 or float64, differentiable in the parameters of the adapter."""
        raise NotImplementedError

    def inverse(self, adapter_name: str) -> Callable[[], Tensor] | None:
        """What computes C^-1, (k, k), where the core of an adapter always has an inverse."""

    def band(self, adapter_name: str) -> int | None:
        """How far from the diagonal the change of the core has entries, where it is banded."""

    def check_core(self, state_dict: dict[str, Any], prefix: str, adapter_name: str, layer: str) -> None:
        """Raise ValueError where parameters that are about to be loaded belong to another core."""

    def update_layer(self, adapter_name: str, config: SpectralConfig, layer: str) -> None:
        """Add an adapter.

        Raises:
            ValueError: The configuration does not fit the layer, whose name is `layer`.
        """
        self.create_core(adapter_name, config, layer)
        self.token_stride[adapter_name] = config.token_stride
        self._has_own_basis(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_basis(self, adapter_name: str, config: SpectralConfig, k: int, svd: str, trained: int) -> None:
        """Give an adapter the top k triplets: those of another adapter if equal, else a new decomposition.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            k: Number of triplets.
            svd: Kind of the decomposition, "exact" or randomised.
            trained: Number of parameters of the adapter in this layer: the fingerprint takes less than 2 % of that.
        """
        groups, stored = min(k, max(4, trained // 60)), config.basis == "stored"
        self.svd[adapter_name] = svd
        self.bases[adapter_name] = self._find_basis(k, svd).narrow(k, groups, stored).padded()

    def _find_basis(self, k: int, svd: str) -> Basis:
        for name, basis in self.bases.items():
            # The first triplets of a larger randomised decomposition are not those of a smaller one.
            same = self.svd.get(name) == svd and (basis.k == k or (svd == "exact" and basis.k > k))
            if same and basis.is_canonical:
                return basis
        weight = self.get_base_layer().weight if self._unmerged_weight is None else self._unmerged_weight
        return cached_basis(self._stored(weight), k, svd)

    def _stored(self, weight: Tensor) -> Tensor:
        """A weight as (out, in) where it is stored as (in, out), and the other way round."""
        return weight.T if self.fan_in_fan_out else weight

    def _active(self) -> list[str]:
        """Active adapters of this layer; none while adapters are merged or disabled."""
        if self.merged or self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in self.bases]

    def _adapted(self, adapters: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Bases and change of the core of adapters: (out, k), (in, k) and (k, k) with the sum of their padded k."""
        bases, changes = [self.bases[name] for name in adapters], [self._padded_change(name) for name in adapters]
        if len(adapters) == 1:
            return bases[0].U, bases[0].V, changes[0]
        U, V = torch.cat([basis.U for basis in bases], 1), torch.cat([basis.V for basis in bases], 1)
        return U, V, torch.block_diag(*changes)

    def _padded_change(self, adapter_name: str) -> Tensor:
        return self._pad(self.change(adapter_name), adapter_name)

    def _pad(self, core: Tensor, adapter_name: str) -> Tensor:
        """A core with rows and columns of zeros where the basis has columns of zeros."""
        missing = self.bases[adapter_name].U.shape[1] - len(core)
        return pad(core, (0, missing, 0, missing)) if missing else core

    def forward(self, x: Tensor, *, adapter_names: list[str] | None = None) -> Tensor:
        """Apply the layer with its active adapters, or each row of a batch with the adapter that is named for it.

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
            return linear(x, weight, self._ready[2][0][0]["bias"])
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapters := self._active():
            return self._apply_adapters(x, adapters)
        result: Tensor = self.base_layer(x)
        return result

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
            result[rows] = self._apply_adapters(x[rows], [name], alone=False)
        return result

    def _apply_adapters(self, x: Tensor, adapters: list[str], alone: bool = True) -> Tensor:
        if torch.compiler.is_compiling():
            return self._differentiable(x, adapters, None)
        if alone and tuple(adapters) not in self._weights:
            self._weights = {}  # of adapters that were active before
        kept = self._weights.setdefault(tuple(adapters), Kept())
        if self.training:
            return self._differentiable(x, adapters, kept)
        # Always by the weight: the same numbers with and without gradients, and for every size of a batch.
        base = self.get_base_layer()
        parts, dtype = self._parts(adapters), compute_dtype(base.weight)
        weight = kept.get(parts, dtype)
        if weight is None:
            with torch.inference_mode(False), torch.no_grad():  # so that a backward pass can use it
                weight = kept.keep(self._form(adapters, dtype), parts, dtype)
        if torch.is_grad_enabled():
            return self._differentiable(x, adapters, kept)
        if alone and {"weight", "bias"} <= base._parameters.keys():  # else they are computed, by a parametrisation
            sources = [(base._parameters, "weight"), *self._sources(adapters)]
            self._ready = kept, copy(self._active_adapter), sources, base.weight.device.type, base.weight.dtype
        return linear(x, weight, base.bias)

    def _differentiable(self, x: Tensor, adapters: list[str], kept: Kept[Tensor] | None) -> Tensor:
        """The layer for training, with the weight that is kept or, where it pays, with one that is formed."""
        base, alone = self.get_base_layer(), len(adapters) == 1
        W, parts, dtype = self._stored(base.weight), self._parts(adapters), compute_dtype(base.weight)
        U, V, change = self._adapted(adapters)
        weight = None if kept is None else kept.get(parts, dtype)
        inverse = self.inverse(adapters[0]) if alone and self._has_own_basis(adapters[0]) else None
        stride = self.token_stride[adapters[0]] if alone else 1
        way = plan_step(x, W, U, weight is not None, inverse is not None, stride)
        if kept is not None:
            if change.requires_grad:
                change.register_hook(note_backward_pass)
            if weight is None and way.change == "weight":
                with torch.no_grad():
                    weight = effective_weight(W, U, V, change, dtype, self._band(adapters))
                kept.keep(weight, parts, dtype, only_if_asked_again=True)
        return spectral_linear(
            x,
            W,
            base.bias,
            U,
            V,
            change,
            weight=weight,
            inverse=self._pad(inverse(), adapters[0]) if inverse and way.core in ("input gradient", "output") else None,
            band=self._band(adapters),
            # One of another dtype is converted for each layer anew, so there is none to share.
            keep_input=kept is not None and x.dtype == dtype and self._shares_input(x, U.shape[1] // stride),
            stride=stride,
            way=way,
        )

    def _form(self, adapters: list[str], dtype: torch.dtype | None = None) -> Tensor:
        """The adapted weight, (out, in)."""
        W = self._stored(self.get_base_layer().weight)
        return effective_weight(W, *self._adapted(adapters), dtype, self._band(adapters))

    def _band(self, adapters: list[str]) -> int | None:
        return self.band(adapters[0]) if len(adapters) == 1 else None

    def _ready_weight(self) -> Tensor | None:
        """The adapted weight, where it can be used as it is; asked for each token in each layer, so in microseconds."""
        if torch.compiler.is_compiling() or self._ready is None or self.training or torch.is_grad_enabled():
            return None
        kept, active, sources, device, dtype = self._ready
        if self._disable_adapters or self.merged_adapters or self._active_adapter != active:
            return None
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return kept.get([parameters.get(name) for parameters, name in sources], dtype)

    def _sources(self, adapters: list[str]) -> list[tuple[dict[str, Any], str]]:
        """Where the parameters of adapters stand: mappings and keys."""
        containers = [getattr(self, name)._parameters for name in self.adapter_layer_names]
        return [(container, name) for name in adapters for container in containers if name in container]

    def _parts(self, adapters: list[str]) -> list[Tensor]:
        """What the adapted weight is made of."""
        return [self.get_base_layer().weight, *(container[name] for container, name in self._sources(adapters))]

    def _has_own_basis(self, adapter_name: str) -> bool:
        """Whether the basis of an adapter is that of the weight as it is now, up to rounding."""
        if torch.compiler.is_compiling():  # which cannot look at numbers
            return adapter_name in self._fits and self._fits[adapter_name].value is True
        weight, basis = self.get_base_layer().weight, self.bases[adapter_name]
        kept, parts = self._fits.setdefault(adapter_name, Kept()), [weight, basis.U]
        fits = kept.get(parts)
        return kept.keep(basis.fits(self._stored(weight)), parts) if fits is None else fits

    def _shares_input(self, x: Tensor, k: int) -> bool:
        """Whether to keep x for the backward pass: once for all layers that read it, instead of k numbers for each."""
        if not in_backward():  # else checkpointed activations are computed again, and must be kept as before
            self._keeps_input = self._has_shared_input
            readers = _readers.setdefault(x, WeakKeyDictionary())
            readers[self] = k
            # The last of them finds out; from the next forward pass on all know.
            if sum(readers.values()) > self.in_features:
                for layer in readers:
                    layer._has_shared_input = True
        return self._keeps_input

    @property
    def weight(self) -> Tensor:
        """The adapted weight, for models that read it instead of calling the layer, as the attention of WavLM does."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        weight: Tensor = self.get_base_layer().weight
        if not (adapters := self._active()):
            return weight
        return self._stored(self._form(adapters))

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What merging an adapter adds to the weight, in the shape of the weight, in float32 or float64."""
        basis, change = self.bases[adapter_name], self._padded_change(adapter_name)
        U, V = basis.U.to(change.dtype), basis.V.to(change.dtype)
        return self._stored(effective_weight(change.new_zeros(()), U, V, change))

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the changes of adapters to the weight; the weight before is kept for `unmerge`.

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
        """Put back the weight from before `merge`, the same bit for bit."""
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

    def _forget(self) -> None:
        """Compute anew whatever was kept."""
        self._weights, self._fits, self._ready = {}, {}, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}

    def _replicate_for_data_parallel(self) -> "SpectralLayer":
        replica: SpectralLayer = super()._replicate_for_data_parallel()
        replica._forget()  # it would share what belongs to another device
        return replica

    def train(self, mode: bool = True) -> "SpectralLayer":
        """Switch between training and evaluation, and forget what was computed for the other mode."""
        self._weights, self._ready = {}, None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "SpectralLayer":
        self._forget()  # `to` replaces memory without a trace in the version counters
        applied = super()._apply(*args, **kwargs)
        for name in self.bases:
            self._has_own_basis(name)
        return applied

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Unlike PEFT's own, leaves dtypes alone: singular values and fingerprints stay in float32.
        device = device or self.get_base_layer().weight.device
        containers: list[Any] = [getattr(self, name) for name in (*self.adapter_layer_names, *self.other_param_names)]
        for parts in containers:
            if hasattr(parts, "parameters") and adapter_name in parts:
                part = parts[adapter_name]
                if not getattr(part, "is_meta", False):
                    moved = part.to(device)
                    is_parameter = isinstance(part, nn.Parameter)
                    parts[adapter_name] = nn.Parameter(moved, part.requires_grad) if is_parameter else moved

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Every way of loading ends here, before anything is copied.
        self._forget()
        layer = prefix.removeprefix("base_model.model.").rstrip(".")
        self._follow_base_weight(state_dict.get(f"{prefix}base_layer.weight"), layer)
        for name in list(self.bases):
            self._follow_basis(state_dict, prefix, name, layer)
            self.check_core(state_dict, prefix, name, layer)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _follow_basis(self, state_dict: dict[str, Any], prefix: str, adapter_name: str, layer: str) -> None:
        """Give an adapter the basis in which the parameters that are about to be loaded were trained.

        Raises:
            ValueError: The weight of the layer does not have it.
        """
        basis = self.bases[adapter_name]
        part = f"{prefix}{self.method}_basis.{adapter_name}."
        fingerprint = state_dict.get(f"{part}fingerprint")
        if fingerprint is None:
            if any(f"{prefix}{name}.{adapter_name}" in state_dict for name in self.adapter_layer_names):
                warnings.warn(
                    f"Parameters of {self.method.upper()} without the fingerprints of the bases they were trained in "
                    "cannot be checked; save adapters with `save_pretrained` or `get_peft_model_state_dict`.",
                    stacklevel=2,
                )
            return
        if fingerprint.shape != basis.fingerprint.shape:
            return  # of another k: PyTorch says so next
        triplets = [state_dict[f"{part}{name}"] for name in "USV" if f"{part}{name}" in state_dict]
        if basis.stored and [t.shape for t in triplets] == [basis.U.shape, basis.S.shape, basis.V.shape]:
            # In a whole checkpoint the weight comes with it.
            weight = self._stored(state_dict.get(f"{prefix}base_layer.weight", self.get_base_layer().weight))
            U, S, V = (tensor.detach().to(weight.device) for tensor in triplets)
            stored = Basis.of_triplets(U, S, V, len(fingerprint))
            if not stored.misfit(weight) <= _LARGEST_MISFIT:
                raise ValueError(
                    f"The adapter was trained on another base model: its stored basis of {layer} holds only part of "
                    "the weight; load the base model of the training, or a copy of it that was rounded less."
                )
            self.bases[adapter_name] = stored.to(weight.dtype)
            return
        aligned = basis.aligned(fingerprint)
        if aligned is None:
            raise ValueError(
                f"The adapter was trained on another base model, or on this one in another precision: the weight "
                f"of {layer} has another singular basis. Load the base model in the dtype that it had in training and "
                'convert it afterwards, or train with basis="stored", which keeps the basis in the adapter.'
            )
        self.bases[adapter_name] = aligned

    def _follow_base_weight(self, loaded: Tensor | None, layer: str) -> None:
        """Decompose the weight that is about to be loaded into the base layer, where it is another one."""
        weight = self.get_base_layer().weight
        if loaded is None or loaded.shape != weight.shape:
            return
        if not weight.is_meta and torch.equal(weight, loaded.to(weight)):
            return
        if self.merged:
            raise ValueError(f"Unmerge the adapters before another base weight is loaded into {layer}.")
        loaded = self._stored(loaded.detach().to(loaded.device if weight.is_meta else weight.device, weight.dtype))
        for name, basis in list(self.bases.items()):
            found = cached_basis(loaded, basis.k, self.svd[name])
            self.bases[name] = found.narrow(basis.k, len(basis.fingerprint), basis.stored).padded()
            self.follow_new_basis(name)

    def follow_new_basis(self, adapter_name: str) -> None:
        """Renew what a core holds beside its parameters and follows from its basis."""

    def __repr__(self) -> str:
        return f"{self.method}.{super().__repr__()}"
