"""Utterances whose audio is sound to its end, which neither headers nor manifests can tell."""

from typing import NamedTuple

from lhotse import CutSet

from ssvd.corpora.audio import decode_in_blocks
from ssvd.corpora.cut import Cut
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.processes import thread_pool

_THREADS = 8


class Decodable(NamedTuple):
    """The utterances that can be decoded, in their order, and those that cannot, with the reason."""

    cuts: CutSet
    skipped: list[Skipped]


def decodable(corpus: CutSet, name: str) -> Decodable:
    """Decode all utterances once, and leave out those that fail.

    Args:
        corpus: The utterances.
        name: Name of the corpus, for the error.

    Raises:
        UserError: None can be decoded.
    """
    cuts: list[Cut] = list(corpus)
    with thread_pool(_THREADS) as pool:
        faults = list(pool.map(_fault, cuts))
    sound = [cut for cut, fault in zip(cuts, faults, strict=True) if fault is None]
    skipped = [fault for fault in faults if fault is not None]
    if not sound and skipped:
        raise UserError(f"No utterance of {name} can be decoded. The first: {skipped[0].reason}.")
    return Decodable(CutSet.from_cuts(sound), skipped)


def _fault(cut: Cut) -> Skipped | None:
    try:
        for _ in decode_in_blocks(cut):
            pass
    except UserError as error:
        prefix = f"Utterance {cut.id}: "
        return Skipped(f"utterance {cut.id}", str(error).removeprefix(prefix).rstrip("."), cut.id)
    return None
