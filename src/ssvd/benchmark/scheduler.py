"""Running a grid: which work is next, by what is there already, until nothing is left.

A grid can be killed and started again, and run by several processes at once: finished work is found by its record, and
work in progress by a lock that the operating system drops with the process.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from ssvd.benchmark.grid import Grid, Group
from ssvd.benchmark.records import Failure, Result, Trial, read_record, record_path
from ssvd.benchmark.tasks import Task, failure, prepare_corpora, run_folder, run_task, setting_of, write_record
from ssvd.errors import StoppedError, UserError
from ssvd.files import write_whole
from ssvd.methods.table import find_method
from ssvd.training.run_folder import holds_model

# Learning rates are searched in steps of about half an order of magnitude.
STEP = 3
_PREPARE_LOCK = "prepare.lock"
_WAIT = 5  # seconds, where all that is left is in the hands of other processes

Outcome = tuple[Task, str]
"""A task, and in words what came of it."""
Execute = Callable[[Grid, Path, Sequence[Task], str], Iterator[Outcome]]
"""Does tasks of a grid, for results in a folder, on a device, and yields what came of each."""


@dataclass(frozen=True)
class Progress:
    """How far a group is: the tasks that can be done now, and the number of tasks done and to be done in all."""

    ready: list[Task]
    done: int
    total: int


def run_benchmark(
    grid: Grid,
    out: Path,
    *,
    device: str = "auto",
    keep_runs: bool = False,
    retry: bool = False,
    console: Console | None = None,
    execute: Execute | None = None,
) -> None:
    """Compute all cells of a grid that are not there yet.

    For each method and budget on each model and corpus, learning rates are tried with the first seed and chosen on dev;
    then every seed is trained at that rate, and tested once.

    Args:
        grid: What to compare.
        out: Folder of the results; see `ssvd.benchmark.records`.
        device: "auto", "cpu", "cuda" or "mps".
        keep_runs: Whether to keep the run folders, with their adapters, of finished groups.
        retry: Whether to try again what failed before.
        console: Where progress is told; standard error by default.
        execute: Does tasks and yields what came of each; in this process by default.

    Raises:
        UserError: The folder holds results of another grid, a corpus is bad, or the work was stopped.
    """
    console = console or Console(stderr=True)
    out = out.resolve()
    execute = execute or in_turn
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / _PREPARE_LOCK):
        _remember(grid, out)
        if retry:
            shutil.rmtree(out / "failures", ignore_errors=True)
        for item in prepare_corpora(grid, out, console):
            console.print(f"left out: {item.where}: {item.reason}", highlight=False, markup=False)
    unfinished = _reachable(grid, out, device, console)
    progress: dict[Group, Progress] = {}
    began, done_before = time.monotonic(), None
    complained: set[str] = set()
    while True:
        for group in list(unfinished):
            try:
                progress[group] = progress_of(grid, out, group)
            except UserError as error:  # a record that cannot be read
                console.print(f"[red]{group.id} is left alone:[/] {error}", highlight=False)
                unfinished.remove(group)
                continue
            if not progress[group].ready:
                unfinished.remove(group)
                if not keep_runs:
                    _remove_runs(grid, out, group)
        ready = [task for group in unfinished for task in progress[group].ready]
        if not ready:
            break
        done, total = (sum(getattr(state, name) for state in progress.values()) for name in ("done", "total"))
        done_before = done if done_before is None else done_before
        worked = False
        for task, words in execute(grid, out, ready, device):
            worked, done = True, done + 1
            left = (time.monotonic() - began) / max(1, done - done_before) * (total - done)
            console.print(
                f"{done}/{total}  {task.id}  {words}  (about {_duration(left)} left)", highlight=False, markup=False
            )
        if not worked:
            key = ", ".join(sorted(task.id for task in ready))
            if key not in complained:
                complained.add(key)
                console.print(f"Waiting for other processes, which compute {len(ready)} tasks.")
            time.sleep(_WAIT)
    failures = sorted((out / "failures").glob("*.json"))
    cells = len(list((out / "cells").glob("*.json")))
    console.print(f"{cells} cells are in {out}; show them with: ssvd report {out}", highlight=False)
    if failures:
        console.print(f"[yellow]{len(failures)} tasks failed; {out}/failures says why. Try them again with --retry.")


def in_turn(grid: Grid, out: Path, tasks: Sequence[Task], device: str) -> Iterator[Outcome]:
    """Do the tasks of a group one after the other in this process, and leave out those that another has taken.

    The group is the first of which there is one to do: groups are finished one by one.
    """
    group = None
    for task in tasks:
        if group not in (None, task.group):
            return
        words = run_locked(grid, out, task, device)
        if words is not None:
            group = task.group
            yield task, words


def run_locked(grid: Grid, out: Path, task: Task, device: str) -> str | None:
    """Do a task where nobody else does it or has done it; in words what came of it, or None."""
    try:
        with _lock(out, task.id):
            if _is_done(out, task):
                return None
            record = run_task(grid, out, task, device)
    except Timeout:
        return None
    except StoppedError as error:
        raise StoppedError(error.reason, f"the same command goes on with {task.id}.") from None
    if isinstance(record, Failure):
        return f"failed: {record.reason}"
    if isinstance(record, Result):
        return f"test WER {record.test.wer:.1%}" if record.test.wer is not None else "test set without words"
    return f"dev WER {record.best_dev_wer:.1%}, {record.training_seconds:.0f} s"


def progress_of(grid: Grid, out: Path, group: Group) -> Progress:
    """What is next in a group, by the records that there are.

    Raises:
        UserError: A record cannot be read.
    """
    seeds = grid.seeds
    if group.method == "frozen":
        tests = [Task(group, seeds[0])]
        return _progress([], tests, out)
    start = grid.learning_rates.get(group.method) or list(find_method(group.method).learning_rates)
    outcomes, more = _search(out, group, seeds[0], start, grid.extensions)
    if more:
        trials = [Task(group, seeds[0], rate) for rate in more]
        return Progress(trials, len(outcomes), len(outcomes) + len(trials) + 2 * len(seeds) - 1)
    rate = best_rate(outcomes)
    if rate is None:  # all failed
        return Progress([], len(outcomes), len(outcomes))
    searched = tuple(sorted(outcomes.items()))
    trainings = [Task(group, seed, rate) for seed in seeds]
    failed = {task.seed for task in trainings if record_path(out, Failure, task.id).is_file()}
    tests = [Task(group, seed, chosen=rate, searched=searched) for seed in seeds if seed not in failed]
    lost = [Task(group, test.seed, rate) for test in tests if _has_lost_run(out, test)]
    if lost:  # trained once more
        for task in lost:
            record_path(out, Trial, task.id).unlink(missing_ok=True)
        return progress_of(grid, out, group)
    state = _progress(trainings[1:], tests, out)
    return Progress(state.ready, len(outcomes) + state.done, len(outcomes) + state.total)


def _progress(trainings: Iterable[Task], tests: Iterable[Task], out: Path) -> Progress:
    """Tests need the training of their seed."""
    trainings, tests = list(trainings), list(tests)
    left = [task for task in trainings if not _is_done(out, task)]
    waiting = {task.seed for task in left}
    untested = [task for task in tests if not _is_done(out, task)]
    total = len(trainings) + len(tests)
    ready = left + [task for task in untested if task.seed not in waiting]
    return Progress(ready, total - len(left) - len(untested), total)


def rates_to_try(start: Sequence[float], extensions: int, outcomes: Mapping[float, float | None]) -> list[float]:
    """The learning rates to try next: those of `start`, then further ones while the best lies on the edge.

    Args:
        start: Rates to try in any case; where there is one, no other is tried.
        extensions: How many further rates may be tried.
        outcomes: What was tried: rate -> dev WER, or None where the training failed.
    """
    missing = [rate for rate in start if rate not in outcomes]
    if missing or len(start) == 1 or len(outcomes) - len(start) >= extensions:
        return missing
    tried = sorted(outcomes)
    # Where everything failed, the lowest counts as best: rates are too high.
    best = best_rate(outcomes) or tried[0]
    if best == tried[0]:
        return [_round(best / STEP)]
    return [_round(best * STEP)] if best == tried[-1] else []


def best_rate(outcomes: Mapping[float, float | None]) -> float | None:
    """The rate with the lowest dev WER, of equal ones the lowest; None where all failed."""
    rated = {rate: wer for rate, wer in sorted(outcomes.items()) if wer is not None and not math.isnan(wer)}
    return min(rated, key=lambda rate: rated[rate], default=None)


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")


def _search(
    out: Path, group: Group, seed: int, start: Sequence[float], extensions: int
) -> tuple[dict[float, float | None], list[float]]:
    """What came of every learning rate that was tried with the first seed, and the rates to try next."""
    outcomes: dict[float, float | None] = {}
    rates, tried = list(start), None
    while rates != tried:
        tried = rates
        for rate in rates:
            task = Task(group, seed, rate)
            if record_path(out, Trial, task.id).is_file():
                outcomes[rate] = read_record(record_path(out, Trial, task.id), Trial).best_dev_wer
            elif record_path(out, Failure, task.id).is_file():
                outcomes[rate] = None
        rates = rates_to_try(start, extensions, outcomes)
    return outcomes, rates


def _is_done(out: Path, task: Task) -> bool:
    """Whether there is its record: of a test, with the learning rate that is chosen now."""
    path = record_path(out, task.kind, task.id)
    if path.is_file() and (task.kind is Trial or read_record(path, Result).learning_rate == task.chosen):
        return True
    return record_path(out, Failure, task.id).is_file()


def _has_lost_run(out: Path, test: Task) -> bool:
    """Whether a test that is to be done lacks the model of its finished training."""
    training = Task(test.group, test.seed, test.chosen)
    missing = record_path(out, Trial, training.id).is_file() and not holds_model(run_folder(out, training))
    return missing and not _is_done(out, test)  # in this order: another process may have finished and cleared the group


def _reachable(grid: Grid, out: Path, device: str, console: Console) -> list[Group]:
    """The groups whose budget their method can reach; the others fail with a sentence that says the nearest."""
    groups = []
    for group in grid.groups():
        record_path(out, Failure, group.id).unlink(missing_ok=True)
        try:
            setting_of(grid, group)
        except UserError as error:
            task = Task(group, grid.seeds[0])
            write_record(out, failure(task, group.id, str(error), device, datetime.now(UTC)))
            console.print(f"[yellow]{group.id} is left out:[/] {error}", highlight=False)
        else:
            groups.append(group)
    return groups


def _check_folder(out: Path) -> None:
    """Refuse a folder of something else."""
    own = {_PREPARE_LOCK, "grid.yaml", "grid.yaml.partial"}  # of another process that begins, too
    others = out.exists() and (not out.is_dir() or any(path.name not in own for path in out.iterdir()))
    if others and not (out / "grid.yaml").is_file():
        raise UserError(f"{out} is not empty and holds no results: give another folder with --out.")


def _remember(grid: Grid, out: Path) -> None:
    """Write the grid to the folder, or check that what is there was computed with the same models and corpora."""
    path = out / "grid.yaml"
    values = grid.model_dump(exclude={"small"})
    if path.is_file():
        try:
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            stored = None
        if not isinstance(stored, dict) or stored.keys() != values.keys():
            raise UserError(f"{path} is not what a benchmark wrote: give another folder with --out.")
        changed = [name for name in ("training", "skip_bad", "extensions") if stored[name] != values[name]]
        for field in ("models", "corpora"):
            shared = stored[field].keys() & values[field].keys()
            changed += [f"{field}: {name}" for name in shared if stored[field][name] != values[field][name]]
            values[field] = stored[field] | values[field]
        if changed:
            raise UserError(
                f"{out} was begun with another {changed[0]} ({path} says which): results would not be comparable, so "
                "give another folder with --out."
            )
    write_whole(path, yaml.safe_dump(values, sort_keys=False))


def _remove_runs(grid: Grid, out: Path, group: Group) -> None:
    """Of a finished group: not those whose test failed and may be tried again, nor those that others work on."""
    for seed in grid.seeds:
        if record_path(out, Failure, Task(group, seed).id).is_file():
            continue
        for path in (out / "runs").glob(f"{group.id}_lr=*_seed={seed}"):
            with suppress(Timeout), _lock(out, path.name):
                shutil.rmtree(path, ignore_errors=True)


def _lock(out: Path, name: str) -> FileLock:
    """Of a task; taking one that another process has raises Timeout."""
    return FileLock(out / "locks" / f"{name}.lock", timeout=0)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
