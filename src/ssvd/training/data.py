"""The utterances of a run: those to train on, and those to decode after each epoch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import CutSet

from ssvd.corpora.corpus import read_corpora, read_corpus
from ssvd.corpora.cut import Cut
from ssvd.corpora.decodable import decodable
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import select
from ssvd.corpora.splits import split_by_speaker
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.files import write_json_lines
from ssvd.recognisers.loading import Recogniser
from ssvd.training.batches import by_length
from ssvd.training.progress import Progress
from ssvd_options import AdaptOptions


@dataclass(frozen=True)
class TrainingData:
    """The utterances of a run, as Lhotse cuts.

    Attributes:
        train: Those to train on.
        dev: Those to decode after each epoch, the longest first.
        skipped: Those that were left out.
    """

    train: list[Cut]
    dev: list[Cut]
    skipped: list[Skipped] = field(default_factory=list)


def read_data(options: AdaptOptions, speech: Recogniser, progress: Progress) -> TrainingData:
    """Read the corpora of a run, and choose and check their utterances.

    Raises:
        UserError: A corpus or a condition is bad, or an utterance cannot be trained on.
    """
    skipped: list[Skipped] = []

    def read(paths: list[str]) -> CutSet:
        corpus = read_corpora(paths, skip_bad=options.skip_bad)
        skipped.extend(corpus.skipped)
        for note in corpus.notes:
            progress.say(note)
        cuts = select(corpus.cuts, options.where)
        if not options.skip_bad:
            return cuts
        cuts, bad = decodable(cuts, ", ".join(paths))
        skipped.extend(bad)
        return cuts

    train = read(options.train)
    if options.dev:
        dev = read(options.dev)
    else:
        portions = split_by_speaker(train, {"train": 0.9, "dev": 0.1}, options.seed)
        train, dev = portions["train"], portions["dev"]
        progress.say(f"No dev corpus is given: {len(dev)} utterances by other speakers are held out from training.")
    usable, unusable = _usable(train, speech, options)
    dev_cuts = sampled(dev, options)
    if len(dev_cuts) < len(dev):
        progress.say(f"{options.dev_limit} of {len(dev)} dev utterances are decoded after each epoch (dev_limit).")
    return TrainingData(usable, by_length(dev_cuts), [*skipped, *unusable])


def sampled(corpus: CutSet, options: AdaptOptions) -> list[Cut]:
    """Return the utterances of a corpus, or as many of them by chance as `dev_limit` allows."""
    cuts = list(corpus)
    if len(cuts) <= options.dev_limit:
        return cuts
    return random.Random(options.seed).sample(sorted(cuts, key=lambda cut: cut.id), options.dev_limit)


def _usable(train: CutSet, speech: Recogniser, options: AdaptOptions) -> tuple[list[Cut], list[Skipped]]:
    """Return the utterances that can be trained on, and the others with the reasons why not."""
    reasons = {cut.id: reason for cut in train if (reason := speech.check(cut))}
    if reasons and not options.skip_bad:
        name, reason = next(iter(reasons.items()))
        raise UserError(
            f"Utterance {name} cannot be trained on ({len(reasons)} of {len(train)} cannot). {reason} Leave out all "
            "such utterances with the option skip_bad."
        )
    usable = [cut for cut in train if cut.id not in reasons]
    if not usable:
        first = f" The first of them: {next(iter(reasons.values()))}" if reasons else ""
        raise UserError(f"No utterance of {', '.join(options.train)} can be trained on.{first}")
    return usable, [Skipped(name, reason) for name, reason in reasons.items()]


def stored_data(run: Path) -> TrainingData:
    """Read the utterances that a run stored when it began."""
    train, dev = (list(read_corpus(run / "data" / f"{part}.jsonl.gz").cuts) for part in ("train", "dev"))
    return TrainingData(train, dev)


def store_data(run: Path, data: TrainingData) -> None:
    """Store the utterances of a run in its folder, as they are trained on and scored."""
    for part, cuts in (("train", data.train), ("dev", data.dev)):
        write_cuts(CutSet.from_cuts(cuts), run / "data" / f"{part}.jsonl.gz")


def list_skipped(run: Path, skipped: Sequence[Skipped], progress: Progress) -> None:
    """Write the utterances that were left out to the run folder."""
    if skipped:
        rows = ({"where": utterance.where, "reason": utterance.reason} for utterance in skipped)
        write_json_lines(run / "data" / "skipped.jsonl", rows)
        left_out = f"{len(skipped)} utterances are left out; {run}/data/skipped.jsonl lists them with the reasons."
        progress.say(left_out, warning=True)
