"""Train on shards, each read from start to end while the batches of the shards before are used."""

import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from ssvd.corpora.cut import Cut
from ssvd.corpora.readers.shards import read_shard, shard_of, with_audio_of
from ssvd.errors import UserError
from ssvd.training.batches import EpochBatches, Share

Shards = Future[dict[Path, dict[str, bytes]]]

TOGETHER = 256 * 2**20  # bytes of shards whose utterances are shuffled together; as much again is read ahead


def shard_groups(cuts: Sequence[Cut], together: int = TOGETHER) -> list[list[int]]:
    """Return the indices of the cuts in groups to read together: as many whole shards as hold `together` bytes.

    Cuts outside of shards form one group. Groups, and the indices in each, are in the order of the cuts.
    """
    by_shard: dict[Path | None, list[int]] = {}
    for number, cut in enumerate(cuts):
        by_shard.setdefault(shard_of(cut.recording.sources[0]), []).append(number)
    groups: list[list[int]] = []
    if files := by_shard.pop(None, []):
        groups.append(files)
    room = 0
    for tar, numbers in by_shard.items():
        size = tar.stat().st_size if tar is not None else 0
        if size > room:
            groups.append([])
            room = together
        groups[-1] += numbers
        room -= size
    return groups


class ShardedBatches:
    """Batches of cuts; those of cuts in shards have their audio in memory.

    Args:
        cuts: All cuts.
        groups: Their `shard_groups`.
        batches: Iterable with a length: the indices of the cuts of each batch, all of one group. The batches of a group
            should follow each other, as a group is read again wherever it begins again.
    """

    def __init__(self, cuts: Sequence[Cut], groups: Sequence[Sequence[int]], batches: EpochBatches | Share) -> None:
        self._cuts, self._groups, self._batches = cuts, groups, batches
        self._group_of = {number: group for group, numbers in enumerate(groups) for number in numbers}

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Cut]]:
        """Yield the batches; a shard that cannot be read, or lacks the audio of a cut, raises UserError."""
        with ThreadPoolExecutor(1) as reader:
            ahead: deque[tuple[list[list[int]], Shards]] = deque()
            for group, batches in groupby(self._batches, key=lambda batch: self._group_of[batch[0]]):
                ahead.append((list(batches), reader.submit(self._read, group)))
                if len(ahead) > 1:
                    yield from self._filled(*ahead.popleft())
            yield from self._filled(*ahead.popleft())

    def _filled(self, batches: list[list[int]], shards: Shards) -> Iterator[list[Cut]]:
        held = shards.result()
        for batch in batches:
            try:
                yield [with_audio_of(held, self._cuts[number]) for number in batch]
            except KeyError as error:
                raise UserError(f"The audio of {error} is not in its shard; write the shards again.") from None

    def _read(self, group: int) -> dict[Path, dict[str, bytes]]:
        tars = {shard_of(self._cuts[number].recording.sources[0]) for number in self._groups[group]}
        try:
            return {tar: read_shard(tar) for tar in tars if tar is not None}
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"A shard cannot be read ({error}): {min(map(str, tars))}, or one after it.") from error
