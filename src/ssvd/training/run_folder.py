"""The folder of a fine-tuning run: what is in it, and the adapted model from it.

config.yaml         the options, enough to repeat the run
data/               the utterances as trained on and scored (Lhotse cuts), and skipped.jsonl
adapter/            the best adapter (a PEFT folder); model/ instead after full fine-tuning
vocabulary.txt      the symbols of a new head, if it has one; in adapter/ too
base.json           fingerprint of the base model's weights, by which another one is refused
checkpoints/        the last state, from which the run is resumed
scale.json          the scale that was chosen for the adapter, if one was
metrics.csv, tensorboard/
hypotheses/dev.jsonl
result.json
run.lock            held while the run is computed

An adapter that PEFT itself saved, a folder or a name on the Hugging Face hub, serves wherever a run folder does.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ssvd.documents import checked, read_json, read_yaml
from ssvd.errors import UserError
from ssvd.recognisers.loading import Recogniser, load_model
from ssvd.recognisers.quantisation import Bits
from ssvd.recognisers.vocabulary import VOCABULARY, Vocabulary
from ssvd.training.adapter_file import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    belongs_to_base,
    check_adapter,
    load_adapter,
    quantisation_of,
)
from ssvd.training.base_fingerprint import differing_weight
from ssvd.training.interpolation import copied_weights, interpolated, merge_adapter, scale_of, set_weights

BASE = "base.json"


def read_config(run: str | Path) -> dict[str, Any]:
    """Read the options of a run from its `config.yaml`.

    Raises:
        UserError: The folder is not that of a run.
    """
    try:
        config = read_yaml(Path(run) / "config.yaml")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is not a run folder: it has no config.yaml (`ssvd adapt` writes one).") from None
    except ValueError as error:
        raise UserError(f"{run}/config.yaml is not YAML ({error}); correct it, or start a new run.") from None
    if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
        raise UserError(f"{run}/config.yaml does not hold options by name; correct it, or start a new run.")
    return config


class _DecodingOptions(BaseModel):
    """The options of a run that decoding takes over."""

    model_config = ConfigDict(allow_inf_nan=False)

    window: float | None = Field(None, gt=0)
    language: str | None = None
    quantise: Bits | None = None


def stated_options(run: str | Path) -> dict[str, Any]:
    """Return the options of a run as its `config.yaml` states them; none for a PEFT adapter.

    Raises:
        UserError: There is no such run folder or PEFT adapter, or its window, language or quantise is impossible.
    """
    if not _is_run_folder(run):
        adapter_folder(run)
        return {}
    config = read_config(run)
    try:
        checked(_DecodingOptions, config)
    except ValueError as error:
        raise UserError(f"{run}/config.yaml: {error}; correct it.") from None
    return config


def base_model_of(run: str | Path) -> str:
    """Return the base model that a run's `config.yaml`, or a PEFT adapter's `adapter_config.json`, names.

    Raises:
        UserError: There is no such run folder or PEFT adapter, or it names no base model.
    """
    if _is_run_folder(run):
        model = read_config(run).get("model")
    else:
        file = adapter_folder(run) / ADAPTER_CONFIG
        try:
            model = read_json(file)["base_model_name_or_path"]
        except (ValueError, TypeError, KeyError):
            model = None
    if not isinstance(model, str) or not model:
        raise UserError(f"{run} does not name its base model; name the model yourself.")
    return model


def vocabulary_of(run: str | Path) -> Vocabulary | None:
    """Return the symbols of the new head that a run or a PEFT adapter was trained with; None without one.

    Raises:
        UserError: The file of the symbols is damaged.
    """
    files = [Path(run) / VOCABULARY]
    if not _is_run_folder(run) and not Path(run).exists() and (folder := _downloaded(str(run))) is not None:
        files.append(folder / VOCABULARY)
    return next((Vocabulary.read(file) for file in files if file.is_file()), None)


def load_base(
    model: str | Path,
    run: str | Path | None,
    *,
    window: float | None = None,
    language: str | None = None,
    dequantise: bool = False,
) -> Recogniser:
    """Load the base model of a run as `load_model` does.

    Where the run trained a new head, the model has it, all zero; where its base was quantised, the model is too.
    """
    vocabulary, quantise = (None, None) if run is None else (vocabulary_of(run), quantise_of(run))
    return load_model(
        model, window=window, language=language, vocabulary=vocabulary, quantise=quantise, dequantise=dequantise
    )


def quantise_of(run: str | Path) -> str | None:
    """Return how the base model of a run, or of an adapter from a run, was quantised; None if it was not."""
    if _is_run_folder(run):
        return stated_options(run).get("quantise")
    folder = adapter_folder(run)
    with _reasons_in_words(run, "its base model"):
        return quantisation_of(folder)


def holds_model(run: Path) -> bool:
    """Return whether a run has an adapter, or after full fine-tuning a model, to decode with."""
    return (run / "model").is_dir() or (run / "adapter" / ADAPTER_CONFIG).is_file()


def adapter_folder(run: str | Path) -> Path:
    """Return the PEFT folder of a run, of an adapter that PEFT saved, or of one on the hub, which is downloaded.

    Raises:
        UserError: There is none.
    """
    folder = Path(run)
    if _is_run_folder(run):
        if not holds_model(folder):
            raise UserError(f"{run} holds no adapter: the run stopped before it decoded its dev set; resume it.")
        folder = folder / "adapter"
    elif not (folder / ADAPTER_CONFIG).is_file() and not folder.exists():
        folder = _downloaded(str(run)) or folder
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{run} is not a run folder (it has no config.yaml) and not a PEFT adapter (it has no {ADAPTER_CONFIG})."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"The adapter {run} has no {ADAPTER_WEIGHTS}; save it again with `save_pretrained`.")
    return folder


def _is_run_folder(run: str | Path) -> bool:
    return (Path(run) / "config.yaml").is_file()


def _downloaded(name: str) -> Path | None:
    """Return the folder of an adapter of that name on the hub; None where the hub gives none."""
    try:
        return Path(snapshot_download(name, allow_patterns=[ADAPTER_CONFIG, ADAPTER_WEIGHTS, VOCABULARY]))
    except (HFValidationError, OSError):  # not a hub name; unknown or out of reach, which are kinds of OSError
        return None


def load_adapted(
    model: str | Path,
    run: str | Path,
    *,
    window: float | None = None,
    language: str | None = None,
    scale: float | None = None,
    dequantise: bool = False,
) -> Recogniser:
    """Load a base model with an adapter active, or after full fine-tuning the run's own model.

    At another scale than 1, the adapter is merged, and the weights lie between those of the two models.

    Args:
        model: The base checkpoint.
        run: The run folder, whose best adapter is taken; or a PEFT adapter, a folder or a name on the hub.
        window: Length of the input in seconds, instead of the run's.
        language: Language of utterances that do not state theirs, instead of the run's.
        scale: How far to go from the base model to the adapted one, see `ssvd.training.interpolation`; None for the
            scale that the run chose, or 1.
        dequantise: Whether a quantised base is held in float32 after all, so that the adapter can be merged; it is at
            another scale than 1.

    Raises:
        UserError: There is no such adapter, it does not fit the base model, or the scale is not possible.
    """
    options, scale = stated_options(run), scale_of(run, scale)
    window, language = window or options.get("window"), language or options.get("language")
    speech = _load_adapted(model, run, window, language, dequantise or scale != 1)
    if scale != 1:
        merge_adapter(speech)
        base = load_base(model, run, window=window, language=language, dequantise=True).module
        set_weights(speech.module, interpolated(copied_weights(base), copied_weights(speech.module), scale))
    return speech


def _load_adapted(
    model: str | Path, run: str | Path, window: float | None, language: str | None, dequantise: bool
) -> Recogniser:
    if has_own_model(run):
        return load_model(Path(run) / "model", window=window, language=language)
    speech = load_base(model, run, window=window, language=language, dequantise=dequantise)
    check_run(run, speech.module, model)
    with _reasons_in_words(run, model):
        speech.module = load_adapter(speech.module, adapter_folder(run))
    return speech


@contextmanager
def _reasons_in_words(run: str | Path, model: str | Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(f"The adapter of {run} does not load onto {model}: {error}.") from error


def has_own_model(run: str | Path) -> bool:
    """Return whether a run holds a whole model instead of an adapter, as after full fine-tuning."""
    return _is_run_folder(run) and (Path(run) / "model").is_dir()


def check_run(run: str | Path, module: nn.Module, model: str | Path) -> None:
    """Check that a run has an adapter, that its files belong together, and that it belongs to this base model.

    Only a run states a fingerprint of its whole base model. Of an adapter that PEFT saved, the shapes are compared and,
    when it is loaded, the fingerprints of SSVD and SVFT.

    Args:
        run: A run folder, or a PEFT adapter.
        module: The base model, not wrapped.
        model: Its name.

    Raises:
        UserError: There is no adapter, or it belongs to another base model.
    """
    if has_own_model(run):
        return
    folder = adapter_folder(run)
    if _is_run_folder(run):
        _check_base(run, folder, module, model)
    with _reasons_in_words(run, model):
        check_adapter(module, folder)


def _check_base(run: str | Path, folder: Path, module: nn.Module, model: str | Path) -> None:
    try:
        stored = read_json(Path(run) / BASE)
        differing = differing_weight(module, stored)
    except (OSError, ValueError) as error:
        raise UserError(f"{run}/{BASE} cannot be read ({error}); copy the run folder whole.") from error
    if differing is not None:
        raise UserError(
            f"The adapter of {run} was trained on another base model than {model}: use the one that its config.yaml "
            f"names ({read_config(run).get('model')}), with the weights that it had at the time. {differing} differs."
        )
    with _reasons_in_words(run, model):
        if not belongs_to_base(folder, stored):
            raise ValueError(f"the run's {BASE} is that of another adapter; copy the run folder whole")


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder in the place of a former one, which stays whole until the new one is."""
    partial, old = target.with_name(target.name + ".partial"), target.with_name(target.name + ".old")
    for leftover in (partial, old):  # of a run that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    write(partial)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
