"""Changes of training audio: each does to a signal what it says, by the seed, the epoch and the utterance alone."""

import re

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.corpora.corpus import read_corpus
from ssvd.errors import UserError
from ssvd.training.augmentation import Augmentation, Augmenter
from ssvd.training.vocal_tract import unwarped, warp_frequencies, warped

RATE = 16_000


def tone(frequency, seconds=2.0, rate=RATE, amplitude=0.4):
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def peak(samples, rate=RATE):
    """Hz of the strongest tone, and its share of the power."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    at = int(spectrum.argmax())
    return at * rate / len(samples), spectrum[max(0, at - 6) : at + 7].sum() / spectrum.sum()


def power(samples):
    return float(np.mean(np.square(samples, dtype=np.float64)))


@pytest.fixture
def cut_of(tmp_path):
    def make(samples, rate=RATE, name="speech", suffix=".wav"):
        path = tmp_path / f"{name}{suffix}"
        soundfile.write(path, samples, rate)
        return read_recording(path, name).to_cut()

    return make


def augmenter(*augmentations, window=30.0, seed=0):
    return Augmenter(augmentations, sampling_rate=RATE, window=window, seed=seed)


def heard(cut, *augmentations, epoch=0, **options):
    changed = augmenter(*augmentations, **options)(cut, epoch)
    samples = load_audio(changed, RATE)
    assert len(samples) == round(changed.duration * RATE)
    return samples


# -- each kind


@pytest.mark.parametrize("rate", [RATE, 22_050])
@pytest.mark.parametrize("factor", [0.9, 1.07])
def test_speed_moves_pitch_and_length_by_its_factor(cut_of, factor, rate):
    cut = cut_of(tone(1000, rate=rate), rate)
    samples = heard(cut, f"speed={factor}:{factor}")
    assert peak(samples)[0] == pytest.approx(1000 * factor, abs=1)
    assert len(samples) == pytest.approx(2 * RATE / factor, abs=2)


def test_speed_of_a_part_of_a_recording_stays_within_that_part(cut_of):
    signal = np.concatenate([tone(500, 1), tone(1000, 1), tone(2000, 1)])
    cut = cut_of(signal).truncate(offset=1, duration=1)
    samples = heard(cut, "speed=0.8:0.8")
    assert len(samples) == 1.25 * RATE
    for part in (samples[: RATE // 4], samples[-RATE // 4 :]):
        assert peak(part)[0] == pytest.approx(800, abs=4)


@pytest.mark.parametrize("duration", [3.7, 3.99, 4.0])
def test_slower_utterance_still_fits_the_window(cut_of, duration):
    cut = cut_of(tone(300, duration))
    for epoch in range(10):
        assert len(heard(cut, "speed=0.5:0.9", window=4.0, epoch=epoch)) <= 4 * RATE
    assert len(heard(cut, "speed=0.5:0.5", window=4.0)) >= 3.95 * RATE


@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("frequency", [150, 440, 1013, 3000, 6500, 7600])
def test_vocal_tract_moves_a_tone_as_the_map_says_and_leaves_duration_and_power(cut_of, frequency, factor):
    samples = tone(frequency)
    changed = heard(cut_of(samples), f"vtlp={factor}:{factor}")
    # 4.8 kHz is 0.6 of half the rate; beyond it, the rest of the band is stretched or squeezed to fill what is left.
    bend = 4800 * min(1, factor) / factor
    expected = frequency * factor
    if frequency > bend:
        expected = 8000 - (8000 - factor * bend) / (8000 - bend) * (8000 - frequency)
    found, share = peak(changed)
    assert found == pytest.approx(expected, abs=1.5) and share > 0.95
    assert len(changed) == len(samples)
    assert power(changed) == pytest.approx(power(samples), rel=0.01)


def test_vocal_tract_maps_are_inverse_and_keep_both_ends():
    frequency = torch.linspace(0, 8000, 1001, dtype=torch.float64)
    for factor in (0.5, 0.8, 1.0, 1.25, 2.0):
        there = warped(frequency, factor, 8000.0)
        assert (there.diff() > 0).all() and there[0] == 0 and there[-1] == 8000
        torch.testing.assert_close(unwarped(there, factor, 8000.0), frequency)


def test_vocal_tract_of_factor_one_changes_nothing(corpora):
    samples = load_audio(next(iter(read_corpus(corpora["adult"]).cuts)), RATE)
    assert np.abs(warp_frequencies(samples, RATE, 1.0) - samples).max() < 1e-5


@pytest.mark.parametrize("length", [0, 1, 100, 511, 513])
def test_vocal_tract_takes_audio_shorter_than_a_frame(length):
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (2, length)).astype(np.float32)
    changed = warp_frequencies(samples, RATE, 1.2)
    assert changed.shape == samples.shape and np.isfinite(changed).all()


@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_vocal_tract_gives_the_features_of_a_warped_filter_bank(corpora, factor):
    """Jaitly and Hinton's own form: the power of each bin goes to the mel filters of where its frequency moves."""
    filters = WhisperFeatureExtractor().mel_filters
    bins = torch.linspace(0, 8000, len(filters), dtype=torch.float64)
    moved = np.stack([np.interp(warped(bins, factor, 8000.0), bins, one) for one in filters.T], 1)

    def features(samples, bank):
        window = torch.hann_window(400)
        spectrum = torch.stft(torch.from_numpy(samples), 400, 160, window=window, return_complex=True)
        mel = torch.from_numpy(bank.T).float() @ spectrum.abs() ** 2
        smooth = torch.nn.functional.avg_pool1d(mel, 5, 1, 2)  # what is noise differs from frame to frame
        return 10 * smooth.clamp(min=1e-10).log10()

    apart, untouched = [], []
    for cut in read_corpus(corpora["adult"]).cuts:
        samples = load_audio(cut, RATE)
        expected = features(samples, moved)
        heard = expected > expected.max() - 40  # dB
        for bag, other in ((apart, warp_frequencies(samples, RATE, factor)), (untouched, samples)):
            difference = (features(other, filters) - expected)[heard]
            bag.append(float((difference - difference.median()).abs().mean()))
    assert np.mean(apart) < 3.5 and np.mean(apart) < np.mean(untouched) / 2


