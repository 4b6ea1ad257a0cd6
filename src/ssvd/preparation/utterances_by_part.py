"""Utterances on their way into the parts of a prepared corpus."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet

from ssvd.corpora.cut import Cut
from ssvd.corpora.decodable import decodable
from ssvd.corpora.selection import select
from ssvd.corpora.splits import split_by_speaker
from ssvd.corpora.utterances import Skipped, Utterance, collect, cuts_of
from ssvd_options.preparation import PreparationOptions

Progress = Callable[[str], None]
"""Called with what is being done, as a phrase."""

NO_CONDITION = "does not meet the conditions"
"""The rule that leaves out utterances that are not selected."""

_HEADERS = "headers.partial.jsonl"


@dataclass(frozen=True)
class UtterancesByPart:
    """Utterances by part, "" for those that have none yet, and the utterances that were left out."""

    parts: dict[str, CutSet]
    left_out: list[Skipped]

    def divide(self, part: str, options: PreparationOptions) -> "UtterancesByPart":
        """Select the utterances that meet the conditions (and, to skip bad ones, can be decoded); divide one part.

        Args:
            part: The part to divide; nothing is divided if it is empty.
            options: Conditions, whether to skip bad utterances, portions of speakers, seed and field of balance.

        Raises:
            UserError: No utterance meets the conditions or can be decoded, or the part cannot be divided.
        """
        selected = self._select(options.where)
        if options.skip_bad:
            selected = selected._without_undecodable()
        if not selected.parts.get(part):
            return selected
        divided = split_by_speaker(selected.parts[part], options.portions, options.seed, balance=options.balance)
        others = {name: cuts for name, cuts in selected.parts.items() if name != part}
        return UtterancesByPart(others | divided, selected.left_out)

    def _select(self, conditions: Sequence[str]) -> "UtterancesByPart":
        if not conditions:
            return self
        everything = self._all()
        selected = {cut.id for cut in select(everything, conditions)}
        reason = f"it does not meet {' and '.join(conditions)}"
        dropped = [
            Skipped(cut.recording.sources[0].source, reason, cut.id, NO_CONDITION)
            for cut in everything
            if cut.id not in selected
        ]
        return self._only(selected, dropped)

    def _without_undecodable(self) -> "UtterancesByPart":
        sound, bad = decodable(self._all(), "the corpus")
        return self._only({cut.id for cut in sound}, bad)

    def _all(self) -> CutSet:
        return CutSet.from_cuts(cut for cuts in self.parts.values() for cut in cuts)

    def _only(self, ids: Collection[str], dropped: list[Skipped]) -> "UtterancesByPart":
        parts = {part: [cut for cut in cuts if cut.id in ids] for part, cuts in self.parts.items()}
        return UtterancesByPart({part: CutSet.from_cuts(cuts) for part, cuts in parts.items()}, self.left_out + dropped)


def headers_file(out: Path) -> Path:
    """Return the file that keeps the headers of audio in a folder until its preparation is finished."""
    return out / _HEADERS


def report_headers(on_progress: Progress) -> Callable[[int, int], None]:
    """Return a function that reports the number of headers read and the number of all headers."""
    return lambda done, total: on_progress(f"Reading the headers of audio files: {done:,} of {total:,}")


def read_audio(
    items: Sequence[Utterance | Skipped],
    corpus: Path,
    out: Path,
    *,
    skip_bad: bool,
    on_progress: Progress,
    outside: str = "",
) -> UtterancesByPart:
    """Read the headers of audio files and return the usable utterances by the part that their corpus states.

    Args:
        items: The utterances of a corpus.
        corpus: The folder of the corpus, for errors.
        out: The folder that keeps the headers until its preparation is finished.
        skip_bad: Leave out utterances that cannot be used, instead of stopping.
        on_progress: Called with what is being done.
        outside: The rule that leaves out segments beyond the end of their recording; "" if they are bad.

    Raises:
        UserError: An utterance is bad and `skip_bad` is false, or none remains.
    """
    cuts = cuts_of(items, headers_file(out), outside=outside, on_progress=report_headers(on_progress))
    checked = collect(cuts, str(corpus), skip_bad=skip_bad)
    part_of: dict[str, str] = {}
    for item in items:
        if isinstance(item, Utterance):
            part_of.setdefault(item.id, item.part)
    parts: dict[str, list[Cut]] = {}
    for cut in checked.cuts:
        parts.setdefault(part_of[cut.id], []).append(cut)
    return UtterancesByPart({part: CutSet.from_cuts(cuts) for part, cuts in parts.items()}, checked.skipped)
