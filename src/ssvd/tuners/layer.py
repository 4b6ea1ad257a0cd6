"""A linear layer adapted with SSVD."""

import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import linear

from ssvd.spectral import (
    Basis,
    change_signs,
    core_change,
    effective_weight,
    orthogonality_error,
    rotation_size,
    spectral_linear,
)
from ssvd.spectral.linear import compute_dtype

from .config import SSVDConfig


class SSVDLinear(nn.Module, BaseTunerLayer):
    """A linear layer, and for each adapter the frozen basis of its weight and the trained theta and s.

    The weight of the layer is left as it is, but while adapters are merged. Several active adapters add up their
    changes of it.

    In `eval` mode without gradients the adapted weight is formed once and kept: decoding token by token needs that. It
    is formed again after `train()`, `to()`, loading or a forward pass with gradients, and when the version counter or
    the memory of a tensor shows that it was changed; only a write through `.data` between two forward passes of an
    evaluation goes unseen.

    Args:
        base_layer: `nn.Linear`, or `Conv1D` of transformers with `fan_in_fan_out`.
        fan_in_fan_out: Whether the weight is stored as (in, out).
    """

    # PEFT comes without types.
    get_base_layer: Callable[[], nn.Linear]
    set_adapter: Callable[..., None]
    active_adapters: list[str]
    merged: bool
    disable_adapters: bool
    _unmerged_weight: Tensor | None

    adapter_layer_names = ("ssvd_theta", "ssvd_s")
    other_param_names = ("ssvd_basis", "rotation", "svd")

    def __init__(self, base_layer: nn.Linear, fan_in_fan_out: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.fan_in_fan_out = fan_in_fan_out
        self.ssvd_theta = nn.ParameterDict()
        self.ssvd_s = nn.ParameterDict()
        self.ssvd_basis: MutableMapping[str, Basis] = nn.ModuleDict()  # type: ignore[assignment]
        self.rotation: dict[str, str] = {}
        self.svd: dict[str, str] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.out_features, self.in_features = self._stored(base_layer.weight).shape
        self.register_buffer("_unmerged_weight", None, persistent=False)
        self._kept: tuple[list[object], Tensor, list[Tensor]] | None = None

    def update_layer(self, adapter_name: str, config: SSVDConfig, layer: str) -> None:
        """Add an adapter.

        Raises:
            ValueError: The configuration does not fit the layer, whose name is `layer`.
        """
        k = config.rank_of(layer, self.out_features, self.in_features)
        size = rotation_size(k, config.rotation)
        if not size and not config.train_scale:
            raise ValueError(
                f"The layer {layer} has nothing to train: with one singular triplet there is no rotation, "
                "so set `train_scale=True`, or a larger `portion` or `rank`."
            )
        self.rotation[adapter_name] = config.rotation
        self.svd[adapter_name] = config.svd
        self.ssvd_basis[adapter_name] = self._find_basis(k, config.svd)
        weight = self.get_base_layer().weight
        if size:
            theta = torch.zeros(size, dtype=weight.dtype, device=weight.device)
            self.ssvd_theta[adapter_name] = theta if config.init_weights else theta.normal_(std=0.5)
        if config.train_scale:
            s = torch.zeros(k, dtype=weight.dtype, device=weight.device)
            self.ssvd_s[adapter_name] = s if config.init_weights else s.normal_(std=0.5)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _find_basis(self, k: int, svd: str) -> Basis:
        """The basis of another adapter where it is the same, else a decomposition of the weight."""
        for name, basis in self.ssvd_basis.items():
            # The first triplets of a larger randomised decomposition are not those of a smaller one.
            if self.svd.get(name) == svd and (basis.k == k or (svd == "exact" and basis.k > k)):
                return basis.narrow(k)
        weight = self.get_base_layer().weight if self._unmerged_weight is None else self._unmerged_weight
        return Basis.of(self._stored(weight), k, svd)

    def _stored(self, weight: Tensor) -> Tensor:
        """A weight as (out, in) where it is stored as (in, out), and the other way round."""
        return weight.T if self.fan_in_fan_out else weight

    def _change(self, adapter_name: str) -> Tensor:
        theta, s = self.ssvd_theta.get(adapter_name), self.ssvd_s.get(adapter_name)
        return core_change(self.ssvd_basis[adapter_name].S, theta, s, self.rotation[adapter_name])

    def _active(self) -> list[str]:
        """Active adapters of this layer; none while adapters are merged or disabled."""
        if self.merged or self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in self.ssvd_basis]

    def _adapted(self, adapters: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Bases and change of the core of adapters: (out, k), (in, k) and (k, k) with the sum of their k."""
        if len(adapters) == 1:
            basis = self.ssvd_basis[adapters[0]]
            return basis.U, basis.V, self._change(adapters[0])
        bases = [self.ssvd_basis[name] for name in adapters]
        U, V = torch.cat([basis.U for basis in bases], 1), torch.cat([basis.V for basis in bases], 1)
        return U, V, torch.block_diag(*(self._change(name) for name in adapters))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in); returns (..., out)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if not (adapters := self._active()):
            return self.base_layer(x)
        base = self.get_base_layer()
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None
            return spectral_linear(x, self._stored(base.weight), base.bias, *self._adapted(adapters))
        return linear(x, self._kept_weight(adapters), base.bias)

    def _kept_weight(self, adapters: list[str]) -> Tensor:
        """The adapted weight in the dtype that the layer computes in, formed when something it is made of changed."""
        weight = self.get_base_layer().weight
        parts = [weight]
        for name in adapters:
            parts += [part[name] for part in (self.ssvd_theta, self.ssvd_s) if name in part]
        dtype = compute_dtype(weight)
        if any(part.is_inference() for part in parts):  # has no version counter
            return effective_weight(self._stored(weight), *self._adapted(adapters), dtype)
        state = [dtype, *adapters, *((id(part), part._version, part.data_ptr()) for part in parts)]
        if self._kept is None or self._kept[0] != state:
            adapted = effective_weight(self._stored(weight), *self._adapted(adapters), dtype)
            self._kept = state, adapted, parts  # the parts, so that no other tensor gets the id of one of them
        return self._kept[1]

    @property
    def weight(self) -> Tensor:
        """The adapted weight, for models that read it instead of calling the layer, as the attention of WavLM does."""
        weight: Tensor = self.get_base_layer().weight
        if not (adapters := self._active()):
            return weight
        return self._stored(effective_weight(self._stored(weight), *self._adapted(adapters)))

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What merging an adapter adds to the weight, in the shape of the weight, in float32 or float64."""
        basis = self.ssvd_basis[adapter_name]
        change = self._change(adapter_name)
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
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.ssvd_basis]
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
        self._kept = None

    def unmerge(self) -> None:
        """Put back the weight from before `merge`, the same bit for bit."""
        if self._unmerged_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        weight.data = self._unmerged_weight.to(weight)
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def orthogonality_error(self, adapter_name: str) -> float:
        """Spectral norm of `G^T G - I`; see `ssvd.spectral.orthogonality_error`."""
        if adapter_name not in self.ssvd_theta:
            return 0.0
        theta = self.ssvd_theta[adapter_name]
        return orthogonality_error(theta, self.ssvd_basis[adapter_name].k, self.rotation[adapter_name])

    def train(self, mode: bool = True) -> "SSVDLinear":
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "SSVDLinear":
        self._kept = None  # `to` replaces memory without a trace in the version counters
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Unlike PEFT's own, leaves dtypes alone: the singular values and the fingerprint stay in float32.
        device = device or self.get_base_layer().weight.device
        for parts in (self.ssvd_theta, self.ssvd_s, self.ssvd_basis):
            if adapter_name in parts and not getattr(parts[adapter_name], "is_meta", False):
                parts[adapter_name] = parts[adapter_name].to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Every way of loading ends here, before the parameters are copied.
        self._kept = None
        layer = prefix.removeprefix("base_model.model.").rstrip(".")
        self._follow_base_weight(state_dict.get(f"{prefix}base_layer.weight"), layer)
        for name, basis in self.ssvd_basis.items():
            fingerprint = state_dict.get(f"{prefix}ssvd_basis.{name}.fingerprint")
            theta = state_dict.get(f"{prefix}ssvd_theta.{name}")
            if fingerprint is None:
                if theta is not None:
                    warnings.warn(
                        "Parameters of SSVD without the fingerprints of the bases they were trained in cannot be "
                        "checked; save adapters with `save_pretrained` or `get_peft_model_state_dict`.",
                        stacklevel=2,
                    )
                continue
            if fingerprint.shape != basis.fingerprint.shape:
                continue  # of another k: PyTorch says so below
            signs = basis.signs_in(fingerprint)
            if signs is None:
                raise ValueError(
                    f"The adapter was trained on another base model, or on this one in another precision: the weight "
                    f"of {layer} has another singular basis; load the base model as it was in training (to change its "
                    "dtype, merge the adapter first)."
                )
            if theta is not None:
                state_dict[f"{prefix}ssvd_theta.{name}"] = change_signs(theta, signs, self.rotation[name])
            state_dict[f"{prefix}ssvd_basis.{name}.fingerprint"] = basis.fingerprint
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _follow_base_weight(self, loaded: Tensor | None, layer: str) -> None:
        """Decompose the weight that is about to be loaded into the base layer, where it is another one."""
        weight = self.get_base_layer().weight
        if loaded is None or loaded.shape != weight.shape:
            return
        if not weight.is_meta and torch.equal(weight, loaded.to(weight)):
            return
        if self.merged:
            raise ValueError(f"Unmerge the adapters before another base weight is loaded into {layer}.")
        device = loaded.device if weight.is_meta else weight.device
        for name, basis in self.ssvd_basis.items():
            self.ssvd_basis[name] = Basis.of(
                self._stored(loaded.detach().to(device, weight.dtype)), basis.k, self.svd[name]
            )

    def __repr__(self) -> str:
        return "ssvd." + super().__repr__()
