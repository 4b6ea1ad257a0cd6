"""Recognisers whose decoder is a language model: what an encoder makes of speech stands among the tokens of a prompt.

Qwen3-ASR (arXiv 2601.21337), GLM-ASR, Qwen2-Audio (arXiv 2407.10759).
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForMultimodalLM, GenerationConfig, StoppingCriteriaList
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME as QWEN3_LANGUAGES

from ssvd.errors import UserError
from ssvd.recognisers.agreement import check_equal
from ssvd.recognisers.autoregressive import Autoregressive, PromptedBatch, RowLimits, check_bands
from ssvd.recognisers.base import Samples
from ssvd.recognisers.decoding import whole_windows
from ssvd.recognisers.layers import DECODER, ENCODER, PROJECTOR, LayerGroups, front_end_convolutions

_ENCODER, _PROJECTOR, _DECODER = "model.audio_tower.", "model.multi_modal_projector.", "model.language_model."
_SPOKEN = "spoken words"  # stands for a text where the template is asked what follows one


@dataclass(frozen=True)
class _Kind:
    """What differs between the families.

    Attributes:
        mask: Name under which the network takes the mask of the features.
        languages: Languages that the prompt may state, code -> name.
        instruction: What the user's turn of the chat says beside the audio; None where the processor knows it.
        reads_windows: Whether the network reads audio in windows of one length.
        mark: Symbol that the decoder writes before the text where it is to name the language itself.
    """

    mask: str
    languages: Mapping[str, str]
    instruction: str | None = None
    reads_windows: bool = False
    mark: str | None = None


_KINDS = {
    "qwen3_asr": _Kind("input_features_mask", QWEN3_LANGUAGES, mark="<asr_text>"),
    "glmasr": _Kind("input_features_mask", {}, reads_windows=True),
    # The instruction of its authors' own evaluation.
    "qwen2_audio": _Kind(
        "feature_attention_mask", {}, "Detect the language and recognize the speech:", reads_windows=True
    ),
}


class SpeechLanguageModel(Autoregressive):
    """An audio encoder before a language model as a `Recogniser`.

    The prompt is the one of the processor: its chat template, its instruction, and for Qwen3-ASR the language of the
    utterance (its supervision's, else `language`; in decoding only, else the model names one before each text).
    """

    auto_class = AutoModelForMultimodalLM

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self._base_model.config.model_type]

    @staticmethod
    def _check_config(name: str, config: Any) -> None:
        if hasattr(config, "thinker_config"):
            raise UserError(
                f"{name} is laid out for the package qwen-asr: take the same model in the layout of Transformers, "
                "whose name ends in -hf (Qwen/Qwen3-ASR-0.6B-hf, Qwen/Qwen3-ASR-1.7B-hf)."
            )

    @staticmethod
    def _layer_groups(network: Any) -> LayerGroups:
        prefixes = {_ENCODER: ENCODER, _PROJECTOR: PROJECTOR, _DECODER: DECODER}
        groups = {}
        for name, layer in network.named_modules():
            prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
            if prefix is not None and isinstance(layer, nn.Linear):
                groups[name] = prefixes[prefix]
        return front_end_convolutions(network, f"{_ENCODER}conv") | groups

    def _longest_window(self) -> float:
        return float(self._features.chunk_length) if self._kind.reads_windows else math.inf

    def _known_languages(self) -> Mapping[str, str]:
        return self._kind.languages

    def _end_of_text(self) -> int:
        """Return the token that the chat template writes after a turn, if decoding ends there, else the tokenizer's."""
        silence = np.zeros(self.sampling_rate, np.float32)
        user = {"role": "user", "content": [{"type": "audio", "audio": silence}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": _SPOKEN}]}
        try:
            rendered = self._processor.apply_chat_template([user, answer, user], tokenize=False)
        except (TemplateError, TypeError):  # a template for one turn, or for texts that are no lists of parts
            return self._tokenizer_end()
        _, _, following = rendered.partition(_SPOKEN)
        for token in self._tokenizer.encode(following, add_special_tokens=False)[:2]:
            if token in self._ends:
                return token
        return self._tokenizer_end()

    def _positions(self) -> int:
        return int(self._base_model.config.get_text_config(decoder=True).max_position_embeddings)

    def _prepared(self, samples: Samples, language: str | None) -> tuple[list[int], dict[str, Tensor]]:
        if (instruction := self._kind.instruction) is not None:
            content = [{"type": "audio", "audio": samples}, {"type": "text", "text": instruction}]
            inputs = self._processor.apply_chat_template(
                [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, add_generation_prompt=True
            )
        elif self._languages:
            inputs = self._processor.apply_transcription_request([samples], language=[language] if language else None)
        else:
            inputs = self._processor.apply_transcription_request([samples])
        audio = {name: torch.as_tensor(inputs[name]) for name in ("input_features", self._kind.mask)}
        return torch.as_tensor(inputs["input_ids"])[0].tolist(), audio

    def _frames(self, audio: Mapping[str, Tensor]) -> tuple[str, int, Tensor]:
        return "input_features", 2, audio[self._kind.mask].sum(-1)

    def input_seconds(self, duration: float) -> float:
        """Return the seconds that the network reads for an utterance alone in its batch."""
        if self._kind.reads_windows:
            return whole_windows(duration, self._features.chunk_length)
        return max(super().input_seconds(duration), self._features.min_length / self.sampling_rate)

    def _check_parts(self, name: str) -> None:
        super()._check_parts(name)
        config, audio = self._base_model.config, self._base_model.config.audio_config
        check_bands(name, audio.num_mel_bins, self._features.feature_size)
        placeholders = {"config.json": config.audio_token_id, "the tokenizer": self._processor.audio_token_id}
        check_equal(name, "the token that stands for audio", placeholders)
        if not self._kind.reads_windows:
            chunks = {"config.json": audio.n_window, "the feature extractor": self._features.n_window}
            check_equal(name, "the frames that the encoder reads at once (n_window)", chunks)
        elif (positions := getattr(audio, "max_source_positions", None)) is not None:
            frames = {"config.json": 2 * positions, "the feature extractor": self._features.nb_max_frames}
            check_equal(name, "the frames of a window", frames)

    def _prompt_batch(self, prompts: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return prompts, filled at their beginnings, and their mask, both (rows, tokens)."""
        tokens = pad_sequence(prompts, batch_first=True, padding_value=self._end, padding_side="left")
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(tokens.shape[1]) >= tokens.shape[1] - lengths[:, None]
        return tokens.to(device), mask.long().to(device)

    def _logits(self, audio: dict[str, Tensor], prompts: list[Tensor], texts: list[Tensor]) -> Tensor:
        # Prompts end where texts begin, so that the same last columns of all rows predict texts.
        device = audio["input_features"].device
        tokens, mask = self._prompt_batch(prompts, device)
        written = pad_sequence(texts, batch_first=True, padding_value=self._end).to(device)
        inputs = torch.cat([tokens, written], 1)[:, :-1]
        mask = torch.cat([mask, mask.new_ones(written.shape)], 1)[:, :-1]  # what comes after the end sees, unseen
        length = written.shape[1]
        has_choice = "logits_to_keep" in inspect.signature(self._base_model.forward).parameters
        return self.module(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            **audio,
            **({"logits_to_keep": length} if has_choice else {}),
        ).logits[:, -length:]

    def _generate(self, batch: PromptedBatch, limits: Tensor, options: GenerationConfig) -> Tensor:
        audio = self._placed(batch.audio)
        tokens, mask = self._prompt_batch(batch.prompts, audio["input_features"].device)
        length = tokens.shape[1]
        written = self._base_model.generate(
            input_ids=tokens,
            attention_mask=mask,
            generation_config=options,
            stopping_criteria=StoppingCriteriaList([RowLimits(length + limits.to(tokens.device))]),
            **audio,
        )
        return written[:, length:]

    def _written(self, tokens: list[int]) -> str:
        """Return the text of what the decoder wrote: what stands after the mark, if there is one, before the end."""
        mark = self._tokenizer.get_vocab().get(self._kind.mark or "")
        if mark in tokens:
            tokens = [token for token in tokens[tokens.index(mark) :] if token != mark]
        return super()._written(tokens)
