"""The fields that the configurations of this package's methods share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from peft import PeftConfig

from ssvd.tuners.registration import peft_type_of

_LOADING = """\
## Loading

The method of this adapter, {name}, comes with the package `ssvd`: install it, and `import ssvd` before
`PeftModel.from_pretrained`."""


@dataclass
class LayerConfig(PeftConfig):
    """Base of the configurations of methods that adapt single layers.

    Args:
        target_modules: Names of the layers to adapt, ends of names, a regular expression, or "all-linear".
        exclude_modules: Names, ends of names, or a regular expression of layers to leave out.
        modules_to_save: Other modules to train in full and to save with the adapter, for example a new CTC head.
        layers_to_transform: Indices of the transformer layers to adapt.
        layers_pattern: Name of the list of transformer layers, if it is not a usual one.
        init_weights: True starts at the pretrained model, False at random values, for tests.

    Raises:
        ValueError: A field is out of range, or two fields contradict each other.
    """

    method: ClassVar[str]

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
        metadata={"help": "Name of the list of transformer layers, if it is not a usual one such as 'layers'."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "True starts at the pretrained model, False at random values, for tests."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type_of(self.method)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("`layers_pattern` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Raise ValueError if the field of that name is none of the choices."""
        if getattr(self, name) not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the configuration, and add to the model card how the adapter is loaded."""
        super().save_pretrained(save_directory, **kwargs)
        # PEFT has no hook for its model card, but has written the card before it calls this.
        card, loading = Path(save_directory) / "README.md", _LOADING.format(name=self.method.upper())
        if card.is_file() and loading not in (text := card.read_text(encoding="utf-8")):
            card.write_text(f"{text.rstrip()}\n\n{loading}\n", encoding="utf-8")


@dataclass
class SpectralConfig(LayerConfig):
    """Base of the configurations of methods that train a core in the frozen singular basis of each weight.

    The default of `target_modules` for known speech models is all linear layers of encoder and decoder except the
    output projection; for other models, it is PEFT's default for LoRA.

    Args:
        fan_in_fan_out: Whether the weights of the layers are stored as (in, out), as in `Conv1D` of transformers.
        basis: "recompute" decomposes the base weights again when the adapter is loaded, and verifies the singular
            vectors; "stored" saves them with the adapter, in + out numbers per triplet, so that it can be loaded onto a
            rounded or quantised copy of the base model.
        token_stride: If above 1, the gradient of the core is estimated from every token_stride-th token of a batch,
            starting at a random one: unbiased, cheaper and noisier. See docs/performance.md for measurements.

    Raises:
        ValueError: A field is out of range, or two fields contradict each other.
    """

    fan_in_fan_out: bool = field(
        default=False, metadata={"help": "Whether the weights of the layers are stored as (in, out), as in Conv1D."}
    )
    basis: Literal["recompute", "stored"] = field(
        default="recompute",
        metadata={
            "help": "recompute decomposes the base weights again and verifies the singular vectors; stored saves them "
            "with the adapter, for loading onto a rounded or quantised copy."
        },
    )
    token_stride: int = field(
        default=1,
        metadata={
            "help": "If above 1, the gradient of the core is estimated from every token_stride-th token of a batch."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("basis", ("recompute", "stored"))
        if not isinstance(self.token_stride, int) or self.token_stride < 1:
            raise ValueError(f"`token_stride` must be a positive integer, not {self.token_stride!r}.")
