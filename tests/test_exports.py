"""Adapted models for other software: LoRA adapters, and CTranslate2 with faster-whisper."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftModel
from torch.testing import assert_close

from ssvd import SSVDConfig, SVFTConfig, load_model
from ssvd.corpora.audio import load_audio, read_recording
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.merge import merge, write_lora
from ssvd.recognisers.decoding import Decoding
from ssvd.training.interpolation import copied_weights, merge_adapter
from ssvd.training.run_folder import load_adapted

TARGETS = ["fc1", "out_proj"]


def changes(embedded, run, scale=None):
    """The change of each weight by an adapter."""
    base = copied_weights(load_model(embedded).module)
    speech = load_adapted(embedded, run, scale=scale)
    merge_adapter(speech)
    return {name: weight - base[name] for name, weight in copied_weights(speech.module).items()}


def test_lora_of_full_rank_is_the_same_model_for_peft_alone(embedded, adapter, corpora, tmp_path):
    run = adapter(SSVDConfig(rank=6, target_modules=TARGETS), std=0.3)
    error = write_lora(embedded, run, tmp_path / "lora")
    assert error < 1e-5
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 6, 6)
    expected, converted = load_adapted(embedded, run), load_model(embedded)
    converted.module = PeftModel.from_pretrained(converted.module, str(tmp_path / "lora")).eval()
    cuts = list(read_corpus(corpora["child"]).cuts)[:2]
    with torch.no_grad():
        assert_close(
            converted.loss(converted.collate(cuts)), expected.loss(expected.collate(cuts)), rtol=1e-4, atol=1e-4
        )
    assert "relative error" in (tmp_path / "lora" / "README.md").read_text()


def test_error_of_a_truncated_lora_is_that_of_the_weights(embedded, adapter, tmp_path):
    run = adapter(SVFTConfig(off_diagonals=1, target_modules=TARGETS), std=0.3)
    error = write_lora(embedded, run, tmp_path / "lora", rank=20)
    expected, converted = changes(embedded, run), changes(embedded, tmp_path / "lora")
    missing = sum(float((expected[name] - converted[name]).square().sum()) for name in expected)
    total = sum(float(change.square().sum()) for change in expected.values())
    assert 0.1 < error < 1 and error == pytest.approx((missing / total) ** 0.5, rel=1e-3)


def test_scaled_lora_is_the_scaled_model(embedded, adapter, tmp_path):
    run = adapter(SSVDConfig(rank=6, target_modules=["fc1"]), std=0.3)
    write_lora(embedded, run, tmp_path / "lora", scale=0.5)
    assert_close(changes(embedded, tmp_path / "lora"), changes(embedded, run, scale=0.5), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_lora_is_told(embedded, adapter, refused, tmp_path):
    out = tmp_path / "out"
    lora = adapter(LoraConfig(r=4, target_modules=["fc1"]), std=0.3)
    assert "is of LoRA's kind already" in refused("merge", lora, out, "--to", "lora")
    oft = adapter(OFTConfig(r=0, oft_block_size=4, target_modules=["fc1"]), std=0.01)
    assert "state one" in refused("merge", oft, out, "--to", "lora")
    saved = adapter(SSVDConfig(rank=6, target_modules=["fc1"], modules_to_save=["layer_norm"]), std=0.01)
    assert "use the scale 1" in refused("merge", saved, out, "--to", "lora", "--scale", 0.5)
    assert "larger than the weight" in refused("merge", adapter(CORE, std=0.3), out, "--to", "lora", "--rank", 5000)
    assert "--rank is for --to lora" in refused("merge", lora, out, "--rank", 4)
    assert not out.exists()


CORE = SSVDConfig(rank=6, target_modules=["fc1"])


def test_formats_that_do_not_fit_are_told(embedded, adapter, refused, tmp_path):
    run, out = adapter(CORE, std=0.3), tmp_path / "out"
    assert "is a checkpoint of transformers and cannot be written" in refused("merge", run, out, "--to", "espnet")
    assert "--quantization is for" in refused("merge", run, out, "--quantization", "int8")
    with pytest.raises(UserError, match="Only checkpoints of CTranslate2 are quantised"):
        merge(embedded, run, out, quantization="int8")
    assert not out.exists()


def test_ctranslate2_hears_the_same_words(embedded, adapter, corpora, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    run = adapter(CORE, std=0.3)
    merge(embedded, run, tmp_path / "ct2", to="ctranslate2", quantization="float32")
    engine = ctranslate2.models.Whisper(str(tmp_path / "ct2"), device="cpu", compute_type="float32", intra_threads=1)
    speech = load_adapted(embedded, run)
    batch = speech.collate(list(read_corpus(corpora["adult"]).cuts)[:3], text=False)
    features = ctranslate2.StorageView.from_array(batch.features.numpy())
    start = speech._tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    results = engine.generate(features, [start] * 3, beam_size=1, max_length=96)
    texts = [speech._tokenizer.decode(result.sequences_ids[0], skip_special_tokens=True) for result in results]
    ours = speech.transcribe(batch, Decoding(fallback=None))
    assert texts == ours != load_model(embedded).transcribe(batch, Decoding(fallback=None))


def test_weights_of_ctranslate2_are_quantised(embedded, adapter, ssvd, tmp_path):
    pytest.importorskip("ctranslate2")
    run = adapter(CORE, std=0.3)
    for quantization in ("float32", "int8"):
        out = tmp_path / quantization
        code, said, err = ssvd("merge", run, out, "--to", "ctranslate2", "--quantization", quantization)
        assert code == 0 and "load it with faster-whisper" in said, err
        assert json.loads((out / "preprocessor_config.json").read_text())["feature_size"] == 80
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("float32", "int8")]
    assert sizes[0] > 3 * sizes[1]


@pytest.mark.slow
def test_faster_whisper_hears_the_same_words_at_the_same_times(recordings, adapter, tmp_path):
    faster_whisper = pytest.importorskip("faster_whisper")
    model = str(recordings / "whisper-tiny.en")
    run = adapter(SSVDConfig(rank=16, target_modules=["fc2"]), model=model)
    merge(model, run, tmp_path / "ct2", to="ctranslate2", quantization="float32")
    engine = faster_whisper.WhisperModel(str(tmp_path / "ct2"), device="cpu", compute_type="float32", cpu_threads=1)
    speech = load_adapted(model, run)
    for path in sorted((recordings / "librispeech-dev-clean").rglob("*.mp3"))[:3]:
        samples = load_audio(read_recording(path, path.stem).to_cut(), 16000)
        segments, _ = engine.transcribe(
            samples, language="en", beam_size=1, temperature=0.0, without_timestamps=True, word_timestamps=True
        )
        words = [word for segment in segments for word in segment.words]
        (ours,) = speech.transcribe_segments(samples, Decoding(fallback=None))
        assert "".join(word.word for word in words).strip() == ours.timed.text
        # It shortens words before pauses, so only the middle of the differences is small.
        differences = [abs(own.start - other.start) for own, other in zip(ours.timed.words, words, strict=True)]
        assert np.median(differences) <= 0.06
