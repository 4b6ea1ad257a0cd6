"""OWSM (Peng et al. 2024, arXiv 2401.16658) and OWSM-CTC (arXiv 2402.12654) on ESPnet's own networks and searches."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import langcodes
import numpy as np
import sentencepiece
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from ssvd.corpora.audio import load_audio
from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import field_value
from ssvd.errors import UserError
from ssvd.recognisers.agreement import check_owsm, reading
from ssvd.recognisers.base import Recogniser, Samples, check_marks, read_named, spoken_text, unknown_task
from ssvd.recognisers.decoding import (
    DEFAULT_DECODING,
    Decoding,
    Transcript,
    evaluation_mode,
    join_pieces,
    split_at_pauses,
    whole_windows,
)
from ssvd.recognisers.espnet_checkpoint import Checkpoint, espnet_importable, find_checkpoint
from ssvd.recognisers.layers import DECODER, ENCODER, LayerGroups, front_end_convolutions
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.recognisers.words import TimedText, aligned_frames, words_of_frames, words_of_tokens

PADDING = -1  # of labels, as in ESPnet
SYMBOLS_OF_THREE = {"asr", "eos", "sop", "sos", "unk"}  # of the vocabulary's <xxx>, those that are no language
TOKENS_PER_SECOND = 15  # faster than people speak
LONGEST = 600  # seconds of a window; OWSM has 30


class EspnetBatch(NamedTuple):
    """Utterances as tensors: a row each, or several consecutive ones for an utterance longer than the window."""

    ids: list[str]
    pieces: list[int]  # rows of each utterance
    languages: list[str | None]  # symbol of each utterance's language, such as <eng>; None where unknown
    speech: Tensor  # (rows, samples of the window), float32, padded with silence
    seconds: list[float]  # of speech in each row
    labels: dict[str, Tensor]  # what ESPnet's `forward` takes beside the speech; empty without text


class Owsm(Recogniser):
    """An OWSM checkpoint as a `Recogniser`.

    Speech is padded with silence to the window, as in OWSM's own training. Labels are <language><asr><notimestamps> and
    the text; a supervision's field `text_prev`, where there is one, is given as the text before. The language of an
    utterance is that of its supervision ("Dutch", "nl", "nld"), else `language`, else, in decoding only, what the model
    detects.

    Args:
        checkpoint: The files of the model.
        window: Seconds of input, at most the model's own (30).
        language: Name or code of the language of utterances that do not state theirs.
        task: "transcribe", or "translate" (into English).

    Attributes:
        checkpoint: The files of the model.

    Raises:
        UserError: The files do not fit together, or the model does not have the window, language or task.
    """

    checkpoint_format = "espnet"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        window: float | None = None,
        language: str | None = None,
        task: str = "transcribe",
    ) -> None:
        self.checkpoint = checkpoint
        file = checkpoint.config_file
        with reading(str(file), "copy it, and the bpemodel that it names, from where the checkpoint comes from"):
            self._load(checkpoint, window)
        tokens = (re.fullmatch(r"<([a-z]{3})>", token) for token in self._ids)
        self._languages = {match[1] for match in tokens if match and match[1] not in SYMBOLS_OF_THREE}
        if not self._languages:
            raise UserError(f"{file}: token_list has no language, such as <eng>: copy the config again.")
        only = next(iter(self._languages)) if len(self._languages) == 1 else None
        self.language = only and langcodes.standardize_tag(only)
        self._language = f"<{only}>" if only else self._symbol(language)
        self._task = "<asr>" if task == "transcribe" else "<st_eng>"
        if task not in ("transcribe", "translate") or self._task not in self._ids:
            raise unknown_task(task)

    def _load(self, checkpoint: Checkpoint, window: float | None) -> None:
        """Read network, vocabulary and window, which must agree; whatever is raised is the fault of a file."""
        self._network: Any
        self._network, self._options = checkpoint.network()
        self.module = self._network
        self._network.specaug = None  # only what is asked for
        check_owsm(str(checkpoint.config_file), self._network, checkpoint.config, _pieces(self._options.bpemodel))
        preprocessing = self._options.preprocessor_conf
        self.sampling_rate = int(preprocessing.get("fs", 16000))
        own = float(preprocessing.get("speech_length", 30))
        if not 0.5 <= own <= LONGEST:
            raise ValueError(f"speech_length is {own}")
        if window is not None and not 0.5 <= window <= own:
            raise UserError(f"The window must be between 0.5 s and the model's own {own:g} s, not {window:g} s.")
        self.window = window or own
        preprocessing["speech_length"] = self.window  # the search pads to it
        self._samples = round(self.window * self.sampling_rate)
        self._search = self._build_search(1)
        self._ids: dict[str, int] = self._search.converter.token2id
        self._marks = {token for symbol, token in self._ids.items() if symbol[0] == "<" and symbol[-1] == ">"}
        self._spelt = {
            token: symbol.replace("\u2581", " ") for symbol, token in self._ids.items() if token not in self._marks
        }
        self._tokens("a")  # a damaged vocabulary fails here, a damaged frontend there
        self._network._extract_feats(torch.zeros(1, self.sampling_rate), torch.tensor([self.sampling_rate]))

    @classmethod
    def outline(cls, checkpoint: Checkpoint) -> tuple[nn.Module, LayerGroups]:
        """Return the network without its weights, on the meta device, and its layers."""
        network = checkpoint.outline()
        return network, _layer_groups(network)

    def layer_groups(self) -> LayerGroups:
        """Return the convolutions of the subsampling, and all linear layers but the output of CTC.

        The linear layers, with the decoder's output, are those of the paper: 380 of OWSM-1B.
        """
        return _layer_groups(self._network)

    # -- labels

    def _symbol(self, language: str | None) -> str | None:
        """Return the model's symbol of a language given by English name or BCP-47 tag; None if none is given."""
        if not language:
            return None
        tag = TO_LANGUAGE_CODE.get(language.strip().lower(), language.strip())
        try:
            code = langcodes.Language.get(tag).to_alpha3()
        except (langcodes.LanguageTagError, LookupError):
            code = ""
        if code not in self._languages:
            raise UserError(
                f"This model does not know the language {language!r}: give its English name or ISO 639 code."
            )
        return f"<{code}>"

    def _cut_language(self, cut: Cut) -> str | None:
        if len(self._languages) == 1:
            return self._language
        return self._symbol(field_value(cut, "language")) or self._language

    def _tokens(self, text: str) -> list[int]:
        return self._search.converter.tokens2ids(self._search.tokenizer.text2tokens(text))

    def _prompt(self, language: str) -> list[int]:
        return [self._ids[language], self._ids[self._task], self._ids["<notimestamps>"]]

    def _target(self, cut: Cut) -> dict[str, list[int]]:
        """Return each label that ESPnet's `forward` takes, as tokens."""
        if round(cut.duration * self.sampling_rate) > self._samples:
            raise UserError(
                f"It lasts {cut.duration:.2f} s and the window is {self.window:g} s: cut it, or leave it out."
            )
        text = spoken_text(cut, ())
        tokens = self._tokens(text)
        if self._ids["<unk>"] in tokens:
            raise UserError(f"Its text has marks that the model's vocabulary lacks: {text!r}.")
        language = self._cut_language(cut)
        if language is None:
            raise UserError("The language is not stated, in the data or as an option, and this model needs it.")
        previous = str(field_value(cut, "text_prev") or "").strip()
        if previous in ("", "<na>"):  # as ESPnet's own data have it
            return self._with_prompt(language, tokens, [self._ids["<na>"]])
        check_marks(previous, ())
        return self._with_prompt(language, tokens, self._tokens(previous))

    def _with_prompt(self, language: str, tokens: list[int], previous: list[int]) -> dict[str, list[int]]:
        return {"text": [*self._prompt(language), *tokens], "text_prev": previous, "text_ctc": tokens}

    @cached_property
    def _frames(self) -> int:
        """The number of frames of the encoder in a window."""
        with evaluation_mode(self._network):
            silence = self._placed(torch.zeros(1, self._samples))
            features, lengths = self._network._extract_feats(silence, torch.tensor([self._samples]))
            mask = torch.ones(1, 1, int(lengths[0]), dtype=torch.bool, device=silence.device)
            return self._network.encoder.embed(features, mask)[0].shape[1]

    def check(self, cut: Cut) -> str | None:
        """Return why the utterance cannot be trained on (too long, no text, too much of it, no language), or None."""
        try:
            target = self._target(cut)["text_ctc"]
        except UserError as error:
            return str(error)
        # CTC needs a frame for each token, and one between equal ones. Not asked by `collate`, as what answers is the
        # network, which workers must not use.
        needed = len(target) + sum(a == b for a, b in pairwise(target))
        if needed > self._frames:
            return f"Its text takes {needed} frames and the window has {self._frames}: cut it, or leave it out."
        return None

    def input_seconds(self, duration: float) -> float:
        """Return the seconds that the network reads for an utterance: whole windows, whatever else is in its batch."""
        return whole_windows(duration, self.window)

    def collate(self, cuts: Iterable[Cut], *, text: bool = True) -> EspnetBatch:
        """Read utterances as one batch: with `text` to train on or decode, without it only to decode.

        Without `text`, one longer than the window is cut at its pauses.

        Raises:
            UserError: An utterance cannot be read or, with `text`, `check` finds fault with it; it is named.
        """
        cuts = list(cuts)
        languages = [read_named(cut, self._cut_language) for cut in cuts]
        labels = [read_named(cut, self._target) for cut in cuts] if text else []
        audio = [load_audio(cut, self.sampling_rate) for cut in cuts]
        pieces = [[samples] if text else self._split(samples) for samples in audio]
        batch = self._batch([cut.id for cut in cuts], pieces, languages)
        for name in labels[0] if labels else ():
            rows = [torch.tensor(label[name]) for label in labels]
            batch.labels[name] = pad_sequence(rows, batch_first=True, padding_value=PADDING)
            batch.labels[f"{name}_lengths"] = torch.tensor([len(row) for row in rows])
        return batch

    def _batch(
        self, ids: list[str], pieces: Sequence[Sequence[Samples]], languages: Sequence[str | None]
    ) -> EspnetBatch:
        rows = [piece[: self._samples] for utterance in pieces for piece in utterance]
        speech = torch.zeros(len(rows), self._samples)
        for row, samples in zip(speech, rows, strict=True):
            row[: len(samples)] = torch.from_numpy(np.asarray(samples, dtype=np.float32))
        seconds = [len(samples) / self.sampling_rate for samples in rows]
        return EspnetBatch(ids, [len(utterance) for utterance in pieces], list(languages), speech, seconds, {})

    def _split(self, samples: Samples) -> list[Samples]:
        return split_at_pauses(samples, self._samples, self.sampling_rate, slack=self.sampling_rate // 100)

    # -- training

    def loss(self, batch: EspnetBatch, *, label_smoothing: float | None = None) -> Tensor:
        """Return ESPnet's own loss, of decoder and CTC branch in the proportion of the config: a float32 scalar.

        ESPnet sums the decoder's loss over the tokens of an utterance and takes the mean over utterances. In training
        mode `spec_augment` masks the features.

        Args:
            batch: Collated with text.
            label_smoothing: Of the decoder's targets; None for that of the config.

        Raises:
            ValueError: The batch was collated without text.
        """
        if not batch.labels:
            raise ValueError("the batch has no labels: collate it with text=True")
        network = self._network
        network.specaug = None if self.spec_augment is None else _Masked(self.spec_augment)
        own = self._set_smoothing(label_smoothing)
        try:
            speech = self._placed(batch.speech)
            lengths = torch.full((len(speech),), speech.shape[1], device=speech.device)
            labels = {
                name: label.to(speech.device, copy=True) for name, label in batch.labels.items()
            }  # it writes there
            loss, _, _ = self.module(speech=speech, speech_lengths=lengths, **labels)
        finally:
            self._set_smoothing(own)
            network.specaug = None
        return loss.float().mean()  # it has one entry, for ESPnet's data-parallel training

    def _set_smoothing(self, smoothing: float | None) -> float | None:
        """Change label smoothing, None for no change, and return what it was."""
        criterion = getattr(self._network, "criterion_att", None)
        if smoothing is None:
            return None
        if criterion is None:
            raise UserError("OWSM-CTC has no label smoothing: set none.")
        own, criterion.smoothing, criterion.confidence = criterion.smoothing, smoothing, 1 - smoothing
        return own

    # -- decoding

    def decode(self, batch: EspnetBatch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance by ESPnet's search, without special tokens and outer spaces.

        Greedy search (one beam) follows the decoder alone, a wider one decoder and CTC branch in the proportion of the
        checkpoint's config. An utterance gets at most 16 tokens and 15 for each second.

        Args:
            batch: Labels, if it has any, are not used.
            decoding: The search; its limit of tokens is one for each row, and its fallback is not used.
        """
        with evaluation_mode(self.module):
            texts = [found.text for found in self._searched(batch, decoding)]
        return join_pieces((Transcript(text, text) for text in texts), batch.pieces)

    def decode_timed(self, batch: EspnetBatch, decoding: Decoding = DEFAULT_DECODING) -> list[TimedText]:
        """Return the text of each row with its words; see `Recogniser.decode_timed`.

        Times are those of the likeliest path of the CTC branch that spells the text. A text of more tokens than frames
        has none.
        """
        with evaluation_mode(self.module):
            found = self._searched(batch, decoding)
            return [self._timed(one, seconds) for one, seconds in zip(found, batch.seconds, strict=True)]

    def _searched(self, batch: EspnetBatch, decoding: Decoding) -> Iterator["_Found"]:
        """Yield what ESPnet's search finds in each row."""
        languages = [language for language, n in zip(batch.languages, batch.pieces, strict=True) for _ in range(n)]
        search = self._prepared_search(decoding)
        encoded: list[Any] = []
        hook = self._network.encoder.register_forward_hook(lambda module, args, output: encoded.append(output[0]))
        try:
            for speech, seconds, language in zip(batch.speech, batch.seconds, languages, strict=True):
                text, path = search(speech, seconds, language or self._detected(speech))
                states = encoded[-1][0] if isinstance(encoded[-1], tuple) else encoded[-1]  # with inner layers' ones
                encoded.clear()
                yield _Found(text.strip(), path, states)
        finally:
            hook.remove()

    def _prepared_search(self, decoding: Decoding) -> Callable[[Tensor, float, str], tuple[str, list[int]]]:
        """Return a search from samples, seconds of speech and language to the text and all tokens of the decoder."""
        search = self._search if decoding.beams == 1 else self._build_search(decoding.beams)
        search.device = str(self._device)
        search.beam_search.to(self._device)

        def searched(speech: Tensor, seconds: float, language: str) -> tuple[str, list[int]]:
            limit = 16 + int(TOKENS_PER_SECOND * seconds)
            limit = min(decoding.max_new_tokens or limit, limit)
            search.maxlenratio = -limit  # ESPnet's way to state a number of tokens
            hypotheses = search(speech, lang_sym=language, task_sym=self._task)
            if not hypotheses:
                return "", []
            *_, text, hypothesis = hypotheses[0]
            return text, [int(token) for token in hypothesis.yseq]

        return searched

    def _timed(self, found: "_Found", seconds: float) -> TimedText:
        """Return the words of the text of a row: times by the CTC branch, probabilities by the decoder."""
        if not found.text:
            return TimedText("", None, [])
        path = torch.tensor([found.path], device=self._device)
        lengths = [torch.tensor([length], device=self._device) for length in (found.states.shape[1], path.shape[1] - 1)]
        logits, _ = self._network.decoder(found.states, lengths[0], path[:, :-1], lengths[1])
        likelihoods = logits[0].float().log_softmax(-1).gather(1, path[0, 1:, None])[:, 0]
        said = [place for place, token in enumerate(found.path[1:]) if token not in self._marks]
        tokens = [found.path[1 + place] for place in said]
        ctc = self._network.ctc.log_softmax(found.states)[0].float().cpu().numpy()
        spans = aligned_frames(ctc, tokens, self._network.blank_id)
        frame = self.window / len(ctc)
        timed = []
        for number, (token, place) in enumerate(zip(tokens, said, strict=True)):
            start, end = (frame * edge for edge in spans[number]) if spans else (None, None)
            timed.append((self._spelt[token], start, end, [float(likelihoods[place].exp())]))
        words = [word.within(0, seconds) for word in words_of_tokens(timed)]
        return TimedText(found.text, float(likelihoods[[*said, -1]].mean().exp()), words)  # with the end

    def _detected(self, speech: Tensor) -> str:
        """Return the likeliest of the language symbols after <sos>, which OWSM is trained to predict."""
        network = self._network
        encoded, _ = network.encode(self._placed(speech[None]), torch.tensor([len(speech)], device=self._device))
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        start = torch.tensor([[network.sos]], device=self._device)
        mask = torch.ones(1, 1, 1, dtype=torch.bool, device=self._device)  # of the tokens so far, itself alone
        scores, *_ = network.decoder.forward_one_step(start, mask, encoded)
        symbols = sorted(f"<{code}>" for code in self._languages)
        return symbols[int(scores[0, [self._ids[symbol] for symbol in symbols]].argmax())]

    def _build_search(self, beams: int) -> Any:
        """Return ESPnet's `Speech2Text` around the network, adapter included: PEFT changes it in place."""
        with espnet_importable():
            from espnet2.bin.s2t_inference import Speech2Text
        weight = 0.0 if beams == 1 else self._network.ctc_weight
        with self._given_network():
            return Speech2Text(beam_size=beams, ctc_weight=weight, device=str(self._device))

    def _given_network(self) -> Any:
        """ESPnet's classes for decoding read a model from files; within this context they are given ours."""
        built = self._network, self._options
        return patch.object(self.checkpoint.task(), "build_model_from_file", lambda *files: built)

    def _spoken_language(self, piece: Samples, language: str | None) -> str | None:
        symbol = self._symbol(language) or self._language
        if symbol is None:
            with evaluation_mode(self.module):
                symbol = self._detected(self._batch([""], [[piece]], [None]).speech[0])
        return symbol

    # -- files

    @staticmethod
    def loading_code(name: str) -> str:
        """Return the code that loads the network; see `Recogniser`."""
        return f'from ssvd import load_model\n\nmodel = load_model("{name}").module'

    def save(self, folder: str | Path) -> None:
        """Write a plain ESPnet checkpoint, as OWSM is published, in float32.

        Raises:
            TypeError: An adapter is still apart; assign `module.merge_and_unload()` to `module` first.
        """
        if isinstance(self.module, PeftModel) or self.module is not self._network:
            raise TypeError("merge the adapter before saving: speech.module = speech.module.merge_and_unload()")
        self.checkpoint.save(self._network, Path(folder))

    @property
    def _device(self) -> torch.device:
        return next(self._network.parameters()).device

    def _placed(self, speech: Tensor) -> Tensor:
        return speech.to(self._device)


class _Found(NamedTuple):
    """What a search finds in a row."""

    text: str
    path: list[int]  # all tokens of the decoder, from <sos> to <eos>; none of OWSM-CTC
    states: Tensor  # of the encoder, (1, frames, width)


class OwsmCtc(Owsm):
    """OWSM-CTC: an encoder that is told language and task, and whose frames say language, task and text."""

    def _prompt(self, language: str) -> list[int]:
        return [self._ids[language], self._ids[self._task]]

    def _with_prompt(self, language: str, tokens: list[int], previous: list[int]) -> dict[str, list[int]]:
        text = [*self._prompt(language), *tokens]
        return {"text": text, "text_prev": previous, "text_ctc": text, "prefix": self._prompt(language)}

    def _build_search(self, beams: int) -> Any:
        with espnet_importable():
            from espnet2.bin import s2t_inference, s2t_inference_ctc
        # From ESPnet 202611 on, one class decodes both kinds of models and reads the kind in the config.
        one_for_all = hasattr(s2t_inference.Speech2Text, "best_path")
        search = s2t_inference.Speech2Text if one_for_all else s2t_inference_ctc.Speech2TextGreedySearch
        with self._given_network():
            return search(str(self.checkpoint.config_file), device=str(self._device))

    def _prepared_search(self, decoding: Decoding) -> Callable[[Tensor, float, str], tuple[str, list[int]]]:
        if decoding.beams > 1 or decoding.max_new_tokens is not None:
            raise UserError("OWSM-CTC decodes greedily, all frames at once: use one beam and no limit of tokens.")
        self._search.device = str(self._device)
        greedy = getattr(self._search, "best_path", self._search)
        return lambda speech, _, language: (greedy(speech, lang_sym=language, task_sym=self._task)[0][3], [])

    def _timed(self, found: _Found, seconds: float) -> TimedText:
        """Return the words of the text of a row, by the frames of their pieces."""
        best = self._network.ctc.log_softmax(found.states)[0].float().max(-1)
        lead = len(best.values) - self._frames  # language and task are read before the speech
        frame = self.window / self._frames
        words = words_of_frames(
            [self._spelt.get(token, "") for token in best.indices.tolist()], best.values.exp().tolist(), frame
        )
        words = [word.shifted(-lead * frame).within(0, seconds) for word in words]
        heard = best.values[lead : lead + math.ceil(seconds / frame)]
        return TimedText(found.text, float(heard.mean().exp()) if words else None, words)

    def _detected(self, speech: Tensor) -> str:
        return "<nolang>"


class _Masked(nn.Module):
    """`SpecAugment` where ESPnet calls its own: features (rows, frames, mels)."""

    def __init__(self, spec_augment: SpecAugment) -> None:
        super().__init__()
        self._masks = spec_augment

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self._masks(features.transpose(1, 2), lengths).transpose(1, 2), lengths


def _pieces(bpemodel: str) -> list[str]:
    """Return what a SentencePiece model cuts texts into, without what stands for unknown and control symbols."""
    if not isinstance(bpemodel, str):
        raise ValueError(f"bpemodel is {bpemodel!r}")
    model = sentencepiece.SentencePieceProcessor(model_file=bpemodel)
    return [model.id_to_piece(n) for n in range(len(model)) if not model.is_unknown(n) and not model.is_control(n)]


def _layer_groups(network: nn.Module) -> LayerGroups:
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    subsampling = front_end_convolutions(network, "encoder.embed.")
    return subsampling | {
        name: DECODER if name.startswith("decoder.") else ENCODER for name in linear if not name.startswith("ctc.")
    }


def load_owsm(
    checkpoint: Checkpoint, *, window: float | None = None, language: str | None = None, task: str = "transcribe"
) -> Owsm:
    """Load an OWSM or OWSM-CTC model from its files; see `ssvd.recognisers.loading.load_model`."""
    family = OwsmCtc if checkpoint.is_ctc else Owsm
    return family(checkpoint, window=window, language=language, task=task)


__all__ = ["EspnetBatch", "Owsm", "OwsmCtc", "find_checkpoint", "load_owsm"]
