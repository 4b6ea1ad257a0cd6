"""Decode corpora with a base model and with adapted ones, score the texts, and break the scores down."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import CutSet

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.cut import Cut
from ssvd.corpora.decodable import decodable
from ssvd.corpora.selection import common_language, field_names, field_value, select
from ssvd.corpora.sources import short_names
from ssvd.corpora.utterances import Skipped
from ssvd.documents import read_json
from ssvd.errors import UserError
from ssvd.files import write_json, write_json_lines
from ssvd.hardware import pick_device
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding, Transcript
from ssvd.recognisers.loading import Recogniser
from ssvd.scoring import Comparison, Score, WordErrors, compare, score, score_by, usual_normaliser, word_errors
from ssvd.scoring import normaliser as find_normaliser
from ssvd.training.batches import by_length
from ssvd.training.interpolation import scale_of
from ssvd.training.progress import SILENT, Progress
from ssvd.training.run_folder import check_run, load_adapted, load_base, quantise_of, stated_options, vocabulary_of

BASE = "base"
LISTED_ERRORS = 50  # of each kind, in JSON


@dataclass(frozen=True)
class Evaluation:
    """The scores of one system on one corpus.

    Attributes:
        corpus: Name of the corpus: the last parts of its path.
        system: "base", or the run folder or adapter.
        scale: How far the system is from the base model: 0 for the base model itself, 1 for a whole adapter.
        normaliser: Text normaliser of references and hypotheses.
        score: Score over all utterances.
        without_fallback: Score of the texts that the first search found; None where decoding had no fallback.
        groups: Scores by field and value.
        word_errors: How often each word was taken for another, left out, or put in.
        comparison: Comparison with the base model on the same utterances; None for the base model itself.
        seconds: Seconds of decoding.
    """

    corpus: str
    system: str
    scale: float
    normaliser: str
    score: Score
    without_fallback: Score | None
    groups: dict[str, dict[str, Score]]
    word_errors: WordErrors
    comparison: Comparison | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return its fields, ready for JSON."""
        return {
            "corpus": self.corpus,
            "system": self.system,
            "scale": self.scale,
            "normaliser": self.normaliser,
            **self.score.as_dict(),
            "without_fallback": None if self.without_fallback is None else self.without_fallback.as_dict(),
            "groups": {
                name: {value: group.as_dict() for value, group in groups.items()}
                for name, groups in self.groups.items()
            },
            "word_errors": self.word_errors.as_dict(LISTED_ERRORS),
            "compared_with_base": None if self.comparison is None else self.comparison.as_dict(),
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class _Decoded:
    """The texts of a system on a corpus, the seconds that they took, what the model writes, and how it decoded."""

    transcripts: list[Transcript]
    seconds: float
    language: str | None
    phones: Callable[[str], list[str]] | None
    settings: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        return [transcript.text for transcript in self.transcripts]

    @property
    def first_texts(self) -> list[str]:
        return [transcript.first for transcript in self.transcripts]


@dataclass(frozen=True)
class _TestSet:
    """A corpus to decode, its utterances ordered from the longest, and what each system made of it."""

    name: str
    cuts: list[Cut]
    decoded: dict[str, _Decoded] = field(default_factory=dict)

    def rows(self, system: str) -> Iterator[dict[str, Any]]:
        """Yield the reference and the hypothesis of each utterance."""
        for cut, transcript in zip(self.cuts, self.decoded[system].transcripts, strict=True):
            row = {"id": cut.id, "speaker": field_value(cut, "speaker")}
            row |= {"reference": field_value(cut, "text"), "hypothesis": transcript.text}
            yield row if transcript.first == transcript.text else row | {"without_fallback": transcript.first}


def evaluate(
    model: str,
    corpora: Sequence[str],
    *,
    adapters: Sequence[str | Path] = (),
    scale: float | None = None,
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
    page: Path | None = None,
    audio: bool = True,
    progress: Progress = SILENT,
) -> tuple[list[Evaluation], list[Skipped]]:
    """Decode each corpus with the base model and with each adapter on it, and score the texts.

    Args:
        model: The base checkpoint.
        corpora: Paths that `read_corpus` takes.
        adapters: Run folders or PEFT adapters, all with the first one's window and language unless these are given.
        scale: How far to go from the base model to the adapted ones; None for the chosen scale of each run, or 1.
        where: Conditions on fields; see `ssvd.corpora.selection.select`.
        by: Fields to break scores down by; see `ssvd.scoring.score_by`.
        normaliser: Text normaliser; by default, the usual one of each corpus's language, or else the model's.
        window: Length of the input in seconds, where it shall be shorter than the model's own.
        language: Language of utterances that do not state theirs.
        decoding: How texts are searched for.
        batch_size: Number of utterances decoded at once.
        skip_bad: Whether to leave out unusable utterances, those included whose audio cannot be decoded.
        device: Device to compute on.
        out: Folder for `result.json` and `hypotheses/SYSTEM-CORPUS.jsonl`.
        page: HTML file of the errors word by word, and of the utterances with the most errors.
        audio: Whether the page holds recordings of these utterances.
        progress: What the evaluation reports to.

    Returns:
        The evaluations, corpus by corpus, the base model first; and the utterances left out (with `skip_bad`).

    Raises:
        UserError: A corpus, an adapter, a condition or an option is bad.
    """
    if normaliser is not None:
        find_normaliser(normaliser)  # refuses an unknown one before any work
    if out is not None:
        _check_results(out / "result.json")
    if page is not None:
        from ssvd.reports.html import check_page  # Plotly takes a second to import

        check_page(page)
    test_sets, skipped = _read_test_sets(corpora, where, by, skip_bad, progress)
    labels = _labels(adapters)
    scales = {BASE: 0.0} | {str(adapter): scale_of(adapter, scale) for adapter in adapters}
    for system, speech in _systems(model, adapters, scales, window, language):
        speech.module.to(pick_device(device))
        for test_set in test_sets:
            test_set.decoded[system] = _decoded(speech, test_set, system, decoding, batch_size, progress)
            if out is not None:
                hypotheses = out / "hypotheses" / f"{labels[system]}-{test_set.name}.jsonl"
                write_json_lines(hypotheses, test_set.rows(system))
    evaluations = [
        _scored(test_set, system, scales[system], by, normaliser) for test_set in test_sets for system in labels
    ]
    if out is not None:
        rows = [evaluation.as_dict() for evaluation in evaluations]
        write_json(
            out / "result.json", {"model": model, "decoding": test_sets[0].decoded[BASE].settings, "results": rows}
        )
    if page is not None:
        _write_page(page, test_sets, evaluations, labels, audio)
    return evaluations, skipped


def _write_page(
    page: Path, test_sets: Sequence[_TestSet], evaluations: Sequence[Evaluation], labels: Mapping[str, str], audio: bool
) -> None:
    from ssvd.reports.evaluation_page import EvaluatedCorpus, EvaluatedSystem, evaluation_page
    from ssvd.reports.html import write_page

    scored = iter(evaluations)
    corpora = []
    for test_set in test_sets:
        rows = [next(scored) for _ in labels]
        systems = [
            EvaluatedSystem(
                labels[row.system], test_set.decoded[row.system].texts, row.score, row.word_errors, row.comparison
            )
            for row in rows
        ]
        corpora.append(EvaluatedCorpus(test_set.name, rows[0].normaliser, test_set.cuts, systems))
    write_page(page, evaluation_page(corpora, audio=audio))


def _check_results(path: Path) -> None:
    """Refuse to replace a file that is not the result of an evaluation, such as that of a run."""
    try:
        if path.exists() and "results" not in read_json(path):
            raise ValueError
    except (ValueError, TypeError):
        raise UserError(f"{path} is not the result of an evaluation; give another folder.") from None


def _read_test_sets(
    corpora: Sequence[str], where: Sequence[str], by: Sequence[str], skip_bad: bool, progress: Progress
) -> tuple[list[_TestSet], list[Skipped]]:
    """Read the corpora, choose their utterances, and check that scores can be broken down by the fields."""
    if not corpora:
        raise UserError("There is no corpus to evaluate on; name at least one.")
    test_sets: list[_TestSet] = []
    skipped: list[Skipped] = []
    for name, path in zip(short_names(corpora, "corpora"), corpora, strict=True):
        corpus = read_corpus(path, skip_bad=skip_bad)
        skipped += corpus.skipped
        for note in corpus.notes:
            progress.say(note)
        cuts = select(corpus.cuts, where)
        if skip_bad:
            cuts, bad = decodable(cuts, path)  # before any system decodes: all are scored on the same utterances
            skipped += bad
        check_fields(cuts, by, path)
        test_sets.append(_TestSet(name, by_length(cuts)))
    return test_sets, skipped


def _labels(adapters: Sequence[str | Path]) -> dict[str, str]:
    """Return a short name for each system, the base model first, fit for a file."""
    names = short_names(adapters, "adapters")
    if BASE in names:
        raise UserError(f"An adapter must not be called {BASE!r}, which stands for the base model; rename it.")
    return dict(zip([BASE, *map(str, adapters)], [BASE, *names], strict=True))


def _systems(
    model: str,
    adapters: Sequence[str | Path],
    scales: Mapping[str, float],
    window: float | None,
    language: str | None,
) -> Iterator[tuple[str, Recogniser]]:
    """Load the base model and each adapter on it, one at a time, once all adapters are checked."""
    first = stated_options(adapters[0]) if adapters else {}
    window, language = window or first.get("window"), language or first.get("language")
    _check_bases(adapters)
    speech = load_base(model, adapters[0] if adapters else None, window=window, language=language)
    for adapter in adapters:
        check_run(adapter, speech.module, model)
    window = speech.window  # so that the systems differ in nothing but the adapter
    yield BASE, speech
    del speech
    for adapter in adapters:
        name = str(adapter)
        yield name, load_adapted(model, adapter, window=window, language=language, scale=scales[name])


def _check_bases(adapters: Sequence[str | Path]) -> None:
    """Refuse adapters of bases with different heads or differently quantised weights: there is one base model."""
    for adapter in adapters[1:]:
        if quantise_of(adapter) != quantise_of(adapters[0]):
            raise UserError(
                f"{adapter} and {adapters[0]} have differently quantised bases: evaluate them one at a time."
            )
    vocabularies = [vocabulary_of(adapter) for adapter in adapters]
    symbols = [None if vocabulary is None else vocabulary.symbols for vocabulary in vocabularies]
    for adapter, own in zip(adapters, symbols, strict=True):
        if own != symbols[0]:
            raise UserError(f"{adapter} and {adapters[0]} write different symbols: evaluate them one at a time.")


def _decoded(
    speech: Recogniser, test_set: _TestSet, system: str, decoding: Decoding, batch_size: int, progress: Progress
) -> _Decoded:
    """Decode a corpus with a system."""
    started = time.monotonic()
    transcripts: list[Transcript] = []
    for transcript in decode(speech, test_set.cuts, decoding, batch_size=batch_size):
        transcripts.append(transcript)
        progress.advance(f"{system} on {test_set.name}", len(transcripts), len(test_set.cuts))
    settings = decoding.as_dict(has_fallback=speech.has_fallback)
    return _Decoded(transcripts, time.monotonic() - started, speech.language, speech.phones, settings)


def _scored(test_set: _TestSet, system: str, scale: float, by: Sequence[str], normaliser: str | None) -> Evaluation:
    """Score a system on a corpus, and compare it with the base model."""
    cuts, decoded, base = test_set.cuts, test_set.decoded[system], test_set.decoded[BASE]
    references = [field_value(cut, "text") for cut in cuts]
    speakers = [field_value(cut, "speaker") for cut in cuts]
    if normaliser is None:
        language = common_language(CutSet.from_cuts(cuts)) or base.language
        normaliser = usual_normaliser(language, of_phones=base.phones is not None)
    without_fallback = comparison = None
    if base.settings["fallback"]:
        without_fallback = score(references, decoded.first_texts, speakers=speakers, normaliser=normaliser)
    if system != BASE:
        comparison = compare(references, base.texts, decoded.texts, speakers=speakers, normaliser=normaliser)
    records = _records(cuts, decoded.texts, by)
    return Evaluation(
        corpus=test_set.name,
        system=system,
        scale=scale,
        normaliser=normaliser,
        score=score(references, decoded.texts, speakers=speakers, normaliser=normaliser, phones=base.phones),
        without_fallback=without_fallback,
        groups={grouping: score_by(records, grouping, normaliser=normaliser, phones=base.phones) for grouping in by},
        word_errors=word_errors(references, decoded.texts, normaliser=normaliser),
        comparison=comparison,
        seconds=decoded.seconds,
    )


def check_fields(cuts: CutSet, by: Sequence[str], name: str | Path) -> None:
    """Check, before any decoding, that the scores of a corpus can be broken down by these fields.

    Raises:
        UserError: No utterance has one of them, or its bands cannot be read.
    """
    for grouping in by:
        field_name = grouping.partition(":")[0]
        if field_name not in field_names(cuts):
            known = ", ".join(field_names(cuts))
            raise UserError(f"No utterance of {name} has the field {field_name!r}; the fields are: {known}.")
        score_by(_records(list(cuts), [""] * len(cuts), by), grouping, resamples=2)


def decode(
    speech: Recogniser, cuts: Sequence[Cut], decoding: Decoding = DEFAULT_DECODING, *, batch_size: int = 16
) -> Iterator[Transcript]:
    """Yield the transcript of each utterance, in their order."""
    for start in range(0, len(cuts), batch_size):
        yield from speech.decode(speech.collate(cuts[start : start + batch_size], text=False), decoding)


def _records(cuts: Sequence[Cut], texts: Sequence[str], by: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return a record of each utterance with the fields that scores are broken down by."""
    names = [grouping.partition(":")[0] for grouping in by]
    return [
        {"reference": field_value(cut, "text"), "hypothesis": text, "speaker": field_value(cut, "speaker")}
        | {name: field_value(cut, name) for name in names}
        for cut, text in zip(cuts, texts, strict=True)
    ]
