"""The machine: its devices, its name for results, and how much memory a run took."""

import ctypes
import os
import platform
import re
import resource
import sys
from pathlib import Path

import torch

from ssvd.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: This machine has no such device.
    """
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(name):
        usable = ", ".join(device for device, there in available.items() if there)
        raise UserError(f"There is no device {name!r} here; choose one of {usable}.")
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def hardware(device: torch.device) -> str:
    """Describe the machine in words, for results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else [platform.processor()]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def threads_each(processes: int) -> int:
    """Return how many threads each of so many processes may use, so that they share the cores of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def forget_peak_memory(device: torch.device) -> None:
    """Reset the peak of memory use; on a CPU, this has an effect on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the whole process
        return


def peak_memory(device: torch.device) -> int:
    """Return the peak since `forget_peak_memory` in bytes: allocated on a GPU, or held by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Make this process keep memory that it frees for its next tensor, where the C library is glibc; else do nothing.

    By default glibc returns large blocks to the system and requests them again; on a CPU, the kernel then spends 6 to
    16 % of the time of a training step on clearing pages (docs/performance.md). The memory of a process that keeps
    freed memory does not shrink.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h
    libc = ctypes.CDLL(None)
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
        libc.mallopt(option, value)
