"""Make synthetic speech with eSpeak NG: adults, child-like speakers and accents, for the demonstration and its model.

Needs the extra `ssvd[demo]`. Everything made here is synthetic and is called so wherever it is shown.
"""

import csv
import ctypes
import io
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ssvd.demo.sentences import sentence
from ssvd.errors import UserError
from ssvd.files import write_whole
from ssvd.processes import ProcessPool

Kind = Literal["adult", "child", "accent"]
"""A kind of speakers."""
KINDS: tuple[Kind, ...] = get_args(Kind)

SAMPLING_RATE = 16_000
LONGEST = 3.9  # seconds: the embedded recogniser has a window of 4 s
ADULT_ACCENTS = ("en-us", "en", "en-gb-x-rp")  # eSpeak NG calls general British English "en"
SHIFTED_ACCENTS = ("en-gb-scotland", "en-029", "en-gb-x-gbclan")
# Left out: Alicia, caleb, f2, f3, f5, sandro and victor, whose noise differs from one process to the next.
VARIANTS = """m1 m2 m3 m4 m5 m6 m7 m8 f1 f4 Alex Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael
adam anika david edward gustave ian john linda max norbert pablo paul quincy shelby steph zac""".split()
_CHUNK = 100  # utterances spoken by one instance of the library
_AHEAD = 10  # chunks


@dataclass(frozen=True)
class Speaker:
    """A synthetic speaker.

    Attributes:
        name: Its id.
        accent: Name of a voice of eSpeak NG.
        variant: Name of a variant of that voice.
        rate: Words per minute, before resampling by `tract`.
        pitch: Pitch on eSpeak NG's scale of 0 to 99, before resampling by `tract`.
        tract: Factor by which the voice is resampled; above 1, it shortens the vocal tract, which raises pitch and
            formants and speeds up the speech.
        hesitation: Probability, for each word, of a pause, a repetition or a prolongation.
    """

    name: str
    accent: str
    variant: str
    rate: float
    pitch: int
    tract: float
    hesitation: float

    @classmethod
    def draw(cls, kind: Kind, name: str, rng: random.Random) -> "Speaker":
        """Return a random speaker of a kind."""
        child = kind == "child"
        tract = rng.uniform(1.25, 1.5) if child else rng.uniform(0.93, 1.07)
        pace = rng.uniform(120, 165) if child else rng.uniform(150, 195)
        return cls(
            name=name,
            accent=rng.choice(SHIFTED_ACCENTS if kind == "accent" else ADULT_ACCENTS),
            variant=rng.choice(VARIANTS),
            rate=pace / tract,
            pitch=rng.randint(45, 80) if child else rng.randint(20, 70),
            tract=tract,
            hesitation=rng.uniform(0.1, 0.4) if child else 0.0,
        )


