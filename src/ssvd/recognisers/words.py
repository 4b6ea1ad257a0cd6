"""When each word of a text was said, and how sure the model is of it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter


class Word(NamedTuple):
    """A word of a text.

    Attributes:
        text: The word, with the punctuation that is attached to it.
        start: Where it begins, in seconds.
        end: Where it ends, in seconds.
        confidence: Mean probability of its tokens, of its frames for CTC, from 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float

    def shifted(self, seconds: float) -> "Word":
        """Return the word so many seconds later."""
        return self._replace(start=self.start + seconds, end=self.end + seconds)


class TimedText(NamedTuple):
    """The text of a piece of audio and its words.

    Attributes:
        text: The text.
        confidence: Geometric mean of the probabilities of the tokens, of the frames for CTC; None where the family of
            models gives none, and for a text without words.
        words: The words in their order; none where the family gives no times.
    """

    text: str
    confidence: float | None
    words: list[Word]


class Segment(NamedTuple):
    """A part of a recording that was decoded at once, with its text.

    Attributes:
        start: Where it begins in the recording, in seconds.
        end: Where it ends.
        timed: Its text and words, which count from the beginning of the recording.
    """

    start: float
    end: float
    timed: TimedText


@contextmanager
def attention_weights(module: Any) -> Iterator[None]:
    """Let a network of Transformers return its attention weights, which its faster implementations do not compute."""
    implementation = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(implementation)


def boundaries(attention: Tensor, filter_width: int) -> NDArray[np.int64]:
    """Return the frame at which each token begins, by dynamic time warping of cross-attention, as OpenAI does.

    Args:
        attention: Weights (heads, tokens, frames) of the heads that follow the audio; the row of a token is the one
            that predicts it.
        filter_width: Frames of the median filter.

    Returns:
        (tokens,), not falling.
    """
    deviation, mean = torch.std_mean(attention.double(), dim=-2, keepdim=True, correction=0)
    weights = (attention - mean) / deviation.clamp(min=1e-12)
    matrix = _median_filter(weights[None], filter_width)[0].mean(0)
    tokens, frames = _dynamic_time_warping(-matrix.cpu().numpy())
    first = np.r_[True, np.diff(tokens) > 0]
    starts: NDArray[np.int64] = frames[first]
    return starts


def words_of_frames(spelt: Sequence[str], probabilities: Sequence[float], frame: float) -> list[Word]:
    """Return the words of the best path of CTC.

    Args:
        spelt: What the token of each frame spells: a letter or several, " " before the first of a word or alone between
            words, "" for the blank. Equal neighbours are one.
        probabilities: Of the token of each frame.
        frame: Seconds of a frame.
    """
    tokens, position = [], 0
    for letter, group in groupby(spelt):
        end = position + len(list(group))
        tokens.append((letter, position * frame, end * frame, probabilities[position:end]))
        position = end
    return words_of_tokens(tokens)


def words_of_tokens(tokens: Iterable[tuple[str, float, float, Sequence[float]]]) -> list[Word]:
    """Return the words of tokens.

    Args:
        tokens: What each spells, as in `words_of_frames`, its start and end in seconds, and the probabilities of which
            the confidence of its word is the mean.
    """
    words: list[Word] = []
    letters: list[tuple[str, float, float, Sequence[float]]] = []  # of the present word

    def finish() -> None:
        if letters:
            confidence = float(np.mean([chance for *_, chances in letters for chance in chances]))
            words.append(Word("".join(letter for letter, *_ in letters), letters[0][1], letters[-1][2], confidence))
            letters.clear()

    for spelt, start, end, chances in tokens:
        if spelt.startswith(" "):
            finish()
        if written := spelt.strip():
            letters.append((written, start, end, chances))
    finish()
    return words
