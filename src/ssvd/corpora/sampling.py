"""Random samples of a corpus, which depend on the ids of the utterances and a seed, not on their order."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lhotse import CutSet

from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import field_names, field_value
from ssvd.errors import UserError
from ssvd.grouping import UNKNOWN, Grouping

_SizeUnit = Literal["utterances", "seconds"]


class _Group(NamedTuple):
    """The key by which a value of a field is sorted, and its label."""

    key: tuple[int, float, str]
    label: str


def sample(
    cuts: CutSet, *, utterances: int | None = None, hours: float | None = None, by: str | None = None, seed: int = 0
) -> CutSet:
    """Draw a number of utterances, or as many as fit into a number of hours; they keep their order.

    A larger sample with the same seed contains the smaller ones.

    Args:
        cuts: The corpus.
        utterances: Number of utterances to draw.
        hours: Number of hours to draw, instead of `utterances`.
        by: A field, optionally with bands, such as `age:6-10,11-15`. Each of its values keeps its share of the
            utterances or hours of the corpus.
        seed: Random seed.

    Raises:
        UserError: Neither or both sizes are given, the corpus is smaller, no utterance fits, or none has the field.
    """
    if (utterances is None) == (hours is None):
        raise UserError("Give either the number of utterances or the number of hours of the sample.")
    unit: _SizeUnit
    unit, wanted = ("utterances", float(utterances)) if utterances is not None else ("seconds", 3600 * (hours or 0.0))
    groups = _groups(cuts, by)
    sizes = {label: _size(group, unit) for label, group in groups.items()}
    if not 0 < wanted <= sum(sizes.values()):
        raise UserError(f"A sample of {wanted:g} {unit} is not possible: there are {sum(sizes.values()):g}.")
    chosen: set[str] = set()
    for label, share in _shares(sizes, wanted, whole=unit == "utterances").items():
        size = 0.0
        for cut in sorted(groups[label], key=lambda cut: _rank(seed, cut.id)):
            size += 1 if unit == "utterances" else cut.duration
            if size > share:
                break
            chosen.add(cut.id)
    if not chosen:
        raise UserError(f"No utterance fits into {wanted:g} seconds.")
    return CutSet.from_cuts(cut for cut in cuts if cut.id in chosen)


def _groups(cuts: CutSet, by: str | None) -> dict[str, list[Cut]]:
    """Group the cuts by value of the field, values in order; without a field, all cuts are one group."""
    if by is None:
        return {"": list(cuts)}
    grouping = Grouping.parse(by)
    groups: dict[_Group, list[Cut]] = defaultdict(list)
    for cut in cuts:
        groups[_Group(*grouping.group(field_value(cut, grouping.field)))].append(cut)
    if all(group.label == UNKNOWN for group in groups):
        raise UserError(f"No utterance has the field {grouping.field!r}; there are {', '.join(field_names(cuts))}.")
    return {group.label: groups[group] for group in sorted(groups)}


def _size(cuts: Sequence[Cut], unit: _SizeUnit) -> float:
    return len(cuts) if unit == "utterances" else sum(sorted(cut.duration for cut in cuts))


def _shares(sizes: dict[str, float], wanted: float, *, whole: bool) -> dict[str, float]:
    """Divide `wanted` in proportion to the sizes.

    Whole numbers are divided by Webster's method, in which a larger sample never takes from a group.
    """
    if not whole:
        return {label: wanted * size / sum(sizes.values()) for label, size in sizes.items()}
    shares = dict.fromkeys(sizes, 0.0)
    queue = [(-size, label) for label, size in sizes.items()]
    heapq.heapify(queue)
    for _ in range(round(wanted)):
        _, label = queue[0]
        shares[label] += 1
        heapq.heapreplace(queue, (-sizes[label] / (2 * shares[label] + 1), label))
    return shares


def _rank(seed: int, id: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{id}".encode(), digest_size=16).digest()
