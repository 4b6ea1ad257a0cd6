"""Whether the parts of a checkpoint agree: network, tokenizer and feature extractor, and what their files state.

Where they do not, a model trains on nothing or writes nonsense, and no library says so.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import (
    LasrFeatureExtractor,
    ParakeetFeatureExtractor,
    PreTrainedTokenizerFast,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2PhonemeCTCTokenizer,
    WhisperFeatureExtractor,
)

from ssvd.errors import UserError

MARK = re.compile(r"<[^<>\s]+>")  # <|nl|>, <eng>, <s>: no model writes what it is told in this way
ENGLISH_VOCABULARY = 51_864  # of OpenAI's English-only models, whose tokenizer has those of all languages too
MOST_LAYERS = 1000  # of a network that anyone trained; a damaged config may state any number
# Of a feature extractor: what decides on the features, and may stand in two files.
_FEATURE_FIELDS = (
    "sampling_rate",
    "feature_size",
    "hop_length",
    "n_fft",
    "chunk_length",
    "do_normalize",
    "return_attention_mask",
)
_FRAME = 0.02  # seconds: of every published wav2vec 2.0 and HuBERT
_RATE = 16_000  # Hz: likewise
# Of encoders with a CTC head or a transducer, where it is not that of the wave.
_EXTRACTORS = {
    "wav2vec2-bert": SeamlessM4TFeatureExtractor,
    "parakeet_ctc": ParakeetFeatureExtractor,
    "parakeet_tdt": ParakeetFeatureExtractor,
    "lasr_ctc": LasrFeatureExtractor,
}
_WHISPER = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160}  # fixed in OpenAI's code, not in its weights
_UNKNOWN_PIECES = 0.05  # of a bpemodel: ESPnet's own lists of tokens lack a few
_COPY = "copy the files of one part from the model that the other comes from"


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises on files that it does not understand into a sentence.

    Args:
        what: What is read, and of which checkpoint.
        remedy: What to do about it, as the end of a sentence.

    Raises:
        UserError: Something was raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files fail in as many ways as there are libraries
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0].strip().rstrip('.:')}" if lines else type(error).__name__
        raise UserError(f"{what} cannot be read ({reason}): {remedy}.") from error


def check_finite(checkpoint: str, network: nn.Module) -> None:
    """Check that all weights and statistics of a network are finite numbers.

    Raises:
        UserError: Some are not; the message names the tensor.
    """
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        # The sum shows it without another tensor of the size; it may also overflow, so look again.
        if tensor.is_floating_point() and not tensor.detach().sum().isfinite() and not tensor.isfinite().all():
            raise UserError(
                f"The weights of {checkpoint} are not all finite numbers, those of {name} for one: the file is "
                "damaged, or its training failed. Take another checkpoint."
            )


def check_equal(checkpoint: str, what: str, stated: Mapping[str, Any]) -> None:
    """Check that the parts of a checkpoint state the same.

    Args:
        checkpoint: Its name.
        what: What they state.
        stated: What each part states; None where it does not.

    Raises:
        UserError: They disagree; the message says who states what.
    """
    given = {part: value for part, value in stated.items() if value is not None}
    values = list(given.values())
    if any(value != values[0] for value in values):
        told = ", ".join(f"{value} in {part}" for part, value in given.items())
        raise UserError(f"The parts of {checkpoint} disagree on {what} ({told}): {_COPY}.")


def check_token(checkpoint: str, what: str, token: Any, size: int) -> int:
    """Return a token, which must be one of the `size` that a network knows.

    Raises:
        UserError: It is not.
    """
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
        raise UserError(
            f"{what} of {checkpoint} is {token!r}, and its network knows the tokens 0 to {size - 1}: {_COPY}."
        )
    return token


def check_vocabulary(checkpoint: str, vocabulary: Mapping[str, Any], size: int, files: str) -> None:
    """Check that a tokenizer belongs to a network of `size` tokens.

    Args:
        checkpoint: Its name.
        vocabulary: The token of each symbol that may be learnt or written.
        size: Number of tokens that the network knows.
        files: Names of the tokenizer's files.

    Raises:
        UserError: The tokenizer is missing or nearly empty, or it has tokens that the network lacks, or two symbols for
            one token, or gaps.
    """
    if 2 * len(vocabulary) < size:
        raise UserError(
            f"The tokenizer of {checkpoint} has {len(vocabulary)} of the {size} tokens that its network knows, so it "
            f"is missing or damaged: copy {files} from the model that it comes from."
        )
    for symbol, token in vocabulary.items():
        if type(token) is not int or not 0 <= token < size:
            check_token(checkpoint, f"The token of {symbol!r} in the tokenizer", token, size)
    by_token = {token: symbol for symbol, token in vocabulary.items()}
    if len(by_token) < len(vocabulary):
        symbol, token = next((symbol, token) for symbol, token in vocabulary.items() if by_token[token] != symbol)
        raise UserError(
            f"The tokenizer of {checkpoint} has one token, {token}, for {symbol!r} and {by_token[token]!r}: copy "
            f"{files} from the model that it comes from."
        )


def check_features(checkpoint: str, processor: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
    """Check that the two files that may describe a feature extractor say the same.

    Args:
        checkpoint: Its name.
        processor: Content of processor_config.json.
        preprocessor: Content of preprocessor_config.json.

    Raises:
        UserError: They differ.
        ValueError: Neither says anything, so that defaults would count.
    """
    described = processor.get("feature_extractor") or {}
    if "sampling_rate" not in {**described, **preprocessor}:
        raise ValueError("no preprocessor_config.json states the sampling_rate")
    for field in _FEATURE_FIELDS:
        stated = {"processor_config.json": described.get(field), "preprocessor_config.json": preprocessor.get(field)}
        check_equal(checkpoint, field, stated)


def check_whisper(
    checkpoint: str, network: Any, processor: Any, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> None:
    """Check that the parts of a Whisper checkpoint agree.

    Args:
        checkpoint: Its name.
        network: The network, with or without weights.
        processor: Its tokenizer and feature extractor.
        config: Content of config.json.
        generation: Content of generation_config.json; empty if there is none.

    Raises:
        UserError: They disagree.
    """
    tokenizer, features = processor.tokenizer, processor.feature_extractor
    _check_kind(checkpoint, "feature extractor", features, WhisperFeatureExtractor)
    size, vocabulary = network.config.vocab_size, tokenizer.get_vocab()
    check_vocabulary(checkpoint, vocabulary, size, "tokenizer.json and tokenizer_config.json")
    frames = network.config.max_source_positions * network.model.encoder.conv2.stride[0]
    for what, own, extracted in (
        ("the mel bands", network.config.num_mel_bins, features.feature_size),
        ("the frames of a window", frames, features.nb_max_frames),
    ):
        check_equal(checkpoint, what, {"config.json": own, "preprocessor_config.json": extracted})
    for field, value in _WHISPER.items():
        check_equal(checkpoint, field, {"every Whisper": value, "preprocessor_config.json": getattr(features, field)})
    options = {"sampling_rate": features.sampling_rate, "max_length": features.n_samples, "return_tensors": "np"}
    silence = features(np.zeros(features.sampling_rate, np.float32), **options).input_features[0]
    _check_silence(checkpoint, silence, (network.config.num_mel_bins, frames))
    tokenizer.encode(" a", add_special_tokens=False)  # a damaged one fails here
    if not config.get("is_encoder_decoder", True):
        raise UserError(f"The config.json of {checkpoint} says that it has no decoder (is_encoder_decoder): {_COPY}.")
    for what, field, own in (
        ("the start token", "decoder_start_token_id", vocabulary.get("<|startoftranscript|>")),
        ("the end token", "eos_token_id", tokenizer.eos_token_id),
    ):
        used = {"config.json": config.get(field), "generation_config.json": generation.get(field)}
        used = {part: token[0] if isinstance(token, list) and token else token for part, token in used.items()}
        if used["config.json"] is used["generation_config.json"] is None:
            used["config.json"] = getattr(network.config, field)  # the default
        for token in used.values():
            if token is not None:
                check_token(checkpoint, what, token, size)
        check_equal(checkpoint, what, used | {"the tokenizer": own})
    _check_generation(checkpoint, network, generation, vocabulary)


def _check_generation(
    checkpoint: str, network: Any, generation: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> None:
    """Check what the generation config of Whisper says of tokens."""
    size, options = network.config.vocab_size, network.generation_config
    tokens = {"<|notimestamps|>": generation.get("no_timestamps_token_id")}
    for field, symbol in (("lang_to_id", "{}"), ("task_to_id", "<|{}|>")):
        stated = generation.get(field) or {}
        if not isinstance(stated, dict):
            raise UserError(f"{field} in the generation_config.json of {checkpoint} names no tokens: {_COPY}.")
        tokens |= {symbol.format(name): token for name, token in stated.items()}
    for name, token in tokens.items():
        if token is not None:
            parts = {"generation_config.json": token, "the tokenizer": vocabulary.get(name, "none")}
            check_equal(checkpoint, f"the token {name}", parts)
    multilingual = generation.get("is_multilingual")
    if multilingual not in (None, True, False) or isinstance(multilingual, float):
        raise UserError(f"is_multilingual in the generation_config.json of {checkpoint} is neither true nor false.")
    stated = {"is_multilingual": multilingual, "lang_to_id": True if generation.get("lang_to_id") else None}
    if multilingual:
        stated["the tokenizer"] = size != ENGLISH_VOCABULARY and "<|transcribe|>" in vocabulary
    check_equal(checkpoint, "whether it knows several languages", stated)
    for field in ("suppress_tokens", "begin_suppress_tokens"):
        suppressed = getattr(options, field, None) or []
        if not isinstance(suppressed, list):
            raise UserError(f"{field} in the generation_config.json of {checkpoint} is no list of tokens: {_COPY}.")
        for token in suppressed:
            check_token(checkpoint, f"one of {field}", token, size)
    if options.eos_token_id in (options.suppress_tokens or []):
        raise UserError(f"The generation_config.json of {checkpoint} suppresses the end token: {_COPY}.")


def letters_of(tokenizer: Any) -> dict[str, int]:
    """Return the token of each symbol that can be said: not of the blank and the like; the word delimiter as " "."""
    delimiter = tokenizer.word_delimiter_token
    special = {*tokenizer.all_special_tokens, delimiter, ""}
    letters = {
        symbol: token
        for symbol, token in tokenizer.get_vocab().items()
        if symbol not in special and not MARK.fullmatch(symbol)
    }
    if delimiter in tokenizer.encoder:  # of vocab.json; the tokenizer adds what is missing there as a new token
        letters[" "] = tokenizer.encoder[delimiter]
    return letters


def check_ctc_head(checkpoint: str, network: Any, tokenizer: Any) -> None:
    """Check that a tokenizer belongs to the CTC head of a network.

    Args:
        checkpoint: Its name.
        network: The network, with or without weights.
        tokenizer: Its tokenizer.

    Raises:
        UserError: They disagree.
    """
    config = network.config
    kinds = Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer, PreTrainedTokenizerFast
    _check_kind(checkpoint, "tokenizer", tokenizer, *kinds)
    blank = check_token(checkpoint, "the blank (pad_token_id)", config.pad_token_id, config.vocab_size)
    check_equal(checkpoint, "the blank", {"config.json": blank, "the tokenizer (pad_token)": tokenizer.pad_token_id})
    if isinstance(tokenizer, Wav2Vec2CTCTokenizer):
        _check_letters(checkpoint, config.vocab_size, tokenizer)
    elif isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer):
        check_vocabulary(checkpoint, tokenizer.encoder, config.vocab_size, "vocab.json and tokenizer_config.json")
    else:
        check_vocabulary(checkpoint, tokenizer.get_vocab(), config.vocab_size, "tokenizer.json")
        tokenizer.encode(" a", add_special_tokens=False)  # a damaged one fails here


def check_transducer(checkpoint: str, network: Any, tokenizer: Any) -> None:
    """Check that a tokenizer belongs to a transducer.

    Args:
        checkpoint: Its name.
        network: The network, with or without weights.
        tokenizer: Its tokenizer.

    Raises:
        UserError: They disagree.
    """
    config, parts = network.config, "tokenizer.json and tokenizer_config.json"
    _check_kind(checkpoint, "tokenizer", tokenizer, PreTrainedTokenizerFast)
    blank = check_token(checkpoint, "the blank (blank_token_id)", config.blank_token_id, config.vocab_size)
    filling = check_token(checkpoint, "the filling (pad_token_id)", config.pad_token_id, config.vocab_size)
    check_equal(
        checkpoint, "the filling", {"config.json": filling, "the tokenizer (pad_token)": tokenizer.pad_token_id}
    )
    vocabulary = tokenizer.get_vocab()
    check_vocabulary(checkpoint, vocabulary, config.vocab_size, parts)
    spelt = next((symbol for symbol, token in vocabulary.items() if token == blank), "<blank>")
    if blank == filling or (spelt not in tokenizer.all_special_tokens and not MARK.fullmatch(spelt)):
        raise UserError(
            f"The blank in the config.json of {checkpoint} is the token {blank}, which is {spelt!r} in the tokenizer: "
            f"copy config.json, {parts} from the same model."
        )


def check_encoder_input(checkpoint: str, network: Any, extractor: Any) -> None:
    """Check that a feature extractor, and the masks of training, fit a network with a CTC head or a transducer.

    Args:
        checkpoint: Its name.
        network: The network, with or without weights.
        extractor: Its feature extractor.

    Raises:
        UserError: They disagree.
    """
    config = network.config
    kind = _EXTRACTORS.get(config.model_type, Wav2Vec2FeatureExtractor)
    _check_kind(checkpoint, "feature extractor", extractor, kind)
    if kind is Wav2Vec2FeatureExtractor:
        _check_wave(checkpoint, config, extractor)
    else:
        _check_log_mel(checkpoint, config, extractor)
    if hasattr(config, "mask_time_length"):
        bands = config.mask_feature_length if config.mask_feature_prob else 1
        if config.mask_time_length < 1 or not 0 < bands <= config.hidden_size:
            raise UserError(
                f"The masks of the config.json of {checkpoint} do not fit its network (mask_time_length, "
                f"mask_feature_length): {_COPY}."
            )


def _check_letters(checkpoint: str, size: int, tokenizer: Any) -> None:
    """Check that a tokenizer of letters belongs to a network of `size` tokens."""
    files = "vocab.json and tokenizer_config.json"
    letters, special = letters_of(tokenizer), {*tokenizer.all_special_tokens}
    # Older releases added special tokens after the network was made.
    added = {symbol for symbol, token in tokenizer.added_tokens_encoder.items() if symbol in special and token >= size}
    vocabulary = {symbol: token for symbol, token in tokenizer.get_vocab().items() if symbol not in added}
    check_vocabulary(checkpoint, vocabulary, size, files)
    gaps = set(range(max(letters.values(), default=0))) - set(tokenizer.get_vocab().values())
    if gaps:
        raise UserError(f"The tokenizer of {checkpoint} has no symbol for the token {min(gaps)}: copy {files} again.")
    if " " not in letters and "".join(letters).upper() != "".join(letters).lower():  # a script with words
        raise UserError(
            f"The tokenizer of {checkpoint} lacks the word delimiter {tokenizer.word_delimiter_token!r} that it "
            f"names: copy {files} from the model that it comes from."
        )


def _check_wave(checkpoint: str, config: Any, extractor: Any) -> None:
    """Check a feature extractor that only normalises samples."""
    silence = extractor(np.zeros(1000, np.float32), sampling_rate=extractor.sampling_rate).input_values[0]
    _check_silence(checkpoint, silence, (1000,))
    shift = prod(config.conv_stride) / extractor.sampling_rate
    if extractor.feature_size != 1 or (extractor.sampling_rate != _RATE and shift != _FRAME):
        raise UserError(
            f"The preprocessor_config.json of {checkpoint} states {extractor.sampling_rate} Hz and "
            f"{extractor.feature_size} features a sample, and networks of this kind read one channel at {_RATE} Hz: "
            "copy it from the model that it comes from."
        )


def _check_log_mel(checkpoint: str, config: Any, extractor: Any) -> None:
    """Check a feature extractor that makes log-mel features of samples."""
    encoder = getattr(config, "encoder_config", None)
    bands = config.feature_projection_input_dim if encoder is None else encoder.num_mel_bins
    made = extractor([np.zeros(_RATE, np.float32)], sampling_rate=extractor.sampling_rate, return_tensors="np")
    features = np.asarray(made["input_features"])[0]
    given = {"config.json": bands, "preprocessor_config.json": features.shape[1]}
    check_equal(checkpoint, "the bands of a feature", given)
    check_equal(checkpoint, "sampling_rate", {"this kind": _RATE, "preprocessor_config.json": extractor.sampling_rate})
    if not np.isfinite(features).all():
        raise UserError(f"The feature extractor of {checkpoint} makes of silence what is no number: {_COPY}.")


def check_owsm(checkpoint: str, network: Any, config: Mapping[str, Any], pieces: Sequence[str]) -> None:
    """Check that the parts of an OWSM checkpoint agree.

    Args:
        checkpoint: The file of its config.
        network: The network with its weights.
        config: Content of the file.
        pieces: What its bpemodel cuts texts into, without what stands for unknown and control symbols.

    Raises:
        UserError: They disagree.
    """
    tokens = Counter(network.token_list)
    repeated = [token for token, count in tokens.items() if count > 1]
    if repeated:
        raise UserError(f"{checkpoint}: token_list holds {repeated[0]!r} twice: copy the config again.")
    preprocessing = config["preprocessor_conf"]
    symbols = ["<unk>", "<na>", "<asr>", *([] if "promptencoder" in config else ["<notimestamps>"])]
    symbols += [value for field, value in preprocessing.items() if field.endswith("_symbol") and isinstance(value, str)]
    lacking = [symbol for symbol in symbols if symbol not in tokens]
    if lacking:
        raise UserError(f"{checkpoint}: token_list lacks {lacking[0]}, which models of this kind need: {_COPY}.")
    check_equal(checkpoint, "the blank", {"the network": 0, "token_list": network.token_list.index("<blank>")})
    unknown = [piece for piece in pieces if piece not in tokens]
    if len(unknown) > _UNKNOWN_PIECES * len(pieces):
        raise UserError(
            f"{checkpoint}: its token_list lacks {len(unknown)} of the {len(pieces)} pieces of its bpemodel, among "
            f"them {unknown[0]!r}: copy the bpemodel of the model that the config comes from."
        )
    rates = {part: _hertz(config.get(part), "fs") for part in ("frontend_conf", "preprocessor_conf")}
    check_equal(checkpoint, "the sampling rate", rates)


def _hertz(options: Any, field: str) -> float | None:
    """Return a sampling rate as ESPnet states it, such as 16000 or "16k"."""
    rate = (options or {}).get(field)
    if isinstance(rate, str):
        return float(rate.lower().removesuffix("k")) * (1000 if rate.lower().endswith("k") else 1)
    return rate


def _check_silence(checkpoint: str, features: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    """Check that a feature extractor makes the same of all silence, as those do that add no noise."""
    if features.shape != shape or not np.isfinite(features).all() or np.ptp(features):
        raise UserError(
            f"The feature extractor of {checkpoint} makes of silence what it should not: copy preprocessor_config.json "
            "from the model that the checkpoint comes from."
        )


def _check_kind(checkpoint: str, part: str, found: Any, *kinds: type) -> None:
    if not isinstance(found, kinds):
        raise UserError(
            f"The {part} of {checkpoint} is a {type(found).__name__}, and models of this kind have a "
            f"{' or '.join(kind.__name__ for kind in kinds)}: copy its files from the model that it comes from."
        )
