"""Encoders with a CTC head, as `AutoModelForCTC` of Transformers has them; `families` lists them."""

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from ssvd.corpora.audio import load_audio
from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.agreement import check_ctc_head, check_ctc_input, check_features, reading
from ssvd.recognisers.alphabets import Phones, alphabet_of
from ssvd.recognisers.base import Recogniser, Samples, read_named, spoken_text, unknown_task
from ssvd.recognisers.decoding import (
    DEFAULT_DECODING,
    Decoding,
    Transcript,
    evaluation_mode,
    join_pieces,
    split_at_pauses,
)
from ssvd.recognisers.front_ends import front_end_of, output_frames
from ssvd.recognisers.layers import ENCODER, LayerGroups, front_end_convolutions
from ssvd.recognisers.transformers_checkpoint import load_network, read_config, read_json
from ssvd.recognisers.vocabulary import Vocabulary
from ssvd.recognisers.wavlm import call_projections
from ssvd.recognisers.words import TimedText, words_of_frames

WINDOW = 30.0  # seconds that are read at once: these encoders know no limit but memory
# Convolutions of their encoders read over the end of speech into the padding, of which they have no mask.
_READS_PADDING = {"data2vec-audio", "wav2vec2-conformer", "sew", "sew-d", "lasr_ctc"}
# Of WavLM's position bias: 8 numbers a head, so few that they would bound the rank of every layer.
_GATE = ".gru_rel_pos_linear"
_USUAL_SYMBOLS = 32  # of the heads of published English models
_ENCODER = re.compile(r"(^|\.)encoder\.(encoder\.)?layers?\.")


class CtcBatch(NamedTuple):
    """Utterances as tensors: a row each, or several consecutive ones for an utterance longer than the window."""

    ids: list[str]
    pieces: list[int]  # rows of each utterance
    inputs: Tensor  # (rows, length of the longest) or (rows, length, bands), float32, padded with zeros
    lengths: Tensor  # (rows,), int64: of the input without padding
    labels: Tensor | None  # (tokens of all rows,), int64: one row's after the other
    label_lengths: Tensor | None  # (rows,), int64


