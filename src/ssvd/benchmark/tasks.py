"""The pieces of work of a benchmark, trainings and tests, each of which leaves one record."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from ssvd.adapt import AdaptOptions, adapt
from ssvd.benchmark.corpora import TEST, part_path
from ssvd.benchmark.grid import Grid, Group
from ssvd.benchmark.records import (
    Cell,
    Failure,
    Hypothesis,
    Origin,
    Result,
    ScaledScore,
    TestScore,
    Trial,
    read_record,
    record_path,
    write_hypotheses,
)
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import common_language, field_value
from ssvd.errors import StoppedError, UserError
from ssvd.evaluate import decode
from ssvd.files import is_disk_error, write_json
from ssvd.hardware import forget_peak_memory, hardware, peak_memory, pick_device
from ssvd.methods import Budget, linear_shapes, parameters
from ssvd.recognisers.decoding import Decoding, Fallback, Transcript
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import Recogniser, load_model, load_outline
from ssvd.recognisers.vocabulary import Vocabulary
from ssvd.scoring import score, score_by, usual_normaliser
from ssvd.training.batches import by_length
from ssvd.training.options import changed_options, checked_options
from ssvd.training.progress import Log
from ssvd.training.run_folder import load_adapted, read_config

DECODED_AT_ONCE = 32
_PACKAGES = ("ssvd", "torch", "transformers", "peft", "lightning")
# What a trial takes from the result of its run.
_FROM_RUN = {
    "trainable_parameters",
    "series",
    "best_epoch",
    "best_dev_wer",
    "training_seconds",
    "peak_memory_bytes",
    "adapter_bytes",
    "orthogonality_error",
}


@dataclass(frozen=True)
class Task:
    """A piece of work that leaves one record: a training, or a test of a trained model or of the base model.

    Attributes:
        group: The method at a budget, on a model and a corpus.
        seed: Random seed of the training.
        learning_rate: Learning rate of a training; None for a test.
        chosen: For a test, the learning rate that was chosen; None for the frozen model.
        searched: For a test, the rates that were tried, each with its best dev WER, or None where training failed.
    """

    group: Group
    seed: int
    learning_rate: float | None = None
    chosen: float | None = None
    searched: tuple[tuple[float, float | None], ...] = ()

    @property
    def id(self) -> str:
        """Return the id of the task's record."""
        rate = "" if self.learning_rate is None else f"_lr={self.learning_rate:g}"
        return f"{self.group.id}{rate}_seed={self.seed}"

    @property
    def kind(self) -> type[Trial]:
        """Return the kind of the task's record."""
        return Result if self.learning_rate is None else Trial

    @property
    def cell(self) -> Cell:
        """Return the cell of the comparison that the task belongs to."""
        group = self.group
        return Cell(model=group.model, corpus=group.corpus, method=group.method, budget=group.budget, seed=self.seed)


def setting_of(grid: Grid, group: Group) -> float:
    """Return the method's own number at the group's budget, such as a rank; 0 where it has none.

    Raises:
        UserError: The method cannot reach the budget, or the model cannot be found.
    """
    shapes, total = _outline(grid.checkpoint(group.model), tuple(_layers(grid, group)))
    method = group.adaptation
    return method.setting(shapes, Budget.parse(group.budget), total) if method.unit else 0


def _layers(grid: Grid, group: Group) -> list[str]:
    """Return the groups of layers that are adapted; a method without an adapter has none to choose."""
    usual = grid.training.get("layers", USUAL_GROUPS) if group.adaptation.config else USUAL_GROUPS
    return [*usual, *group.further_layers]


