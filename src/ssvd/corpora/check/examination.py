"""Examination of single utterances: their audio, text, length and sampling rate."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ssvd.corpora.audio import decode_in_blocks
from ssvd.corpora.check.doubtful_text import doubt
from ssvd.corpora.check.heard import Heard, measure
from ssvd.corpora.check.kinds import Finding
from ssvd.corpora.check.limits import CANCELLED, CLIPPED_SHARE, IMPOSSIBLE_RATE, SILENCE, Limits
from ssvd.corpora.corpus import MakeCuts
from ssvd.corpora.cut import Cut
from ssvd.corpora.splits import folded_text
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError

Fault = Callable[[Cut], str | None]
"""Returns why a model cannot be trained on a cut; None if it can."""


class Problem(NamedTuple):
    """A kind of finding, and its detail."""

    kind: str
    detail: str


class UtteranceFacts(NamedTuple):
    """What is remembered of an utterance, to compare it with the others.

    Attributes:
        text_rate: Characters, without blanks, per second; None without text.
        text_key: Hash of the text in folded case; None without text.
        audio_key: Hash of what is heard, or of the file and segment if the audio is not decoded.
    """

    where: str
    id: str
    speaker: str | None
    language: str | None
    seconds: float
    sampling_rate: int
    text_rate: float | None
    text_key: int | None
    audio_key: int


class Examination(NamedTuple):
    """The usable utterances of some rows, and the findings."""

    utterances: list[UtteranceFacts]
    findings: list[Finding]


@dataclass(frozen=True)
class Examiner:
    """An examiner of utterances, one by one.

    Attributes:
        limits: What is required of them.
        fault: Says why a model cannot be trained on a cut; None for no such check.
    """

    limits: Limits
    fault: Fault | None = None

    def examine_rows(self, make_cuts: MakeCuts, rows: Iterable[Any]) -> Examination:
        """Examine the utterances of some rows of a corpus, which `make_cuts` turns into cuts."""
        examination = Examination([], [])
        for item in make_cuts(rows):
            if isinstance(item, Skipped):
                examination.findings.append(Finding("unusable", item.where, item.id or None, item.reason))
                continue
            facts, problems = self.examine(item.where, item.cut)
            examination.utterances.append(facts)
            examination.findings.extend(Finding(kind, facts.where, facts.id, detail) for kind, detail in problems)
        return examination

    def examine(self, where: str, cut: Cut) -> tuple[UtteranceFacts, list[Problem]]:
        """Examine one utterance."""
        supervision = cut.supervisions[0]
        text = " ".join((supervision.text or "").split())
        rate = len(text.replace(" ", "")) / cut.duration
        heard, problems = self._examine_audio(cut)
        problems += _examine_text(text, rate) + self._examine_length_and_rate(cut)
        if self.fault is not None and text and (reason := self.fault(cut)):
            problems.append(Problem("untrainable", reason))
        facts = UtteranceFacts(
            where=where,
            id=cut.id,
            speaker=supervision.speaker,
            language=supervision.language,
            seconds=cut.duration,
            sampling_rate=cut.recording.sampling_rate,
            text_rate=rate if text else None,
            text_key=_key(folded_text(cut).encode()) if text else None,
            audio_key=_key(_segment(cut).encode()) if heard is None else heard.key,
        )
        return facts, problems

    def _examine_audio(self, cut: Cut) -> tuple[Heard | None, list[Problem]]:
        """Return what is heard, None if the audio is not decoded, and what is wrong with it."""
        if not self.limits.audio:
            return None, []
        try:
            heard = measure(decode_in_blocks(cut))
        except UserError as error:
            return None, [Problem("unreadable", str(error).removeprefix(f"Utterance {cut.id}: ").rstrip("."))]
        problems = []
        if heard.range < 2 * SILENCE:
            detail = f"nothing is louder than {20 * math.log10(max(heard.peak, 1e-6)):.0f} dB"
            problems.append(
                Problem(
                    "silent", detail + (", as its channels cancel each other" if heard.cancelled > CANCELLED else "")
                )
            )
        elif heard.cancelled > CANCELLED:
            problems.append(Problem("cancelled", f"the mix is {heard.cancelled:.0f} dB quieter than the channels"))
        if heard.full_scale > CLIPPED_SHARE:
            problems.append(Problem("clipped", f"{heard.full_scale:.1%} of the samples are at full scale"))
        return heard, problems

    def _examine_length_and_rate(self, cut: Cut) -> list[Problem]:
        problems = []
        if cut.duration < self.limits.shortest:
            problems.append(Problem("short", f"{cut.duration:.2f} s"))
        if cut.duration > self.limits.longest:
            problems.append(Problem("long", f"{cut.duration:.1f} s"))
        if self.limits.sampling_rate is not None and cut.recording.sampling_rate < self.limits.sampling_rate:
            problems.append(Problem("low sampling rate", f"{cut.recording.sampling_rate} Hz"))
        return problems


def _examine_text(text: str, rate: float) -> list[Problem]:
    if not text:
        return [Problem("no text", "")]
    reason = doubt(text)
    problems = [] if reason is None else [Problem("doubtful text", f"{reason}, in {text[:80]!r}")]
    if rate > IMPOSSIBLE_RATE:
        problems.append(Problem("impossible rate", f"{rate:.0f} characters a second, in {text[:80]!r}"))
    return problems


def _segment(cut: Cut) -> str:
    """Describe the file and the segment, which identify audio that is not decoded."""
    return f"{cut.recording.sources[0].source}\0{cut.start}\0{cut.duration}\0{cut.channel}"


def _key(content: bytes) -> int:
    """Hash to 64 bits; two of a million contents collide with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
