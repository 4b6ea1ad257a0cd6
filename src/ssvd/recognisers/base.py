"""What all families of recognisers share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.agreement import MARK
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding, Transcript
from ssvd.recognisers.layers import USUAL_GROUPS, LayerGroups, chosen_layers
from ssvd.recognisers.pauses import Silence, check_silence, spoken_parts
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.recognisers.vocabulary import Vocabulary
from ssvd.recognisers.words import Segment, TimedText

Samples = NDArray[np.float32]
"""Mono audio (samples,) at the sampling rate of the recogniser, within [-1, 1]."""

_Target = TypeVar("_Target")


class Recogniser(ABC):
    """A pretrained recogniser as training and decoding need it. A *cut* is one utterance as Lhotse describes it.

    Attributes:
        module: The network that PEFT adapts; assign the PEFT-wrapped one, and `loss` and `decode` use it.
        spec_augment: Masking of the features by `loss` in training mode; None, the default, for none.
        sampling_rate: Sampling rate of the audio in Hz.
        window: The longest utterance that is read at once, in seconds.
        language: Code of the one language that it writes; None where that depends on the utterance.
        has_fallback: Whether decoding searches again for texts that repeat themselves; see `Fallback`.
        vocabulary: The symbols of a new head, if it was given one; see `with_vocabulary`.
        untrained: Names of the layers in `module` that were put in and must be trained, such as a new head.
        phones: What cuts a text into phones; None where the model does not write phones.
        checkpoint_format: The software whose format `save` writes.
    """

    module: nn.Module
    spec_augment: SpecAugment | None = None
    sampling_rate: int
    window: float
    language: str | None
    has_fallback: bool = False
    vocabulary: Vocabulary | None = None
    untrained: tuple[str, ...] = ()
    phones: Callable[[str], list[str]] | None = None
    checkpoint_format: Literal["transformers", "espnet"] = "transformers"

    @abstractmethod
    def layer_groups(self) -> LayerGroups:
        """Return the layers in `module`, not yet wrapped, that an adapter may change, each with its group."""

    def adaptable_layers(self, wanted: Sequence[str] = USUAL_GROUPS) -> list[str]:
        """Return the names in `module`, not yet wrapped, of the layers that an adapter changes; see `chosen_layers`.

        Raises:
            UserError: There is no such layer.
        """
        return chosen_layers(self.layer_groups(), wanted)

    @abstractmethod
    def input_seconds(self, duration: float) -> float:
        """Return the seconds that the network reads for an utterance alone in its batch, padding included."""

    @abstractmethod
    def collate(self, cuts: Iterable[Cut], *, text: bool = True) -> Any:
        """Read utterances as one batch: with `text` to train on or decode, without it only to decode.

        Raises:
            UserError: An utterance cannot be read or, with `text`, cannot be trained on; the message names it.
        """

    @abstractmethod
    def loss(self, batch: Any, *, label_smoothing: float | None = None) -> torch.Tensor:
        """Return the mean loss over the batch, a float32 scalar; the family's own label smoothing is the default."""

    def loss_weight(self, batch: Any) -> int:
        """Return how many items `loss` is the mean over: utterances, unless a family says otherwise.

        Processes that each have a part of a batch weigh their losses by it, so that the mean is that of the batch.
        """
        return len(batch.ids)

    @abstractmethod
    def decode(self, batch: Any, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance of the batch, and what the first search found."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the model, with its adapter merged, as a plain checkpoint of its family.

        Raises:
            TypeError: An adapter is not merged yet; assign `module.merge_and_unload()` to `module` first.
        """

    @staticmethod
    @abstractmethod
    def loading_code(name: str) -> str:
        """Return Python by which a PEFT user loads the checkpoint's network as `model`, for the cards of adapters."""

    @classmethod
    def with_vocabulary(
        cls,
        name: str,
        vocabulary: Vocabulary,
        *,
        window: float | None = None,
        language: str | None = None,
        has_weights: bool = True,
        quantisation: Quantisation | None = None,
    ) -> "Recogniser":
        """Load a checkpoint with a new CTC head for other symbols, which must be trained.

        All weights of the head are zero: before training, the model writes nothing. The checkpoint may have a head for
        its own symbols, or none.

        Raises:
            UserError: The checkpoint cannot be used, or its family has no CTC head.
        """
        raise UserError(
            f"The symbols of {vocabulary.source} cannot be learnt by {name}, which has no CTC head: choose one of a "
            "family that has, such as wav2vec2, wavlm or parakeet_ctc."
        )

    def check(self, cut: Cut) -> str | None:
        """Return why an utterance cannot be trained on, such as its length or its text, or None; reads no audio."""
        try:
            self._target(cut)
        except UserError as error:
            return str(error)
        return None

    def transcribe(self, batch: Any, decoding: Decoding = DEFAULT_DECODING) -> list[str]:
        """Return the text of each utterance of the batch; see `decode`."""
        return [transcript.text for transcript in self.decode(batch, decoding)]

    @abstractmethod
    def decode_timed(self, batch: Any, decoding: Decoding = DEFAULT_DECODING) -> list[TimedText]:
        """Return the text of each row of the batch, with its words and how sure the model is of them.

        The texts are those of `decode`. Families that cannot tell when a word was said return it without times.
        """

    def transcribe_audio(
        self,
        samples: Samples,
        decoding: Decoding = DEFAULT_DECODING,
        *,
        language: str | None = None,
        batch_size: int = 8,
    ) -> str:
        """Return the text of a recording of any length, cut into windows at its pauses, each decoded separately.

        Args:
            samples: Mono samples at `sampling_rate`, within [-1, 1].
            decoding: The search for each piece.
            language: Name or code; None for the model's option, else detected in the first piece.
            batch_size: Number of pieces that are decoded at once.

        Raises:
            UserError: The model does not know the language, or the family cannot decode in this way.
        """
        segments = self.transcribe_segments(samples, decoding, language=language, batch_size=batch_size, words=False)
        return " ".join(segment.timed.text for segment in segments if segment.timed.text)

    def transcribe_segments(
        self,
        samples: Samples,
        decoding: Decoding = DEFAULT_DECODING,
        *,
        language: str | None = None,
        batch_size: int = 8,
        words: bool = True,
        silence: Silence = "energy",
    ) -> Iterator[Segment]:
        """Yield the pieces of a recording of any length, cut as by `transcribe_audio`, with text and words.

        Args:
            samples: Mono samples at `sampling_rate`, within [-1, 1].
            decoding: The search for each piece.
            language: Name or code; None for the model's option, else detected in the first piece.
            batch_size: Number of pieces that are decoded at once.
            words: Whether to find the words and how sure the model is of them, which takes longer.
            silence: "vad" to leave out the long silences that a detector of voices finds; see `spoken_parts`.

        Raises:
            UserError: As for `transcribe_audio`, or the detector reads audio at another rate.
            ModuleNotFoundError: The package of the detector is not installed.
        """
        check_silence(silence, self.sampling_rate)
        samples = np.asarray(samples, dtype=np.float32)
        starts, pieces = self._pieces(samples, silence)
        spoken = self._spoken_language(pieces[0], language) if pieces else None
        for first in range(0, len(pieces), batch_size):
            rows = pieces[first : first + batch_size]
            names = [f"piece {first + row}" for row in range(len(rows))]
            batch = self._batch(names, [[row] for row in rows], [spoken] * len(rows))
            if words:
                timed = self.decode_timed(batch, decoding)
            else:
                timed = [TimedText(text, None, []) for text in self.transcribe(batch, decoding)]
            for sample, row, text in zip(starts[first : first + batch_size], rows, timed, strict=True):
                start, end = sample / self.sampling_rate, (sample + len(row)) / self.sampling_rate
                yield Segment(start, end, text._replace(words=[word.shifted(start) for word in text.words]))

    def _pieces(self, samples: Samples, silence: Silence) -> tuple[list[int], list[Samples]]:
        """Return the pieces of a recording to decode, and the sample at which each begins."""
        starts, pieces = [], []
        for start, end in spoken_parts(samples, silence):
            for piece in self._split(samples[start:end]):
                starts.append(start)
                pieces.append(piece)
                start += len(piece)
        return starts, pieces

    @abstractmethod
    def _target(self, cut: Cut) -> Any:
        """Return what is learnt of an utterance, or raise a UserError that says why nothing can be."""

    @abstractmethod
    def _split(self, samples: Samples) -> list[Samples]:
        """Return a recording as pieces that the network can read at once."""

    @abstractmethod
    def _batch(self, ids: list[str], pieces: Sequence[Sequence[Samples]], languages: Sequence[str | None]) -> Any:
        """Return utterances, each as its pieces, as a batch without labels."""

    def _spoken_language(self, piece: Samples, language: str | None) -> str | None:
        """Return the language of a recording in the model's own notation; None where the model needs none."""
        return None

    @property
    def _base_model(self) -> Any:
        """The network without what PEFT wraps around it; its layers are those of the adapter."""
        return self.module.get_base_model() if isinstance(self.module, PeftModel) else self.module

    def _check_merged(self) -> None:
        if isinstance(self.module, PeftModel):
            raise TypeError("merge the adapter before saving: speech.module = speech.module.merge_and_unload()")


def unknown_task(task: str) -> UserError:
    """Return the error for a task that a model does not know."""
    return UserError(f"This model does not know the task {task!r}: use 'transcribe'.")


def read_named(cut: Cut, read: Callable[[Cut], _Target]) -> _Target:
    """Return what `read` makes of an utterance; its error names the utterance."""
    try:
        return read(cut)
    except UserError as error:
        raise UserError(f"Utterance {cut.id}: {error}") from None


def spoken_text(cut: Cut, special: Collection[str]) -> str:
    """Return the text of an utterance, in which nothing may stand that is a mark for models and not spoken.

    Args:
        cut: The utterance.
        special: Symbols with a meaning of their own in the model's vocabulary, such as [PAD]; those in angle brackets
            are known without.

    Raises:
        UserError: It has no text, or one with such a mark.
    """
    text = " ".join(s.text.strip() for s in cut.supervisions if s.text).strip()
    if not text:
        raise UserError("It has no text to learn: transcribe it, or leave it out.")
    check_marks(text, special)
    return text


def check_marks(text: str, special: Collection[str]) -> None:
    """Check that a text holds no mark for models, which would be learnt as if it were spoken; see `spoken_text`.

    Raises:
        UserError: It does.
    """
    marks = MARK.findall(text)
    marks += [symbol for symbol in special if len(symbol) > 1 and symbol.casefold() in text.casefold()]
    if marks:
        raise UserError(f"Its text holds {marks[0]}, a mark for models that nobody says: remove it ({text!r}).")
