"""A run that was interrupted continues to what it would have become."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ssvd.adapt import adapt
from ssvd.errors import UserError
from ssvd.recognisers.whisper import Whisper
from ssvd.training.module import Adaptation

# Stops its own process in the second batch of the second of three epochs, when the state of the first is written.
STOPS_ITSELF = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
from ssvd.training.module import Adaptation
from ssvd_cli.main import main as run

step = Adaptation.training_step
def training_step(self, batch, index):
    if (self.current_epoch, index) == (1, 1):
        os.kill(os.getpid(), SIGNAL)
    return step(self, batch, index)
Adaptation.training_step = training_step
run()
"""


@pytest.fixture(scope="module")
def eventful(options):
    """Options with all that could make a continued run differ: a round of 3 updates of 2 of the 4 batches of a pass."""
    return options(epochs=3, updates_per_epoch=3, accumulation=2, batch_size=4, learning_rate=5e-3)


@pytest.fixture(scope="module")
def uninterrupted(eventful, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    return run, adapt(eventful, run)


def same(run, result, uninterrupted):
    """Bit for bit, but for the seconds that it took."""
    other_run, other = uninterrupted
    for row, expected in zip(result.series, other.series, strict=True):
        assert row.as_dict() | {"seconds": 0} == expected.as_dict() | {"seconds": 0}
    assert result.best_epoch == other.best_epoch
    kept, expected = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, other_run))
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    last, final = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
        for folder in (run, other_run)
    )
    assert all(torch.equal(last[name], final[name]) for name in final)
    hypotheses = [(folder / "hypotheses" / "dev.jsonl").read_text() for folder in (run, other_run)]
    assert hypotheses[0] == hypotheses[1]


