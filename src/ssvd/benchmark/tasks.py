"""What is computed in a benchmark: corpora once, then training runs and tests, each leaving one record."""

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from ssvd.adapt import AdaptOptions, adapt
from ssvd.benchmark.grid import CorpusParts, Grid, Group
from ssvd.benchmark.records import (
    Cell,
    Failure,
    Hypothesis,
    Origin,
    Result,
    TestScore,
    Trial,
    read_record,
    record_path,
    write_hypotheses,
)
from ssvd.corpora.corpus import read_corpora, read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import common_language, field_value, select
from ssvd.corpora.utterances import Skipped
from ssvd.demo.synthetic import write_corpus
from ssvd.errors import StoppedError, UserError
from ssvd.evaluate import check_fields, decode
from ssvd.files import is_disk_error, write_json
from ssvd.hardware import forget_peak_memory, hardware, peak_memory, pick_device
from ssvd.methods.table import Budget, find_method, linear_shapes, parameters
from ssvd.recognisers.decoding import Decoding, Fallback, Transcript
from ssvd.recognisers.loading import load_model, load_outline
from ssvd.scoring import score, score_by, usual_normaliser
from ssvd.training.batches import by_length
from ssvd.training.options import changed_options, checked_options
from ssvd.training.progress import Log
from ssvd.training.run_folder import load_adapted, read_config

TEST = "test"
DECODED_AT_ONCE = 32
# Sizes of the synthetic corpora: utterances and speakers.
_SYNTHETIC_PARTS = {"dev": (64, 8, 2), TEST: (200, 20, 3), "adult": (200, 20, 4)}


@dataclass(frozen=True)
class Task:
    """A piece of work that leaves one record.

    Attributes:
        group: What it belongs to.
        seed: Of the training.
        learning_rate: Of a training; None for a test.
        chosen: Of a test, the learning rate that was chosen; None for the frozen model.
        searched: Of a test, the rates that were tried, each with its best dev WER or None where it failed.
    """

    group: Group
    seed: int
    learning_rate: float | None = None
    chosen: float | None = None
    searched: tuple[tuple[float, float | None], ...] = ()

    @property
    def id(self) -> str:
        """Of its record."""
        rate = "" if self.learning_rate is None else f"_lr={self.learning_rate:g}"
        return f"{self.group.id}{rate}_seed={self.seed}"

    @property
    def kind(self) -> type[Trial]:
        """Of its record."""
        return Result if self.learning_rate is None else Trial


# -- corpora


def prepare_corpora(grid: Grid, out: Path, console: Console) -> list[Skipped]:
    """Read, check and choose the utterances of every corpus, once; they stand in OUT/data/CORPUS.

    Returns:
        Utterances that are left out, where the grid allows it.

    Raises:
        UserError: A corpus, or a condition, is bad.
    """
    skipped: list[Skipped] = []
    for name, parts in grid.corpora.items():
        folder = out / "data" / name
        if (folder / "complete").is_file():
            continue
        if parts.synthetic:
            console.print(f"{name}: making {parts.utterances + 464} utterances of synthetic speech")
            parts = _synthetic(parts, folder)
        for part, paths in {"train": parts.train, "dev": parts.dev, TEST: parts.test, **parts.sources}.items():
            corpus = read_corpora(paths, skip_bad=grid.skip_bad)
            skipped += corpus.skipped
            cuts = corpus.cuts if part in parts.sources else select(corpus.cuts, parts.where)
            if part == TEST:
                check_fields(cuts, parts.by, f"the test set of {name}")
            write_cuts(cuts, folder / f"{part}.jsonl.gz")
        (folder / "complete").touch()
    return skipped


