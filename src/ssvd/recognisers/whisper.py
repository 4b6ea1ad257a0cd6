"""Whisper (Radford et al. 2022, arXiv 2212.04356): OpenAI's checkpoints, their descendants, small ones of one's own."""

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.tokenization_whisper import (
    LANGUAGES,
    TO_LANGUAGE_CODE,
    _combine_tokens_into_words,
)

from ssvd.corpora.audio import load_audio
from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.agreement import ENGLISH_VOCABULARY, check_features, check_whisper, reading
from ssvd.recognisers.autoregressive import IGNORED, RowLimits, plain, text_loss
from ssvd.recognisers.base import Recogniser, Samples, read_named, spoken_text, unknown_task
from ssvd.recognisers.decoding import (
    DEFAULT_DECODING,
    Attempt,
    Decoding,
    Transcript,
    evaluation_mode,
    join_pieces,
    split_at_pauses,
    whole_windows,
)
from ssvd.recognisers.layers import DECODER, ENCODER, LayerGroups, front_end_convolutions
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.transformers_checkpoint import load_network, read_config, read_json
from ssvd.recognisers.words import TimedText, Word, attention_weights, boundaries


class Batch(NamedTuple):
    """Utterances as tensors: a row each, or several consecutive ones for an utterance longer than the window."""

    ids: list[str]
    pieces: list[int]  # rows of each utterance
    languages: list[str | None]  # code of each utterance's language; None where unknown or meaningless
    features: Tensor  # (rows, mels, frames of the window), float32: log-mel spectra as Whisper scales them
    frames: Tensor  # (rows,), int64: frames of speech, the rest is padding
    decoder_input_ids: Tensor | None  # (rows, length), int64: prompt and text
    labels: Tensor | None  # (rows, length), int64: text and end; IGNORED at prompt and padding


class _Sampling(LogitsProcessor):
    """Sampling at a temperature by greedy search, each row from its own generator (the Gumbel-max trick)."""

    def __init__(self, temperature: float, generators: list[torch.Generator]) -> None:
        self.temperature = temperature
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = [-torch.empty(scores.shape[1]).exponential_(generator=own).log() for own in self.generators]
        return scores.float() / self.temperature + torch.stack(noise).to(scores.device)


class _Encoded(NamedTuple):
    """Rows to decode: what the encoder made of them, and what the decoder begins with."""

    states: Tensor  # (rows, frames, width)
    prompts: Tensor  # (rows, length), int64
    limits: Tensor  # (rows,), int64: of the tokens in all
    names: list[str]  # by which each row draws its random numbers

    def select(self, rows: list[int]) -> "_Encoded":
        return _Encoded(self.states[rows], self.prompts[rows], self.limits[rows], [self.names[row] for row in rows])


def _processor(name: str, module: WhisperForConditionalGeneration) -> WhisperProcessor:
    """Return the tokenizer and feature extractor of a checkpoint, which must agree with its network."""
    config, generation, processor, preprocessor = (
        read_json(name, f"{part}.json") or {}
        for part in ("config", "generation_config", "processor_config", "preprocessor_config")
    )
    read_json(name, "tokenizer_config.json")
    remedy = "copy tokenizer.json, tokenizer_config.json and preprocessor_config.json from the model that it comes from"
    with reading(f"The tokenizer or feature extractor of {name}", remedy):
        check_features(name, processor, preprocessor)
        parts = WhisperProcessor.from_pretrained(name, trust_remote_code=False)
        check_whisper(name, module, parts, config, generation)
    return parts


def _layer_groups(whisper: WhisperForConditionalGeneration) -> LayerGroups:
    output = whisper.get_output_embeddings()
    linear = [n for n, layer in whisper.named_modules() if isinstance(layer, nn.Linear) and layer is not output]
    encoder = "model.encoder."
    stem = front_end_convolutions(whisper, encoder)
    return stem | {name: ENCODER if name.startswith(encoder) else DECODER for name in linear}


