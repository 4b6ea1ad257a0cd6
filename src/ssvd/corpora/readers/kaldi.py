"""Kaldi and ESPnet data folders.

Lhotse reads these folders too. This reader keeps every `spk2*` and `utt2*` file, takes the sampling rate from the
audio, runs no commands, and reports errors by file and line.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ssvd.corpora.audio import is_file
from ssvd.corpora.readers.text_files import is_utf8, read_lines
from ssvd.corpora.utterances import Skipped, Utterance, number_or_text

# Speakers are read separately; lengths come from the audio.
_NO_FIELDS = {"spk2utt", "utt2spk", "utt2dur", "utt2num_frames", "utt2num_samples"}


def read_kaldi(folder: Path) -> list[Utterance | Skipped]:
    """Read the utterances of a folder with `text` and `wav.scp`, in the order of `text`.

    `utt2spk` and `segments` are used if present. Each other file `spk2X` or `utt2X` gives a field X, for which `utt2X`
    takes precedence; `lang` becomes `language`. Relative paths in `wav.scp` are looked for in the folder, then in its
    parent, then in the working directory. Shell commands in `wav.scp` are refused.
    """
    data = _Folder(folder)
    listing = data.segments if data.segments is not None else data.audio
    untranscribed = [name for name in listing.lines if name not in data.text.lines]
    return [data.utterance(name) for name in data.text.lines] + [
        Skipped(listing.where(name), f"{name} is not in {data.text.path}") for name in untranscribed
    ]


class _Segment(NamedTuple):
    """A segment of a recording, in seconds; without a duration, the rest of the recording."""

    recording: str
    start: float
    duration: float | None


class _Table:
    """A file with a name and a value in each line."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[str, tuple[int, str]] = {}
        self.faults: dict[str, Skipped] = {}
        for number, line in read_lines(path):
            name, *rest = re.split(r"[ \t]+", line.strip(" \t"), maxsplit=1)
            if not is_utf8(line):
                self.faults[name] = Skipped(f"{path}:{number}", "the line is not UTF-8")
            elif name in self.lines:
                self.faults[name] = Skipped(f"{path}:{number}", f"{name} is already in line {self.lines[name][0]}")
            self.lines.setdefault(name, (number, rest[0].strip() if rest else ""))

    def where(self, name: str) -> str:
        return f"{self.path}:{self.lines[name][0]}"

    def value(self, name: str) -> str:
        """Return the value of a name.

        Raises:
            _FaultError: The line is bad.
            KeyError: There is no such line.
        """
        if name in self.faults:
            raise _FaultError(self.faults[name])
        return self.lines[name][1]


class _FaultError(Exception):
    def __init__(self, fault: Skipped):
        super().__init__(fault)
        self.fault = fault


class _Folder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.text = _Table(folder / "text")
        self.audio = _Table(folder / "wav.scp")
        self.segments = _Table(folder / "segments") if (folder / "segments").is_file() else None
        self.speakers = _Table(folder / "utt2spk") if (folder / "utt2spk").is_file() else None
        self.by_speaker = self._fields("spk2")
        self.by_utterance = self._fields("utt2")

    def _fields(self, prefix: str) -> dict[str, _Table]:
        tables = {}
        for path in sorted(self.folder.glob(f"{prefix}*")):
            field = path.name.removeprefix(prefix)
            if path.name not in _NO_FIELDS and re.fullmatch(r"\w+", field) and path.is_file():  # not spk2age.bak
                tables["language" if field == "lang" else field] = _Table(path)
        return tables

    def utterance(self, name: str) -> Utterance | Skipped:
        try:
            return self._utterance(name)
        except _FaultError as error:
            return replace(error.fault, id=name)

    def _utterance(self, name: str) -> Utterance:
        text = self.text.value(name)
        recording, start, duration = self._segment(name)
        source = self._required(self.audio, recording, name)
        if source.startswith("|") or source.endswith("|"):
            reason = f"{recording} is a shell command, and those are never run; store its output and list that file"
            raise _FaultError(Skipped(self.audio.where(recording), reason))
        speaker = None if self.speakers is None else self._required(self.speakers, name, name)
        fields = {field: table.value(speaker) for field, table in self.by_speaker.items() if speaker in table.lines}
        fields |= {field: table.value(name) for field, table in self.by_utterance.items() if name in table.lines}
        return Utterance(
            where=self.text.where(name),
            id=name,
            path=self._find(source),
            text=text,
            recording_id=recording,
            start=start,
            duration=duration,
            speaker=speaker,
            language=fields.pop("language", None),
            gender=fields.pop("gender", None),
            fields={field: number_or_text(value) for field, value in fields.items()},
        )

    def _segment(self, name: str) -> _Segment:
        if self.segments is None:
            return _Segment(name, 0.0, None)
        line = self._required(self.segments, name, name)
        try:
            recording, start, end = line.split()
            duration = None if float(end) == -1 else float(end) - float(start)  # -1 means the end of the recording
            return _Segment(recording, float(start), duration)
        except ValueError:
            reason = f"the line of {name} must be: utterance recording start end"
            raise _FaultError(Skipped(self.segments.where(name), reason)) from None

    def _required(self, table: _Table, name: str, utterance: str) -> str:
        if name not in table.lines:
            raise _FaultError(Skipped(self.text.where(utterance), f"{name} is not in {table.path}"))
        return table.value(name)

    def _find(self, source: str) -> Path:
        candidates = [base / source for base in (self.folder.absolute(), self.folder.absolute().parent, Path.cwd())]
        return next((path for path in candidates if is_file(path)), candidates[0])
