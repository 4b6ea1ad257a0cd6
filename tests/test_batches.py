"""What makes a batch, and the batches of an epoch: sections of one endless stream of shuffled passes."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssvd.training.batches import ByCount, BySeconds, EpochBatches, consecutive

counts = st.builds(ByCount, st.integers(1, 30), st.integers(1, 40))
durations = st.lists(st.floats(0.1, 30), min_size=1, max_size=200)
seconds = st.floats(1, 100)
passes = counts | st.builds(BySeconds, durations, seconds)
seeds = st.integers(0, 2**31)


@given(passes, st.integers(1, 12), seeds, st.integers(1, 6))
def test_rounds_follow_each_other_as_one_long_round(a_pass, batches, seed, rounds):
    pieces = [list(EpochBatches(a_pass, batches, seed, number)) for number in range(rounds)]
    assert all(len(piece) == batches for piece in pieces)
    assert list(chain(*pieces)) == list(EpochBatches(a_pass, rounds * batches, seed, 0))


@given(st.integers(1, 30), st.integers(1, 40), seeds)
def test_each_pass_sees_no_utterance_twice_and_leaves_out_less_than_a_batch(utterances, batch_size, seed):
    a_pass = ByCount(utterances, batch_size)
    stream = list(EpochBatches(a_pass, 3 * len(a_pass), seed, 0))
    for start in range(0, len(stream), len(a_pass)):
        seen = list(chain(*stream[start : start + len(a_pass)]))
        assert len(set(seen)) == len(seen) > utterances - min(batch_size, utterances)
        assert set(seen) <= set(range(utterances))


@given(durations, seconds, seeds)
def test_each_pass_by_seconds_sees_every_utterance_once_in_batches_of_at_most_so_many(durations, limit, seed):
    a_pass = BySeconds(durations, limit)
    stream = list(EpochBatches(a_pass, 3 * len(a_pass), seed, 0))
    for start in range(0, len(stream), len(a_pass)):
        seen = chain(*stream[start : start + len(a_pass)])
        assert sorted(seen) == list(range(len(durations)))
    for batch in stream:
        padded = len(batch) * max(durations[number] for number in batch)
        assert padded <= limit + 1e-6 or len(batch) == 1


def speech_like(utterances, seed=0):
    """Durations of utterances as of a corpus: most of 2 to 6 s, few of up to 30."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(1.3, 0.5, utterances), 0.5, 30).tolist()


def test_batches_by_seconds_are_nearly_full_and_hardly_padded():
    durations = speech_like(5000)
    by_seconds, by_count = BySeconds(durations, 120), ByCount(5000, 16)

    def padding(a_pass):
        batches = list(EpochBatches(a_pass, len(a_pass), 0, 0))
        padded = [len(batch) * max(durations[number] for number in batch) for batch in batches]
        return 1 - sum(durations[number] for batch in batches for number in batch) / sum(padded), padded

    share, padded = padding(by_seconds)
    assert share < 0.12 < 0.4 < padding(by_count)[0]
    assert np.median(padded) > 0.9 * 120
    assert len(by_seconds) < 1.2 * sum(durations) / 120


def test_batches_of_other_passes_have_other_utterances_together():
    a_pass = BySeconds(speech_like(500), 60)
    first, second = ({frozenset(batch) for batch in EpochBatches(a_pass, len(a_pass), 0, number)} for number in (0, 1))
    assert len(first & second) < len(first) / 10


def test_utterances_as_long_as_the_window_fill_a_batch_of_so_many_windows():
    stream = list(EpochBatches(BySeconds([0.1] * 30, 0.3), 10, 0, 0))
    assert [len(batch) for batch in stream] == [3] * 10


@given(passes, st.integers(1, 12), seeds)
def test_order_follows_from_the_seed(a_pass, batches, seed):
    assert list(EpochBatches(a_pass, batches, seed, 1)) == list(EpochBatches(a_pass, batches, seed, 1))


@pytest.mark.parametrize("a_pass", [ByCount(50, 5), BySeconds(speech_like(50), 20)], ids=["count", "seconds"])
def test_other_seeds_and_passes_have_other_orders(a_pass):
    passes = {
        (seed, number): str(list(EpochBatches(a_pass, len(a_pass), seed, number)))
        for seed in (0, 1)
        for number in (0, 1)
    }
    assert len(set(passes.values())) == 4


@given(durations, st.integers(1, 20), st.none() | seconds)
def test_batches_to_decode_keep_the_order_and_the_limit(durations, batch_size, limit):
    durations = sorted(durations, reverse=True)
    batches = consecutive(durations, batch_size, limit)
    assert list(chain(*batches)) == list(range(len(durations)))
    for batch in batches:
        fits = len(batch) <= batch_size if limit is None else len(batch) * durations[batch[0]] <= limit + 1e-6
        assert fits or len(batch) == 1
