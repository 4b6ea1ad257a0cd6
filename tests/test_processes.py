"""Workers end with the command that they work for, and Ctrl-C is one sentence; so is a missing home folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from ssvd.adapt import adapt
from ssvd.errors import StoppedError
from ssvd.processes import interrupts_held, thread_pool, was_interrupted
from ssvd_cli.interrupts import lasting_interrupts
from test_data_check import noise, table


def script(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "script.py").write_text(dedent(text))
    return [sys.executable, str(tmp_path / "script.py")]


def is_running(process: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def end_soon(processes: list[int], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_running, processes)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(is_running, processes))


POOL = """
    import os, sys, time
    from ssvd.processes import ProcessPool

    if __name__ == "__main__":
        pool = ProcessPool(2)
        print(*{pool.submit(os.getpid).result() for _ in range(8)}, flush=True)
        time.sleep(600)
"""
LOADER = """
    import os, time
    from ssvd.training.loading import Loading

    def collate(cuts):
        return os.getpid()

    if __name__ == "__main__":
        batches = iter(Loading(workers=2).batches([[None]] * 1000, collate))
        print(next(batches), next(batches), flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.slow
@pytest.mark.parametrize("program", [POOL, LOADER])
def test_workers_end_with_a_killed_parent(tmp_path, program):
    with subprocess.Popen(script(tmp_path, program), stdout=subprocess.PIPE, text=True) as parent:
        workers = list(map(int, parent.stdout.readline().split()))
        assert workers and all(map(is_running, workers))
        parent.kill()
    try:
        assert end_soon(workers)
    finally:
        for worker in filter(is_running, workers):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("program", [POOL, LOADER])
def test_ctrl_c_is_for_the_parent_alone(tmp_path, program):
    program = program.replace("time.sleep(600)", "input()").replace(
        "flush=True)", "flush=True); print('ready', flush=True)"
    )
    with subprocess.Popen(
        script(tmp_path, program),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        parent.stdout.readline()
        assert parent.stdout.readline() == "ready\n"
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        errors = parent.communicate()[1]
    # One traceback, of the parent, which this script does not catch.
    assert errors.count("KeyboardInterrupt") == 1 and "Worker" not in errors and "spawn_main" not in errors


def test_ctrl_c_is_held_back_from_new_processes_and_not_lost_to_this_one():
    mask = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    happened = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        assert subprocess.check_output([sys.executable, "-c", mask], text=True) == "True\n"
        happened.append("the rest of the block")
    assert happened
    assert subprocess.check_output([sys.executable, "-c", mask], text=True) == "False\n"


def test_threads_drop_what_is_not_begun():
    done = []

    def work(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(KeyboardInterrupt), thread_pool(1) as pool:
        for _ in pool.map(work, range(1000)):
            raise KeyboardInterrupt
    assert len(done) < 10


def test_an_error_on_the_way_out_of_an_interruption_is_an_interruption():
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("Please call `iter(combined_loader)` first.")  # noqa: B904
    except RuntimeError as error:
        assert was_interrupted(error)
    assert not was_interrupted(RuntimeError("Please call `iter(combined_loader)` first."))


def test_ctrl_c_in_a_destructor_is_not_lost():
    class Slow:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            happened.append("the rest of the destructor")

    happened: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), lasting_interrupts():
        slow = Slow()
        del slow
        assert happened
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_ignored_where_it_was_before():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with lasting_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("place", ["setup", "on_validation_start", "on_train_start", "on_train_batch_end"])
def test_ctrl_c_at_any_time_says_how_to_go_on(options, tmp_path, monkeypatch, place):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ssvd.training.trainer._Reporting.{place}", interrupt, raising=False)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError, match=f"Interrupted; resume the run in {tmp_path}/run to continue"):
        adapt(options(method="lora", budget="rank=1"), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_home_folder_there_is_a_sentence(ssvd, monkeypatch, tmp_path):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("ssvd.corpora.check.corpus_check.open_corpus", lambda path: no_home())
    corpus = table(tmp_path, ("a", noise(tmp_path / "a.wav"), "one", "s"))
    code, _, errors = ssvd("data", "check", corpus)
    assert code == 2 and "set the environment variable HOME" in errors and "Traceback" not in errors


def test_bases_are_not_kept_without_a_home_folder(monkeypatch):
    from ssvd.spectral.cache import cache_folder

    monkeypatch.setenv("SSVD_CACHE", "~nobody-of-this-name/cache")
    assert cache_folder() is None
