"""SSVD, structured SVD-guided fine-tuning (arXiv 2509.02830), as a method of PEFT."""

import math
import re
import warnings
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple
from weakref import WeakSet

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from ssvd.spectral import (
    ROTATIONS,
    SIDES,
    SUBSPACES,
    SVD_METHODS,
    Form,
    Rotation,
    Side,
    Subspace,
    core_change,
    core_inverse,
    orthogonality_error,
    solve_rotations,
)
from ssvd.tuners.config import SpectralConfig
from ssvd.tuners.convolution import ConvolutionLayer
from ssvd.tuners.layer import SpectralLayer
from ssvd.tuners.memo import Memo
from ssvd.tuners.model import SpectralModel
from ssvd.tuners.quantised import QuantisedLayer

Rotated = Literal[Side, "smaller"]
ROTATED: tuple[Rotated, ...] = (*SIDES, "smaller")


@dataclass
class SSVDConfig(SpectralConfig):
    """Configuration of SSVD, structured SVD-guided fine-tuning (arXiv 2509.02830).

    An adapted weight `W = U S V^T` becomes `U (S + dS) G V^T` on its top k singular triplets: the singular values are
    scaled and the input basis is rotated, which trains k(k+1)/2 numbers a layer (k^2 + k with rotation "none").

    Args:
        portion: Share p of the r = min(in, out) singular triplets of each layer that is adapted, 0 < p <= 1;
            k = max(1, floor(p r)).
        rank: k itself, the same for every layer; overrides `portion`.
        portion_pattern: Portions of single layers, which override `portion` and `rank`: a mapping from layer names,
            ends of names or regular expressions to portions, such as `{"fc1": 0.2, "encoder.layers.0.fc2": 0.6}`.
        rotation: Form of G: "approx", I - 2K with a skew-symmetric K; "strict", the rotation (I - K)(I + K)^-1;
            "neumann", four terms of the series for that, where "approx" has one; "none", any matrix.
        rotate: Which basis G rotates: "input", as in the paper; "output", G^T (S + dS) instead of (S + dS) G; "both",
            with a G for each side, which trains k^2 numbers a layer (2 k^2 + k with rotation "none"); "smaller", that
            of the space with fewer dimensions, as in the authors' code: the input where both have as many.
        outer_portion: With rotate "both", the share of triplets whose output directions are rotated, where `portion` is
            the share whose input directions are; k follows from the larger one. None for the same share. SSVD-Outer
            (arXiv 2601.12600) divides its budget in this way; its abstract alone was read, so the definition is ours.
        subspace: Which triplets: "top", the first, as in the paper; "tail", the last, against forgetting
            (arXiv 2606.09342); "ends", half of each.
        train_scale: Whether dS is trained, or only the rotation.
        svd: "exact", or "randomized", which is cheaper where k is far below r and approximates the last triplets.

    The fields of `ssvd.tuners.config.SpectralConfig` choose the layers, and whether the basis is saved.

    Raises:
        ValueError: A field is out of range, or two fields contradict each other.
    """

    method: ClassVar[str] = "ssvd"

    portion: float = field(
        default=0.4,
        metadata={
            "help": "Share p of each layer's r = min(in, out) singular triplets to adapt; k = max(1, floor(p r))."
        },
    )
    rank: int | None = field(
        default=None, metadata={"help": "Number k of singular triplets to adapt in every layer; overrides portion."}
    )
    portion_pattern: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "Portions of single layers, by name, end of name or regular expression."},
    )
    rotation: Form = field(
        default="approx",
        metadata={
            "help": "Form of G: approx is I - 2K, strict the Cayley rotation of K, neumann a series for that, "
            "none a free matrix."
        },
    )
    rotate: Rotated = field(
        default="input",
        metadata={
            "help": "Which singular basis G rotates: that of the input, of the output, of both, or of the smaller one."
        },
    )
    outer_portion: float | None = field(
        default=None,
        metadata={
            "help": "With rotate both, the share of triplets whose output directions are rotated; None for portion."
        },
    )
    subspace: Subspace = field(
        default="top",
        metadata={"help": "Which triplets are adapted: top, the first; tail, the last; ends, half of each."},
    )
    train_scale: bool = field(default=True, metadata={"help": "Whether the singular values are trained."})
    svd: Literal["exact", "randomized"] = field(
        default="exact", metadata={"help": "How the weights are decomposed; randomized suits k far below r."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        outer = {} if self.outer_portion is None else {"outer_portion": self.outer_portion}
        for where, portion in {"portion": self.portion, **outer, **self.portion_pattern}.items():
            if not 0 < portion <= 1:
                raise ValueError(f"The portion {portion} ({where}) must lie above 0 and be at most 1.")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"`rank` must be a positive integer, not {self.rank!r}.")
        self.check_choice("rotation", ROTATIONS)
        self.check_choice("rotate", ROTATED)
        self.check_choice("svd", SVD_METHODS)
        self.check_choice("subspace", SUBSPACES)
        if outer and self.rotate != "both":
            raise ValueError(f'`outer_portion` needs `rotate="both"`, not {self.rotate!r}.')
        if (self.svd, self.subspace) not in _DECOMPOSITIONS:
            raise ValueError(f"The randomized decomposition finds the first triplets only, not {self.subspace!r}.")

    def rank_of(self, layer: str, out_features: int, in_features: int) -> int:
        """Return the number of singular triplets of a layer of this name and shape that `portion` or `rank` states.

        Raises:
            ValueError: `rank` exceeds the number of triplets of the layer.
        """
        r = min(out_features, in_features)
        portion = self.portion_pattern.get(get_pattern_key(self.portion_pattern, layer))
        if portion is None and self.rank is not None:
            if self.rank > r:
                raise ValueError(f"`rank` is {self.rank}, but the layer {layer} has only {r} singular triplets.")
            return self.rank
        return portion_rank(self.portion if portion is None else portion, r)

    def rotation_of(self, layer: str, out_features: int, in_features: int) -> tuple[int, Rotation]:
        """Return the number k of triplets that a layer of this name and shape is adapted in, and their rotation.

        Raises:
            ValueError: `rank` exceeds the number of triplets of the layer.
        """
        inner = self.rank_of(layer, out_features, in_features)
        smaller: Side = "input" if out_features >= in_features else "output"
        side = smaller if self.rotate == "smaller" else self.rotate
        if self.outer_portion is None:
            return inner, Rotation(self.rotation, side)
        outer = portion_rank(self.outer_portion, min(out_features, in_features))
        return max(inner, outer), Rotation(self.rotation, side, (inner, outer))


# What `svd` and `subspace` may be together; adapters store the index.
_DECOMPOSITIONS = (("exact", "top"), ("randomized", "top"), ("exact", "tail"), ("exact", "ends"))


def portion_rank(portion: float, r: int) -> int:
    """Return k = max(1, floor(p r)), computed in decimal: 0.29 of 100 is 29, although the binary product is less."""
    return max(1, math.floor(round(portion * r, 6)))


class _Variant(nn.Module):
    """The settings of an adapter that the shapes of its parameters do not show, as a number that is saved with them.

    With other settings the same parameters would compute another function. The number is below 256, which every dtype
    represents exactly. Its digits must not change, since adapters store it.
    """

    number: Tensor

    def __init__(self, config: SSVDConfig, rotation: Rotation, device: torch.device) -> None:
        super().__init__()
        inner, outer = rotation.ranks or (0, 0)
        high, low = divmod(_DECOMPOSITIONS.index((config.svd, config.subspace)), 2)
        number = ROTATIONS.index(rotation.form) + 4 * (outer > inner) + 8 * ROTATED.index(config.rotate)
        number += 32 * low + 64 * config.train_scale + 128 * high
        self.value = float(number)  # remains known on the meta device
        self.register_buffer("number", torch.tensor(self.value, device=device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}number", torch.tensor(self.value))  # older adapters do not store it
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Core(NamedTuple):
    """The arguments of `core_change` and `core_inverse`, in their order."""

    S: Tensor
    theta: Tensor | None
    s: Tensor | None
    rotation: Rotation
    solved: Tensor | None


class SSVDLinear(SpectralLayer):
    """A linear layer and, for each adapter, the trained theta and s; see `ssvd.spectral.rotation`."""

    method = "ssvd"
    adapter_layer_names = ("ssvd_theta", "ssvd_s")
    other_param_names = ("ssvd_basis", "ssvd_variant", "rotation", "decomposition", "token_stride", "_fits", "_solved")

    def __init__(self, base_layer: nn.Linear, fan_in_fan_out: bool = False) -> None:
        super().__init__(base_layer, fan_in_fan_out)
        self._solved: dict[str, Memo[Tensor]] = {}
        self.ssvd_theta = nn.ParameterDict()
        self.ssvd_s = nn.ParameterDict()
        self.rotation: dict[str, Rotation] = {}
        self.ssvd_variant: MutableMapping[str, _Variant] = nn.ModuleDict()  # type: ignore[assignment]

    def create_core(self, adapter_name: str, config: SSVDConfig, layer: str) -> None:
        """Create the trained parameters of an adapter in this layer; see `SpectralLayer`."""
        k, rotation = config.rotation_of(layer, self.out_features, self.in_features)
        size = rotation.size(k)
        if not size and not config.train_scale:
            raise ValueError(
                f"The layer {layer} has nothing to train: with one singular triplet there is no rotation, "
                "so set `train_scale=True`, or a larger `portion` or `rank`."
            )
        self.rotation[adapter_name] = rotation
        self.ssvd_variant[adapter_name] = _Variant(config, rotation, self.get_base_layer().weight.device)
        trained = size + k * config.train_scale
        self.set_basis(adapter_name, config, k, config.svd, config.subspace, trained)
        U = self.bases[adapter_name].U
        for parameters, count in ((self.ssvd_theta, size), (self.ssvd_s, k * config.train_scale)):
            if count:
                start = U.new_zeros(count)
                parameters[adapter_name] = start if config.init_weights else start.normal_(std=0.5)

    def change(self, adapter_name: str) -> Tensor:
        """Return the change C - S of the core, (k, k)."""
        return core_change(*self._core(adapter_name))

    def inverse(self, adapter_name: str) -> Callable[[], Tensor] | None:
        """Return a function that computes C^-1, (k, k); None for the form "none", whose core may be singular."""
        return None if self.rotation[adapter_name].form == "none" else lambda: core_inverse(*self._core(adapter_name))

    def _core(self, name: str) -> _Core:
        theta, s = self.ssvd_theta.get(name), self.ssvd_s.get(name)
        return _Core(self.bases[name].S, theta, s, self.rotation[name], self.solved(name))

    def check_core(self, state_dict: dict[str, Any], prefix: str, adapter_name: str, layer: str) -> None:
        """Check that stored parameters were trained with the settings of this configuration."""
        stored = state_dict.get(f"{prefix}ssvd_variant.{adapter_name}.number")
        if stored is not None and not stored.is_meta and float(stored) != self.ssvd_variant[adapter_name].value:
            raise ValueError(
                f"The adapter was trained with other settings in {layer} than its configuration states: `rotation`, "
                "`rotate`, `outer_portion`, `subspace`, `train_scale` or `svd` differ. Use the configuration that was "
                "saved with it."
            )

    def solved(self, adapter_name: str) -> Tensor | None:
        """Return `solve_rotations` of an adapter, remembered while its parameters do not change; None if not strict.

        One call solves the rotations of all layers of the same size that were used since their last solution.
        """
        is_strict = self.rotation[adapter_name].form == "strict" and adapter_name in self.ssvd_theta
        if not is_strict or torch.compiler.is_compiling():
            return None
        H = self._remembered_solution(adapter_name)
        if H is None:
            this = self, adapter_name
            others = [(layer, name) for layer in list(_used) for name in layer._active() if (layer, name) != this]
            others = [other for other in others if _can_be_solved_with(this, other)]
            H = self._solve([this, *others[: _MOST_SOLVED // self.bases[adapter_name].k ** 2]])
        _used.add(self)
        return H

    def _remembered_solution(self, adapter_name: str) -> Tensor | None:
        return self._solved.setdefault(adapter_name, Memo()).get([self.ssvd_theta[adapter_name]])

    @staticmethod
    @torch.inference_mode(False)
    def _solve(adapters: "list[tuple[SSVDLinear, str]]") -> Tensor:
        """Solve strict rotations of equal size, remember the solutions, and return the first."""
        layer, name = adapters[0]
        S = layer.bases[name].S
        thetas = [layer.ssvd_theta[name] for layer, name in adapters]
        stacked = torch.stack([theta.detach().to(S.dtype) for theta in thetas])
        solved = solve_rotations(stacked, len(S), layer.rotation[name])
        for (layer, name), theta, H in zip(adapters, thetas, solved, strict=True):
            layer._solved[name].set(H, [theta])
            _used.discard(layer)
        return solved[0]

    def _forget(self) -> None:
        super()._forget()
        self._solved = {}

    def orthogonality_error(self, adapter_name: str) -> float:
        """Return the spectral norm of `G^T G - I`; see `ssvd.spectral.orthogonality_error`."""
        if adapter_name not in self.ssvd_theta:
            return 0.0
        theta, k = self.ssvd_theta[adapter_name], self.bases[adapter_name].k
        return orthogonality_error(theta, k, self.rotation[adapter_name])


# Most entries of the matrices that are solved in one call, which takes a few hundred MB of temporary memory.
_MOST_SOLVED = 2**24
# Layers whose strict rotations were used since their last solution.
_used: WeakSet[SSVDLinear] = WeakSet()


def _can_be_solved_with(first: tuple[SSVDLinear, str], second: tuple[SSVDLinear, str]) -> bool:
    """Return whether the second layer's rotation has the kind and size of the first one's, and needs a solution."""
    (layer, name), (other_layer, other_name) = first, second
    theta, other = layer.ssvd_theta[name], other_layer.ssvd_theta.get(other_name)
    return (
        other is not None
        and other_layer.rotation[other_name] == layer.rotation[name]
        and (type(other), other.shape, other.dtype, other.device)
        == (type(theta), theta.shape, theta.dtype, theta.device)
        and other_layer._remembered_solution(other_name) is None
    )


class SSVDConvolution(ConvolutionLayer, SSVDLinear):
    """A convolution, adapted by SSVD."""


class SSVDQuantised(QuantisedLayer, SSVDLinear):
    """A quantised linear layer, adapted by SSVD."""


class SSVDModel(SpectralModel):
    """Adapts the linear layers and convolutions of a model with SSVD, arXiv 2509.02830.

    Args:
        model: The model to adapt, in place.
        config: `SSVDConfig`.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Whether to leave the parameters on the meta device, for loading an adapter over them.
    """

    prefix = "ssvd_"
    tuner_layer_cls = SSVDLinear
    convolution_cls = SSVDConvolution
    quantised_cls = SSVDQuantised

    def orthogonality_errors(self, adapter_name: str = "default") -> dict[str, float]:
        """Return the spectral norm of `G^T G - I` for every layer of an adapter: how far its G are from rotations."""
        return {
            name: module.orthogonality_error(adapter_name)
            for name, module in self.adapted_layers(adapter_name)
            if isinstance(module, SSVDLinear)
        }

    def warn_of_unused(self, adapter_name: str) -> None:
        """Warn of keys of `portion_pattern` that match no adapted layer."""
        names = [name for name, _ in self.adapted_layers(adapter_name)]
        patterns = self.peft_config[adapter_name].portion_pattern
        if unused := [key for key in patterns if not any(re.match(rf"(.*\.)?({key})$", name) for name in names)]:
            warnings.warn(
                f"These keys of portion_pattern match no adapted layer: {', '.join(unused)}.",
                RuntimeWarning,
                stacklevel=2,
            )
