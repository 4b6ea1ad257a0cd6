"""One training on several devices: processes on a CPU give the adapter that one gives, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml

from ssvd.adapt import adapt
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.shar_writing import write_shar
from ssvd.errors import UserError
from ssvd.methods import Budget, apply_method
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.whisper import Whisper
from ssvd.training.augmentation import Augmenter
from ssvd.training.batches import ByCount, BySeconds, EpochBatches, Share
from ssvd.training.data import TrainingData
from ssvd.training.module import Adaptation
from ssvd.training.placement import Placement, find_placement
from ssvd.training.process_group import ProcessGroup
from ssvd.training.progress import SILENT
from test_processes import end_soon

RATES = {"ssvd": 5e-3, "ssvd strict": 5e-3, "svft": 5e-3, "lora": 2e-3, "full": 1e-4}

# What torchrun starts: each process of a training does the same jobs.
PROCESS = """
import json, sys
from pathlib import Path
from ssvd.adapt import AdaptOptions, adapt
from ssvd.errors import UserError
from ssvd.recognisers.whisper import Whisper
from ssvd.training.module import Adaptation
from ssvd.training.trainer import prepare_process

prepare_process()
Whisper.input_seconds = lambda self, duration: duration  # as of a model that pads no further than to the longest
step = Adaptation.training_step

def interrupted(self, batch, index):
    if self.current_epoch == 1:
        raise KeyboardInterrupt
    return step(self, batch, index)

outcomes = []
for job in json.loads(Path(sys.argv[1]).read_text()):
    Adaptation.training_step = interrupted if job["is_interrupted"] else step
    try:
        adapt(job["options"] and AdaptOptions(**job["options"]), Path(job["run"]), resume=job["resume"])
        outcomes.append(None)
    except UserError as error:
        outcomes.append(str(error))
Path(sys.argv[2]).write_text(json.dumps(outcomes))
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def job(options, run, resume=False, is_interrupted=False):
    return {
        "options": options and options.model_dump(),
        "run": str(run),
        "resume": resume,
        "is_interrupted": is_interrupted,
    }


def done_by(processes, jobs, folder, script=PROCESS):
    """Does trainings in several processes, as torchrun starts them, and returns what each made of each."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    shared = {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-c", script, str(folder / "jobs.json"), str(folder / f"{rank}.json")]
        started.append(subprocess.Popen(command, env=os.environ | shared | own))
    try:
        assert [process.wait(600) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def cases(options, corpora, tmp_path_factory):
    """Options of a training by each method, each with something else that could make a difference."""
    shards = tmp_path_factory.mktemp("shards") / "child"
    write_shar(list(read_corpus(corpora["child"]).cuts), shards, size=5)
    changes = {
        "ssvd": {"accumulation": 2},
        "ssvd strict": {"batch_seconds": 9.0},
        "svft": {"train": [str(shards)], "quantise": "4bit"},
        "lora": {"epochs": 2},
        "full": {"epochs": 2},
    }
    usual = {"epochs": 1, "batch_size": 3}  # of which one process has two, and the other one
    return {
        method: options(method=method, learning_rate=RATES[method], **(usual | change))
        for method, change in changes.items()
    }


@pytest.fixture(scope="module")
def alone(cases, tmp_path_factory):
    """The run folders of one process, and of interrupted runs of it."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as context:
        context.setattr(Whisper, "input_seconds", lambda self, duration: duration)
        for method, chosen in cases.items():
            adapt(chosen, folder / method)
        step = Adaptation.training_step

        def interrupted(self, batch, index):
            if self.current_epoch == 1:
                raise KeyboardInterrupt
            return step(self, batch, index)

        context.setattr(Adaptation, "training_step", interrupted)
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(UserError, match="Interrupted"):
            adapt(cases["lora"], folder / "interrupted")
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further Ctrl-C once it has seen one
    return folder


