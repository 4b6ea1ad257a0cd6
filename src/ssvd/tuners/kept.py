"""What is computed from parameters, and kept while they stay as they are."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")

_optimiser_steps = 0
_backward_passes = 0


class Kept(Generic[T]):
    """A value that is computed from tensors, for as long as none of them can have changed.

    Version counters and addresses of memory show most changes. Some optimisers write past the counters, so every step
    of one counts as a change of all that is trained. A loop written by hand may do so too, by way of `.data`, after a
    backward pass: so no value outlives one, unless that pass still runs (checkpointed activations are computed again)
    or its gradients are still there (they are accumulated).

    Copies, and what is pickled, start empty.

    Attributes:
        value: What was kept last, current or not.
    """

    def __init__(self) -> None:
        self.value: T | None = None
        # Each tensor, its version counter, address, and whether it is trained.
        self._found: list[tuple[Tensor, int, int, bool]] = []
        self._settings: object = None
        self._steps: int | None = None  # None: nothing that an optimiser would change
        self._passes = 0
        self.is_asked_again = False

    def get(self, parts: Sequence[Tensor | None], settings: object = None) -> T | None:
        """The value that was kept for the same tensors and settings, or None; None too where a tensor is missing."""
        # Asked for each token in each layer, so by comparisons alone.
        if self._settings != settings or len(self._found) != len(parts):
            return None
        for part, (known, version, pointer, is_trained) in zip(parts, self._found, strict=True):
            if (
                part is not known
                or part._version != version
                or part.data_ptr() != pointer
                or part.requires_grad != is_trained
            ):
                return None
        if self._steps is not None and self._steps != _optimiser_steps:
            return None
        if in_backward():
            return self.value
        if self._passes != _backward_passes and any(p.requires_grad and p.grad is None for p, *_ in self._found):
            return None
        self.is_asked_again = True
        return self.value

    def keep(self, value: T, parts: Sequence[Tensor], settings: object = None, only_if_asked_again: bool = False) -> T:
        """Keep a value, and return it.

        Args:
            value: The value.
            parts: Tensors that it was computed from.
            settings: What else it depends on.
            only_if_asked_again: Whether to forget the value, but not for what it was, until values are seen to be asked
                for again.
        """
        if not any(part.is_inference() for part in parts):  # those have no version counter
            self.value = None if only_if_asked_again and not self.is_asked_again else value
            self._found = [(part, part._version, part.data_ptr(), part.requires_grad) for part in parts]
            self._steps = _optimiser_steps if any(part.requires_grad for part in parts) else None
            self._settings, self._passes = settings, _backward_passes
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()


def note_backward_pass(*_: object) -> None:
    """Hook for a tensor that is part of every backward pass."""
    global _backward_passes
    _backward_passes += 1


def _note_optimiser_step(*_: object) -> None:
    global _optimiser_steps
    _optimiser_steps += 1


register_optimizer_step_post_hook(_note_optimiser_step)


def in_backward() -> bool:
    """Whether a backward pass runs, in which only checkpointed activations are computed."""
    return bool(torch._C._current_graph_task_id() != -1)
