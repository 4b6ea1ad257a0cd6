"""A part of a corpus drawn at random, that depends on the ids of the utterances and a seed, not on their order."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lhotse import CutSet

from ssvd.corpora.selection import field_names, field_value
from ssvd.errors import UserError
from ssvd.grouping import UNKNOWN, Grouping


def sample(
    cuts: CutSet, *, utterances: int | None = None, hours: float | None = None, by: str | None = None, seed: int = 0
) -> CutSet:
    """Draw so many utterances, or as many as fit into so many hours; they keep their order.

    A larger sample with the same seed holds the smaller ones. With `by`, each value of the field (or band of it, as
    `age:6-10,11-15`) gets its share of what the corpus has, utterances or hours.

    Raises:
        UserError: neither or both sizes are given, the corpus has less, no utterance fits, or none has the field.
    """
    if (utterances is None) == (hours is None):
        raise UserError("A sample needs a number of utterances or of hours: one of the two.")
    wanted = float(utterances if hours is None else 3600 * hours)  # type: ignore[arg-type]
    unit = "utterances" if hours is None else "seconds"
    groups = _groups(cuts, by)
    sizes = {label: _size(group, unit) for label, group in groups.items()}
    if not 0 < wanted <= sum(sizes.values()):
        raise UserError(f"A sample of {wanted:g} {unit} is not possible: there are {sum(sizes.values()):g}.")
    chosen: set[str] = set()
    for label, share in _shares(sizes, wanted, whole=hours is None).items():
        taken = 0.0
        for cut in sorted(groups[label], key=lambda cut: _draw(seed, cut.id)):
            taken += 1 if hours is None else cut.duration
            if taken > share:
                break
            chosen.add(cut.id)
    if not chosen:
        raise UserError(f"No utterance fits into {wanted:g} seconds.")
    return CutSet.from_cuts(cut for cut in cuts if cut.id in chosen)


def _groups(cuts: CutSet, by: str | None) -> dict[str, list[Any]]:
    """The cuts by value of the field, values in order; all under one label without a field."""
    if by is None:
        return {"": list(cuts)}
    grouping = Grouping.parse(by)
    groups: dict[tuple[tuple[int, float, str], str], list[Any]] = defaultdict(list)
    for cut in cuts:
        groups[grouping.group(field_value(cut, grouping.field))].append(cut)
    if all(label == UNKNOWN for _, label in groups):
        raise UserError(f"No utterance has the field {grouping.field!r}; there are {', '.join(field_names(cuts))}.")
    return {label: groups[key, label] for key, label in sorted(groups)}


def _size(cuts: Sequence[Any], unit: str) -> float:
    return len(cuts) if unit == "utterances" else sum(sorted(cut.duration for cut in cuts))


def _shares(sizes: dict[str, float], wanted: float, *, whole: bool) -> dict[str, float]:
    """`wanted` in proportion to the sizes; `whole` numbers by Webster's method, where more never takes from a group."""
    if not whole:
        return {label: wanted * size / sum(sizes.values()) for label, size in sizes.items()}
    given = dict.fromkeys(sizes, 0.0)
    queue = [(-size, label) for label, size in sizes.items()]
    heapq.heapify(queue)
    for _ in range(round(wanted)):
        _, label = queue[0]
        given[label] += 1
        heapq.heapreplace(queue, (-sizes[label] / (2 * given[label] + 1), label))
    return given


def _draw(seed: int, id: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{id}".encode(), digest_size=16).digest()
