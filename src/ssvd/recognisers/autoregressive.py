"""Recognisers that write a text token by token after a prompt: what their families share."""

import copy
import math
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, GenerationConfig, StoppingCriteria

from ssvd.corpora.audio import load_audio
from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.agreement import check_equal, check_features, check_token, check_vocabulary, reading
from ssvd.recognisers.base import Recogniser, Samples, read_named, spoken_text, unknown_task
from ssvd.recognisers.decoding import (
    DEFAULT_DECODING,
    Decoding,
    Transcript,
    evaluation_mode,
    join_pieces,
    split_at_pauses,
)
from ssvd.recognisers.front_ends import hide_padding
from ssvd.recognisers.layers import LayerGroups
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.transformers_checkpoint import load_network, read_config, read_json
from ssvd.recognisers.words import TimedText, words_of_prefixes

IGNORED = -100  # label of positions that do not count in the loss
WINDOW = 30.0  # seconds that are read at once: the networks know no limit but memory, or this one
_SHORTEST = 0.1  # seconds: shorter audio is padded with silence, of which every front end makes a frame
_TOKENS_PER_SECOND = 30  # faster than anyone speaks, in the scripts that take several tokens a syllable too
_SPARE_TOKENS = 16
_REMEDY = (
    "copy tokenizer.json, tokenizer_config.json, processor_config.json, preprocessor_config.json and "
    "chat_template.jinja, those that there are, from the model that it comes from"
)


class PromptedBatch(NamedTuple):
    """Utterances: a row each, or several consecutive ones for an utterance longer than the window; nothing padded."""

    ids: list[str]
    pieces: list[int]  # rows of each utterance
    languages: list[str | None]  # code of each utterance's language; None where unknown or meaningless
    audio: list[dict[str, Tensor]]  # of each row, what the network reads beside tokens, (1, ...)
    seconds: Tensor  # (rows,), float32: of speech
    prompts: list[Tensor]  # of each row, (tokens,), int64
    texts: list[Tensor] | None  # of each row, (tokens,), int64: text and end


