"""The largest batch that fits into memory: found by trial on the longest utterances, and nothing else is changed."""

import random
import re
import resource
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ssvd.adapt import adapt
from ssvd.benchmark.grid import checked_grid
from ssvd.corpora.corpus import read_corpus
from ssvd.demo.random_checkpoints import write_random_checkpoint
from ssvd.errors import UserError
from ssvd.methods import Budget, apply_method
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.whisper import Whisper
from ssvd.training.augmentation import Augmenter
from ssvd.training.batch_search import find_batch_seconds, largest
from ssvd.training.data import TrainingData
from ssvd.training.module import Adaptation
from ssvd.training.placement import ALONE, Placement
from ssvd.training.process_group import ProcessGroup
from ssvd.training.progress import SILENT
from ssvd.training.trainer import build_trainer
from test_resume import same


class Device:
    """A device with memory for so many utterances of a batch in training and in decoding, and what it computed."""

    def __init__(self, monkeypatch, kind=Whisper, training=3, decoding=10**6):
        self.trained, self.decoded, self._failed = [], [], []
        monkeypatch.setattr(kind, "loss", self._limited(kind.loss, training, self.trained))
        monkeypatch.setattr(kind, "decode", self._limited(kind.decode, decoding, self.decoded))
        monkeypatch.setattr("ssvd.adapt.check_searchable", lambda options: None)

    def _limited(self, step, limit, seen):
        def limited(speech, batch, *arguments, **options):
            assert all(failed() is None for failed in self._failed), "the memory of a batch that failed is not free"
            seen.append(batch.ids)
            if len(batch.ids) > limit:
                activations = torch.ones(3)
                self._failed.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return step(speech, batch, *arguments, **options)

        return limited


@pytest.mark.parametrize(
    ("limit", "most", "found", "tried"),
    [
        (0, 100, 0, [1]),
        (1, 100, 1, [1, 2]),
        (3, 100, 3, [1, 2, 4, 3]),
        (11, 100, 10, [1, 2, 4, 8, 16, 12, 10]),
        (15, 100, 14, [1, 2, 4, 8, 16, 12, 14]),
        (70, 70, 70, [1, 2, 4, 8, 16, 32, 64, 70]),
        (66, 70, 65, [1, 2, 4, 8, 16, 32, 64, 70, 67, 65]),
        (100, 1, 1, [1]),
    ],
)
def test_number_is_doubled_until_it_does_not_fit_and_the_gap_is_halved_twice(limit, most, found, tried):
    numbers = []
    assert largest(lambda number: numbers.append(number) or number <= limit, most) == found
    assert numbers == tried


@pytest.fixture
def search(options, embedded, corpora, tmp_path):
    """Prepares a search, usually with the embedded recogniser, whose window is 4 s, and a little LoRA."""

    def prepare(group=None, method="lora", model=embedded, dev=2, **changes):
        chosen = options(batch_seconds="auto", model=str(model), **changes)
        speech = load_model(model)
        speech.module = apply_method(speech.module, method, speech.adaptable_layers(), Budget.parse("rank=2"))
        train, adults = (list(read_corpus(corpora[kind]).cuts) for kind in ("child", "adult"))
        data = TrainingData(train, adults[:dev])
        augmenter = Augmenter(chosen.augment, sampling_rate=speech.sampling_rate, window=speech.window, seed=0)
        trainer = build_trainer(chosen, tmp_path / "run", SILENT)

        def find():
            return find_batch_seconds(speech, chosen, data, augmenter, trainer, group or ProcessGroup(ALONE))

        return find, speech, data

    return prepare


def test_longest_utterances_are_tried_at_their_slowest(search, monkeypatch):
    device = Device(monkeypatch)
    heard = []
    collate = Whisper.collate
    monkeypatch.setattr(Whisper, "collate", lambda self, cuts, **o: heard.append(cuts) or collate(self, cuts, **o))
    monkeypatch.setattr(Whisper, "input_seconds", lambda self, duration: duration)
    find, speech, data = search(augment=["speed=0.9:1.1", "volume=-6:6"])
    seconds = find()
    longest = sorted(data.train, key=lambda cut: -cut.duration)
    assert seconds == pytest.approx(3 * longest[0].duration, abs=0.01) and int(seconds / longest[0].duration) == 3
    assert [len(ids) for ids in device.trained] == [1, 1, 2, 2, 4, 3, 3]
    assert device.trained[-1] == [cut.id for cut in longest[:3]]
    for cut, original in zip(heard[2], longest, strict=False):
        assert cut.duration == pytest.approx(min(original.duration / 0.9, speech.window), rel=0.02)


