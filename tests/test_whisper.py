"""Whisper as a Recogniser: on tiny random checkpoints of the three kinds of vocabulary, and on real speech."""

import json
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from ssvd.errors import UserError
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.recognisers.whisper import Whisper

RATE = 16000
GREEDY = Decoding(fallback=None)
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|nl|>", "<|translate|>", "<|transcribe|>"]
SPECIAL += ["<|notimestamps|>"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few words that begin with a space, and Whisper's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "Ġa", "Ġb", *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        unk_token=SPECIAL[0],
        additional_special_tokens=SPECIAL[1:],
    )


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Characters and nothing of Whisper's."""
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *" abcdefghijklmnopqrstuvwxyz.'"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def write_checkpoint(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """A random Whisper of 2 s and 70 tokens whose vocabulary is "multilingual", "english" or "characters"."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer() if kind == "characters" else word_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    start = token("<s>") if kind == "characters" else token("<|startoftranscript|>")
    end = tokenizer.eos_token_id
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=100,
        max_target_positions=70,
        init_std=0.3,  # so that the outputs depend on the inputs
        bos_token_id=start,
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    extra = {}
    if kind != "characters":
        extra = {"is_multilingual": kind == "multilingual", "no_timestamps_token_id": token("<|notimestamps|>")}
    if kind == "multilingual":
        extra["lang_to_id"] = {"<|en|>": token("<|en|>"), "<|nl|>": token("<|nl|>")}
        extra["task_to_id"] = {"transcribe": token("<|transcribe|>"), "translate": token("<|translate|>")}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, bos_token_id=start, eos_token_id=end, pad_token_id=end, max_length=70, **extra
    )
    model.to(dtype).save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=2), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whisper")
    return {kind: write_checkpoint(folder / kind, kind) for kind in ("multilingual", "english", "characters")}


def make_cut(folder: Path, name: str, seconds: float, text: str | None, language: str | None = None) -> MonoCut:
    noise = np.random.default_rng(len(name) + round(1000 * seconds)).normal(size=round(seconds * RATE)) / 20
    path = folder / f"{name}.wav"
    soundfile.write(path, noise, RATE)
    cut = Recording.from_file(path, recording_id=name).to_cut()
    cut.id = name
    cut.supervisions = [SupervisionSegment(name, name, 0.0, cut.duration, text=text, language=language)]
    return cut


@pytest.fixture
def cuts(tmp_path: Path) -> list[MonoCut]:
    return [
        make_cut(tmp_path, "one", 0.7, "a bad cab", "Dutch"),
        make_cut(tmp_path, "two", 1.9, "b", "en"),
        make_cut(tmp_path, "three", 1.2, "abc abc", "nl-BE"),
    ]


def model(path: Path, **options) -> Whisper:
    speech = load_model(path, **options)
    assert isinstance(speech, Whisper)
    return speech


@pytest.mark.parametrize(
    ("kind", "prompts", "text"),
    [
        (
            "multilingual",
            ["<|startoftranscript|>", "<|nl|>", "<|transcribe|>", "<|notimestamps|>"],
            ["Ġa", "Ġb", "a", "d", "Ġ", "c", "a", "b", "<|endoftext|>"],
        ),
        (
            "english",
            ["<|startoftranscript|>", "<|notimestamps|>"],
            ["Ġa", "Ġb", "a", "d", "Ġ", "c", "a", "b", "<|endoftext|>"],
        ),
        ("characters", ["<s>"], [*"a bad cab", "</s>"]),
    ],
)
def test_prompt_and_labels_follow_the_checkpoint(checkpoints, cuts, kind, prompts, text):
    speech = model(checkpoints[kind])
    batch = speech.collate(cuts)
    names = speech._tokenizer.convert_ids_to_tokens
    assert names(batch.decoder_input_ids[0]) == [*prompts, *text[:-1]]
    assert batch.labels[0, : len(prompts) - 1].eq(-100).all()
    assert names(batch.labels[0, len(prompts) - 1 :]) == text
    assert batch.labels[1, len(prompts) + 1 :].eq(-100).all()
    assert batch.ids == ["one", "two", "three"]
    assert batch.features.shape == (3, 16, 200)
    assert batch.frames.tolist() == [70, 190, 120]


@pytest.mark.parametrize(("language", "code"), [("Dutch", "nl"), ("nl", "nl"), ("nl-BE", "nl"), ("EN_us", "en")])
def test_languages_by_name_and_code(checkpoints, tmp_path, language, code):
    cut = make_cut(tmp_path, "x", 0.5, "a", language)
    assert model(checkpoints["multilingual"]).collate([cut]).languages == [code]
    unstated = make_cut(tmp_path, "x", 0.5, "a")
    assert model(checkpoints["multilingual"], language=language).collate([unstated]).languages == [code]


def test_unknown_and_missing_languages(checkpoints, tmp_path):
    with pytest.raises(UserError, match="language 'Klingon'"):
        load_model(checkpoints["multilingual"], language="Klingon")
    speech = model(checkpoints["multilingual"])
    unstated, alien = make_cut(tmp_path, "x", 0.5, "a"), make_cut(tmp_path, "y", 0.5, "a", "tlh")
    with pytest.raises(UserError, match="Utterance x: The language is not stated"):
        speech.collate([unstated])
    with pytest.raises(UserError, match=r"Utterance y: .*language 'tlh'"):
        speech.collate([alien], text=False)
    assert model(checkpoints["english"]).check(alien) is None  # it has one language, whatever the data say


def test_detects_the_language_as_transformers_does(checkpoints, tmp_path):
    speech = model(checkpoints["multilingual"])
    batch = speech.collate([make_cut(tmp_path, f"{i}", 0.3 + i / 10, None) for i in range(8)], text=False)
    detected = speech.module.detect_language(batch.features)
    assert speech._detect(batch.features) == [speech._tokenizer.decode(token).strip("<|>") for token in detected]
    stated = batch._replace(languages=speech._detect(batch.features))
    short = Decoding(max_new_tokens=5)
    assert speech.transcribe(batch, short) == speech.transcribe(stated, short)


def test_translation(checkpoints, cuts):
    batch = model(checkpoints["multilingual"], task="translate").collate(cuts[:1])
    assert SPECIAL.index("<|translate|>") + 258 == batch.decoder_input_ids[0, 2]
    with pytest.raises(UserError, match="task 'translate'"):
        load_model(checkpoints["characters"], task="translate")


def naive_loss(speech: Whisper, cut: MonoCut, smoothing: float) -> tuple[float, int]:
    """Sum over the tokens of one utterance, token by token, and their number."""
    batch = speech.collate([cut])
    with torch.no_grad():
        logits = speech.module(input_features=batch.features, decoder_input_ids=batch.decoder_input_ids).logits[0]
    total, count = 0.0, 0
    for scores, label in zip(logits.double().log_softmax(-1), batch.labels[0].tolist(), strict=True):
        if label >= 0:
            total -= float((1 - smoothing) * scores[label] + smoothing * scores.mean())
            count += 1
    return total, count


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["multilingual", "characters"])
def test_loss_is_the_mean_over_all_tokens(checkpoints, cuts, kind, smoothing):
    speech = model(checkpoints[kind], window=1.92)
    sums = [naive_loss(speech, cut, smoothing) for cut in cuts]
    expected = sum(total for total, _ in sums) / sum(count for _, count in sums)
    assert speech.loss(speech.collate(cuts), label_smoothing=smoothing).item() == pytest.approx(expected, rel=1e-5)


def test_runs_in_bfloat16(checkpoints, cuts):
    speech = model(checkpoints["multilingual"])
    batch = speech.collate(cuts)
    expected = speech.loss(batch).item()
    speech.module.to(torch.bfloat16)
    loss = speech.loss(batch)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=0.05)
    assert len(speech.transcribe(batch)) == 3


def test_loss_needs_labels(checkpoints, cuts):
    speech = model(checkpoints["english"])
    with pytest.raises(ValueError, match="text=True"):
        speech.loss(speech.collate(cuts, text=False))


def test_spec_augment_masks_speech_within_its_widths():
    features, frames = torch.ones(50, 80, 300), torch.full((50,), 200)
    torch.manual_seed(1)
    masked = SpecAugment(frequency_masks=1, frequency_width=27, time_masks=1, time_share=0.05)(features, frames)
    bands = (masked[:, :, 250] == 0).sum(1)  # beyond the speech only bands are masked
    times = ((masked == 0).all(1)).sum(1)
    assert 20 < bands.max() <= 27 and times.max() == 10 and bands.min() < 5 and times.min() < 2
    assert not (masked[:, :, 200:] == 0).all(1).any()
    torch.manual_seed(1)
    again = SpecAugment(frequency_masks=1, frequency_width=27, time_masks=1, time_share=0.05)(features, frames)
    assert torch.equal(masked, again)


def test_spec_augment_only_in_training(checkpoints, cuts):
    speech = model(checkpoints["english"])
    batch = speech.collate(cuts)
    plain = speech.loss(batch)
    speech.spec_augment = SpecAugment()
    assert speech.loss(batch) == plain
    speech.module.train()
    assert speech.loss(batch) != plain
    speech.spec_augment = None
    assert speech.loss(batch) == plain


def test_check_and_collate_name_what_cannot_be_learnt(checkpoints, tmp_path):
    speech = model(checkpoints["english"], window=1)
    good = make_cut(tmp_path, "good", 1.0, "a" * 68)
    assert speech.check(good) is None
    assert speech.loss(speech.collate([good])).isfinite()
    faults = {
        "long": (make_cut(tmp_path, "long", 1.1, "a"), "It lasts 1.10 s and the window is 1 s"),
        "wordy": (make_cut(tmp_path, "wordy", 0.5, "a" * 70), "takes 72 tokens and the decoder has 70"),
        "mute": (make_cut(tmp_path, "mute", 0.5, " "), "no text"),
        "marked": (make_cut(tmp_path, "marked", 0.5, "a <|endoftext|>"), "a mark for models"),
    }
    for name, (cut, reason) in faults.items():
        assert reason in speech.check(cut)
        with pytest.raises(UserError, match=f"Utterance {name}: .*{reason}"):
            speech.collate([good, cut])
    assert "vocabulary lacks" in model(checkpoints["characters"]).check(make_cut(tmp_path, "é", 0.5, "né"))


@pytest.mark.parametrize("window", [0, -1, 2.1, 0.001])
def test_impossible_windows(checkpoints, window):
    with pytest.raises(UserError, match="up to 2"):
        load_model(checkpoints["english"], window=window)


def test_save_after_windowing_loses_nothing(tmp_path):
    source = write_checkpoint(tmp_path / "source", "english", torch.float16)
    speech = model(source, window=0.5)
    assert speech.window == 0.5 and speech.module.dtype == torch.float32
    speech.save(tmp_path / "saved")
    first = WhisperForConditionalGeneration.from_pretrained(source)
    second = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert second.dtype == torch.float16 and second.config.max_source_positions == 100
    weights = second.state_dict()
    assert first.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in first.state_dict().items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "saved")]
    assert configs[0] == configs[1]
    assert speech.module.config.max_source_positions == 25  # still runs with its window
    assert load_model(tmp_path / "saved").window == 2


def test_save_keeps_trained_positions(checkpoints, tmp_path):
    speech = model(checkpoints["english"], window=0.5)
    with torch.no_grad():
        speech.module.model.encoder.embed_positions.weight += 1
    speech.save(tmp_path / "saved")
    before, after = (
        WhisperForConditionalGeneration.from_pretrained(folder).model.encoder.embed_positions.weight
        for folder in (checkpoints["english"], tmp_path / "saved")
    )
    assert torch.equal(after[:25], before[:25] + 1) and torch.equal(after[25:], before[25:])


def test_works_wrapped_by_peft(checkpoints, cuts, tmp_path):
    speech = model(checkpoints["multilingual"], window=1.92)
    layers = speech.adaptable_layers()
    assert len(layers) == 2 * 6 + 2 * 10 and not any("proj_out" in name for name in layers)
    batch = speech.collate(cuts)
    plain, texts = speech.loss(batch), speech.transcribe(batch)
    config = LoraConfig(r=2, target_modules=layers, init_lora_weights=False, lora_dropout=0.5)
    speech.module = get_peft_model(speech.module, config).train()
    adapted = speech.transcribe(batch)
    assert adapted != texts
    assert speech.module.training and adapted == speech.transcribe(batch)  # no dropout
    loss = speech.loss(batch)
    assert loss != plain
    loss.backward()
    assert all(p.grad is not None for p in speech.module.parameters() if p.requires_grad)
    with pytest.raises(TypeError, match="merge"):
        speech.save(tmp_path / "saved")
    speech.module = speech.module.merge_and_unload()
    speech.save(tmp_path / "saved")
    assert model(tmp_path / "saved", window=1.92).transcribe(batch) == adapted


@pytest.mark.parametrize("beams", [1, 3])
def test_transcribes_as_transformers_does(checkpoints, cuts, beams):
    speech = model(checkpoints["multilingual"])
    batch = speech.collate(cuts, text=False)
    stock = speech.module.generate(
        batch.features, language=["nl", "en", "nl"], task="transcribe", num_beams=beams, max_new_tokens=8
    )
    expected = [text.strip() for text in speech._tokenizer.batch_decode(stock, skip_special_tokens=True)]
    assert speech.transcribe(batch, Decoding(beams, 8, fallback=None)) == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_do_not_depend_on_the_batch(checkpoints, tmp_path, beams):
    speech = model(checkpoints["characters"])
    cuts = [make_cut(tmp_path, f"{i}", 0.1 + 0.25 * i, None) for i in range(7)]
    together = speech.transcribe(speech.collate(cuts, text=False), Decoding(beams))
    alone = [speech.transcribe(speech.collate([cut], text=False), Decoding(beams))[0] for cut in cuts]
    assert together == alone
    assert len(together[0]) <= 16 + 3 < max(len(text) for text in together)


def test_long_recordings_are_cut_at_pauses(checkpoints, tmp_path):
    speech = model(checkpoints["english"])
    rng = np.random.default_rng(0)
    samples = rng.normal(size=7 * RATE).astype(np.float32) / 10
    for pause in (1.5, 3.1, 4.4, 5.7):
        samples[round(pause * RATE) - 2000 : round(pause * RATE) + 2000] /= 1000
    pieces = speech._split(samples)
    assert np.array_equal(np.concatenate(pieces), samples)
    assert np.cumsum([len(piece) / RATE for piece in pieces])[:-1] == pytest.approx([1.5, 3.1, 4.4, 5.7], abs=0.1)
    texts = [speech.transcribe_audio(piece, GREEDY) for piece in pieces]
    expected = " ".join(filter(None, texts))
    assert speech.transcribe_audio(samples, GREEDY, batch_size=2) == expected
    soundfile.write(tmp_path / "long.wav", samples, RATE, subtype="FLOAT")
    short = make_cut(tmp_path, "short", 0.5, None)
    long = Recording.from_file(tmp_path / "long.wav").to_cut()
    batch = speech.collate([short, long, short], text=False)
    assert batch.pieces == [1, 5, 1]
    assert speech.transcribe(batch, GREEDY)[1] == expected


def test_silence_noise_and_nothing(checkpoints):
    speech = model(checkpoints["multilingual"])
    assert [len(p) for p in speech._split(np.zeros(5 * RATE, np.float32))] == [30400, 30400, 19200]
    long = np.random.default_rng(0).normal(size=(5 * RATE,)).astype(np.float32)
    code = speech._detect(speech._batch([""], [speech._split(long)[:1]], [None]).features)[0]
    assert speech.transcribe_audio(long) == speech.transcribe_audio(long, language=code)
    for length in (0, 1, 100):
        assert isinstance(speech.transcribe_audio(np.zeros(length, np.float32)), str)


def test_load_errors_are_sentences(checkpoints, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config").mkdir()
    with pytest.raises(UserError, match=r"holds neither the config\.json"):
        load_model(tmp_path / "config")
    config = tmp_path / "config" / "config.json"
    for text, message in [
        ("{", "not valid JSON"),
        ('{"model_type": "bert"}', "family 'bert'; supported: whisper"),
        ('{"model_type": "mine"}', "supported: whisper"),
        ("{}", "supported: whisper"),
        ((checkpoints["english"] / "config.json").read_text(), "pickled ones"),
    ]:
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "config")
    weights = WhisperForConditionalGeneration.from_pretrained(checkpoints["english"])
    torch.save(weights.state_dict(), tmp_path / "config" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled ones"):
        load_model(tmp_path / "config")
    (tmp_path / "config" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "config")
    weights.save_pretrained(tmp_path / "config")
    with pytest.raises(UserError, match="tokenizer or feature extractor"):
        load_model(tmp_path / "config")


@pytest.fixture(scope="module")
def adults(recordings: Path) -> list[MonoCut]:
    """Four short read sentences of different adults."""
    corpus = recordings / "speechocean762"
    table = {
        name: dict(line.strip().split(maxsplit=1) for line in (corpus / "train" / name).read_text().splitlines())
        for name in ("wav.scp", "text", "utt2spk", "spk2age")
    }
    by_speaker = {speaker: name for name, speaker in sorted(table["utt2spk"].items())}
    cuts = []
    for speaker, name in by_speaker.items():
        cut = Recording.from_file(corpus / table["wav.scp"][name], recording_id=name).to_cut()
        text = table["text"][name].capitalize() + "."
        cut.supervisions = [SupervisionSegment(name, name, 0.0, cut.duration, text=text, speaker=speaker)]
        if int(table["spk2age"][speaker]) >= 18 and cut.duration < 6:
            cuts.append(cut)
    return cuts[:4]


def word_error_rate(references: list[str], hypotheses: list[str]) -> float:
    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalpha() or c == " ")

    return jiwer.wer([plain(text) for text in references], [plain(text) for text in hypotheses])


def test_real_speech(recordings, adults):
    references = [cut.supervisions[0].text for cut in adults]
    whole, short = (load_model(recordings / "whisper-tiny.en", window=window) for window in (None, 8))
    assert (whole.window, short.window) == (30, 8)
    features = whole.collate(adults, text=False).features
    texts = whole.transcribe(whole.collate(adults), GREEDY)
    stock = whole.module.generate(features)
    assert texts == [text.strip() for text in whole._tokenizer.batch_decode(stock, skip_special_tokens=True)]
    assert word_error_rate(references, texts) < 0.5  # native speakers of Mandarin
    batch = short.collate(adults)
    assert torch.equal(batch.features, features[..., :800])
    fast = short.transcribe(batch)
    assert word_error_rate(references, fast) < 0.9  # it was never trained on windows so short
    assert fast == [short.transcribe(short.collate([cut]))[0] for cut in adults]
    assert short.loss(batch) < 1
    # Text that begins with a space is what this model expects.
    short._has_words = False
    assert short.loss(short.collate(adults)) > short.loss(batch) + 0.2