@cache
def _outline(checkpoint: str, wanted: tuple[str, ...] = USUAL_GROUPS) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the shapes of the layers of a model to adapt, and the number of its parameters."""
    module, layers = load_outline(checkpoint, wanted)
    return linear_shapes(module, layers), parameters(module)


def run_task(grid: Grid, out: Path, task: Task, device: str = "auto") -> Trial | Failure:
    """Do a piece of work, and write and return its record, or a record of its failure.

    Raises:
        StoppedError: The work was interrupted, or the disk is full.
    """
    try:
        record = _attempt(grid, out, task, device)
        write_record(out, record)
    except (OSError, RuntimeError) as error:
        if not is_disk_error(error):
            raise
        raise StoppedError(f"Could not write to {out} ({error})", "free some space, and start again.") from error
    return record


def _attempt(grid: Grid, out: Path, task: Task, device: str) -> Trial | Failure:
    """Do a piece of work; errors other than a full disk and interruptions become a record of the failure."""
    started = datetime.now(UTC)
    work = _test if task.learning_rate is None else _train
    try:
        return work(grid, out, task, device, started)
    except StoppedError:
        raise
    except (UserError, RuntimeError, ValueError, OSError) as error:
        if is_disk_error(error):
            raise
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        # Records are published: they do not state where the results lay.
        return failure(task, task.id, reason.replace(f"{out}/", ""), device, started)


def failure(task: Task, name: str, reason: str, device: str, started: datetime) -> Failure:
    """Return the record of the failure of a task, or of its whole group.

    Args:
        task: The task that failed.
        name: Id of the record: that of the task, or of its group.
        reason: Why it failed, as a sentence.
        device: Device that it ran on.
        started: When it began.
    """
    origin = _origin(device, started)
    return Failure(id=name, cell=task.cell, learning_rate=task.learning_rate, reason=reason, origin=origin)


def write_record(out: Path, record: Trial | Failure) -> None:
    """Write a record to its file, whole or not at all."""
    path = record_path(out, type(record), record.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record.model_dump())


def run_folder(out: Path, task: Task) -> Path:
    """Return the run folder of a training."""
    return out / "runs" / task.id


def _train(grid: Grid, out: Path, task: Task, device: str, started: datetime) -> Trial:
    """Train a model, or continue its training, and keep its adapter in the run folder."""
    group, run = task.group, run_folder(out, task)
    options = checked_options(
        grid.training
        | {
            "model": grid.checkpoint(group.model),
            "train": [str(part_path(out, group.corpus, "train"))],
            "dev": [str(part_path(out, group.corpus, "dev"))],
            "skip_bad": grid.skip_bad,
            "method": group.adaptation.name,
            "layers": _layers(grid, group),
            "budget": group.budget or "p=0.4",
            "learning_rate": task.learning_rate,
            "seed": task.seed,
            "device": device,
            "devices": 1,
            "nodes": 1,
        }
    )
    if not _can_continue(run, options):
        shutil.rmtree(run, ignore_errors=True)
    log = out / "logs" / f"{task.id}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        result = adapt(options, run, resume=run.exists(), progress=Log(file))
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    # Names that mean the same on every machine.
    named = {part: [str(part_path(Path(), group.corpus, part))] for part in ("train", "dev")}
    return Trial(
        id=task.id,
        cell=task.cell,
        origin=_origin(device, started),
        options=options.model_dump() | {"model": grid.models[group.model]} | named,
        synthetic=grid.corpora[group.corpus].synthetic is not None,
        setting=setting_of(grid, group) or None,
        model_parameters=_outline(grid.checkpoint(group.model))[1],
        learning_rate=task.learning_rate,
        **result.model_dump(include=_FROM_RUN),
    )


def _can_continue(run: Path, options: AdaptOptions) -> bool:
    """Return whether a run folder holds a training with these options that has begun.

    It does not if the training was killed before anything was computed, or if the checkpoint or the results were moved
    since.
    """
    try:
        return not changed_options(options, checked_options(read_config(run)))
    except UserError:
        return False


def _test(grid: Grid, out: Path, task: Task, device: str, started: datetime) -> Result:
    """Decode and score the test set and the source corpora once, with the trained model or the base model."""
    group, where = task.group, pick_device(device)
    forget_peak_memory(where)
    speech = _load_tested(grid, out, task, where)
    parts = grid.corpora[group.corpus]
    corpora = {part: read_corpus(part_path(out, group.corpus, part)).cuts for part in (TEST, *parts.sources)}
    language = common_language(corpora[TEST]) or speech.language
    normaliser = grid.training.get("normaliser") or usual_normaliser(language)
    fallback = Fallback() if grid.training.get("fallback", True) else None
    decoding = Decoding(grid.training.get("beams", 1), fallback=fallback)
    settings = decoding.as_dict(has_fallback=speech.has_fallback)
    scores = {}
    for part, corpus in corpora.items():
        cuts = by_length(corpus)
        transcripts = decode(speech, cuts, decoding, batch_size=DECODED_AT_ONCE)
        hypotheses = [_hypothesis(*pair, parts.by) for pair in zip(cuts, transcripts, strict=True)]
        write_hypotheses(out, task.id, part, hypotheses)
        by = parts.by if part == TEST else []
        scores[part] = _score(hypotheses, normaliser, by, with_fallback=bool(settings["fallback"]))
    origin, training = _origin(device, started), _training_of(grid, out, task, where)
    if isinstance(training, Trial):
        origin = origin.model_copy(update={"seconds": round(training.origin.seconds + origin.seconds, 2)})
        training = training.model_dump(exclude={"id", "cell", "origin"})
    return Result(
        id=task.id,
        cell=task.cell,
        origin=origin,
        **training,
        search={f"{rate:g}": wer for rate, wer in task.searched},
        normaliser=normaliser,
        decoding=settings,
        test=scores.pop(TEST),
        sources=scores,
        scales=_scaled_scores(grid, out, task, where, corpora, decoding, normaliser),
        audio=_audio(by_length(corpora[TEST]), out),
    )


def _scaled_scores(
    grid: Grid,
    out: Path,
    task: Task,
    device: torch.device,
    corpora: Mapping[str, CutSet],
    decoding: Decoding,
    normaliser: str,
) -> list[ScaledScore]:
    """Decode and score the corpora at the grid's scales of the adapted model, if its method has scales."""
    scores = []
    for scale in grid.scales if task.chosen is not None and task.group.adaptation.can_merge else []:
        speech = _load_tested(grid, out, task, device, scale)
        wers = {}
        for part, corpus in corpora.items():
            cuts = by_length(corpus)
            texts = [transcript.text for transcript in decode(speech, cuts, decoding, batch_size=DECODED_AT_ONCE)]
            references = [field_value(cut, "text") for cut in cuts]
            wers[part] = score(references, texts, normaliser=normaliser, resamples=2).as_dict()["wer"]
        scores.append(ScaledScore(scale=scale, test_wer=wers.pop(TEST), source_wers=wers))
    return scores


