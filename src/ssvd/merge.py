"""Merge a base model and an adapter into one plain checkpoint, or write the adapter in another format."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from ssvd.errors import UserError
from ssvd.exports.ctranslate2 import Quantization, save_ctranslate2
from ssvd.exports.espnet_ssvd import Converted, read_espnet_ssvd, write_espnet_ssvd
from ssvd.exports.lora import save_lora
from ssvd.files import check_new, is_disk_error, whole_folder
from ssvd.recognisers.espnet_checkpoint import find_checkpoint
from ssvd.recognisers.loading import load_model
from ssvd.training.interpolation import merge_adapter, scale_of
from ssvd.training.run_folder import load_adapted

Checkpoint = Literal["transformers", "espnet", "ctranslate2"]


def merge(
    model: str | Path,
    run: str | Path,
    out: Path,
    *,
    to: Checkpoint | None = None,
    scale: float | None = None,
    quantization: Quantization | None = None,
) -> Checkpoint:
    """Write the adapted model as a checkpoint that needs nothing of this package, and return its format.

    Args:
        model: The base checkpoint.
        run: The run folder, or a PEFT adapter: a folder or a name on the hub.
        out: Folder for the merged checkpoint, new or empty.
        to: Format of the checkpoint; None for that of the base model, Transformers or ESPnet.
        scale: How far to go from the base model to the adapted one; None for the run's chosen scale, or 1.
        quantization: Type of the weights for CTranslate2; None for that of the base model.

    Raises:
        UserError: `out` is not empty, the adapter does not fit the model, the model cannot be written in the format,
            or the disk is full; `out` is then as before.
    """
    check_new(out)
    if quantization is not None and to != "ctranslate2":
        raise UserError(f"Only checkpoints of CTranslate2 are quantised, not those of {to or 'the base model'}.")
    speech = load_adapted(model, run, scale=scale, dequantise=True)
    if to not in (None, "ctranslate2", speech.checkpoint_format):
        raise UserError(f"{model} is a checkpoint of {speech.checkpoint_format} and cannot be written as one of {to}.")
    merge_adapter(speech)
    with _written(out) as folder:
        if to == "ctranslate2":
            save_ctranslate2(speech, folder, quantization)
        else:
            speech.save(folder)
    return to or speech.checkpoint_format


def write_lora(
    model: str | Path, run: str | Path, out: Path, *, rank: int | None = None, scale: float | None = None
) -> float:
    """Write the adapter of a run as one of LoRA, which PEFT alone loads, and return the error of the conversion.

    Args:
        model: The base checkpoint.
        run: The run folder, or a PEFT adapter: a folder or a name on the hub.
        out: Folder for the adapter, new or empty.
        rank: Rank of every layer; None for the smallest that keeps all of SSVD.
        scale: Factor of the changes; None for the run's chosen scale, or 1.

    Returns:
        The error of the changes of the weights, relative to them, a fraction.

    Raises:
        UserError: As `merge`; or the method has no equivalent in LoRA.
    """
    check_new(out)
    scale = scale_of(run, scale)
    speech = load_adapted(model, run, scale=1, dequantise=True)
    with _written(out) as folder:
        return save_lora(speech, folder, rank=rank, scale=scale)


def write_authors(model: str | Path, run: str | Path, out: Path) -> None:
    """Write a model of OWSM's kind and its adapter of SSVD as the method's authors' branch of ESPnet saves them.

    Args:
        model: The base checkpoint.
        run: The run folder, or a PEFT adapter: a folder or a name on the hub.
        out: Folder for the model, new or empty.

    Raises:
        UserError: As `merge`; or their format has no place for the adapter.
    """
    check_new(out)
    if scale_of(run) != 1:
        raise UserError(f"{run} is used at the scale {scale_of(run):g}, which a rotation cannot be written at.")
    speech = load_adapted(model, run, scale=1)
    with _written(out) as folder:
        write_espnet_ssvd(speech, folder)


def read_authors(model: str | Path, trained: str | Path, out: Path) -> Converted:
    """Write an adapter of SSVD that the authors' branch of ESPnet trained as a PEFT adapter with the same outputs.

    Args:
        model: The base checkpoint.
        trained: The folder of their experiment, or its .pth file beside config.yaml.
        out: Folder for the adapter, new or empty.

    Returns:
        What the adapter is like, and the error of the conversion.

    Raises:
        UserError: As `merge`; or their files hold something that an adapter of SSVD cannot.
    """
    check_new(out)
    theirs = find_checkpoint(Path(trained))
    if theirs is None:
        raise UserError(f"{trained} holds no model of ESPnet: give its folder with config.yaml, or its .pth file.")
    speech = load_model(model)
    with _written(out) as folder:
        return read_espnet_ssvd(speech, str(model), theirs, folder)


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Make a folder whole or not at all, and tell of a full disk in a sentence."""
    try:
        with whole_folder(out) as folder:
            yield folder
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_error(error):
            raise
        raise UserError(f"{out} cannot be written ({error}); free some space, and merge again.") from error
