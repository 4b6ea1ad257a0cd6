"""Audio in shards: the tar files of Lhotse Shar, each with the audio of many utterances.

A shard is read whole from its start to its end (`read_shard`), which is what object stores and disks in a network are
fast at, or a single utterance is taken out of it (`with_audio`).
"""

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lhotse.audio import AudioSource

_TAR = ".tar:"  # in the source of a recording, between the shard and the id of the cut that it was written for


def shard_source(tar: Path, cut_id: str) -> str:
    """The source of a recording in a shard."""
    return f"{str(tar).removesuffix('.tar')}{_TAR}{cut_id}"


def shard_of(source: AudioSource) -> Path | None:
    """The shard in which the audio of a recording lies; None where it is a file of its own, or in memory."""
    return Path(source.source.partition(_TAR)[0] + ".tar") if source.type == "shar" else None


def with_audio(cut: Any) -> Any:
    """The cut with its audio in memory, as its shard has it; itself where its audio is not in a shard.

    Raises:
        OSError, tarfile.TarError, KeyError: The shard cannot be read, or lacks the audio.
    """
    tar = shard_of(cut.recording.sources[0])
    if tar is None:
        return cut
    start, size = _members(tar, tar.stat().st_mtime_ns)[_member(cut)]
    with tar.open("rb") as file:
        file.seek(start)
        return _holding(cut, file.read(size))


def with_audio_of(shards: dict[Path, dict[str, bytes]], cut: Any) -> Any:
    """The same, out of shards that were read whole."""
    tar = shard_of(cut.recording.sources[0])
    return cut if tar is None else _holding(cut, shards[tar][_member(cut)])


def read_shard(tar: Path) -> dict[str, bytes]:
    """The audio of all utterances of a shard by the id of their cut; raises OSError or tarfile.TarError."""
    with tarfile.open(tar, "r|") as file:  # which never goes back
        return {stem: data.read() for stem, member in _audio(file) if (data := file.extractfile(member))}


@lru_cache(maxsize=256)
def _members(tar: Path, _: int) -> dict[str, tuple[int, int]]:
    """Where the audio of each cut begins, and its bytes."""
    with tarfile.open(tar, "r:") as file:
        return {stem: (member.offset_data, member.size) for stem, member in _audio(file)}


def _audio(file: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in file:
        stem, _, suffix = member.name.rpartition(".")
        if suffix not in ("json", "nodata"):  # the recording as JSON, which the cut has too
            yield stem, member


def _member(cut: Any) -> str:
    return str(cut.recording.sources[0].source.partition(_TAR)[2])


def _holding(cut: Any, data: bytes) -> Any:
    source = AudioSource(type="memory", channels=cut.recording.channel_ids, source=data)
    return replace(cut, recording=replace(cut.recording, sources=[source]))
