"""Speech recognisers behind one interface, whatever family their checkpoint belongs to."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoConfig

from ..errors import UserError
from .whisper import Batch, SpecAugment, Whisper

__all__ = ["Batch", "SpecAugment", "SpeechModel", "Whisper", "load_check", "load_model", "load_outline"]

FAMILIES = {"whisper": Whisper}


class SpeechModel(Protocol):
    """What training and decoding need of a recogniser; a *cut* is one utterance as Lhotse describes it.

    Attributes:
        module: The network that PEFT adapts; assign the PEFT-wrapped one, and `loss` and `transcribe` use it.
        spec_augment: Masking of the features by `loss` in training mode; None, the default, for none.
        sampling_rate: Hz.
        window: The longest utterance that is read at once, in seconds.
        language: Code of the one language that it writes; None where that depends on the utterance.
    """

    module: nn.Module
    spec_augment: SpecAugment | None
    sampling_rate: int
    window: float
    language: str | None

    def adaptable_layers(self) -> list[str]:
        """Names in `module`, not yet wrapped, of the linear layers that an adapter may change."""

    def check(self, cut: Any) -> str | None:
        """Why the utterance cannot be trained on, or None; it reads no audio."""

    def collate(self, cuts: Iterable[Any], *, text: bool = True) -> Any:
        """Utterances as one batch: with `text` to train on or decode, without it only to decode."""

    def loss(self, batch: Any, *, label_smoothing: float = 0.0) -> torch.Tensor:
        """The mean loss over the labels of the batch, a float32 scalar."""

    def transcribe(self, batch: Any, *, beams: int = 1, max_new_tokens: int | None = None) -> list[str]:
        """The text of each utterance of the batch."""

    def transcribe_audio(
        self,
        samples: np.ndarray,
        *,
        language: str | None = None,
        beams: int = 1,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
    ) -> str:
        """The text of mono samples of any length at `sampling_rate`."""

    def save(self, folder: str | Path) -> None:
        """Write the model, with its adapter merged, as a plain Transformers checkpoint."""


def load_model(
    name_or_path: str | Path, *, window: float | None = None, language: str | None = None, task: str = "transcribe"
) -> SpeechModel:
    """A recogniser in float32 and evaluation mode, from a checkpoint folder or the name of a model on the hub.

    Args:
        name_or_path: The checkpoint; its own `config.json` decides the family.
        window: Length of the input in seconds, where it shall be shorter than the model's own.
        language: Name or code, of utterances that do not state theirs; models of one language ignore both.
        task: "transcribe", or "translate" (into English).

    Raises:
        UserError: there is no such checkpoint, its family is not supported, it has no safetensors weights, or an option
            does not suit it.
    """
    name = str(name_or_path)
    family = _family(name)
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", gone before it is read
    return family.from_pretrained(name, window=window, language=language, task=task)


def load_outline(name_or_path: str | Path) -> tuple[nn.Module, list[str]]:
    """A recogniser's network without its weights, on the meta device, and the names of its adaptable layers.

    Args:
        name_or_path: A checkpoint folder, the `config.json` of one, or the name of a model on the hub.

    Raises:
        UserError: There is no such checkpoint, or its family is not supported.
    """
    return _family(str(name_or_path)).outline(str(name_or_path))


def load_check(
    name_or_path: str | Path, *, window: float | None = None, language: str | None = None
) -> Callable[[Any], str | None]:
    """`SpeechModel.check` of a checkpoint, without its weights: why a cut cannot be trained on, or None.

    Arguments and errors are those of `load_model`.
    """
    name = str(name_or_path)
    return _family(name).without_weights(name, window=window, language=language).check


def _family(name: str) -> type[Whisper]:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"The folder {name} holds no config.json: give the folder of a Transformers checkpoint.")
    try:
        family = AutoConfig.from_pretrained(name).model_type
    except OSError as error:
        raise UserError(
            f"The config.json of {name} is not valid JSON."
            if Path(name).exists()
            else f"There is no folder {name}, and the hub gave no model of that name (unknown or out of reach)."
        ) from error
    except ValueError:  # a family that Transformers does not know, or none stated
        family = "unknown"
    if family not in FAMILIES:
        raise UserError(f"The checkpoint {name} is of the family {family!r}; supported: {', '.join(FAMILIES)}.")
    return FAMILIES[family]
