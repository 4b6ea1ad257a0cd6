"""Read and prepare batches while the device works on those before."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ssvd.corpora.cut import Cut
from ssvd.processes import end_with_parent, interrupts_held


@dataclass(frozen=True)
class Loading:
    """How batches are read.

    Attributes:
        workers: Number of processes that read; 0 reads in this process, while the device waits.
        prefetch: Number of batches that each of them keeps ready.
        pin_memory: Whether batches are put in pinned memory, from which a GPU copies while it computes.
    """

    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False

    def batches(
        self,
        batches: Iterable[list[Cut]],
        collate: Callable[[list[Cut]], Any],
        change: Callable[[Cut], Cut] | None = None,
    ) -> DataLoader[Any]:
        """Return a loader of the batches of an epoch, collated.

        Workers are started again for each epoch, so that nothing they read depends on what they read before. When
        they are forked, this takes 15 ms each.

        Args:
            batches: The cuts of each batch; iterated in this process.
            collate: Makes a batch of the cuts; it runs in a worker, so it must not touch a GPU.
            change: Changes each cut before it is collated; None leaves the cuts as they are.
        """
        return _Loader(
            _Changed(change),
            batch_sampler=batches,
            collate_fn=partial(_on_one_thread, collate),
            num_workers=self.workers,
            worker_init_fn=end_with_parent,
            prefetch_factor=self.prefetch if self.workers else None,
            pin_memory=self.pin_memory,
            # The seed of the workers is drawn from it; from the global one, a resumed run would draw once less.
            generator=torch.Generator(),
        )


def _on_one_thread(collate: Callable[[list[Cut]], Any], cuts: list[Cut]) -> Any:
    """Collate on one thread, as workers do anyway; else rounding, and so the batches, would depend on `workers`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return collate(cuts)
    finally:
        torch.set_num_threads(threads)


class _Loader(DataLoader[Any]):
    """A loader whose workers leave Ctrl-C to this process."""

    def __iter__(self) -> Any:
        with interrupts_held():
            return super().__iter__()


class _Changed(Dataset[Cut]):
    """A dataset that is indexed by cuts and changes them: cuts are small, and no worker needs all of them."""

    def __init__(self, change: Callable[[Cut], Cut] | None) -> None:
        self._change = change

    def __getitem__(self, cut: Cut) -> Cut:
        return cut if self._change is None else self._change(cut)