@pytest.fixture(scope="module")
def together(cases, alone, tmp_path_factory):
    """The run folders of two processes, and what they said of each job."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "lora").symlink_to(alone / "interrupted")
    jobs = {method: job(chosen, folder / method) for method, chosen in cases.items() if method not in ("lora", "full")}
    jobs["lora"] = job(None, folder / "lora", resume=True)
    jobs["full"] = job(cases["full"], folder / "full", is_interrupted=True)
    infinite = cases["ssvd"].model_copy(update={"learning_rate": 1e30, "clip": 1e30, "epochs": 3})
    jobs["infinite"] = job(infinite, folder / "infinite")
    short = cases["ssvd"].model_copy(update={"batch_seconds": 1.0})
    jobs["short"] = job(short, folder / "short")
    jobs["taken"] = job(cases["ssvd"], folder / "ssvd")
    told = done_by(2, list(jobs.values()), folder)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(Whisper, "input_seconds", lambda self, duration: duration)
        adapt(None, folder / "full", resume=True)
    return folder, [dict(zip(jobs, outcomes, strict=True)) for outcomes in told]


def state(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(run, expected, tolerance=1e-5):
    trained, reference = state(run), state(expected)
    assert trained.keys() == reference.keys()
    for name in trained:
        torch.testing.assert_close(trained[name], reference[name], rtol=0, atol=tolerance)
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, expected)]
    for row, other in zip(results[0]["series"], results[1]["series"], strict=True):
        assert row["dev_wer"] == other["dev_wer"] and row["dev_cer"] == other["dev_cer"]
        assert row["loss"] == (other["loss"] and pytest.approx(other["loss"], abs=1e-5))
    hypotheses = [(folder / "hypotheses" / "dev.jsonl").read_text() for folder in (run, expected)]
    assert hypotheses[0] == hypotheses[1]


@pytest.mark.parametrize("method", RATES)
def test_two_processes_train_what_one_trains(together, alone, method):
    folder, _ = together
    same(folder / method, alone / method)


@pytest.mark.parametrize("method", ["ssvd", "full"])
def test_what_is_compared_was_trained(alone, method):
    """By steps that are a hundred times as large as the tolerance."""
    last, first = alone / method / "checkpoints" / "last.ckpt", load_model
    trained = state(alone / method)
    if method == "ssvd":
        assert max(value.abs().max() for name, value in trained.items() if "theta" in name) > 1e-3
    else:
        before = first(json.loads((alone / method / "result.json").read_text())["model"]).module.state_dict()
        assert max((trained[name] - before[name]).abs().max() for name in before) > 1e-4
    assert last.is_file()


def test_all_processes_say_why_a_training_ends(together):
    _, told = together
    for outcomes in told:
        assert [name for name, error in outcomes.items() if error is None] == ["ssvd", "ssvd strict", "svft", "lora"]
        assert "The loss became" in outcomes["infinite"] and "Interrupted" in outcomes["full"]
        assert "A batch holds 1.0 utterances on average, fewer than the 2 processes" in outcomes["short"]
        assert "is not empty: resume the run in it" in outcomes["taken"]


def test_the_first_process_alone_writes(together):
    folder, _ = together
    writers = {path.suffixes[-2] for path in (folder / "ssvd" / "tensorboard").glob("events.*")}
    assert len(writers) == 1, "the number of the process is in the name"
    assert json.loads((folder / "ssvd" / "result.json").read_text())["hardware"].startswith("2 x ")
    assert not (folder / "short").exists()
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob("run.lock"))


# shares of batches


@pytest.mark.parametrize("a_pass", [ByCount(30, 8), BySeconds([0.5 + n / 10 for n in range(30)], 6)])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_shares_of_all_processes_are_the_batches_of_one(a_pass, processes):
    batches = EpochBatches(a_pass, len(a_pass), seed=3, number=1)
    shares = [Share(batches, rank, processes) for rank in range(processes)]
    parts = [list(share) for share in shares]
    assert {len(part) for part in parts} == {len(batches)}
    for number, batch in enumerate(batches):
        own = [part[number] for part, share in zip(parts, shares, strict=True) if share.counts[number]]
        assert sorted(chain(*own)) == sorted(batch)
        assert max(map(len, own)) - min(map(len, own)) <= 1
        assert all(part[number] for part in parts)


def test_loss_of_a_batch_is_the_weighted_mean_of_its_parts(embedded, corpora):
    speech = load_model(embedded)
    cuts = list(read_corpus(corpora["child"]).cuts)[:5]
    with torch.no_grad():
        parts = [speech.collate(part) for part in (cuts[:1], cuts[1:])]
        weights = [speech.loss_weight(part) for part in parts]
        assert weights[0] != len(cuts[:1])
        mean = sum(w * speech.loss(part) for w, part in zip(weights, parts, strict=True)) / sum(weights)
        torch.testing.assert_close(mean, speech.loss(speech.collate(cuts)))


def test_dev_batches_of_a_process_are_twice_what_it_trains_on(embedded, options, corpora, tmp_path):
    cuts = list(read_corpus(corpora["child"]).cuts)
    speech, sizes = load_model(embedded), []
    speech.module = apply_method(speech.module, "lora", speech.adaptable_layers(), Budget("rank", 1))
    for changes in ({"batch_size": 4}, {"batch_seconds": 16.0}):  # the window is 4 s
        chosen, group = options(**changes), ProcessGroup(Placement(2, rank=1))
        augmenter = Augmenter((), sampling_rate=speech.sampling_rate, window=speech.window, seed=0)
        run = Adaptation(speech, chosen, TrainingData(cuts, cuts), augmenter, tmp_path, SILENT, 1e-3, group)
        sizes.append({len(batch.ids) for batch in run.val_dataloader()})
    assert sizes == [{4}, {4}]


def test_one_process_computes_its_loss_as_it_is():
    loss = torch.tensor(1.2345, requires_grad=True)
    share, mean = ProcessGroup(Placement()).weighted_mean(loss, 7)
    assert share is loss and mean == loss and not mean.requires_grad


# what is refused


@pytest.fixture
def torchrun(monkeypatch):
    """Makes this process one of several that torchrun has started."""

    def start(**environment):
        usual = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "RANK": 3, "LOCAL_RANK": 1}
        for name, value in (usual | environment).items():
            monkeypatch.setenv(name, str(value))

    return start


def test_placement_is_that_of_torchrun(torchrun, options):
    torchrun()
    assert find_placement(options()) == Placement(2, 2, 3, 1, "torchrun")
    assert find_placement(options(devices=2, nodes=2)).size == 4
    with pytest.raises(UserError, match=r"devices is 3, but torchrun has started processes for 2: give devices as 2"):
        find_placement(options(devices=3))
    assert find_placement(options(devices=1, nodes=1)) == Placement(), "as a training of a grid"
    torchrun(LOCAL_WORLD_SIZE=3)
    with pytest.raises(UserError, match="not equally many on each machine"):
        find_placement(options())


def test_placement_is_that_of_slurm(monkeypatch, options):
    """As srun sets it; the allocation alone, or an interactive shell, starts nothing."""
    allocation = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "4", "SLURM_NODELIST": "a,b"}
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "2"}
    for name, value in allocation.items():
        monkeypatch.setenv(name, value)
    assert find_placement(options()) == Placement()
    for name, value in (step | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert find_placement(options()) == Placement(2, 2, 2, 0, "SLURM")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"devices": 5},
            "A batch of 4 utterances cannot be divided among 5 processes: give a batch_size of at least 5",
        ),
        ({"nodes": 2}, "nodes is 2: start this command on each machine by torchrun or srun"),
        ({"devices": 2, "strategy": "fsdp"}, "FSDP divides parameters among the devices, but not the frozen bases"),
        ({"devices": 2, "strategy": "fsdp", "method": "lora"}, "each decodes dev utterances of its own"),
        ({"devices": 0}, "devices must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options, tmp_path, monkeypatch, change, told):
    monkeypatch.setattr("ssvd.adapt.load_model", lambda *args, **kwargs: pytest.fail("the model was read"))
    monkeypatch.setattr("ssvd.adapt.launch", lambda *args: pytest.fail("processes were started"))
    with pytest.raises(UserError, match=told) as error:
        adapt(options().model_copy(update=change), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_more_gpus_than_there_are_are_refused(options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="This machine has 1 device of the kind cuda, but 2 are asked for"):
        find_placement(options(device="cuda", devices=2))


class Gathering(ProcessGroup):
    """Stands in for processes that gather other values."""

    def __init__(self, *others):
        super().__init__(Placement())
        self.others = others

    def gathered(self, value):
        return [value, *self.others]


def test_processes_on_different_devices_are_refused(options):
    from ssvd.adapt import _check_alike

    with pytest.raises(UserError, match=r"different devices \(cpu, 32-true; cuda, bf16-mixed\)"):
        _check_alike(Gathering("cuda, bf16-mixed"), options(), "cpu, 32-true")


# whole commands


def command(options, run, *more):
    chosen = ["adapt", options.model, "--train", options.train[0], "--dev", options.dev[0], "--out", str(run)]
    for name in ("epochs", "updates_per_epoch", "batch_size", "device", "method"):
        chosen += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    return [*chosen, *map(str, more)]


def test_command_starts_two_processes_and_shows_what_the_first_reports(ssvd, options, tmp_path):
    chosen = options(epochs=1, updates_per_epoch=1, method="lora")
    code, out, err = ssvd(*command(chosen, tmp_path / "run", "--devices", 2))
    assert code == 0, err
    assert "2 processes share each batch, with 1 thread each." in err and "epoch 1/1  loss" in err
    assert "trained parameters" in out and (tmp_path / "run" / "result.json").is_file()


STOPS = """
import os, signal, sys
from ssvd.training.module import Adaptation
from ssvd_cli.main import main

