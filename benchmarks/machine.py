"""What the figures of a benchmark were measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """The processor, and the versions of what ran on it."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
        names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
        name = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    packages = ("torch", "transformers", "peft", "ssvd")
    return {"processor": name, "threads": threads, "versions": {package: version(package) for package in packages}}
