"""A layer with, for each adapter, a frozen singular basis of its weight and a trained core."""

from collections.abc import Callable, MutableMapping
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import pad

from ssvd.spectral import Basis, Subspace, cached_basis
from ssvd.tuners.config import SpectralConfig
from ssvd.tuners.memo import Memo


class CoreLayer(nn.Module, BaseTunerLayer):
    """A linear layer and its adapters: what each method defines, and what follows from its bases and cores alone.

    A method derives from `SpectralLayer` and implements `create_core` and `change`. If it also implements `inverse` or
    `band`, training is faster.

    Args:
        base_layer: `nn.Linear`, or `Conv1D` of transformers with `fan_in_fan_out`; a convolution if the class derives
            from `ssvd.tuners.convolution.ConvolutionLayer`.
        fan_in_fan_out: Whether the weight is stored as (in, out).
    """

    method: ClassVar[str]

    # PEFT has no types.
    get_base_layer: Callable[[], nn.Linear]
    set_adapter: Callable[..., None]
    active_adapters: list[str]
    _active_adapter: str | list[str]
    merged: bool
    disable_adapters: bool
    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...]
    _unmerged_weight: Tensor | None

    def __init__(self, base_layer: nn.Linear, fan_in_fan_out: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.fan_in_fan_out = fan_in_fan_out
        # PEFT saves what has the method's name in its own name.
        setattr(self, f"{self.method}_basis", nn.ModuleDict())
        self.decomposition: dict[str, tuple[str, Subspace]] = {}
        self.token_stride: dict[str, int] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.out_features, self.in_features = self.as_matrix(base_layer.weight).shape
        self.register_buffer("_unmerged_weight", None, persistent=False)
        self._fits: dict[str, Memo[bool]] = {}

    @property
    def bases(self) -> MutableMapping[str, Basis]:
        """The basis of each adapter."""
        bases: MutableMapping[str, Basis] = getattr(self, f"{self.method}_basis")
        return bases

    def frozen_weight(self) -> Tensor:
        """Return the weight of the base layer as it is stored, with what is merged."""
        return self.get_base_layer().weight

    @property
    def largest_misfit(self) -> float:
        """How much of the weight a stored basis may lack: rounding to bf16 or 8 bits costs less than 1 %."""
        return 0.02

    def create_core(self, adapter_name: str, config: Any, layer: str) -> None:
        """Set the basis of an adapter and create its parameters, on the device and in the dtype of the weight.

        Raises:
            ValueError: The configuration does not fit the layer, whose name is `layer`.
        """
        raise NotImplementedError

    def change(self, adapter_name: str) -> Tensor:
        """Return C - S, (k, k), float32 or float64, differentiable in the parameters of the adapter."""
        raise NotImplementedError

    def inverse(self, adapter_name: str) -> Callable[[], Tensor] | None:
        """Return a function that computes C^-1, (k, k); None if the core may be singular or the inverse is costly."""

    def band(self, adapter_name: str) -> int | None:
        """Return how far from the diagonal C - S can have entries; None if anywhere."""

    def check_core(self, state_dict: dict[str, Any], prefix: str, adapter_name: str, layer: str) -> None:
        """Raise ValueError if the parameters in a state dict, about to be loaded, belong to another kind of core."""

    def follow_new_basis(self, adapter_name: str) -> None:
        """Recompute what a core holds beside its parameters and depends on its basis."""

    def update_layer(self, adapter_name: str, config: SpectralConfig, layer: str) -> None:
        """Add an adapter.

        Raises:
            ValueError: The configuration does not fit the layer, whose name is `layer`.
        """
        self.create_core(adapter_name, config, layer)
        self.token_stride[adapter_name] = config.token_stride
        self._basis_fits(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_basis(
        self, adapter_name: str, config: SpectralConfig, k: int, svd: str, subspace: Subspace, trained: int
    ) -> None:
        """Give an adapter its k triplets: those of another adapter if it has them, else a new decomposition.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            k: Number of triplets.
            svd: Kind of the decomposition, "exact" or "randomized".
            subspace: Which triplets; see `ssvd.spectral.Basis`.
            trained: Number of parameters of the adapter in this layer; the fingerprint takes less than 2 % of that.
        """
        groups, stored = min(k, max(4, trained // 60)), config.basis == "stored"
        self.decomposition[adapter_name] = svd, subspace
        self.bases[adapter_name] = self._decompose(k, svd, subspace).narrow(k, groups, stored).padded()

    def _decompose(self, k: int, svd: str, subspace: Subspace) -> Basis:
        for name, basis in self.bases.items():
            # The first triplets of a larger randomised decomposition are not those of a smaller one.
            holds_more = basis.k > k and (svd, subspace) == ("exact", "top")
            same = self.decomposition.get(name) == (svd, subspace) and (basis.k == k or holds_more)
            if same and basis.is_canonical:
                return basis
        weight = self.frozen_weight() if self._unmerged_weight is None else self._unmerged_weight
        return cached_basis(self.as_matrix(weight), k, svd, subspace)

    def as_matrix(self, weight: Tensor) -> Tensor:
        """Return a stored weight as (out, in); a kernel (out, in, width) is the matrix (out, in x width) on patches."""
        return weight.T if self.fan_in_fan_out else weight.flatten(1)

    def as_stored(self, matrix: Tensor) -> Tensor:
        """Return a matrix (out, in) in the shape of the stored weight."""
        return matrix.T if self.fan_in_fan_out else matrix.view(self.get_base_layer().weight.shape)

    def _active(self) -> list[str]:
        """Return the active adapters of this layer; none while adapters are merged or disabled."""
        if self.merged or self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in self.bases]

    def _adapted(self, adapters: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return bases and change of adapters: (out, k), (in, k) and (k, k), where k is the sum of their padded k."""
        bases, changes = [self.bases[name] for name in adapters], [self._padded_change(name) for name in adapters]
        if len(adapters) == 1:
            return bases[0].U, bases[0].V, changes[0]
        U, V = torch.cat([basis.U for basis in bases], 1), torch.cat([basis.V for basis in bases], 1)
        return U, V, torch.block_diag(*changes)

    def _padded_change(self, adapter_name: str) -> Tensor:
        return self._pad(self.change(adapter_name), adapter_name)

    def _pad(self, core: Tensor, adapter_name: str) -> Tensor:
        """Return a core with rows and columns of zeros where the basis has columns of zeros."""
        missing = self.bases[adapter_name].U.shape[1] - len(core)
        return pad(core, (0, missing, 0, missing)) if missing else core

    def _band(self, adapters: list[str]) -> int | None:
        return self.band(adapters[0]) if len(adapters) == 1 else None

    def _basis_fits(self, adapter_name: str) -> bool:
        """Return whether the basis of an adapter is that of the present weight, up to rounding."""
        if torch.compiler.is_compiling():  # values cannot be read in a compiled graph
            return adapter_name in self._fits and self._fits[adapter_name].value is True
        weight, basis = self.get_base_layer().weight, self.bases[adapter_name]
        memo, sources = self._fits.setdefault(adapter_name, Memo()), [weight, basis.U]
        fits = memo.get(sources)
        return memo.set(basis.fits(self.as_matrix(weight)), sources) if fits is None else fits

    def _forget(self) -> None:
        """Drop all remembered values."""
        self._fits = {}

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Unlike PEFT's method, this changes no dtype: singular values and fingerprints stay in float32.
        device = device or self.get_base_layer().weight.device
        containers: list[Any] = [getattr(self, name) for name in (*self.adapter_layer_names, *self.other_param_names)]
        for container in containers:
            if hasattr(container, "parameters") and adapter_name in container:
                item = container[adapter_name]
                if not getattr(item, "is_meta", False):
                    moved = item.to(device)
                    is_parameter = isinstance(item, nn.Parameter)
                    container[adapter_name] = nn.Parameter(moved, item.requires_grad) if is_parameter else moved

    def __repr__(self) -> str:
        return f"{self.method}.{super().__repr__()}"
