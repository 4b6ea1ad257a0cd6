"""Rounds of training: pieces of one endless stream of shuffled passes."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from ssvd.data.batches import RoundBatches

sizes = st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31))


@given(sizes, st.integers(1, 6))
def test_rounds_follow_each_other_as_one_long_round(size, rounds):
    utterances, batch_size, batches, seed = size
    pieces = [list(RoundBatches(utterances, batch_size, batches, seed, number)) for number in range(rounds)]
    assert all(len(piece) == batches for piece in pieces)
    assert list(chain(*pieces)) == list(RoundBatches(utterances, batch_size, rounds * batches, seed, 0))


@given(sizes)
def test_each_pass_sees_no_utterance_twice_and_leaves_out_less_than_a_batch(size):
    utterances, batch_size, _, seed = size
    a_pass = utterances // min(batch_size, utterances)
    stream = list(RoundBatches(utterances, batch_size, 3 * a_pass, seed, 0))
    for start in range(0, len(stream), a_pass):
        seen = list(chain(*stream[start : start + a_pass]))
        assert len(set(seen)) == len(seen) > utterances - min(batch_size, utterances)
        assert set(seen) <= set(range(utterances))


@given(sizes)
def test_order_follows_from_the_seed(size):
    assert list(RoundBatches(*size, 1)) == list(RoundBatches(*size, 1))


def test_other_seeds_and_passes_have_other_orders():
    passes = {(seed, number): str(list(RoundBatches(50, 5, 10, seed, number))) for seed in (0, 1) for number in (0, 1)}
    assert len(set(passes.values())) == 4
