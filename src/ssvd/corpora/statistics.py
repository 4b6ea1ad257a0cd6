"""What a corpus holds: hours, speakers, words and lengths, in total and by field.

Utterances are counted one after another, so that the size of a corpus does not matter.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ssvd.corpora.corpus import OpenCorpus, open_corpus
from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import field_value
from ssvd.corpora.sources import short_names
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.grouping import UNKNOWN, Grouping

_STEP = 0.1  # seconds, or characters a second: the resolution of lengths and rates
_MOST_BINS = 40
_BIN_WIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 1e6)


@dataclass
class Holdings:
    """What some utterances hold.

    Attributes:
        utterances: Their number.
        seconds: Their total length.
        words: Number of words.
        speakers: The known speakers.
        vocabulary: The different words, in folded case.
        lengths: Number of utterances by length in tenths of a second, rounded down.
        rates: Number of utterances by tenths of a character, without blanks, per second, rounded down.
    """

    utterances: int = 0
    seconds: float = 0.0
    words: int = 0
    speakers: set[str] = field(default_factory=set)
    vocabulary: set[str] = field(default_factory=set)
    lengths: Counter[int] = field(default_factory=Counter)
    rates: Counter[int] = field(default_factory=Counter)

    def add(self, cut: Cut) -> None:
        """Count one more utterance."""
        supervision = cut.supervisions[0]
        text = supervision.text or ""
        words = text.casefold().split()
        self.utterances += 1
        self.seconds += cut.duration
        self.words += len(words)
        self.vocabulary.update(words)
        if supervision.speaker is not None:
            self.speakers.add(supervision.speaker)
        self.lengths[_steps(cut.duration)] += 1
        self.rates[_steps(sum(map(len, words)) / cut.duration)] += 1

    def length(self, share: float) -> float:
        """Return the length in seconds, to a tenth, that this share of the utterances does not exceed."""
        return quantile(self.lengths, share)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return {
            "utterances": self.utterances,
            "hours": round(self.seconds / 3600, 4),
            "speakers": len(self.speakers),
            "words": self.words,
            "different_words": len(self.vocabulary),
            "median_seconds": self.length(0.5),
            "shortest_seconds": self.length(0.0),
            "longest_seconds": self.length(1.0),
            "characters_a_second": quantile(self.rates, 0.5),
        }


@dataclass(frozen=True)
class Statistics:
    """The statistics of one corpus.

    Attributes:
        name: A short name of the corpus.
        total: What all of its utterances hold.
        groups: What the utterances with each value of each field hold.
        unusable: The rows that were left out.
        notes: The assumptions that were made in reading, as sentences.
    """

    name: str
    total: Holdings
    groups: dict[str, dict[str, Holdings]]
    unusable: list[Skipped]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return {
            "corpus": self.name,
            **self.total.as_dict(),
            "groups": {
                field: {value: holdings.as_dict() for value, holdings in values.items()}
                for field, values in self.groups.items()
            },
            "unusable": len(self.unusable),
        }


def corpus_statistics(
    corpora: Sequence[str], by: Sequence[str] = (), on_progress: Callable[[str, int], None] | None = None
) -> list[Statistics]:
    """Count what each corpus holds; audio is not decoded.

    Args:
        corpora: What `read_corpus` takes.
        by: Fields to break down by, with bands or without: `gender`, `age:6-10,11-15`.
        on_progress: Called with the corpus and the number of its utterances counted so far.

    Raises:
        UserError: A corpus cannot be opened or holds no usable utterance, or no utterance has one of the fields.
    """
    groupings = {text: Grouping.parse(text) for text in by}
    names = short_names(corpora)
    statistics = [
        _count(name, open_corpus(corpus), groupings, partial(on_progress, corpus) if on_progress else None)
        for name, corpus in zip(names, corpora, strict=True)
    ]
    for text, grouping in groupings.items():
        if all(corpus.groups[text].keys() <= {UNKNOWN} for corpus in statistics):
            raise UserError(f"No utterance has the field {grouping.field!r}.")
    return statistics


def _count(
    name: str, corpus: OpenCorpus, groupings: Mapping[str, Grouping], on_progress: Callable[[int], None] | None
) -> Statistics:
    total = Holdings()
    groups: dict[str, dict[tuple[tuple[int, float, str], str], Holdings]] = {text: {} for text in groupings}
    unusable: list[Skipped] = []
    for item in corpus.cuts(corpus.rows):
        if isinstance(item, Skipped):
            unusable.append(item)
            continue
        total.add(item.cut)
        for text, grouping in groupings.items():
            group = grouping.group(field_value(item.cut, grouping.field))
            groups[text].setdefault(group, Holdings()).add(item.cut)
        if on_progress is not None:
            on_progress(total.utterances)
    if total.utterances == 0:
        first = f" The first: {unusable[0].where}: {unusable[0].reason}." if unusable else ""
        raise UserError(f"{corpus.name} holds no usable utterance.{first}")
    ordered = {text: {label: values[key, label] for key, label in sorted(values)} for text, values in groups.items()}
    return Statistics(name, total, ordered, unusable, corpus.notes)


def _steps(value: float) -> int:
    return int(value / _STEP + 1e-6)  # 0.7 is seven steps, though 0.7 / 0.1 is less than 7


def quantile(counts: Counter[int], share: float) -> float:
    """Return the value, in steps of a tenth, that a share of what was counted does not exceed; share 0 is the least."""
    rank = max(1, share * counts.total())
    for step in sorted(counts):
        rank -= counts[step]
        if rank <= 0:
            return round(step * _STEP, 1)
    return 0.0


def binned(counts: Counter[int], width: float) -> dict[float, int]:
    """Count tenths in bins from 0 on, by the start of the bin; the width is a multiple of a tenth."""
    steps = round(width / _STEP)
    bins: Counter[int] = Counter()
    for step, count in counts.items():
        bins[step // steps] += count
    return {round(index * width, 1): bins[index] for index in range(max(bins) + 1)}


def bin_width(counts: Counter[int]) -> float:
    """Return a width that gives few enough bins to look at."""
    longest = max(counts) * _STEP
    return next(width for width in _BIN_WIDTHS if longest / width < _MOST_BINS)
