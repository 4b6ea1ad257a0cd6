"""Inputs that several layers read, as the query, key and value projections of an attention do."""

from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ssvd.tuners.memo import in_backward


class SharedInput:
    """Whether a layer shall keep its whole input for the backward pass, because others keep the same tensor.

    A layer alone keeps k numbers per token. If several layers read one input and together would keep more than its
    features, they keep the input, once.
    """

    def __init__(self) -> None:
        self._is_shared = self._is_kept = False

    def is_kept(self, x: Tensor, k: int) -> bool:
        """Note that a layer reads x, (..., features), and would keep k numbers per token; return whether to keep x."""
        if not in_backward():  # recomputed activations must be kept as in the forward pass
            self._is_kept = self._is_shared
            readers = _readers.setdefault(x, WeakKeyDictionary())
            readers[self] = k
            # Only the last reader notices; the others know from the next forward pass on.
            if sum(readers.values()) > x.shape[-1]:
                for reader in readers:
                    reader._is_shared = True
        return self._is_kept


# Inputs in use, and for each the layers that read it with the numbers per token that they would keep.
_readers: MutableMapping[Tensor, "WeakKeyDictionary[SharedInput, int]"] = WeakTensorKeyDictionary()
