"""Division of a corpus into parts that share no speaker."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from types import MappingProxyType

from lhotse import CutSet

from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import field_names, field_value
from ssvd.corpora.utterances import FieldValue, number_or_text
from ssvd.errors import UserError

PORTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "dev": 0.1, "test": 0.1})


def split_by_speaker(
    cuts: CutSet, portions: Mapping[str, float] = PORTIONS, seed: int = 0, *, balance: str | None = None
) -> dict[str, CutSet]:
    """Divide cuts into parts that share no speaker, each close to its portion of the duration and never empty.

    The speakers of each part depend only on the speakers, their durations and the seed, not on the order of the cuts.
    Cuts keep their order within a part.

    Args:
        cuts: The corpus; each cut has a speaker.
        portions: The name of each part and its share; shares are divided by their sum.
        seed: Random seed.
        balance: A field such as age, over whose range the speakers of each part are spread evenly. A speaker with
            several values counts with the most frequent one.

    Raises:
        UserError: A portion is not positive, an utterance has no speaker, there are fewer speakers than parts, or no
            utterance has the field `balance`.
    """
    if not portions or min(portions.values()) <= 0:
        raise UserError("Every part of a split needs a portion above 0.")
    by_speaker: dict[str, list[Cut]] = defaultdict(list)
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

    part_of: dict[str, str] = {}
    seconds = dict.fromkeys(portions, 0.0)
    for index, speaker in enumerate(speakers):
        duration = sum(sorted(cut.duration for cut in by_speaker[speaker]))
        empty = [part for part in portions if not seconds[part]]
        candidates = empty if len(empty) == len(speakers) - index else portions
        # Sainte-Lague's rule: parts take turns in proportion, so neighbours in the order go to different parts.
        part = min(candidates, key=lambda part: (seconds[part] + duration / 2) / portions[part])
        part_of[speaker] = part
        seconds[part] += duration
    return {
        part: CutSet.from_cuts(cut for cut in cuts if part_of[field_value(cut, "speaker")] == part) for part in portions
    }


def _most_frequent(cuts: list[Cut], field: str) -> FieldValue | None:
    counts: Counter[FieldValue | None] = Counter(field_value(cut, field) for cut in cuts)
    return min(counts, key=lambda value: (-counts[value], str(value)))


def _sortable(value: FieldValue | None) -> tuple[bool, float, str]:
    """Return a key that sorts numbers before texts."""
    value = number_or_text(value) if isinstance(value, str) else value
    number = float(value) if isinstance(value, int | float) else None
    return number is None, number or 0.0, str(value)


def text_overlap(parts: Mapping[str, CutSet], train: str = "train") -> dict[str, float]:
    """Return, for each part except `train`, the share of its utterances whose text occurs in `train` in any case.

    A recogniser may have memorised such sentences; report the share beside its word error rate.
    """
    known = {folded_text(cut) for cut in parts[train]}
    return {
        part: sum(folded_text(cut) in known for cut in cuts) / len(cuts)
        for part, cuts in parts.items()
        if part != train
    }


def folded_text(cut: Cut) -> str:
    """Return the text of a cut in folded case, with single blanks."""
    return " ".join((cut.supervisions[0].text or "").casefold().split())
