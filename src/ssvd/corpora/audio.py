"""Audio files: their headers, and their samples."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.audio.backend import set_current_audio_backend

from ssvd.corpora.readers.shards import with_audio
from ssvd.errors import UserError

# Lhotse's own choice hands the names of some files to a shell (sph2pipe) and tries slow decoders on broken ones.
set_current_audio_backend("LibsndfileBackend")

# RIFF sizes from here on stand for "length unknown": programs that write into a pipe cannot go back to fill it in.
_UNKNOWN_RIFF_SIZE = 0x7F000000
# Some programs miscount the header or a padding byte.
_RIFF_SLACK = 64
_OGG_PAGE = 65_307  # bytes, the most that a page may have


def is_file(path: Path) -> bool:
    """Whether this is a file that can be seen; false, not an error, for impossible names and closed folders."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_recording(path: Path, recording_id: str) -> Recording:
    """The header of an audio file (WAV, FLAC, MP3, Ogg; any rate, any number of channels) as a Lhotse recording.

    Raises:
        ValueError: the file is missing, unreadable, empty, or cut off (a cut-off MP3 shows only when it is
            decoded). The message completes "utterance x: ...".
    """
    if not is_file(path):
        raise ValueError(f"there is no audio file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"the audio file {path} is empty (0 bytes)")
    try:
        recording = Recording.from_file(path, recording_id=recording_id)
    except Exception as error:  # each decoder has its own
        raise ValueError(f"the audio file {path} cannot be read ({_reason(error, path)})") from error
    if recording.num_samples == 0:
        raise ValueError(f"the audio file {path} holds no samples")
    if _is_cut_off(path, recording.num_samples):
        raise ValueError(f"the audio file {path} is cut off: it ends before the length that its header gives")
    return recording


def _reason(error: BaseException, path: Path | str) -> str:
    while inner := error.__cause__ or error.__context__:  # some lose their message when Lhotse raises them anew
        error = inner
    return str(error).strip().split("\n")[0].removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")


def _is_cut_off(path: Path, num_samples: int) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] == b"RIFF":  # libsndfile quietly takes what is there
        size = struct.unpack("<I", start[4:])[0]
        return size < _UNKNOWN_RIFF_SIZE and size > path.stat().st_size + _RIFF_SLACK
    if start[:4] == b"fLaC":
        try:
            with soundfile.SoundFile(path) as file:
                file.seek(num_samples - 1)
                return len(file.read(1)) == 0
        except soundfile.LibsndfileError:
            return True
    return start[:4] == b"OggS" and not _ends_as_ogg(path)


def _ends_as_ogg(path: Path) -> bool:
    """Whether the last page of an Ogg file (RFC 3533) is there as a whole, and marked as the last."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * _OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return False
    segments = page[27 : 27 + page[26]]
    return bool(page[5] & 0x04) and len(segments) == page[26] and len(page) >= 27 + page[26] + sum(segments)


def load_audio(cut: Any, sampling_rate: int) -> np.ndarray:
    """The samples of a cut, resampled, several channels mixed to one by their mean.

    Returns:
        float32 array of shape (samples,), within [-1, 1].

    Raises:
        UserError: the audio cannot be decoded, or is not finite; the message names the file.
    """
    return np.clip(decode(cut.resample(sampling_rate)).mean(axis=0, dtype=np.float32), -1.0, 1.0)


def decode(cut: Any) -> np.ndarray:
    """The samples of a cut as they are: float32 array of shape (channels, samples); raises as `load_audio`."""
    path = cut.recording.sources[0].source
    try:
        samples = with_audio(cut).load_audio()
    except UserError as error:  # of audio that is mixed in; lhotse adds lines to it
        raise UserError(str(error).partition("\n")[0]) from error
    except Exception as error:  # decoders and lhotse raise many kinds
        reason = _reason(error, path)
        raise UserError(f"Utterance {cut.id}: the audio of {path} cannot be decoded ({reason}).") from error
    if samples.size == 0 or not np.isfinite(samples).all():
        raise UserError(f"Utterance {cut.id}: the audio of {path} holds no samples, or some that are not numbers.")
    return samples