@pytest.mark.parametrize(
    "name", ["SIGKILL", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGTERM"))]
)
def test_run_stopped_by_a_signal_continues_to_the_same_result(eventful, uninterrupted, tmp_path, name):
    run = tmp_path / "run"
    number = getattr(signal, name)
    command = ["adapt", eventful.model, "--train", eventful.train[0], "--dev", eventful.dev[0], "--out", str(run)]
    for option in ("epochs", "updates_per_epoch", "accumulation", "batch_size", "learning_rate", "device"):
        command += ["--" + option.replace("_", "-"), str(getattr(eventful, option))]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are rounded by their order
    process = subprocess.run(
        [sys.executable, "-c", STOPS_ITSELF.replace("SIGNAL", str(int(number))), *command],
        capture_output=True,
        text=True,
        env=os.environ | threads,
        check=False,
        timeout=120,
    )
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 2, process.stderr
        assert (
            process.stderr.splitlines()[-1]
            == f"Error: Interrupted; resume the run in {run} to continue: ssvd adapt --resume --out {run}"
        )
        assert "Traceback" not in process.stderr
    assert not (run / "result.json").exists()
    same(run, adapt(None, run, resume=True), uninterrupted)


@pytest.fixture
def restored_signals():
    """Lightning ignores further Ctrl-C once it has seen one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_run_stopped_while_it_decodes_before_training_continues(
    monkeypatch, eventful, uninterrupted, tmp_path, restored_signals
):
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(Adaptation, "validation_step", interrupt)
        with pytest.raises(UserError, match="Interrupted; resume the run in"):
            adapt(eventful, run)
    same(run, adapt(None, run, resume=True), uninterrupted)


def test_run_stopped_while_it_replaces_the_best_adapter_continues(
    monkeypatch, eventful, uninterrupted, tmp_path, restored_signals
):
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        keep = Adaptation._keep_best

        def keep_best(self, references):
            keep(self, references)
            if self.series[-1].epoch == 0:  # as a kill between the two renamings leaves it
                (run / "adapter").rename(run / "adapter.old")
                raise KeyboardInterrupt

        context.setattr(Adaptation, "_keep_best", keep_best)
        with pytest.raises(UserError, match="Interrupted"):
            adapt(eventful, run)
    same(run, adapt(None, run, resume=True), uninterrupted)
    assert not list(run.glob("*.old"))


def test_batches_by_seconds_and_augmented_audio_continue_whoever_reads_them(
    monkeypatch, eventful, corpora, tmp_path, restored_signals
):
    # As for models that pad no further than to the longest of a batch.
    monkeypatch.setattr(Whisper, "input_seconds", lambda self, duration: duration)
    augment = ["speed=0.9:1.1", "vtlp=0.8:1.2", f"noise={corpora['adult'].parent}:5:20@0.5", "volume=-6:6"]
    chosen = eventful.model_copy(update={"batch_seconds": 9.0, "augment": augment, "spec_augment": True})
    whole = tmp_path / "whole"
    uninterrupted = whole, adapt(chosen, whole)
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        step = Adaptation.training_step
        context.setattr(
            Adaptation,
            "training_step",
            lambda self, batch, index: (
                interrupt() if (self.current_epoch, index) == (1, 1) else step(self, batch, index)
            ),
        )
        with pytest.raises(UserError, match="Interrupted"):
            adapt(chosen, run)
    same(run, adapt(chosen.model_copy(update={"workers": 2}), run, resume=True), uninterrupted)


def test_run_of_an_earlier_version_continues_though_its_options_are_fewer(
    monkeypatch, eventful, uninterrupted, tmp_path, restored_signals
):
    """Its config.yaml lacks what was added since, and its state holds rows as dicts."""
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        step = Adaptation.training_step
        context.setattr(
            Adaptation,
            "training_step",
            lambda self, batch, index: interrupt() if self.current_epoch == 1 else step(self, batch, index),
        )
        with pytest.raises(UserError, match="Interrupted"):
            adapt(eventful, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    added = ("fallback", "text_style", "augment", "spec_augment", "label_smoothing", "batch_seconds", "prefetch")
    (run / "config.yaml").write_text(yaml.safe_dump({name: config[name] for name in config if name not in added}))
    same(run, adapt(None, run, resume=True), uninterrupted)


def test_run_folder_written_by_hand_begins_where_nothing_was_computed(eventful, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        f"model: {eventful.model}\ntrain: [{eventful.train[0]}]\ndev: [{eventful.dev[0]}]\n"
        "method: lora\nbudget: rank=2\nepochs: 1\nupdates_per_epoch: 1\nbatch_size: 2\ndevice: cpu\n"
    )
    result = adapt(None, run, resume=True)
    assert result.method == "lora" and [epoch.epoch for epoch in result.series] == [0, 1]


def test_result_of_an_earlier_version_is_read(uninterrupted, tmp_path):
    run, result = uninterrupted
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    values = {name: value for name, value in result.as_dict().items() if name not in ("decoding", "text_style")}
    (old / "result.json").write_text(json.dumps(values))
    assert adapt(None, old, resume=True).as_dict() == values


def test_complete_run_is_left_as_it_is(uninterrupted):
    run, result = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert adapt(None, run, resume=True) == result
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("epochs", 9, "epochs was 3"), ("method", "lora", "method was 'ssvd'"), ("train", ["x.csv"], "train was")],
)
def test_other_options_are_refused_by_name(uninterrupted, eventful, option, value, told):
    run, _ = uninterrupted
    with pytest.raises(UserError, match=f"begun with other options \\({told}"):
        adapt(eventful.model_copy(update={option: value}), run, resume=True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("epochs: [1", "is not YAML"),
        ("- epochs", "does not hold options"),
        ("", "does not hold options"),
        (b"\xff\xfe\x00", "is not YAML"),
        (yaml.safe_dump({"model": "x", "train": ["y"], "epochs": 0}), "epochs must be at least 1, but is 0"),
        (yaml.safe_dump({"model": "x", "train": ["y"], "colour": "red"}), "there is no option 'colour'"),
        (yaml.safe_dump({"train": ["y"]}), "model is missing"),
    ],
)
def test_damaged_options_are_told_by_file(tmp_path, content, told):
    (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"config\.yaml.*{told}") as error:
        adapt(None, tmp_path, resume=True)
    assert "\n" not in str(error.value)