class Ctc(Recogniser):
    """A checkpoint with a CTC head as a `Recogniser`.

    Texts are written in the case of the vocabulary, where it has only one, and without punctuation that is not in it.
    Batches are as long as their longest utterance. The statistics of batch normalisation stay those of the checkpoint.

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
            raise unknown_task(task)
        if window is not None and window <= 0:
            raise UserError(f"A window of {window:g} s is not possible: give more than 0.")
        self.module = call_projections(module)
        self.sampling_rate = extractor.sampling_rate
        self.window = window or WINDOW
        self.language = language
        self._extractor, self._dtype = extractor, dtype
        self._alphabet = alphabet_of(tokenizer)
        self.phones = self._alphabet.phones if isinstance(self._alphabet, Phones) else None
        self._front_end = front_end_of(extractor, module)
        self._own_masking: bool | None = getattr(module.config, "apply_spec_augment", None)
        self._masks_itself = hasattr(module.config, "mask_time_prob")
        if module.config.model_type == "parakeet_ctc":
            # Its published configs state 0.1, and it was trained without: huggingface.co/nvidia/parakeet-ctc-1.1b,
            # discussion 5.
            module.encoder.layerdrop = 0.0
        self._reads_padding = (
            not self._front_end.is_masked
            or module.config.model_type in _READS_PADDING
            or getattr(module.config, "feat_extract_norm", None) == "group"  # over time, padding included
        )

    @classmethod
    def from_pretrained(
        cls, name: str, *, window: float | None = None, language: str | None = None, task: str = "transcribe"
    ) -> "Ctc":
        """Load float32 weights (from safetensors files only), tokenizer and feature extractor; see `load_model`."""
        outline, _ = cls.outline(name)
        extractor, tokenizer = _extractor(name, outline), _tokenizer(name, outline)
        module, dtype = load_network(AutoModelForCTC, name, outline)
        return cls(module, extractor, tokenizer, window=window, language=language, task=task, dtype=dtype)

    @classmethod
    def without_weights(cls, name: str, *, window: float | None = None, language: str | None = None) -> "Ctc":
        """Load what `check` needs of a checkpoint, its network on the meta device; see `load_check`."""
        module, _ = cls.outline(name)
        return cls(module, _extractor(name, module), _tokenizer(name, module), window=window, language=language)

    @classmethod
    def with_vocabulary(
        cls,
        name: str,
        vocabulary: Vocabulary,
        *,
        window: float | None = None,
        language: str | None = None,
        has_weights: bool = True,
    ) -> "Ctc":
        """Load a checkpoint with a new head for other symbols; see `Recogniser`."""
        module: Any
        module, _ = cls.outline(name)
        extractor, head, dtype = _extractor(name, module), head_of(module), torch.float32
        if has_weights:
            module, dtype = load_network(AutoModelForCTC, name, module, replaced=head)
        tokenizer = vocabulary.tokenizer()
        _replace_head(module, head, tokenizer)
        speech = cls(module, extractor, tokenizer, window=window, language=language, dtype=dtype)
        speech.vocabulary, speech.untrained, speech.phones = vocabulary, (head,), speech._alphabet.phones
        return speech

    @staticmethod
    def outline(name: str) -> tuple[nn.Module, LayerGroups]:
        """Return the network without its weights, on the meta device, and its layers; see `load_outline`."""
        config = _supported_config(name)
        with reading(f"The config.json of {name}", "copy it from the model that it comes from"), torch.device("meta"):
            module = AutoModelForCTC.from_config(config)
        return module, _layer_groups(module)

    def layer_groups(self) -> LayerGroups:
        """Return the convolutions that read the audio, and the encoder's attention and feed-forward, not the head."""
        return _layer_groups(self._base_model)

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
        tokens = self._alphabet.encode(spoken_text(cut, self._alphabet.special))
        length = self._front_end.length(round(cut.duration * self.sampling_rate))
        frames = int(self._frames(torch.tensor(length)))
        needed = len(tokens) + sum(first == second for first, second in pairwise(tokens))
        if needed > frames:  # CTC parts two equal tokens by a blank
            raise UserError(f"Its text takes {needed} frames and its audio has {max(frames, 0)}: correct the text.")
        return tokens

    def _frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames that the network makes of inputs of these lengths."""
        return output_frames(self._base_model, lengths)

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
        shortest = self._front_end.shortest
        inputs = [self._front_end(np.pad(row, (0, max(0, shortest - len(row))))) for row in rows]
        lengths = torch.tensor([len(row) for row in inputs])
        padded = pad_sequence(inputs, batch_first=True)
        return CtcBatch(ids, [len(utterance) for utterance in pieces], padded, lengths, None, None)

    def _split(self, samples: Samples) -> list[Samples]:
        return split_at_pauses(samples, round(self.window * self.sampling_rate), self.sampling_rate, slack=160)

    def loss(self, batch: CtcBatch, *, label_smoothing: float | None = None) -> Tensor:
        """Return the CTC loss: of each utterance divided by its tokens, the mean over the batch, a float32 scalar.

        An utterance whose text does not fit into its frames, as it may after a change of speed, counts as 0. With
        `spec_augment`, whatever its numbers, the network masks as its own config says, in training mode; a batch whose
        longest utterance is shorter than one mask (0.2 s) is not masked.

        Raises:
            UserError: Label smoothing is asked for, which CTC does not have.
            ValueError: The batch was collated without text.
        """
        if label_smoothing:
            raise UserError("CTC has no label smoothing: set none.")
        if batch.labels is None or batch.label_lengths is None:
            raise ValueError("the batch has no labels: collate it with text=True")
        frames = self._frames(batch.lengths)
        inputs = self._masked(batch, frames)
        for layer in self.module.modules():
            if isinstance(layer, nn.BatchNorm1d):  # its statistics are not the adapter's, and would not be stored
                layer.eval()
        chances = self._logits(inputs, batch.lengths).float().log_softmax(-1).transpose(0, 1)
        return nn.functional.ctc_loss(
            chances,
            batch.labels.to(chances.device),
            frames,
            batch.label_lengths,
            blank=self._base_model.config.pad_token_id,
            zero_infinity=True,
        )

    def _masked(self, batch: CtcBatch, frames: Tensor) -> Tensor:
        """Return the input of a batch, masked if that is asked for, or let the network mask what it makes of it."""
        config = self._base_model.config
        if not self._masks_itself:
            if self.spec_augment is None or not self.module.training:
                return batch.inputs
            return self.spec_augment(batch.inputs.transpose(1, 2), batch.lengths).transpose(1, 2)
        # Transformers masks no batch that is shorter than a mask, but raises an error.
        config.apply_spec_augment = self.spec_augment is not None and int(frames.max()) >= config.mask_time_length
        return batch.inputs

    def _logits(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return logits of shape (rows, frames, vocabulary)."""
        inputs = inputs.to(next(self._base_model.get_submodule(head_of(self._base_model)).parameters()))
        mask = None
        if self._front_end.is_masked:
            mask = (torch.arange(inputs.shape[1], device=inputs.device) < lengths.to(inputs.device)[:, None]).long()
        return self.module(**{self._front_end.argument: inputs}, attention_mask=mask).logits

    def decode(self, batch: CtcBatch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance: the likeliest token of each frame, independently of the others.

        It does not depend on the other utterances of its batch: models that were trained without a mask of the padding
        read each row alone.

        Raises:
            UserError: More than one beam is asked for, or a limit of tokens.
        """
        texts = [self._alphabet.text(tokens) for tokens, _ in self._best_paths(batch, decoding)]
        return join_pieces((Transcript(text, text) for text in texts), batch.pieces)

    def decode_timed(self, batch: CtcBatch, decoding: Decoding = DEFAULT_DECODING) -> list[TimedText]:
        """Return the text of each row with its words, by the frames of their letters; see `Recogniser.decode_timed`."""
        timed = []
        for tokens, likelihoods in self._best_paths(batch, decoding):
            chances = np.exp(likelihoods)
            words = words_of_frames(self._alphabet.spell(tokens), chances.tolist(), self._front_end.frame)
            confidence = float(np.exp(likelihoods.mean())) if words else None
            timed.append(TimedText(self._alphabet.text(tokens), confidence, words))
        return timed

    def _best_paths(self, batch: CtcBatch, decoding: Decoding) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield the likeliest token of each frame of a row, and their log-probabilities."""
        if decoding.beams > 1 or decoding.max_new_tokens is not None:
            raise UserError("CTC models decode greedily, all frames at once: use one beam and no limit of tokens.")
        rows_at_once = 1 if self._reads_padding else len(batch.lengths)
        for rows in torch.arange(len(batch.lengths)).split(rows_at_once):
            lengths = batch.lengths[rows]
            with evaluation_mode(self.module):
                logits = self._logits(batch.inputs[rows, : int(lengths.max())], lengths)
            best = logits.float().log_softmax(-1).max(-1)
            for tokens, chances, frames in zip(best.indices, best.values, self._frames(lengths).tolist(), strict=True):
                yield tokens[:frames].tolist(), chances[:frames].cpu().numpy()

    @staticmethod
    def loading_code(name: str) -> str:
        """Return the code that loads the network; see `Recogniser`."""
        return (
            "from ssvd.recognisers.wavlm import call_projections  # changes WavLM only, whose adapters need it\n"
            "from transformers import AutoModelForCTC\n\n"
            f'model = call_projections(AutoModelForCTC.from_pretrained("{name}"))'
        )

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers checkpoint, its tokenizer and feature extractor: the dtype of the source.

        Raises:
            TypeError: An adapter is still apart; assign `module.merge_and_unload()` to `module` first.
        """
        self._check_merged()
        config = self._base_model.config
        if self._own_masking is not None:
            config.apply_spec_augment = self._own_masking
        elif hasattr(config, "apply_spec_augment"):
            del config.apply_spec_augment
        weights = {
            name: value.to(self._dtype) if value.is_floating_point() else value
            for name, value in self._base_model.state_dict().items()
        }
        self._base_model.save_pretrained(folder, state_dict=weights)
        self._extractor.save_pretrained(folder)
        self._alphabet.save(folder)


def _supported_config(name: str) -> Any:
    """Return the config of a checkpoint; raise UserError for MMS, which has the same family."""
    config = read_config(name)
    if getattr(config, "adapter_attn_dim", None) is not None:
        raise UserError(f"{name} has an adapter for each language (MMS), which is not supported.")
    if config.vocab_size is None:  # of a model that was only pretrained, as w2v-bert-2.0
        config.vocab_size = _USUAL_SYMBOLS
    return config


def _extractor(name: str, module: Any) -> Any:
    """Return the feature extractor of a checkpoint, which must agree with its network."""
    processor, preprocessor = (read_json(name, f"{part}_config.json") or {} for part in ("processor", "preprocessor"))
    with reading(f"The feature extractor of {name}", "copy preprocessor_config.json from the model that it comes from"):
        check_features(name, processor, preprocessor)
        extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
        check_ctc_input(name, module, extractor)
    return extractor


def _tokenizer(name: str, module: Any) -> Any:
    """Return the tokenizer of a checkpoint, which must agree with its network."""
    if (read_json(name, "config.json") or {}).get("vocab_size", 0) is None:
        raise UserError(
            f"The config.json of {name} states no vocab_size, as that of a model which was only pretrained: take one "
            "that was trained to transcribe, or give a vocabulary for a new head."
        )
    for file in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        read_json(name, file)
    remedy = "copy vocab.json or tokenizer.json, and tokenizer_config.json, from the model that it comes from"
    with reading(f"The tokenizer of {name}", remedy):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        check_ctc_head(name, module, tokenizer)
    return tokenizer


def _replace_head(network: Any, name: str, tokenizer: Any) -> None:
    """Put a head for the tokens of a tokenizer, all zero, in the place of a network's own."""
    head = copy.deepcopy(network.get_submodule(name))
    for part, tensor in list(head.named_parameters()):
        setattr(head, part, nn.Parameter(tensor.detach().new_zeros(len(tokenizer), *tensor.shape[1:])))
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", len(tokenizer))
    network.set_submodule(name, head)
    network.config.vocab_size, network.config.pad_token_id = len(tokenizer), tokenizer.pad_token_id


def _layer_groups(network: Any) -> LayerGroups:
    modules = network.named_modules()
    linear = [
        name
        for name, layer in modules
        if isinstance(layer, nn.Linear) and _ENCODER.search(name) and not name.endswith(_GATE)
    ]
    prefix = f"{network.base_model_prefix}.feature_extractor."
    return front_end_convolutions(network, (prefix, "encoder.subsampling.")) | dict.fromkeys(linear, ENCODER)


def head_of(network: Any) -> str:
    """Return the name of the layer that gives each frame the likelihoods of the tokens."""
    return "ctc_head" if hasattr(network, "ctc_head") else "lm_head"
