"""Checking corpora of any size: what is wrong with each utterance, and what utterances have in common.

Rows are read one after another and examined in several processes. What was found goes into an SQLite file, a chunk of
rows at a time, so that memory stays small and a check that was stopped goes on where it was. What only shows when all
are known (duplicates, speakers in two corpora, unusual speech rates) is asked of that file at the end.
"""

import hashlib
import json
import math
import signal
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssvd.corpora.audio import decode
from ssvd.corpora.check.doubtful_text import doubt
from ssvd.corpora.corpus import open_corpus
from ssvd.corpora.splits import folded_text
from ssvd.corpora.utterances import Skipped
from ssvd.errors import StoppedError, UserError
from ssvd.files import state_of, write_json_lines

Severity = Literal["error", "warning"]
Fault = Callable[[Any], str | None]

# What is found, in the order in which it is told.
KINDS: dict[str, tuple[Severity, str]] = {
    "unusable": ("error", "cannot be used"),
    "unreadable": ("error", "the audio cannot be decoded to its end"),
    "silent": ("error", "the audio is silent"),
    "no text": ("error", "no text"),
    "untrainable": ("error", "the model cannot be trained on it"),
    "impossible rate": ("error", "more text than anybody can say in that time"),
    "shared speaker": ("error", "a speaker is in two corpora"),
    "shared audio": ("error", "the same audio is in two corpora"),
    "shared id": ("warning", "the same id is in two corpora"),
    "shared sentence": ("error", "the same speaker says the same in two corpora"),
    "repeated id": ("error", "the same id again"),
    "repeated audio": ("warning", "the same audio again"),
    "repeated sentence": ("warning", "the same speaker says the same again"),
    "unusual rate": ("warning", "far more or less text than usual for its length"),
    "doubtful text": ("warning", "doubtful text"),
    "clipped": ("warning", "the audio is clipped"),
    "low sampling rate": ("warning", "a lower sampling rate than asked for"),
    "other sampling rate": ("warning", "another sampling rate than most of its corpus"),
    "short": ("warning", "short"),
    "long": ("warning", "long"),
}

# Nobody comes near it: quick speech has 20 characters a second in English, fewer in scripts with denser characters.
IMPOSSIBLE_RATE = 40.0
# An unusual rate is so many standard deviations from the middle of its corpus and language, and a factor of two.
UNUSUAL_DEVIATIONS = 5.0
_FEWEST_FOR_USUAL = 50
_SILENCE = 1e-3  # of full scale, -60 dB
_FULL_SCALE = 0.999
_CLIPPED_SHARE = 1e-3  # of the samples
_CHUNK = 64  # rows


@dataclass(frozen=True)
class Limits:
    """What is asked of utterances.

    Attributes:
        audio: Whether to decode the audio; without it, headers or the manifest are believed.
        shortest, longest: Seconds beyond which an utterance is remarkable.
        sampling_rate: The lowest, in Hz; None for any.
    """

    audio: bool = True
    shortest: float = 0.3
    longest: float = 30.0
    sampling_rate: int | None = None


@dataclass(frozen=True)
class Finding:
    """Something wrong or doubtful with an utterance (`id` None where its row gives none): `where` is file:row."""

    kind: str
    where: str
    id: str | None
    detail: str

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind][0]


@dataclass(frozen=True)
class Checked:
    """One corpus of a check: what it holds, and how many utterances it has of each sampling rate."""

    name: str
    rows: int
    utterances: int
    hours: float
    speakers: int
    sampling_rates: dict[int, int]


