"""Merge a base model and an adapter into one plain checkpoint."""

from pathlib import Path

from ssvd.errors import UserError
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
        UserError: `out` is not empty, or the adapter does not fit the model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; give a new folder.")
    speech = load_adapted(model, run, scale=scale)
    merge_adapter(speech)
    speech.save(out)
