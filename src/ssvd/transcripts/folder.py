"""A folder of transcripts, a file for each recording, which can be continued after an interruption."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import yaml

from ssvd.documents import read_yaml
from ssvd.errors import UserError, shortened
from ssvd.files import is_new, write_whole
from ssvd.recognisers.words import Segment
from ssvd.transcripts.formats import FORMATS, SUFFIXES

SETTINGS = "settings.yaml"  # no format ends in this way
# By which recordings are told from other files of a folder; a headerless one cannot be read.
_AUDIO = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {".aif", ".oga", ".opus"}


def find_recordings(paths: Sequence[Path]) -> dict[Path, Path]:
    """Return the audio files of these files and folders, each with its path below the folder, or its name.

    Raises:
        UserError: A folder holds no audio file.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = Path(path.name)
            continue
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _AUDIO and file.is_file())
        if not files:
            raise UserError(f"{path} holds no audio file.")
        found |= {file: file.relative_to(path) for file in files}
    return found


class TranscriptFolder:
    """A folder of transcripts. A file that is there already was written whole, and is not made again.

    Args:
        out: The folder: new, empty, or of earlier work with the same settings.
        format: Key of `FORMATS`.
        recordings: What `find_recordings` found.
        settings: What the texts depend on, ready for JSON.

    Attributes:
        missing: Recordings without a transcript, in their order.

    Raises:
        UserError: Two recordings have the same name, or the folder holds something else.
    """

    def __init__(self, out: Path, format: str, recordings: Mapping[Path, Path], settings: Mapping[str, Any]) -> None:
        self._out, self._format = out, format
        self._targets = {file: out / name.with_suffix(SUFFIXES[format]) for file, name in recordings.items()}
        owners: dict[Path, Path] = {}
        for file, target in self._targets.items():
            if target in owners:
                raise UserError(f"{owners[target]} and {file} would both be written to {target}: rename one.")
            owners[target] = file
        _check_settings(out, {"format": format} | dict(settings))
        self.missing = [file for file, target in self._targets.items() if not target.is_file()]

    def write(self, recording: Path, segments: Sequence[Segment]) -> None:
        """Write the transcript of a recording, whole or not at all."""
        target = self._targets[recording]
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, FORMATS[self._format](recording, segments))

    def in_words(self) -> str:
        """Return what the folder holds."""
        there = sum(target.is_file() for target in self._targets.values())
        before = len(self._targets) - len(self.missing)
        return f"{self._out} holds {there} transcripts" + (f", {before} of them from before." if before else ".")


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings to a new folder, and refuse one of other settings."""
    file = out / SETTINGS
    if not file.is_file():
        if not is_new(out):
            raise UserError(f"{out} is not empty and holds no transcripts: give another folder.")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, yaml.safe_dump(settings, sort_keys=False))
        return
    try:
        former = dict(read_yaml(file))
    except (ValueError, TypeError):
        raise UserError(f"{file} cannot be read: give another folder.") from None
    for name, value in settings.items():
        if former.get(name) != value:
            raise UserError(
                f"{out} holds transcripts with other settings ({name} was {shortened(former.get(name))}): give another "
                "folder."
            )
