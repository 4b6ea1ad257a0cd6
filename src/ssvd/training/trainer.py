"""The Lightning trainer of a run: its devices and precision, checkpoints that a kill cannot damage, and progress."""

import logging
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from ssvd.errors import UserError
from ssvd.files import whole_file
from ssvd.hardware import keep_freed_memory, pick_device
from ssvd.training.memory import precision_of
from ssvd.training.module import Adaptation
from ssvd.training.placement import ALONE, Placement
from ssvd.training.progress import Progress
from ssvd.training.trackers import Tracking, build_trackers
from ssvd_options import AdaptOptions


def build_trainer(
    options: AdaptOptions, run: Path, progress: Progress, placement: Placement = ALONE
) -> lightning.Trainer:
    """Return the trainer of a run, which writes checkpoints to its folder, and curves to its trackers.

    Raises:
        ModuleNotFoundError: The package of a tracker is not installed.
    """
    return lightning.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}[options.device],
        devices=placement.devices,
        num_nodes=placement.nodes,
        strategy=_strategy(placement),
        # Of full fine-tuning; on a CPU there is no such layer.
        sync_batchnorm=placement.size > 1 and pick_device(options.device).type == "cuda",
        use_distributed_sampler=False,  # ours divide batches that are the same for any number of processes
        precision=precision_of(options),
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulation,
        gradient_clip_val=options.clip,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,  # each epoch has batches of its own
        log_every_n_steps=10,
        plugins=[_WholeFiles(), *([placement.environment()] if placement.size > 1 else [])],
        logger=build_trackers(options, run),
        callbacks=[
            # After validation, so that the state includes its result.
            ModelCheckpoint(run / "checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False),
            _Reporting(progress),
            Tracking(run),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _strategy(placement: Placement) -> str | DDPStrategy:
    if placement.size == 1:
        return "auto"
    # Frozen bases are the same everywhere, so nothing but gradients is sent. LayerDrop and masking leave out
    # parameters, on one process and not on another. The others wait while the first reads a corpus, or decomposes.
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=True, timeout=timedelta(hours=6))


def prepare_process() -> None:
    """Set up this process for training: no messages of Lightning, and on a CPU memory that is kept once freed."""
    keep_freed_memory()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings(
        "ignore",
        message=".*LeafSpec.*|.*lr_scheduler.step.*|Checkpoint directory.*|`broadcast_buffers` is deprecated.*"
        "|.*LoRA tensor.* have invalid shape.*",  # of layers whose rank AdaLoRA has pruned to 0
    )


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that a kill leaves as they were; Lightning's own way goes through the folder of temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            UserError: It is damaged.
        """
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
            if not {"state_dict", "progress"} <= checkpoint.keys():
                raise ValueError("it is not the state of a run")
        except Exception as error:  # torch and its unpickler raise many kinds
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UserError(f"{path} is damaged ({reason}); remove it, and resume to begin the run again.") from error
        return checkpoint


class _Reporting(lightning.Callback):
    """Reports how far training and the decoding of the dev utterances have come."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._decoded = 0

    def on_train_start(self, trainer: lightning.Trainer, module: Adaptation) -> None:
        """Report where training begins."""
        self._progress.advance("training", trainer.global_step, module.updates)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Adaptation, outputs: Any, batch: Any, index: int
    ) -> None:
        """Report the update, the epoch and the loss."""
        detail = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {module.recent_loss():.3f}"
        self._progress.advance("training", trainer.global_step, module.updates, detail)

    def on_validation_start(self, trainer: lightning.Trainer, module: Adaptation) -> None:
        """Report that decoding begins."""
        self._decoded = 0
        self._progress.advance("decoding dev", 0, len(module.data.dev))

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Adaptation, outputs: Any, batch: Any, *index: int
    ) -> None:
        """Report how many utterances are decoded."""
        self._decoded += len(batch.ids) * trainer.world_size  # the other processes are about as far
        self._progress.advance("decoding dev", min(self._decoded, len(module.data.dev)), len(module.data.dev))

    def on_validation_end(self, trainer: lightning.Trainer, module: Adaptation) -> None:
        """Report the end of decoding, where the first process has decoded less than its share."""
        if self._decoded < len(module.data.dev):
            self._progress.advance("decoding dev", len(module.data.dev), len(module.data.dev))
