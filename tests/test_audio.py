"""The length of a recording is that of its samples, whatever its header says, in every format that is accepted."""

import io
import tarfile

import numpy as np
import pytest
import soundfile
from lhotse import Recording

from ssvd.corpora.audio import decode, load_audio, read_recording
from ssvd.corpora.corpus import read_corpus

RATE = 22050


def speech(seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Something that no codec predicts: a tone that rises, with noise, from a silent start."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.05, len(time))
    return ((0.3 * np.sin(2000 * time * time) + noise) * np.minimum(time, 1)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def mp3(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    return encoded(samples, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5, **options)


def without_count(data: bytes) -> bytes:
    """An MP3 without its first frame, which states the number of frames."""
    second = data.index(data[:2], 2)
    assert b"Xing" in data[:second] or b"Info" in data[:second]
    return data[second:]


def with_total(data: bytes, samples: int) -> bytes:
    """A FLAC whose header states another number of samples; 0 for none."""
    return data[:18] + (int.from_bytes(data[18:26], "big") >> 36 << 36 | samples).to_bytes(8, "big") + data[26:]


def with_data_size(data: bytes, size: int) -> bytes:
    """A WAV of soundfile whose chunk of samples states another size, in bytes."""
    assert data[36:40] == b"data"
    return data[:40] + size.to_bytes(4, "little") + data[44:]


def ogg_pages(data: bytes) -> list[bytes]:
    starts = [place for place in range(len(data)) if data[place : place + 4] == b"OggS"]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


ID3 = b"ID3\x04\0\0\0\0\x04\0" + b"\xff\xfb\x90\x00" * 128  # a tag whose content looks like frames
SPEECH = speech()
WAV, FLAC = encoded(SPEECH, format="WAV"), encoded(SPEECH, format="FLAC")
MP3 = mp3(SPEECH)
LONG_OGG = encoded(speech(12), format="OGG", subtype="VORBIS")
LOUD_THEN_SILENT = np.concatenate([speech(6, seed=1), np.zeros(12 * RATE, np.float32)])
SILENT_THEN_LOUD = LOUD_THEN_SILENT[::-1].copy()

ACCEPTED = {
    "exact.mp3": (MP3, len(SPEECH)),
    "tagged.mp3": (ID3 + MP3 + b"TAG" + bytes(125), len(SPEECH)),
    "guessed too short.mp3": (without_count(mp3(LOUD_THEN_SILENT)), len(LOUD_THEN_SILENT)),
    "guessed too long.mp3": (without_count(mp3(SILENT_THEN_LOUD)), len(SILENT_THEN_LOUD)),
    "8 kHz.mp3": (without_count(mp3(speech(5, 8000), 8000)), 5 * 8000),
    "joined.mp3": (MP3 + MP3, 2 * len(SPEECH)),
    "joined and tagged.mp3": (2 * (ID3 + MP3), 2 * len(SPEECH)),
    "joined in stereo.mp3": (2 * mp3(np.stack([SPEECH, SPEECH], 1)), 2 * len(SPEECH)),
    "no total.flac": (with_total(FLAC, 0), len(SPEECH)),
    "tagged.flac": (FLAC + b"TAG" + bytes(125), len(SPEECH)),
    "written to a pipe.wav": (with_data_size(WAV, 0xFFFFFFFF), len(SPEECH)),
    "longer than the file.wav": (with_data_size(WAV, 10**6), len(SPEECH)),
    "list.wav": (WAV + b"LIST" + (9000).to_bytes(4, "little") + bytes(range(1, 101)) * 90, len(SPEECH)),
    "padded.wav": (WAV + bytes(50_000), len(SPEECH)),
    "gsm.wav": (encoded(speech(2, 8000), 8000, format="WAV", subtype="GSM610"), 16000),
    "g721.au": (encoded(speech(2, 8000), 8000, format="AU", subtype="G721_32"), 16000),
    "adpcm.wav": (encoded(SPEECH, format="WAV", subtype="MS_ADPCM"), len(SPEECH)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_length_is_that_of_the_samples(tmp_path, name):
    data, samples = ACCEPTED[name]
    path = tmp_path / name
    path.write_bytes(data)
    recording = read_recording(path, "x")
    # Encoders pad, and a decoder that is not told how much cannot remove it.
    assert recording.num_samples == pytest.approx(samples, abs=2500)
    assert recording.num_samples >= samples * 0.99
    whole = decode(recording.to_cut())
    assert whole.shape == (recording.num_channels, recording.num_samples)
    third = recording.duration / 3
    part = decode(recording.to_cut().truncate(offset=third, duration=third))
    start = round(third * recording.sampling_rate)
    difference = np.abs(part - whole[:, start : start + part.shape[1]])
    assert part.shape[1] == pytest.approx(third * recording.sampling_rate, abs=1) and difference.mean() < 1e-2
    in_memory = Recording.from_bytes(data, "x")  # as in shards
    assert in_memory.num_samples == recording.num_samples
    np.testing.assert_array_equal(decode(in_memory.to_cut()), whole)


JOINED, GOES_ON, CUT_OFF = "holds several recordings", "goes on after the length", "is cut off"
REFUSED = {
    "joined.flac": (FLAC + FLAC, JOINED),
    "joined.ogg": (LONG_OGG + LONG_OGG, JOINED),
    "joined.opus": (2 * encoded(SPEECH, 24000, format="OGG", subtype="OPUS"), JOINED),
    "of two rates.mp3": (MP3 + mp3(SPEECH, 44100), JOINED),
    "mono and stereo.mp3": (MP3 + mp3(np.stack([SPEECH, SPEECH], 1)), JOINED),
    "joined.wav": (WAV + WAV, "cannot be read|" + JOINED),
    "too few.flac": (with_total(FLAC, len(SPEECH) // 3), GOES_ON),
    "a few too few.flac": (with_total(FLAC, len(SPEECH) - 3000), GOES_ON),
    "too many.flac": (with_total(FLAC, len(SPEECH) * 2), CUT_OFF),
    "short.wav": (with_data_size(WAV, len(SPEECH) // 2), GOES_ON),
    "never closed.wav": (with_data_size(WAV, 0), GOES_ON),
    "more samples.wav": (WAV + b"\x01\x02" * 20_000, GOES_ON),
    "cut.mp3": (MP3[: len(MP3) // 2], CUT_OFF),
    "cut.ogg": (LONG_OGG[:-2000], CUT_OFF),
    "without its end.ogg": (b"".join(ogg_pages(LONG_OGG)[:-1]), CUT_OFF),
    "with a hole.ogg": (b"".join([*ogg_pages(LONG_OGG)[:5], *ogg_pages(LONG_OGG)[7:]]), "lacks a part"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_holds_more_or_less_than_can_be_read_is_refused_by_name(tmp_path, name):
    data, reason = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"the audio file .*{name} .*({reason})"):
        read_recording(tmp_path / name, "x")


@pytest.mark.parametrize("container", sorted(set(soundfile.available_formats()) - {"RAW"}))
def test_what_is_accepted_can_be_decoded(tmp_path, container):
    samples = speech(1, 16000)
    for codec in soundfile.available_subtypes(container):
        path = tmp_path / f"{codec}.{container.lower()}"
        try:
            soundfile.write(path, samples, 16000, format=container, subtype=codec)
        except soundfile.LibsndfileError:
            continue  # libsndfile only reads it
        try:
            recording = read_recording(path, "x")
        except ValueError as error:
            assert str(path) in str(error)
            continue
        rate = recording.sampling_rate  # some formats have only one
        assert recording.num_samples == pytest.approx(16000, abs=300)
        assert len(load_audio(recording.to_cut(), rate)) == recording.num_samples
        cut = recording.to_cut().truncate(offset=0.2, duration=0.1)
        assert len(load_audio(cut, rate)) == round(0.1 * rate)


def test_the_length_is_remembered(tmp_path, monkeypatch):
    (tmp_path / "a.mp3").write_bytes(without_count(mp3(LOUD_THEN_SILENT)))
    (tmp_path / "t.csv").write_text("path,text\na.mp3,one\n")
    (cut,) = read_corpus(tmp_path / "t.csv", headers=tmp_path / "headers.jsonl").cuts
    assert cut.duration == pytest.approx(18, abs=0.1)
    monkeypatch.setattr("ssvd.corpora.utterances.read_recording", None)  # would fail if it were called
    (again,) = read_corpus(tmp_path / "t.csv", headers=tmp_path / "headers.jsonl").cuts
    assert again == cut


def test_a_long_recording_in_shards(tmp_path):
    from ssvd.corpora.readers.manifests import write_cuts
    from ssvd.corpora.shar_writing import write_shar

    (tmp_path / "a.mp3").write_bytes(MP3 + MP3)
    (tmp_path / "t.csv").write_text("path,text,start,end\na.mp3,one,0,1\na.mp3,two,2.5,4\n")
    cuts = read_corpus(tmp_path / "t.csv").cuts
    write_cuts(cuts, tmp_path / "cuts.jsonl")
    write_shar(cuts, tmp_path / "shar")
    with tarfile.open(next((tmp_path / "shar").glob("*.tar"))) as tar:
        assert len(tar.getnames()) == 4  # audio and description of two
    lengths = sorted(len(load_audio(cut, RATE)) for cut in read_corpus(tmp_path / "shar").cuts)
    assert lengths == pytest.approx([RATE, 1.5 * RATE], abs=1)
