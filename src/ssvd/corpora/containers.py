"""Audio files that hold other samples than libsndfile finds in them: truncated, joined, or with a lying header."""

import re
from collections.abc import Callable, Iterator, Mapping
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Literal, NamedTuple

import soundfile

from ssvd.corpora.mp3 import Mp3

_CUT_OFF = "is cut off: it ends before the length that its header gives"
_GOES_ON = "goes on after the length that its header gives; convert it by a program that ignores that length"
_JOINED = "holds several recordings, one after another; convert them to one, or cut them apart"
_INCOMPLETE = "lacks a part in its middle; give the original, or convert what is left"

# RIFF sizes from here on mean "length unknown": programs that write to a pipe cannot go back to fill it in.
_UNKNOWN_SIZE = 0x7F000000
# Some programs miscount the header or a padding byte.
_SLACK = 64
_IGNORED = 0.1  # seconds of samples that may follow the end
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_STREAM_START, _STREAM_END = 2, 4  # flags of the pages of Ogg


class Found(NamedTuple):
    """The samples that libsndfile finds, and their sampling rate in Hz."""

    samples: int
    sampling_rate: int


def fault(path: Path, container: str, found: Found) -> str | None:
    """Return why the samples that libsndfile finds are not those of the file, as "is cut off: ..."; None if they are.

    Args:
        path: The file, which is not empty.
        container: Its format, by the name that soundfile gives it.
        found: What libsndfile finds.
    """
    if container not in _FAULTS:
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_COPY) as data:
        return _FAULTS[container](data, found)


class _Chunk(NamedTuple):
    """A chunk: its name, the bytes that it states, and where the next one starts."""

    name: bytes
    size: int
    end: int


def _of_chunks(data: mmap, found: Found) -> str | None:
    """Look at what follows the chunk of samples in a WAV or AIFF file, where libsndfile stops."""
    order: Literal["little", "big"] = "big" if data[:4] in (b"FORM", b"RIFX") else "little"
    if len(data) + _SLACK < int.from_bytes(data[4:8], order) < _UNKNOWN_SIZE:
        return _CUT_OFF
    chunks = _chunks(data, order)
    samples = next((chunk for chunk in chunks if chunk.name in (b"data", b"SSND")), None)
    if samples is None or samples.size == 0xFFFFFFFF:  # libsndfile reads to the end of the file
        return None
    end = samples.end
    for chunk in chunks:
        if chunk.name in (samples.name, data[:4]):
            return _JOINED
        if chunk.end <= len(data):
            end = chunk.end
    ignored = _IGNORED * found.sampling_rate * samples.size / found.samples if found.samples else _SLACK
    return _GOES_ON if len(data[end:].strip(b"\0")) > ignored else None


def _chunks(data: mmap, order: Literal["little", "big"]) -> Iterator[_Chunk]:
    """Yield the chunks after the first 12 bytes, as long as they look like chunks."""
    position = 12
    while position + 8 <= len(data):
        name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], order)
        if not re.fullmatch(rb"[ -~]{4}", name):
            return
        position += 8 + size
        position += size & 1 and data[position : position + 1] == b"\0"  # padding, which some programs leave out
        yield _Chunk(name, size, position)


def _of_flac(data: mmap, found: Found) -> str | None:
    start = _FLAC_START.search(data)
    if start is None:
        return None
    if _FLAC_START.search(data, start.end()):
        return _JOINED
    place = slice(start.start() + 18, start.start() + 26)  # rate, channels, bits, and in the last 36 bits the samples
    stated = int.from_bytes(data[place], "big")
    if stated % 2**36 == 0:  # not known to the program that wrote it
        return None
    if not _has_sample(data, found.samples - 1):
        return _CUT_OFF
    data[place] = (stated + 1).to_bytes(8, "big")
    return _GOES_ON if _has_sample(data, found.samples) else None


def _has_sample(data: mmap, index: int) -> bool:
    data.seek(0)
    try:
        with soundfile.SoundFile(data) as file:
            file.seek(index)
            return len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


class _Page(NamedTuple):
    """A page of Ogg (RFC 3533): its flags, stream and number, and where it ends, beyond the file if it is cut off."""

    flags: int
    stream: bytes
    number: int
    end: int


def _of_ogg(data: mmap, found: Found) -> str | None:
    following: dict[bytes, int] = {}  # number of the next page of each stream
    page, began = None, False
    for page in _pages(data):
        starts = bool(page.flags & _STREAM_START)
        if starts and began:
            return _JOINED
        if not starts and page.number != following.get(page.stream):
            return _INCOMPLETE
        following[page.stream] = page.number + 1
        began = began or not starts
    if page is None or page.end > len(data) or not page.flags & _STREAM_END:
        return _CUT_OFF
    return None


def _pages(data: mmap) -> Iterator[_Page]:
    position = 0
    while (position := data.find(b"OggS", position)) >= 0 and position + 27 <= len(data):
        header = data[position : position + 27]
        sizes = data[position + 27 : position + 27 + header[26]]
        position += 27 + header[26] + sum(sizes)
        yield _Page(header[5], header[14:18], int.from_bytes(header[18:22], "little"), position)


def _of_mp3(data: mmap, found: Found) -> str | None:
    mp3 = Mp3.parse(data)
    if mp3 is None:
        return None
    if mp3.has_others:
        return _JOINED
    return _CUT_OFF if mp3.stated is not None and mp3.stated > mp3.samples + mp3.tolerance else None


_FAULTS: Mapping[str, Callable[[mmap, Found], str | None]] = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64", "AIFF"), _of_chunks),
    "FLAC": _of_flac,
    "OGG": _of_ogg,
    "MP3": _of_mp3,
}