def training_step(self, batch, index):
    if self._group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)

step, Adaptation.training_step = Adaptation.training_step, training_step
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_killed_process_ends_all_within_a_minute_with_a_sentence(options, tmp_path):
    (tmp_path / "stops.py").write_text(STOPS)
    chosen = command(options(method="lora"), tmp_path / "run", "--devices", 2)
    process = subprocess.run(
        [sys.executable, tmp_path / "stops.py", *chosen], capture_output=True, text=True, check=False, timeout=600
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.splitlines()[-1] == (
        "Error: A process of the training was killed (SIGKILL), most often for lack of memory; resume the run to "
        f"continue: ssvd adapt --resume --out {tmp_path / 'run'}"
    )
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_processes_end_with_a_killed_command(options, tmp_path):
    chosen = command(options(method="lora", epochs=1000), tmp_path / "run", "--devices", 2)
    with subprocess.Popen([sys.executable, "-m", "ssvd", *chosen], stderr=subprocess.PIPE, text=True) as parent:
        while "before training" not in parent.stderr.readline():
            assert parent.poll() is None
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    try:
        assert len(children) >= 2 and end_soon(list(map(int, children)))
    finally:
        for child in children:
            if Path(f"/proc/{child}").exists():
                os.kill(int(child), signal.SIGKILL)


@pytest.mark.slow
def test_two_machines_of_two_processes_train_what_one_trains(options, tmp_path):
    """Two groups of torchrun with ranks of their own stand in for the machines."""
    chosen = options(epochs=1, batch_size=6)
    adapt(chosen, tmp_path / "alone")
    port, machines = free_port(), []
    for node in range(2):
        torchrun = ["--nnodes", "2", "--nproc-per-node", "2", "--node-rank", str(node)]
        torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "ssvd"]
        arguments = [sys.executable, "-m", "torch.distributed.run", *torchrun, *command(chosen, tmp_path / "run")]
        machines.append(subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}))
    try:
        assert [machine.wait(1200) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.terminate()
    same(tmp_path / "run", tmp_path / "alone")


# Gives the first process memory for 3 utterances of a batch and the second for 2, while they search.
SEARCHES = """
import os, torch
import ssvd.adapt

loss, search = Whisper.loss, ssvd.adapt.find_batch_seconds

def limited(self, batch, **options):
    if len(batch.ids) > 3 - int(os.environ["RANK"]):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return loss(self, batch, **options)

def find_batch_seconds(*arguments):
    Whisper.loss = limited
    seconds = search(*arguments)
    Whisper.loss = loss
    return seconds

ssvd.adapt.check_searchable, ssvd.adapt.find_batch_seconds = lambda options: None, find_batch_seconds
outcomes = []
"""


@pytest.mark.slow
def test_two_processes_search_for_one_batch_and_train_what_one_trains_on_it(options, corpora, tmp_path, monkeypatch):
    chosen = options(method="lora", epochs=1, batch_seconds="auto", dev_limit=2, fallback=False)
    script = PROCESS.replace("outcomes = []", SEARCHES)
    assert done_by(2, [job(chosen, tmp_path / "run")], tmp_path, script) == [[None], [None]]
    found = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["batch_seconds"]
    longest = max(cut.duration for cut in read_corpus(corpora["child"]).cuts)
    assert found == pytest.approx(2 * 2 * longest, abs=0.01)
    monkeypatch.setattr(Whisper, "input_seconds", lambda self, duration: duration)
    adapt(chosen.model_copy(update={"batch_seconds": found}), tmp_path / "alone")
    same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_failing_process_of_torchrun_ends_all_within_a_minute(options, tmp_path):
    (tmp_path / "stops.py").write_text(STOPS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    chosen = command(options(method="lora", epochs=1000), tmp_path / "run")
    begin = time.monotonic()
    process = subprocess.Popen([*torchrun, str(tmp_path / "stops.py"), *chosen], stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "before training" in line:
            begin = time.monotonic()
    assert process.wait() != 0 and time.monotonic() - begin < 60, "".join(lines)