def test_noise_has_the_ratio_and_is_that_of_the_folder(cut_of, tmp_path):
    noises = tmp_path / "noises" / "deep"
    noises.mkdir(parents=True)
    soundfile.write(noises / "hum.flac", tone(3000, 10, 44_100), 44_100)
    speech = tone(500)
    changed = heard(cut_of(speech), f"noise={tmp_path / 'noises'}:7:7")
    added = changed - speech
    assert peak(added)[0] == pytest.approx(3000, abs=1)
    assert 10 * np.log10(power(speech) / power(added)) == pytest.approx(7, abs=0.1)


def test_noise_shorter_than_the_utterance_is_repeated(cut_of, tmp_path):
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "beep.wav", tone(3000, 0.3), RATE)
    added = heard(cut_of(tone(500)), f"noise={tmp_path / 'noises'}:0:0") - tone(500)
    assert all(power(piece) == pytest.approx(power(added), rel=0.1) for piece in np.split(added, 8))


def test_noise_begins_elsewhere_each_time_and_may_be_a_corpus(cut_of, corpora):
    cut = cut_of(tone(500, 0.5))
    added = {heard(cut, f"noise={corpora['adult']}:5:5", epoch=epoch).tobytes() for epoch in range(6)}
    assert len(added) == 6


def test_reverberation_is_convolution_with_an_impulse_response(cut_of, tmp_path):
    (tmp_path / "rooms").mkdir()
    response = np.zeros((RATE // 2, 2), np.float32)  # of two channels; the first counts
    response[0, 0], response[1600, 0] = 0.8, 0.4
    soundfile.write(tmp_path / "rooms" / "room.wav", response, RATE, subtype="FLOAT")
    click = np.zeros(RATE, np.float32)
    click[3000] = 0.9
    changed = heard(cut_of(click), f"reverb={tmp_path / 'rooms'}")
    assert set(np.argsort(np.abs(changed))[-2:]) == {3000, 4600}
    assert changed[4600] / changed[3000] == pytest.approx(0.5, rel=1e-3)
    assert power(changed) == pytest.approx(power(click), rel=1e-3) and len(changed) == len(click)


@pytest.mark.parametrize("gain", [-6, 3])
def test_volume_is_in_decibels(cut_of, gain):
    samples = tone(440)
    changed = heard(cut_of(samples), f"volume={gain}:{gain}")
    np.testing.assert_allclose(changed, samples * 10 ** (gain / 20), atol=1e-4)


def test_what_would_be_clipped_is_turned_down_whole(cut_of):
    samples = tone(440)
    changed = heard(cut_of(samples), "volume=40:40")
    np.testing.assert_allclose(changed, samples / np.abs(samples).max(), atol=1e-3)


def test_silence_and_several_channels_pass_through_all_kinds(cut_of, tmp_path):
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "noise.wav", tone(3000, 0.3), RATE)
    every = f"noise={tmp_path / 'noises'}:5:5", "volume=-6:6", f"reverb={tmp_path / 'noises'}", "vtlp=0.8:1.2"
    for name, samples in {"silence": np.zeros(RATE), "stereo": np.stack([tone(300), tone(400)], 1)}.items():
        changed = heard(cut_of(samples, name=name), *every, "speed=0.9:1.1")
        assert np.isfinite(changed).all()


# -- chance


def test_same_seed_epoch_and_utterance_give_the_same_audio_and_others_another(cut_of):
    every = "speed=0.9:1.1", "vtlp=0.8:1.2", "volume=-6:6"
    cut, other = cut_of(tone(440)), cut_of(tone(440), name="other")
    first = heard(cut, *every)
    assert np.array_equal(first, heard(cut, *every))
    for different in (heard(cut, *every, epoch=1), heard(cut, *every, seed=1), heard(other, *every)):
        assert not np.array_equal(first, different)


def test_order_in_which_they_are_given_does_not_matter(cut_of):
    cut = cut_of(tone(440))
    kinds = "volume=-6:6", "speed=0.9:1.1"
    assert np.array_equal(heard(cut, *kinds), heard(cut, *reversed(kinds)))


def test_values_are_uniform_and_the_chance_is_a_share(cut_of):
    cut = cut_of(tone(440, 0.1))
    change = augmenter("volume=-10:10@0.25")
    changed = [other for epoch in range(400) if (other := change(cut, epoch)) is not cut]
    assert 70 < len(changed) < 130
    gains = 10 * np.log10([power(load_audio(other, RATE)) / power(tone(440, 0.1)) for other in changed])
    assert -10 <= min(gains) < -8 and 7 < max(gains) <= 10 and abs(np.mean(gains)) < 2


def test_untouched_utterance_is_the_cut_itself(cut_of):
    cut = cut_of(tone(440))
    assert augmenter()(cut, 0) is cut


# -- mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo", "There is no augmentation 'echo'; write one as in speed=0.9:1.1, vtlp=0.8:1.2"),
        ("speed", "The augmentation 'speed' cannot be read: write it as in speed=0.9:1.1."),
        ("speed=1.1", "cannot be read: write it as in speed=0.9:1.1."),
        ("speed=1.1:0.9", "goes from 1.1 to 0.9: factors must be in ascending order, from 0.5 to 2."),
        ("speed=0:1", "goes from 0 to 1: factors must be in ascending order"),
        ("vtlp=a:b", "cannot be read: write it as in vtlp=0.8:1.2."),
        ("volume=x:-6:6", "needs no folder: write it as in volume=-6:6."),
        ("noise=5:20", "needs a folder: write it as in noise=FOLDER:5:20@0.5."),
        ("noise=here", "cannot be read: write it as in noise=FOLDER:5:20@0.5."),
        ("reverb=", "needs a folder: write it as in reverb=IMPULSE_RESPONSES@0.3."),
        ("volume=-6:6@2", "has the chance 2: it must lie above 0 and be at most 1."),
    ],
)
def test_what_cannot_be_read_is_told_with_an_example(text, told):
    with pytest.raises(UserError, match=re.escape(told)) as error:
        Augmentation.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["speed=0.9:1.1", "volume=-6:6@0.5", "noise=/a:b/c@home:-5:20@0.25", "reverb=/r"])
