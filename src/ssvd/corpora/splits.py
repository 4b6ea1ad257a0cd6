"""Dividing a corpus into parts that share no speaker."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lhotse import CutSet

from ssvd.corpora.selection import field_names, field_value
from ssvd.corpora.utterances import number_or_text
from ssvd.errors import UserError

PORTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "dev": 0.1, "test": 0.1})


def split_by_speaker(
    cuts: CutSet, portions: Mapping[str, float] = PORTIONS, seed: int = 0, *, balance: str | None = None
) -> dict[str, CutSet]:
    """Divide cuts into parts that share no speaker, each near its portion of the duration and never empty.

    The speakers of each part depend on the speakers, their durations and the seed alone, not on the order of the cuts.
    Cuts keep their order within a part.

    Args:
        portions: the name of each part and its share; shares are divided by their sum.
        balance: a field such as age; each part gets its share of speakers from all over the range of its values. A
            speaker with several values counts with the most frequent one.

    Raises:
        UserError: a portion is not positive, an utterance has no speaker, there are fewer speakers than parts, or no
            utterance has the field `balance`.
    """
    if not portions or min(portions.values()) <= 0:
        raise UserError("Every part of a split needs a portion above 0.")
    by_speaker: dict[str, list[Any]] = defaultdict(list)
    for cut in cuts:
        speaker = field_value(cut, "speaker")
        if speaker is None:
            raise UserError(f"Utterance {cut.id} has no speaker; a split without shared speakers needs all of them.")
        by_speaker[speaker].append(cut)
    if len(by_speaker) < len(portions):
        raise UserError(f"{len(by_speaker)} speakers cannot be divided into {len(portions)} parts.")

    speakers = sorted(by_speaker)
    random.Random(seed).shuffle(speakers)
    if balance is not None:
        if balance not in field_names(cuts):
            raise UserError(f"Cannot balance by {balance!r}; the fields are {', '.join(field_names(cuts))}.")
        speakers.sort(key=lambda speaker: _sortable(_most_frequent(by_speaker[speaker], balance)))

    part_of = {}
    given = dict.fromkeys(portions, 0.0)
    for index, speaker in enumerate(speakers):
        duration = sum(sorted(cut.duration for cut in by_speaker[speaker]))
        empty = [part for part in portions if not given[part]]
        candidates = empty if len(empty) == len(speakers) - index else portions
        # Sainte-Lague's rule: parts take turns in proportion, so neighbours in the order go to different parts.
        part = min(candidates, key=lambda part: (given[part] + duration / 2) / portions[part])
        part_of[speaker] = part
        given[part] += duration
    return {
        part: CutSet.from_cuts(cut for cut in cuts if part_of[field_value(cut, "speaker")] == part) for part in portions
    }


def _most_frequent(cuts: list[Any], field: str) -> Any:
    counts = Counter(field_value(cut, field) for cut in cuts)
    return min(counts, key=lambda value: (-counts[value], str(value)))


def _sortable(value: Any) -> tuple[bool, float, str]:
    value = number_or_text(value) if isinstance(value, str) else value
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else 0.0, str(value)


def text_overlap(parts: Mapping[str, CutSet], train: str = "train") -> dict[str, float]:
    """For each part but `train`: the share of its utterances whose text, whatever its case, occurs in `train`.

    A recogniser may know such sentences by heart; report the share beside its word error rate.
    """
    known = {folded_text(cut) for cut in parts[train]}
    return {
        part: sum(folded_text(cut) in known for cut in cuts) / len(cuts)
        for part, cuts in parts.items()
        if part != train
    }


def folded_text(cut: Any) -> str:
    """The text of a cut, all of its cases and blanks alike."""
    return " ".join(cut.supervisions[0].text.casefold().split())
