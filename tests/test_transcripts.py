"""Transcripts: when each word was said, subtitles, and folders that can be continued."""

import io
import json
import sys
from itertools import groupby, pairwise, product

import numpy as np
import pytest
import soundfile
import torch
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ssvd import load_model
from ssvd.corpora.audio import load_audio, read_recording
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.pauses import check_silence, spoken_parts
from ssvd.recognisers.words import (
    Segment,
    TimedText,
    Word,
    aligned_frames,
    boundaries,
    words_of_frames,
    words_of_prefixes,
)
from ssvd.transcripts.cues import CHARACTERS, LONGEST, cues
from ssvd.transcripts.formats import FORMATS


@pytest.fixture(scope="module")
def recording(corpora):
    """Two utterances with a second of silence between them: (samples, start of the silence, its end)."""
    audio = [load_audio(cut, 16000) for cut in list(read_corpus(corpora["adult"]).cuts)[:2]]
    silence = np.zeros(16000, dtype=np.float32)
    start = len(audio[0]) / 16000
    return np.concatenate([audio[0], silence, audio[1]]), start, start + 1.0


def test_words_of_whisper_are_those_of_the_text_and_lie_where_somebody_speaks(embedded, recording):
    samples, silence, speech_again = recording
    speech = load_model(embedded)
    segments = list(speech.transcribe_segments(samples))
    text = speech.transcribe_audio(samples)
    assert len(segments) > 1
    words = [word for segment in segments for word in segment.timed.words]
    assert " ".join(word.text for word in words) == text == " ".join(segment.timed.text for segment in segments)
    assert all(0 < word.confidence <= 1 for word in words)
    assert all(one.start <= one.end <= other.start + 1e-6 for one, other in pairwise(words))
    for segment in segments:
        assert all(segment.start <= word.start and word.end <= segment.end + 0.02 for word in segment.timed.words)
        assert 0 < segment.timed.confidence <= 1
    # No word begins in the silence, but for the blur of the attention.
    assert not [word for word in words if silence + 0.2 < word.start < speech_again - 0.2]
    assert [word for word in words if word.start < silence] and [word for word in words if word.start > speech_again]


def test_confidence_of_a_text_is_the_likelihood_that_decides_on_the_fallback(embedded, corpora):
    """The embedded model suppresses no tokens, so the two agree."""
    speech = load_model(embedded)
    batch = speech.collate(list(read_corpus(corpora["child"]).cuts)[:4], text=False)
    with torch.no_grad():
        encoded = speech._encode(batch, None)
        attempts = speech._judge(encoded, speech._generate(encoded))
    for timed, attempt in zip(speech.decode_timed(batch), attempts, strict=True):
        assert timed.text == attempt.text
        assert np.log(timed.confidence) == pytest.approx(attempt.mean_log_probability, abs=1e-3)


def test_timed_decoding_leaves_the_network_as_it_was(embedded, corpora):
    speech = load_model(embedded)
    speech.module.train()
    implementation = speech.module.config._attn_implementation
    batch = speech.collate(list(read_corpus(corpora["child"]).cuts)[:1], text=False)
    speech.decode_timed(batch)
    assert speech.module.training and speech.module.config._attn_implementation == implementation


def test_boundaries_follow_the_attention():
    """Three tokens that look at frames 0 to 9, 10 to 29 and 30 to 39."""
    attention = torch.full((2, 3, 40), 0.001)
    for token, (start, end) in enumerate([(0, 10), (10, 30), (30, 40)]):
        attention[:, token, start:end] = 1.0
    assert boundaries(attention, 7).tolist() == [0, 10, 30]


