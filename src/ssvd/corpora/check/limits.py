"""The limits beyond which an utterance is reported."""

from dataclasses import dataclass

# Characters per second that nobody reaches: quick English speech has 20, and denser scripts have fewer.
IMPOSSIBLE_RATE = 40.0
# An unusual rate differs from the median of its corpus and language by this many standard deviations, and by a factor
# of two.
UNUSUAL_DEVIATIONS = 5.0
FEWEST_FOR_USUAL = 50  # utterances; with fewer, no rate is called unusual
SILENCE = 1e-3  # of full scale, -60 dB
FULL_SCALE = 0.999
CLIPPED_SHARE = 1e-3  # of the samples
CANCELLED = 20.0  # dB that a mix is quieter than its channels; where only one of N speaks, it is 10 lg N quieter


@dataclass(frozen=True)
class Limits:
    """What a check requires of utterances.

    Attributes:
        audio: Whether to decode the audio. If not, the headers or the manifest are trusted.
        shortest: Length in seconds below which an utterance is reported.
        longest: Length in seconds above which an utterance is reported.
        sampling_rate: Sampling rate in Hz below which an utterance is reported; None accepts any.
    """

    audio: bool = True
    shortest: float = 0.3
    longest: float = 30.0
    sampling_rate: int | None = None


DEFAULT_LIMITS = Limits()
