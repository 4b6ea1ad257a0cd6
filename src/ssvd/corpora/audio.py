"""Audio files: their headers and their samples."""

import os
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.audio.backend import set_current_audio_backend
from numpy.typing import NDArray

from ssvd.corpora.cut import Cut
from ssvd.corpora.readers.shards import with_audio
from ssvd.errors import UserError

# Lhotse's default passes the names of some files to a shell (sph2pipe) and tries slow decoders on broken files.
set_current_audio_backend("LibsndfileBackend")

# RIFF sizes from here on mean "length unknown": programs that write to a pipe cannot go back to fill it in.
_UNKNOWN_RIFF_SIZE = 0x7F000000
# Some programs miscount the header or a padding byte.
_RIFF_SLACK = 64
_OGG_PAGE = 65_307  # bytes, the maximum size of a page
_OGG_HEADER = 27  # bytes


def is_file(path: Path) -> bool:
    """Return whether this is a visible file; impossible names and unreadable folders give False, not an error."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_recording(path: Path, recording_id: str) -> Recording:
    """Read the header of an audio file (WAV, FLAC, MP3, Ogg; any rate, any number of channels) as a Lhotse recording.

    Raises:
        ValueError: The file is missing, unreadable, empty, or truncated (a truncated MP3 is only noticed when it is
            decoded). The message completes "utterance x: ...".
    """
    if not is_file(path):
        raise ValueError(f"there is no audio file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"the audio file {path} is empty (0 bytes)")
    try:
        recording = Recording.from_file(path, recording_id=recording_id)
    except Exception as error:  # each decoder raises its own kind
        raise ValueError(f"the audio file {path} cannot be read ({_reason(error, path)})") from error
    if recording.num_samples == 0:
        raise ValueError(f"the audio file {path} holds no samples")
    if _is_cut_off(path, recording.num_samples):
        raise ValueError(f"the audio file {path} is cut off: it ends before the length that its header gives")
    return recording


def _reason(error: BaseException, path: Path | str) -> str:
    while inner := error.__cause__ or error.__context__:  # some lose their message when Lhotse raises them again
        error = inner
    return str(error).strip().split("\n")[0].removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")


def _is_cut_off(path: Path, num_samples: int) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] == b"RIFF":  # libsndfile silently reads what is there
        size = int.from_bytes(start[4:], "little")
        return path.stat().st_size + _RIFF_SLACK < size < _UNKNOWN_RIFF_SIZE
    if start[:4] == b"fLaC":
        try:
            with soundfile.SoundFile(path) as file:
                file.seek(num_samples - 1)
                return len(file.read(1)) == 0
        except soundfile.LibsndfileError:
            return True
    return start[:4] == b"OggS" and not _ends_as_ogg(path)


def _ends_as_ogg(path: Path) -> bool:
    """Return whether the last page of an Ogg file (RFC 3533) is complete, and marked as the last."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * _OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < _OGG_HEADER:
        return False
    segment_count = page[_OGG_HEADER - 1]
    segments = page[_OGG_HEADER : _OGG_HEADER + segment_count]
    size = _OGG_HEADER + segment_count + sum(segments)
    return bool(page[5] & 0x04) and len(segments) == segment_count and len(page) >= size


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
    path = cut.recording.sources[0].source
    try:
        samples: NDArray[np.float32] = with_audio(cut).load_audio()
    except UserError as error:  # from audio that is mixed in; Lhotse adds lines to it
        raise UserError(str(error).partition("\n")[0]) from error
    except Exception as error:  # decoders and Lhotse raise many kinds
        reason = _reason(error, path)
        raise UserError(f"Utterance {cut.id}: the audio of {path} cannot be decoded ({reason}).") from error
    if samples.size == 0 or not np.isfinite(samples).all():
        raise UserError(f"Utterance {cut.id}: the audio of {path} holds no samples, or some that are not numbers.")
    return samples