def test_words_of_frames_are_the_best_path():
    spelt = ["", "T", "T", "", "O", "O", " ", "B", "E", "", "E", "", " ", ""]
    words = words_of_frames(spelt, [0.5, *[0.8] * 4, 0.2, *[0.9] * 8], 0.02)
    assert [word.text for word in words] == ["TO", "BEE"]
    assert_close(torch.tensor([word[1:3] for word in words]), torch.tensor([[0.02, 0.12], [0.14, 0.22]]))
    assert words[0].confidence == pytest.approx((3 * 0.8 + 0.2) / 4) and words[1].confidence == pytest.approx(0.9)
    assert words_of_frames(["", " ", ""], [1.0] * 3, 0.02) == []


def segment(*texts, start=0.0, length=0.4, pause=0.1):
    """A segment of words of equal length, with a pause between them."""
    words = []
    for number, text in enumerate(texts):
        begin = start + number * (length + pause)
        words.append(Word(text, begin, begin + length, 0.5))
    return Segment(start, words[-1].end, TimedText(" ".join(texts), 0.5, words))


def test_cues_can_be_read():
    spoken = [
        segment(*["word"] * 60),
        segment(*["Ends.", "Next", "one"], start=40),
        segment("a", "b", start=50, pause=2),
    ]
    found = list(cues(spoken))
    assert " ".join(cue.text for cue in found) == " ".join(part.timed.text for part in spoken)
    assert all(len(cue.text) <= CHARACTERS and cue.end - cue.start <= LONGEST + 0.4 for cue in found)
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert [cue.text for cue in found[-4:]] == ["Ends.", "Next one", "a", "b"]
    # Words that were not asked for.
    assert list(cues([Segment(1, 3, TimedText("all  of it", None, []))])) == [(1, 3, "all of it")]


@pytest.mark.parametrize(
    ("prefixes", "words"),
    [
        (["a", "a b", "a b s", "a b s\ufffd", "a b sé", "a b sé"], [("a", [0]), ("b", [1]), ("sé", [2, 3, 4])]),
        # A model that names the language first, in words that the text begins with.
        (["l", "l a", "", "l", "l ", "l ab"], [("l", [3]), ("ab", [5])]),
        ([""], []),
        ([], []),
    ],
)  # fmt: skip
def test_a_word_is_as_likely_as_the_tokens_that_write_it(prefixes, words):
    chances = [0.9, 0.8, 0.7, 0.5, 0.3, 0.1][: len(prefixes)]
    found = words_of_prefixes(prefixes, chances)
    assert [word.text for word in found] == [text for text, _ in words]
    for word, (_, tokens) in zip(found, words, strict=True):
        assert word.confidence == pytest.approx(np.mean([chances[token] for token in tokens]))
        assert word.start is word.end is None and word.shifted(3.0) == word.within(0, 1) == word


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_text_is_aligned_by_the_likeliest_path_that_spells_it(data):
    frames, blank = data.draw(st.integers(1, 6)), 0
    tokens = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    seed = data.draw(st.integers(0, 2**32 - 1))
    likelihoods = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), frames)).astype(np.float32)
    spelling = [
        path
        for path in product(range(3), repeat=frames)
        if [token for token, _ in groupby(path) if token != blank] == tokens
    ]
    spans = aligned_frames(likelihoods, tokens, blank)
    assert (spans is None) == (not spelling)
    if spans is not None:
        best = max(spelling, key=lambda path: likelihoods[range(frames), path].sum())
        path = [blank] * frames
        for token, (start, end) in zip(tokens, spans, strict=True):
            path[start:end] = [token] * (end - start)
        assert tuple(path) == best


def test_words_without_times_are_shown_while_their_piece_lasts(tmp_path):
    words = [Word("all", None, None, 0.5), Word("of", None, None, 0.25)]
    spoken = [Segment(1, 3, TimedText("all of", 0.4, words))]
    assert list(cues(spoken)) == [(1, 3, "all of")]
    written = json.loads(FORMATS["json"](tmp_path / "a.wav", spoken))["segments"][0]["words"]
    assert written[1] == {"word": "of", "start": None, "end": None, "confidence": 0.25}


