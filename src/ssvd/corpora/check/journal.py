"""The journal of a check: an SQLite file with what was found so far, from which a stopped check continues."""

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssvd.corpora.check.examination import UtteranceFacts
from ssvd.corpora.check.kinds import KINDS, Finding
from ssvd.corpora.check.limits import FEWEST_FOR_USUAL, UNUSUAL_DEVIATIONS
from ssvd.errors import UserError, printable

_TABLES = """
CREATE TABLE check_of (state TEXT);
CREATE TABLE done (corpus INTEGER PRIMARY KEY, count INTEGER);
CREATE TABLE utterances (
    corpus INTEGER, place TEXT, id TEXT, speaker TEXT, language TEXT, seconds REAL, sampling_rate INTEGER,
    text_rate REAL, text_key INTEGER, audio_key INTEGER
);
CREATE TABLE findings (kind TEXT, place TEXT, id TEXT, detail TEXT, compared INTEGER DEFAULT 0);
"""


class Contents(NamedTuple):
    """What a corpus holds; utterances by sampling rate, the most frequent rate first."""

    utterances: int
    hours: float
    speakers: int
    sampling_rates: dict[int, int]


class CheckJournal:
    """What a check has found so far, in an SQLite file that one process at a time may open.

    Args:
        path: The file; it is created if it does not exist.
        state: What the check is of. A journal of something else is refused.

    Raises:
        UserError: The file is in use, damaged, or the journal of something else.
    """

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        self.path = path
        text = json.dumps(state)
        self._sql = sqlite3.connect(path, timeout=1, isolation_level=None)
        self._sql.text_factory = lambda data: data.decode(errors="replace")
        try:
            earlier = self._open(text)
        except (sqlite3.Error, TypeError, ValueError) as error:
            self.close()
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is in use by another check, damaged, or no journal of a check ({reason}); give another folder."
            ) from error
        if earlier != text:
            self.close()
            raise UserError(
                f"{path.parent} holds a check of other corpora, of other versions of them or with other options; give "
                "another folder."
            )
        self._sql.create_function("log", 1, math.log, deterministic=True)

    def _open(self, text: str) -> str:
        """Return what the check of the file is of, after writing it to a new file."""
        self._sql.execute("PRAGMA locking_mode = EXCLUSIVE")  # two checks at once would add everything twice
        tables = {name for (name,) in self._sql.execute("SELECT name FROM sqlite_master")}
        if tables and not {"check_of", "done", "utterances", "findings"} <= tables:
            raise ValueError("it has other tables")
        self._sql.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing; a machine that goes down loses the last transactions.
        self._sql.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            self._sql.executescript(f"BEGIN;{_TABLES}COMMIT")
            self._sql.execute("INSERT INTO check_of VALUES (?)", (text,))
        (state,) = self._sql.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise ValueError(state)
        (earlier,) = self._sql.execute("SELECT state FROM check_of").fetchone()
        return str(earlier)

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def rows_done(self, corpus: int) -> int:
        """Return the number of rows of a corpus that are examined."""
        row = self._sql.execute("SELECT count FROM done WHERE corpus = ?", (corpus,)).fetchone()
        return int(row[0]) if row else 0

    def add(self, corpus: int, rows: int, utterances: Iterable[UtteranceFacts], findings: Iterable[Finding]) -> None:
        """Add what the next rows of a corpus hold, all or nothing."""
        self._sql.execute("BEGIN")
        marks = ", ".join("?" * len(UtteranceFacts._fields))
        facts = (utterance._replace(where=printable(utterance.where)) for utterance in utterances)
        self._sql.executemany(f"INSERT INTO utterances VALUES ({corpus}, {marks})", facts)
        self._insert(findings, compared=False)
        self._sql.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (corpus, self.rows_done(corpus) + rows))
        self._sql.execute("COMMIT")

    def findings(self, kind: str, limit: int) -> Iterator[Finding]:
        """Yield the findings of a kind, at most `limit` of them; -1 for all."""
        query = "SELECT place, id, detail FROM findings WHERE kind = ? ORDER BY rowid LIMIT ?"
        return (Finding(kind, *row) for row in self._sql.execute(query, (kind, limit)))

    def counts(self) -> dict[str, int]:
        """Count the findings of each kind that occurs, in the order of `KINDS`."""
        counts = dict(self._sql.execute("SELECT kind, count(*) FROM findings GROUP BY kind"))
        return {kind: counts[kind] for kind in KINDS if kind in counts}

    def contents(self, corpus: int) -> Contents:
        """Return what is examined of a corpus."""
        query = "SELECT count(*), total(seconds) / 3600, count(DISTINCT speaker) FROM utterances WHERE corpus = ?"
        utterances, hours, speakers = self._sql.execute(query, (corpus,)).fetchone()
        query = "SELECT sampling_rate, count(*) n FROM utterances WHERE corpus = ? GROUP BY 1 ORDER BY n DESC, 1 DESC"
        return Contents(utterances, hours, speakers, dict(self._sql.execute(query, (corpus,))))

    def compare(self, names: Sequence[str]) -> None:
        """Compare all utterances with each other and add the findings, all or nothing.

        Args:
            names: The corpora, in the order of their numbers.
        """
        self._sql.execute("BEGIN")
        self._sql.execute("DELETE FROM findings WHERE compared")
        self._insert(self._duplicates("id", ["id"]), compared=True)
        self._insert(self._duplicates("audio", ["audio_key"]), compared=True)
        self._insert(self._duplicates("sentence", ["speaker", "text_key"]), compared=True)
        if len(names) > 1:
            self._insert(self._shared_speakers(names), compared=True)
        for corpus, name in enumerate(names):
            self._insert(self._other_sampling_rates(corpus, name), compared=True)
            self._insert(self._unusual_rates(corpus), compared=True)
        self._sql.execute("COMMIT")

    def _insert(self, findings: Iterable[Finding], *, compared: bool) -> None:
        rows = (
            (finding.kind, printable(finding.where), finding.id, printable(finding.detail), int(compared))
            for finding in findings
        )
        self._sql.executemany("INSERT INTO findings VALUES (?, ?, ?, ?, ?)", rows)

    def _duplicates(self, what: str, columns: Sequence[str]) -> Iterator[Finding]:
        """Find the utterances that equal an earlier one in these columns."""
        known = " AND ".join(f"{column} IS NOT NULL" for column in columns)
        same = " AND ".join(f"u.{column} = g.{column}" for column in columns)
        query = f"""
            SELECT iif(u.corpus = f.corpus, 'repeated', 'shared'), u.place, u.id, 'as ' || f.id || ' at ' || f.place
            FROM (SELECT {", ".join(columns)}, min(rowid) first FROM utterances WHERE {known}
                  GROUP BY {", ".join(columns)} HAVING count(*) > 1) g
            JOIN utterances u ON {same} AND u.rowid > g.first JOIN utterances f ON f.rowid = g.first ORDER BY u.rowid
        """
        return (Finding(f"{relation} {what}", *row) for relation, *row in self._sql.execute(query))

    def _shared_speakers(self, names: Sequence[str]) -> Iterator[Finding]:
        query = """
            SELECT speaker, group_concat(corpus), group_concat(n), max(first), place, id FROM (
                SELECT speaker, corpus, count(*) n, min(rowid) first, place, id FROM utterances
                WHERE speaker IS NOT NULL GROUP BY speaker, corpus ORDER BY speaker, corpus
            ) GROUP BY speaker HAVING count(*) > 1
        """  # with min or max, SQLite takes place and id from the row that has it
        for speaker, corpora, counts, _, place, id in self._sql.execute(query):
            shares = zip(corpora.split(","), counts.split(","), strict=True)
            holders = " and ".join(f"{names[int(corpus)]} ({count} utterances)" for corpus, count in shares)
            yield Finding("shared speaker", place, id, f"{speaker} is in {holders}")

    def _other_sampling_rates(self, corpus: int, name: str) -> Iterator[Finding]:
        rates = self.contents(corpus).sampling_rates
        if len(rates) < 2:
            return
        usual = next(iter(rates))
        query = "SELECT place, id, sampling_rate FROM utterances WHERE corpus = ? AND sampling_rate != ? ORDER BY rowid"
        for place, id, rate in self._sql.execute(query, (corpus, usual)):
            yield Finding("other sampling rate", place, id, f"{rate} Hz, most of {name} has {usual} Hz")

    def _unusual_rates(self, corpus: int) -> Iterator[Finding]:
        """Find outliers of the logarithm of the rate by its median and median absolute deviation."""
        rows = "FROM utterances WHERE corpus = ? AND language IS ? AND text_rate IS NOT NULL"
        for (language,) in self._sql.execute("SELECT DISTINCT language FROM utterances WHERE corpus = ?", (corpus,)):
            group = (corpus, language)
            (count,) = self._sql.execute(f"SELECT count(*) {rows}", group).fetchone()
            if count < FEWEST_FOR_USUAL:
                continue
            middle = self._median("log(text_rate)", rows, group, count)
            # The factor 1.4826 turns it into the standard deviation of a normal distribution.
            deviation = 1.4826 * self._median(f"abs(log(text_rate) - {middle!r})", rows, group, count)
            reach = max(UNUSUAL_DEVIATIONS * deviation, math.log(2))
            query = f"SELECT place, id, text_rate {rows} AND abs(log(text_rate) - ?) > ? ORDER BY rowid"
            for place, id, rate in self._sql.execute(query, (*group, middle, reach)):
                detail = f"{rate:.1f} characters a second, where the median is {math.exp(middle):.1f}"
                yield Finding("unusual rate", place, id, detail)

    def _median(self, expression: str, rows: str, group: tuple[int, str | None], count: int) -> float:
        query = f"SELECT {expression} {rows} ORDER BY 1 LIMIT 1 OFFSET ?"
        return float(self._sql.execute(query, (*group, count // 2)).fetchone()[0])
