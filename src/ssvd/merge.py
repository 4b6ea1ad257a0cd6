"""Merge a base model and an adapter into one plain checkpoint."""

from pathlib import Path

from safetensors import SafetensorError

from ssvd.errors import UserError
from ssvd.files import check_new, is_disk_error, whole_folder
from ssvd.training.interpolation import merge_adapter
from ssvd.training.run_folder import load_adapted


def merge(model: str | Path, run: str | Path, out: Path, *, scale: float | None = None) -> None:
    """Write the adapted model as a checkpoint of Transformers or ESPnet that needs nothing of this package.

    Args:
        model: The base checkpoint.
        run: The run folder, or a PEFT adapter: a folder or a name on the hub.
        out: Folder for the merged checkpoint, new or empty.
        scale: How far to go from the base model to the adapted one; None for the run's chosen scale, or 1.

    Raises:
        UserError: `out` is not empty, the adapter does not fit the model, or the disk is full; `out` is then as before.
    """
    check_new(out)
    speech = load_adapted(model, run, scale=scale)
    merge_adapter(speech)
    try:
        with whole_folder(out) as folder:
            speech.save(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_error(error):
            raise
        raise UserError(f"{out} cannot be written ({error}); free some space, and merge again.") from error
