"""Utterances word by word: what was said, and what one or more systems recognised."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import jiwer
import numpy as np
import soundfile
from numpy.typing import NDArray

Edit = Literal["same", "substitution", "deletion", "insertion"]

SOUND_LIMIT = 300_000  # bytes per recording
SOUNDS_LIMIT = 5_000_000  # bytes per page
_KINDS = {
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}
_MARKS: dict[Edit, tuple[str, str]] = {
    "substitution": ("~{}", "another word was spoken"),
    "deletion": ("[{}]", "spoken, but not recognised"),
    "insertion": ("+{}", "not spoken"),
}
LEGEND = "; ".join(
    f'<span class="{edit}">{mark.format("word")}</span> {meaning}' for edit, (mark, meaning) in _MARKS.items()
)
"""What the marks of `utterance_html` mean, as HTML."""


@dataclass(frozen=True)
class Word:
    """A word of a hypothesis; for a deletion, the word of the reference that is missing."""

    text: str
    edit: Edit


@dataclass(frozen=True)
class AlignedUtterance:
    """An utterance and its hypotheses, normalised and aligned to the reference.

    Attributes:
        id: Its id.
        speaker: Its speaker, if known.
        words: Number of words of the reference.
        errors: Number of word errors of each hypothesis.
        slots: From left to right, a word of the reference, or None between two words, with what each hypothesis has
            there.
    """

    id: str
    speaker: str | None
    words: int
    errors: tuple[int, ...]
    slots: tuple[tuple[str | None, tuple[Word | None, ...]], ...]


def align(name: str, speaker: str | None, reference: str, hypotheses: Sequence[str]) -> AlignedUtterance:
    """Align the hypotheses of an utterance to its reference.

    Args:
        name: Id of the utterance.
        speaker: Its speaker, if known.
        reference: What was said, normalised, with at least one word.
        hypotheses: What each system recognised, normalised.
    """
    words = reference.split()
    aligned = [_aligned(reference, hypothesis) for hypothesis in hypotheses]
    slots: list[tuple[str | None, tuple[Word | None, ...]]] = []
    for position in range(len(words) + 1):
        gaps = [gap[position] for gap, _ in aligned]
        for index in range(max(map(len, gaps), default=0)):
            slots.append((None, tuple(gap[index] if index < len(gap) else None for gap in gaps)))
        if position < len(words):
            slots.append((words[position], tuple(stands[position] for _, stands in aligned)))
    errors = tuple(
        sum(heard[system] is not None and heard[system].edit != "same" for _, heard in slots)  # type: ignore[union-attr]
        for system in range(len(hypotheses))
    )
    return AlignedUtterance(name, speaker, len(words), errors, tuple(slots))


def _aligned(reference: str, hypothesis: str) -> tuple[list[list[Word]], list[Word]]:
    """Return the words inserted before each word of the reference and at its end, and the word in place of each."""
    words, heard = reference.split(), hypothesis.split()
    gaps: list[list[Word]] = [[] for _ in range(len(words) + 1)]
    stands = [Word(word, "deletion") for word in words]
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        spoken = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            gaps[chunk.ref_start_idx] += [Word(word, "insertion") for word in spoken]
        elif chunk.type != "delete":
            edit: Edit = "same" if chunk.type == "equal" else "substitution"
            stands[chunk.ref_start_idx : chunk.ref_end_idx] = [Word(word, edit) for word in spoken]
    return gaps, stands


def utterance_html(utterance: AlignedUtterance, systems: Sequence[str], player: str = "") -> str:
    """Return an utterance as HTML: a row for what was said and one for each system.

    Args:
        utterance: The utterance.
        systems: Names of the systems, in the order of its hypotheses.
        player: HTML that plays it; see `Players`.
    """
    rows = [("spoken", [escape(said or "") for said, _ in utterance.slots])]
    rows += [(name, [_word(heard[n]) for _, heard in utterance.slots]) for n, name in enumerate(systems)]
    table = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    speaker = f", speaker {utterance.speaker}" if utterance.speaker else ""
    errors = " → ".join(map(str, utterance.errors))
    head = f"{utterance.id}{speaker}: {errors} word errors of {utterance.words} words"
    return (
        f'<div class="utterance"><p>{escape(head)}</p>{player}'
        f'<div class="scroll"><table class="words"><tbody>{table}</tbody></table></div></div>'
    )


def _word(word: Word | None) -> str:
    if word is None:
        return ""
    mark = "{}" if word.edit == "same" else _MARKS[word.edit][0]
    return f'<span class="{word.edit}">{mark.format(escape(word.text))}</span>'


class Players:
    """Players of recordings that are embedded in a page, up to a number of bytes.

    Args:
        limit: Bytes of all recordings together; 0 for no sound.
    """

    def __init__(self, limit: int = SOUNDS_LIMIT) -> None:
        self.left = limit

    def of_file(self, path: Path) -> str:
        """Return HTML that plays a file, or "" if there is none, or no room, or no browser plays its format."""
        kind = _KINDS.get(path.suffix.lower())
        if kind is None or not path.is_file() or not self._has_room(path.stat().st_size):
            return ""
        return self._player(kind, path.read_bytes())

    def of_samples(self, samples: NDArray[np.float32], sampling_rate: int) -> str:
        """Return HTML that plays mono samples (n,) within [-1, 1], or "" if there is no room."""
        if self.left == 0:
            return ""
        file = io.BytesIO()
        soundfile.write(file, samples, sampling_rate, format="FLAC", subtype="PCM_16")
        return self._player("audio/flac", file.getvalue()) if self._has_room(file.tell()) else ""

    def _has_room(self, size: int) -> bool:
        return size <= min(SOUND_LIMIT, self.left)

    def _player(self, kind: str, sound: bytes) -> str:
        self.left -= len(sound)
        data = base64.b64encode(sound).decode()
        return f'<audio controls preload="metadata" src="data:{kind};base64,{data}"></audio>'
