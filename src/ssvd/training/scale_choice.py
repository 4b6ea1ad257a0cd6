"""The choice of an adapter's scale after training: the best on dev that keeps what the base model knew."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lhotse import CutSet

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import common_language, field_value
from ssvd.corpora.sources import short_names
from ssvd.errors import UserError
from ssvd.files import write_json, write_whole
from ssvd.hardware import pick_device
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import Recogniser
from ssvd.scoring import score, usual_normaliser
from ssvd.training.batches import by_length
from ssvd.training.data import sampled
from ssvd.training.interpolation import SCALE_FILE, copied_weights, interpolated, merge_adapter, set_weights
from ssvd.training.options import parse_kept
from ssvd.training.progress import Progress
from ssvd.training.run_folder import load_adapted, load_base
from ssvd_options import AdaptOptions

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Kept:
    """A corpus on which an adapted model must not be much worse than the base model.

    Attributes:
        name: Short name of the corpus.
        cuts: Its utterances, the longest first.
        points: The most that its WER may rise, in percentage points.
    """

    name: str
    cuts: list[Cut]
    points: float


class Tried(NamedTuple):
    """The error rates at a scale, fractions."""

    scale: float
    dev_wer: float
    kept_wers: list[float]

    def in_words(self, kept: Sequence[Kept]) -> str:
        """Return them as a line of the log."""
        parts = [f"{part.name} WER {wer:.1%}" for part, wer in zip(kept, self.kept_wers, strict=True)]
        return "  ".join([f"scale {self.scale:g}", f"dev WER {self.dev_wer:.1%}", *parts])


def read_kept(options: AdaptOptions) -> list[Kept]:
    """Read the corpora of the option `keep`, as many utterances of each as of dev."""
    parsed = [parse_kept(text) for text in options.keep]
    names = short_names([corpus for corpus, _ in parsed], "corpora")
    return [
        Kept(name, by_length(sampled(read_corpus(corpus, skip_bad=options.skip_bad).cuts, options)), points)
        for name, (corpus, points) in zip(names, parsed, strict=True)
    ]


def choose_scale(
    options: AdaptOptions, run: Path, dev: Sequence[Cut], kept: Sequence[Kept], decoding: Decoding, progress: Progress
) -> float:
    """Decode at several scales, choose one, write them to the run folder, and return the chosen one.

    Of the scales at which no kept corpus loses more than its bound, the one with the lowest dev WER is chosen, and of
    equal ones the smallest. The base model, at the scale 0, always keeps the bounds.

    Args:
        options: Options of the run.
        run: The run folder, with the best adapter.
        dev: The dev utterances.
        kept: Corpora to be kept.
        decoding: Settings of decoding.
        progress: What the choice reports to.
    """
    speech = load_base(options.model, run, window=options.window, language=options.language, dequantise=True)
    base = copied_weights(speech.module)
    adapted = load_adapted(
        options.model, run, window=options.window, language=options.language, scale=1, dequantise=True
    )
    merge_adapter(adapted)
    ends = base, copied_weights(adapted.module)
    del adapted
    speech.module.to(pick_device(options.device))
    tried: list[Tried] = []
    for scale in SCALES:
        set_weights(speech.module, interpolated(*ends, scale))
        kept_wers = [_wer(speech, part.cuts, decoding, options) for part in kept]
        tried.append(Tried(scale, _wer(speech, dev, decoding, options), kept_wers))
        progress.say(tried[-1].in_words(kept))
    chosen = best(tried, [part.points for part in kept])
    rows = [
        {
            "scale": point.scale,
            "dev_wer": point.dev_wer,
            "kept_wer": {part.name: wer for part, wer in zip(kept, point.kept_wers, strict=True)},
        }
        for point in tried
    ]
    bounds = {part.name: part.points for part in kept}
    write_json(run / SCALE_FILE, {"scale": chosen.scale, "kept_points": bounds, "tried": rows})
    _note_on_card(run / "adapter" / "README.md", chosen)
    return chosen.scale


def _note_on_card(card: Path, point: Tried) -> None:
    """Say in the model card of an adapter, where there is one, that its figures are those of another scale."""
    note = (
        f"The run chose the scale {point.scale:g}, at which the WER is {point.dev_wer:.1%}; the figures above are "
        "those of the whole adapter. PEFT loads the whole adapter: `ssvd merge` writes the scaled model.\n"
    )
    if point.scale != 1 and card.is_file() and note not in (text := card.read_text(encoding="utf-8")):
        write_whole(card, f"{text.rstrip()}\n\n{note}")


def best(tried: Sequence[Tried], points: Sequence[float]) -> Tried:
    """Return the one of the lowest dev WER at which no kept corpus loses more than so many percentage points.

    Args:
        tried: What was measured at each scale, the base model's first.
        points: The bound of each kept corpus.
    """
    base = tried[0]

    def keeps(point: Tried) -> bool:
        pairs = zip(point.kept_wers, base.kept_wers, points, strict=True)
        return all(100 * (wer - before) <= bound + 1e-9 for wer, before, bound in pairs)

    return min(filter(keeps, tried), key=lambda point: (point.dev_wer, point.scale))


def _wer(speech: Recogniser, cuts: Sequence[Cut], decoding: Decoding, options: AdaptOptions) -> float:
    """Return the WER of a recogniser on utterances, by the usual normaliser of their language."""
    size = 2 * options.batch_size
    texts: list[str] = []
    for start in range(0, len(cuts), size):
        texts += speech.transcribe(speech.collate(cuts[start : start + size], text=False), decoding)
    language = common_language(CutSet.from_cuts(cuts)) or speech.language
    normaliser = options.normaliser or usual_normaliser(language, of_phones=speech.phones is not None)
    wer = score([field_value(cut, "text") for cut in cuts], texts, normaliser=normaliser, resamples=2).wer
    if math.isnan(wer):
        raise UserError("A corpus of keep has no words after normalisation: name another.")
    return wer
