"""Batches read and prepared while the device works on those before."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Loading:
    """How batches are read.

    Attributes:
        workers: Processes that read; 0 reads in this one, while the device waits.
        prefetch: Batches that each of them keeps ready.
        pin_memory: Whether batches are put where a GPU copies from while it computes.
    """

    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False

    def batches(
        self,
        batches: Iterable[list[Any]],
        collate: Callable[[list[Any]], Any],
        change: Callable[[Any], Any] | None = None,
    ) -> DataLoader[Any]:
        """The batches of an epoch, collated.

        Workers are begun anew for each epoch: forked, that takes 15 ms each, and no state lives on from which what
        they read could depend on what they read before.

        Args:
            batches: The cuts of each; iterated in this process.
            collate: Makes a batch of the utterances; in a worker, which must not touch a GPU.
            change: What becomes of an utterance before.
        """
        return DataLoader(
            _Changed(change),
            batch_sampler=batches,
            collate_fn=partial(_on_one_thread, collate),
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            pin_memory=self.pin_memory,
        )


def _on_one_thread(collate: Callable[[list[Any]], Any], cuts: list[Any]) -> Any:
    """As workers do anyway: sums over several threads would be rounded otherwise, and batches depend on `workers`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return collate(cuts)
    finally:
        torch.set_num_threads(threads)


class _Changed(Dataset[Any]):
    """Its items are what it is asked for, changed: cuts are small, and no worker needs to know all."""

    def __init__(self, change: Callable[[Any], Any] | None) -> None:
        self._change = change

    def __getitem__(self, cut: Any) -> Any:
        return cut if self._change is None else self._change(cut)