class Check:
    """A check of corpora, begun or finished; close it, or use it in a `with` statement.

    Args:
        corpora: What `read_corpus` takes. Give the parts of one division together: a speaker or a recording in two of
            them is an error.
        out: Folder of the check, which it is continued from; it holds `findings.jsonl` and `summary.json` at the end.
            None for a temporary one.
        limits: What is asked.
        load_fault: Gives the function that says why a cut cannot be trained on, as `Recogniser.check`; it is called in
            each process. None for no such check.
        fault_name: What tells one such function from another, such as the model's name.

    Raises:
        UserError: a corpus cannot be opened, or `out` holds a check of something else.
    """

    def __init__(
        self,
        corpora: Sequence[str],
        out: Path | None = None,
        *,
        limits: Limits = Limits(),
        load_fault: Callable[[], Fault] | None = None,
        fault_name: str = "",
    ) -> None:
        if len(set(corpora)) < len(corpora):
            raise UserError("A corpus is given twice; give each once.")
        self._corpora = [open_corpus(name) for name in corpora]
        self.notes = [note for corpus in self._corpora for note in corpus.notes]
        self._limits = limits
        self._load_fault = load_fault
        self._temporary = tempfile.TemporaryDirectory(prefix="ssvd-check-") if out is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(str(out))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._database = _Database(
            self.folder / "check.sqlite",
            {
                "corpora": {name: state_of(Path(name)) if Path(name).exists() else None for name in corpora},
                "limits": asdict(limits),
                "fault": fault_name,
            },
        )

    def __enter__(self) -> "Check":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def run(self, workers: int = 1, on_progress: Callable[[int, int | None], None] | None = None) -> None:
        """Examine the rows that are not yet, then what all have in common.

        Args:
            workers: Processes; 1 is this one.
            on_progress: Called with the rows done and their number, None where that is not known.

        Raises:
            StoppedError: a process was killed, or the disk is full; what was done is kept.
        """
        lengths = [_length(corpus.rows) for corpus in self._corpora]
        total = None if None in lengths else sum(filter(None, lengths))
        done = sum(self._database.rows_done(index) for index in range(len(self._corpora)))
        if on_progress is not None:
            on_progress(done, total)
        try:
            for index, count, examined in self._examine(workers):
                self._database.add(index, count, examined)
                done += count
                if on_progress is not None:
                    on_progress(done, total)
            self._database.compare([corpus.name for corpus in self._corpora])
        except BrokenProcessPool as error:
            reason = "A process of the check was killed, perhaps as memory ran out"
            raise StoppedError(reason, _advice(self._temporary)) from error
        except sqlite3.OperationalError as error:
            reason = f"{self._database.path} cannot be written ({error})"
            raise StoppedError(reason, _advice(self._temporary)) from error
        rows = (asdict(finding) | {"severity": finding.severity} for finding in self.findings())
        write_json_lines(self.folder / "findings.jsonl", rows)
        summary = json.dumps(self.as_dict(), indent=2, ensure_ascii=False)
        (self.folder / "summary.json").write_text(summary + "\n", encoding="utf-8")

    def _examine(self, workers: int) -> Iterator[tuple[int, int, "_Examined"]]:
        """(number of the corpus, rows, what they hold) of each chunk that is not done yet, in order."""
        tasks = (
            (index, chunk)
            for index, corpus in enumerate(self._corpora)
            for chunk in _chunks(islice(corpus.rows, self._database.rows_done(index), None))
        )
        if workers == 1:
            _start(self._limits, self._load_fault)
            for index, chunk in tasks:
                yield index, len(chunk), _examine(self._corpora[index].cuts, chunk)
            return
        pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_start, initargs=(self._limits, self._load_fault, True)
        )
        running: deque[tuple[int, int, Future[_Examined]]] = deque()
        try:
            for index, chunk in tasks:
                running.append((index, len(chunk), pool.submit(_examine, self._corpora[index].cuts, chunk)))
                if len(running) > 4 * workers:  # enough to keep all busy
                    index, count, future = running.popleft()
                    yield index, count, future.result()
            while running:
                index, count, future = running.popleft()
                yield index, count, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def findings(self, kind: str | None = None, limit: int = -1) -> Iterator[Finding]:
        """What was found, of one kind or of all, in the order of `KINDS` and of the rows; `limit` of each kind."""
        for one in KINDS if kind is None else [kind]:
            yield from (Finding(one, *row) for row in self._database.findings(one, limit))

    def counts(self) -> dict[str, int]:
        """How often each kind was found, in the order of `KINDS`."""
        return self._database.counts()

    def corpora(self) -> list[Checked]:
        return [
            Checked(corpus.name, self._database.rows_done(index), *self._database.contents(index))
            for index, corpus in enumerate(self._corpora)
        ]

    def as_dict(self, examples: int = 5) -> dict[str, Any]:
        """Corpora, counts and some examples of each kind, ready for JSON."""
        return {
            "corpora": [asdict(corpus) for corpus in self.corpora()],
            "findings": {
                kind: {
                    "severity": KINDS[kind][0],
                    "count": count,
                    "examples": [asdict(finding) for finding in self.findings(kind, examples)],
                }
                for kind, count in self.counts().items()
            },
        }


