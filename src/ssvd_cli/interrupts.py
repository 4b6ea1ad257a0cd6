"""Ctrl-C, which Python loses in destructors."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 0.1  # seconds


@contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C, in the block, only where it is not swallowed.

    Python prints what a destructor raises, such as that of PyTorch's loaders, which waits for their workers, and goes
    on.
    """
    earlier = signal.getsignal(signal.SIGINT)
    if earlier is not signal.default_int_handler:  # ignored in the background of a shell, or another program's
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
