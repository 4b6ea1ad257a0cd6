"""Encoders that give a frame for each stretch of audio, with what writes of frames: CTC heads and transducers."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoFeatureExtractor, AutoTokenizer

from ssvd.corpora.audio import load_audio
from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.agreement import check_encoder_input, check_features, reading
from ssvd.recognisers.alphabets import alphabet_of
from ssvd.recognisers.base import Recogniser, Samples, read_named, spoken_text, unknown_task
from ssvd.recognisers.decoding import split_at_pauses
from ssvd.recognisers.front_ends import front_end_of, hide_padding, output_frames
from ssvd.recognisers.layers import ENCODER, LayerGroups
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.transformers_checkpoint import load_network, read_config, read_json

WINDOW = 30.0  # seconds that are read at once: these encoders know no limit but memory
_LAYER = re.compile(r"(^|\.)encoder\.(encoder\.)?layers?\.")

_Loaded = TypeVar("_Loaded", bound="FrameRecogniser")


class FrameBatch(NamedTuple):
    """Utterances as tensors: a row each, or several consecutive ones for an utterance longer than the window."""

    ids: list[str]
    pieces: list[int]  # rows of each utterance
    inputs: Tensor  # (rows, length of the longest) or (rows, length, bands), float32, padded with zeros
    lengths: Tensor  # (rows,), int64: of the input without padding
    labels: Tensor | None  # (tokens of all rows,), int64: one row's after the other
    label_lengths: Tensor | None  # (rows,), int64


class FrameRecogniser(Recogniser):
    """A checkpoint of Transformers that writes of the frames of its encoder.

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

    auto_class: ClassVar[Any]
    """The class of Transformers by which networks are loaded."""

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
        self.module = hide_padding(module)
        self.sampling_rate = extractor.sampling_rate
        self.window = window or WINDOW
        self.language = language
        self._extractor, self._tokenizer, self._dtype = extractor, tokenizer, dtype
        self._alphabet = alphabet_of(tokenizer)
        self._front_end = front_end_of(extractor, module)
        if module.config.model_type.startswith("parakeet"):
            # Its published configs state 0.1, and it was trained without: huggingface.co/nvidia/parakeet-ctc-1.1b,
            # discussion 5.
            module.encoder.layerdrop = 0.0

    @classmethod
    def from_pretrained(
        cls: type[_Loaded],
        name: str,
        *,
        window: float | None = None,
        language: str | None = None,
        task: str = "transcribe",
        quantisation: Quantisation | None = None,
    ) -> _Loaded:
        """Load float32 weights (from safetensors files only), tokenizer and feature extractor; see `load_model`."""
        outline, _ = cls.outline(name)
        extractor, tokenizer = cls._read_extractor(name, outline), cls._read_tokenizer(name, outline)
        module, dtype = load_network(cls.auto_class, name, outline, quantisation=quantisation)
        return cls(module, extractor, tokenizer, window=window, language=language, task=task, dtype=dtype)

    @classmethod
    def without_weights(
        cls: type[_Loaded], name: str, *, window: float | None = None, language: str | None = None
    ) -> _Loaded:
        """Load what `check` needs of a checkpoint, its network on the meta device; see `load_check`."""
        module, _ = cls.outline(name)
        extractor, tokenizer = cls._read_extractor(name, module), cls._read_tokenizer(name, module)
        return cls(module, extractor, tokenizer, window=window, language=language)

    @classmethod
    def outline(cls, name: str) -> tuple[nn.Module, LayerGroups]:
        """Return the network without its weights, on the meta device, and its layers; see `load_outline`."""
        config = cls._supported(name, read_config(name))
        with reading(f"The config.json of {name}", "copy it from the model that it comes from"), torch.device("meta"):
            module = cls.auto_class.from_config(config)
        return module, cls._layer_groups(module)

    @staticmethod
    @abstractmethod
    def _supported(name: str, config: Any) -> Any:
        """Return the config of a checkpoint; raise UserError for one of the family that is not supported."""

    @staticmethod
    def _read_extractor(name: str, network: Any) -> Any:
        """Return the feature extractor of a checkpoint, which must agree with its network."""
        processor, preprocessor = (
            read_json(name, f"{part}_config.json") or {} for part in ("processor", "preprocessor")
        )
        remedy = "copy preprocessor_config.json from the model that it comes from"
        with reading(f"The feature extractor of {name}", remedy):
            check_features(name, processor, preprocessor)
            extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
            check_encoder_input(name, network, extractor)
        return extractor

    @classmethod
    def _read_tokenizer(cls, name: str, network: Any) -> Any:
        """Return the tokenizer of a checkpoint, which must agree with its network."""
        for file in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            read_json(name, file)
        remedy = "copy vocab.json or tokenizer.json, and tokenizer_config.json, from the model that it comes from"
        with reading(f"The tokenizer of {name}", remedy):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            cls._check_tokenizer(name, network, tokenizer)
        return tokenizer

    @staticmethod
    @abstractmethod
    def _check_tokenizer(name: str, network: Any, tokenizer: Any) -> None:
        """Raise UserError if a tokenizer does not belong to a network."""

    @staticmethod
    @abstractmethod
    def _output_layer(network: Any) -> str:
        """Return the name of the layer that says how likely each token is."""

    @staticmethod
    @abstractmethod
    def _layer_groups(network: Any) -> LayerGroups:
        """Return the layers of a network that an adapter may change, each with its group."""

    def layer_groups(self) -> LayerGroups:
        """Return the convolutions that read the audio, and the linear layers that are adapted, not the output."""
        return self._layer_groups(self._base_model)

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
        return self._alphabet.encode(spoken_text(cut, self._alphabet.special))

    def _frames(self, lengths: Tensor) -> Tensor:
        """Return the number of frames that the network makes of inputs of these lengths."""
        return output_frames(self._base_model, lengths)

    def collate(self, cuts: Iterable[Cut], *, text: bool = True) -> FrameBatch:
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

    def _batch(
        self, ids: list[str], pieces: Sequence[Sequence[Samples]], languages: Sequence[str | None]
    ) -> FrameBatch:
        rows = [piece for utterance in pieces for piece in utterance]
        shortest = self._front_end.shortest
        inputs = [self._front_end(np.pad(row, (0, max(0, shortest - len(row))))) for row in rows]
        lengths = torch.tensor([len(row) for row in inputs])
        padded = pad_sequence(inputs, batch_first=True)
        return FrameBatch(ids, [len(utterance) for utterance in pieces], padded, lengths, None, None)

    def _split(self, samples: Samples) -> list[Samples]:
        return split_at_pauses(samples, round(self.window * self.sampling_rate), self.sampling_rate, slack=160)

    def _masked(self, batch: FrameBatch) -> Tensor:
        """Return the features of a batch, masked in training mode if that is asked for."""
        if self.spec_augment is None or not self.module.training:
            return batch.inputs
        return self.spec_augment(batch.inputs.transpose(1, 2), batch.lengths).transpose(1, 2)

    def _keep_statistics(self) -> None:
        """Let batch normalisation keep its statistics, which are not the adapter's and would not be stored."""
        for layer in self.module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.eval()

    def _read(self, inputs: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return the arguments by which the network reads inputs, of its device and type."""
        network = self._base_model
        inputs = inputs.to(next(network.get_submodule(self._output_layer(network)).parameters()))
        given = {self._front_end.argument: inputs}
        if self._front_end.is_masked:
            mask = torch.arange(inputs.shape[1], device=inputs.device) < lengths.to(inputs.device)[:, None]
            given["attention_mask"] = mask.long()
        return given

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers checkpoint, its tokenizer and feature extractor: the dtype of the source.

        Raises:
            TypeError: An adapter is still apart; assign `module.merge_and_unload()` to `module` first.
        """
        self._check_merged()
        weights = {
            name: value.to(self._dtype) if value.is_floating_point() else value
            for name, value in self._base_model.state_dict().items()
        }
        self._base_model.save_pretrained(folder, state_dict=weights)
        self._extractor.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)


def encoder_layers(network: nn.Module) -> LayerGroups:
    """Return the linear layers of attention and feed-forward in the encoder of a network."""
    linear = (name for name, layer in network.named_modules() if isinstance(layer, nn.Linear))
    return {name: ENCODER for name in linear if _LAYER.search(name)}
