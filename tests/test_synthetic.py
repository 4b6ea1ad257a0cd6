"""Synthetic speech: the same for all who make it, of the stated kinds, short enough for the recogniser."""

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest

from ssvd.corpora.corpus import read_corpus
from ssvd.demo.sentences import sentence, vocabulary
from ssvd.demo.synthetic import KINDS, LONGEST, SAMPLING_RATE, SHIFTED_ACCENTS, Espeak, utterances, write_corpus
from ssvd.errors import UserError


@pytest.fixture(scope="module")
def spoken():
    """kind -> utterances (speaker, text, samples)"""
    return {kind: list(utterances(kind, 16, 8, 5)) for kind in KINDS}


def digest(spoken):
    return hashlib.sha256(b"".join(samples.tobytes() for _, _, samples in spoken)).hexdigest()


def test_another_process_makes_the_same_samples(spoken):
    code = """
import hashlib
from ssvd.demo.synthetic import utterances
if __name__ == "__main__":
    spoken = utterances("child", 16, 8, 5)
    print(hashlib.sha256(b"".join(samples.tobytes() for _, _, samples in spoken)).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(spoken["child"])


def test_another_seed_makes_other_texts_and_speakers(spoken):
    other = list(utterances("child", 16, 8, 6))
    assert [text for _, text, _ in other] != [text for _, text, _ in spoken["child"]]
    assert {speaker for speaker, _, _ in other}.isdisjoint(speaker for speaker, _, _ in spoken["child"])


def test_utterances_are_audible_and_fit_the_window(spoken):
    for _, text, samples in (utterance for kind in KINDS for utterance in spoken[kind]):
        assert samples.dtype == np.float32
        assert 0.4 * SAMPLING_RATE < len(samples) <= LONGEST * SAMPLING_RATE < 4 * SAMPLING_RATE, text
        assert np.abs(samples).max() <= 1 and np.sqrt(np.mean(samples**2)) > 0.002


def pitch(samples):
    """Median over voiced frames of the lag at which the signal repeats itself, as a frequency in Hz."""
    width, lags = 800, np.arange(SAMPLING_RATE // 600, SAMPLING_RATE // 60)
    found = []
    for start in range(0, len(samples) - 2 * width, width):
        frame = samples[start : start + 2 * width].astype(np.float64)
        power = np.correlate(frame, frame, "full")[len(frame) - 1 :]
        best = lags[np.argmax(power[lags])]
        if power[best] > 0.5 * power[0]:
            found.append(SAMPLING_RATE / best)
    return np.median(found) if found else np.nan


def test_child_like_speech_is_higher_than_that_of_adults(spoken):
    heights = {kind: np.nanmedian([pitch(samples) for _, _, samples in spoken[kind]]) for kind in ("adult", "child")}
    assert heights["child"] > 1.2 * heights["adult"]


def test_child_like_speech_is_slower(spoken):
    def letters_a_second(kind):
        return sum(len(text) for _, text, _ in spoken[kind]) / sum(len(samples) for _, _, samples in spoken[kind])

    assert letters_a_second("child") < 0.9 * letters_a_second("adult")


def test_shifted_speakers_have_accents_that_no_other_has(spoken):
    assert {speaker.accent for speaker, _, _ in spoken["accent"]} <= set(SHIFTED_ACCENTS)
    for kind in ("adult", "child"):
        assert not {speaker.accent for speaker, _, _ in spoken[kind]} & set(SHIFTED_ACCENTS)


def test_corpus_on_disk_is_what_was_spoken(tmp_path, spoken):
    cuts = list(read_corpus(write_corpus(tmp_path / "new" / "folder", "accent", 16, 8, 5)).cuts)
    assert [cut.supervisions[0].text for cut in cuts] == [text for _, text, _ in spoken["accent"]]
    assert [cut.supervisions[0].speaker for cut in cuts] == [speaker.name for speaker, _, _ in spoken["accent"]]
    for cut, (_, _, samples) in zip(cuts, spoken["accent"], strict=True):
        np.testing.assert_allclose(cut.load_audio()[0], samples, atol=2**-15)


def test_sentences_are_made_of_a_vocabulary_of_over_a_thousand_words():
    rng = random.Random(0)
    words = {word for _ in range(20_000) for word in sentence(rng).split()}
    assert words <= vocabulary()
    assert len(words) >= 1000
    assert all(word.isascii() and word.isalpha() and word.islower() for word in vocabulary())


def test_missing_library_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"needs eSpeak NG; install it with: pip install 'ssvd\[demo\]'"):
        Espeak()
