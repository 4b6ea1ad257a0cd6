"""When each word of a text was said, and how sure the model is of it."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from operator import and_, eq
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
        start: Where it begins, in seconds; None where the family of models gives no times.
        end: Where it ends, in seconds; None likewise.
        confidence: Mean probability of its tokens, of its frames for CTC, from 0 to 1.
    """

    text: str
    start: float | None
    end: float | None
    confidence: float

    def shifted(self, seconds: float) -> "Word":
        """Return the word so many seconds later."""
        if self.start is None or self.end is None:
            return self
        return self._replace(start=self.start + seconds, end=self.end + seconds)

    def within(self, start: float, end: float) -> "Word":
        """Return the word with its times moved into a part of the audio."""
        if self.start is None or self.end is None:
            return self
        return self._replace(start=min(max(self.start, start), end), end=min(max(self.end, start), end))


class TimedText(NamedTuple):
    """The text of a piece of audio and its words.

    Attributes:
        text: The text.
        confidence: Geometric mean of the probabilities of the tokens, of the frames for CTC; None for a text without
            words.
        words: The words in their order, if they were asked for.
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


Token = tuple[str, float | None, float | None, Sequence[float]]
"""What a token spells, its start and end in seconds, and the probabilities that count for its word's confidence."""


def words_of_tokens(tokens: Iterable[Token]) -> list[Word]:
    """Return the words of tokens; what each spells begins with a space where it begins a word."""
    words: list[Word] = []
    letters: list[Token] = []  # of the present word

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


def words_of_prefixes(prefixes: Sequence[str], probabilities: Sequence[float]) -> list[Word]:
    """Return the words, without times, of a text that a tokenizer alone can spell.

    Args:
        prefixes: The text of the first token, of the first two, and so on; a character that is not whole yet is U+FFFD.
        probabilities: Of each token.
    """
    whole = prefixes[-1] if prefixes else ""
    ends = [sum(accumulate(map(eq, prefix, whole), and_)) for prefix in prefixes]  # characters that are there
    ends = [*accumulate(reversed(ends), min)][::-1]  # what was written before the text, as its language, is no part
    words = []
    for match in re.finditer(r"\S+", whole):
        first, last = bisect_right(ends, match.start()), bisect_left(ends, match.end())
        confidence = float(np.mean(probabilities[first : last + 1]))
        words.append(Word(match[0], None, None, confidence))
    return words


def aligned_frames(likelihoods: NDArray[np.float32], tokens: Sequence[int], blank: int) -> list[tuple[int, int]] | None:
    """Return where each token stands on the likeliest path of CTC that spells a text (Viterbi).

    Args:
        likelihoods: Log-probabilities (frames, vocabulary).
        tokens: The text, without blanks.
        blank: The token between others.

    Returns:
        First frame of each token and the one after its last; None if the text takes more frames than there are.
    """
    labels = np.full(2 * len(tokens) + 1, blank)
    labels[1::2] = tokens
    can_skip = np.r_[False, False, (labels[2:] != blank) & (labels[2:] != labels[:-2])]
    scores = np.full(len(labels), -np.inf)
    scores[0] = 0  # a state before the first frame, from which blank and first token can be reached
    steps = np.zeros((len(likelihoods), len(labels)), int)
    for frame, likelihood in enumerate(likelihoods):
        one = np.r_[-np.inf, scores[:-1]]
        two = np.where(can_skip, np.r_[-np.inf, -np.inf, scores[:-2]][: len(labels)], -np.inf)
        reached = np.stack([scores, one, two])
        steps[frame] = reached.argmax(0)
        scores = reached.max(0) + likelihood[labels]
    state = len(labels) - 1 if len(labels) == 1 or scores[-1] > scores[-2] else len(labels) - 2
    if scores[state] == -np.inf:
        return None
    path = np.zeros(len(likelihoods), int)
    for frame in range(len(likelihoods) - 1, -1, -1):
        path[frame] = state
        state -= steps[frame, state]
    places = [np.flatnonzero(path == 2 * number + 1) for number in range(len(tokens))]
    return [(int(place[0]), int(place[-1]) + 1) for place in places]
