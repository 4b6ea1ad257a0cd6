"""The order in which training sees utterances."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler


class Cuts(Dataset[Any]):
    """Utterances by their number."""

    def __init__(self, cuts: Sequence[Any]) -> None:
        self._cuts = list(cuts)

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, index: int) -> Any:
        return self._cuts[index]


class RoundBatches(Sampler[list[int]]):
    """Batches of one *round* of training out of an endless stream of shuffled passes through the data.

    Round r holds the batches r * `batches` to (r + 1) * `batches` of the stream, which depends on `seed` alone: a run
    that is continued at the start of a round sees what an uninterrupted one sees. Each pass leaves out the last
    utterances that fill no batch, others each time.

    Args:
        utterances: Their number.
        batch_size: Utterances a batch; at most `utterances`.
        batches: Batches a round.
        seed: Of the stream.
        number: Of the round, from 0.
    """

    def __init__(self, utterances: int, batch_size: int, batches: int, seed: int, number: int) -> None:
        self._utterances = utterances
        self._batch_size = min(batch_size, utterances)
        self._pass = utterances // self._batch_size
        self._batches = batches
        self._seed = seed
        self._number = number

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        current, order = -1, torch.empty(0)
        for position in range(self._number * self._batches, (self._number + 1) * self._batches):
            if position // self._pass != current:
                current = position // self._pass
                generator = torch.Generator().manual_seed(self._seed * 1_000_003 + current)
                order = torch.randperm(self._utterances, generator=generator)
            start = position % self._pass * self._batch_size
            yield order[start : start + self._batch_size].tolist()
