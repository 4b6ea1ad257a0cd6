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
        self._parts: Sequence[Tensor] = ()
        self._state: list[object] | None = None
        self._passes = 0
        self.is_asked_again = False

    def get(self, parts: Sequence[Tensor], settings: object = None) -> T | None:
        """The value that was kept for the same tensors and settings, or None."""
        if self._state is None or self._state != _state(parts, settings):
            return None
        if in_backward():
            return self.value
        if self._passes != _backward_passes and any(part.requires_grad and part.grad is None for part in parts):
            return None
        self.is_asked_again = True
        return self.value

    def keep(self, value: T, parts: Sequence[Tensor], settings: object = None, only_if_asked_again: bool = False) -> T:
        """Keep a value, and return it.

        Args:
            only_if_asked_again: Whether to forget the value, but not for what it was, until values are seen to be asked
                for again.
        """
        if not any(part.is_inference() for part in parts):  # those have no version counter
            self.value = None if only_if_asked_again and not self.is_asked_again else value
            # With the parts, so that no other tensor gets the id of one of them.
            self._parts, self._state, self._passes = parts, _state(parts, settings), _backward_passes
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


def _state(parts: Sequence[Tensor], settings: object) -> list[object]:
    state: list[object] = [settings, None]
    for part in parts:
        state += id(part), part._version, part.data_ptr()
        if part.requires_grad:
            state[1] = _optimiser_steps
    return state


def in_backward() -> bool:
    """Whether a backward pass runs, in which only checkpointed activations are computed."""
    return bool(torch._C._current_graph_task_id() != -1)