def test_longest_texts_are_tried_where_all_inputs_are_as_long(search, monkeypatch):
    device = Device(monkeypatch, training=2)
    find, _, data = search()
    assert find() == 8.0
    texts = sorted((cut.supervisions[0].text for cut in data.train), key=len)
    tried = {cut.id: cut.supervisions[0].text for cut in data.train}
    assert [len(tried[name]) for name in device.trained[2]] == [len(texts[-1]), len(texts[-2])]


def test_search_leaves_everything_as_it_was(tmp_path, search, monkeypatch):
    write_random_checkpoint("parakeet_ctc", tmp_path / "model")  # has batch normalisation
    find, speech, _ = search(method="full", model=tmp_path / "model", dev=1)
    Device(monkeypatch, type(speech), training=3)
    network = speech.module
    next(network.children()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert any("running_mean" in name for name in before)
    modes = [module.training for module in network.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert find() > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2] and not isinstance(torch.rand([]), float)


def test_no_layer_is_dropped_in_a_trial(search, monkeypatch):
    Device(monkeypatch, training=1)
    loss, draws = Whisper.loss, []
    monkeypatch.setattr(Whisper, "loss", lambda *args, **o: draws.append(float(torch.rand([]))) or loss(*args, **o))
    search()[0]()
    assert set(draws) == {1.0}


def test_batch_is_halved_until_dev_utterances_can_be_decoded(search, monkeypatch):
    device = Device(monkeypatch, decoding=3)
    find, _, _ = search(dev=8)
    assert find() == 4.0
    assert [len(ids) for ids in device.decoded] == [6, 2], "twice as many"


@pytest.mark.parametrize("limits", [{"training": 0}, {"training": 1, "decoding": 1}])
def test_utterance_that_does_not_fit_alone_is_named_with_what_to_do(options, tmp_path, monkeypatch, limits):
    Device(monkeypatch, **limits)
    with pytest.raises(UserError) as error:
        adapt(options(batch_seconds="auto", method="lora"), tmp_path / "run")
    told = str(error.value)
    assert told.startswith("The memory is too small for the longest utterance (") and "\n" not in told
    assert told.endswith(
        "alone, with 10% left free: save memory by checkpointing, base_dtype or quantise, or use a shorter window or "
        "shorter utterances."
    )
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_other_errors_are_not_taken_for_a_lack_of_memory(search, monkeypatch):
    def loss(*args, **options):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Whisper, "loss", loss)
    with pytest.raises(RuntimeError, match="assert"):
        search()[0]()


class Pair(ProcessGroup):
    """Two processes, of which the other one has a memory for so many utterances."""

    def __init__(self, device, limit):
        super().__init__(Placement(2))
        self.device, self.limit = device, limit

    def gathered(self, value):
        return [value, len(self.device.trained[-1]) <= self.limit]


@pytest.mark.parametrize(("own", "other"), [(3, 100), pytest.param(100, 3, marks=pytest.mark.slow)])
def test_smallest_memory_decides_for_all_processes(search, monkeypatch, own, other):
    device = Device(monkeypatch, training=own)
    find, _, _ = search(Pair(device, other))
    assert find() == 2 * 3 * 4.0, "the seconds count all processes"


def test_each_process_decodes_twice_as_many_dev_utterances_as_it_trains_on(search, monkeypatch):
    device = Device(monkeypatch, training=2)
    find, _, _ = search(Pair(device, 100), dev=8)
    assert find() == 2 * 2 * 4.0
    assert [len(ids) for ids in device.decoded] == [4]


def told(run, options, **kept):
    lines = []

    class Told:
        def say(self, message, *, warning=False):
            lines.append(message)

        def advance(self, *args):
            pass

    return adapt(options, run, progress=Told(), **kept), lines


@pytest.fixture(scope="module")
def by_search(options, tmp_path_factory):
    """A run with all that could differ after a search: (its options, its folder, its result, what it reported)."""
    folder = tmp_path_factory.mktemp("search")
    changes = {"augment": ["speed=0.9:1.1", "volume=-6:6"], "spec_augment": True, "accumulation": 2, "dev_limit": 2}
    chosen = options(batch_seconds="auto", updates_per_epoch=1, learning_rate=5e-3, fallback=False, **changes)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(Whisper, "input_seconds", lambda self, duration: duration)
        context.setenv("SSVD_CACHE", str(folder / "cache"))  # the bases of all these runs
        with pytest.MonkeyPatch.context() as limits:
            Device(limits, decoding=4)
            result, lines = told(folder / "run", chosen)
        yield chosen, folder / "run", result, lines