def _advice(temporary: Any) -> str:
    return f"{'give it a folder with --out' if temporary else 'give the same command'} to go on."


def _length(rows: Iterable[Any]) -> int | None:
    with suppress(TypeError):
        return len(rows)  # type: ignore[arg-type]
    return None


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


# In the processes that examine


@dataclass(frozen=True)
class _Examined:
    """Rows of the tables `utterances` and `findings`, less the number of the corpus."""

    utterances: list[tuple[Any, ...]]
    findings: list[tuple[str, str, str | None, str]]


_limits = Limits()
_fault: Fault | None = None


def _start(limits: Limits, load_fault: Callable[[], Fault] | None, in_pool: bool = False) -> None:
    global _limits, _fault
    if in_pool:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    _limits, _fault = limits, load_fault() if load_fault else None


def _examine(cuts: Callable[[Iterable[Any]], Iterable[tuple[str, Any] | Skipped]], rows: list[Any]) -> _Examined:
    examined = _Examined([], [])
    for item in cuts(rows):
        if isinstance(item, Skipped):
            examined.findings.append(("unusable", item.where, item.id or None, item.reason))
            continue
        where, cut = item
        supervision = cut.supervisions[0]
        text = " ".join((supervision.text or "").split())
        characters = len(text.replace(" ", ""))
        samples, found = _listen(cut)
        found += _read(text, characters / cut.duration) + _measure(cut)
        if _fault is not None and text and (reason := _fault(cut)):
            found.append(("untrainable", reason))
        examined.findings.extend((kind, where, cut.id, detail) for kind, detail in found)
        examined.utterances.append(
            (
                where,
                cut.id,
                supervision.speaker,
                supervision.language,
                cut.duration,
                cut.recording.sampling_rate,
                characters / cut.duration if text else None,
                _key(folded_text(cut).encode()) if text else None,
                _key(_extent(cut).encode() if samples is None else samples.tobytes()),
            )
        )
    return examined


def _listen(cut: Any) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
    """The samples (channels, samples), if they are wanted and can be had, and what is wrong with them."""
    if not _limits.audio:
        return None, []
    try:
        samples = decode(cut)
    except UserError as error:
        return None, [("unreadable", str(error).removeprefix(f"Utterance {cut.id}: ").rstrip("."))]
    peaks = np.abs(samples).max(axis=1)
    if float(np.ptp(samples)) < 2 * _SILENCE:
        return samples, [("silent", f"nothing is louder than {20 * math.log10(max(peaks.max(), 1e-6)):.0f} dB")]
    share = float((np.abs(samples) >= _FULL_SCALE).mean())
    return samples, [("clipped", f"{share:.1%} of the samples are at full scale")] if share > _CLIPPED_SHARE else []


def _read(text: str, rate: float) -> list[tuple[str, str]]:
    if not text:
        return [("no text", "")]
    found = [("doubtful text", f"{reason}, in {text[:80]!r}")] if (reason := doubt(text)) else []
    if rate > IMPOSSIBLE_RATE:
        found.append(("impossible rate", f"{rate:.0f} characters a second, in {text[:80]!r}"))
    return found


def _measure(cut: Any) -> list[tuple[str, str]]:
    found = []
    if cut.duration < _limits.shortest:
        found.append(("short", f"{cut.duration:.2f} s"))
    if cut.duration > _limits.longest:
        found.append(("long", f"{cut.duration:.1f} s"))
    if _limits.sampling_rate is not None and cut.recording.sampling_rate < _limits.sampling_rate:
        found.append(("low sampling rate", f"{cut.recording.sampling_rate} Hz"))
    return found


def _extent(cut: Any) -> str:
    """What stands for the audio where it is not decoded: the file and the stretch of it."""
    return f"{cut.recording.sources[0].source}\0{cut.start}\0{cut.duration}\0{cut.channel}"


