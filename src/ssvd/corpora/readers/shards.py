"""Audio in shards: the tar files of Lhotse Shar, each with the audio of many utterances.

A shard is read from start to end (`read_shard`), which object stores and network disks are fast at, or a single
utterance is read from it (`with_audio`).
"""

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lhotse.audio import AudioSource
from lhotse.utils import fastcopy

from ssvd.corpora.cut import Cut

_TAR = ".tar:"  # in the source of a recording, between the shard and the id of the cut that it was written for


class _Place(NamedTuple):
    """Where the audio of a cut starts in a shard, and its size, in bytes."""

    start: int
    size: int


class _AudioMember(NamedTuple):
    """The id of a cut, and its audio in a tar file."""

    cut_id: str
    info: tarfile.TarInfo


def shard_source(tar: Path, cut_id: str) -> str:
    """Return the source of a recording in a shard."""
    return f"{str(tar).removesuffix('.tar')}{_TAR}{cut_id}"


def shard_of(source: AudioSource) -> Path | None:
    """Return the shard that holds the audio of a recording; None if it is a separate file, or in memory."""
    return Path(source.source.partition(_TAR)[0] + ".tar") if source.type == "shar" else None


def with_audio(cut: Cut) -> Cut:
    """Return the cut with its audio, still encoded, read from its shard into memory; the cut itself if it has no shard.

    Raises:
        OSError: The shard cannot be read.
        tarfile.TarError: The shard is damaged.
        KeyError: The shard lacks the audio.
    """
    tar = shard_of(cut.recording.sources[0])
    if tar is None:
        return cut
    start, size = _places(tar, tar.stat().st_mtime_ns)[_member_name(cut)]
    with tar.open("rb") as file:
        file.seek(start)
        return _with_data(cut, file.read(size))


def with_audio_of(shards: dict[Path, dict[str, bytes]], cut: Cut) -> Cut:
    """Return the cut with its audio from shards that `read_shard` has read.

    Raises:
        KeyError: The shard lacks the audio.
    """
    tar = shard_of(cut.recording.sources[0])
    return cut if tar is None else _with_data(cut, shards[tar][_member_name(cut)])


def read_shard(tar: Path) -> dict[str, bytes]:
    """Read the encoded audio of all utterances of a shard, by the id of their cut.

    Raises:
        OSError: The shard cannot be read.
        tarfile.TarError: The shard is damaged.
    """
    with tarfile.open(tar, "r|") as file:  # a stream, which never seeks back
        return {name: data.read() for name, info in _audio_members(file) if (data := file.extractfile(info))}


@lru_cache(maxsize=256)
def _places(tar: Path, _modified: int) -> dict[str, _Place]:
    """Return the place of the audio of each cut; the time of modification makes a changed file be read again."""
    with tarfile.open(tar, "r:") as file:
        return {name: _Place(info.offset_data, info.size) for name, info in _audio_members(file)}


def _audio_members(file: tarfile.TarFile) -> Iterator[_AudioMember]:
    for info in file:
        name, _, suffix = info.name.rpartition(".")
        if suffix not in ("json", "nodata"):  # the recording as JSON, which the cut has too
            yield _AudioMember(name, info)


def _member_name(cut: Cut) -> str:
    return str(cut.recording.sources[0].source.partition(_TAR)[2])


def _with_data(cut: Cut, data: bytes) -> Cut:
    source = AudioSource(type="memory", channels=cut.recording.channel_ids, source=data)
    copy: Cut = fastcopy(cut, recording=replace(cut.recording, sources=[source]))
    return copy
