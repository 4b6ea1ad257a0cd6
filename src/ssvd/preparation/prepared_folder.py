"""The folder of a prepared corpus, which states what was done.

train.jsonl.gz ...     the utterances of each part (Lhotse cuts)
ids/train.txt ...      their ids, to take the same utterances again
left_out.jsonl         every utterance that is in no part, and why
prepared.json          options, rules, normaliser, sizes and versions; written last
prepared.sha256        checksums of these files: others are never replaced or removed
hypotheses.jsonl       what the recogniser of a filter decoded
headers.partial.jsonl  until the preparation is finished: the headers of audio that were read
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from lhotse import CutSet
from typing_extensions import TypedDict  # comes with pydantic, which does not read that of Python 3.11

from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import common_language
from ssvd.corpora.sources import files_of
from ssvd.corpora.splits import text_overlap
from ssvd.corpora.utterances import Skipped
from ssvd.documents import checked, read_json
from ssvd.errors import UserError, shortened
from ssvd.files import (
    check_not_input,
    check_own,
    exclusive,
    replaced_files,
    state_of,
    write_json,
    write_json_lines,
    write_whole,
)
from ssvd.preparation.utterances_by_part import UtterancesByPart, headers_file
from ssvd.scoring import usual_normaliser
from ssvd_options.preparation import PARTS

_PACKAGES = ("ssvd", "lhotse", "num2words", "whisper-normalizer")
_FILES = (
    *(f"{part}.jsonl.gz" for part in PARTS),
    *(f"ids/{part}.txt" for part in PARTS),
    "left_out.jsonl",
    "prepared.json",
)
_CHECKSUMS = "prepared.sha256"
_LOCK = "prepare.lock"


class PartSize(TypedDict):
    """What a part holds; the shares and numbers in common with train are None where there is nothing to compare."""

    utterances: int
    speakers: int
    hours: float
    texts_also_in_train: float | None
    speakers_also_in_train: int | None


class Record(TypedDict):
    """What prepared.json holds.

    Attributes:
        corpus: The kind of corpus.
        options: The options, with the source and the state of its files.
        rules: The rules for utterances, in words; may be empty.
        language: The language that all utterances state, or None.
        normaliser: The usual normaliser of that language.
        parts: What each part holds.
        paper: The number of utterances of each part in the paper, where it used the corpus.
        left_out: The number of utterances that each rule left out; "bad" for those that cannot be used.
        versions: The versions of Python and of packages.
    """

    corpus: str
    options: dict[str, Any]
    rules: str
    language: str | None
    normaliser: str
    parts: dict[str, PartSize]
    paper: dict[str, int] | None
    left_out: dict[str, int]
    versions: dict[str, str]


@dataclass(frozen=True)
class Prepared:
    """The outcome of a preparation.

    Attributes:
        record: What prepared.json holds.
        left_out: The utterances that are in no part; empty if nothing was done.
        already: Whether nothing was done, because the folder had been prepared with these options before.
        notes: The assumptions that were made in reading, as sentences.
    """

    record: Record
    left_out: list[Skipped]
    already: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """What is prepared, and what decides the outcome.

    Attributes:
        corpus: The kind of corpus.
        source: The folder, file or name that is read.
        options: The options that decide the outcome, as they stand in prepared.json.
        rules: The rules for utterances, in words; may be empty.
        paper: The number of utterances of each part in the paper, where it used the corpus.
        lists: The files that list utterances or recordings.
    """

    corpus: str
    source: str | Path
    options: Mapping[str, Any]
    rules: str = ""
    paper: Mapping[str, int] | None = None
    lists: Sequence[Path] = ()

    def write(self, out: Path, build: Callable[[], UtterancesByPart]) -> Prepared:
        """Write the utterances to a folder, unless it holds them already.

        Args:
            out: The folder.
            build: Reads the utterances; called if they are needed.

        Raises:
            UserError: The folder was prepared from something else or with other options, holds a file that would be
                overwritten though it is the source or somebody else's, or no utterance is left.
        """
        options = self._recorded_options()
        earlier = self._earlier_record(out, options)
        if earlier is None:
            with exclusive(out, _LOCK):
                earlier = self._earlier_record(out, options)  # of another process, which has just finished
                if earlier is None:
                    return self._write(out, options, build)
        return Prepared(earlier, [], already=True)

    def _write(self, out: Path, options: dict[str, Any], build: Callable[[], UtterancesByPart]) -> Prepared:
        check_not_input([out / name for name in _FILES], chain(files_of(self.source), self.lists))
        check_own(out, _FILES, _CHECKSUMS)
        utterances = build()
        counts = _count_rules(utterances.left_out)
        parts = {part: utterances.parts[part] for part in PARTS if utterances.parts.get(part)}
        if not parts:
            reasons = ", ".join(f"{count:,} {rule}" for rule, count in counts.items())
            raise UserError(f"No utterance of {self.source} is left; left out are {reasons}.")
        language = common_language(CutSet.from_cuts(cut for cuts in parts.values() for cut in cuts))
        record = Record(
            corpus=self.corpus,
            options=options,
            rules=self.rules,
            language=language,
            normaliser=usual_normaliser(language),
            parts=_sizes(parts),
            paper=None if self.paper is None else dict(self.paper),
            left_out=counts,
            versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        )
        with replaced_files(out, _FILES, _CHECKSUMS) as folder:
            (folder / "ids").mkdir()
            for part, cuts in parts.items():
                write_cuts(cuts, folder / f"{part}.jsonl.gz")
                write_whole(folder / "ids" / f"{part}.txt", "".join(f"{cut.id}\n" for cut in cuts))
            write_json_lines(folder / "left_out.jsonl", map(asdict, utterances.left_out))
            write_json(folder / "prepared.json", record)
        headers_file(out).unlink(missing_ok=True)
        return Prepared(record, utterances.left_out, already=False)

    def _recorded_options(self) -> dict[str, Any]:
        path = Path(self.source)
        exists = path.exists()
        source = {"source": str(path.absolute()) if exists else str(self.source)}
        return source | dict(self.options) | {"state": state_of(path) if exists else None}

    def _earlier_record(self, out: Path, options: Mapping[str, Any]) -> Record | None:
        """Return the record of a folder that already holds all parts; None if there is none."""
        path = out / "prepared.json"
        if not path.exists():
            return None
        try:
            record = checked(Record, read_json(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); give another folder, or remove that file.") from error
        before = record["options"] | {"corpus": record["corpus"]}
        now = json.loads(json.dumps({**options, "corpus": self.corpus}))
        changed = [name for name in now | before if now.get(name) != before.get(name)]
        if changed == ["state"]:
            raise UserError(
                f"{options['source']} has changed since {out} was prepared from it; give another folder, or remove "
                f"{path}."
            )
        if changed:
            was = ", ".join(f"{name} was {shortened(before.get(name))}" for name in changed if name != "state")
            raise UserError(
                f"{out} was prepared with other options ({was}); give those, or another folder, or remove {path}."
            )
        return record if all((out / f"{part}.jsonl.gz").is_file() for part in record["parts"]) else None


def _sizes(parts: Mapping[str, CutSet]) -> dict[str, PartSize]:
    texts = text_overlap(parts) if "train" in parts else {}
    speakers = {part: {cut.supervisions[0].speaker for cut in cuts} - {None} for part, cuts in parts.items()}
    return {
        part: PartSize(
            utterances=len(cuts),
            speakers=len(speakers[part]),
            hours=round(sum(cut.duration for cut in cuts) / 3600, 4),
            texts_also_in_train=texts.get(part),
            speakers_also_in_train=None if part == "train" else len(speakers[part] & speakers.get("train", set())),
        )
        for part, cuts in parts.items()
    }


def _count_rules(left_out: Sequence[Skipped]) -> dict[str, int]:
    """Count the utterances that each rule left out, the most frequent rule first."""
    return dict(Counter(item.rule or "bad" for item in left_out).most_common())
