"""Reading corpora of every kind, their audio, and writing cuts."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import field_value, select
from ssvd.errors import UserError


def tone(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1, hertz: float = 440.0) -> Path:
    """A file with a sine of amplitude 0.5; in the second channel silence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.zeros((round(seconds * rate), channels))
    samples[:, 0] = 0.5 * np.sin(2 * np.pi * hertz * np.arange(len(samples)) / rate)
    soundfile.write(path, samples, rate)
    return path


def fields(cut, *names):
    return tuple(field_value(cut, name) for name in names)


# Tables


def test_csv_from_a_spreadsheet_on_windows(tmp_path):
    tone(tmp_path / "wav" / "één.wav")
    tone(tmp_path / "b.wav")
    rows = [
        "Path,Text,Speaker,Age,Accent,Code",
        'wav/één.wav,"Ja, ""zeker""  één.",007,9,vl,0012',
        "b.wav,nee,8,10.5,,",
        "",
    ]
    text = "\r\n".join(rows)
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    first, second = read_corpus(tmp_path / "table.csv").cuts
    assert first.supervisions[0].text == 'Ja, "zeker" één.'
    assert fields(first, "id", "speaker", "age", "accent", "code") == ("wav/één", "007", 9, "vl", "0012")
    assert fields(second, "id", "speaker", "age", "accent", "code") == ("b", "8", 10.5, None, None)
    assert first.recording.sources[0].source == str(tmp_path / "wav" / "één.wav")


def test_tsv_takes_quotes_as_they_are(tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "t.tsv").write_text('id\tpath\ttext\nx\ta.wav\t"Yes, she said\n')
    (cut,) = read_corpus(tmp_path / "t.tsv").cuts
    assert fields(cut, "id", "text") == ("x", '"Yes, she said')


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_jsonl(tmp_path, name):
    tone(tmp_path / "a.wav")
    row = {"path": "a.wav", "text": "één", "speaker": 5, "gender": "f", "language": "nl", "age": 6, "note": None}
    data = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (cut,) = read_corpus(tmp_path / name).cuts
    assert fields(cut, "text", "speaker", "gender", "language", "age", "note") == ("één", "5", "f", "nl", 6, None)


def test_segments_of_one_file(tmp_path):
    tone(tmp_path / "a.wav", seconds=2)
    (tmp_path / "t.csv").write_text("path,text,start,duration\na.wav,one,0,0.5\na.wav,two,0.5,\na.wav,three,1.5,0.55\n")
    cuts = list(read_corpus(tmp_path / "t.csv").cuts)
    assert [cut.id for cut in cuts] == ["a-0000000", "a-0000500", "a-0001500"]
    assert [(cut.start, cut.duration) for cut in cuts] == [(0, 0.5), (0.5, 1.5), (1.5, 0.5)]  # 0.05 s over: clipped
    assert [len(load_audio(cut, 16000)) for cut in cuts] == [8000, 24000, 8000]
    assert all(len(cut.supervisions) == 1 and cut.supervisions[0].duration == cut.duration for cut in cuts)


# Audio


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_formats_and_rates(tmp_path, suffix, rate):
    tone(tmp_path / f"a.{suffix}", rate=rate)
    (tmp_path / "t.csv").write_text(f"path,text\na.{suffix},hello\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    samples = load_audio(cut, 16000)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == pytest.approx(8000, abs=2)
    assert cut.duration == pytest.approx(0.5, abs=1e-3)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * 16000 / len(samples) == pytest.approx(440, abs=4)
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.06)


