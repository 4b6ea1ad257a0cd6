"""Change training audio at random: speed, vocal tract, room, noise and volume."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation import AudioTransform, ReverbWithImpulseResponse, Volume

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.cut import Cut
from ssvd.corpora.sources import Source
from ssvd.errors import UserError
from ssvd.processes import thread_pool
from ssvd.training.vocal_tract import warp_frequencies

_AUDIO = (".wav", ".flac", ".mp3", ".ogg")
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_CHANCE = re.compile(rf"(.+)@({_NUMBER})")
_RANGE = re.compile(rf"(?:(.*):)?({_NUMBER}):({_NUMBER})")


@dataclass(frozen=True)
class _Kind:
    needs_source: bool
    limits: tuple[float, float] | None
    unit: str
    example: str


# In the order of the path of sound: the speaker, the room, other sound in it, the microphone.
_KINDS = {
    "speed": _Kind(False, (0.5, 2), "factors", "speed=0.9:1.1"),
    "vtlp": _Kind(False, (0.5, 2), "factors", "vtlp=0.8:1.2"),
    "reverb": _Kind(True, None, "", "reverb=IMPULSE_RESPONSES@0.3"),
    "noise": _Kind(True, (-20, 100), "dB of speech above noise", "noise=FOLDER:5:20@0.5"),
    "volume": _Kind(False, (-40, 40), "dB", "volume=-6:6"),
}


@dataclass(frozen=True)
class Augmentation:
    """One way to change utterances, written `KIND=LOW:HIGH`, `KIND=SOURCE:LOW:HIGH` or `KIND=SOURCE`.

    For each utterance a value is drawn uniformly from `low` to `high`, and a recording from `source`: a folder of audio
    files, at any depth, or a corpus that `read_corpus` takes. `@CHANCE` at the end is the share of utterances that are
    changed; without it, all are.
    """

    kind: str
    source: str | None
    low: float
    high: float
    chance: float

    @classmethod
    def parse(cls, text: str) -> "Augmentation":
        """Parse an augmentation; the path of its source becomes absolute.

        Raises:
            UserError: The text cannot be read, or a number is out of range.
        """
        name, _, value = text.partition("=")
        kind = _KINDS.get(name)
        if kind is None:
            examples = ", ".join(known.example for known in _KINDS.values())
            raise UserError(f"There is no augmentation {text!r}; write one as in {examples}.")
        what = f"The augmentation {text!r}"
        chance = 1.0
        if match := _CHANCE.fullmatch(value):
            value, chance = match[1], float(match[2])
            if not 0 < chance <= 1:
                raise UserError(f"{what} has the chance {chance:g}: it must lie above 0 and be at most 1.")
        low = high = 0.0
        source: str | None = value
        if kind.limits is not None:
            match = _RANGE.fullmatch(value)
            if match is None:
                raise UserError(f"{what} cannot be read: write it as in {kind.example}.")
            source, low, high = match[1], float(match[2]), float(match[3])
            least, most = kind.limits
            if not least <= low <= high <= most:
                raise UserError(
                    f"{what} goes from {low:g} to {high:g}: {kind.unit} must be in ascending order, from {least:g} to "
                    f"{most:g}."
                )
        if kind.needs_source != bool(source):
            needs = "a folder" if kind.needs_source else "no folder"
            raise UserError(f"{what} needs {needs}: write it as in {kind.example}.")
        if source and not Source.parse(source):
            source = str(Path(source).absolute())
        return cls(name, source or None, low, high, chance)

    def __str__(self) -> str:
        numbers = f"{self.low:g}:{self.high:g}" if _KINDS[self.kind].limits else None
        value = ":".join(part for part in (self.source, numbers) if part is not None)
        return f"{self.kind}={value}" + (f"@{self.chance:g}" if self.chance < 1 else "")


class Augmenter:
    """A random change of the utterances to train on.

    The change of an utterance follows from the seed, the epoch and its id, and depends neither on its batch nor on the
    process that reads it. Only the headers of noises and impulse responses are read here; the work is done when the
    audio of a changed cut is loaded.

    Args:
        augmentations: Texts that `Augmentation.parse` reads. They are applied in the order of speaker, room, noise and
            microphone, in whatever order they are given.
        sampling_rate: Sampling rate of the model in Hz.
        window: Length in seconds that a slowed utterance must not exceed.
        seed: Random seed.

    Raises:
        UserError: An augmentation or its source cannot be read; the message names the file.
    """

    def __init__(self, augmentations: Sequence[str], *, sampling_rate: int, window: float, seed: int) -> None:
        order = list(_KINDS)
        self._augmentations = sorted(
            map(Augmentation.parse, augmentations), key=lambda augmentation: order.index(augmentation.kind)
        )
        self._sources = {source: _read_source(source) for a in self._augmentations if (source := a.source)}
        self._sampling_rate = sampling_rate
        self._window = window
        self._seed = seed

    def __call__(self, cut: Cut, epoch: int) -> Cut:
        """Return the cut as it is heard in an epoch, or the cut itself where nothing changes it."""
        changed = cut.resample(self._sampling_rate)
        is_changed = False
        for number, augmentation in enumerate(self._augmentations):
            rng = random.Random(f"{self._seed} {epoch} {cut.id} {number}")
            if rng.random() < augmentation.chance:
                changed = self._changed(changed, augmentation, rng)
                is_changed = True
        return _transformed(changed, _WithinFullScale()) if is_changed else cut

    def slowest(self, cut: Cut) -> Cut:
        """Return the cut at the lowest speed at which it may be heard, else as it is."""
        for augmentation in self._augmentations:
            if augmentation.kind == "speed" and augmentation.low < 1:
                cut = self._at_speed(cut.resample(self._sampling_rate), augmentation.low)
        return cut

    def _at_speed(self, cut: Any, factor: float) -> Any:
        # In hundredths, as resampling by other ratios needs filters of millions of taps.
        slowest = math.ceil(100 * cut.duration / self._window)
        return cut.perturb_speed(max(round(100 * factor), slowest) / 100, affix_id=False)

    def _changed(self, cut: Any, augmentation: Augmentation, rng: random.Random) -> Any:
        value = rng.uniform(augmentation.low, augmentation.high)
        recording = rng.choice(self._sources[augmentation.source]) if augmentation.source else None
        match augmentation.kind:
            case "speed":
                return self._at_speed(cut, value)
            case "vtlp":
                return _transformed(cut, _VocalTract(value))
            case "reverb":
                assert recording is not None
                return _transformed(cut, ReverbWithImpulseResponse(recording.resample(self._sampling_rate)))
            case "noise":
                return _transformed(cut, _Noise(recording, rng.random(), value))
        return _transformed(cut, Volume(10 ** (value / 20)))


def _read_source(source: str) -> list[Cut]:
    """Read cuts of noise, or of impulse responses."""
    path = Path(source)
    if not path.is_dir():
        return list(read_corpus(source).cuts)
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _AUDIO)
    if not files:
        raise UserError(f"{path} holds no audio files for augmentation ({', '.join(_AUDIO)}).")
    try:
        with thread_pool(8) as pool:  # opening files is mostly waiting
            return [recording.to_cut() for recording in pool.map(read_recording, files, map(str, files))]
    except ValueError as error:
        raise UserError(f"{path} cannot be used for augmentation: {error}.") from error


def _transformed(cut: Any, transform: AudioTransform) -> Any:
    transforms = [*(cut.recording.transforms or []), transform]
    return replace(cut, recording=replace(cut.recording, transforms=transforms))


class _SameDuration(AudioTransform):
    def reverse_timestamps(
        self, offset: float, duration: float | None, sampling_rate: int
    ) -> tuple[float, float | None]:
        return offset, duration


@dataclass
class _VocalTract(_SameDuration):
    factor: float

    def __call__(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        return warp_frequencies(samples, sampling_rate, self.factor)


@dataclass
class _Noise(_SameDuration):
    """Adds noise from a place in a cut, where a `position` of 1 is the last place that is long enough.

    A short noise is repeated. The ratio is that of the mean powers of the utterance, pauses included, and the noise.
    """

    cut: Any  # a Lhotse cut
    position: float
    ratio: float  # dB of speech above noise

    def __call__(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        cut, length = self.cut, samples.shape[-1]
        needed = length / sampling_rate
        if cut.duration > needed:
            cut = cut.truncate(offset=self.position * (cut.duration - needed), duration=needed)
        mixer = AudioMixer(samples, sampling_rate)
        mixer.add_to_mix(np.resize(load_audio(cut, sampling_rate), (1, length)), snr=self.ratio)
        mixed: np.ndarray = mixer.mixed_audio
        return mixed


@dataclass
class _WithinFullScale(_SameDuration):
    """Lowers the volume of audio that would be clipped."""

    def __call__(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        return samples / max(1.0, float(np.abs(samples).max(initial=0)))
