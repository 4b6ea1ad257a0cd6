"""Corpora that are checked, selected and divided once, into a folder; see `ssvd.preparation.prepared_folder`.

The options of each corpus are in `ssvd_options.preparation`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssvd.corpora.corpus import read_corpus
from ssvd.files import state_of
from ssvd.preparation import cgn, myst
from ssvd.preparation.filtering import Thresholds, drop_mismatched
from ssvd.preparation.listings import Listings
from ssvd.preparation.prepared_folder import Preparation, Prepared
from ssvd.preparation.speechocean762 import read_speechocean762
from ssvd.preparation.utterances_by_part import Progress, UtterancesByPart, headers_file, read_audio, report_headers
from ssvd_options.preparation import (
    CgnOptions,
    MystOptions,
    PreparationOptions,
    SourceOptions,
    Speechocean762Options,
)

_DEFAULT_SOURCE = SourceOptions()
_DEFAULT_MYST = MystOptions()
_DEFAULT_CGN = CgnOptions()
_DEFAULT_SPEECHOCEAN762 = Speechocean762Options()


def _silent(phrase: str) -> None:
    pass


def prepare_source(
    source: str, out: Path, options: SourceOptions = _DEFAULT_SOURCE, *, on_progress: Progress = _silent
) -> Prepared:
    """Prepare anything that `ssvd.corpora.read_corpus` reads, divided by speaker.

    Args:
        source: What `read_corpus` takes.
        out: The folder to make.
        options: The options.
        on_progress: Called with what is being done.

    Raises:
        UserError: The source is bad, or `out` was prepared from another one or with other options.
    """
    notes: list[str] = []

    def build() -> UtterancesByPart:
        on_progress("Reading")
        corpus = read_corpus(
            source,
            skip_bad=options.skip_bad,
            headers=headers_file(out),
            on_progress=report_headers(on_progress),
        )
        notes.extend(corpus.notes)
        return _filtered(
            UtterancesByPart({"": corpus.cuts}, corpus.skipped).divide("", options), options, out, on_progress
        )

    return replace(Preparation("other", source, _recorded(options)).write(out, build), notes=tuple(notes))


def prepare_myst(
    corpus: Path, out: Path, options: MystOptions = _DEFAULT_MYST, *, on_progress: Progress = _silent
) -> Prepared:
    """Prepare MyST; see `ssvd.preparation.myst.read_myst`. Version 0.3.0, which has no parts, is divided by speaker.

    Args:
        corpus: The folder of the corpus.
        out: The folder to make.
        options: The options.
        on_progress: Called with what is being done.

    Raises:
        UserError: The corpus or a list is bad, the model of the filter cannot be used, or `out` was prepared from
            something else or with other options.
    """
    rules = myst.RULES[options.rules]
    listings = Listings(options.ids)

    def build() -> UtterancesByPart:
        on_progress("Reading transcripts")
        items = myst.read_myst(corpus, rules, listings)
        utterances = read_audio(items, corpus, out, skip_bad=options.skip_bad, on_progress=on_progress)
        return _filtered(utterances.divide("", options), options, out, on_progress, language="en")

    recorded = {
        "rules": options.rules,
        "ids": _states(options.ids, listings),
        "filter_model": options.filter_model,
        "filtered": options.filtered,
        **_recorded(options),
    }
    return Preparation("myst", corpus, recorded, rules.summary, myst.PAPER, listings.files).write(out, build)


def prepare_cgn(
    corpus: Path, out: Path, options: CgnOptions = _DEFAULT_CGN, *, on_progress: Progress = _silent
) -> Prepared:
    """Prepare CGN, divided by speaker; see `ssvd.preparation.cgn.read_cgn`.

    With a list of the recordings of a part, everything that is in no such list is train, and nothing is divided.

    Args:
        corpus: The folder of the corpus.
        out: The folder to make.
        options: The options.
        on_progress: Called with what is being done.

    Raises:
        UserError: The corpus or a list is bad, or `out` was prepared from something else or with other options.
    """
    listings = Listings(options.recordings)

    def build() -> UtterancesByPart:
        on_progress("Reading annotations")
        items = cgn.read_cgn(
            corpus,
            audio=options.audio,
            components=options.letters,
            varieties=options.chosen_varieties,
            overlap=options.overlap == "keep",
            unknown_speakers=options.unknown_speakers,
            listings=listings,
        )
        utterances = read_audio(
            items, corpus, out, skip_bad=options.skip_bad, on_progress=on_progress, outside=cgn.OUTSIDE
        )
        return _filtered(utterances.divide("", options), options, out, on_progress, language="nl")

    recorded = {
        "audio": None if options.audio is None else str(options.audio.absolute()),
        "components": options.letters,
        "varieties": options.chosen_varieties,
        "overlap": options.overlap == "keep",
        "unknown_speakers": options.unknown_speakers,
        "recordings": _states(options.recordings, listings),
        **_recorded(options),
    }
    return Preparation("cgn", corpus, recorded, cgn.RULES, cgn.PAPER, listings.files).write(out, build)


def prepare_speechocean762(
    corpus: Path,
    out: Path,
    options: Speechocean762Options = _DEFAULT_SPEECHOCEAN762,
    *,
    on_progress: Progress = _silent,
) -> Prepared:
    """Prepare speechocean762; its official train part is divided into train and dev, its test part stays as it is.

    Args:
        corpus: The folder of the corpus.
        out: The folder to make.
        options: The options.
        on_progress: Called with what is being done.

    Raises:
        UserError: The corpus is bad, or `out` was prepared from something else or with other options.
    """

    def build() -> UtterancesByPart:
        on_progress("Reading")
        items = read_speechocean762(corpus)
        utterances = read_audio(items, corpus, out, skip_bad=options.skip_bad, on_progress=on_progress)
        return _filtered(utterances.divide("train", options), options, out, on_progress, language="en")

    return Preparation("speechocean762", corpus, _recorded(options)).write(out, build)


def _filtered(
    utterances: UtterancesByPart,
    options: PreparationOptions,
    out: Path,
    on_progress: Progress,
    language: str | None = None,
) -> UtterancesByPart:
    """Return the utterances that a recogniser hears as they are transcribed, if the options name one."""
    if options.filter_model is None:
        return utterances
    kept, dropped = drop_mismatched(
        utterances.parts,
        options.filter_model,
        out / "hypotheses.jsonl",
        filtered=options.filtered,
        thresholds=Thresholds.parse(options.filter_wer),
        language=language,
        device=options.device,
        batch_size=options.batch_size,
        on_progress=lambda done, total: on_progress(f"{options.filter_model} has decoded {done:,} of {total:,}"),
    )
    return UtterancesByPart(kept, utterances.left_out + dropped)


def _recorded(options: PreparationOptions) -> dict[str, Any]:
    """Return the options that all corpora have, as they stand in prepared.json: of the filter only where it is used."""
    Thresholds.parse(options.filter_wer)  # a wrong one is told before anything is read
    recorded: dict[str, Any] = {
        "where": options.where,
        "portions": options.portions,
        "seed": options.seed,
        "balance": options.balance,
        "skip_bad": options.skip_bad,
    }
    if options.filter_model is not None:
        recorded |= {"filter_model": options.filter_model, "filtered": options.filtered}
        if options.filter_wer != PreparationOptions.model_fields["filter_wer"].default:
            recorded["filter_wer"] = options.filter_wer
    return recorded


def _states(lists: Sequence[str], listings: Listings) -> list[list[str]]:
    """Return each list as it was given, with the state of its file, as they stand in prepared.json."""
    return [[given, state_of(file)] for given, file in zip(lists, listings.files, strict=True)]
