"""Encoders with a CTC head: wav2vec 2.0 (arXiv 2006.11477) and HuBERT (arXiv 2106.07447)."""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from ssvd.corpora.audio import load_audio
from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser, Samples, read_named
from ssvd.recognisers.decoding import (
    DEFAULT_DECODING,
    Decoding,
    Transcript,
    evaluation_mode,
    join_pieces,
    split_at_pauses,
)
from ssvd.recognisers.transformers_checkpoint import load_network

WINDOW = 30.0  # seconds that are read at once: these encoders know no limit but memory


class CtcBatch(NamedTuple):
    """Utterances as tensors: a row each, or several consecutive ones for an utterance longer than the window."""

    ids: list[str]
    pieces: list[int]  # rows of each utterance
    samples: Tensor  # (rows, samples of the longest), float32, normalised as the checkpoint asks, padded with zeros
    lengths: Tensor  # (rows,), int64: samples of speech
    labels: Tensor | None  # (tokens of all rows,), int64: one row's after the other
    label_lengths: Tensor | None  # (rows,), int64


class Ctc(Recogniser):
    """A wav2vec 2.0 or HuBERT checkpoint with a CTC head as a `Recogniser`.

    Texts are written in the case of the vocabulary, where it has only one, and without punctuation that is not in it.
    Batches are as long as their longest utterance.

    Args:
        module: The network, not yet wrapped by PEFT.
        extractor: Feature extractor of Transformers.
        tokenizer: Tokenizer of Transformers.
        window: Seconds of the longest utterance to train on, and of the pieces that longer recordings are decoded in.
        language: Name or code of the language; it only chooses the normaliser of scores.
        task: "transcribe".
        dtype: Type in which `save` stores the weights.

    Raises:
        UserError: The model does not have the task, or the window is not possible.
    """

    def __init__(
        self,
        module: Any,
        extractor: Any,
        tokenizer: Any,
        *,
        window: float | None = None,
        language: str | None = None,
        task: str = "transcribe",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if task != "transcribe":
            raise UserError(f"This model does not know the task {task!r}: use 'transcribe'.")
        if window is not None and window <= 0:
            raise UserError(f"A window of {window:g} s is not possible: give more than 0.")
        self.module = module
        self.sampling_rate = extractor.sampling_rate
        self.window = window or WINDOW
        self.language = language
        self._extractor, self._tokenizer, self._dtype = extractor, tokenizer, dtype
        self._own_masking: bool = module.config.apply_spec_augment
        letters = "".join(token for token in tokenizer.get_vocab() if len(token) == 1)
        self._fold = str.upper if letters.isupper() else str.lower if letters.islower() else str
        self._characters = set(letters) | {" "}
        self._shortest = 1  # samples, of one frame
        for kernel, stride in zip(
            reversed(module.config.conv_kernel), reversed(module.config.conv_stride), strict=True
        ):
            self._shortest = (self._shortest - 1) * stride + kernel

    @classmethod
    def from_pretrained(
        cls, name: str, *, window: float | None = None, language: str | None = None, task: str = "transcribe"
    ) -> "Ctc":
        """Load float32 weights (from safetensors files only), tokenizer and feature extractor; see `load_model`."""
        _supported_config(name)
        module, dtype = load_network(AutoModelForCTC, name)
        return cls(module, *_processors(name), window=window, language=language, task=task, dtype=dtype)

    @classmethod
    def without_weights(cls, name: str, *, window: float | None = None, language: str | None = None) -> "Ctc":
        """Load what `check` needs of a checkpoint, its network on the meta device; see `load_check`."""
        return cls(cls.outline(name)[0], *_processors(name), window=window, language=language)

    @staticmethod
    def outline(name: str) -> tuple[nn.Module, list[str]]:
        """Return the network without its weights, on the meta device, and its adaptable layers; see `load_outline`."""
        with torch.device("meta"):
            module = AutoModelForCTC.from_config(_supported_config(name))
        return module, _linear_layers(module)

    def adaptable_layers(self) -> list[str]:
        """Return the names of all linear layers of the encoder: attention and feed-forward, not the head."""
        return _linear_layers(self._base_model)

    def input_seconds(self, duration: float) -> float:
        """Return the seconds that the network reads for an utterance alone in its batch: no padding."""
        return duration

    def _target(self, cut: Cut) -> list[int]:
        """Return the text of an utterance as tokens."""
        if cut.duration > self.window:
            raise UserError(
                f"It lasts {cut.duration:.2f} s and the window is {self.window:g} s: cut it, leave it out, or use a "
                "longer window."
            )
        text = " ".join(s.text.strip() for s in cut.supervisions if s.text).strip()
        tokens = self._tokenizer(self._written(text)).input_ids
        if not tokens:
            raise UserError("It has no text to learn: transcribe it, or leave it out.")
        if self._tokenizer.unk_token_id in tokens:
            raise UserError(f"Its text has marks that the model's vocabulary lacks: {text!r}.")
        frames = int(self._frames(torch.tensor(round(cut.duration * self.sampling_rate))))
        needed = len(tokens) + sum(first == second for first, second in pairwise(tokens))
        if needed > frames:  # CTC parts two equal tokens by a blank
            raise UserError(f"Its text takes {needed} frames and its audio has {max(frames, 0)}: correct the text.")
        return tokens

    def _written(self, text: str) -> str:
        """Return the text in the case of the vocabulary, without punctuation that is not in it."""

        def written(character: str) -> str:
            if character in self._characters or not unicodedata.category(character).startswith("P"):
                return character
            return "" if character == "'" else " "

        folded = self._fold(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        return " ".join("".join(map(written, folded)).split())

    def _frames(self, samples: Tensor) -> Tensor:
        """Return the number of frames of so many samples."""
        return self._base_model._get_feat_extract_output_lengths(samples)

    def collate(self, cuts: Iterable[Cut], *, text: bool = True) -> CtcBatch:
        """Read utterances as one batch: with `text` to train on or decode, without it only to decode.

        Without `text`, one longer than the window is cut at its pauses.

        Raises:
            UserError: An utterance cannot be read or, with `text`, `check` finds fault with it; it is named.
        """
        cuts = list(cuts)
        targets = [read_named(cut, self._target) for cut in cuts] if text else []
        audio = [load_audio(cut, self.sampling_rate) for cut in cuts]
        pieces = [[samples] if text else self._split(samples) for samples in audio]
        batch = self._batch([cut.id for cut in cuts], pieces, [None] * len(cuts))
        if not text:
            return batch
        labels = torch.tensor([token for target in targets for token in target])
        return batch._replace(labels=labels, label_lengths=torch.tensor([len(target) for target in targets]))

    def _batch(self, ids: list[str], pieces: Sequence[Sequence[Samples]], languages: Sequence[str | None]) -> CtcBatch:
        rows = [piece for utterance in pieces for piece in utterance]
        rows = [np.pad(row, (0, max(0, self._shortest - len(row)))) for row in rows]
        values = [
            torch.from_numpy(self._extractor(row, sampling_rate=self.sampling_rate).input_values[0]) for row in rows
        ]
        lengths = torch.tensor([len(row) for row in values])
        return CtcBatch(
            ids, [len(utterance) for utterance in pieces], pad_sequence(values, batch_first=True), lengths, None, None
        )

    def _split(self, samples: Samples) -> list[Samples]:
        return split_at_pauses(samples, round(self.window * self.sampling_rate), self.sampling_rate, slack=160)

    def loss(self, batch: CtcBatch, *, label_smoothing: float | None = None) -> Tensor:
        """Return the CTC loss: of each utterance divided by its tokens, the mean over the batch, a float32 scalar.

        An utterance whose text does not fit into its frames, as it may after a change of speed, counts as 0. With
        `spec_augment`, whatever its numbers, the network masks as its own config says, in training mode.

        Raises:
            UserError: Label smoothing is asked for, which CTC does not have.
            ValueError: The batch was collated without text.
        """
        if label_smoothing:
            raise UserError("CTC has no label smoothing: set none.")
        if batch.labels is None or batch.label_lengths is None:
            raise ValueError("the batch has no labels: collate it with text=True")
        self._base_model.config.apply_spec_augment = self.spec_augment is not None
        chances = self._logits(batch.samples, batch.lengths).float().log_softmax(-1).transpose(0, 1)
        return nn.functional.ctc_loss(
            chances,
            batch.labels.to(chances.device),
            self._frames(batch.lengths),
            batch.label_lengths,
            blank=self._base_model.config.pad_token_id,
            zero_infinity=True,
        )

    def _logits(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Return logits of shape (rows, frames, vocabulary)."""
        samples = samples.to(next(self._base_model.lm_head.parameters()))
        mask = None
        if self._extractor.return_attention_mask:  # else it was trained without, as the smallest models were
            mask = (torch.arange(samples.shape[1], device=samples.device) < lengths.to(samples.device)[:, None]).long()
        return self.module(input_values=samples, attention_mask=mask).logits

    def decode(self, batch: CtcBatch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance: the likeliest token of each frame, independently of the others.

        It does not depend on the other utterances of its batch: models that were trained without a mask of the padding
        read each row alone.

        Raises:
            UserError: More than one beam is asked for, or a limit of tokens.
        """
        if decoding.beams > 1 or decoding.max_new_tokens is not None:
            raise UserError("CTC models decode greedily, all frames at once: use one beam and no limit of tokens.")
        rows_at_once = len(batch.lengths) if self._extractor.return_attention_mask else 1
        texts: list[str] = []
        with evaluation_mode(self.module):
            for rows in torch.arange(len(batch.lengths)).split(rows_at_once):
                lengths = batch.lengths[rows]
                best = self._logits(batch.samples[rows, : int(lengths.max())], lengths).argmax(-1)
                for tokens, frames in zip(best.tolist(), self._frames(lengths).tolist(), strict=True):
                    spoken = [token for token, _ in groupby(tokens[:frames])]
                    # Grouped here: Transformers would drop the blanks first, and with them double letters.
                    text = self._tokenizer.decode(spoken, skip_special_tokens=True, group_tokens=False)
                    texts.append(text.strip())
        return join_pieces((Transcript(text, text) for text in texts), batch.pieces)

    @staticmethod
    def loading_code(name: str) -> str:
        """Return the code that loads the network; see `Recogniser`."""
        return f'from transformers import AutoModelForCTC\n\nmodel = AutoModelForCTC.from_pretrained("{name}")'

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers checkpoint, its tokenizer and feature extractor: the dtype of the source.

        Raises:
            TypeError: An adapter is still apart; assign `module.merge_and_unload()` to `module` first.
        """
        self._check_merged()
        self._base_model.config.apply_spec_augment = self._own_masking
        weights = {name: value.to(self._dtype) for name, value in self._base_model.state_dict().items()}
        self._base_model.save_pretrained(folder, state_dict=weights)
        self._extractor.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)


def _supported_config(name: str) -> Any:
    """Return the config of a checkpoint; raise UserError for MMS, which has the same family."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if getattr(config, "adapter_attn_dim", None) is not None:
        raise UserError(f"{name} has an adapter for each language (MMS), which is not supported.")
    return config


def _processors(name: str) -> tuple[Any, Any]:
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
        return extractor, AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The tokenizer or feature extractor of {name} cannot be read: copy vocab.json, tokenizer_config.json and "
            "preprocessor_config.json from the model that it comes from."
        ) from error


def _linear_layers(network: nn.Module) -> list[str]:
    return [n for n, layer in network.named_modules() if isinstance(layer, nn.Linear) and ".encoder.layers." in n]
