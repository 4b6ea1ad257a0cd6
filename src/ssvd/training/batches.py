"""Which utterances make up a batch, and in which order training sees the batches."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ssvd.corpora.cut import Cut

BUCKETS = 20  # the most that there are,
_FULL_BATCHES = 4  # each of at least this many batches


class Batching(Protocol):
    """A way to divide all utterances into batches; `len` is the number of batches of a pass, the same in each."""

    def __len__(self) -> int: ...

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the batches of one pass, each the indices of its utterances, drawn with `generator` only."""


class ByCount:
    """Batches of `batch_size` utterances; a pass leaves out the last in its order if they do not fill one."""

    def __init__(self, utterances: int, batch_size: int) -> None:
        self._utterances = utterances
        self._batch_size = min(batch_size, utterances)

    def __len__(self) -> int:
        return self._utterances // self._batch_size

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the batches of one pass, each the indices of its utterances."""
        order = torch.randperm(self._utterances, generator=generator)
        return torch.split(order, self._batch_size)[: len(self)]


class BySeconds:
    """Batches of utterances of similar length that hold at most `seconds`, including padding to the longest.

    Utterances are sorted into buckets that hold equally many seconds, as by Lhotse's `DynamicBucketingSampler`. Here
    each bucket has a fixed number of batches, set by its longest utterance, so that the learning-rate schedule knows
    their number, an epoch's batches can be found without drawing those of earlier epochs, and a pass over a million
    utterances is drawn in 0.3 s. An utterance longer than `seconds` is a batch of its own. Each pass contains every
    utterance once.

    Args:
        lengths: Lengths of the utterances as the model pads them, in seconds.
        seconds: Largest length of a batch.
    """

    def __init__(self, lengths: Sequence[float], seconds: float) -> None:
        length = np.asarray(lengths)
        order = np.argsort(length, kind="stable")
        total = np.cumsum(length[order])
        number = int(np.clip(total[-1] / (_FULL_BATCHES * seconds), 1, BUCKETS))
        edges = np.searchsorted(total, total[-1] * np.arange(1, number) / number)
        self._buckets = [torch.from_numpy(bucket) for bucket in np.split(order, edges) if len(bucket)]
        # Rounding must not make two batches of utterances that fill one exactly.
        sizes = [max(1, int(seconds / length[bucket[-1]] + 1e-9)) for bucket in self._buckets]
        self._batches = [-(-len(bucket) // size) for bucket, size in zip(self._buckets, sizes, strict=True)]

    def __len__(self) -> int:
        return sum(self._batches)

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the batches of one pass, each the indices of its utterances."""
        batches = [
            batch
            for bucket, number in zip(self._buckets, self._batches, strict=True)
            for batch in bucket[torch.randperm(len(bucket), generator=generator)].tensor_split(number)
        ]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


class InGroups:
    """Batches of one group of utterances after another; the order of the groups is drawn again in each pass.

    Args:
        batchings: How each group is divided into batches; each counts its utterances from 0.
        groups: Indices of the utterances of each group.
    """

    def __init__(self, batchings: Sequence[Batching], groups: Sequence[Sequence[int]]) -> None:
        self._batchings = batchings
        self._groups = [torch.tensor(group) for group in groups]

    def __len__(self) -> int:
        return sum(map(len, self._batchings))

    def shuffled(self, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the batches of one pass, each the indices of its utterances."""
        shuffled = [batching.shuffled(generator) for batching in self._batchings]
        order = torch.randperm(len(shuffled), generator=generator)
        return [self._groups[number][batch] for number in order for batch in shuffled[number]]


class EpochBatches(Sampler[list[int]]):
    """The batches of one epoch, a section of an endless stream of shuffled passes through the data.

    Epoch n, counted from 0, holds the batches n * `batches` to (n + 1) * `batches` of the stream, which depends on
    `seed` alone: a run that is resumed at the start of an epoch sees what an uninterrupted run sees.

    Args:
        batching: How utterances are divided into batches.
        batches: Number of batches per epoch.
        seed: Seed of the stream.
        number: Number of the epoch, from 0.
    """

    def __init__(self, batching: Batching, batches: int, seed: int, number: int) -> None:
        self._batching = batching
        self._batches = batches
        self._seed = seed
        self._number = number

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        current, shuffled = -1, self._batching.shuffled(torch.Generator())
        for position in range(self._number * self._batches, (self._number + 1) * self._batches):
            if position // len(self._batching) != current:
                current = position // len(self._batching)
                shuffled = self._batching.shuffled(torch.Generator().manual_seed(self._seed * 1_000_003 + current))
            yield shuffled[position % len(self._batching)].tolist()


class Share(Sampler[list[int]]):
    """The part of each batch that one of several processes trains on: every `processes`-th utterance of it.

    A batch of fewer utterances than processes leaves some without one. They read its first utterance, so that all
    processes have equally many batches, but it must not count twice.

    Args:
        batches: Iterable with a length: the indices of the utterances of each batch.
        rank: Number of the process, from 0.
        processes: Number of processes.

    Attributes:
        counts: Whether the process has a part of its own, for each batch of the present iteration so far.
    """

    def __init__(self, batches: "EpochBatches", rank: int, processes: int) -> None:
        self._batches, self._rank, self._processes = batches, rank, processes
        self.counts: list[bool] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        self.counts.clear()
        for batch in self._batches:
            part = batch[self._rank :: self._processes]
            self.counts.append(bool(part))
            yield part or batch[:1]


def by_length(cuts: Iterable[Cut]) -> list[Cut]:
    """Return the cuts, the longest first: decoding a batch takes as long as its longest text."""
    return sorted(cuts, key=lambda cut: (-cut.duration, cut.id))


def consecutive(lengths: Sequence[float], batch_size: int, seconds: float | None = None) -> list[list[int]]:
    """Return batches of the indices of utterances in their order, which is the longest first.

    Args:
        lengths: Lengths of the utterances in seconds, descending.
        batch_size: Number of utterances per batch.
        seconds: Largest length of a batch as `BySeconds` counts it, instead of `batch_size`.
    """
    batches: list[list[int]] = []
    start = 0
    while start < len(lengths):
        size = batch_size if seconds is None else max(1, int(seconds / lengths[start] + 1e-9))
        batches.append(list(range(start, min(start + size, len(lengths)))))
        start += size
    return batches
