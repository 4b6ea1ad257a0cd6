"""The frames of an MP3 file, which are its only reliable measure of length (ISO/IEC 11172-3 and 13818-3, Layer III).

A stream has no length. Encoders put one into a first frame without audio, after the mark "Xing", "Info" or "VBRI". It
is missing in what was cut or recorded from a stream, and wrong in what was joined.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import NamedTuple

Data = bytes | mmap
"""The content of a file, in memory or mapped."""

_SYNC = 0x7FF << 21
_KILOBITS = {  # by the index in the header
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}
_HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the version in the header
_WITHOUT_COUNT = {b"VBRI": 14, b"Xing": 8, b"Info": 8}  # bytes from the mark to the count of frames
_FEW = 10  # frames, a quarter of a second: what looks like so many others may be a picture in a tag


class _Kind(NamedTuple):
    """What frames of one recording have in common."""

    is_mpeg1: bool
    sampling_rate: int
    is_mono: bool

    @property
    def samples(self) -> int:
        """Number of samples of a frame in each channel."""
        return 1152 if self.is_mpeg1 else 576


class _Frame(NamedTuple):
    """A frame: its place in the file, in bytes, and its kind."""

    start: int
    end: int
    kind: _Kind


@dataclass(frozen=True)
class Mp3:
    """What the frames of an MP3 file hold.

    Attributes:
        samples: Number of samples of each channel, silence that the encoder added included.
        samples_of_frame: Number of samples of a frame.
        stated: Number of samples that the first frame states; None if it states none.
        has_others: Whether there are also frames of another sampling rate or number of channels.
    """

    samples: int
    samples_of_frame: int
    stated: int | None
    has_others: bool

    @property
    def tolerance(self) -> int:
        """Number of samples that encoders and decoders add, or leave out, at the start and at the end."""
        return 4 * self.samples_of_frame

    @classmethod
    def parse(cls, data: Data) -> "Mp3 | None":
        """Count the frames of a file; None if none of them has audio, as with a free bit rate."""
        first = next(_frames(data), None)
        if first is None:
            return None
        kinds = Counter(frame.kind for frame in _frames(data) if _stated(data, frame) is None)
        if not kinds[first.kind]:
            return None
        stated = _stated(data, first)
        return cls(
            samples=kinds[first.kind] * first.kind.samples,
            samples_of_frame=first.kind.samples,
            stated=stated * first.kind.samples if stated else None,
            has_others=any(count > _FEW for kind, count in kinds.items() if kind != first.kind),
        )


def with_count(data: Data) -> bytes:
    """Return the audio of an MP3 file after a first frame that states its length."""
    kind = next(_frames(data)).kind
    frames = [
        data[frame.start : frame.end] for frame in _frames(data) if frame.kind == kind and _stated(data, frame) is None
    ]
    # The highest bit rate, so that the tag fits; no checksum and no padding.
    header = (int.from_bytes(frames[0][:4], "big") | 1 << 16) & ~(0xF << 12 | 1 << 9) | 14 << 12
    tag = header.to_bytes(4, "big") + bytes(_side_information(kind))
    tag += b"Xing" + (1).to_bytes(4, "big") + len(frames).to_bytes(4, "big")
    return tag.ljust(_size(header) or 0, b"\0") + b"".join(frames)


def _frames(data: Data) -> Iterator[_Frame]:
    """Yield the whole frames; what is between them, such as tags, is passed over."""
    position = _after_tag(data, 0)
    in_step = False
    while position + 4 <= len(data):
        header = int.from_bytes(data[position : position + 4], "big")
        size = _size(header)
        end = position + (size or 0)
        # Where the frame before does not end, any two bytes may look like the start of one.
        if size and end <= len(data) and (in_step or _size(int.from_bytes(data[end : end + 4], "big"))):
            yield _Frame(position, end, _kind(header))
            position, in_step = end, True
            continue
        in_step = False
        after_tag = _after_tag(data, position)
        position = after_tag if after_tag > position else data.find(b"\xff", position + 1)
        if position < 0:
            return


def _after_tag(data: Data, position: int) -> int:
    """Return where an ID3v2 tag ends that starts here."""
    if data[position : position + 3] != b"ID3":
        return position
    size = 0
    for byte in data[position + 6 : position + 10]:
        size = size << 7 | byte & 0x7F
    return position + 10 + size


def _size(header: int) -> int | None:
    """Return the bytes of the frame with this header; None if it is not one of Layer III."""
    version, layer, rate = header >> 19 & 3, header >> 17 & 3, header >> 10 & 3
    kilobits = header >> 12 & 15
    if header & _SYNC != _SYNC or version == 1 or layer != 1 or rate == 3 or kilobits in (0, 15):
        return None
    bits = 1000 * _KILOBITS[version == 3][kilobits]
    return (144 if version == 3 else 72) * bits // _HERTZ[version][rate] + (header >> 9 & 1)


def _kind(header: int) -> _Kind:
    version = header >> 19 & 3
    return _Kind(version == 3, _HERTZ[version][header >> 10 & 3], header >> 6 & 3 == 3)


def _side_information(kind: _Kind) -> int:
    """Return the bytes between the header of a frame and the marks "Xing" and "Info"."""
    if kind.is_mpeg1:
        return 17 if kind.is_mono else 32
    return 9 if kind.is_mono else 17


def _stated(data: Data, frame: _Frame) -> int | None:
    """Return the number of frames that a frame without audio states, 0 for no number; None for one with audio."""
    start = frame.start + 4
    for place in (start + _side_information(frame.kind), start + 32):  # VBRI always has the latter
        mark = data[place : place + 4]
        if mark in _WITHOUT_COUNT and place + 18 <= frame.end:
            has_count = mark == b"VBRI" or data[place + 7] & 1
            place += _WITHOUT_COUNT[mark]
            return int.from_bytes(data[place : place + 4], "big") if has_count else 0
    return None
