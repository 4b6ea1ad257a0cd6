"""Threads and processes that work for this one: they end with it, and leave Ctrl-C to it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Make a pool of threads that drops what is not begun when the block is left by an error or Ctrl-C."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, and for good from processes that are started in it.

    A terminal interrupts all processes of a command at once. Those that work for another one would print tracebacks,
    some even before they can run a line of their own. In this process, Python swallows exceptions while it forks.
    """
    held: list[tuple[int, FrameType | None]] = []
    handler = signal.getsignal(signal.SIGINT)
    is_ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # new processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        if held and callable(handler):
            handler(*held[0])


class ProcessPool(ProcessPoolExecutor):
    """New Python processes that work for this one, and end with it.

    Args:
        workers: Number of processes; None for one per core.
        initializer: Called in each process before its first work.
        initargs: Arguments of `initializer`.
    """

    def __init__(
        self, workers: int | None = None, initializer: Callable[..., object] | None = None, initargs: Any = ()
    ) -> None:
        resource_tracker.ensure_running()  # started later, it would let Ctrl-C through to the workers
        initargs = (initializer, *initargs)
        super().__init__(workers, multiprocessing.get_context("spawn"), _begin, initargs)

    def submit(self, *args: Any, **keywords: Any) -> Future[Any]:
        """Give work to a process, which may be started for it."""
        with interrupts_held():
            return super().submit(*args, **keywords)

    def end(self) -> None:
        """End the processes at once, whatever they are doing."""
        processes = list((self._processes or {}).values())
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


def _begin(initializer: Callable[..., object] | None, *initargs: Any) -> None:
    end_with_parent()
    if initializer is not None:
        initializer(*initargs)


def end_with_parent(*_: object) -> None:
    """Make this process, started by `multiprocessing`, exit as soon as the one that started it is gone.

    A killed process cannot end its workers, which would wait for work forever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # sys.exit would only end this thread


def was_interrupted(error: BaseException) -> bool:
    """Return whether an error came up while Ctrl-C was being handled."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False