def test_subtitles_open_in_a_parser(tmp_path):
    spoken = [segment("a", "<b>", "&", "c"), segment("-->", "it's", start=3661.5), segment(*["long"] * 14, start=7200)]
    texts = {name: FORMATS[name](tmp_path, spoken) for name in ("srt", "vtt")}
    (tmp_path / "a.srt").write_text(texts["srt"])
    for parsed in (webvtt.from_srt(tmp_path / "a.srt"), webvtt.from_buffer(io.StringIO(texts["vtt"]))):
        assert len(parsed) == len(list(cues(spoken)))
        assert [cue.start for cue in parsed][:2] == ["00:00:00.000", "01:01:01.500"]
        assert parsed[2].raw_text.replace("\n", " ") == " ".join(["long"] * 14) and "\n" in parsed[2].raw_text
    assert webvtt.from_srt(tmp_path / "a.srt")[0].raw_text == "a <b> & c"
    assert "a &lt;b&gt; &amp; c" in texts["vtt"]


def test_formats_of_a_file_without_speech(tmp_path):
    silent = [Segment(0.0, 2.0, TimedText("", None, []))]
    written = {name: write(tmp_path / "a.wav", silent) for name, write in FORMATS.items()}
    assert written["text"] == "\n" and written["srt"] == "" and written["vtt"] == "WEBVTT\n"
    assert written["tsv"] == "start\tend\ttext\n"
    assert json.loads(written["json"])["text"] == ""


@pytest.fixture
def folder(recording, tmp_path):
    """Two recordings in folders, and a file that is none."""
    root = tmp_path / "recordings"
    (root / "day one").mkdir(parents=True)
    samples, *_ = recording
    soundfile.write(root / "day one" / "a.wav", samples[:40000], 16000)
    soundfile.write(root / "b.flac", samples[-40000:], 16000)
    (root / "notes.txt").write_text("not audio")
    return root


def test_folder_of_recordings_is_continued_where_it_stopped(ssvd, refused, embedded, folder, tmp_path):
    out = tmp_path / "out"
    command = ["transcribe", embedded, folder, "--out", out, "--device", "cpu"]
    code, said, err = ssvd(*command, "--format", "json")
    assert code == 0 and f"{out} holds 2 transcripts." in said.replace("\n", ""), err
    files = [out / "day one" / "a.json", out / "b.json"]
    first = [file.read_text() for file in files]
    row = json.loads(first[0])
    assert row["path"] == str(folder / "day one" / "a.wav") and row["segments"][0]["words"][0]["confidence"] > 0
    assert " ".join(word["word"] for part in row["segments"] for word in part["words"]) == row["text"]

    files[0].unlink()  # as if the work had been interrupted
    files[1].write_text("kept")
    code, said, err = ssvd(*command, "--format", "json")
    assert code == 0 and "2 transcripts, 1 of them from before" in said.replace("\n", " "), err
    assert files[0].read_text() == first[0] and files[1].read_text() == "kept"
    assert "other settings (format was 'json')" in refused(*command, "--format", "srt")
    assert "other settings (decoding was" in refused(*command, "--format", "json", "--beams", 2)
    (out / "settings.yaml").write_text("[")
    assert "settings.yaml cannot be read" in refused(*command, "--format", "json")


def test_formats_of_the_command(ssvd, refused, embedded, folder, tmp_path):
    one = folder / "b.flac"
    text = ssvd("transcribe", embedded, one)[1].strip()
    assert text and json.loads(ssvd("transcribe", embedded, one, "--json")[1])["text"] == text
    subtitles = webvtt.from_buffer(io.StringIO(ssvd("transcribe", embedded, one, "--format", "vtt")[1]))
    assert " ".join(cue.text for cue in subtitles).replace("\n", " ") == text
    assert "name a folder for them with --out" in refused("transcribe", embedded, folder, "--format", "srt")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no audio file" in refused("transcribe", embedded, empty)
    soundfile.write(folder / "b.wav", np.zeros(16000), 16000)
    assert "would both be written" in refused("transcribe", embedded, folder, "--out", tmp_path / "out")
    assert "is not empty and holds no transcripts" in refused("transcribe", embedded, one, "--out", folder)