def _synthetic(parts: CorpusParts, folder: Path) -> CorpusParts:
    kind = parts.synthetic
    assert kind is not None
    sizes = {"train": (parts.utterances, max(4, parts.utterances // 20), 1), **_SYNTHETIC_PARTS}
    tables = {
        part: str(write_corpus(folder / "speech" / part, "adult" if part == "adult" else kind, count, speakers, seed))
        for part, (count, speakers, seed) in sizes.items()
    }
    sources = {"adult": [tables.pop("adult")]}
    return parts.model_copy(update={part: [table] for part, table in tables.items()} | {"sources": sources})


def part_path(out: Path, corpus: str, part: str) -> Path:
    """The cuts of a part of a corpus, once prepared."""
    return out / "data" / corpus / f"{part}.jsonl.gz"


# -- work


def setting_of(grid: Grid, group: Group) -> float:
    """What the method is set by at the group's budget.

    Raises:
        UserError: The budget is out of reach, or the model cannot be found.
    """
    shapes, total = _outline(grid.checkpoint(group.model))
    method = find_method(group.method)
    return method.setting(shapes, Budget.parse(group.budget), total) if method.unit else 0


@cache
def _outline(checkpoint: str) -> tuple[dict[str, tuple[int, int]], int]:
    module, layers = load_outline(checkpoint)
    return linear_shapes(module, layers), parameters(module)


def run_task(grid: Grid, out: Path, task: Task, device: str = "auto") -> Trial | Failure:
    """Do a piece of work and write its record, or that it failed.

    Returns:
        What was written.

    Raises:
        StoppedError: It was interrupted, or the disk is full.
    """
    try:
        record = _attempted(grid, out, task, device)
        write_record(out, record)
    except (OSError, RuntimeError) as error:
        if not is_disk_error(error):
            raise
        raise StoppedError(f"Could not write to {out} ({error})", "free some space, and start again.") from error
    return record


def _attempted(grid: Grid, out: Path, task: Task, device: str) -> Trial | Failure:
    started = datetime.now(UTC)
    try:
        return (_tested if task.learning_rate is None else _trained)(grid, out, task, device, started)
    except StoppedError:
        raise
    except (UserError, RuntimeError, ValueError, OSError) as error:
        if is_disk_error(error):
            raise
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        # Records are passed on: where the results lay is nobody's business.
        return failure(task, task.id, reason.replace(f"{out}/", ""), device, started)


def failure(task: Task, name: str, reason: str, device: str, started: datetime) -> Failure:
    """The record of a task, or of its group, that could not be done."""
    return Failure(
        id=name, cell=cell_of(task), learning_rate=task.learning_rate, reason=reason, origin=_origin(device, started)
    )


def _origin(device: str, started: datetime) -> Origin:
    return Origin(
        hardware=hardware(pick_device(device)),
        versions={name: version(name) for name in ("ssvd", "torch", "transformers", "peft", "lightning")},
        commit=_commit(),
        started=started.isoformat(timespec="seconds"),
        seconds=round((datetime.now(UTC) - started).total_seconds(), 2),
    )


def write_record(out: Path, record: Trial | Failure) -> None:
    """Write a record, whole or not at all."""
    path = record_path(out, type(record), record.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record.model_dump())


def cell_of(task: Task) -> Cell:
    """What a task is about."""
    group = task.group
    return Cell(model=group.model, corpus=group.corpus, method=group.method, budget=group.budget, seed=task.seed)


def _trained(grid: Grid, out: Path, task: Task, device: str, started: datetime) -> Trial:
    group, run = task.group, run_folder(out, task)
    options = checked_options(
        grid.training
        | {
            "model": grid.checkpoint(group.model),
            "train": [str(part_path(out, group.corpus, "train"))],
            "dev": [str(part_path(out, group.corpus, "dev"))],
            "skip_bad": grid.skip_bad,
            "method": group.method,
            "budget": group.budget or "p=0.4",
            "learning_rate": task.learning_rate,
            "seed": task.seed,
            "device": device,
        }
    )
    if not _can_continue(run, options):
        shutil.rmtree(run, ignore_errors=True)
    log = out / "logs" / f"{task.id}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        result = adapt(options, run, resume=run.exists(), progress=Log(file))
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    _, total = _outline(grid.checkpoint(group.model))
    return Trial(
        id=task.id,
        cell=cell_of(task),
        origin=_origin(device, started),
        options=options.model_dump()
        | {"model": grid.models[group.model]}  # by names that mean the same elsewhere
        | {part: [str(part_path(Path(), group.corpus, part))] for part in ("train", "dev")},
        synthetic=grid.corpora[group.corpus].synthetic is not None,
        setting=setting_of(grid, group) or None,
        model_parameters=total,
        learning_rate=task.learning_rate,
        **result.model_dump(
            include={
                "trainable_parameters",
                "series",
                "best_epoch",
                "best_dev_wer",
                "training_seconds",
                "peak_memory_bytes",
                "adapter_bytes",
                "orthogonality_error",
            }
        ),
    )


def _can_continue(run: Path, options: AdaptOptions) -> bool:
    """Not where it was killed before anything was computed, or the checkpoint or the results were moved since."""
    try:
        return not changed_options(options, checked_options(read_config(run)))
    except UserError:
        return False


def run_folder(out: Path, task: Task) -> Path:
    """Of a training."""
    return out / "runs" / task.id


def _tested(grid: Grid, out: Path, task: Task, device: str, started: datetime) -> Result:
    """Decode the test set and the source corpora once, with the trained model, or the untouched one."""
    group, checkpoint = task.group, grid.checkpoint(task.group.model)
    window, language = grid.training.get("window"), grid.training.get("language")
    where = pick_device(device)
    if task.chosen is None:
        forget_peak_memory(where)
        speech = load_model(checkpoint, window=window, language=language)
        trial = None
    else:
        trained = Task(group, task.seed, task.chosen)
        trial = read_record(record_path(out, Trial, trained.id), Trial)
        speech = load_adapted(checkpoint, run_folder(out, trained), window=window, language=language)
    speech.module.to(where)
    parts = grid.corpora[group.corpus]
    corpora = {part: read_corpus(part_path(out, group.corpus, part)).cuts for part in (TEST, *parts.sources)}
    spoken = common_language(corpora[TEST]) or speech.language
    normaliser = grid.training.get("normaliser") or usual_normaliser(spoken)
    fallback = Fallback() if grid.training.get("fallback", True) else None
    decoding = Decoding(grid.training.get("beams", 1), fallback=fallback)
    settings = decoding.as_dict(has_fallback=speech.has_fallback)
    scores, audio = {}, {}
    for part, corpus in corpora.items():
        cuts = by_length(corpus)
        texts = decode(speech, cuts, decoding, batch_size=DECODED_AT_ONCE)
        hypotheses = [_hypothesis(cut, text, parts.by) for cut, text in zip(cuts, texts, strict=True)]
        write_hypotheses(out, task.id, part, hypotheses)
        scores[part] = _score(hypotheses, normaliser, parts.by if part == TEST else [])
        if settings["fallback"]:
            scores[part] = scores[part].model_copy(update={"wer_without_fallback": _first_wer(hypotheses, normaliser)})
        if part == TEST:
            audio = _audio(cuts, out)
    own = _origin(device, started)
    if trial is None:
        training = {
            "options": grid.training,
            "synthetic": parts.synthetic is not None,
            "setting": None,
            "trainable_parameters": 0,
            "model_parameters": _outline(checkpoint)[1],
            "learning_rate": None,
            "series": [],
            "best_epoch": 0,
            "best_dev_wer": None,
            "training_seconds": 0.0,
            "peak_memory_bytes": peak_memory(where),
            "adapter_bytes": 0,
        }
    else:
        training = trial.model_dump(exclude={"id", "cell", "origin"})
        own = own.model_copy(update={"seconds": round(trial.origin.seconds + own.seconds, 2)})
    return Result(
        id=task.id,
        cell=cell_of(task),
        origin=own,
        **training,
        search={f"{rate:g}": wer for rate, wer in task.searched},
        normaliser=normaliser,
        decoding=settings,
        test=scores.pop(TEST),
        sources=scores,
        audio=audio,
    )


def _hypothesis(cut: Any, text: Transcript, by: list[str]) -> Hypothesis:
    fields = {name: field_value(cut, name) for name in (field.partition(":")[0] for field in by)}
    return Hypothesis(
        id=cut.id,
        speaker=field_value(cut, "speaker"),
        reference=field_value(cut, "text"),
        hypothesis=text.text,
        without_fallback=None if text.first == text.text else text.first,
        fields=fields,
    )


def _score(hypotheses: list[Hypothesis], normaliser: str, by: Iterable[str]) -> TestScore:
    records = [h.fields | h.model_dump(include={"reference", "hypothesis", "speaker"}) for h in hypotheses]
    total = score(
        [h.reference for h in hypotheses],
        [h.hypothesis for h in hypotheses],
        speakers=[h.speaker for h in hypotheses],
        normaliser=normaliser,
    )
    groups = {
        field: {
            value: TestScore(**part.as_dict())
            for value, part in score_by(records, field, normaliser=normaliser).items()
        }
        for field in by
    }
    return TestScore(**total.as_dict(), groups=groups)


def _first_wer(hypotheses: list[Hypothesis], normaliser: str) -> float | None:
    """WER of what the first searches found."""
    references = [h.reference for h in hypotheses]
    first = [h.hypothesis if h.without_fallback is None else h.without_fallback for h in hypotheses]
    return score(references, first, normaliser=normaliser, resamples=2).wer


def _audio(cuts: list[Any], out: Path) -> dict[str, str]:
    """The file of each utterance that is a recording of its own."""
    files = {}
    for cut in cuts:
        source = cut.recording.sources[0]
        if source.type == "file" and cut.start == 0 and abs(cut.duration - cut.recording.duration) < 0.01:
            path = Path(source.source)
            files[cut.id] = str(path.relative_to(out.resolve()) if path.is_relative_to(out.resolve()) else path)
    return files


@cache
def _commit() -> str | None:
    """Of the source tree that this package runs from, where it is one."""
    tree = Path(__file__).parents[3]
    if not (tree / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here
        return None
