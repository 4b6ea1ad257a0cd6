"""Trackers that show the curves of runs: Lightning's own loggers.

They are told the loss, the dev WER, and what the model card of an adapter says: no texts and no paths.
"""

import json
import os
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ssvd.errors import UserError
from ssvd.files import write_json
from ssvd.training.model_card import public_name
from ssvd.training.module import Adaptation
from ssvd_options import AdaptOptions

TRACKED = "trackers.json"  # the ids of a run, by which it is continued where it is resumed
_PROJECT = "ssvd"


def build_trackers(options: AdaptOptions, run: Path) -> list[Logger]:
    """Return the trackers of a run, those of earlier work on it where it is resumed; nothing is written yet.

    Raises:
        ModuleNotFoundError: The package of a tracker is not installed.
        UserError: A tracker has no address.
    """
    file = run / TRACKED
    ids: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
    return [_BUILDERS[name](run, ids.get(name)) for name in dict.fromkeys(options.log)]


def _tensorboard(run: Path, known: str | None) -> Logger:
    return TensorBoardLogger(run, name="tensorboard", version="")


def _wandb(run: Path, known: str | None) -> Logger:
    wandb: Any = import_module("wandb")
    # Otherwise W&B would upload the command line with its paths, and whatever is printed.
    settings = wandb.Settings(
        console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_save_requirements=False
    )
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    return WandbLogger(run.name, run, version=known or uuid4().hex[:8], project=project, settings=settings)


def _mlflow(run: Path, known: str | None) -> Logger:
    import_module("mlflow")
    if not (address := os.environ.get("MLFLOW_TRACKING_URI")):
        raise UserError(
            "The tracker mlflow needs a server: set the environment variable MLFLOW_TRACKING_URI to its address, such "
            "as http://localhost:5000."
        )
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    tags = {"mlflow.source.name": "ssvd adapt"}  # otherwise the path of the program
    return MLFlowLogger(experiment, run.name, address, tags, run_id=known)


_BUILDERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


class Tracking(lightning.Callback):
    """Tells the trackers what run it is, and remembers their ids in the run folder."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def on_fit_start(self, trainer: lightning.Trainer, module: Adaptation) -> None:
        """Write the hyperparameters and the ids."""
        if not trainer.is_global_zero:
            return
        options = module.options
        facts = {
            "model": public_name(options.model),
            "train": ", ".join(map(public_name, options.train)),
            "method": options.method,
            "budget": options.budget,
            "learning_rate": module.learning_rate,
            "epochs": options.epochs,
            "ssvd": version("ssvd"),
        }
        ids = {}
        for tracker in trainer.loggers:
            tracker.log_hyperparams(facts)
            if isinstance(tracker, WandbLogger):
                ids["wandb"] = tracker.experiment.id
            elif isinstance(tracker, MLFlowLogger):
                ids["mlflow"] = tracker.run_id
        if ids:
            write_json(self._run / TRACKED, ids)

    def teardown(self, trainer: lightning.Trainer, module: Adaptation, stage: str) -> None:
        """End the run of W&B, which would take in those that follow in the process."""
        if stage == "fit" and trainer.is_global_zero:
            for tracker in trainer.loggers:
                if isinstance(tracker, WandbLogger):
                    tracker.experiment.finish()
