"""A filter for utterances whose transcript does not fit their audio, according to a recogniser."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jiwer
from lhotse import CutSet
from pydantic import BaseModel, ConfigDict

from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import common_language, field_names, field_value
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.files import Journal
from ssvd.grouping import Grouping
from ssvd.hardware import pick_device
from ssvd.scoring import normaliser, usual_normaliser
from ssvd.training.batches import by_length

_LARGEST_PERCENT = 1000
LARGEST_WER = 0.5  # as in Kid-Whisper (arXiv 2309.07927)


@dataclass(frozen=True)
class Thresholds:
    """The largest WER of an utterance that is kept, by its group.

    Attributes:
        grouping: What divides utterances into groups; None if the same holds for all.
        by_group: The largest WER of each group, a fraction.
        otherwise: The largest WER of all other utterances.
    """

    grouping: Grouping | None
    by_group: Mapping[str, float]
    otherwise: float

    @classmethod
    def parse(cls, text: str) -> "Thresholds":
        """Read a percentage, "40", or one for each group, "age:3-4=60,5-7=40" or "gender:f=60,m=40".

        Raises:
            UserError: It cannot be read, a percentage is not possible, or two groups overlap.
        """
        field, has_groups, items = text.partition(":")
        if not has_groups:
            return cls(None, {}, _fraction(text, text))
        pairs = [item.rpartition("=") for item in items.split(",")]
        labels = [label.strip() for label, _, _ in pairs]
        if not field or not all(labels) or len({*labels}) < len(labels):
            raise UserError(f"The largest WERs {text!r} cannot be read: write them as age:3-4=60,5-7=40.")
        by_group = {label: _fraction(percent, text) for label, (_, _, percent) in zip(labels, pairs, strict=True)}
        is_band = [re.fullmatch(r"\d+(\.\d+)?-\d+(\.\d+)?", label) is not None for label in labels]
        if any(is_band) and not all(is_band):
            raise UserError(f"The groups of {text!r} are bands and values: give either, as age:3-4=60,5-7=40.")
        grouping = Grouping.parse(f"{field}:{','.join(labels)}" if all(is_band) else field)
        bands = sorted(grouping.bands.values())
        if any(low > high for low, high in bands) or any(high >= low for (_, high), (low, _) in pairwise(bands)):
            raise UserError(f"The groups of {text!r} overlap or run backwards: an utterance has one largest WER.")
        return cls(grouping, by_group, LARGEST_WER)

    def of(self, cut: Cut) -> float:
        """Return the largest WER of an utterance that is kept, a fraction."""
        if self.grouping is None:
            return self.otherwise
        _, group = self.grouping.group(field_value(cut, self.grouping.field))
        return self.by_group.get(group, self.otherwise)

    def check(self, parts: Mapping[str, CutSet]) -> None:
        """Check that utterances have the field that they are grouped by.

        Raises:
            UserError: None has it.
        """
        if self.grouping is None:
            return
        names = dict.fromkeys(name for cuts in parts.values() for name in field_names(cuts))
        if self.grouping.field not in names:
            raise UserError(
                f"No utterance has the field {self.grouping.field!r}, by which the filter has groups; the fields are: "
                f"{', '.join(names)}."
            )


def _fraction(percent: str, text: str) -> float:
    try:
        number = float(percent)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _LARGEST_PERCENT:
        raise UserError(
            f"The largest WER {percent.strip()!r} of {text!r} is no percentage from 0 to {_LARGEST_PERCENT}: write 50, "
            "or age:3-4=60,5-7=40."
        )
    return number / 100


class _Heard(BaseModel):
    """A line of the file of hypotheses: what a recogniser made of an utterance."""

    model_config = ConfigDict(extra="forbid")

    id: str
    model: str
    hypothesis: str


_KID_WHISPER = Thresholds(None, {}, LARGEST_WER)


def drop_mismatched(
    parts: Mapping[str, CutSet],
    model: str,
    hypotheses: Path,
    *,
    filtered: Sequence[str],
    thresholds: Thresholds = _KID_WHISPER,
    language: str | None = None,
    device: str = "auto",
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, CutSet], list[Skipped]]:
    """Leave out utterances whose word error rate under a recogniser is too high (Kid-Whisper, arXiv 2309.07927).

    Reference (the field transcript, else the text) and hypothesis are compared after the usual normaliser of the
    language, which for English is Whisper's.

    Args:
        parts: The utterances by part.
        model: The recogniser: a checkpoint that `load_model` takes.
        hypotheses: JSON Lines with the id, model and hypothesis of each utterance. Those that it already holds are not
            decoded again, so that an interrupted run can continue.
        filtered: The parts to filter.
        thresholds: The largest word error rate that is kept.
        language: Language of utterances that do not state theirs.
        device: Device to compute on.
        batch_size: Number of utterances per batch.
        on_progress: Called with the number of utterances decoded and the number of all.

    Returns:
        The parts, and the utterances that were left out.

    Raises:
        UserError: The model cannot be used, an utterance cannot be decoded, or none has the field of the thresholds.
    """
    thresholds.check(parts)
    wanted = by_length(cut for part in filtered for cut in parts.get(part, ()))
    with Journal(hypotheses, _Heard) as journal:
        earlier = {row.id: row.hypothesis for row in journal.rows if row.model == model}
        decoded = {cut.id: earlier[cut.id] for cut in wanted if cut.id in earlier}
        missing = [cut for cut in wanted if cut.id not in decoded]
        if missing:
            # They import PEFT, which takes seconds, and most corpora are prepared without a model.
            from ssvd.evaluate import decode
            from ssvd.recognisers.loading import load_model

            speech = load_model(model, language=language)
            speech.module.to(pick_device(device))
            texts = (transcript.text for transcript in decode(speech, missing, batch_size=batch_size))
            for done, (cut, text) in enumerate(zip(missing, texts, strict=True), start=len(decoded) + 1):
                decoded[cut.id] = text
                journal.add(_Heard(id=cut.id, model=model, hypothesis=text))
                if on_progress is not None:
                    on_progress(done, len(wanted))
    usual = usual_normaliser(common_language(CutSet.from_cuts(wanted)) or language)
    left_out = {
        cut.id: Skipped(
            cut.recording.sources[0].source,
            f"{model} hears {decoded[cut.id]!r}, a WER of {wer:.0%}",
            cut.id,
            f"WER over {100 * thresholds.of(cut):g}%",
        )
        for cut in wanted
        if (wer := _wer(cut, decoded[cut.id], usual)) > thresholds.of(cut)
    }
    kept = {part: CutSet.from_cuts(cut for cut in cuts if cut.id not in left_out) for part, cuts in parts.items()}
    return kept, list(left_out.values())


def _wer(cut: Cut, hypothesis: str, usual: str) -> float:
    """Compute the word error rate after normalisation; infinite if the reference has no word."""
    normalise = normaliser(usual)
    reference = normalise(field_value(cut, "transcript") or field_value(cut, "text"))
    return float(jiwer.wer(reference, normalise(hypothesis))) if reference else float("inf")
