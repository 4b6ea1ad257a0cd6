"""Run a grid: find what is to be done by the records that exist, and do it until nothing is left.

A grid can be killed and started again, and run by several processes at once: finished work is found by its record, and
work in progress by a lock that the operating system drops with the process.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock, Timeout

from ssvd.benchmark.corpora import prepare_corpora
from ssvd.benchmark.grid import Grid, Group
from ssvd.benchmark.records import Failure, Result, Trial, read_record, record_path
from ssvd.benchmark.search import best_rate, search
from ssvd.benchmark.tasks import Task, failure, run_folder, run_task, setting_of, write_record
from ssvd.documents import parse_yaml
from ssvd.errors import StoppedError, UserError
from ssvd.files import is_new, write_whole
from ssvd.training.progress import SILENT, Progress
from ssvd.training.run_folder import holds_model

# Fields of a grid that the first results lack.
_LATER_FIELDS = {"refine", "scales"}
_PREPARE_LOCK = "prepare.lock"
_WAIT = 5  # seconds between looks at the folder while other processes do the remaining tasks


class Outcome(NamedTuple):
    """A finished task, and in a few words its result."""

    task: Task
    summary: str


Execute = Callable[[Grid, Path, Sequence[Task], str], Iterator[Outcome]]
"""Does tasks of a grid, for results in a folder, on a device, and yields the outcome of each."""


@dataclass(frozen=True)
class GroupState:
    """The progress of a group: the tasks that can be done now, and the numbers of tasks done and of all its tasks."""

    ready: list[Task]
    done: int
    total: int


@dataclass
class _Pace:
    """How fast tasks are finished.

    Attributes:
        done_before: Number of tasks that were done at the start.
        began: Time of the start, in seconds of the monotonic clock.
    """

    done_before: int
    began: float = field(default_factory=time.monotonic)

    def time_left(self, done: int, total: int) -> str:
        """Return an estimate of the time until all tasks are done, in words."""
        seconds = (time.monotonic() - self.began) / max(1, done - self.done_before) * (total - done)
        if seconds < 90:
            return f"{seconds:.0f} s"
        return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run_benchmark(
    grid: Grid,
    out: Path,
    *,
    device: str = "auto",
    keep_runs: bool = False,
    retry: bool = False,
    progress: Progress = SILENT,
    execute: Execute | None = None,
) -> None:
    """Compute all cells of a grid that are not in the folder yet.

    For each method and budget on each model and corpus, learning rates are tried with the first seed and chosen on dev;
    then every seed is trained at that rate, and tested once.

    Args:
        grid: What to compare.
        out: Folder of the results; see `ssvd.benchmark.records`.
        device: "auto", "cpu", "cuda" or "mps".
        keep_runs: Whether to keep the run folders of finished groups, with their adapters.
        retry: Whether to repeat tasks that failed.
        progress: What the benchmark reports to.
        execute: Does tasks and yields their outcomes; by default in this process, one after the other.

    Raises:
        UserError: The folder holds results of another grid, a corpus is bad, or the work was stopped.
    """
    out = out.resolve()
    _prepare(grid, out, retry, progress)
    groups = _reachable(grid, out, device, progress)
    states: dict[Group, GroupState] = {}
    pace: _Pace | None = None
    waits_for: set[Task] = set()
    while ready := _next_tasks(grid, out, groups, states, keep_runs, progress):
        done, total = sum(state.done for state in states.values()), sum(state.total for state in states.values())
        pace = pace or _Pace(done)
        worked = False
        for task, summary in (execute or in_turn)(grid, out, ready, device):
            worked, done = True, done + 1
            progress.say(f"{done}/{total}  {task.id}  {summary}  (about {pace.time_left(done, total)} left)")
            progress.advance("tasks", done, total)
        if not worked:
            if waits_for != set(ready):
                waits_for = set(ready)
                progress.say(f"Waiting for other processes, which compute {len(ready)} tasks.")
            time.sleep(_WAIT)
    cells = len(list((out / "cells").glob("*.json")))
    progress.say(f"{cells} cells are in {out}; show them with: ssvd report {out}")
    if failures := len(list((out / "failures").glob("*.json"))):
        progress.say(f"{failures} tasks failed; {out}/failures states why, and a retry repeats them.", warning=True)


def _prepare(grid: Grid, out: Path, retry: bool, progress: Progress) -> None:
    """Write the grid and the utterances of its corpora to the folder, and forget failures that are to be repeated."""
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / _PREPARE_LOCK):
        _write_grid(grid, out)
        grid.place(out / "models")
        if retry:
            shutil.rmtree(out / "failures", ignore_errors=True)
        for utterance in prepare_corpora(grid, out, progress):
            progress.say(f"left out: {utterance.where}: {utterance.reason}")


def _next_tasks(
    grid: Grid, out: Path, groups: list[Group], states: dict[Group, GroupState], keep_runs: bool, progress: Progress
) -> list[Task]:
    """Return the tasks that can be done now.

    Finished groups, and those with a record that cannot be read, are removed from `groups`; `states` is brought up to
    date.
    """
    for group in list(groups):
        try:
            states[group] = group_state(grid, out, group)
        except UserError as error:
            progress.say(f"{group.id} is skipped: {error}", warning=True)
            groups.remove(group)
            continue
        if not states[group].ready:
            groups.remove(group)
            if not keep_runs:
                _remove_runs(grid, out, group)
    return [task for group in groups for task in states[group].ready]


def in_turn(grid: Grid, out: Path, tasks: Sequence[Task], device: str) -> Iterator[Outcome]:
    """Do the tasks of one group in this process, and leave out those that another process has taken.

    The group is the first one with a task that is free: groups are finished one by one.
    """
    group = None
    for task in tasks:
        if group not in (None, task.group):
            return
        summary = run_locked(grid, out, task, device)
        if summary is not None:
            group = task.group
            yield Outcome(task, summary)


def run_locked(grid: Grid, out: Path, task: Task, device: str) -> str | None:
    """Do a task and return a summary of its result, or None if another process does it or has done it.

    Raises:
        StoppedError: The work was interrupted, or the disk is full.
    """
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


def group_state(grid: Grid, out: Path, group: Group) -> GroupState:
    """Return the progress of a group, according to the records that exist.

    Raises:
        UserError: A record cannot be read.
    """
    seeds = grid.seeds
    if group.method == "frozen":
        return _state([], [Task(group, seeds[0])], out)
    method = group.adaptation
    start = next(
        (grid.learning_rates[name] for name in (group.method, method.name) if name in grid.learning_rates),
        list(method.learning_rates),
    )
    outcomes, more = search(out, group, seeds[0], start, grid.extensions, grid.refine)
    if more:
        trials = [Task(group, seeds[0], rate) for rate in more]
        return GroupState(trials, len(outcomes), len(outcomes) + len(trials) + 2 * len(seeds) - 1)
    rate = best_rate(outcomes)
    if rate is None:  # all trainings failed
        return GroupState([], len(outcomes), len(outcomes))
    searched = tuple(sorted(outcomes.items()))
    trainings = [Task(group, seed, rate) for seed in seeds]
    failed = {task.seed for task in trainings if record_path(out, Failure, task.id).is_file()}
    tests = [Task(group, seed, chosen=rate, searched=searched) for seed in seeds if seed not in failed]
    lost = [Task(group, test.seed, rate) for test in tests if _has_lost_run(out, test)]
    if lost:  # their records are removed, so that they are trained again
        for task in lost:
            record_path(out, Trial, task.id).unlink(missing_ok=True)
        return group_state(grid, out, group)
    state = _state(trainings[1:], tests, out)
    return GroupState(state.ready, len(outcomes) + state.done, len(outcomes) + state.total)


def _state(trainings: Sequence[Task], tests: Sequence[Task], out: Path) -> GroupState:
    """Return the progress of trainings and tests; a test needs the training of its seed."""
    untrained = [task for task in trainings if not _is_done(out, task)]
    waiting = {task.seed for task in untrained}
    untested = [task for task in tests if not _is_done(out, task)]
    total = len(trainings) + len(tests)
    ready = untrained + [task for task in untested if task.seed not in waiting]
    return GroupState(ready, total - len(untrained) - len(untested), total)


def _is_done(out: Path, task: Task) -> bool:
    """Return whether a task has its record or a failure; the record of a test must have the rate chosen now."""
    path = record_path(out, task.kind, task.id)
    if path.is_file() and (task.kind is Trial or read_record(path, Result).learning_rate == task.chosen):
        return True
    return record_path(out, Failure, task.id).is_file()


def _has_lost_run(out: Path, test: Task) -> bool:
    """Return whether a test that is to be done lacks the model of its finished training."""
    training = Task(test.group, test.seed, test.chosen)
    missing = record_path(out, Trial, training.id).is_file() and not holds_model(run_folder(out, training))
    # In this order: another process may just have finished the group and removed its runs.
    return missing and not _is_done(out, test)


def _reachable(grid: Grid, out: Path, device: str, progress: Progress) -> list[Group]:
    """Return the groups whose method can reach the budget; the others fail with a reason that names the nearest."""
    groups = []
    for group in grid.groups():
        record_path(out, Failure, group.id).unlink(missing_ok=True)
        try:
            setting_of(grid, group)
        except UserError as error:
            task = Task(group, grid.seeds[0])
            write_record(out, failure(task, group.id, str(error), device, datetime.now(UTC)))
            progress.say(f"{group.id} is left out: {error}", warning=True)
        else:
            groups.append(group)
    return groups


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds something else than results."""
    of_a_start = rf"{re.escape(_PREPARE_LOCK)}|grid\.yaml(\.\w+\.partial)?"  # of a process that has just started
    if not is_new(out, of_a_start) and not (out / "grid.yaml").is_file():
        raise UserError(f"{out} is not empty and holds no results: choose another folder.")