class RowLimits(StoppingCriteria):
    """A criterion that ends each utterance at its own length, independently of the rest of its batch."""

    def __init__(self, limits: Tensor) -> None:
        self.limits = limits

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows, (rows or beams,), have their length."""
        beams = len(input_ids) // len(self.limits)
        return (input_ids.shape[1] >= self.limits).repeat_interleave(beams)


def plain(text: str) -> str:
    """Return a text without what tokenizers may change: case, blanks, and forms that Unicode counts as the same."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_loss(logits: Tensor, labels: Tensor, label_smoothing: float | None) -> Tensor:
    """Return the mean cross-entropy over the labels that are not IGNORED, a float32 scalar.

    Args:
        logits: (rows, tokens, vocabulary).
        labels: (rows, tokens), int64: what each position predicts.
        label_smoothing: Share of the target that is spread over the vocabulary; None for none.
    """
    counted = labels != IGNORED
    return nn.functional.cross_entropy(logits[counted].float(), labels[counted], label_smoothing=label_smoothing or 0.0)


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Return tensors of one row each, (1, ...), as one whose rows are filled with zeros at their ends."""
    sizes = [max(lengths) for lengths in zip(*(row.shape[1:] for row in rows), strict=True)]
    filled = []
    for row in rows:
        missing = [size - length for size, length in zip(sizes, row.shape[1:], strict=True)]
        filled.append(nn.functional.pad(row, [side for after in reversed(missing) for side in (0, after)]))
    return torch.cat(filled)


class Autoregressive(Recogniser):
    """A network of Transformers that writes a text token by token, with the prompt that its processor makes.

    The prompt is read, not learnt; the loss is that of the text and its end. Each row is prepared by itself, so that
    nothing in it depends on the rest of its batch.

    Args:
        module: The network, not yet wrapped by PEFT.
        processor: Its processor.
        window: Seconds of the longest utterance to train on, and of the pieces that longer recordings are decoded in.
        language: Name or code of the language of utterances that do not state theirs.
        task: "transcribe".
        dtype: Type in which `save` stores the weights.

    Raises:
        UserError: The model does not have the window, language or task.
    """

    auto_class: ClassVar[Any]
    """The class of Transformers by which networks are loaded."""

    def __init__(
        self,
        module: Any,
        processor: Any,
        *,
        window: float | None = None,
        language: str | None = None,
        task: str = "transcribe",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if task != "transcribe":
            raise unknown_task(task)
        self.module = hide_padding(module)
        self._processor, self._dtype = processor, dtype
        self._tokenizer, self._features = processor.tokenizer, feature_extractor_of(processor)
        self.sampling_rate: int = self._features.sampling_rate
        longest = self._longest_window()
        if window is not None and not 0 < window <= longest:
            limit = "" if longest == math.inf else f", up to {longest:g}"
            raise UserError(f"A window of {window:g} s is not possible: this model takes more than 0{limit}.")
        self.window = window or min(WINDOW, longest)
        self._languages = self._known_languages()
        self._language = self._language_code(language)
        self.language = self._language if self._languages else language
        self._ends = end_tokens(module)
        self._end = self._end_of_text()
        self._special = {*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()}
        self._prompt_lengths: dict[tuple[str | None, int], int] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        window: float | None = None,
        language: str | None = None,
        task: str = "transcribe",
        quantisation: Quantisation | None = None,
    ) -> "Autoregressive":
        """Load float32 weights (from safetensors files only) and processor; see `load_model`."""
        outline, _ = cls.outline(name)
        module, dtype = load_network(cls.auto_class, name, outline, quantisation=quantisation)
        return cls._assembled(name, module, window=window, language=language, task=task, dtype=dtype)

    @classmethod
    def without_weights(
        cls, name: str, *, window: float | None = None, language: str | None = None
    ) -> "Autoregressive":
        """Load what `check` needs of a checkpoint, its network on the meta device; see `load_check`."""
        module, _ = cls.outline(name)
        if read_json(name, "generation_config.json") is not None:
            module.generation_config = GenerationConfig.from_pretrained(name)
        return cls._assembled(name, module, window=window, language=language)

    @classmethod
    def _assembled(cls, name: str, module: Any, **options: Any) -> "Autoregressive":
        """Return a checkpoint's network with its processor, which must agree."""
        with reading(f"The processor of {name}", _REMEDY):
            processor = load_processor(name)
            speech = cls(module, processor, **options)
            speech._check_parts(name)
        return speech

    @classmethod
    def outline(cls, name: str) -> tuple[nn.Module, LayerGroups]:
        """Return the network without its weights, on the meta device, and its layers; see `load_outline`."""
        config = read_config(name)
        cls._check_config(name, config)
        with reading(f"The config.json of {name}", "copy it from the model that it comes from"), torch.device("meta"):
            module = cls.auto_class.from_config(config)
        return module, cls._layer_groups(module)

    def layer_groups(self) -> LayerGroups:
        """Return the convolutions that read the features, and all linear layers but the output layer."""
        return self._layer_groups(self._base_model)

    @staticmethod
    @abstractmethod
    def _layer_groups(network: Any) -> LayerGroups:
        """Return the layers of a network that an adapter may change, each with its group."""

    @staticmethod
    def _check_config(name: str, config: Any) -> None:
        """Raise UserError for a checkpoint of the family that is not supported."""

    @abstractmethod
    def _longest_window(self) -> float:
        """Return the seconds that the network can read at once; infinity where only memory limits it."""

    @abstractmethod
    def _known_languages(self) -> Mapping[str, str]:
        """Return the languages that the prompt may state, code -> name; none where it states none."""

    @abstractmethod
    def _end_of_text(self) -> int:
        """Return the token that ends a text in training."""

    def _tokenizer_end(self) -> int:
        """Return the end token of the tokenizer, at which decoding must end."""
        end = self._tokenizer.eos_token_id
        if end not in self._ends:
            raise UserError(
                f"The end token of the tokenizer, {self._tokenizer.eos_token!r}, is none of those at which decoding "
                f"ends ({', '.join(map(str, sorted(self._ends)))}): copy tokenizer_config.json, config.json and "
                "generation_config.json from the same model."
            )
        return int(end)

    @abstractmethod
    def _positions(self) -> int:
        """Return how many tokens the decoder can read, prompt and text."""

    @abstractmethod
    def _prepared(self, samples: Samples, language: str | None) -> tuple[list[int], dict[str, Tensor]]:
        """Return the prompt of one row, and what the network reads beside tokens, (1, ...)."""

    @abstractmethod
    def _frames(self, audio: Mapping[str, Tensor]) -> tuple[str, int, Tensor]:
        """Return the name of the features in `audio`, their axis of time, and how many frames each row has."""

    @abstractmethod
    def _logits(self, audio: dict[str, Tensor], prompts: list[Tensor], texts: list[Tensor]) -> Tensor:
        """Return what the network predicts where it should predict the texts, (rows, longest text, vocabulary)."""

    @abstractmethod
    def _generate(self, batch: PromptedBatch, limits: Tensor, options: GenerationConfig) -> Tensor:
        """Return the tokens (rows, length) that follow the prompts; `limits` are those of the rows."""

    def _rows_at_once(self, rows: int) -> int:
        """Return how many rows are decoded at once: fewer where padding changes what the encoder makes of a row."""
        return rows

    def _check_parts(self, name: str) -> None:
        """Raise UserError if processor and network disagree; called once after loading."""
        size = self._base_model.get_output_embeddings().out_features
        check_vocabulary(name, self._tokenizer.get_vocab(), size, "tokenizer.json and tokenizer_config.json")
        for token in self._ends:
            check_token(name, "the end token", token, size)
        second = np.zeros(self.sampling_rate, np.float32)
        prompt, _ = self._prepared(second, next(iter(self._languages), None))
        for token in prompt:
            check_token(name, "a token of the prompt", token, size)

    def _language_code(self, language: str | None) -> str | None:
        """The model's code of a language given by English name or BCP-47 tag; None if none is given or needed."""
        if not language or not self._languages:
            return None
        name = language.strip().lower()
        by_name = {spelt.lower(): code for code, spelt in self._languages.items()}
        code = by_name.get(name, re.split("[-_]", name)[0])
        if code not in self._languages:
            raise UserError(
                f"This model does not know the language {language!r}; it knows {', '.join(self._languages.values())}."
            )
        return code

    def _cut_language(self, cut: Cut) -> str | None:
        stated = next((s.language for s in cut.supervisions if s.language), None)
        return self._language_code(stated) or self._language

    def _spoken_language(self, piece: Samples, language: str | None) -> str | None:
        return self._language_code(language) or self._language

    def input_seconds(self, duration: float) -> float:
        """Return the seconds that the network reads for an utterance alone in its batch."""
        return max(duration, _SHORTEST)

    def _target(self, cut: Cut) -> list[int]:
        """Return text and end of an utterance as tokens."""
        if cut.duration > self.window:
            raise UserError(
                f"It lasts {cut.duration:.2f} s and the window is {self.window:g} s: cut it, leave it out, or use a "
                "longer window."
            )
        language = self._cut_language(cut)
        if self._languages and language is None:
            raise UserError("The language is not stated, in the data or as an option, and this model needs it.")
        text = spoken_text(cut, self._special)
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        if self._tokenizer.unk_token_id in tokens or plain(self._text(tokens)) != plain(text):
            raise UserError(f"Its text has marks that the model's vocabulary lacks: {text!r}.")
        # The end is predicted, never read, so it needs no position.
        length, limit = self._prompt_length(language, cut.duration) + len(tokens), self._positions()
        if length > limit:
            raise UserError(
                f"Its text and its audio take {length} tokens and the decoder has {limit}: cut it, or leave it out."
            )
        return [*tokens, self._end]

    def _prompt_length(self, language: str | None, duration: float) -> int:
        """Return how many tokens a prompt takes at most, from silence of as many whole seconds."""
        key = language, math.ceil(duration)
        if key not in self._prompt_lengths:
            silence = np.zeros(round(min(key[1], self.window) * self.sampling_rate), np.float32)
            self._prompt_lengths[key] = len(self._prepared(silence, language)[0])
        return self._prompt_lengths[key]

    def collate(self, cuts: Iterable[Cut], *, text: bool = True) -> PromptedBatch:
        """Read utterances as one batch: with `text` to train on or decode, without it only to decode.

        Without `text`, one longer than the window is cut at its pauses. Its text is learnt as it stands.

        Raises:
            UserError: An utterance cannot be read or, with `text`, `check` finds fault with it; it is named.
        """
        cuts = list(cuts)
        languages = [read_named(cut, self._cut_language) for cut in cuts]
        targets = [torch.tensor(read_named(cut, self._target)) for cut in cuts] if text else None
        audio = [load_audio(cut, self.sampling_rate) for cut in cuts]
        pieces = [[samples] if text else self._split(samples) for samples in audio]
        return self._batch([cut.id for cut in cuts], pieces, languages)._replace(texts=targets)

    def _batch(
        self, ids: list[str], pieces: Sequence[Sequence[Samples]], languages: Sequence[str | None]
    ) -> PromptedBatch:
        audio, prompts, seconds = [], [], []
        shortest = round(_SHORTEST * self.sampling_rate)
        for utterance, language in zip(pieces, languages, strict=True):
            for piece in utterance:
                samples = piece[: math.ceil(self.window * self.sampling_rate)]
                prompt, inputs = self._prepared(np.pad(samples, (0, max(0, shortest - len(samples)))), language)
                audio.append(inputs)
                prompts.append(torch.tensor(prompt))
                seconds.append(len(samples) / self.sampling_rate)
        counts = [len(utterance) for utterance in pieces]
        return PromptedBatch(ids, counts, list(languages), audio, torch.tensor(seconds), prompts, None)

    def _split(self, samples: Samples) -> list[Samples]:
        # Resampling may add a sample or two.
        return split_at_pauses(samples, round(self.window * self.sampling_rate), self.sampling_rate, slack=160)

    def loss(self, batch: PromptedBatch, *, label_smoothing: float | None = None) -> Tensor:
        """Return the cross-entropy of text and end given prompt and audio, the mean over tokens: a float32 scalar.

        The prompt is read, not learnt: decoding always gives it. In training mode `spec_augment` masks the features.

        Raises:
            UserError: `spec_augment` is set, and the network reads samples, not features.
            ValueError: The batch was collated without text.
        """
        if batch.texts is None:
            raise ValueError("the batch has no labels: collate it with text=True")
        audio = self._placed(batch.audio)
        if self.spec_augment is not None and self.module.training:
            name, axis, frames = self._frames(audio)
            masked = self.spec_augment(audio[name].movedim(axis, -1), frames)
            audio[name] = masked.movedim(-1, axis)
        logits = self._logits(audio, batch.prompts, batch.texts)
        labels = pad_sequence(batch.texts, batch_first=True, padding_value=IGNORED).to(logits.device)
        return text_loss(logits, labels, label_smoothing)

    def loss_weight(self, batch: PromptedBatch) -> int:
        """Return the number of tokens over which `loss` is the mean."""
        return sum(len(text) for text in batch.texts or [])

    def decode(self, batch: PromptedBatch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance by greedy or beam search, without special tokens and outer spaces.

        An utterance gets at most 16 tokens and 30 for each second, which is faster than people speak: a model that
        repeats itself without end stops there, at the limit of `decoding` or where the decoder has no more positions.
        A text does not depend on the others of its batch.

        Args:
            batch: Labels, if it has any, are not looked at.
            decoding: The search; its limit of tokens is one for each row. There is no fallback.
        """
        texts: list[str] = []
        with evaluation_mode(self.module):
            for rows in torch.arange(len(batch.audio)).split(self._rows_at_once(len(batch.audio))):
                found = self._search(self._selected(batch, rows.tolist()), decoding)
                texts += [self._written(tokens) for tokens in found]
        return join_pieces((Transcript(text, text) for text in texts), batch.pieces)

    def decode_timed(self, batch: PromptedBatch, decoding: Decoding = DEFAULT_DECODING) -> list[TimedText]:
        """Return the text of each row with its words, without times; see `Recogniser.decode_timed`."""
        timed: list[TimedText] = []
        with evaluation_mode(self.module):
            for rows in torch.arange(len(batch.audio)).split(self._rows_at_once(len(batch.audio))):
                part = self._selected(batch, rows.tolist())
                found = self._search(part, decoding)
                texts = [torch.tensor(tokens, dtype=torch.long) for tokens in found]
                logits = self._logits(self._placed(part.audio), part.prompts, texts)
                for tokens, predicted in zip(found, logits, strict=True):
                    likelihoods = predicted[: len(tokens)].float().log_softmax(-1)[range(len(tokens)), tokens].cpu()
                    timed.append(self._timed(tokens, likelihoods))
        return timed

    def _timed(self, tokens: list[int], likelihoods: Tensor) -> TimedText:
        """Return what the decoder wrote, with the log-probability of each token, as text and words."""
        prefixes = [self._written(tokens[: length + 1]) for length in range(len(tokens))]
        words = words_of_prefixes(prefixes, likelihoods.exp().tolist())
        return TimedText(prefixes[-1], float(likelihoods.mean().exp()) if words else None, words)

    @staticmethod
    def _selected(batch: PromptedBatch, rows: list[int]) -> PromptedBatch:
        audio, prompts = [batch.audio[row] for row in rows], [batch.prompts[row] for row in rows]
        return batch._replace(audio=audio, prompts=prompts, seconds=batch.seconds[rows], texts=None)

    def _search(self, batch: PromptedBatch, decoding: Decoding) -> list[list[int]]:
        """Return the tokens that the decoder writes for each row: up to its first end, or its limit."""
        limits = (_SPARE_TOKENS + _TOKENS_PER_SECOND * batch.seconds).long()
        room = self._positions() - torch.tensor([len(prompt) for prompt in batch.prompts])
        limits = torch.minimum(limits, room.clamp(min=1))
        if decoding.max_new_tokens is not None:
            limits = limits.clamp(max=decoding.max_new_tokens)
        options = copy.deepcopy(self._base_model.generation_config)
        options.update(
            max_length=None,
            max_new_tokens=int(limits.max()),
            num_beams=decoding.beams,
            do_sample=False,
            num_return_sequences=1,
            # Made for chats: they would count what fills a prompt as written, and repeated words as wrong.
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=sorted(self._ends),
            pad_token_id=self._end,
            return_dict_in_generate=False,
        )
        written = self._generate(batch, limits, options).tolist()
        return [self._until_end(row[:limit]) for row, limit in zip(written, limits.tolist(), strict=True)]

    def _until_end(self, tokens: list[int]) -> list[int]:
        """Return the tokens up to the first end, and with it."""
        return tokens[: next((place + 1 for place, token in enumerate(tokens) if token in self._ends), len(tokens))]

    def _written(self, tokens: list[int]) -> str:
        """Return the text of what the decoder wrote: what stands before the first end."""
        length = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        return self._text(tokens[:length])

    def _text(self, tokens: list[int]) -> str:
        """Return what tokens spell; some checkpoints ask for a clean-up that joins komt 's to komt's."""
        spelt = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(spelt).strip()

    def _placed(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the rows in a tensor for each name, on the network's device and, but for masks, of its dtype."""
        weight = next(self._base_model.parameters())
        placed = {}
        for name in rows[0]:
            tensor = stacked([row[name] for row in rows])
            placed[name] = tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else tensor.dtype)
        return placed

    @classmethod
    def loading_code(cls, name: str) -> str:
        """Return the code that loads the network; see `Recogniser`."""
        kind = cls.auto_class.__name__
        return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("{name}")'

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers checkpoint and its processor: the dtype of the source, safetensors.

        Raises:
            TypeError: An adapter is still apart; assign `module.merge_and_unload()` to `module` first.
        """
        self._check_merged()
        network = self._base_model
        whole = network if self._dtype == torch.float32 else copy.deepcopy(network).to(self._dtype)
        whole.save_pretrained(folder)
        self._processor.save_pretrained(folder)


def feature_extractor_of(processor: Any) -> Any:
    """Return the feature extractor of a processor, which has one of two names."""
    return getattr(processor, "feature_extractor", None) or processor.audio_processor


def end_tokens(network: Any) -> set[int]:
    """Return the tokens at which decoding ends."""
    configs = network.generation_config, network.config, network.config.get_text_config(decoder=True)
    stated = next((end for end in (getattr(c, "eos_token_id", None) for c in configs) if end is not None), ())
    return {stated} if isinstance(stated, int) else set(stated)


def load_processor(name: str) -> Any:
    """Load the processor of a checkpoint.

    Raises:
        UserError: A file of it is damaged, or two of them state different features.
        Exception: Whatever Transformers raises on files that it does not understand.
    """
    processor, preprocessor = (read_json(name, f"{part}_config.json") or {} for part in ("processor", "preprocessor"))
    read_json(name, "tokenizer_config.json")
    described = {"feature_extractor": processor.get("feature_extractor") or processor.get("audio_processor")}
    check_features(name, described, preprocessor)
    return AutoProcessor.from_pretrained(name, trust_remote_code=False)


def check_bands(name: str, own: int, extracted: int) -> None:
    """Check that a network reads as many mel bands as its feature extractor makes.

    Raises:
        UserError: It does not.
    """
    check_equal(name, "the mel bands", {"config.json": own, "the feature extractor": extracted})