class Whisper(Recogniser):
    """A Whisper checkpoint as a `Recogniser`.

    The prompt of the decoder follows the checkpoint: <|startoftranscript|>, language and task where it is multilingual,
    <|notimestamps|> where it has that token. The language of an utterance is that of its supervision ("Dutch", "nl",
    "nl-BE"), else `language`, else, in decoding only, what the model detects.

    Args:
        module: The network, not yet wrapped by PEFT.
        processor: Its tokenizer and feature extractor.
        window: Seconds of input, at most the model's own (30): the encoder sees shorter features and uses the first
            of its positions. `save` writes all of them.
        language: Name or code of the language of utterances that do not state theirs.
        task: "transcribe" or "translate".
        dtype: Type in which `save` stores the weights.

    Raises:
        UserError: The model does not have the window, language or task.
    """

    has_fallback = True

    def __init__(
        self,
        module: WhisperForConditionalGeneration,
        processor: WhisperProcessor,
        *,
        window: float | None = None,
        language: str | None = None,
        task: str = "transcribe",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.module = module
        self._tokenizer = processor.tokenizer
        self._features = processor.feature_extractor
        self._processor = processor
        self._dtype = dtype
        self._config = copy.deepcopy(module.config)
        module.config.apply_spec_augment = False  # Transformers' own masking would come on top
        self.sampling_rate = self._features.sampling_rate
        self._set_window(module, window)
        self._set_tokens(module, language, task)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        window: float | None = None,
        language: str | None = None,
        task: str = "transcribe",
        quantisation: Quantisation | None = None,
    ) -> "Whisper":
        """Load float32 weights (from safetensors files only), tokenizer and feature extractor; see `load_model`."""
        outline, _ = cls.outline(name)
        module, dtype = load_network(WhisperForConditionalGeneration, name, outline, quantisation=quantisation)
        return cls(module, _processor(name, module), window=window, language=language, task=task, dtype=dtype)

    @classmethod
    def without_weights(cls, name: str, *, window: float | None = None, language: str | None = None) -> "Whisper":
        """Load what `check` needs of a checkpoint, its network on the meta device; see `load_check`."""
        module, _ = cls.outline(name)
        if read_json(name, "generation_config.json") is not None:  # small models made by hand have none
            module.generation_config = GenerationConfig.from_pretrained(name)
        return cls(module, _processor(name, module), window=window, language=language)

    def _set_window(self, module: WhisperForConditionalGeneration, window: float | None) -> None:
        """Truncate the encoder's positions to `window` seconds and remember all of them."""
        encoder = module.model.encoder
        self._positions = encoder.embed_positions.weight.detach()
        stride = encoder.conv1.stride[0] * encoder.conv2.stride[0] * self._features.hop_length  # samples a position
        own = len(self._positions)
        positions = own if window is None else round(window * self.sampling_rate / stride)
        if not 0 < positions <= own:
            limit = own * stride / self.sampling_rate
            raise UserError(f"A window of {window:g} s is not possible: this model takes more than 0, up to {limit:g}.")
        if positions < own:
            encoder.embed_positions = nn.Embedding.from_pretrained(self._positions[:positions].clone())
            module.config.max_source_positions = positions
        self._samples = positions * stride
        self.window: float = self._samples / self.sampling_rate

    def _set_tokens(self, module: WhisperForConditionalGeneration, language: str | None, task: str) -> None:
        """Find the special tokens: in the generation config, else in the vocabulary."""
        config, generation = module.config, module.generation_config
        vocabulary = self._tokenizer.get_vocab()
        start, end = generation.decoder_start_token_id, generation.eos_token_id
        self._start: int = config.decoder_start_token_id if start is None else start
        self._end: int = end[0] if isinstance(end, list) else config.eos_token_id if end is None else end
        # OpenAI's token for silence has one name in the English-only models and another in the later ones.
        self._no_speech: int | None = vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>"))
        self._no_timestamps: int | None = getattr(generation, "no_timestamps_token_id", None)
        if self._no_timestamps is None:
            self._no_timestamps = vocabulary.get("<|notimestamps|>")
        # The tokens alone cannot tell: OpenAI's English-only tokenizer has those of all languages too.
        multilingual = getattr(generation, "is_multilingual", None)
        if multilingual is None:
            multilingual = config.vocab_size != ENGLISH_VOCABULARY
        tokens = {code: vocabulary.get(f"<|{code}|>") for code in LANGUAGES} if multilingual else {}
        self._languages: dict[str, int] = {code: token for code, token in tokens.items() if token is not None}
        self._task: int = vocabulary.get(f"<|{task}|>", -1)
        if task not in ("transcribe", "translate") or (self._task < 0 if self._languages else task == "translate"):
            raise unknown_task(task)
        self._language = self._language_code(language)
        self.language = self._language if self._languages else "en"
        self._special = {*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()}
        # A vocabulary with words that begin with a space: there OpenAI's texts begin with one as well.
        self._has_words = len(self._tokenizer.tokenize(" a")) == 1

    def _language_code(self, language: str | None) -> str | None:
        """Whisper's code of a language given by English name or BCP-47 tag; None if none is given or needed."""
        if not language or not self._languages:
            return None
        name = language.strip().lower()
        code = TO_LANGUAGE_CODE.get(name, re.split("[-_]", name)[0])
        if code not in self._languages:
            raise UserError(
                f"This model does not know the language {language!r}: give its English name or ISO 639-1 code."
            )
        return code

    def _prompt(self, language: str | None) -> list[int]:
        tokens = [self._start]
        if self._languages:
            if language is None:
                raise UserError("The language is not stated, in the data or as an option, and this model needs it.")
            tokens += [self._languages[language], self._task]
        return tokens if self._no_timestamps is None else [*tokens, self._no_timestamps]

    def layer_groups(self) -> LayerGroups:
        """Return the stem's convolutions, and all linear layers but the output projection."""
        return _layer_groups(self._base_model)

    @staticmethod
    def outline(name: str) -> tuple[nn.Module, LayerGroups]:
        """Return the network without its weights, on the meta device, and its layers; see `load_outline`."""
        config = read_config(name)
        with reading(f"The config.json of {name}", "copy it from the model that it comes from"), torch.device("meta"):
            module = WhisperForConditionalGeneration(config)
        return module, _layer_groups(module)

    def input_seconds(self, duration: float) -> float:
        """Return the seconds that the network reads for an utterance: whole windows, whatever else is in its batch."""
        return whole_windows(duration, self.window)

    def _target(self, cut: Cut) -> list[int]:
        """Return prompt, text and end of an utterance as tokens."""
        if round(cut.duration * self.sampling_rate) > self._samples:
            raise UserError(
                f"It lasts {cut.duration:.2f} s and the window is {self.window:g} s: cut it, or leave it out."
            )
        text = spoken_text(cut, self._special)
        tokens = self._tokenizer.encode(f" {text}" if self._has_words else text, add_special_tokens=False)
        # A vocabulary without a token for the unknown leaves out what it lacks.
        if self._tokenizer.unk_token_id in tokens or plain(self._text(tokens)) != plain(text):
            raise UserError(f"Its text has marks that the model's vocabulary lacks: {text!r}.")
        prompt = self._prompt(self._cut_language(cut))
        # The last token is predicted, never read, so it needs no position.
        length, limit = len(prompt) + len(tokens), self._config.max_target_positions
        if length > limit:
            raise UserError(f"Its text takes {length} tokens and the decoder has {limit}: cut it, or leave it out.")
        return [*prompt, *tokens, self._end]

    def _cut_language(self, cut: Cut) -> str | None:
        stated = next((s.language for s in cut.supervisions if s.language), None)
        return self._language_code(stated) or self._language

    def collate(self, cuts: Iterable[Cut], *, text: bool = True) -> Batch:
        """Read utterances as one batch: with `text` to train on or decode, without it only to decode.

        Without `text`, one longer than the window is cut at its pauses. Its text is learnt as it stands.

        Raises:
            UserError: an utterance cannot be read or, with `text`, `check` finds fault with it; it is named.
        """
        cuts = list(cuts)
        languages = [read_named(cut, self._cut_language) for cut in cuts]
        targets = [torch.tensor(read_named(cut, self._target)) for cut in cuts] if text else []
        audio = [load_audio(cut, self.sampling_rate) for cut in cuts]
        pieces = [[samples] if text else self._split(samples) for samples in audio]
        batch = self._batch([cut.id for cut in cuts], pieces, languages)
        if not text:
            return batch
        inputs = pad_sequence([target[:-1] for target in targets], batch_first=True, padding_value=self._end)
        labels = pad_sequence([target[1:] for target in targets], batch_first=True, padding_value=IGNORED)
        labels[:, : len(self._prompt(languages[0])) - 1] = IGNORED
        return batch._replace(decoder_input_ids=inputs, labels=labels)

    def _batch(self, ids: list[str], pieces: Sequence[Sequence[Samples]], languages: Sequence[str | None]) -> Batch:
        rows = [piece[: self._samples] for utterance in pieces for piece in utterance]
        features = self._features(
            rows, sampling_rate=self.sampling_rate, max_length=self._samples, return_tensors="pt"
        ).input_features
        frames = torch.tensor([-(-len(row) // self._features.hop_length) for row in rows])
        return Batch(ids, [len(utterance) for utterance in pieces], list(languages), features, frames, None, None)

    def _split(self, samples: Samples) -> list[Samples]:
        # Resampling may add a sample or two.
        return split_at_pauses(samples, self._samples, self.sampling_rate, slack=self._features.hop_length)

    def loss(self, batch: Batch, *, label_smoothing: float | None = None) -> Tensor:
        """Return the cross-entropy of text and end given prompt and audio, the mean over tokens: a float32 scalar.

        The prompt is read, not learnt: decoding always gives it. In training mode `spec_augment` masks the features.

        Raises:
            ValueError: the batch was collated without text.
        """
        if batch.decoder_input_ids is None or batch.labels is None:
            raise ValueError("the batch has no labels: collate it with text=True")
        features = self._placed(batch.features)
        if self.spec_augment is not None and self.module.training:
            features = self.spec_augment(features, batch.frames)
        inputs, labels = batch.decoder_input_ids.to(features.device), batch.labels.to(features.device)
        logits = self.module(input_features=features, decoder_input_ids=inputs, use_cache=False).logits
        return text_loss(logits, labels, label_smoothing)

    def loss_weight(self, batch: Batch) -> int:
        """Return the number of tokens over which `loss` is the mean."""
        return 0 if batch.labels is None else int((batch.labels != IGNORED).sum())

    def decode(self, batch: Batch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance by greedy or beam search, without special tokens and outer spaces.

        An utterance gets at most 16 tokens and 15 for each second (30 where the vocabulary is of characters or of many
        languages, some of which take several tokens a syllable), which is faster than people speak: a model that
        repeats itself without end stops there, at the limit of `decoding` or at the decoder's own. A text that the
        fallback rejects is searched for again. It does not depend on the others of its batch.

        Args:
            batch: Labels, if it has any, are not looked at.
            decoding: The search; its limit of tokens is one for each row.
        """
        with evaluation_mode(self.module):
            encoded = self._encode(batch, decoding.max_new_tokens)
            return join_pieces(self._search(encoded, decoding), batch.pieces)

    def decode_timed(self, batch: Batch, decoding: Decoding = DEFAULT_DECODING) -> list[TimedText]:
        """Return the text of each row with its words; see `Recogniser.decode_timed`.

        Times are those of OpenAI's decoder: the text is read by the decoder, and the cross-attention of the heads that
        follow the audio is warped to it. Checkpoints that do not name these heads take all of the upper layers.
        """
        with evaluation_mode(self.module):
            encoded = self._encode(batch, decoding.max_new_tokens)
            texts = [transcript.text for transcript in self._search(encoded, decoding)]
            with attention_weights(self._base_model):
                return [self._timed(encoded, row, text, batch) for row, text in enumerate(texts)]

    def _timed(self, encoded: _Encoded, row: int, text: str, batch: Batch) -> TimedText:
        """Return the words of the text of a row."""
        whisper, prompt = self._base_model, encoded.prompts[row].tolist()
        tokens = self._tokenizer.encode(f" {text}" if self._has_words else text, add_special_tokens=False)
        if not text or len(prompt) + len(tokens) > self._config.max_target_positions:
            return TimedText(text, None, [])
        read, spelt = torch.tensor([[*prompt, *tokens]], device=whisper.device), [*tokens, self._end]
        states = encoded.states[row : row + 1]
        output = whisper.model.decoder(
            input_ids=read, encoder_hidden_states=states, use_cache=False, output_attentions=True
        )
        predicting = slice(len(prompt) - 1, None)
        logits = whisper.proj_out(output.last_hidden_state[0, predicting]).float()
        likelihoods = logits.log_softmax(-1)[range(len(spelt)), spelt].cpu()
        frames = max(1, int(batch.frames[row]) // 2)  # the encoder halves them
        attention = torch.stack([output.cross_attentions[layer][0, head] for layer, head in self._alignment_heads()])
        starts = boundaries(attention[:, predicting, :frames].float(), self._config.median_filter_width)
        seconds = starts * (2 * self._features.hop_length / self.sampling_rate)
        language = next((LANGUAGES[code] for code, token in self._languages.items() if token in prompt), "english")
        words = []
        for word, _, positions in zip(*_combine_tokens_into_words(self._tokenizer, tokens, language), strict=True):
            start, end = float(seconds[positions[0]]), float(seconds[positions[-1] + 1])
            if written := word.strip():
                words.append(Word(written, start, end, float(likelihoods[positions].exp().mean())))
        return TimedText(text, float(likelihoods.mean().exp()), words)

    def _alignment_heads(self) -> list[tuple[int, int]]:
        """Return layer and number of the decoder's heads that follow the audio."""
        stated = getattr(self._base_model.generation_config, "alignment_heads", None)
        layers, heads = self._config.decoder_layers, self._config.decoder_attention_heads
        return stated or [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]

    def _detect(self, features: Tensor) -> list[str | None]:
        """Return the code of the language of each row: the likeliest of the language tokens after the first token."""
        whisper = self._base_model
        start = torch.full((len(features), 1), self._start, device=whisper.device)
        logits = whisper(input_features=self._placed(features), decoder_input_ids=start).logits[:, -1]
        codes = list(self._languages)
        return [codes[best] for best in logits[:, list(self._languages.values())].argmax(-1).tolist()]

    def _encode(self, batch: Batch, max_new_tokens: int | None) -> _Encoded:
        whisper, languages = self._base_model, batch.languages
        if self._languages and None in languages:
            first_rows = np.cumsum([0, *batch.pieces[:-1]])
            detected = self._detect(batch.features[first_rows])
            languages = [stated or heard for stated, heard in zip(languages, detected, strict=True)]
        names = [f"{name}/{piece}" for name, n in zip(batch.ids, batch.pieces, strict=True) for piece in range(n)]
        rows = [language for language, n in zip(languages, batch.pieces, strict=True) for _ in range(n)]
        states = whisper.model.encoder(self._placed(batch.features)).last_hidden_state
        prompts = torch.tensor([self._prompt(language) for language in rows], device=whisper.device)
        rate = 15 if self._has_words and not self._languages else 30
        seconds = batch.frames * self._features.hop_length / self.sampling_rate
        room = self._config.max_target_positions - prompts.shape[1]
        limits = (16 + rate * seconds).long().clamp(max=min(max_new_tokens or room, room))
        return _Encoded(states, prompts, (prompts.shape[1] + limits).to(whisper.device), names)

    def _search(self, encoded: _Encoded, decoding: Decoding) -> list[Transcript]:
        """Return the text of each row, from as many searches as it takes."""
        fallback = decoding.fallback
        tokens = self._generate(encoded, beams=decoding.beams)
        if fallback is None:
            return [Transcript(text, text) for text in self._texts(tokens)]
        attempts = [[attempt] for attempt in self._judge(encoded, tokens)]
        for temperature in fallback.temperatures:
            rejected = [row for row, own in enumerate(attempts) if not fallback.accepts(own[-1])]
            if not rejected:
                break
            again = encoded.select(rejected)
            sampling = _Sampling(temperature, [fallback.generator(name, temperature) for name in again.names])
            for row, attempt in zip(rejected, self._judge(again, self._generate(again, sampling)), strict=True):
                attempts[row].append(attempt)
        return [Transcript(fallback.choose(own), own[0].text) for own in attempts]

    def _generate(self, encoded: _Encoded, sampling: _Sampling | None = None, *, beams: int = 1) -> Tensor:
        """Return tokens (rows, length), the prompt among them; rows that end early are filled with the end token."""
        whisper = self._base_model
        options = copy.deepcopy(whisper.generation_config)
        options.update(
            max_length=int(encoded.limits.max()),
            num_beams=beams,
            do_sample=False,
            num_return_sequences=1,
            bos_token_id=self._start,
            decoder_start_token_id=self._start,
            eos_token_id=self._end,
            pad_token_id=self._end,
            return_dict_in_generate=False,
        )
        # Whisper's own `generate` would make the prompt from settings that some checkpoints lack.
        return GenerationMixin.generate(
            whisper,
            generation_config=options,
            encoder_outputs=BaseModelOutput(encoded.states),
            attention_mask=encoded.states.new_ones(encoded.states.shape[:2]),
            decoder_input_ids=encoded.prompts,
            logits_processor=LogitsProcessorList([sampling] if sampling else []),
            stopping_criteria=StoppingCriteriaList([RowLimits(encoded.limits)]),
        )

    def _judge(self, encoded: _Encoded, tokens: Tensor) -> list[Attempt]:
        """Return texts with their mean log-probabilities under the rules of the search, which suppress some tokens."""
        whisper, start = self._base_model, encoded.prompts.shape[1]
        hidden = whisper.model.decoder(
            input_ids=tokens[:, :-1], encoder_hidden_states=encoded.states, use_cache=False
        ).last_hidden_state
        suppressed = whisper.generation_config.suppress_tokens or []
        suppressed_first = whisper.generation_config.begin_suppress_tokens or []
        attempts = []
        for states, row, limit, text in zip(hidden, tokens, encoded.limits, self._texts(tokens), strict=True):
            chosen = row[start:limit]  # what follows is filling
            ends = (chosen == self._end).nonzero()
            chosen = chosen[: int(ends[0]) + 1] if len(ends) else chosen
            logits = whisper.proj_out(states[start - 1 : start - 1 + len(chosen)]).float()
            logits[:, suppressed] = -torch.inf
            logits[0, suppressed_first] = -torch.inf
            mean = logits.log_softmax(-1).gather(1, chosen[:, None]).mean()
            silence = 0.0
            if self._no_speech is not None:
                silence = float(whisper.proj_out(states[0]).float().softmax(-1)[self._no_speech])
            attempts.append(Attempt(text, float(mean), silence))
        return attempts

    def _texts(self, tokens: Tensor) -> list[str]:
        return [self._text(row) for row in tokens.tolist()]

    def _text(self, tokens: list[int]) -> str:
        """Return what tokens spell; some checkpoints ask for a clean-up that joins komt 's to komt's."""
        spelt = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(spelt).strip()

    def _spoken_language(self, piece: Samples, language: str | None) -> str | None:
        code = self._language_code(language) or self._language
        if code is not None or not self._languages:
            return code
        with evaluation_mode(self.module):
            return self._detect(self._batch([""], [[piece]], [None]).features)[0]

    @staticmethod
    def loading_code(name: str) -> str:
        """Return the code that loads the network; see `Recogniser`."""
        return (
            "from transformers import WhisperForConditionalGeneration\n\n"
            f'model = WhisperForConditionalGeneration.from_pretrained("{name}")'
        )

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers checkpoint and its processor: all positions, the dtype of the source, safetensors.

        Raises:
            TypeError: an adapter is still apart; assign `module.merge_and_unload()` to `module` first.
        """
        self._check_merged()
        whole = copy.deepcopy(self._base_model).to(self._dtype)
        running = whole.model.encoder.embed_positions.weight.detach()
        positions = self._positions.to(running, copy=True)
        positions[: len(running)] = running
        whole.model.encoder.embed_positions = nn.Embedding.from_pretrained(positions)
        whole.config = copy.deepcopy(self._config)
        whole.save_pretrained(folder)
        self._processor.save_pretrained(folder)

    def _placed(self, features: Tensor) -> Tensor:
        return features.to(self._base_model.model.encoder.conv1.weight)