def test_a_detector_leaves_out_long_silences_and_nothing_else(recordings):
    """LibriSpeech between silences with a hum, of which the shorter stays in."""
    path = min((recordings / "librispeech-dev-clean").rglob("*.mp3"))
    spoken = load_audio(read_recording(path, path.stem).to_cut(), 16000)[: 4 * 16000]
    hum = 0.01 * np.sin(np.arange(8 * 16000, dtype=np.float32) / 20)
    samples = np.concatenate([hum, spoken, hum[: 2 * 16000], spoken, hum, hum, spoken])
    starts = np.array([8, 14, 34])
    threads = torch.get_num_threads()
    parts = np.array(spoken_parts(samples, "vad")) / 16000
    assert torch.get_num_threads() == threads
    assert len(parts) == 2 and np.abs(parts - [[8, 18], [34, 38]]).max() < 1
    assert (parts[:, 0] <= starts[[0, 2]] + 0.3).all()
    assert spoken_parts(samples, "energy") == [(0, len(samples))]
    assert spoken_parts(hum, "vad") == []


def test_times_count_from_the_beginning_where_silence_was_left_out(embedded, recordings, monkeypatch):
    path = min((recordings / "librispeech-dev-clean").rglob("*.mp3"))
    samples = load_audio(read_recording(path, path.stem).to_cut(), 16000)[: 5 * 16000]
    speech, greedy = load_model(embedded), Decoding(fallback=None)
    alone = list(speech.transcribe_segments(samples, greedy))
    parts = [(1000, 17000), (len(samples), 2 * len(samples))]
    monkeypatch.setattr("ssvd.recognisers.base.spoken_parts", lambda *given: parts)
    first, *later = speech.transcribe_segments(np.concatenate([samples, samples]), greedy, silence="vad")
    assert (first.start, first.end) == (1000 / 16000, 17000 / 16000)
    assert [segment.timed.text for segment in later] == [segment.timed.text for segment in alone]
    words = [[word.start for segment in segments for word in segment.timed.words] for segments in (alone, later)]
    assert words[0] and np.allclose(words[1], np.array(words[0]) + 5)
    monkeypatch.setattr("ssvd.recognisers.base.spoken_parts", lambda *given: [])
    assert list(speech.transcribe_segments(samples, silence="vad")) == []


def test_detector_needs_its_package_and_audio_at_its_rate(refused, embedded, monkeypatch):
    check_silence.__globals__["_detector"].cache_clear()
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    assert "run pip install 'ssvd[vad]'" in refused("transcribe", embedded, "a.wav", "--silence", "vad")
    with pytest.raises(UserError, match="reads audio at 16000 Hz and this model at 8000"):
        check_silence("vad", 8000)


def test_words_of_openai_s_model_keep_out_of_a_pause(recordings):
    paths = sorted((recordings / "librispeech-dev-clean").rglob("*.mp3"))[:2]
    one, other = (load_audio(read_recording(path, path.stem).to_cut(), 16000)[: 3 * 16000] for path in paths)
    samples = np.concatenate([one, np.zeros(2 * 16000, dtype=np.float32), other])
    speech = load_model(recordings / "whisper-tiny.en", window=10)
    (part,) = speech.transcribe_segments(samples)
    assert " ".join(word.text for word in part.timed.words) == part.timed.text
    assert not [word for word in part.timed.words if 3.2 < word.start < 4.8]
    assert (
        sum(word.end <= 4.9 for word in part.timed.words) > 3 and sum(word.start > 4.8 for word in part.timed.words) > 3
    )
