"""Trackers of a run: what they are told, and that a resumed run goes on in them."""

import json
import sys
import time

import lightning
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from ssvd.training.trackers import TRACKED, Tracking, build_trackers
from ssvd_options import AdaptOptions

SECRET = "secret-folder"


class Tiny(lightning.LightningModule):
    """Something to train, with what the trackers ask of an adaptation."""

    def __init__(self, options):
        super().__init__()
        self.options, self.learning_rate = options, 0.125
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Train a run for two updates with these trackers: the run folder."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    corpus = tmp_path / SECRET / "children.csv"
    model = corpus.parent / "whisper-small"
    model.mkdir(parents=True)
    corpus.write_text("")
    monkeypatch.setattr(sys, "argv", ["ssvd", "adapt", str(corpus)])

    def run(*names):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        options = AdaptOptions(model=str(model), train=[str(corpus)], log=list(names))
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=2,
            log_every_n_steps=1,
            logger=build_trackers(options, folder),
            callbacks=[Tracking(folder)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Tiny(options), DataLoader(torch.ones(2, 1)))
        return folder

    return run


def files_with(folder, text):
    """Files below a folder that hold a text, and their names."""
    found = [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    return [*found, *(path for path in folder.rglob("*") if text in path.name)]


def test_wandb_is_told_the_loss_and_no_paths_and_is_continued(fit):
    run = fit("tensorboard", "wandb")
    (log,) = (run / "wandb").glob("offline-run-*/*.wandb")
    until = time.monotonic() + 30
    while b"loss" not in log.read_bytes() and time.monotonic() < until:  # another process writes it
        time.sleep(0.1)
    content = log.read_bytes()
    assert b"learning_rate" in content and b"children.csv" in content and b"loss" in content
    assert SECRET.encode() not in content
    assert any((run / "tensorboard").glob("events.*"))
    identity = json.loads((run / TRACKED).read_text())["wandb"]
    assert log.name == f"run-{identity}.wandb"
    fit("wandb")
    assert {path.name for path in (run / "wandb").glob("offline-run-*/*.wandb")} == {log.name}


def test_mlflow_is_told_the_loss_and_no_paths_and_is_continued(fit):
    run = fit("mlflow")
    identity = json.loads((run / TRACKED).read_text())["mlflow"]
    (record,) = (run.parent / "mlruns").glob(f"*/{identity}")
    assert (record / "params" / "train").read_text() == "children.csv"
    assert (record / "params" / "learning_rate").read_text() == "0.125"
    assert len((record / "metrics" / "loss").read_text().splitlines()) == 2
    assert not files_with(record, SECRET)
    fit("mlflow")
    assert len((record / "metrics" / "loss").read_text().splitlines()) == 4
    assert yaml.safe_load((record / "meta.yaml").read_text())["run_name"] == "run"


def test_only_tensorboard_is_the_default_and_remembers_nothing(fit):
    assert AdaptOptions(model="m", train=["t"]).log == ["tensorboard"]
    assert not (fit("tensorboard") / TRACKED).exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_told_before_any_work(name, refused, embedded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    command = ["adapt", embedded, "--train", "absent.csv", "--out", tmp_path / "run", "--log", name]
    assert f"run pip install 'ssvd[{name}]'" in refused(*command)
    assert not (tmp_path / "run").exists()


def test_mlflow_without_a_server_is_told_before_any_work(refused, embedded, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told = refused("adapt", embedded, "--train", "absent.csv", "--out", tmp_path / "run", "--log", "mlflow")
    assert "MLFLOW_TRACKING_URI" in told and not (tmp_path / "run").exists()


def test_unknown_tracker_is_refused_with_those_that_there_are(refused, embedded):
    told = refused("adapt", embedded, "--train", "absent.csv", "--log", "trackio")
    assert "item 1 of log must be tensorboard, wandb or mlflow" in told
