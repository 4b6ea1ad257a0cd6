"""Decoding in every family of models: its options, its results, and long recordings cut at their pauses."""

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

PAUSE = 0.2  # seconds: a long recording is cut in the middle of the quietest stretch of this length


class Attempt(NamedTuple):
    """One search for the text of a piece of audio, and what tells whether to trust it."""

    text: str
    mean_log_probability: float  # of its tokens and its end, under the model
    no_speech: float  # probability that nobody speaks; 0 where the model cannot tell


@dataclass(frozen=True)
class Fallback:
    """When to search again for a text, by sampling at rising temperatures: models of Whisper's kind repeat themselves.

    The rules and thresholds are those of OpenAI's decoder (arXiv 2212.04356, section 4.5), applied to each piece of
    audio by itself: a text that compresses too well repeats itself, one of low probability was guessed. Where no
    attempt passes, the likeliest that does not repeat itself is taken, as faster-whisper does. Each piece draws from a
    generator of its own, so that its text depends on the seed and on the utterance, not on the others of its batch.

    Attributes:
        temperatures: Of the further searches, in turn.
        compression_ratio: Bytes of a text by those of its zlib compression; a higher ratio fails.
        mean_log_probability: Of the tokens; a lower one fails.
        no_speech: Probability of silence above which a text of too low probability is taken as none.
        seed: Random seed of the sampling.
    """

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    mean_log_probability: float = -1.0
    no_speech: float = 0.6
    seed: int = 0

    def repeats(self, attempt: Attempt) -> bool:
        """Return whether a text compresses too well."""
        text = attempt.text.encode()
        return len(text) > self.compression_ratio * len(zlib.compress(text))

    def is_silence(self, attempt: Attempt) -> bool:
        """Return whether nobody speaks, by the model's own estimate."""
        return attempt.no_speech > self.no_speech and attempt.mean_log_probability < self.mean_log_probability

    def accepts(self, attempt: Attempt) -> bool:
        """Return whether no further search is needed."""
        unlikely = attempt.mean_log_probability < self.mean_log_probability
        return self.is_silence(attempt) or not (unlikely or self.repeats(attempt))

    def choose(self, attempts: Sequence[Attempt]) -> str:
        """Return the text to take after all searches for a piece: "" for silence."""
        last = attempts[-1]
        if self.accepts(last):
            return "" if self.is_silence(last) else last.text
        usable = [attempt for attempt in attempts if not self.repeats(attempt)] or attempts
        return max(usable, key=lambda attempt: attempt.mean_log_probability).text

    def generator(self, piece: str, temperature: float) -> torch.Generator:
        """Return the source of randomness for a search, from the seed and the name of the piece of audio."""
        digest = hashlib.sha256(f"{self.seed}/{temperature}/{piece}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Decoding:
    """How the text of audio is searched for.

    Attributes:
        beams: Width of the beam search; 1 for greedy search.
        max_new_tokens: A tighter limit for each piece of audio than the family's own.
        fallback: When to search again; None for never. Families that do not repeat themselves ignore it.
    """

    beams: int = 1
    max_new_tokens: int | None = None
    fallback: Fallback | None = field(default_factory=Fallback)

    def as_dict(self, *, has_fallback: bool) -> dict[str, Any]:
        """Return its fields for a result: without the fallback where the family has none."""
        fallback = asdict(self.fallback) if self.fallback is not None and has_fallback else None
        if fallback:
            fallback["temperatures"] = list(fallback["temperatures"])  # as JSON gives it back
        return {"beams": self.beams, "max_new_tokens": self.max_new_tokens, "fallback": fallback}


DEFAULT_DECODING = Decoding()


class Transcript(NamedTuple):
    """The text of an utterance, and what the first search had found, before any fallback."""

    text: str
    first: str


def join_pieces(transcripts: Iterable[Transcript], counts: Sequence[int]) -> list[Transcript]:
    """Return the transcripts of utterances from those of their pieces, so many pieces for each utterance."""
    remaining = iter(transcripts)
    utterances = [list(islice(remaining, count)) for count in counts]
    return [
        Transcript(
            " ".join(filter(None, (piece.text for piece in pieces))),
            " ".join(filter(None, (piece.first for piece in pieces))),
        )
        for pieces in utterances
    ]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch off gradients and dropout; at the end the module returns to its former mode."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def whole_windows(duration: float, window: float) -> float:
    """Return the seconds that a model reads which pads to its window; cuts at pauses may add a window or so."""
    return max(1, math.ceil(duration / window - 1e-6)) * window


def split_at_pauses(samples: np.ndarray, limit: int, sampling_rate: int, *, slack: int = 0) -> list[np.ndarray]:
    """Return pieces of mono samples (n,) of at most `limit` samples, cut at the quietest pause of their second half.

    A recording that exceeds the limit by up to `slack` samples stays whole.
    """
    pieces = []
    while len(samples) > limit + slack:
        tail = samples[limit // 2 : limit].astype(np.float64)
        width = min(round(PAUSE * sampling_rate), len(tail) // 2)
        energy = np.cumsum(tail**2)
        latest = np.argmin((energy[width:] - energy[:-width])[::-1])
        cut = limit - int(latest) - width // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]