def test_number_is_reported_once_and_written_with_the_options(by_search):
    _, run, _, lines = by_search
    number = yaml.safe_load((run / "config.yaml").read_text())["batch_seconds"]
    assert [line for line in lines if "batch_seconds" in line] == [
        f"batch_seconds is {number:.10g}, the most that fits into memory with 10% left free: up to 2 updates in 2 "
        "epochs."
    ]


def test_run_after_a_search_is_bit_for_bit_that_of_the_number(by_search, tmp_path):
    chosen, run, result, _ = by_search
    number = yaml.safe_load((run / "config.yaml").read_text())["batch_seconds"]
    given = chosen.model_copy(update={"batch_seconds": number})
    same(tmp_path / "run", adapt(given, tmp_path / "run"), (run, result))
    configs = [(folder / "config.yaml").read_text() for folder in (run, tmp_path / "run")]
    assert configs[0] == configs[1]


def test_resumed_run_keeps_the_number(by_search, tmp_path, monkeypatch):
    chosen, run, result, _ = by_search
    step = Adaptation.training_step

    def interrupted(self, batch, index):
        if self.current_epoch == 1:
            raise ValueError("killed")
        return step(self, batch, index)

    with monkeypatch.context() as context:
        Device(context, decoding=4)
        context.setattr(Adaptation, "training_step", interrupted)
        with pytest.raises(ValueError, match="killed"):
            adapt(chosen, tmp_path / "run")
    monkeypatch.setattr("ssvd.adapt.find_batch_seconds", lambda *args: pytest.fail("searched again"))
    same(tmp_path / "run", adapt(chosen, tmp_path / "run", resume=True), (run, result))


def test_auto_is_refused_for_a_run_that_was_begun_without(options, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options().model_dump()))
    with pytest.raises(UserError, match=r"begun with other options \(batch_seconds was None\)"):
        adapt(options(batch_seconds="auto"), tmp_path, resume=True)


def test_search_on_a_cpu_is_refused_before_any_work(refused, corpora, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr("ssvd.adapt.load_model", lambda *args, **kwargs: pytest.fail("the model was read"))
    command = ["adapt", embedded, "--train", corpora["child"], "--device", "cpu", "--out", tmp_path / "run"]
    assert "batch_seconds can be auto on a CUDA GPU only" in refused(*command, "--batch-seconds", "auto")
    assert "batch_seconds must be a number or auto, but is 'many'." in refused(*command, "--batch-seconds", "many")
    assert not (tmp_path / "run").exists()


def test_comparison_of_methods_refuses_a_batch_that_depends_on_their_memory(corpora):
    child = {part: str(corpora["child"]) for part in ("train", "dev", "test")}
    grid = {"models": {"small": "embedded"}, "corpora": {"child": child}, "methods": ["ssvd", "lora"]}
    with pytest.raises(UserError, match="batch_seconds cannot be auto, as methods that take less memory would learn"):
        checked_grid(grid | {"training": {"batch_seconds": "auto"}}, "grid.yaml")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_real_lack_of_memory_is_met_and_the_memory_is_free_again(search):
    """On a CPU with a limit of addresses, and without oneDNN, whose errors do not tell the reason."""
    find, speech, data = search(dev=1)
    data.train[:] = data.train * 8
    held = re.search(r"VmSize:\s*(\d+) kB", Path("/proc/self/status").read_text())
    former = resource.getrlimit(resource.RLIMIT_AS)
    with torch.backends.mkldnn.flags(enabled=False):
        resource.setrlimit(resource.RLIMIT_AS, (int(held[1]) * 1024 + 400 * 2**20, former[1]))
        try:
            sizes = [round(find() / speech.window) for _ in range(2)]
        finally:
            resource.setrlimit(resource.RLIMIT_AS, former)
    assert 2 <= sizes[0] < len(data.train) and sizes[1] >= sizes[0] / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["ssvd", "full"])
def test_on_a_gpu_the_number_fits_and_twice_as_much_does_not(search, monkeypatch, method):
    fraction = 2 * 2**30 / torch.cuda.mem_get_info()[1]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 2**30, 2 * 2**30))
    find, speech, data = search(method=method, device="cuda")
    data.train[:] = data.train * 200
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        size = round(find() / speech.window)
        assert 1 < size < len(data.train) and torch.cuda.memory_allocated() < 2**28

        def step(rows):
            speech.module.train().zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = speech.loss(speech.collate(data.train[:rows]))
            loss.backward()

        step(size)
        with pytest.raises(torch.OutOfMemoryError):
            step(4 * size)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
