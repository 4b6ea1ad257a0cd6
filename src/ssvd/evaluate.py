"""Decode corpora with a base model and with adapted ones, score the texts, and break the scores down."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import common_language, field_names, field_value, select
from ssvd.corpora.sources import short_names
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.files import write_json, write_json_lines
from ssvd.hardware import pick_device
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding, Transcript
from ssvd.recognisers.loading import Recogniser, load_model
from ssvd.scoring import Comparison, Score, compare, score, score_by, usual_normaliser
from ssvd.scoring import normaliser as find_normaliser
from ssvd.training.batches import by_length
from ssvd.training.run_folder import check_run, load_adapted, read_config

BASE = "base"


@dataclass(frozen=True)
class Evaluation:
    """The scores of one system on one corpus.

    Attributes:
        corpus: Its name: the last parts of its path.
        system: "base", or the run folder of an adapter.
        normaliser: Of both texts before scoring.
        score: Over all utterances.
        without_fallback: The same of what the first search found; None where decoding had no fallback.
        groups: field -> value -> score.
        comparison: With the base model on the same utterances; None for the base model itself.
        seconds: Of decoding.
    """

    corpus: str
    system: str
    normaliser: str
    score: Score
    without_fallback: Score | None
    groups: dict[str, dict[str, Score]]
    comparison: Comparison | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Its fields, ready for JSON."""
        return {
            "corpus": self.corpus,
            "system": self.system,
            "normaliser": self.normaliser,
            **self.score.as_dict(),
            "without_fallback": None if self.without_fallback is None else self.without_fallback.as_dict(),
            "groups": {
                name: {value: part.as_dict() for value, part in parts.items()} for name, parts in self.groups.items()
            },
            "compared_with_base": None if self.comparison is None else self.comparison.as_dict(),
            "seconds": round(self.seconds, 2),
        }


