"""The kinds of findings of a check, and a finding."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Kind(NamedTuple):
    """A kind of finding: how serious it is, and what it means."""

    severity: Severity
    meaning: str


# In the order in which findings are reported.
KINDS: dict[str, Kind] = {
    "unusable": Kind("error", "cannot be used"),
    "unreadable": Kind("error", "the audio cannot be decoded to its end"),
    "silent": Kind("error", "the audio is silent"),
    "no text": Kind("error", "no text"),
    "untrainable": Kind("error", "the model cannot be trained on it"),
    "impossible rate": Kind("error", "more text than anybody can say in that time"),
    "shared speaker": Kind("error", "a speaker is in two corpora"),
    "shared audio": Kind("error", "the same audio is in two corpora"),
    "shared id": Kind("warning", "the same id is in two corpora"),
    "shared sentence": Kind("error", "the same speaker says the same in two corpora"),
    "repeated id": Kind("error", "the same id again"),
    "repeated audio": Kind("warning", "the same audio again"),
    "repeated sentence": Kind("warning", "the same speaker says the same again"),
    "unusual rate": Kind("warning", "far more or less text than usual for its length"),
    "doubtful text": Kind("warning", "doubtful text"),
    "clipped": Kind("warning", "the audio is clipped"),
    "cancelled": Kind("warning", "its channels cancel each other when they are mixed"),
    "low sampling rate": Kind("warning", "a lower sampling rate than requested"),
    "other sampling rate": Kind("warning", "another sampling rate than most of its corpus"),
    "short": Kind("warning", "short"),
    "long": Kind("warning", "long"),
}


@dataclass(frozen=True)
class Finding:
    """Something wrong or doubtful about an utterance.

    Attributes:
        kind: A key of `KINDS`.
        where: The file and row, or line, of the utterance.
        id: The id of the utterance; None if its row has none.
        detail: What exactly was found; may be empty.
    """

    kind: str
    where: str
    id: str | None
    detail: str

    @property
    def severity(self) -> Severity:
        """Return the severity of the kind of finding."""
        return KINDS[self.kind].severity
