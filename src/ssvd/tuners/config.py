"""Configuration of SSVD."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from ssvd.spectral import ROTATIONS, SVD_METHODS

from .registration import peft_type_of

_LOADING = """\
## Loading

The method of this adapter, SSVD, comes with the package `ssvd`: install it, and `import ssvd` before
`PeftModel.from_pretrained`."""


@dataclass
class SSVDConfig(PeftConfig):
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
            "none", any matrix.
        train_scale: Whether dS is trained; without it only the rotation is.
        svd: "exact", or "randomized", which is cheaper where k is far below r and approximates the last triplets.
        target_modules: Names of the layers to adapt, ends of names, a regular expression, or "all-linear". By default
            all linear layers of the encoder and the decoder of the speech models that are known (but for the output
            projection), and what LoRA adapts in PEFT for other models.
        exclude_modules: Names, ends of names, or a regular expression of layers to leave out.
        modules_to_save: Other modules to train in full and to save with the adapter, for example a new CTC head.
        layers_to_transform: Indices of the transformer layers to adapt.
        layers_pattern: Name of the list of transformer layers, where it is not a usual one.
        fan_in_fan_out: Whether the weights of the layers are stored as (in, out), as in `Conv1D` of transformers.
        init_weights: True starts at the pretrained model; False at random values, for tests.

    Raises:
        ValueError: A field is out of range, or two fields contradict each other.
    """

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
    rotation: Literal["approx", "strict", "none"] = field(
        default="approx",
        metadata={"help": "Form of G: approx is I - 2K, strict the Cayley rotation of K, none a free matrix."},
    )
    train_scale: bool = field(default=True, metadata={"help": "Whether the singular values are trained."})
    svd: Literal["exact", "randomized"] = field(
        default="exact", metadata={"help": "How the weights are decomposed; randomized suits k far below r."}
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "Names, ends of names or a regular expression of the layers to adapt, or 'all-linear'."},
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, ends of names or a regular expression of layers to leave out."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train in full and to save with the adapter."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the transformer layers to adapt; needs a list of target_modules."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name of the list of transformer layers, where it is not a usual one such as 'layers'."},
    )
    fan_in_fan_out: bool = field(
        default=False, metadata={"help": "Whether the weights of the layers are stored as (in, out), as in Conv1D."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "True starts at the pretrained model, False at random values, for tests."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type_of("ssvd")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        for where, portion in {"portion": self.portion, **self.portion_pattern}.items():
            if not 0 < portion <= 1:
                raise ValueError(f"The portion {portion} ({where}) must lie above 0 and be at most 1.")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"`rank` must be a positive integer, not {self.rank!r}.")
        if self.rotation not in ROTATIONS:
            raise ValueError(f"`rotation` must be one of {', '.join(ROTATIONS)}, not {self.rotation!r}.")
        if self.svd not in SVD_METHODS:
            raise ValueError(f"`svd` must be one of {', '.join(SVD_METHODS)}, not {self.svd!r}.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("`layers_pattern` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")

    def rank_of(self, layer: str, out_features: int, in_features: int) -> int:
        """Number k of singular triplets that a layer of this name and shape is adapted in.

        Raises:
            ValueError: `rank` exceeds what the layer has.
        """
        r = min(out_features, in_features)
        portion = self.portion_pattern.get(get_pattern_key(self.portion_pattern, layer))
        if portion is None and self.rank is not None:
            if self.rank > r:
                raise ValueError(f"`rank` is {self.rank}, but the layer {layer} has only {r} singular triplets.")
            return self.rank
        return portion_rank(self.portion if portion is None else portion, r)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, **kwargs)
        # PEFT has no hook for the text of its model card, but has written it by now.
        card = Path(save_directory) / "README.md"
        if card.is_file() and _LOADING not in (text := card.read_text(encoding="utf-8")):
            card.write_text(f"{text.rstrip()}\n\n{_LOADING}\n", encoding="utf-8")


def portion_rank(portion: float, r: int) -> int:
    """k = max(1, floor(p r)), where 0.29 of 100 is 29, whatever the product is in binary."""
    return max(1, math.floor(round(portion * r, 6)))
