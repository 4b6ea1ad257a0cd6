"""Speech recognisers behind one interface, whatever family their checkpoint belongs to."""

from collections.abc import Callable, Sequence
from pathlib import Path

import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser
from ssvd.recognisers.espnet_checkpoint import Checkpoint, espnet_importable, find_checkpoint
from ssvd.recognisers.families import Loader, find_family
from ssvd.recognisers.layers import USUAL_GROUPS, chosen_layers
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.transformers_checkpoint import read_json
from ssvd.recognisers.vocabulary import Vocabulary

__all__ = ["Recogniser", "load_check", "load_model", "load_outline"]


def load_model(
    name_or_path: str | Path,
    *,
    window: float | None = None,
    language: str | None = None,
    task: str = "transcribe",
    vocabulary: Vocabulary | None = None,
    quantise: str | None = None,
    dequantise: bool = False,
) -> Recogniser:
    """Load a recogniser in float32 and evaluation mode, from a checkpoint folder or the name of a model on the hub.

    Args:
        name_or_path: The checkpoint; its own `config.json` decides the family.
        window: Length of the input in seconds; None for the model's own.
        language: Name or code, of utterances that do not state theirs; models of one language ignore both.
        task: "transcribe", or "translate" (into English).
        vocabulary: Symbols for a new head in the place of the checkpoint's; see `Recogniser.with_vocabulary`.
        quantise: "8bit" or "4bit", to quantise the linear layers of encoder, projector and decoder; None for float32.
        dequantise: Whether the rounded weights are held in float32 after all, as for merging an adapter.

    Raises:
        UserError: there is no such checkpoint, its family is not supported, it has no safetensors weights, or an option
            does not suit it.
    """
    name = str(name_or_path)
    if (checkpoint := _espnet_checkpoint(name)) is not None:
        if quantise is not None:
            raise UserError(f"{name} is a model of ESPnet, whose weights are not quantised: leave quantise out.")
        with espnet_importable():
            from ssvd.recognisers.owsm import Owsm, load_owsm
        if vocabulary is not None:
            return Owsm.with_vocabulary(name, vocabulary)
        return load_owsm(checkpoint, window=window, language=language, task=task)
    family = _family(name)
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", gone before it is read
    quantisation = None
    if quantise is not None:
        quantisation = Quantisation.of(quantise, *load_outline(name), dequantise=dequantise)
    if vocabulary is not None:
        return family.with_vocabulary(name, vocabulary, window=window, language=language, quantisation=quantisation)
    return family.from_pretrained(name, window=window, language=language, task=task, quantisation=quantisation)


def load_outline(name_or_path: str | Path, wanted: Sequence[str] = USUAL_GROUPS) -> tuple[nn.Module, list[str]]:
    """Return a recogniser's network without its weights, on the meta device, and the names of the chosen layers.

    Args:
        name_or_path: A checkpoint folder, its `config.json` (Transformers) or `config.yaml` (ESPnet), or the name of a
            model on the hub.
        wanted: The layers, as `ssvd.recognisers.layers.chosen_layers` takes them.

    Raises:
        UserError: There is no such checkpoint, its family is not supported, or it has no such layers.
    """
    name = str(name_or_path)
    if (checkpoint := _espnet_checkpoint(name)) is not None:
        with espnet_importable():
            from ssvd.recognisers.owsm import Owsm
        module, groups = Owsm.outline(checkpoint)
    else:
        module, groups = _family(name).outline(name)
    return module, chosen_layers(groups, wanted)


def load_check(
    name_or_path: str | Path,
    *,
    window: float | None = None,
    language: str | None = None,
    vocabulary: Vocabulary | None = None,
) -> Callable[[Cut], str | None]:
    """Return `Recogniser.check` of a checkpoint, which says why a cut cannot be trained on.

    Only OWSM needs its weights for it, to count the frames of its encoder. Arguments and errors are those of
    `load_model`.
    """
    name = str(name_or_path)
    if _espnet_checkpoint(name) is not None:
        return load_model(name, window=window, language=language, vocabulary=vocabulary).check
    family = _family(name)
    if vocabulary is not None:
        return family.with_vocabulary(name, vocabulary, window=window, language=language, has_weights=False).check
    return family.without_weights(name, window=window, language=language).check


def _espnet_checkpoint(name: str) -> Checkpoint | None:
    """Return the ESPnet model of a folder, file or hub name, which is fetched if need be; None for other models."""
    if Path(name).exists():
        return None if (Path(name) / "config.json").is_file() else find_checkpoint(Path(name))
    try:
        hf_hub_download(name, "meta.yaml")  # which only ESPnet's models have
        return find_checkpoint(Path(snapshot_download(name)))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None


def _family(name: str) -> Loader:
    """Return the class that loads a checkpoint of Transformers, by the `model_type` of its config."""
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"The folder {name} holds neither the config.json of a Transformers checkpoint nor the meta.yaml or "
            "config.yaml of an ESPnet one."
        )
    try:
        config = read_json(name, "config.json")
    except OSError:  # no name of a model
        config = None
    if config is None:
        raise UserError(f"There is no folder {name}, and the hub gave no model of that name (unknown or out of reach).")
    return find_family(name, str(config.get("model_type", "unknown"))).loader()