def test_channels_are_averaged(tmp_path):
    tone(tmp_path / "a.wav", channels=2)
    (tmp_path / "t.csv").write_text("path,text\na.wav,hello\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    assert np.abs(load_audio(cut, 16000)).max() == pytest.approx(0.25, abs=0.01)


def test_loud_audio_stays_within_one(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sign(np.sin(np.arange(22050) / 20.0)), 22050, subtype="FLOAT")
    (tmp_path / "t.csv").write_text("path,text\na.wav,hello\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    assert np.abs(load_audio(cut, 16000)).max() == 1.0


def test_wav_written_into_a_pipe_does_not_know_its_length(tmp_path):
    data = tone(tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[:4] + b"\xff\xff\xff\xff" + data[8:40] + b"\xff\xff\xff\xff" + data[44:])
    (tmp_path / "t.csv").write_text("path,text\na.wav,hello\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    assert len(load_audio(cut, 16000)) == 8000


def test_audio_that_breaks_after_reading_names_the_file(tmp_path):
    tone(tmp_path / "a.flac")
    (tmp_path / "t.csv").write_text("path,text\na.flac,hello\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    (tmp_path / "a.flac").write_bytes(b"no longer audio")
    with pytest.raises(
        UserError, match=r"Utterance a: the audio of .*a\.flac cannot be decoded \(Format not recognised\)"
    ):
        load_audio(cut, 16000)


def test_samples_that_are_not_numbers(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "t.csv").write_text("path,text\na.wav,hello\n")
    (cut,) = read_corpus(tmp_path / "t.csv").cuts
    with pytest.raises(UserError, match=r"a\.wav cannot be decoded \(it holds no samples, or some"):
        load_audio(cut, 16000)


# Kaldi


def kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(content)
    return folder


def test_kaldi_folder_with_segments_and_fields(tmp_path):
    tone(tmp_path / "rec.wav", seconds=3)
    folder = kaldi(
        tmp_path / "data",
        wav_scp=f"rec {tmp_path / 'rec.wav'}\n",
        segments="u1 rec 0.5 1.5\nu2 rec 1.5 -1\n",
        text="u1 één  twee\r\nu2\tthree four\n",
        utt2spk="u1 s1\nu2 s2\n",
        spk2utt="s1 u1\ns2 u2\n",
        spk2age="s1 9\ns2 10\n",
        spk2gender="s1 f\ns2 m\n",
        utt2lang="u1 nl\nu2 en\n",
        spk2score="s1 1.5\n",
        utt2score="u1 2.5\n",
        utt2dur="u1 1\nu2 1\n",
    )
    first, second = read_corpus(folder).cuts
    assert fields(first, "text", "speaker", "age", "gender", "language", "score") == (
        "één twee",
        "s1",
        9,
        "f",
        "nl",
        2.5,
    )
    assert fields(second, "text", "speaker", "age", "gender", "language", "score") == (
        "three four",
        "s2",
        10,
        "m",
        "en",
        None,
    )
    assert field_value(first, "dur") is None
    assert (first.start, first.duration, second.start, second.duration) == (0.5, 1.0, 1.5, 1.5)


def test_kaldi_paths_folder_before_parent_before_working_directory(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    tone(tmp_path / "cwd" / "a.wav")
    folder = kaldi(tmp_path / "corpus" / "train", wav_scp="u a.wav\n", text="u hello\n")
    for place in (tmp_path / "cwd", tmp_path / "corpus", folder):
        tone(place / "a.wav")
        (cut,) = read_corpus(folder).cuts
        assert Path(cut.recording.sources[0].source) == place / "a.wav"


def test_kaldi_commands_are_refused_and_never_run(tmp_path):
    ran = tmp_path / "ran"
    folder = kaldi(tmp_path / "d", wav_scp=f"u touch {ran} |\n", text="u hello\n")
    with pytest.raises(UserError, match=r"wav\.scp:1: u is a shell command, and those are never run"):
        read_corpus(folder)
    # Lhotse by itself would hand this name to a shell.
    kaldi(folder, wav_scp=f"u {tmp_path}/x;touch ran;.sph\n")
    (tmp_path / "x;touch ran;.sph").write_bytes(b"NIST_1A\n")
    with pytest.raises(UserError, match=r"cannot be read"):
        read_corpus(folder)
    assert not ran.exists() and not Path("ran").exists()


# Lhotse cuts


def test_cuts_survive_writing_and_reading(tmp_path, monkeypatch):
    tone(tmp_path / "a.wav", channels=2)
    tone(tmp_path / "b.flac")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("path,text,age,speaker\na.wav,één,7,x\nb.flac,two,8,y\n")
    corpus = read_corpus("t.csv")
    write_cuts(corpus.cuts, "out/one.jsonl.gz")
    assert list(read_corpus("out/one.jsonl.gz").cuts) == list(corpus.cuts)
    assert list(read_corpus("out").cuts) == list(corpus.cuts)
    assert list(CutSet.from_file("out/one.jsonl.gz")) == list(corpus.cuts)
    write_cuts(corpus.cuts, "plain.jsonl")
    assert list(read_corpus("plain.jsonl").cuts) == list(corpus.cuts)
    write_cuts(corpus.cuts, "two.jsonl.gz")
    assert Path("two.jsonl.gz").read_bytes() == Path("out/one.jsonl.gz").read_bytes()
    lines = gzip.decompress(Path("two.jsonl.gz").read_bytes()).splitlines()
    sources = [json.loads(line)["recording"]["sources"][0]["source"] for line in lines]
    assert sources == [str(tmp_path / "a.wav"), str(tmp_path / "b.flac")]


def lhotse_cut(path: Path, *supervisions: tuple[float, float, str]):
    recording = Recording.from_file(path)
    cut = recording.to_cut()
    cut.supervisions = [
        SupervisionSegment(id=f"{path.stem}-{n}", recording_id=recording.id, start=start, duration=duration, text=text)
        for n, (start, duration, text) in enumerate(supervisions)
    ]
    return cut


def test_cuts_with_several_supervisions_are_split(tmp_path):
    cut = lhotse_cut(tone(tmp_path / "a.wav", seconds=2), (0.0, 1.2, "one"), (1.0, 1.0, "two"))
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    first, second = read_corpus(tmp_path / "cuts.jsonl").cuts
    assert (first.id, first.start, first.duration, first.supervisions[0].text) == ("a-0", 0.0, 1.2, "one")
    assert (second.id, second.start, second.duration, second.supervisions[0].text) == ("a-1", 1.0, 1.0, "two")
    assert len(first.supervisions) == len(second.supervisions) == 1


def test_a_cut_that_is_longer_than_its_one_supervision_is_cut_to_it(tmp_path):
    cut = lhotse_cut(tone(tmp_path / "a.wav", seconds=2), (0.5, 0.7, "one"))
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (read,) = read_corpus(tmp_path / "cuts.jsonl").cuts
    assert (read.id, read.start, read.duration) == (cut.id, 0.5, 0.7)
    assert len(load_audio(read, 16_000)) == 11_200


def test_one_bad_supervision_costs_no_other(tmp_path):
    spoken = [(0.0, 0.5, "one"), (0.5, 0.0, "two"), (1.0, 1.0004, "three"), (1.5, 0.7, "four")]
    cut = lhotse_cut(tone(tmp_path / "a.wav", seconds=2), *spoken)
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    corpus = read_corpus(tmp_path / "cuts.jsonl", skip_bad=True)
    assert [(c.supervisions[0].text, c.duration) for c in corpus.cuts] == [("one", 0.5), ("three", 1.0)]
    assert [item.id for item in corpus.skipped] == ["a-1", "a-3"]


def test_an_ogg_file_that_was_cut_off(tmp_path):
    whole = tone(tmp_path / "a.ogg", seconds=3)
    data = whole.read_bytes()
    assert read_recording(whole, "a").num_samples == 48_000
    for length in (len(data) // 2, len(data) - 10, data.rfind(b"OggS")):
        (tmp_path / "b.ogg").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"is cut off|malformed|no samples"):
            read_recording(tmp_path / "b.ogg", "b")


def test_numbers_in_json_are_numbers_however_they_are_written(tmp_path):
    tone(tmp_path / "a.wav")
    rows = [
        {"id": str(n), "path": "a.wav", "text": "x", "age": age, "note": float("nan")} for n, age in ((1, "7"), (2, 7))
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cuts = list(read_corpus(tmp_path / "t.jsonl").cuts)
    assert [cut.supervisions[0].custom for cut in cuts] == [{"age": 7}, {"age": 7}]


def test_relative_paths_in_cuts_moved_with_their_audio(tmp_path):
    cut = lhotse_cut(tone(tmp_path / "a.wav"), (0.0, 0.5, "one"))
    cut.recording.sources[0].source = "a.wav"
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (read,) = read_corpus(tmp_path / "cuts.jsonl").cuts
    assert read.recording.sources[0].source == str(tmp_path / "a.wav")


def test_commands_in_cuts_are_refused(tmp_path):
    cut = lhotse_cut(tone(tmp_path / "a.wav"), (0.0, 0.5, "one"))
    cut.recording.sources[0].type = "command"
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    with pytest.raises(UserError, match=r"cuts\.jsonl:1: the audio of cut .* is a command; only files are read"):
        read_corpus(tmp_path / "cuts.jsonl")


def test_commands_in_impulse_responses_of_cuts_are_refused_and_never_run(tmp_path):
    cut = lhotse_cut(tone(tmp_path / "a.wav"), (0.0, 0.5, "one"))
    response = cut.recording.to_dict()
    response["sources"][0] |= {"type": "command", "source": f"touch {tmp_path / 'ran'}; cat {tmp_path / 'a.wav'}"}
    row = cut.to_dict()
    row["recording"]["transforms"] = [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": response}}]
    (tmp_path / "cuts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"cuts\.jsonl:1: cut a brings an impulse response, which can be a command"):
        read_corpus(tmp_path / "cuts.jsonl")
    assert not (tmp_path / "ran").exists()


# Recordings of people


@pytest.fixture(scope="module")
def speechocean(recordings):
    return read_corpus(recordings / "speechocean762" / "train")


def test_speechocean762(speechocean):
    assert len(speechocean.cuts) == 1560 and not speechocean.skipped
    children = select(speechocean.cuts, ["age<=15"])
    assert (len(children), len({field_value(cut, "speaker") for cut in children})) == (1160, 58)
    adults = select(speechocean.cuts, ["age>15"])
    assert (len(adults), len({field_value(cut, "speaker") for cut in adults})) == (400, 20)
    hours = sum(cut.duration for cut in speechocean.cuts) / 3600
    assert hours == pytest.approx(1.5, abs=0.1)
    cut = speechocean.cuts["000010011"]
    assert fields(cut, "text", "speaker", "age", "gender") == ("WE CALL IT BEAR", "0001", 6, "m")
    assert len(load_audio(cut, 16000)) == cut.recording.num_samples


def test_flemish(recordings):
    cuts = read_corpus(recordings / "flemish" / "metadata.csv").cuts
    assert len(cuts) == 5
    cut = cuts["vl04108"]
    assert fields(cut, "speaker", "language") == ("rdh", "nl-BE")
    assert cut.recording.sampling_rate == 22050
    assert len(load_audio(cut, 16000)) == pytest.approx(cut.duration * 16000, abs=1)


def test_librispeech_mp3(recordings, tmp_path):
    transcript = next((recordings / "librispeech-dev-clean").rglob("*.trans.txt"))
    name, text = transcript.read_text().splitlines()[0].split(maxsplit=1)
    (tmp_path / "t.jsonl").write_text(json.dumps({"path": str(transcript.parent / f"{name}.mp3"), "text": text}))
    (cut,) = read_corpus(tmp_path / "t.jsonl").cuts
    samples = load_audio(cut, 16000)
    assert len(samples) == pytest.approx(cut.duration * 16000, abs=1) and np.abs(samples).max() > 0.01
