"""One compressed file for many small ones: the same files always give the same bytes."""

import io
import lzma
import tarfile
from collections.abc import Mapping


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a tar.xz archive of files, sorted by name, without owners and times."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of a tar.xz archive by name, without writing anything to disk.

    Raises:
        ValueError: The archive is damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as archive:
            files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            return {name: file.read() for name, file in files.items() if file is not None}
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"the archive is damaged ({type(error).__name__})") from error
