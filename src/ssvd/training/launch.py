"""Start the processes of a training on this machine, follow them, and end all of them if one fails."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any
from unittest.mock import patch

from lightning.fabric.plugins.environments.lightning import find_free_network_port

from ssvd.errors import StoppedError, UserError
from ssvd.hardware import threads_each
from ssvd.processes import end_with_parent, interrupts_held
from ssvd.training.placement import Placement
from ssvd.training.progress import SILENT, Progress

Work = Callable[[Placement, Progress], Any]

# Seconds in which the others may tell why they fail too, before they are killed.
_PATIENCE = 3.0


class PeerError(StoppedError):
    """Another process of the training has ended, and that one knows why."""


def launch(work: Work, placement: Placement, progress: Progress) -> Any:
    """Run a function in as many new processes as a placement has on this machine; return what the first returns.

    Each is a new Python, as `multiprocessing` starts it: the function must be one that can be pickled, and a script
    that calls this needs the usual `if __name__ == "__main__":`. They share the cores, unless `OMP_NUM_THREADS` says
    how many threads each has. What the first one reports goes to `progress`.

    Raises:
        UserError: One of the processes raised it, or was killed; the others are ended.
        RuntimeError: One of them raised another error, whose traceback is in the message.
    """
    environment = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(find_free_network_port()),
        "NODE_RANK": os.environ.get("NODE_RANK", "0"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads_each(placement.devices)),
        "TORCH_CPP_LOG_LEVEL": os.environ.get(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        ),  # of a lost peer, we say it in a sentence
    }
    context = multiprocessing.get_context("spawn")
    ranks: dict[Connection, BaseProcess] = {}
    try:
        for number in range(placement.devices):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(sender, work, placement.local(number)))
            ranks[receiver] = process
            own = {"LOCAL_RANK": str(number), **({"TQDM_DISABLE": "1"} if number else {})}
            with interrupts_held(), patch.dict(os.environ, environment | own):  # as they begin with importing torch
                process.start()
            sender.close()
        with _terminated_like_interrupted():
            return _followed(ranks, progress)
    finally:
        for begun in ranks.values():
            if begun.pid is not None:
                begun.kill()
                begun.join()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let the termination signal end the processes first; they would end anyway, but without a sentence."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _work(sender: Connection, work: Work, placement: Placement) -> None:
    """Do the work in a process of its own, and send what it reports, then what it returns or raises."""
    end_with_parent()
    try:
        sender.send(("returned", work(placement, _Sent(sender) if placement.local_rank == 0 else SILENT)))
    except UserError as error:
        sender.send(("raised", error))
    except BaseException:
        sender.send(("failed", traceback.format_exc()))
    sender.close()


class _Sent:
    """Progress that is sent to another process."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender

    def say(self, message: str, *, warning: bool = False) -> None:
        """Send a sentence."""
        self._sender.send(("say", (message, warning)))

    def advance(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Send how far a stage has come."""
        self._sender.send(("advance", (stage, done, total, detail)))


def _followed(ranks: Mapping[Connection, BaseProcess], progress: Progress) -> Any:
    """Pass on what processes report until all have returned, or a little longer than one has failed."""
    first, *_ = ranks
    open_ends, results = set(ranks), {}
    errors: list[Exception] = []
    until: float | None = None
    while open_ends and (until is None or time.monotonic() < until):
        for end in wait(list(open_ends), timeout=None if until is None else max(0.0, until - time.monotonic())):
            assert isinstance(end, Connection)
            try:
                kind, value = end.recv()
            except EOFError:
                open_ends.remove(end)
                if end not in results:
                    errors.append(_death(ranks[end]))
            else:
                if kind == "say":
                    progress.say(value[0], warning=value[1])
                elif kind == "advance":
                    progress.advance(*value)
                elif kind == "returned":
                    results[end] = value
                else:
                    results[end] = None
                    errors.append(value if kind == "raised" else RuntimeError(f"A process failed:\n{value}"))
        if errors and until is None:
            until = time.monotonic() + _PATIENCE
    if errors:
        raise min(errors, key=_rank_of_reason)
    for process in ranks.values():
        process.join(10)
    return results[first]


def _death(process: BaseProcess) -> StoppedError:
    """Return the error for a process that has ended without a word."""
    process.join()
    code = process.exitcode or 0
    how = f"was killed ({signal.Signals(-code).name}), most often for lack of memory" if code < 0 else "exited"
    return StoppedError(f"A process of the training {how}", "resume the run to continue")


def _rank_of_reason(error: Exception) -> int:
    """Return how far an error is from the cause: the end of one process makes the others fail."""
    if isinstance(error, PeerError):
        return 2
    return 0 if isinstance(error, UserError) else 1
