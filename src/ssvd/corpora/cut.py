"""The part of a Lhotse cut that this package uses, as protocols, since Lhotse is untyped."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray


class Supervision(Protocol):
    """The text and the speaker of an utterance; None if they are not known."""

    id: str
    text: str | None
    speaker: str | None
    language: str | None
    gender: str | None
    custom: Mapping[str, Any] | None


class Cut(Protocol):
    """A segment of a recording, with times in seconds and one supervision.

    The recording is a `lhotse.Recording`, and a cut a `lhotse.MonoCut` or `lhotse.MultiCut`.
    """

    id: str
    start: float
    duration: float
    channel: int | list[int]
    supervisions: Sequence[Supervision]
    recording: Any
    custom: Mapping[str, Any] | None

    def resample(self, sampling_rate: int) -> Self:
        """Return the cut at another sampling rate, in Hz."""
        ...

    def load_audio(self) -> NDArray[np.float32]:
        """Load the samples: float32 array of shape (channels, samples)."""
        ...

    def truncate(self, *, offset: float, duration: float, preserve_id: bool = False) -> Self:
        """Return a part of the cut; the times are in seconds, and `offset` is from its start."""
        ...

    def with_id(self, id_: str) -> Self:
        """Return the cut with another id."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        ...