def evaluate(
    model: str,
    corpora: Sequence[str],
    *,
    adapters: Sequence[Path] = (),
    where: Sequence[str] = (),
    by: Sequence[str] = (),
    normaliser: str | None = None,
    window: float | None = None,
    language: str | None = None,
    decoding: Decoding = DEFAULT_DECODING,
    batch_size: int = 16,
    skip_bad: bool = False,
    device: str = "auto",
    out: Path | None = None,
    on_progress: Any = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> tuple[list[Evaluation], list[Skipped]]:
    """Decode each corpus with the base model and with each adapter on it.

    Args:
        model: The base checkpoint.
        corpora: Paths that `read_corpus` takes.
        adapters: Run folders; the window and language of the first are the default for all, so that systems differ in
            nothing but the adapter.
        where: Conditions on fields; see `ssvd.corpora.selection.select`.
        by: Fields to break down by; see `ssvd.scoring.score_by`.
        normaliser: Default for each corpus: the usual one of the language that its utterances or the model state.
        decoding: How texts are searched for.
        out: Folder for `result.json` and `hypotheses/SYSTEM-CORPUS.jsonl`.
        on_progress: Called with (system, corpus, utterances done, of how many).
        on_note: Called with what reading a corpus took for granted, a sentence.

    Returns:
        The evaluations, corpus by corpus, the base model first; and the utterances left out (with `skip_bad`).

    Raises:
        UserError: A corpus, a run folder, a condition or an option is bad.
    """
    names = short_names(corpora, "corpora")
    skipped: list[Skipped] = []
    chosen: dict[str, list[Any]] = {}
    if normaliser is not None:
        find_normaliser(normaliser)  # a bad name is refused before any work
    for name, path in zip(names, corpora, strict=True):
        corpus = read_corpus(path, skip_bad=skip_bad)
        skipped += corpus.skipped
        for note in corpus.notes:
            on_note(note)
        cuts = select(corpus.cuts, where)
        check_fields(cuts, by, path)
        chosen[name] = by_length(cuts)
    first = read_config(adapters[0]) if adapters else {}
    window, language = window or first.get("window"), language or first.get("language")
    texts: dict[tuple[str, str], list[Transcript]] = {}
    seconds: dict[tuple[str, str], float] = {}
    systems = [BASE, *(str(run) for run in adapters)]
    labels = dict(zip(systems, [BASE, *short_names(adapters, "adapters")], strict=True))
    if BASE in [*labels.values()][1:]:
        raise UserError(f"A run folder must not be called {BASE!r}: the untouched model is; rename it.")
    for system in systems:
        if system == BASE:
            speech = load_model(model, window=window, language=language)
            window = speech.window
            how = decoding.as_dict(has_fallback=speech.has_fallback)
            normalisers = {
                name: normaliser or usual_normaliser(common_language(cuts) or speech.language)
                for name, cuts in chosen.items()
            }
            for run in adapters:
                check_run(run, speech.module, model)
        else:
            speech, _ = load_adapted(model, Path(system), window=window, language=language)
        speech.module.to(pick_device(device))
        for name, cuts in chosen.items():
            started = time.monotonic()
            texts[system, name] = []
            for text in decode(speech, cuts, decoding, batch_size=batch_size):
                texts[system, name].append(text)
                if on_progress is not None:
                    on_progress(system, name, len(texts[system, name]), len(cuts))
            seconds[system, name] = time.monotonic() - started
            if out is not None:
                rows = [
                    {"id": cut.id, "speaker": field_value(cut, "speaker")}
                    | {"reference": field_value(cut, "text"), "hypothesis": text.text}
                    | ({} if text.first == text.text else {"without_fallback": text.first})
                    for cut, text in zip(cuts, texts[system, name], strict=True)
                ]
                write_json_lines(out / "hypotheses" / f"{labels[system]}-{name}.jsonl", rows)
    evaluations = []
    for name, cuts in chosen.items():
        normaliser = normalisers[name]
        references = [field_value(cut, "text") for cut in cuts]
        speakers = [field_value(cut, "speaker") for cut in cuts]
        base = [transcript.text for transcript in texts[BASE, name]]
        for system in systems:
            hypotheses = [transcript.text for transcript in texts[system, name]]
            before = [transcript.first for transcript in texts[system, name]]
            records = _records(cuts, hypotheses, by)
            evaluations.append(
                Evaluation(
                    corpus=name,
                    system=system,
                    normaliser=normaliser,
                    score=score(references, hypotheses, speakers=speakers, normaliser=normaliser),
                    without_fallback=score(references, before, speakers=speakers, normaliser=normaliser)
                    if how["fallback"]
                    else None,
                    groups={field: score_by(records, field, normaliser=normaliser) for field in by},
                    comparison=None
                    if system == BASE
                    else compare(references, base, hypotheses, speakers=speakers, normaliser=normaliser),
                    seconds=seconds[system, name],
                )
            )
    if out is not None:
        rows = [evaluation.as_dict() for evaluation in evaluations]
        write_json(out / "result.json", {"model": model, "decoding": how, "results": rows})
    return evaluations, skipped


def check_fields(cuts: CutSet, by: Sequence[str], name: str | Path) -> None:
    """Check, before any decoding, that scores of a corpus can be broken down by these fields.

    Raises:
        UserError: No utterance has one of them, or its bands cannot be read.
    """
    for field in by:
        field_name = field.partition(":")[0]
        if field_name not in field_names(cuts):
            known = ", ".join(field_names(cuts))
            raise UserError(f"No utterance of {name} has the field {field_name!r}; the fields are: {known}.")
        score_by(_records(cuts, [""] * len(cuts), by), field, resamples=2)


def decode(
    speech: Recogniser, cuts: Sequence[Any], decoding: Decoding = DEFAULT_DECODING, *, batch_size: int = 16
) -> Iterator[Transcript]:
    """The text of each utterance, in their order."""
    for start in range(0, len(cuts), batch_size):
        yield from speech.decode(speech.collate(cuts[start : start + batch_size], text=False), decoding)


def _records(cuts: Sequence[Any], texts: Sequence[str], by: Sequence[str]) -> list[dict[str, Any]]:
    fields = [field.partition(":")[0] for field in by]
    return [
        {"reference": field_value(cut, "text"), "hypothesis": text, "speaker": field_value(cut, "speaker")}
        | {field: field_value(cut, field) for field in fields}
        for cut, text in zip(cuts, texts, strict=True)
    ]
