"""The check hears what a model hears, the mix of the channels, and needs little memory for long recordings."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssvd.corpora.audio import decode, decode_in_blocks, load_audio
from ssvd.corpora.check.heard import measure
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from test_data_check import check, kinds, noise, table


def voice(seed: int = 0, seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).clip(-1, 1)


def channels(folder: Path, name: str, *signals: np.ndarray) -> str:
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / name, np.stack(signals, axis=1), 16000, subtype="PCM_16")
    return table(folder, ("x", name, "one two", "s"), name=f"{name}.csv")


def test_channels_out_of_phase_are_silence(tmp_path):
    ((kind, _, _, detail),) = check(channels(tmp_path, "a.wav", voice(), -voice()))
    assert kind == "silent" and "its channels cancel each other" in detail
    (cut,) = read_corpus(tmp_path / "a.wav.csv").cuts
    assert np.abs(load_audio(cut, 16000)).max() < 1e-3


def test_channels_that_nearly_cancel_each_other_are_told(tmp_path):
    ((kind, _, _, detail),) = check(channels(tmp_path, "a.wav", voice(), -0.9 * voice()))
    assert kind == "cancelled" and detail == "the mix is 26 dB quieter than the channels"


@pytest.mark.parametrize(
    "signals",
    [
        (voice(), voice()),
        (voice(), np.zeros(16000)),  # one of a telephone call listens
        (voice(), voice(1)),
        tuple(voice(seed) for seed in range(8)),  # an array of microphones far from each other
        (voice(), -0.5 * voice()),
    ],
)
def test_other_channels_are_not_reported(tmp_path, signals):
    assert check(channels(tmp_path, "a.wav", *signals)) == []


def test_silence_with_an_offset_in_each_channel(tmp_path):
    found = check(channels(tmp_path, "a.wav", np.full(16000, 0.25), np.full(16000, 0.1)))
    assert kinds(found) == [("silent", "x")]


def test_clipping_of_one_channel_of_many_is_found(tmp_path):
    loud = (20 * voice()).clip(-1, 1)
    assert kinds(check(channels(tmp_path, "a.wav", loud, *[voice(seed) for seed in range(1, 8)]))) == [("clipped", "x")]


def test_the_same_sound_in_mono_and_in_stereo_is_repeated(tmp_path):
    noise(tmp_path / "mono.wav", scale=0.1)
    samples, rate = soundfile.read(tmp_path / "mono.wav")
    soundfile.write(tmp_path / "stereo.flac", np.stack([samples, samples], axis=1), rate)
    rows = [("a", "mono.wav", "one two", "s"), ("b", "stereo.flac", "three four", "t")]
    assert kinds(check(table(tmp_path, *rows))) == [("repeated audio", "b")]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_blocks_are_the_whole(tmp_path, monkeypatch, name):
    monkeypatch.setattr("ssvd.corpora.audio._LONG", 1)
    monkeypatch.setattr("ssvd.corpora.libsndfile._BLOCK", 5000)
    soundfile.write(tmp_path / name, np.stack([voice(0, 3), voice(1, 3)], axis=1), 16000)
    (tmp_path / "t.csv").write_text(f"path,text,start,end\n{name},one,0.5,2.75\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    blocks = list(decode_in_blocks(cut))
    assert len(blocks) > 5
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), decode(cut), atol=1e-6)
    cut.channel = 1
    cut.supervisions[0].channel = 1
    np.testing.assert_allclose(np.concatenate(list(decode_in_blocks(cut)), axis=1)[0], decode(cut)[0], atol=1e-6)


def test_what_breaks_in_the_middle_or_ends_early_is_unreadable_in_blocks_too(tmp_path, monkeypatch):
    monkeypatch.setattr("ssvd.corpora.audio._LONG", 1)
    soundfile.write(tmp_path / "a.wav", voice(0, 3), 16000)
    (tmp_path / "t.csv").write_text("path,text\na.wav,one\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    soundfile.write(tmp_path / "a.wav", voice(0, 2), 16000)
    with pytest.raises(UserError, match=r"Utterance a: the audio of .*a\.wav .* \(it ends 1\.00 s too early\)"):
        list(decode_in_blocks(cut))
    soundfile.write(tmp_path / "a.wav", np.where(np.arange(48000) == 40000, np.nan, 0.1), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="some that are not numbers"):
        list(decode_in_blocks(cut))


def silent_wav(path: Path, seconds: int) -> Path:
    """A WAV of 8 kHz and 8 bits that takes no room on the disk."""
    header = b"RIFF" + struct.pack("<I", 36 + 8000 * seconds)
    header += b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    with path.open("wb") as file:
        file.write(header + b"data" + struct.pack("<I", 8000 * seconds))
        file.truncate(44 + 8000 * seconds)
    return path


def test_an_hour_takes_as_little_memory_as_a_minute(tmp_path):
    silent_wav(tmp_path / "a.wav", 3600)
    (tmp_path / "t.csv").write_text("path,text\na.wav,one\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    tracemalloc.start()
    heard = measure(decode_in_blocks(cut))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert heard.range == 0.0 and most < 20e6  # all samples would be 115 MB
