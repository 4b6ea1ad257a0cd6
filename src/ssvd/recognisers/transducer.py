"""Transducers that predict how long each token lasts, as `AutoModelForTDT` of Transformers has them: Parakeet-TDT."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForTDT, GenerationConfig, ParakeetProcessor

from ssvd.corpora.cut import Cut
from ssvd.errors import UserError
from ssvd.recognisers.agreement import check_transducer
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding, Transcript, evaluation_mode, join_pieces
from ssvd.recognisers.frames import FrameBatch, FrameRecogniser, encoder_layers
from ssvd.recognisers.layers import DECODER, PROJECTOR, LayerGroups, front_end_convolutions
from ssvd.recognisers.words import TimedText, words_of_tokens

_AT_ONCE = 2**24  # outputs of the joint network that are held: 64 MB, and a few times that while they are computed


class _Said(NamedTuple):
    """A token that was written."""

    token: int
    start: int  # frame
    end: int  # the frame after its last; the same as `start` for a token without duration
    log_probability: float  # among the tokens


class Transducer(FrameRecogniser):
    """A token-and-duration transducer (TDT, arXiv 2304.06795) as a `Recogniser`; see `FrameRecogniser`.

    The linear layers of the encoder and the two projections into the joint network can be adapted: that of the encoder
    ("projector") and that of the prediction network ("decoder"), whose LSTM and embedding stay as they are. The output
    of the joint network is not adapted.
    """

    auto_class = AutoModelForTDT

    @staticmethod
    def _supported(name: str, config: Any) -> Any:
        if list(config.durations) != list(range(len(config.durations))) or len(config.durations) < 2:
            raise UserError(
                f"The durations in the config.json of {name} are {list(config.durations)}, and Transformers decodes "
                "only 0, 1, 2 and so on: take a checkpoint with these."
            )
        return config

    @staticmethod
    def _check_tokenizer(name: str, network: Any, tokenizer: Any) -> None:
        check_transducer(name, network, tokenizer)

    @staticmethod
    def _output_layer(network: Any) -> str:
        return "joint.head"

    @staticmethod
    def _layer_groups(network: Any) -> LayerGroups:
        projections = {"encoder_projector": PROJECTOR, "decoder.decoder_projector": DECODER}
        front_end = front_end_convolutions(network, "encoder.subsampling.")
        return {**front_end, **encoder_layers(network), **projections}

    def _target(self, cut: Cut) -> list[int]:
        tokens = super()._target(cut)
        length = self._front_end.length(round(cut.duration * self.sampling_rate))
        most = self._base_model.config.max_symbols_per_step * int(self._frames(torch.tensor(length)))
        if len(tokens) > most:
            raise UserError(
                f"Its text takes {len(tokens)} tokens and at most {most} are written in its time: correct it."
            )
        return tokens

    def loss(self, batch: FrameBatch, *, label_smoothing: float | None = None) -> Tensor:
        """Return the TDT loss: of each utterance divided by its tokens, the mean over the batch, a float32 scalar.

        It is that of Transformers. Its tensor of a number for each row, frame, token of the text and entry of the
        vocabulary (0.16 GB for 10 s of speech and 40 tokens of 8198, several times over) is computed in slices of
        frames, twice: in the backward pass again. Of each slice three numbers for each frame and token are kept, which
        say the same of the text.

        Raises:
            UserError: Label smoothing is asked for, which transducers do not have.
            ValueError: The batch was collated without text.
        """
        if label_smoothing:
            raise UserError("Transducers have no label smoothing: set none.")
        if batch.labels is None or batch.label_lengths is None:
            raise ValueError("the batch has no labels: collate it with text=True")
        self._keep_statistics()
        network = self._base_model
        config = network.config
        read = self._read(self._masked(batch), batch.lengths)
        heard = network.get_audio_features(**read).pooler_output
        texts = pad_sequence(
            batch.labels.split(batch.label_lengths.tolist()), batch_first=True, padding_value=config.pad_token_id
        ).to(heard.device)
        said = network.decoder(pad(texts, (1, 0), value=config.blank_token_id))
        # What the text does next: after its end nothing does, and the filling is as good as any other token.
        following = pad(texts, (0, 1), value=config.pad_token_id)
        frames = max(1, _AT_ONCE // (following.numel() * network.joint.head.out_features))
        slices = [
            checkpoint(self._chances, part, said, following, use_reentrant=False, preserve_rng_state=False)
            for part in heard.split(frames, dim=1)
        ]
        tokens, durations = (torch.cat(parts, dim=1) for parts in zip(*slices, strict=True))
        loss: Tensor = network.loss_function(
            token_logits=tokens,
            duration_logits=durations,
            labels=torch.ones_like(texts),
            logit_lengths=self._frames(batch.lengths),
            label_lengths=batch.label_lengths,
            blank_token_id=0,
            durations=config.durations,
        )
        return loss

    def _chances(self, heard: Tensor, said: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of what a text allows at each frame and position, and those of the durations.

        The softmax over the first is that over the whole vocabulary, with all other tokens in one.

        Args:
            heard: Of the encoder (rows, frames, width).
            said: Of the prediction network (rows, positions, width).
            following: The token of the text after each position (rows, positions), int64, never the blank.

        Returns:
            (rows, frames, positions, 3), of the blank, of that token and of all others; and (rows, frames, positions,
            durations); float32.
        """
        network = self._base_model
        logits = network.joint(decoder_hidden_states=said[:, None], encoder_hidden_states=heard[:, :, None]).float()
        tokens, durations = logits.split([network.config.vocab_size, len(network.config.durations)], dim=-1)
        allowed = torch.stack([torch.full_like(following, network.config.blank_token_id), following], dim=-1)
        allowed = allowed[:, None].expand(-1, heard.shape[1], -1, -1)
        others = tokens.scatter(-1, allowed, -torch.inf).logsumexp(-1, keepdim=True)
        # As a view, the durations would keep all logits.
        return torch.cat([tokens.gather(-1, allowed), others], dim=-1), durations.contiguous()

    def decode(self, batch: FrameBatch, decoding: Decoding = DEFAULT_DECODING) -> list[Transcript]:
        """Return the text of each utterance by greedy search, which does not depend on the others of its batch.

        At most `max_symbols_per_step` tokens of the config are written at one frame, as in NeMo.

        Args:
            batch: Labels, if it has any, are not looked at.
            decoding: The search; its limit of tokens is one for each row. There is no fallback.

        Raises:
            UserError: More than one beam is asked for.
        """
        texts = [self._text(row) for row in self._search(batch, decoding)]
        return join_pieces((Transcript(text, text) for text in texts), batch.pieces)

    def decode_timed(self, batch: FrameBatch, decoding: Decoding = DEFAULT_DECODING) -> list[TimedText]:
        """Return the text of each row with its words, by the durations of their tokens; see `Recogniser`."""
        timed, frame = [], self._front_end.frame
        for row in self._search(batch, decoding):
            spelt = self._alphabet.spell(said.token for said in row)
            words = words_of_tokens(
                (piece, said.start * frame, said.end * frame, [float(np.exp(said.log_probability))])
                for piece, said in zip(spelt, row, strict=True)
            )
            confidence = float(np.exp(np.mean([said.log_probability for said in row]))) if words else None
            timed.append(TimedText(self._text(row), confidence, words))
        return timed

    def _text(self, row: list[_Said]) -> str:
        return "".join(self._alphabet.spell(said.token for said in row)).strip()

    def _search(self, batch: FrameBatch, decoding: Decoding) -> Iterator[list[_Said]]:
        """Yield what is written of each row."""
        if decoding.beams > 1:
            raise UserError("Transducers decode greedily: use one beam.")
        network, lengths = self._base_model, self._frames(batch.lengths)
        config = network.config
        options = GenerationConfig(
            max_new_tokens=config.max_symbols_per_step * int(lengths.max()),
            num_beams=1,
            do_sample=False,
            decoder_start_token_id=config.blank_token_id,
            pad_token_id=config.pad_token_id,
            # The logits of the durations stand after those of the tokens, and Transformers would take them for such.
            suppress_tokens=list(range(config.vocab_size, config.vocab_size + len(config.durations))),
        )
        with evaluation_mode(self.module), _greedy(network) as chances:
            written = network.generate(generation_config=options, **self._read(batch.inputs, batch.lengths))
        tokens, durations = written.sequences[:, 1:].tolist(), written.durations[:, 1:].tolist()
        likelihoods = torch.stack(chances, dim=1).tolist()
        for row in zip(tokens, durations, likelihoods, lengths.tolist(), strict=True):
            said = list(_written(*row, blank=config.blank_token_id))
            yield said[: decoding.max_new_tokens]

    @staticmethod
    def loading_code(name: str) -> str:
        """Return the code that loads the network; see `Recogniser`."""
        return f'from transformers import AutoModelForTDT\n\nmodel = AutoModelForTDT.from_pretrained("{name}")'

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers checkpoint with its processor; see `FrameRecogniser`."""
        super().save(folder)
        ParakeetProcessor(self._extractor, self._tokenizer, decoder_type="tdt").save_pretrained(folder)


def _written(
    tokens: list[int], durations: list[int], likelihoods: list[float], frames: int, *, blank: int
) -> Iterator[_Said]:
    """Yield the tokens of a row but the blank, up to the end of its frames: what follows fills up the batch."""
    start = 0
    for token, duration, likelihood in zip(tokens, durations, likelihoods, strict=False):
        if start >= frames:
            return
        if token != blank:
            yield _Said(token, start, min(start + duration, frames), likelihood)
        start += duration


@contextmanager
def _greedy(network: Any) -> Iterator[list[Tensor]]:
    """Let greedy search go on where it would stay at a frame, and note how likely each token is.

    Transformers' own search for TDT writes on at a frame as long as the duration is 0, which an adapted model may never
    leave. As in NeMo, `max_symbols_per_step` tokens are followed by the next frame.

    Yields:
        The log-probabilities of the tokens of each step, (rows,), float32, as the search goes.
    """
    size, most = network.config.vocab_size, network.config.max_symbols_per_step
    likelihoods: list[Tensor] = []
    stayed = torch.zeros(1, dtype=torch.long)  # tokens in a row that did not leave their frame

    def look(joint: Any, inputs: Any, logits: Tensor) -> Tensor:
        nonlocal stayed
        tokens, durations = logits[..., :size].flatten(0, -2), logits[..., size:].flatten(0, -2)
        best = tokens.float().log_softmax(-1).max(-1)
        likelihoods.append(best.values)
        stays = (durations.argmax(-1) == 0) & (best.indices != network.config.blank_token_id)
        stayed = (stayed.to(stays.device) + 1) * stays
        forced = stayed == most
        stayed = stayed * ~forced
        logits = logits.clone()
        logits[forced, ..., size + 1] = torch.inf  # a duration of 1
        return logits

    handle = network.joint.register_forward_hook(look)
    try:
        yield likelihoods
    finally:
        handle.remove()
