"""Encoders with a CTC head, as `AutoModelForCTC` of Transformers has them; `families` lists them."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCTC

from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.agreement import check_ctc_head
from ssvd.recognisers.alphabets import Phones
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding, Transcript, evaluation_mode, join_pieces
from ssvd.recognisers.frames import FrameBatch, FrameRecogniser, encoder_layers
from ssvd.recognisers.layers import LayerGroups, front_end_convolutions
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.transformers_checkpoint import load_network, read_json
from ssvd.recognisers.vocabulary import Vocabulary
from ssvd.recognisers.wavlm import call_projections
from ssvd.recognisers.words import TimedText, words_of_frames

# Convolutions of their encoders read over the end of speech into the padding, of which they have no mask.
_READS_PADDING = {"data2vec-audio", "wav2vec2-conformer", "sew", "sew-d", "lasr_ctc"}
# Of WavLM's position bias: 8 numbers a head, so few that they would bound the rank of every layer.
_GATE = ".gru_rel_pos_linear"
_USUAL_SYMBOLS = 32  # of the heads of published English models


class Ctc(FrameRecogniser):
    """A checkpoint with a CTC head as a `Recogniser`; arguments and errors are those of `FrameRecogniser`."""

    auto_class = AutoModelForCTC

    def __init__(self, module: Any, extractor: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(call_projections(module), extractor, tokenizer, **options)
        self.phones = self._alphabet.phones if isinstance(self._alphabet, Phones) else None
        self._own_masking: bool | None = getattr(module.config, "apply_spec_augment", None)
        self._masks_itself = hasattr(module.config, "mask_time_prob")
        self._reads_padding = (
            not self._front_end.is_masked
            or module.config.model_type in _READS_PADDING
            or getattr(module.config, "feat_extract_norm", None) == "group"  # over time, padding included
        )

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
    ) -> "Ctc":
        """Load a checkpoint with a new head for other symbols; see `Recogniser`."""
        module: Any
        module, _ = cls.outline(name)
        extractor, head, dtype = cls._read_extractor(name, module), cls._output_layer(module), torch.float32
        if has_weights:
            module, dtype = load_network(AutoModelForCTC, name, module, replaced=head, quantisation=quantisation)
        tokenizer = vocabulary.tokenizer()
        _replace_head(module, head, tokenizer)
        speech = cls(module, extractor, tokenizer, window=window, language=language, dtype=dtype)
        speech.vocabulary, speech.untrained, speech.phones = vocabulary, (head,), speech._alphabet.phones
        return speech

    @staticmethod
    def _supported(name: str, config: Any) -> Any:
        """Return the config of a checkpoint; raise UserError for MMS, which has the same family."""
        if getattr(config, "adapter_attn_dim", None) is not None:
            raise UserError(f"{name} has an adapter for each language (MMS), which is not supported.")
        if config.vocab_size is None:  # of a model that was only pretrained, as w2v-bert-2.0
            config.vocab_size = _USUAL_SYMBOLS
        return config

    @classmethod
    def _read_tokenizer(cls, name: str, network: Any) -> Any:
        if (read_json(name, "config.json") or {}).get("vocab_size", 0) is None:
            raise UserError(
                f"The config.json of {name} states no vocab_size, as that of a model which was only pretrained: take "
                "one that was trained to transcribe, or give a vocabulary for a new head."
            )
        return super()._read_tokenizer(name, network)

    @staticmethod
    def _check_tokenizer(name: str, network: Any, tokenizer: Any) -> None:
        check_ctc_head(name, network, tokenizer)

    @staticmethod
    def _output_layer(network: Any) -> str:
        return "ctc_head" if hasattr(network, "ctc_head") else "lm_head"

    @staticmethod
    def _layer_groups(network: Any) -> LayerGroups:
        prefix = f"{network.base_model_prefix}.feature_extractor."
        encoder = {name: group for name, group in encoder_layers(network).items() if not name.endswith(_GATE)}
        return front_end_convolutions(network, (prefix, "encoder.subsampling.")) | encoder

    def _target(self, cut: Cut) -> list[int]:
        tokens = super()._target(cut)
        length = self._front_end.length(round(cut.duration * self.sampling_rate))
        frames = int(self._frames(torch.tensor(length)))
        needed = len(tokens) + sum(first == second for first, second in pairwise(tokens))
        if needed > frames:  # CTC parts two equal tokens by a blank
            raise UserError(f"Its text takes {needed} frames and its audio has {max(frames, 0)}: correct the text.")
        return tokens

    def loss(self, batch: FrameBatch, *, label_smoothing: float | None = None) -> Tensor:
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
        self._let_mask(frames)
        self._keep_statistics()
        inputs = batch.inputs if self._masks_itself else self._masked(batch)
        chances = self._logits(inputs, batch.lengths).float().log_softmax(-1).transpose(0, 1)
        return nn.functional.ctc_loss(
            chances,
            batch.labels.to(chances.device),
            frames,
            batch.label_lengths,
            blank=self._base_model.config.pad_token_id,
            zero_infinity=True,
        )

    def _let_mask(self, frames: Tensor) -> None:
        """Let a network that masks its features itself do so if that is asked for."""
        if self._masks_itself:
            config = self._base_model.config
            # Transformers masks no batch that is shorter than a mask, but raises an error.
            config.apply_spec_augment = self.spec_augment is not None and int(frames.max()) >= config.mask_time_length

    def _logits(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return logits of shape (rows, frames, vocabulary)."""
        logits: Tensor = self.module(**self._read(inputs, lengths)).logits
        return logits

    def decode(self, batch: FrameBatch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance: the likeliest token of each frame, independently of the others.

        It does not depend on the other utterances of its batch: models that were trained without a mask of the padding
        read each row alone.

        Raises:
            UserError: More than one beam is asked for, or a limit of tokens.
        """
        texts = [self._alphabet.text(tokens) for tokens, _ in self._best_paths(batch, decoding)]
        return join_pieces((Transcript(text, text) for text in texts), batch.pieces)

    def decode_timed(self, batch: FrameBatch, decoding: Decoding = DEFAULT_DECODING) -> list[TimedText]:
        """Return the text of each row with its words, by the frames of their letters; see `Recogniser.decode_timed`."""
        timed = []
        for tokens, likelihoods in self._best_paths(batch, decoding):
            chances = np.exp(likelihoods)
            words = words_of_frames(self._alphabet.spell(tokens), chances.tolist(), self._front_end.frame)
            confidence = float(np.exp(likelihoods.mean())) if words else None
            timed.append(TimedText(self._alphabet.text(tokens), confidence, words))
        return timed

    def _best_paths(self, batch: FrameBatch, decoding: Decoding) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
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
        """Write a plain Transformers checkpoint, with its own settings of masking; see `FrameRecogniser`."""
        config = self._base_model.config
        if self._own_masking is not None:
            config.apply_spec_augment = self._own_masking
        elif hasattr(config, "apply_spec_augment"):
            del config.apply_spec_augment
        super().save(folder)


def _replace_head(network: Any, name: str, tokenizer: Any) -> None:
    """Put a head for the tokens of a tokenizer, all zero, in the place of a network's own."""
    head = copy.deepcopy(network.get_submodule(name))
    for part, tensor in list(head.named_parameters()):
        setattr(head, part, nn.Parameter(tensor.detach().new_zeros(len(tokenizer), *tensor.shape[1:])))
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", len(tokenizer))
    network.set_submodule(name, head)
    network.config.vocab_size, network.config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
