"""Tiny checkpoints of random weights, of every family with a CTC head and of each other kind, to try commands on.

They have the files and the kinds of layers of published checkpoints, know nothing, and take a second to make. Those of
Transformers' other families are made by the tests.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    GenerationConfig,
    LasrFeatureExtractor,
    LasrTokenizer,
    ParakeetFeatureExtractor,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetTDTConfig,
    ParakeetTokenizer,
    Qwen2Tokenizer,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.utils.logging import disable_progress_bar

from ssvd.demo import EMBEDDED
from ssvd.demo.sentences import ADJECTIVES, ADVERBS, ANIMALS, NAMES, PEOPLE, PLACES, PREPOSITIONS, THINGS
from ssvd.errors import UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
_PIECES = 256  # so many that a text fits into frames of 80 ms
_WORDS = (*ADJECTIVES, *ADVERBS, *ANIMALS, *NAMES, *PEOPLE, *PLACES, *PREPOSITIONS, *THINGS)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_NOTHING: Mapping[str, Any] = MappingProxyType({})

MELS = 16
"""Bands of the features of a language model that listens."""
AUDIO = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
TURN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "max_position_embeddings": 512}
"""The size of a language model."""

_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_CONVOLUTIONS = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_SEW = {"conv_dim": (16,) * 13, "num_conv_pos_embeddings": 15, "num_conv_pos_embedding_groups": 2, "squeeze_factor": 2}
# Weights so large that frames differ, which only the normalised input of these makes them do.
_LOG_MEL = {"conv_kernel_size": 9, "subsampling_conv_channels": 8, "initializer_range": 0.3}

# What differs from the defaults of each config: of itself, or of its encoder's.
_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "wav2vec2": _SIZE | _CONVOLUTIONS | _STABLE,
    "hubert": _SIZE | _CONVOLUTIONS | {"feat_extract_norm": "group"},
    "wavlm": _SIZE | _CONVOLUTIONS | _STABLE | {"num_buckets": 32, "max_bucket_distance": 80},
    "unispeech": _SIZE | _CONVOLUTIONS | _STABLE,
    "unispeech-sat": _SIZE | _CONVOLUTIONS | _STABLE,
    "data2vec-audio": _SIZE
    | {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}
    | {"num_conv_pos_embedding_groups": 2},
    "wav2vec2-conformer": _SIZE | _CONVOLUTIONS | {"feat_extract_norm": "layer", "conv_depthwise_kernel_size": 7},
    "sew": _SIZE | _SEW,
    "sew-d": _SIZE | _SEW | {"position_buckets": 16},
    "wav2vec2-bert": _SIZE | {"conv_depthwise_kernel_size": 7, "left_max_position_embeddings": 16},
    "parakeet_ctc": _SIZE | _LOG_MEL,
    "lasr_ctc": _SIZE | _LOG_MEL,
}
_MASKED = {"wav2vec2", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "wav2vec2-conformer"}
_NESTED = {"parakeet_ctc", "lasr_ctc"}
CTC_FAMILIES = tuple(_CONFIGS)
"""The families with a CTC head of which `write_random_checkpoint` makes one."""
RANDOM_FAMILIES = (*CTC_FAMILIES, "parakeet_tdt", "whisper", "qwen3_asr")
"""All families of which it makes one."""


def write_random_checkpoint(
    model_type: str, folder: Path, *, options: Mapping[str, Any] = _NOTHING, letters: str = LETTERS, seed: int = 0
) -> Path:
    """Write a checkpoint of random weights with a tokenizer of letters, and return its folder.

    Args:
        model_type: One of `RANDOM_FAMILIES`.
        folder: Folder to write.
        options: Fields of the config to set differently, of a family with a CTC head.
        letters: What the tokenizer of such a family knows beside the blank between words.
        seed: Random seed of the weights.

    Raises:
        UserError: There is no such family to make.
    """
    check_random_family(model_type)
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    torch.manual_seed(seed)
    if model_type not in _CONFIGS:
        make = {"whisper": whisper, "qwen3_asr": qwen3_asr, "parakeet_tdt": parakeet_tdt}[model_type]
        network, processor = make(folder)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.25)  # so large that the text depends on the audio
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder
    tokenizer = _TOKENIZERS.get(model_type, _letters)(folder, letters)
    tokenizer.save_pretrained(folder)
    _extractor(model_type).save_pretrained(folder)
    fields = {**_CONFIGS[model_type], "layerdrop": 0.0, **options}
    if model_type in _NESTED:
        fields = {"encoder_config": fields}
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, ctc_loss_reduction="mean", **fields
    )
    network = AutoModelForCTC.from_config(config)
    for head in ("lm_head", "ctc_head"):
        if hasattr(network, head):
            getattr(network, head).weight.data *= 20  # so that frames differ in what they say
    network.save_pretrained(folder)
    return folder


def check_random_family(model_type: str) -> None:
    """Raise UserError if `write_random_checkpoint` cannot make a checkpoint of a family."""
    if model_type not in RANDOM_FAMILIES:
        raise UserError(
            f"There is no random checkpoint of the family {model_type!r}: choose among {', '.join(RANDOM_FAMILIES)}."
        )


def _extractor(model_type: str) -> Any:
    if model_type == "wav2vec2-bert":
        return SeamlessM4TFeatureExtractor()
    if model_type in _NESTED:
        return ParakeetFeatureExtractor() if model_type == "parakeet_ctc" else LasrFeatureExtractor()
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=model_type in _MASKED)


def _letters(folder: Path, letters: str) -> Any:
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    file = folder / "vocab.json"
    file.write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}), encoding="utf-8")
    return Wav2Vec2CTCTokenizer(str(file))


def _pieces(folder: Path, letters: str) -> Any:
    """Return a tokenizer of pieces of words, whose blank is the last token as in Parakeet."""
    cut = Tokenizer(models.BPE(unk_token="<unk>"))
    cut.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    cut.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    alphabet = [_SPACE, *letters]
    trainer = trainers.BpeTrainer(
        vocab_size=_PIECES, initial_alphabet=alphabet, special_tokens=["<unk>"], show_progress=False
    )
    cut.train_from_iterator((word.lower() if letters.islower() else word.upper() for word in _WORDS), trainer)
    return ParakeetTokenizer(tokenizer_object=cut, unk_token="<unk>", pad_token="<pad>")


def _scored_pieces(folder: Path, letters: str) -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (_SPACE, -2.0), *((letter, -3.0) for letter in letters)]
    return LasrTokenizer(vocab=[*pieces, (f"{_SPACE}THE", -4.0)], extra_ids=0, additional_special_tokens=[])


_TOKENIZERS: Mapping[str, Callable[[Path, str], Any]] = {"parakeet_ctc": _pieces, "lasr_ctc": _scored_pieces}


def parakeet_tdt(folder: Path) -> tuple[Any, Any]:
    """Return a network of Parakeet-TDT and its processor."""
    tokenizer = _pieces(folder, LETTERS)
    tokenizer.add_tokens(["<blank>"], special_tokens=True)
    config = ParakeetTDTConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        blank_token_id=tokenizer.convert_tokens_to_ids("<blank>"),
        decoder_hidden_size=32,
        encoder_config={**_SIZE, **_LOG_MEL, "layerdrop": 0.0},
    )
    return ParakeetForTDT(config), ParakeetProcessor(ParakeetFeatureExtractor(), tokenizer, decoder_type="tdt")


def whisper(folder: Path) -> tuple[Any, Any]:
    """Return a network of Whisper with the tokenizer and the window of the embedded recogniser, and its processor."""
    size = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig.from_pretrained(EMBEDDED, **size, **heads)
    network = WhisperForConditionalGeneration(config)
    network.generation_config = GenerationConfig.from_pretrained(EMBEDDED)
    return network, WhisperProcessor.from_pretrained(EMBEDDED)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer of bytes and the special tokens of Qwen."""
    vocabulary = {symbol: token for token, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=AUDIO
    )
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.add_tokens(["<asr_text>"])
    return tokenizer


def qwen3_asr(folder: Path) -> tuple[Any, Any]:
    """Return a network of Qwen3-ASR and its processor."""
    tokenizer = qwen_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    audio = {"num_mel_bins": MELS, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2}
    audio |= {"encoder_ffn_dim": 64, "output_dim": 48, "downsample_hidden_size": 4}
    config = Qwen3ASRConfig(
        audio_config=audio,
        text_config={"vocab_size": len(tokenizer), "head_dim": 16, **TEXT},
        audio_token_id=token("<|audio_pad|>"),
        pad_token_id=token("<|endoftext|>"),
        eos_token_id=[token("<|endoftext|>"), token("<|im_end|>")],
    )
    features = Qwen3ASRFeatureExtractor(feature_size=MELS)
    return Qwen3ASRForConditionalGeneration(config), Qwen3ASRProcessor(features, tokenizer, chat_template=TURN)
