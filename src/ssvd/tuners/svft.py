"""SVFT, singular vectors guided fine-tuning (arXiv 2405.19597), as a method of PEFT."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssvd.spectral import PATTERNS, checksum, pattern_positions, pattern_size, sparse_change
from ssvd.tuners.config import SpectralConfig
from ssvd.tuners.convolution import ConvolutionLayer
from ssvd.tuners.layer import SpectralLayer
from ssvd.tuners.model import SpectralModel
from ssvd.tuners.quantised import QuantisedLayer


@dataclass
class SVFTConfig(SpectralConfig):
    """Configuration of SVFT, singular vectors guided fine-tuning (arXiv 2405.19597).

    An adapted weight `W = U S V^T` becomes `U (S + M) V^T`, where a sparse M over all r = min(in, out) singular
    triplets is trained: r(2d + 1) - d(d + 1) numbers a layer with d = `off_diagonals`, and r with pattern "plain".

    Args:
        pattern: Which entries of M are trained: "plain", the diagonal; "banded", the diagonal and d diagonals on
            either side; "random" and "top-k", as many entries as "banded", drawn at random or those with the largest
            |u_i^T v_j|. See `ssvd.spectral.pattern`.
        off_diagonals: d, which sets the number of trained entries of every pattern but "plain".
        seed: Random seed of the pattern "random"; it gives the same positions on every machine.

    The fields of `ssvd.tuners.config.SpectralConfig` choose the layers, and whether the basis is saved.

    Raises:
        ValueError: A field is out of range, or two fields contradict each other.
    """

    method: ClassVar[str] = "svft"

    pattern: Literal["plain", "banded", "random", "top-k"] = field(
        default="banded", metadata={"help": "Which entries of M are trained: plain, banded, random or top-k."}
    )
    off_diagonals: int = field(
        default=8, metadata={"help": "Diagonals on either side of the main one; sets the number of trained entries."}
    )
    seed: int = field(default=0, metadata={"help": "Random seed of the pattern random."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("pattern", PATTERNS)
        for name in ("off_diagonals", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}` must be an integer from 0 on, not {value!r}.")


class _Pattern(NamedTuple):
    """Which entries are trained: the last arguments of `pattern_positions`, in their order."""

    pattern: str
    off_diagonals: int
    seed: int


class _Positions(nn.Module):
    """Positions of the trained entries. Their checksum is saved and, with a stored basis, the positions too."""

    positions: Tensor
    checksum: Tensor

    def __init__(self, positions: Tensor, stored: bool) -> None:
        super().__init__()
        self.register_buffer("positions", positions, persistent=stored)
        self.register_buffer("checksum", checksum(positions))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Positions":
        exact = self.checksum
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.checksum.dtype != exact.dtype:  # half precision cannot represent all integers up to 2^24
            self.checksum = exact.to(self.checksum.device)
        return self


class SVFTLinear(SpectralLayer):
    """A linear layer and, for each adapter, the trained entries of M, in the order of their positions."""

    method = "svft"
    adapter_layer_names = ("svft_M",)
    other_param_names = ("svft_basis", "svft_pattern", "patterns", "decomposition", "token_stride", "_fits")

    def __init__(self, base_layer: nn.Linear, fan_in_fan_out: bool = False) -> None:
        super().__init__(base_layer, fan_in_fan_out)
        self.svft_M = nn.ParameterDict()
        self.svft_pattern: MutableMapping[str, _Positions] = nn.ModuleDict()  # type: ignore[assignment]
        self.patterns: dict[str, _Pattern] = {}

    def create_core(self, adapter_name: str, config: SVFTConfig, layer: str) -> None:
        """Create the trained parameters of an adapter in this layer; see `SpectralLayer`."""
        k = min(self.out_features, self.in_features)
        size = pattern_size(k, config.pattern, config.off_diagonals)
        # The checksum takes the place of one number of the fingerprint.
        self.set_basis(adapter_name, config, k, "exact", "top", trained=size - 60)
        self.patterns[adapter_name] = _Pattern(config.pattern, config.off_diagonals, config.seed)
        self.follow_new_basis(adapter_name)
        U, scale = self.bases[adapter_name].U, self.bases[adapter_name].S.mean()
        start = U.new_zeros(size)
        self.svft_M[adapter_name] = start if config.init_weights else start.normal_(std=0.5) * scale.to(start)

    def follow_new_basis(self, adapter_name: str) -> None:
        """Recompute the positions of the trained entries, which may depend on the basis."""
        basis = self.bases[adapter_name]
        U, V = basis.U[:, : basis.k], basis.V[:, : basis.k]
        positions = pattern_positions(U, V, *self.patterns[adapter_name])
        self.svft_pattern[adapter_name] = _Positions(positions, basis.stored)

    def change(self, adapter_name: str) -> Tensor:
        """Return the change C - S of the core, (k, k)."""
        positions = self.svft_pattern[adapter_name].positions
        return sparse_change(positions, self.svft_M[adapter_name], self.bases[adapter_name].k)

    def band(self, adapter_name: str) -> int | None:
        """Return how far from the diagonal entries are trained; None if anywhere."""
        pattern, off_diagonals, _ = self.patterns[adapter_name]
        return {"plain": 0, "banded": off_diagonals}.get(pattern)

    def check_core(self, state_dict: dict[str, Any], prefix: str, adapter_name: str, layer: str) -> None:
        """Check that stored parameters belong to the same entries as those trained here."""
        stored = state_dict.get(f"{prefix}svft_pattern.{adapter_name}.checksum")
        here = self.svft_pattern[adapter_name].positions
        positions = state_dict.get(f"{prefix}svft_pattern.{adapter_name}.positions", here)
        if stored is not None and not torch.equal(checksum(positions).cpu(), stored.detach().float().cpu()):
            raise ValueError(
                f"The adapter trained other entries of {layer} than its configuration gives here: `pattern`, "
                "`off_diagonals` or `seed` differ, or the base model does."
            )


class SVFTConvolution(ConvolutionLayer, SVFTLinear):
    """A convolution, adapted by SVFT."""


class SVFTQuantised(QuantisedLayer, SVFTLinear):
    """A quantised linear layer, adapted by SVFT."""


class SVFTModel(SpectralModel):
    """Adapts the linear layers and convolutions of a model with SVFT, arXiv 2405.19597.

    Args:
        model: The model to adapt, in place.
        config: `SVFTConfig`.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Whether to leave the parameters on the meta device, for loading an adapter over them.
    """

    prefix = "svft_"
    tuner_layer_cls = SVFTLinear
    convolution_cls = SVFTConvolution
    quantised_cls = SVFTQuantised
