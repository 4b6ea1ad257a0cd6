"""Audio files: their lengths and their samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.audio.backend import set_current_audio_backend
from lhotse.audio.utils import get_audio_duration_mismatch_tolerance
from numpy.typing import NDArray

from ssvd.corpora.containers import Found, fault
from ssvd.corpora.cut import Cut
from ssvd.corpora.libsndfile import WholeFileBackend
from ssvd.corpora.readers.shards import with_audio
from ssvd.errors import UserError

# Lhotse's default passes the names of some files to a shell (sph2pipe) and tries slow decoders on broken files.
_BACKEND = WholeFileBackend()
set_current_audio_backend(_BACKEND)

_LONG = 120  # seconds: from here on, audio is decoded in blocks where it is only examined


def is_file(path: Path) -> bool:
    """Return whether this is a visible file; impossible names and unreadable folders give False, not an error."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_recording(path: Path, recording_id: str) -> Recording:
    """Describe an audio file (WAV, FLAC, MP3, Ogg; any rate, any number of channels) as a Lhotse recording.

    Its length is that of its samples. Where no header states that, the file is decoded to its end.

    Raises:
        ValueError: The file is missing, unreadable, empty, truncated, joined of several recordings, longer than its
            header states, or of a codec that cannot be decoded. The message completes "utterance x: ...".
    """
    if not is_file(path):
        raise ValueError(f"there is no audio file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"the audio file {path} is empty (0 bytes)")
    try:
        recording = Recording.from_file(path, recording_id=recording_id)
        found = Found(recording.num_samples, recording.sampling_rate)
        reason = fault(path, soundfile.info(path).format, found)
        if reason is None and found.samples == 0:
            reason = "holds no samples"
        elif reason is None and not _has_end(path, found):
            reason = "cannot be decoded to its end"
    except Exception as error:  # each decoder raises its own kind
        raise ValueError(f"the audio file {path} cannot be read ({_reason(error, path)})") from error
    if reason is not None:
        raise ValueError(f"the audio file {path} {reason}")
    return recording


def _has_end(path: Path, found: Found) -> bool:
    """Return whether the last sample can be decoded."""
    second = 1 / found.sampling_rate
    samples, _ = _BACKEND.read_audio(path, (found.samples - 1) * second, second)
    return bool(samples.shape[1] == 1)


def _reason(error: BaseException, path: Path | str) -> str:
    while inner := error.__cause__ or error.__context__:  # some lose their message when Lhotse raises them again
        error = inner
    return str(error).strip().split("\n")[0].removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")


def load_audio(cut: Cut, sampling_rate: int) -> NDArray[np.float32]:
    """Load the samples of a cut, resample them, and average the channels.

    Args:
        cut: The cut.
        sampling_rate: In Hz.

    Returns:
        float32 array of shape (samples,), within [-1, 1].

    Raises:
        UserError: The audio cannot be decoded, or is not finite; the message names the file.
    """
    mono = decode(cut.resample(sampling_rate)).mean(axis=0, dtype=np.float32)
    clipped: NDArray[np.float32] = np.clip(mono, -1.0, 1.0)
    return clipped


def decode(cut: Cut) -> NDArray[np.float32]:
    """Load the samples of a cut as they are.

    Returns:
        float32 array of shape (channels, samples).

    Raises:
        UserError: As `load_audio`.
    """
    with _errors_of(cut):
        samples: NDArray[np.float32] = with_audio(cut).load_audio()
        _check_numbers(samples)
        return samples


def decode_in_blocks(cut: Cut) -> Iterator[NDArray[np.float32]]:
    """Yield the samples of a cut as they are, those of a long one in blocks.

    Yields:
        float32 arrays of shape (channels, samples).

    Raises:
        UserError: As `load_audio`.
    """
    recording, source = cut.recording, cut.recording.sources[0]
    if cut.duration < _LONG or len(recording.sources) > 1 or recording.transforms or source.type != "file":
        yield decode(cut)
        return
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    rows = [source.channels.index(channel) for channel in channels]
    missing = cut.duration * recording.sampling_rate
    with _errors_of(cut):
        for block in _BACKEND.blocks(source.source, cut.start, cut.duration):
            _check_numbers(block)
            missing -= block.shape[1]
            yield block[rows]
        if missing > get_audio_duration_mismatch_tolerance() * recording.sampling_rate:
            raise ValueError(f"it ends {missing / recording.sampling_rate:.2f} s too early")


@contextmanager
def _errors_of(cut: Cut) -> Iterator[None]:
    """Turn what decoders and Lhotse raise into a sentence that names the utterance and its file."""
    path = cut.recording.sources[0].source
    try:
        yield
    except UserError as error:  # from audio that is mixed in; Lhotse adds lines to it
        raise UserError(str(error).partition("\n")[0]) from error
    except Exception as error:
        reason = _reason(error, path)
        raise UserError(f"Utterance {cut.id}: the audio of {path} cannot be decoded ({reason}).") from error


def _check_numbers(samples: NDArray[np.float32]) -> None:
    if samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError("it holds no samples, or some that are not numbers")
