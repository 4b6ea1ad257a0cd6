"""Memory for one value that is computed from tensors, valid until one of them may have changed."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")

_optimiser_steps = 0
_backward_passes = 0


class Memo(Generic[T]):
    """A value computed from tensors, remembered until one of these may have changed.

    Most changes show in the version counters and addresses of the tensors. Some optimisers write without raising the
    counters, so every step of any optimiser counts as a change of all trained tensors. A training loop written by hand
    may do the same through `.data` after a backward pass. So a value is dropped after a backward pass, unless that pass
    is still running (checkpointed activations are being recomputed) or its gradients are still there (they are being
    accumulated).

    Copies and pickles start empty.

    Attributes:
        value: The last value, valid or not.
        is_reused: Whether a valid value was ever asked for.
    """

    def __init__(self) -> None:
        self.value: T | None = None
        self.is_reused = False
        # Each tensor with its version counter, its address, and whether it is trained.
        self._sources: list[tuple[Tensor, int, int, bool]] = []
        self._settings: object = None
        self._steps: int | None = None  # None if no source is trained
        self._passes = 0

    def get(self, sources: Sequence[Tensor | None], settings: object = None) -> T | None:
        """Return the value computed from these tensors and settings; None if there is none or a tensor is missing."""
        # Called for each token in each layer, so it only compares.
        if self._settings != settings or len(self._sources) != len(sources):
            return None
        for source, (known, version, pointer, is_trained) in zip(sources, self._sources, strict=True):
            if (
                source is not known
                or source._version != version
                or source.data_ptr() != pointer
                or source.requires_grad != is_trained
            ):
                return None
        if self._steps is not None and self._steps != _optimiser_steps:
            return None
        if in_backward():
            return self.value
        if self._passes != _backward_passes and any(p.requires_grad and p.grad is None for p, *_ in self._sources):
            return None
        self.is_reused = True
        return self.value

    def set(self, value: T, sources: Sequence[Tensor], settings: object = None, only_if_reused: bool = False) -> T:
        """Remember a value, and return it.

        Args:
            value: The value.
            sources: The tensors that it was computed from.
            settings: What else it depends on.
            only_if_reused: Whether to remember only the sources, not the value, until a value was asked for again.
        """
        if not any(source.is_inference() for source in sources):  # these have no version counter
            self.value = None if only_if_reused and not self.is_reused else value
            self._sources = [(source, source._version, source.data_ptr(), source.requires_grad) for source in sources]
            self._steps = _optimiser_steps if any(source.requires_grad for source in sources) else None
            self._settings, self._passes = settings, _backward_passes
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, ()


def count_backward_pass(*_: object) -> None:
    """Count a backward pass; a hook for one tensor whose gradient every such pass computes."""
    global _backward_passes
    _backward_passes += 1


def _count_optimiser_step(*_: object) -> None:
    global _optimiser_steps
    _optimiser_steps += 1


register_optimizer_step_post_hook(_count_optimiser_step)


def in_backward() -> bool:
    """Return whether a backward pass is running, in which only checkpointed activations are recomputed."""
    return bool(torch._C._current_graph_task_id() != -1)
