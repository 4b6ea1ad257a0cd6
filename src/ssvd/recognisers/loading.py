"""Speech recognisers behind one interface, whatever family their checkpoint belongs to."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoConfig

from ssvd.errors import UserError
from ssvd.recognisers.ctc import Ctc
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding, Fallback, Transcript
from ssvd.recognisers.espnet_checkpoint import Checkpoint, espnet_importable, find_checkpoint
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.recognisers.whisper import Batch, Whisper

__all__ = [
    "DEFAULT_DECODING",
    "Batch",
    "Decoding",
    "Fallback",
    "Recogniser",
    "SpecAugment",
    "Transcript",
    "Whisper",
    "load_check",
    "load_model",
    "load_outline",
]

# Not WavLM, whose attention takes weights out of their layers and so goes past adapters; nor data2vec, whose texts
# depend on how much padding an utterance has.
FAMILIES: dict[str, type[Whisper] | type[Ctc]] = {"whisper": Whisper, "wav2vec2": Ctc, "hubert": Ctc}


class Recogniser(Protocol):
    """What training and decoding need of a recogniser; a *cut* is one utterance as Lhotse describes it.

    Attributes:
        module: The network that PEFT adapts; assign the PEFT-wrapped one, and `loss` and `transcribe` use it.
        spec_augment: Masking of the features by `loss` in training mode; None, the default, for none.
        sampling_rate: Hz.
        window: The longest utterance that is read at once, in seconds.
        language: Code of the one language that it writes; None where that depends on the utterance.
        has_fallback: Whether decoding searches again for texts that repeat themselves; see `Fallback`.
    """

    module: nn.Module
    spec_augment: SpecAugment | None
    sampling_rate: int
    window: float
    language: str | None
    has_fallback: bool

    def adaptable_layers(self) -> list[str]:
        """Names in `module`, not yet wrapped, of the linear layers that an adapter may change."""

    def check(self, cut: Any) -> str | None:
        """Why the utterance cannot be trained on, or None; it reads no audio."""

    def input_seconds(self, duration: float) -> float:
        """Seconds that the network reads for an utterance of `duration` alone in its batch: with its padding."""

    def collate(self, cuts: Iterable[Any], *, text: bool = True) -> Any:
        """Utterances as one batch: with `text` to train on or decode, without it only to decode."""

    def loss(self, batch: Any, *, label_smoothing: float | None = None) -> torch.Tensor:
        """The mean loss over the batch, a float32 scalar; with the family's own label smoothing by default."""

    def decode(self, batch: Any, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """The text of each utterance of the batch, and what the first search found."""

    def transcribe(self, batch: Any, decoding: Decoding = DEFAULT_DECODING) -> list[str]:
        """The text of each utterance of the batch."""

    def transcribe_audio(
        self,
        samples: np.ndarray,
        decoding: Decoding = DEFAULT_DECODING,
        *,
        language: str | None = None,
        batch_size: int = 8,
    ) -> str:
        """The text of mono samples of any length at `sampling_rate`."""

    def save(self, folder: str | Path) -> None:
        """Write the model, with its adapter merged, as a plain checkpoint of its family."""

    @staticmethod
    def loading_code(name: str) -> str:
        """Python by which a PEFT user loads the checkpoint's network as `model`, for the cards of adapters."""


def load_model(
    name_or_path: str | Path, *, window: float | None = None, language: str | None = None, task: str = "transcribe"
) -> Recogniser:
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
    if (checkpoint := _espnet_checkpoint(name)) is not None:
        with espnet_importable():
            from ssvd.recognisers.owsm import load_owsm
        return load_owsm(checkpoint, window=window, language=language, task=task)
    family = _family(name)
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", gone before it is read
    return family.from_pretrained(name, window=window, language=language, task=task)


def load_outline(name_or_path: str | Path) -> tuple[nn.Module, list[str]]:
    """A recogniser's network without its weights, on the meta device, and the names of its adaptable layers.

    Args:
        name_or_path: A checkpoint folder, its `config.json` (Transformers) or `config.yaml` (ESPnet), or the name of a
            model on the hub.

    Raises:
        UserError: There is no such checkpoint, or its family is not supported.
    """
    name = str(name_or_path)
    if (checkpoint := _espnet_checkpoint(name)) is not None:
        with espnet_importable():
            from ssvd.recognisers.owsm import Owsm
        return Owsm.outline(checkpoint)
    return _family(name).outline(name)


def load_check(
    name_or_path: str | Path, *, window: float | None = None, language: str | None = None
) -> Callable[[Any], str | None]:
    """`Recogniser.check` of a checkpoint: why a cut cannot be trained on, or None.

    Only OWSM takes its weights for it, to count the frames of its encoder. Arguments and errors are those of
    `load_model`.
    """
    name = str(name_or_path)
    if _espnet_checkpoint(name) is not None:
        return load_model(name, window=window, language=language).check
    return _family(name).without_weights(name, window=window, language=language).check


def _espnet_checkpoint(name: str) -> Checkpoint | None:
    """The ESPnet model of a folder, file or hub name, fetched where it is not there yet; None for other models."""
    if Path(name).exists():
        return None if (Path(name) / "config.json").is_file() else find_checkpoint(Path(name))
    try:
        hf_hub_download(name, "meta.yaml")  # which only ESPnet's models have
        return find_checkpoint(Path(snapshot_download(name)))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None


def _family(name: str) -> type[Whisper] | type[Ctc]:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"The folder {name} holds neither the config.json of a Transformers checkpoint nor the meta.yaml or "
            "config.yaml of an ESPnet one."
        )
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
