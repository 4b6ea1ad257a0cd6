"""Encoders with a CTC head: wav2vec 2.0 (arXiv 2006.11477) and HuBERT (arXiv 2106.07447)."""

import unicodedata
from collections.abc import Iterable
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from ssvd.corpora.audio import load_audio
from ssvd.errors import UserError
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding, Transcript, evaluation_mode, split_at_pauses
from ssvd.recognisers.spec_augment import SpecAugment
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


class Ctc:
    """A wav2vec 2.0 or HuBERT checkpoint with a CTC head as a `Recogniser`.

    Texts are written in the case of the vocabulary, where it has one case alone, and without the punctuation that it
    lacks. Batches are as long as their longest utterance.

    Args:
        module: The network, not yet wrapped by PEFT.
        extractor, tokenizer: Of Transformers.
        window: Seconds of the longest utterance to train on, and of the pieces that longer recordings are decoded in.
        language: Name or code, of utterances that do not state theirs; it only chooses the normaliser of scores.
        task: "transcribe".
        dtype: What `save` stores the weights in.

    Raises:
        UserError: An option is none that the model has.
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
        self.module: nn.Module = module
        self.spec_augment: SpecAugment | None = None
        self.has_fallback = False
        self.sampling_rate: int = extractor.sampling_rate
        self.window: float = window or WINDOW
        self.language: str | None = language
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
        """What `check` needs of a checkpoint, its network on the meta device; see `load_check`."""
        return cls(cls.outline(name)[0], *_processors(name), window=window, language=language)

    @staticmethod
    def outline(name: str) -> tuple[nn.Module, list[str]]:
        """The network without its weights, on the meta device, and its adaptable layers; see `load_outline`."""
        with torch.device("meta"):
            module = AutoModelForCTC.from_config(_supported_config(name))
        return module, _linear_layers(module)

    def adaptable_layers(self) -> list[str]:
        """Names of all linear layers of the encoder: attention and feed-forward, not the head."""
        return _linear_layers(self._network)

    def check(self, cut: Any) -> str | None:
        """Why the utterance cannot be trained on (too long, no text, too much of it), or None."""
        try:
            self._target(cut)
        except UserError as error:
            return str(error)
        return None

    def input_seconds(self, duration: float) -> float:
        """Seconds that the network reads for an utterance alone in its batch: no padding."""
        return duration

    def _target(self, cut: Any) -> list[int]:
        """The text of an utterance as tokens."""
        if cut.duration > self.window:
            raise UserError(
                f"It lasts {cut.duration:.2f} s and the window is {self.window:g} s: cut it, leave it out, or give a "
                "larger --window."
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
        """The text in the case of the vocabulary, without the punctuation that it lacks."""

        def written(character: str) -> str:
            if character in self._characters or not unicodedata.category(character).startswith("P"):
                return character
            return "" if character == "'" else " "

        folded = self._fold(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        return " ".join("".join(map(written, folded)).split())

    def _frames(self, samples: Tensor) -> Tensor:
        """Frames of so many samples."""
        return self._network._get_feat_extract_output_lengths(samples)

    def collate(self, cuts: Iterable[Any], *, text: bool = True) -> CtcBatch:
        """Read utterances as one batch: with `text` to train on or decode, without it only to decode.

        Without `text`, one longer than the window is cut at its pauses.

        Raises:
            UserError: An utterance cannot be read or, with `text`, `check` finds fault with it; it is named.
        """
        cuts = list(cuts)
        targets: list[list[int]] = []
        for cut in cuts if text else []:
            try:
                targets.append(self._target(cut))
            except UserError as error:
                raise UserError(f"Utterance {cut.id}: {error}") from None
        audio = [load_audio(cut, self.sampling_rate) for cut in cuts]
        batch = self._batch([cut.id for cut in cuts], [[one] if text else self._split(one) for one in audio])
        if not text:
            return batch
        labels = torch.tensor([token for target in targets for token in target])
        return batch._replace(labels=labels, label_lengths=torch.tensor([len(target) for target in targets]))

    def _batch(self, ids: list[str], pieces: list[list[np.ndarray]]) -> CtcBatch:
        rows = [piece for utterance in pieces for piece in utterance]
        rows = [np.pad(row, (0, max(0, self._shortest - len(row)))) for row in rows]
        values = [
            torch.from_numpy(self._extractor(row, sampling_rate=self.sampling_rate).input_values[0]) for row in rows
        ]
        lengths = torch.tensor([len(row) for row in values])
        return CtcBatch(
            ids, [len(utterance) for utterance in pieces], pad_sequence(values, batch_first=True), lengths, None, None
        )

    def _split(self, samples: np.ndarray) -> list[np.ndarray]:
        return split_at_pauses(samples, round(self.window * self.sampling_rate), self.sampling_rate, slack=160)

    def loss(self, batch: CtcBatch, *, label_smoothing: float | None = None) -> Tensor:
        """The CTC loss, of each utterance divided by its tokens, the mean over the batch: a float32 scalar.

        An utterance whose text does not fit into its frames, as it may after a change of speed, counts as 0. With
        `spec_augment`, whatever its numbers, the network masks as its own config says, in training mode.

        Raises:
            UserError: Label smoothing is asked for, which CTC has not.
            ValueError: The batch was collated without text.
        """
        if label_smoothing:
            raise UserError("CTC has no label smoothing: leave --label-smoothing out.")
        if batch.labels is None or batch.label_lengths is None:
            raise ValueError("the batch has no labels: collate it with text=True")
        self._network.config.apply_spec_augment = self.spec_augment is not None
        chances = self._logits(batch.samples, batch.lengths).float().log_softmax(-1).transpose(0, 1)
        return nn.functional.ctc_loss(
            chances,
            batch.labels.to(chances.device),
            self._frames(batch.lengths),
            batch.label_lengths,
            blank=self._network.config.pad_token_id,
            zero_infinity=True,
        )

    def _logits(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """(rows, frames, vocabulary)"""
        samples = samples.to(next(self._network.lm_head.parameters()))
        mask = None
        if self._extractor.return_attention_mask:  # else it was trained without, as the smallest models were
            mask = (torch.arange(samples.shape[1], device=samples.device) < lengths.to(samples.device)[:, None]).long()
        return self.module(input_values=samples, attention_mask=mask).logits

    def decode(self, batch: CtcBatch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """See `transcribe`: there is one search."""
        return [Transcript(text, text) for text in self.transcribe(batch, decoding)]

    def transcribe(self, batch: CtcBatch, decoding: Decoding = DEFAULT_DECODING) -> list[str]:
        """The text of each utterance: the likeliest token of each frame, by itself.

        It does not depend on the others of its batch: models that were trained without a mask of the padding read each
        row alone.

        Raises:
            UserError: A search with beams is asked for, or a limit of tokens.
        """
        if decoding.beams > 1 or decoding.max_new_tokens is not None:
            raise UserError("CTC models decode greedily, all frames at once: leave --beams at 1.")
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
        remaining = iter(texts)
        return [" ".join(filter(None, islice(remaining, n))) for n in batch.pieces]

    def transcribe_audio(
        self,
        samples: np.ndarray,
        decoding: Decoding = DEFAULT_DECODING,
        *,
        language: str | None = None,
        batch_size: int = 8,
    ) -> str:
        """The text of a recording of any length, cut into windows at its pauses, each decoded on its own.

        Args:
            samples: float array (samples,), mono, at `sampling_rate`, within [-1, 1].
            decoding: See `transcribe`.
            language: Not looked at.
            batch_size: Pieces decoded at once.
        """
        pieces = self._split(np.asarray(samples, dtype=np.float32))
        texts: list[str] = []
        for start in range(0, len(pieces), batch_size):
            batch = self._batch([""], [pieces[start : start + batch_size]])
            texts += self.transcribe(batch, decoding)
        return " ".join(filter(None, texts))

    @staticmethod
    def loading_code(name: str) -> str:
        """See `Recogniser`."""
        return f'from transformers import AutoModelForCTC\n\nmodel = AutoModelForCTC.from_pretrained("{name}")'

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers checkpoint, its tokenizer and feature extractor: the dtype of the source.

        Raises:
            TypeError: An adapter is still apart; assign `module.merge_and_unload()` to `module` first.
        """
        if isinstance(self.module, PeftModel):
            raise TypeError("merge the adapter before saving: speech.module = speech.module.merge_and_unload()")
        self._network.config.apply_spec_augment = self._own_masking
        weights = {name: value.to(self._dtype) for name, value in self._network.state_dict().items()}
        self._network.save_pretrained(folder, state_dict=weights)
        self._extractor.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    @property
    def _network(self) -> Any:
        return self.module.get_base_model() if isinstance(self.module, PeftModel) else self.module


def _supported_config(name: str) -> Any:
    """The config of a checkpoint; raises UserError for MMS, which has the same family."""
    config = AutoConfig.from_pretrained(name)
    if getattr(config, "adapter_attn_dim", None) is not None:
        raise UserError(f"{name} has an adapter for each language (MMS), which is not supported.")
    return config


def _processors(name: str) -> tuple[Any, Any]:
    try:
        return AutoFeatureExtractor.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The tokenizer or feature extractor of {name} cannot be read: copy vocab.json, tokenizer_config.json and "
            "preprocessor_config.json from the model that it comes from."
        ) from error


def _linear_layers(network: nn.Module) -> list[str]:
    return [n for n, layer in network.named_modules() if isinstance(layer, nn.Linear) and ".encoder.layers." in n]
