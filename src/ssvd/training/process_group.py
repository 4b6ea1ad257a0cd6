"""What the processes of one training tell each other."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor

from ssvd.errors import UserError
from ssvd.training.placement import Placement

Value = TypeVar("Value")


class ProcessGroup:
    """The processes of a training; with one alone, nothing is sent.

    All processes must call the methods in the same order.

    Args:
        placement: Which process this one is.
        strategy: Lightning's strategy, by which values are sent; None for one process.
    """

    def __init__(self, placement: Placement, strategy: Strategy | None = None) -> None:
        self.placement = placement
        self._strategy = strategy if placement.size > 1 else None
        if isinstance(self._strategy, ParallelStrategy):
            self._strategy.setup_environment()

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.placement.size

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.placement.rank

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def from_first(self, work: Callable[[], Value]) -> Value:
        """Return what the first process computes, in all of them; a UserError of it is raised in all of them."""
        if self._strategy is None:
            return work()
        outcome: Value | UserError | None = None
        if self.is_first:
            try:
                outcome = work()
            except UserError as error:
                outcome = error
        outcome = self._strategy.broadcast(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    def first_on_each_machine(self, work: Callable[[], Value]) -> Value:
        """Return what `work` computes in each process; the others of a machine begin when the first has ended."""
        if self._strategy is None:
            return work()
        if self.placement.local_rank == 0:
            value = work()
        self._strategy.barrier()
        if self.placement.local_rank != 0:
            value = work()
        self._strategy.barrier()
        return value

    def gathered(self, value: Value) -> list[Value]:
        """Return the values of all processes, in their order."""
        if self._strategy is None:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def weighted_mean(self, loss: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Return the share of this process in the mean loss of all of them, and that mean.

        Args:
            loss: Mean loss of this process, a scalar.
            weight: Number of items that it is the mean of.

        Returns:
            A scalar whose gradients, averaged over the processes, are those of the mean over all items; and that mean,
            without gradients.
        """
        if self._strategy is None:
            return loss, loss.detach()
        own = torch.tensor(weight, dtype=torch.float64, device=loss.device)
        sums = torch.stack([own, own * loss.detach()])
        torch.distributed.all_reduce(sums)
        share = (self.size * own / sums[0]).to(loss.dtype)
        return loss * share, (sums[1] / sums[0]).to(loss.dtype)
