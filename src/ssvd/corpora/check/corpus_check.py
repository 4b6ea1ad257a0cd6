"""Checks of corpora of any size: what is wrong with each utterance, and what utterances have in common.

Rows are read one after another and examined in several processes. The findings are written to an SQLite file, a chunk
of rows at a time, so that memory use stays small and a stopped check can continue. What only shows once all utterances
are known (duplicates, speakers in two corpora, unusual speech rates) is queried from that file at the end.
"""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ssvd.corpora.check.journal import CheckJournal
from ssvd.corpora.check.kinds import KINDS, Finding
from ssvd.corpora.check.limits import DEFAULT_LIMITS, Limits
from ssvd.corpora.check.workers import Chunk, LoadFault, examine_chunks
from ssvd.corpora.corpus import open_corpus
from ssvd.errors import StoppedError, UserError
from ssvd.files import state_of, write_json, write_json_lines

_CHUNK_ROWS = 64
_FINDINGS, _SUMMARY = "findings.jsonl", "summary.json"


@dataclass(frozen=True)
class CheckedCorpus:
    """One corpus of a check: what it holds, and its number of utterances at each sampling rate in Hz."""

    name: str
    rows: int
    utterances: int
    hours: float
    speakers: int
    sampling_rates: dict[int, int]


class Check:
    """A check of corpora, begun or finished; close it by using it in a `with` statement.

    Args:
        corpora: What `read_corpus` takes. Give the parts of one division together: a speaker or a recording in two of
            them is an error.
        out: Folder of the check, from which it can be continued; at the end it holds `findings.jsonl` and
            `summary.json`. None for a temporary one.
        limits: What is required of utterances.
        load_fault: Returns the function that says why a cut cannot be trained on, such as `Recogniser.check`; it is
            called in each process. None for no such check.
        fault_name: Identifies that function, such as by the name of the model.

    Raises:
        UserError: A corpus cannot be opened, or `out` holds a check of something else.
    """

    def __init__(
        self,
        corpora: Sequence[str],
        out: Path | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        load_fault: LoadFault | None = None,
        fault_name: str = "",
    ) -> None:
        if len(set(corpora)) < len(corpora):
            raise UserError("A corpus is given twice; give each once.")
        self._corpora = [open_corpus(name) for name in corpora]
        self.notes = [note for corpus in self._corpora for note in corpus.notes]
        self._limits = limits
        self._load_fault = load_fault
        self._temporary = tempfile.TemporaryDirectory(prefix="ssvd-check-") if out is None else None
        self.folder = Path(self._temporary.name if self._temporary else str(out))
        self.folder.mkdir(parents=True, exist_ok=True)
        journal = self.folder / "check.sqlite"
        for name in (_FINDINGS, _SUMMARY):
            if (self.folder / name).exists() and not journal.exists():
                raise UserError(f"{self.folder / name} exists already and is of no check; give another folder.")
        self._journal = CheckJournal(
            journal,
            {
                "corpora": {name: state_of(Path(name)) if Path(name).exists() else None for name in corpora},
                "limits": asdict(limits),
                "fault": fault_name,
            },
        )

    def __enter__(self) -> "Check":
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def run(self, workers: int = 1, on_progress: Callable[[int, int | None], None] | None = None) -> None:
        """Examine the rows that are not examined yet, then compare all utterances.

        Args:
            workers: Number of processes; 1 means this one.
            on_progress: Called with the number of rows done and of all rows, None where that is not known.

        Raises:
            StoppedError: A process was killed, or the disk is full; what was done is kept.
        """
        lengths = [corpus.length for corpus in self._corpora]
        total = None if None in lengths else sum(filter(None, lengths))
        done = sum(self._journal.rows_done(index) for index in range(len(self._corpora)))
        if on_progress is not None:
            on_progress(done, total)
        try:
            examined = examine_chunks(self._corpora, self._chunks(), self._limits, self._load_fault, workers)
            for corpus, rows, examination in examined:
                self._journal.add(corpus, rows, examination.utterances, examination.findings)
                done += rows
                if on_progress is not None:
                    on_progress(done, total)
            self._journal.compare([corpus.name for corpus in self._corpora])
        except BrokenProcessPool as error:
            reason = "A process of the check was killed, perhaps because memory ran out"
            raise StoppedError(reason, self._how_to_continue) from error
        except sqlite3.OperationalError as error:
            reason = f"{self._journal.path} cannot be written ({error})"
            raise StoppedError(reason, self._how_to_continue) from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._journal.path} is damaged ({error}); give another folder.") from error
        rows_of_findings = (asdict(finding) | {"severity": finding.severity} for finding in self.findings())
        write_json_lines(self.folder / _FINDINGS, rows_of_findings)
        write_json(self.folder / _SUMMARY, self.as_dict())

    @property
    def _how_to_continue(self) -> str:
        return "give the check a folder, so that it can continue." if self._temporary else "run it again to continue."

    def _chunks(self) -> Iterator[Chunk]:
        """Yield the rows that are not examined yet."""
        for index, corpus in enumerate(self._corpora):
            rows = islice(corpus.rows, self._journal.rows_done(index), None)
            while chunk := list(islice(rows, _CHUNK_ROWS)):
                yield Chunk(index, chunk)

    def findings(self, kind: str | None = None, limit: int = -1) -> Iterator[Finding]:
        """Yield the findings in the order of `KINDS` and of the rows.

        Args:
            kind: The kind to yield; None for all.
            limit: Maximum number of findings of each kind; -1 for all.
        """
        for name in KINDS if kind is None else [kind]:
            yield from self._journal.findings(name, limit)

    def counts(self) -> dict[str, int]:
        """Count the findings of each kind that occurs, in the order of `KINDS`."""
        return self._journal.counts()

    def corpora(self) -> list[CheckedCorpus]:
        """Return what each corpus holds."""
        return [
            CheckedCorpus(corpus.name, self._journal.rows_done(index), *self._journal.contents(index))
            for index, corpus in enumerate(self._corpora)
        ]

    def as_dict(self, examples: int = 5) -> dict[str, Any]:
        """Return corpora, counts and some examples of each kind, ready for JSON."""
        return {
            "corpora": [asdict(corpus) for corpus in self.corpora()],
            "findings": {
                kind: {
                    "severity": KINDS[kind].severity,
                    "count": count,
                    "examples": [asdict(finding) for finding in self.findings(kind, examples)],
                }
                for kind, count in self.counts().items()
            },
        }