class Espeak:
    """eSpeak NG through ctypes: the same calls in the same order on a new instance give the same samples.

    The library keeps state between utterances that none of its functions resets. Each instance therefore loads a copy
    of its own, which takes 0.7 MB on disk until the process ends: the loader would take a later file with the same
    inode for the same library.
    """

    _copies = tempfile.TemporaryDirectory(prefix="ssvd-espeak-", ignore_cleanup_errors=True)

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError("synthetic speech needs eSpeak NG; install it with: pip install 'ssvd[demo]'") from None
        copy = Path(tempfile.mkdtemp(dir=self._copies.name)) / "libespeak-ng"
        self._library = ctypes.CDLL(str(shutil.copy(espeakng_loader.get_library_path(), copy)))
        self._chunks: list[NDArray[np.int16]] = []
        receive = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = receive(self._receive)  # held here: the library keeps only its address
        synchronous, no_exit = 2, 0x8000
        data = espeakng_loader.get_data_path().encode()
        self.sampling_rate = self._library.espeak_Initialize(synchronous, 0, data, no_exit)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count, _events) -> int:  # type: ignore[no-untyped-def]  # ctypes objects
        if samples and count:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, ssml: str, voice: str, rate: float, pitch: int) -> NDArray[np.float32]:
        """Return the samples of an SSML text: (samples,), float32 in [-1, 1] at `self.sampling_rate`."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}")
        for parameter, value in ((1, round(rate)), (3, pitch)):  # espeakRATE, espeakPITCH
            self._library.espeak_SetParameter(parameter, value, 0)
        text = ssml.encode() + b"\0"
        self._chunks.clear()
        utf8_ssml = 0x1 | 0x10
        self._library.espeak_Synth(text, len(text), 0, 0, 0, utf8_ssml, None, None)
        return np.concatenate(self._chunks).astype(np.float32) / np.float32(32768)


def _hesitant(text: str, hesitation: float, rng: random.Random) -> str:
    """Return SSML in which words are repeated, prolonged or followed by a pause."""
    spoken = []
    for word in text.split():
        if rng.random() < hesitation:
            match rng.randrange(4):
                case 0:
                    word = f"{word} <break time='{rng.randint(60, 200)}ms'/> {word}"
                case 1:
                    word = f"{word} <break time='{rng.randint(150, 500)}ms'/>"
                case _:
                    word = f"<prosody rate='{rng.randint(50, 80)}%'>{word}</prosody>"
        spoken.append(word)
    return f"<speak>{' '.join(spoken)}</speak>"


def speak(espeak: Espeak, text: str, speaker: Speaker, rng: random.Random) -> NDArray[np.float32]:
    """Return a text spoken by a speaker with light noise: (samples,), float32 in [-1, 1] at 16 kHz."""
    ssml = _hesitant(text, speaker.hesitation, rng)
    rate = speaker.rate * rng.uniform(0.9, 1.1)
    samples = espeak.speak(ssml, f"{speaker.accent}+{speaker.variant}", rate, speaker.pitch)
    ratio = Fraction(SAMPLING_RATE, round(espeak.sampling_rate * speaker.tract)).limit_denominator(150)
    samples = resample_poly(samples, ratio.numerator, ratio.denominator)
    samples *= 10 ** rng.uniform(-1.2, -0.2) / (np.abs(samples).max() + 1e-6)
    snr = rng.uniform(20, 40)  # dB
    power = float(np.mean(samples**2)) * 10 ** (-snr / 10)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, np.sqrt(power), len(samples))
    noisy: NDArray[np.float32] = np.clip(samples + noise, -1, 1).astype(np.float32)
    return noisy


def _speak_chunk(kind: Kind, speakers: int, seed: int, chunk: range) -> list[tuple[Speaker, str, NDArray[np.float32]]]:
    """Return the utterances with these numbers."""
    espeak = Espeak()
    spoken = []
    for index in chunk:
        name = f"{kind}-{index % speakers:03d}"
        speaker = Speaker.draw(kind, name, random.Random(f"{seed} {name}"))
        rng = random.Random(f"{seed} {kind} {index}")
        while True:
            text = sentence(rng)
            samples = speak(espeak, text, speaker, rng)
            if len(samples) <= LONGEST * SAMPLING_RATE:
                break
        spoken.append((speaker, text, samples))
    return spoken


def utterances(kind: Kind, count: int, speakers: int, seed: int) -> Iterator[tuple[Speaker, str, NDArray[np.float32]]]:
    """Yield utterances as speaker, text and samples: (samples,), float32 at 16 kHz, at most 3.9 s.

    The same arguments give the same samples, whatever the number of cores.

    Args:
        kind: Kind of the speakers.
        count: Number of utterances.
        speakers: Number of speakers.
        seed: Random seed.
    """
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    speak_chunk = partial(_speak_chunk, kind, speakers, seed)
    if len(chunks) == 1:  # another process would take longer to begin than to speak
        yield from speak_chunk(chunks[0])
        return
    with ProcessPool() as pool:
        # Only a few chunks ahead of the reader, so that a large corpus need not fit in memory.
        for start in range(0, len(chunks), _AHEAD):
            for spoken in pool.map(speak_chunk, chunks[start : start + _AHEAD]):
                yield from spoken


def write_corpus(folder: Path, kind: Kind, count: int, speakers: int, seed: int) -> Path:
    """Write synthetic utterances as 16 kHz FLAC, then a table `metadata.csv` in the same folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    text_of_table = io.StringIO()
    rows = csv.writer(text_of_table)
    rows.writerow(["path", "text", "speaker", "accent", "kind"])
    for index, (speaker, text, samples) in enumerate(utterances(kind, count, speakers, seed)):
        path = folder / f"{kind}-{seed}-{index:05d}.flac"
        soundfile.write(path, samples, SAMPLING_RATE)
        rows.writerow([path.name, text, speaker.name, speaker.accent, kind])
    write_whole(folder / "metadata.csv", text_of_table.getvalue())
    return folder / "metadata.csv"