def _key(content: bytes) -> int:
    """A number for a content; of a million contents two share theirs with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


# In the process that waits for them

_TABLES = """
CREATE TABLE check_of (state TEXT);
CREATE TABLE done (corpus INTEGER PRIMARY KEY, count INTEGER);
CREATE TABLE utterances (
    corpus INTEGER, place TEXT, id TEXT, speaker TEXT, language TEXT, seconds REAL, sampling_rate INTEGER,
    text_rate REAL, text_key INTEGER, audio_key INTEGER
);
CREATE TABLE findings (kind TEXT, place TEXT, id TEXT, detail TEXT, compared INTEGER DEFAULT 0);
"""


class _Database:
    """What a check has found so far, in an SQLite file."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path = path
        text = json.dumps(state)
        self._sql = sqlite3.connect(path, timeout=1, isolation_level=None)
        try:
            self._sql.execute("PRAGMA locking_mode = EXCLUSIVE")  # two at once would add everything twice
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing, a lost machine the last
            if not self._sql.execute("SELECT 1 FROM sqlite_master").fetchone():
                self._sql.executescript(f"BEGIN;{_TABLES}COMMIT")
                self._sql.execute("INSERT INTO check_of VALUES (?)", (text,))
            (found,) = self._sql.execute("SELECT state FROM check_of").fetchone()
        except (sqlite3.Error, TypeError) as error:
            self.close()
            raise UserError(f"{path} is in use by another check, or damaged ({error}).") from error
        if found != text:
            self.close()
            raise UserError(
                f"{path.parent} holds a check of other corpora, of other versions of them or with other options; give "
                "another folder."
            )
        self._sql.create_function("log", 1, math.log, deterministic=True)

    def close(self) -> None:
        self._sql.close()

    def rows_done(self, corpus: int) -> int:
        row = self._sql.execute("SELECT count FROM done WHERE corpus = ?", (corpus,)).fetchone()
        return row[0] if row else 0

    def add(self, corpus: int, count: int, examined: _Examined) -> None:
        """Add what the next `count` rows hold, all or nothing."""
        self._sql.execute("BEGIN")
        marks = ", ".join("?" * 9)
        self._sql.executemany(f"INSERT INTO utterances VALUES ({corpus}, {marks})", examined.utterances)
        self._sql.executemany("INSERT INTO findings VALUES (?, ?, ?, ?, 0)", examined.findings)
        total = self.rows_done(corpus) + count
        self._sql.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (corpus, total))
        self._sql.execute("COMMIT")

    def findings(self, kind: str, limit: int) -> Iterator[tuple[str, str | None, str]]:
        query = "SELECT place, id, detail FROM findings WHERE kind = ? ORDER BY rowid LIMIT ?"
        return iter(self._sql.execute(query, (kind, limit)))

    def counts(self) -> dict[str, int]:
        found = dict(self._sql.execute("SELECT kind, count(*) FROM findings GROUP BY kind"))
        return {kind: found[kind] for kind in KINDS if kind in found}

    def contents(self, corpus: int) -> tuple[int, float, int, dict[int, int]]:
        """Utterances, hours, speakers, and utterances by sampling rate, the most frequent first."""
        query = "SELECT count(*), total(seconds) / 3600, count(DISTINCT speaker) FROM utterances WHERE corpus = ?"
        utterances, hours, speakers = self._sql.execute(query, (corpus,)).fetchone()
        query = "SELECT sampling_rate, count(*) n FROM utterances WHERE corpus = ? GROUP BY 1 ORDER BY n DESC, 1 DESC"
        return utterances, hours, speakers, dict(self._sql.execute(query, (corpus,)))

    def compare(self, names: Sequence[str]) -> None:
        """Add the findings of utterances beside each other, all or nothing."""
        self._sql.execute("BEGIN")
        self._sql.execute("DELETE FROM findings WHERE compared")
        for column, what in (("id", "id"), ("audio_key", "audio"), ("speaker, text_key", "sentence")):
            self._add(what, self._again(column.split(", ")))
        if len(names) > 1:
            self._add("speaker", self._shared_speakers(names))
        for corpus, name in enumerate(names):
            self._add("", self._other_sampling_rates(corpus, name))
            self._add("", self._unusual_rates(corpus))
        self._sql.execute("COMMIT")

    def _add(self, what: str, found: Iterable[tuple[str, str, str, str]]) -> None:
        rows = ((f"{kind} {what}".strip(), *rest) for kind, *rest in found)
        self._sql.executemany("INSERT INTO findings VALUES (?, ?, ?, ?, 1)", rows)

    def _again(self, columns: list[str]) -> Iterator[tuple[str, str, str, str]]:
        """Utterances that have the same in these columns as an earlier one."""
        known = " AND ".join(f"{column} IS NOT NULL" for column in columns)
        same = " AND ".join(f"u.{column} = g.{column}" for column in columns)
        query = f"""
            SELECT iif(u.corpus = f.corpus, 'repeated', 'shared'), u.place, u.id, 'as ' || f.id || ' at ' || f.place
            FROM (SELECT {", ".join(columns)}, min(rowid) first FROM utterances WHERE {known}
                  GROUP BY {", ".join(columns)} HAVING count(*) > 1) g
            JOIN utterances u ON {same} AND u.rowid > g.first JOIN utterances f ON f.rowid = g.first ORDER BY u.rowid
        """
        return iter(self._sql.execute(query))

    def _shared_speakers(self, names: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
        query = """
            SELECT speaker, group_concat(corpus), group_concat(n), max(first), place, id FROM (
                SELECT speaker, corpus, count(*) n, min(rowid) first, place, id FROM utterances
                WHERE speaker IS NOT NULL GROUP BY speaker, corpus ORDER BY speaker, corpus
            ) GROUP BY speaker HAVING count(*) > 1
        """  # beside min and max, SQLite takes place and id from the row that has it
        for speaker, corpora, counts, _, place, id in self._sql.execute(query):
            shares = zip(corpora.split(","), counts.split(","), strict=True)
            parts = " and ".join(f"{names[int(corpus)]} ({count} utterances)" for corpus, count in shares)
            yield "shared", place, id, f"{speaker} is in {parts}"

    def _other_sampling_rates(self, corpus: int, name: str) -> Iterator[tuple[str, str, str, str]]:
        rates = self.contents(corpus)[3]
        if len(rates) < 2:
            return
        usual = next(iter(rates))
        query = "SELECT place, id, sampling_rate FROM utterances WHERE corpus = ? AND sampling_rate != ? ORDER BY rowid"
        for place, id, rate in self._sql.execute(query, (corpus, usual)):
            yield "other sampling rate", place, id, f"{rate} Hz, most of {name} has {usual} Hz"

    def _unusual_rates(self, corpus: int) -> Iterator[tuple[str, str, str, str]]:
        """By the median and the median absolute deviation of the logarithm, which outliers do not move."""
        rows = "FROM utterances WHERE corpus = ? AND language IS ? AND text_rate IS NOT NULL"
        for (language,) in self._sql.execute("SELECT DISTINCT language FROM utterances WHERE corpus = ?", (corpus,)):
            group = (corpus, language)
            (count,) = self._sql.execute(f"SELECT count(*) {rows}", group).fetchone()
            if count < _FEWEST_FOR_USUAL:
                continue
            middle = self._median("log(text_rate)", rows, group, count)
            # 1.4826 makes a standard deviation of it for the normal distribution.
            deviation = 1.4826 * self._median(f"abs(log(text_rate) - {middle!r})", rows, group, count)
            reach = max(UNUSUAL_DEVIATIONS * deviation, math.log(2))
            query = f"SELECT place, id, text_rate {rows} AND abs(log(text_rate) - ?) > ? ORDER BY rowid"
            for place, id, rate in self._sql.execute(query, (*group, middle, reach)):
                usual = f"{rate:.1f} characters a second, where the median is {math.exp(middle):.1f}"
                yield "unusual rate", place, id, usual

    def _median(self, of: str, rows: str, group: tuple[Any, ...], count: int) -> float:
        query = f"SELECT {of} {rows} ORDER BY 1 LIMIT 1 OFFSET ?"
        return self._sql.execute(query, (*group, count // 2)).fetchone()[0]
