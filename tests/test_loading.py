"""Batches are the same whoever reads them, and whoever reads them may die."""

import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch
from torch.utils.data import get_worker_info

from ssvd.adapt import adapt
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import StoppedError
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.whisper import Whisper
from ssvd.training.augmentation import Augmenter
from ssvd.training.loading import Loading


@pytest.fixture(scope="module")
def batches(corpora, embedded):
    """Reads batches of augmented speech: by which workers, of which epoch, in which order."""
    speech, cuts = load_model(embedded), list(read_corpus(corpora["adult"]).cuts)
    noise = f"noise={corpora['adult'].parent}:5:20"
    change = Augmenter(
        ["speed=0.9:1.1", "vtlp=0.8:1.2", "volume=-6:6@0.5", noise],
        sampling_rate=speech.sampling_rate,
        window=speech.window,
        seed=3,
    )

    def read(epoch=0, numbers=([0, 1, 2], [3, 4], [5, 6, 7]), **loading):
        chosen = [[cuts[number] for number in batch] for batch in numbers]
        return list(Loading(**loading).batches(chosen, speech.collate, partial(change, epoch=epoch)))

    return read


@pytest.fixture
def threads():
    """Two threads of torch, which have computed: a forked process has them not, and must not wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(300, 300) @ torch.randn(300, 300)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def start_method(request):
    """Of processes: forked on Linux, begun anew on macOS and Windows."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def same(batch, other):
    return batch.ids == other.ids and all(
        torch.equal(getattr(batch, name), getattr(other, name)) for name in ("features", "frames", "labels")
    )


def test_workers_give_the_batches_that_this_process_gives(batches, threads, start_method):
    expected, found = batches(), batches(workers=2, prefetch=1)
    assert all(same(batch, other) for batch, other in zip(found, expected, strict=True))


def test_what_an_utterance_becomes_depends_on_the_epoch_and_not_on_what_was_read_before(batches):
    expected = batches()
    assert same(*batches(numbers=[[5, 6, 7]]), expected[-1])
    assert not torch.equal(batches(epoch=1)[0].features, expected[0].features)


def test_worker_that_is_killed_is_told_and_the_run_continues_without_workers(monkeypatch, options, tmp_path):
    run, collate = tmp_path / "run", Whisper.collate

    def killed(self, cuts, *, text=True):
        if text and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(self, cuts, text=text)

    monkeypatch.setattr(Whisper, "collate", killed)
    with pytest.raises(StoppedError, match=r"reads audio was killed.*with fewer workers, or with none") as error:
        adapt(options(workers=1), run)
    assert "\n" not in str(error.value)
    assert adapt(options(workers=0), run, resume=True).best_epoch >= 0


def test_batches_by_seconds_of_input_bound_what_whisper_pads(embedded):
    speech = load_model(embedded)  # of a window of 4 s
    assert [speech.input_seconds(seconds) for seconds in (0.5, 4, 4.5, 9)] == [4, 4, 8, 12]