def _write_grid(grid: Grid, out: Path) -> None:
    """Write the grid to the folder, if what is there was computed with the same models, corpora and training."""
    path = out / "grid.yaml"
    values = grid.model_dump(exclude={"small"})
    if path.is_file():
        stored = _stored_grid(path)
        if _LATER_FIELDS | stored.keys() != values.keys():
            raise UserError(f"{path} is not what a benchmark wrote: choose another folder for the results.")
        changed = [name for name in ("training", "skip_bad", "extensions") if stored[name] != values[name]]
        for field_name in ("models", "corpora"):
            former, new = stored[field_name], values[field_name]
            changed += [f"{field_name}: {name}" for name in former.keys() & new.keys() if former[name] != new[name]]
            values[field_name] = former | new
        if changed:
            raise UserError(
                f"{out} was begun with another {changed[0]} (see {path}), and results would not be comparable: choose "
                "another folder."
            )
    write_whole(path, yaml.safe_dump(values, sort_keys=False))


def _stored_grid(path: Path) -> dict[str, Any]:
    """Return the fields of a grid as a benchmark wrote it; none if a user wrote it or changed it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        stored = parse_yaml(text)
    except ValueError:
        return {}
    own = isinstance(stored, dict) and yaml.safe_dump(stored, sort_keys=False) == text
    return stored if own and all(isinstance(stored.get(name), dict) for name in ("models", "corpora")) else {}


def _remove_runs(grid: Grid, out: Path, group: Group) -> None:
    """Remove the runs of a finished group, except those whose test failed or that other processes work on."""
    for seed in grid.seeds:
        if record_path(out, Failure, Task(group, seed).id).is_file():
            continue
        for path in (out / "runs").glob(f"{group.id}_lr=*_seed={seed}"):
            with suppress(Timeout), _lock(out, path.name):
                shutil.rmtree(path, ignore_errors=True)


def _lock(out: Path, name: str) -> FileLock:
    """Return the lock of a task; entering one that another process holds raises Timeout."""
    return FileLock(out / "locks" / f"{name}.lock", timeout=0)