def test_notation_is_kept(text):
    assert str(Augmentation.parse(text)) == text


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(Augmentation.parse("reverb=rooms")) == f"reverb={tmp_path / 'rooms'}"


def test_source_without_audio_or_with_bad_audio_is_told(tmp_path):
    for name, content, told in (
        ("missing", None, "missing does not exist"),
        ("empty", {}, "empty holds no audio files for augmentation"),
        ("broken", {"x.wav": b"RIFF"}, r"broken cannot be used for augmentation: the audio file .*x\.wav cannot"),
    ):
        if content is not None:
            (tmp_path / name).mkdir()
            for file, data in content.items():
                (tmp_path / name / file).write_bytes(data)
        with pytest.raises(UserError, match=told) as error:
            augmenter(f"noise={tmp_path / name}:5:20")
        assert "\n" not in str(error.value)


def test_noise_that_vanishes_is_named_and_not_the_speech(cut_of, tmp_path):
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "gone.wav", tone(3000, 5), RATE)
    change = augmenter(f"noise={tmp_path / 'noises'}:5:5")
    cut = change(cut_of(tone(440)), 0)
    (tmp_path / "noises" / "gone.wav").unlink()
    with pytest.raises(UserError, match=r"the audio of .*gone\.wav cannot be decoded") as error:
        load_audio(cut, RATE)
    assert "\n" not in str(error.value) and "speech.wav" not in str(error.value)
