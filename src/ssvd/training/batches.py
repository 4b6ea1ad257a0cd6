"""Which utterances make a batch, and in which order training sees the batches."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

BUCKETS = 20  # at most, and each of at least so many batches:
_FULL_BATCHES = 4


class Pass(Protocol):
    """One way through all utterances in batches; `len` is the number of batches, the same in every pass."""

    def __len__(self) -> int: ...

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        """The batches of a pass, each the numbers of its utterances, drawn from `generator` alone."""


class ByCount:
    """Batches of `batch_size` utterances; a pass leaves out the last that fill no batch, others each time."""

    def __init__(self, utterances: int, batch_size: int) -> None:
        self._utterances = utterances
        self._batch_size = min(batch_size, utterances)

    def __len__(self) -> int:
        return self._utterances // self._batch_size

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        return torch.randperm(self._utterances, generator=generator).split(self._batch_size)[: len(self)]


class BySeconds:
    """Batches of utterances of similar length that hold at most `seconds`, the padding to their longest included.

    Utterances are sorted into buckets of as many seconds each, as by Lhotse's `DynamicBucketingSampler`. Here a bucket
    has a fixed number of batches, as many as its longest utterance asks for, so that the schedule can count on them and
    a round can be found without drawing those before it; and a pass over a million utterances is drawn in a second.
    An utterance longer than `seconds` is a batch of its own. A pass sees every utterance once.

    Args:
        lengths: Of the utterances as the model pads them, in seconds.
        seconds: Of a batch.
    """

    def __init__(self, lengths: Sequence[float], seconds: float) -> None:
        length = np.asarray(lengths)
        order = np.argsort(length, kind="stable")
        total = np.cumsum(length[order])
        number = int(np.clip(total[-1] / (_FULL_BATCHES * seconds), 1, BUCKETS))
        edges = np.searchsorted(total, total[-1] * np.arange(1, number) / number)
        self._buckets = [torch.from_numpy(bucket) for bucket in np.split(order, edges) if len(bucket)]
        # Utterances that are as long as a batch, and rounded, must not take two.
        sizes = [max(1, int(seconds / length[bucket[-1]] + 1e-9)) for bucket in self._buckets]
        self._batches = [-(-len(bucket) // size) for bucket, size in zip(self._buckets, sizes, strict=True)]

    def __len__(self) -> int:
        return sum(self._batches)

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        batches = [
            batch
            for bucket, number in zip(self._buckets, self._batches, strict=True)
            for batch in bucket[torch.randperm(len(bucket), generator=generator)].tensor_split(number)
        ]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


class InGroups:
    """A pass through one group of utterances after another, the groups in an order drawn anew.

    Args:
        passes: Of each group.
        groups: The numbers of its utterances, for those that its pass counts from 0.
    """

    def __init__(self, passes: Sequence[Pass], groups: Sequence[Sequence[int]]) -> None:
        self._passes = passes
        self._groups = [torch.tensor(group) for group in groups]

    def __len__(self) -> int:
        return sum(map(len, self._passes))

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        shuffled = [a_pass.shuffled(generator) for a_pass in self._passes]
        order = torch.randperm(len(shuffled), generator=generator)
        return [self._groups[number][batch] for number in order for batch in shuffled[number]]


class RoundBatches(Sampler[list[int]]):
    """Batches of one *round* of training out of an endless stream of shuffled passes through the data.

    Round r holds the batches r * `batches` to (r + 1) * `batches` of the stream, which depends on `seed` alone: a run
    that is continued at the start of a round sees what an uninterrupted one sees.

    Args:
        a_pass: How utterances make batches.
        batches: Batches a round.
        seed: Of the stream.
        number: Of the round, from 0.
    """

    def __init__(self, a_pass: Pass, batches: int, seed: int, number: int) -> None:
        self._pass = a_pass
        self._batches = batches
        self._seed = seed
        self._number = number

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        current, shuffled = -1, self._pass.shuffled(torch.Generator())
        for position in range(self._number * self._batches, (self._number + 1) * self._batches):
            if position // len(self._pass) != current:
                current = position // len(self._pass)
                shuffled = self._pass.shuffled(torch.Generator().manual_seed(self._seed * 1_000_003 + current))
            yield shuffled[position % len(self._pass)].tolist()


def by_length(cuts: Iterable[Any]) -> list[Any]:
    """The longest first: a batch ends with its longest text."""
    return sorted(cuts, key=lambda cut: (-cut.duration, cut.id))


def consecutive(lengths: Sequence[float], batch_size: int, seconds: float | None = None) -> list[list[int]]:
    """Batches of utterances in their order, which is the longest first: `batch_size`, or as `BySeconds` counts them."""
    batches: list[list[int]] = []
    start = 0
    while start < len(lengths):
        size = batch_size if seconds is None else max(1, int(seconds / lengths[start] + 1e-9))
        batches.append(list(range(start, min(start + size, len(lengths)))))
        start += size
    return batches
