"""libsndfile as Lhotse's decoder, of every file to its end.

libsndfile reads as much as it takes for the length of a file, which it guesses for an MP3 whose first frame states
none, and does not know for a FLAC that states none. It cannot seek in some codecs, such as GSM.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import soundfile
from lhotse.audio.backend import LibsndfileBackend, LibsndfileCompatibleAudioInfo
from lhotse.utils import compute_num_samples
from numpy.typing import NDArray

from ssvd.corpora.mp3 import Mp3, with_count

Source = str | Path | IO[bytes]

_BLOCK = 2**18  # samples
_NO_LENGTH = 2**62  # libsndfile's way to say that it does not know


class WholeFileBackend(LibsndfileBackend):
    """Decodes WAV, FLAC, MP3, Ogg and all else that libsndfile knows."""

    def info(self, path_or_fd: Source, force_opus_sampling_rate: int | None = None) -> LibsndfileCompatibleAudioInfo:
        """Return channels, samples, sampling rate in Hz, and seconds; counted where no header states them."""
        with _opened(path_or_fd) as file:
            samples = file.frames if file.seekable() else sum(map(len, _blocks(file)))
            return LibsndfileCompatibleAudioInfo(
                file.channels, samples, file.samplerate, duration=samples / file.samplerate
            )

    def read_audio(
        self,
        path_or_fd: Source,
        offset: float = 0.0,
        duration: float | None = None,
        force_opus_sampling_rate: int | None = None,
    ) -> tuple[NDArray[np.float32], int]:
        """Return samples of shape (channels, samples), within [-1, 1] in most formats, and the sampling rate in Hz.

        Args:
            path_or_fd: The file.
            offset: Seconds from its start.
            duration: Seconds to read; None for the rest.
            force_opus_sampling_rate: Not used.
        """
        with _opened(path_or_fd) as file:
            start, count = _samples(offset, file), None if duration is None else _samples(duration, file)
            if not file.seekable():
                parts = list(_blocks(file, start, count)) or [np.empty((0, file.channels), np.float32)]
                return np.concatenate(parts).T, file.samplerate
            if start:
                file.seek(start)
            samples = file.read(-1 if count is None else count, dtype="float32", always_2d=True)
            return samples.T, file.samplerate

    def blocks(self, path: str, offset: float, duration: float) -> Iterator[NDArray[np.float32]]:
        """Yield what `read_audio` returns, in blocks."""
        with _opened(path) as file:
            for block in _blocks(file, _samples(offset, file), _samples(duration, file)):
                yield block.T


def _samples(seconds: float, file: soundfile.SoundFile) -> int:
    return compute_num_samples(seconds, file.samplerate) if seconds > 0 else 0


class _ForwardFile(soundfile.SoundFile):
    """A file that is read from start to end: without seeking, which soundfile does after each block."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(source: Source) -> Iterator[soundfile.SoundFile]:
    source = str(source) if isinstance(source, Path) else source
    with soundfile.SoundFile(source) as file:
        if file.format != "MP3" and file.frames < _NO_LENGTH:
            yield file
            return
        counted = _with_count(source, file.frames) if file.format == "MP3" else None
        if counted is None and file.frames < _NO_LENGTH:
            yield file
            return
    if not isinstance(source, str):
        source.seek(0)
    with _ForwardFile(source) if counted is None else soundfile.SoundFile(BytesIO(counted)) as file:
        yield file


def _with_count(source: str | IO[bytes], samples: int) -> bytes | None:
    """Return an MP3 with its true length stated, where libsndfile takes it for another one; else None."""
    if isinstance(source, str):
        if _is_right(_state(source), samples):
            return None
        data = Path(source).read_bytes()
    else:
        position = source.tell()
        source.seek(0)
        data = source.read()
        source.seek(position)
    mp3 = Mp3.parse(data)
    return None if mp3 is None or _is_length(mp3, samples) else with_count(data)


class _State(NamedTuple):
    path: str
    size: int
    modified: int


def _state(path: str) -> _State:
    status = Path(path).stat()
    return _State(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=10_000)  # segments of a long recording are read one by one
def _is_right(state: _State, samples: int) -> bool:
    with Path(state.path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        mp3 = Mp3.parse(data)
    return mp3 is None or _is_length(mp3, samples)


def _is_length(mp3: Mp3, samples: int) -> bool:
    return abs(mp3.samples - samples) <= mp3.tolerance


def _blocks(file: soundfile.SoundFile, start: int = 0, count: int | None = None) -> Iterator[NDArray[np.float32]]:
    """Yield the samples from `start` on, all or `count` of them, in blocks of shape (samples, channels)."""
    end = math.inf if count is None else start + count
    position = file.seek(start) if file.seekable() and start else 0
    while position < end and len(block := file.read(int(min(_BLOCK, end - position)), dtype="float32", always_2d=True)):
        position += len(block)
        if position > start:
            yield block[-(position - start) :]
