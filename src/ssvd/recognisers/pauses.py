"""Which parts of a long recording are decoded: all of it, or what is left without long silences."""

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ssvd.errors import UserError

Silence = Literal["energy", "vad"]

_RATE = 16000  # Hz, of the detector
_THRESHOLD = 0.5  # probability of speech; its authors' own
_LONG = 5.0  # seconds: shorter silence stays in, as a pause between sentences
_MARGIN = 0.4  # seconds that are kept around speech, where the detector is late


def check_silence(silence: Silence, sampling_rate: int = _RATE) -> None:
    """Check that silence can be found in this way in audio of a sampling rate in Hz.

    Raises:
        UserError: The detector reads other audio.
        ModuleNotFoundError: The package of the detector is not installed.
    """
    if silence == "energy":
        return
    if sampling_rate != _RATE:
        raise UserError(
            f"The voice detector reads audio at {_RATE} Hz and this model at {sampling_rate}: find silence by energy."
        )
    _detector()


def spoken_parts(samples: NDArray[np.float32], silence: Silence) -> list[tuple[int, int]]:
    """Return the parts of a recording to decode, each as its first sample and the one after its last.

    Args:
        samples: Mono samples (n,), at 16 kHz where a detector is to hear them.
        silence: "energy" for the whole recording; "vad" for it without the silences of 5 s and more that Silero's
            detector finds.

    Raises:
        ModuleNotFoundError: The package of the detector is not installed.
    """
    if silence == "energy":
        return [(0, len(samples))]
    detector = _detector()
    from silero_vad import get_speech_timestamps_from_probs

    probabilities = detector.audio_forward(np.ascontiguousarray(samples), _RATE)
    stretches = get_speech_timestamps_from_probs(
        probabilities.tolist(),
        sampling_rate=_RATE,
        threshold=_THRESHOLD,
        min_silence_duration_ms=round(1000 * _LONG),
        speech_pad_ms=round(1000 * _MARGIN),
        audio_length_samples=len(samples),
    )
    return [(stretch["start"], stretch["end"]) for stretch in stretches]


@cache
def _detector() -> Any:
    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad

        return load_silero_vad(sequence=True)
    finally:
        torch.set_num_threads(threads)  # the package sets one thread for all of torch
