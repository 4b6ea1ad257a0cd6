"""Encoders and decoders of Transformers other than Whisper, trained by labels: Moonshine, Canary and their like."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSpeechSeq2Seq, GenerationConfig, StoppingCriteriaList
from transformers.models.canary.processing_canary import LANGUAGE_CODE_TO_NAME as CANARY_LANGUAGES
from transformers.models.cohere_asr.processing_cohere_asr import LANGUAGES as COHERE_LANGUAGES
from transformers.models.whisper.tokenization_whisper import LANGUAGES as NAMES

from ssvd.errors import UserError
from ssvd.recognisers.autoregressive import Autoregressive, PromptedBatch, RowLimits, check_bands
from ssvd.recognisers.base import Samples
from ssvd.recognisers.layers import DECODER, ENCODER, LayerGroups, front_end_convolutions

_ENCODER = "model.encoder."


@dataclass(frozen=True)
class _Kind:
    """What differs between the families.

    Attributes:
        front_end: Prefix of the convolutions that read the features or the audio; None where they compute what no
            adapter of a convolution does.
        features: Name under which the network takes them; "input_values" are samples.
        languages: Languages that the prompt states, code -> name.
        hides_padding: Whether the encoder makes the same of a row whatever follows it.
    """

    front_end: str | None
    features: str = "input_features"
    languages: Mapping[str, str] | None = None
    hides_padding: bool = False


_KINDS = {
    "canary": _Kind(f"{_ENCODER}subsampling.", languages=CANARY_LANGUAGES, hides_padding=True),
    "cohere_asr": _Kind(
        f"{_ENCODER}subsampling.",
        languages={code: NAMES[code].title() for code in sorted(COHERE_LANGUAGES)},
        hides_padding=True,
    ),
    "moonshine": _Kind(f"{_ENCODER}conv", "input_values"),
    "moonshine_streaming": _Kind(None, "input_values"),
    "speech_to_text": _Kind(f"{_ENCODER}conv."),
}


class Seq2Seq(Autoregressive):
    """An encoder and a decoder of Transformers as a `Recogniser`.

    The decoder begins with what the processor makes of the language (Canary and Cohere; it is that of the utterance's
    supervision, else `language`), else with its start token.
    """

    auto_class = AutoModelForSpeechSeq2Seq

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self._base_model.config.model_type]

    @staticmethod
    def _layer_groups(network: Any) -> LayerGroups:
        output = network.get_output_embeddings()
        linear = [n for n, layer in network.named_modules() if isinstance(layer, nn.Linear) and layer is not output]
        prefix = _KINDS[network.config.model_type].front_end
        front_end = {} if prefix is None else front_end_convolutions(network, prefix)
        return front_end | {name: ENCODER if name.startswith(_ENCODER) else DECODER for name in linear}

    def _longest_window(self) -> float:
        # Cohere's feature extractor cuts longer audio itself.
        clip = getattr(self._features, "max_audio_clip_s", math.inf)
        return float(clip - getattr(self._features, "overlap_chunk_second", 0))

    def _known_languages(self) -> Mapping[str, str]:
        return self._kind.languages or {}

    def _end_of_text(self) -> int:
        return self._tokenizer_end()

    def _positions(self) -> int:
        config = self._base_model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_target_positions", None) or config.max_position_embeddings)

    def _cut_language(self, cut: Any) -> str | None:
        return self._stated(super()._cut_language(cut))

    def _spoken_language(self, piece: Samples, language: str | None) -> str | None:
        return self._stated(super()._spoken_language(piece, language))

    def _stated(self, language: str | None) -> str | None:
        """Return a language, without which these models cannot decode either."""
        if language is None and self._languages:
            raise UserError("The language is not stated, in the data or as an option, and this model needs it.")
        return language

    def _prepared(self, samples: Samples, language: str | None) -> tuple[list[int], dict[str, Tensor]]:
        kind, rate = self._kind, self.sampling_rate
        if hasattr(self._processor, "apply_transcription_request"):
            inputs = self._processor.apply_transcription_request([samples], source_language=[language])
        elif kind.languages:
            inputs = self._processor(audio=[samples], language=language, sampling_rate=rate)
        else:
            options = {"sampling_rate": rate, "return_tensors": "pt", "padding": True, "return_attention_mask": True}
            with np.errstate(invalid="ignore", divide="ignore"):
                inputs = self._processor(samples, **options)
        # Where silence is scaled to a variance of 1, as in Speech2Text, nothing is divided by nothing.
        audio = {kind.features: _finite(inputs[kind.features]), "attention_mask": inputs["attention_mask"]}
        prompt = inputs.get("decoder_input_ids")
        return [self._base_model.config.decoder_start_token_id] if prompt is None else prompt[0].tolist(), audio

    def _frames(self, audio: Mapping[str, Tensor]) -> tuple[str, int, Tensor]:
        if self._kind.features != "input_features":
            raise UserError("This model reads samples, not features, so there is nothing to mask: set no SpecAugment.")
        return "input_features", 1, audio["attention_mask"].sum(-1)

    def _rows_at_once(self, rows: int) -> int:
        return rows if self._kind.hides_padding else 1

    def _check_parts(self, name: str) -> None:
        if getattr(self._tokenizer, "lang_code_to_id", None):
            raise UserError(f"{name} translates into the languages of its tokenizer: take a model that transcribes.")
        super()._check_parts(name)
        config = self._base_model.config
        bands = getattr(config, "input_feat_per_channel", None)
        encoder = getattr(config, "encoder_config", None)
        bands = getattr(encoder, "num_mel_bins", bands)
        if bands is not None:
            check_bands(name, bands, self._features.feature_size)

    def _logits(self, audio: dict[str, Tensor], prompts: list[Tensor], texts: list[Tensor]) -> Tensor:
        device = audio["attention_mask"].device
        written = pad_sequence(texts, batch_first=True, padding_value=self._end).to(device)
        inputs = torch.cat([torch.stack(prompts).to(device), written], 1)[:, :-1]
        return self.module(decoder_input_ids=inputs, use_cache=False, **audio).logits[:, -written.shape[1] :]

    def _generate(self, batch: PromptedBatch, limits: Tensor, options: GenerationConfig) -> Tensor:
        audio = self._placed(batch.audio)
        prompts = torch.stack(batch.prompts).to(audio["attention_mask"].device)
        length = prompts.shape[1]
        options.decoder_start_token_id = int(prompts[0, 0])  # else Transformers would put its own before another one
        written = self._base_model.generate(
            decoder_input_ids=prompts,
            generation_config=options,
            stopping_criteria=StoppingCriteriaList([RowLimits(length + limits.to(prompts.device))]),
            **audio,
        )
        return written[:, length:]


def _finite(features: Tensor) -> Tensor:
    """Return features with zeros where silence, which has no variance, was divided by its deviation."""
    return features.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
