"""A filter for utterances whose transcript does not fit their audio, according to a recogniser."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jiwer
from lhotse import CutSet
from pydantic import BaseModel, ConfigDict

from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import field_value
from ssvd.corpora.utterances import Skipped
from ssvd.evaluate import decode
from ssvd.files import Journal
from ssvd.hardware import pick_device
from ssvd.recognisers.loading import load_model
from ssvd.scoring import normaliser
from ssvd.training.batches import by_length

LARGEST_WER = 0.5


class _Heard(BaseModel):
    """A line of the file of hypotheses: what a recogniser made of an utterance."""

    model_config = ConfigDict(extra="forbid")

    id: str
    model: str
    hypothesis: str


def drop_mismatched(
    parts: Mapping[str, CutSet],
    model: str,
    hypotheses: Path,
    *,
    filtered: Sequence[str],
    device: str = "auto",
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, CutSet], list[Skipped]]:
    """Leave out utterances whose word error rate under a recogniser exceeds 50 % (Kid-Whisper, arXiv 2309.07927).

    Reference (the field transcript, else the text) and hypothesis are compared after Whisper's English normaliser.

    Args:
        parts: The utterances by part.
        model: The recogniser: a checkpoint that `load_model` takes.
        hypotheses: JSON Lines with the id, model and hypothesis of each utterance. Those that it already holds are not
            decoded again, so that an interrupted run can continue.
        filtered: The parts to filter.
        device: Device to compute on.
        batch_size: Number of utterances per batch.
        on_progress: Called with the number of utterances decoded and the number of all.

    Returns:
        The parts, and the utterances that were left out.

    Raises:
        UserError: The model cannot be used, or an utterance cannot be decoded.
    """
    wanted = by_length(cut for part in filtered for cut in parts.get(part, ()))
    with Journal(hypotheses, _Heard) as journal:
        earlier = {row.id: row.hypothesis for row in journal.rows if row.model == model}
        decoded = {cut.id: earlier[cut.id] for cut in wanted if cut.id in earlier}
        missing = [cut for cut in wanted if cut.id not in decoded]
        if missing:
            speech = load_model(model, language="en")
            speech.module.to(pick_device(device))
            texts = (transcript.text for transcript in decode(speech, missing, batch_size=batch_size))
            for done, (cut, text) in enumerate(zip(missing, texts, strict=True), start=len(decoded) + 1):
                decoded[cut.id] = text
                journal.add(_Heard(id=cut.id, model=model, hypothesis=text))
                if on_progress is not None:
                    on_progress(done, len(wanted))
    left_out = {
        cut.id: Skipped(
            cut.recording.sources[0].source,
            f"{model} hears {decoded[cut.id]!r}, a WER of {wer:.0%}",
            cut.id,
            f"WER over {LARGEST_WER:.0%}",
        )
        for cut in wanted
        if (wer := _wer(cut, decoded[cut.id])) > LARGEST_WER
    }
    kept = {part: CutSet.from_cuts(cut for cut in cuts if cut.id not in left_out) for part, cuts in parts.items()}
    return kept, list(left_out.values())


def _wer(cut: Cut, hypothesis: str) -> float:
    """Compute the word error rate after normalisation; infinite if the reference has no word."""
    normalise = normaliser("english")
    reference = normalise(field_value(cut, "transcript") or field_value(cut, "text"))
    return float(jiwer.wer(reference, normalise(hypothesis))) if reference else float("inf")