def _load_tested(grid: Grid, out: Path, task: Task, device: torch.device, scale: float | None = None) -> Recogniser:
    """Return the model of a test: with the adapter of its training, or the base model without one."""
    checkpoint = grid.checkpoint(task.group.model)
    window, language = grid.training.get("window"), grid.training.get("language")
    if task.chosen is None:
        file = grid.training.get("vocabulary")
        vocabulary = Vocabulary.read(file) if file else None
        quantise = grid.training.get("quantise")
        speech = load_model(checkpoint, window=window, language=language, vocabulary=vocabulary, quantise=quantise)
    else:
        run = run_folder(out, Task(task.group, task.seed, task.chosen))
        speech = load_adapted(checkpoint, run, window=window, language=language, scale=scale)
    speech.module.to(device)
    return speech


def _training_of(grid: Grid, out: Path, task: Task, device: torch.device) -> Trial | dict[str, Any]:
    """Return the trial of a test's training, or what replaces it for the base model."""
    if task.chosen is not None:
        return read_record(record_path(out, Trial, Task(task.group, task.seed, task.chosen).id), Trial)
    return {
        "options": grid.training,
        "synthetic": grid.corpora[task.group.corpus].synthetic is not None,
        "setting": None,
        "trainable_parameters": 0,
        "model_parameters": _outline(grid.checkpoint(task.group.model))[1],
        "learning_rate": None,
        "series": [],
        "best_epoch": 0,
        "best_dev_wer": None,
        "training_seconds": 0.0,
        "peak_memory_bytes": peak_memory(device),
        "adapter_bytes": 0,
    }


def _hypothesis(cut: Any, transcript: Transcript, by: Sequence[str]) -> Hypothesis:
    return Hypothesis(
        id=cut.id,
        speaker=field_value(cut, "speaker"),
        reference=field_value(cut, "text"),
        hypothesis=transcript.text,
        without_fallback=None if transcript.first == transcript.text else transcript.first,
        fields={name: field_value(cut, name) for name in (grouping.partition(":")[0] for grouping in by)},
    )


def _score(hypotheses: Sequence[Hypothesis], normaliser: str, by: Sequence[str], *, with_fallback: bool) -> TestScore:
    """Score hypotheses in all and by fields; `with_fallback` says that the first searches are to be scored too."""
    references = [h.reference for h in hypotheses]
    speakers = [h.speaker for h in hypotheses]
    total = score(references, [h.hypothesis for h in hypotheses], speakers=speakers, normaliser=normaliser)
    first_wer = None
    if with_fallback:
        first = [h.hypothesis if h.without_fallback is None else h.without_fallback for h in hypotheses]
        first_wer = score(references, first, normaliser=normaliser, resamples=2).as_dict()["wer"]
    records = [h.fields | h.model_dump(include={"reference", "hypothesis", "speaker"}) for h in hypotheses]
    groups = {field: score_by(records, field, normaliser=normaliser) for field in by}
    return TestScore(
        **total.as_dict(),
        wer_without_fallback=first_wer,
        groups={
            field: {value: TestScore(**part.as_dict()) for value, part in values.items()}
            for field, values in groups.items()
        },
    )


def _audio(cuts: Sequence[Any], out: Path) -> dict[str, str]:
    """Return the file of each utterance that is a whole recording, by its id; relative to `out` if it lies in it."""
    files = {}
    for cut in cuts:
        source = cut.recording.sources[0]
        if source.type == "file" and cut.start == 0 and abs(cut.duration - cut.recording.duration) < 0.01:
            path = Path(source.source)
            files[cut.id] = str(path.relative_to(out.resolve()) if path.is_relative_to(out.resolve()) else path)
    return files


def _origin(device: str, started: datetime) -> Origin:
    return Origin(
        hardware=hardware(pick_device(device)),
        versions={name: version(name) for name in _PACKAGES},
        commit=_commit(),
        started=started.isoformat(timespec="seconds"),
        seconds=round((datetime.now(UTC) - started).total_seconds(), 2),
    )


@cache
def _commit() -> str | None:
    """Return the commit of the source tree that this package runs from; None where it is installed otherwise."""
    tree = Path(__file__).parents[3]
    if not (tree / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # git is not installed
        return None
