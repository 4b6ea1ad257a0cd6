"""Cuts in the format of Lhotse: JSON Lines, gzipped or not, and Lhotse Shar."""

import codecs
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lhotse import CutSet, MonoCut, MultiCut, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.augmentation import ReverbWithImpulseResponse
from lhotse.serialization import deserialize_item, save_to_jsonl
from lhotse.utils import fastcopy

from ssvd.corpora.audio import is_file
from ssvd.corpora.cut import Cut
from ssvd.corpora.lhotse_fields import CutFields
from ssvd.corpora.readers.shards import shard_of, shard_source
from ssvd.corpora.readers.tables import JsonLines, JsonObject, Line, json_object
from ssvd.corpora.utterances import ROUNDING, LocatedCut, Skipped, holds_samples
from ssvd.documents import checked
from ssvd.errors import UserError
from ssvd.files import whole_file


def is_manifest(lines: JsonLines) -> bool:
    """Return whether lines are cuts of Lhotse, judging by the first JSON object; a table has path and text."""
    first = lines.first() or {}
    return not {"path", "text"} <= first.keys() and not {"supervisions", "recording", "sources"}.isdisjoint(first)


def read_manifest(folder: Path, lines: Iterable[Line]) -> Iterator[LocatedCut | Skipped]:
    """Yield a cut for each supervision of each cut.

    A cut with several supervisions is split into one cut each. Audio files must exist, but their headers are not read
    again. Relative audio paths are looked for in the working directory, as Lhotse does, then in `folder`.

    Args:
        folder: The folder of the manifest.
        lines: The JSON of a cut each.
    """
    for where, line in lines:
        row = json_object(line)
        try:
            if isinstance(row, str):
                raise ValueError(row)
            cut = _cut(folder, row)
            utterances = [_utterance(where, cut, segment) for segment in cut.supervisions]
        except ValueError as error:
            yield Skipped(where, str(error))
        except Exception as error:  # Lhotse trusts its files: any other error means a damaged one
            yield Skipped(where, f"the line is not a cut of Lhotse ({error!r})")
        else:
            yield from utterances


def _cut(folder: Path, row: JsonObject) -> Cut:
    if row.get("type") in ("MonoCut", "MultiCut", "Cut"):
        try:
            checked(CutFields, row)
        except ValueError as error:
            raise ValueError(f"the line is not a cut of Lhotse ({error})") from None
    cut = deserialize_item(row)
    if not isinstance(cut, MonoCut | MultiCut):
        raise ValueError(
            f"the line is a {type(cut).__name__}, not a cut of one recording (lhotse cut simple makes cuts)"
        )
    if not cut.has_recording or not cut.recording.sources or not cut.supervisions:
        raise ValueError(f"cut {cut.id} has no {'recording' if cut.supervisions else 'supervision'}")
    sources = [_located(source, folder, cut.id) for source in cut.recording.sources]
    if any(isinstance(transform, ReverbWithImpulseResponse) for transform in cut.recording.transforms or []):
        raise ValueError(
            f"cut {cut.id} brings an impulse response, which can be a command; augment the audio in training instead"
        )
    if (
        not holds_samples(cut.duration, cut.recording.sampling_rate)
        or cut.start < 0
        or cut.end > cut.recording.duration + ROUNDING
    ):
        recording = f"0 to {cut.recording.duration:g} s"
        raise ValueError(
            f"cut {cut.id}, {cut.start:g} to {cut.end:g} s, is empty or outside its recording, {recording}"
        )
    located: Cut = fastcopy(cut, recording=replace(cut.recording, sources=sources))
    return located


def _utterance(where: str, cut: Cut, segment: SupervisionSegment) -> LocatedCut | Skipped:
    """Return the part of a cut that a supervision covers; if it has no other, under the id of the cut."""
    start, end = max(0.0, segment.start), min(segment.end, cut.duration)
    alone = len(cut.supervisions) == 1  # then it may be longer than the cut, as when Lhotse truncates cuts
    inside = alone or (segment.start >= -ROUNDING and segment.end <= cut.duration + ROUNDING)
    if not (holds_samples(end - start, cut.recording.sampling_rate) and inside):
        reason = (
            f"supervision {segment.id}, {segment.start:g} to {segment.end:g} s, is empty or outside its cut {cut.id}, "
            f"0 to {cut.duration:g} s"
        )
        return Skipped(where, reason, segment.id)
    if alone and start <= ROUNDING and end >= cut.duration - ROUNDING and segment.channel == cut.channel:
        return LocatedCut(where, cut)
    clipped = fastcopy(segment, start=start, duration=round(end - start, 8))
    (trimmed,) = fastcopy(cut, supervisions=[clipped]).trim_to_supervisions(keep_overlapping=False)
    return LocatedCut(where, trimmed.with_id(cut.id) if alone else trimmed)


def _located(source: AudioSource, folder: Path, cut_id: str) -> AudioSource:
    tar = shard_of(source)
    if tar is not None:
        if not is_file(tar):
            raise ValueError(f"there is no shard {tar}")
        return source
    if source.type != "file":  # Lhotse would run a "command" in a shell
        raise ValueError(f"the audio of cut {cut_id} is a {source.type}; only files are read")
    path = Path(source.source)
    for candidate in [path] if path.is_absolute() else [Path.cwd() / path, folder.absolute() / path]:
        if is_file(candidate):
            return replace(source, source=str(candidate))
    raise ValueError(f"there is no audio file {source.source}")


class SharRows:
    """The cuts of Lhotse Shar as lines of JSON, in which the source of a recording is its place in a shard.

    Raises:
        UserError: A shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._files: list[tuple[JsonLines, Path]] = []
        for cuts in sorted(folder.glob("cuts.*.jsonl*")):
            tar = folder.absolute() / f"recording.{cuts.name.split('.')[1]}.tar"
            if not tar.is_file():
                raise UserError(f"{tar} is missing, which holds the audio of {cuts}; restore it.")
            self._files.append((JsonLines(cuts), tar))

    def __len__(self) -> int:
        return sum(len(lines) for lines, _ in self._files)

    def __iter__(self) -> Iterator[Line]:
        for lines, tar in self._files:
            for where, line in lines:
                row = json_object(line)
                if isinstance(row, dict) and isinstance(recording := row.get("recording"), dict):
                    place = {"type": "shar", "source": shard_source(tar, row.get("id", ""))}
                    recording["sources"] = [{**place, "channels": recording.get("channel_ids", [0])}]
                    line = json.dumps(row)
                yield Line(where, line)


def is_shar(folder: Path) -> bool:
    """Return whether a folder holds Lhotse Shar."""
    return any(folder.glob("cuts.*.jsonl*")) and any(folder.glob("recording.*.tar"))


def write_cuts(cuts: CutSet, path: Path | str) -> None:
    """Write cuts atomically as Lhotse JSONL, gzipped if the name ends in .gz, with absolute audio paths.

    The same cuts give the same bytes. Read them with `read_corpus`, or with Lhotse.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as raw:
        # By default, a gzip file contains its name and the time.
        file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with codecs.getwriter("utf-8")(file) as text:
            save_to_jsonl((_with_absolute_paths(cut).to_dict() for cut in cuts), text)


def _with_absolute_paths(cut: Cut) -> Cut:
    sources = [
        replace(source, source=str(Path(source.source).absolute())) if source.type == "file" else source
        for source in cut.recording.sources
    ]
    copy: Cut = fastcopy(cut, recording=replace(cut.recording, sources=sources))
    return copy
