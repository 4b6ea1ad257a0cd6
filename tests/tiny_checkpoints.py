"""Checkpoints of random weights, a few 10,000 parameters each, with a real processor and tokenizer: one of each family
that writes token by token, and a transducer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CanaryConfig,
    CanaryForConditionalGeneration,
    CanaryProcessor,
    CohereAsrConfig,
    CohereAsrFeatureExtractor,
    CohereAsrForConditionalGeneration,
    CohereAsrProcessor,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GlmAsrProcessor,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    MoonshineStreamingConfig,
    MoonshineStreamingForConditionalGeneration,
    MoonshineStreamingProcessor,
    ParakeetFeatureExtractor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Speech2TextTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
)

from ssvd.demo.random_checkpoints import MELS, TEXT, TURN, parakeet_tdt, qwen3_asr, qwen_tokenizer

GLM_TURN = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|begin_of_audio|><|pad|><|end_of_audio|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CANARY_TURN = (
    "{% set part = messages[0]['content'][1] %}<|startofcontext|><|startoftranscript|><|{{ part['source_language'] }}|>"
    "<|{{ part['target_language'] }}|>{{ '<|pnc|>' if part['punctuation'] else '<|nopnc|>' }}"
)
PROMPT = ["<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|nl|>", "<|pnc|>"]
PROMPT += ["<|nopnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"]
MOONSHINE = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": 3}
PARAKEET = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
PARAKEET |= {"num_mel_bins": MELS, "subsampling_conv_channels": 4, "layerdrop": 0.0, "scale_input": False}


def byte_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Bytes and special tokens."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    tokenizer = Tokenizer(models.BPE({symbol: token for token, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special, **named)


def character_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    """Special tokens first, then characters, a blank as SentencePiece writes it."""
    symbols = [*special, "\N{LOWER ONE EIGHTH BLOCK}", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'?!-"]
    tokenizer = Tokenizer(models.WordLevel({symbol: token for token, symbol in enumerate(symbols)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "), decoders.Fuse()])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special[4:], **named)


def glmasr(folder: Path) -> tuple[Any, Any]:
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>"]
    tokenizer = byte_tokenizer(special, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    token = tokenizer.convert_tokens_to_ids
    ends = [token("<|endoftext|>"), token("<|user|>")]
    audio = {"num_mel_bins": MELS, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2}
    config = GlmAsrConfig(
        audio_config=audio | {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 100},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "eos_token_id": ends, **TEXT},
        audio_token_id=token("<|pad|>"),
    )
    features = WhisperFeatureExtractor(feature_size=MELS, chunk_length=4)
    return GlmAsrForConditionalGeneration(config), GlmAsrProcessor(features, tokenizer, chat_template=GLM_TURN)


def qwen2_audio(folder: Path) -> tuple[Any, Any]:
    tokenizer = qwen_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    audio = {"num_mel_bins": MELS, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2}
    config = Qwen2AudioConfig(
        audio_config=audio | {"encoder_ffn_dim": 64, "max_source_positions": 200},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), "eos_token_id": token("<|im_end|>"), **TEXT},
        audio_token_id=token("<|audio_pad|>"),
    )
    features = WhisperFeatureExtractor(feature_size=MELS, chunk_length=4)
    return Qwen2AudioForConditionalGeneration(config), Qwen2AudioProcessor(features, tokenizer, chat_template=TURN)


def moonshine(folder: Path) -> tuple[Any, Any]:
    tokenizer, features = moonshine_parts()
    config = MoonshineConfig(
        vocab_size=len(tokenizer),
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        **MOONSHINE,
    )
    return MoonshineForConditionalGeneration(config), Wav2Vec2Processor(features, tokenizer)


def moonshine_streaming(folder: Path) -> tuple[Any, Any]:
    tokenizer, features = moonshine_parts()
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    encoder = {"hidden_size": 32, "intermediate_size": 48, "sliding_windows": [[16, 4], [16, 0]], **layers}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = MoonshineStreamingConfig(encoder_config=encoder, vocab_size=len(tokenizer), **layers, **ids, **MOONSHINE)
    return MoonshineStreamingForConditionalGeneration(config), MoonshineStreamingProcessor(features, tokenizer)


def moonshine_parts() -> tuple[Any, Any]:
    """The tokenizer and the feature extractor of both."""
    features = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return character_tokenizer(["<unk>", "<s>", "</s>", "<pad>"]), features


def canary(folder: Path) -> tuple[Any, Any]:
    tokenizer = character_tokenizer(["<unk>", "<pad>", "<s>", "</s>", *PROMPT])
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    decoder = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    decoder |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
    config = CanaryConfig(
        encoder_config=PARAKEET,
        decoder_config=decoder | ids,
        decoder_start_token_id=4,
        vocab_size=len(tokenizer),
        **ids,
    )
    processor = CanaryProcessor(ParakeetFeatureExtractor(feature_size=MELS), tokenizer, chat_template=CANARY_TURN)
    return CanaryForConditionalGeneration(config), processor


def cohere_asr(folder: Path) -> tuple[Any, Any]:
    tokenizer = character_tokenizer(["<unk>", "<pad>", "<s>", "</s>", *PROMPT])
    config = CohereAsrConfig(
        encoder_config=PARAKEET,
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("\N{LOWER ONE EIGHTH BLOCK}"),
    )
    processor = CohereAsrProcessor(CohereAsrFeatureExtractor(feature_size=MELS), tokenizer)
    return CohereAsrForConditionalGeneration(config), processor


def speech_to_text(folder: Path) -> tuple[Any, Any]:
    """A tokenizer of pieces that SentencePiece learns of the alphabet."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = [" ".join("abcdefghijklmnopqrstuvwxyz"), "the boy saw a dog", "she has a red ball", "we ran home."] * 9
    (folder / "sentences.txt").write_text("\n".join(sentences))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "sentences.txt"),
        model_prefix=str(folder / "pieces"),
        vocab_size=36,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    vocabulary = {pieces.id_to_piece(token): token for token in range(len(pieces))}
    (folder / "pieces.json").write_text(json.dumps(vocabulary))
    tokenizer = Speech2TextTokenizer(str(folder / "pieces.json"), str(folder / "pieces.model"), do_lower_case=True)
    for path in [*folder.glob("pieces*"), folder / "sentences.txt"]:
        path.unlink() if path.suffix != ".model" else None
    size = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    size |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_model": 32, "conv_channels": 32}
    config = Speech2TextConfig(
        vocab_size=len(vocabulary), input_feat_per_channel=MELS, max_target_positions=128, dropout=0.0, **size
    )
    features = Speech2TextFeatureExtractor(feature_size=MELS, num_mel_bins=MELS)
    return Speech2TextForConditionalGeneration(config), Speech2TextProcessor(features, tokenizer)


FAMILIES: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (qwen3_asr, glmasr, qwen2_audio, moonshine, moonshine_streaming, canary, cohere_asr, speech_to_text)
}


def write_checkpoint(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of a family whose weights are large enough for its texts to depend on what it hears."""
    torch.manual_seed(0)
    network, processor = (FAMILIES | {"parakeet_tdt": parakeet_tdt})[family](folder)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    network.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
