"""What the figures of a benchmark were measured on."""

from importlib.metadata import version
from typing import Any

import torch

from ssvd.hardware import hardware


def machine(device: str = "cpu") -> dict[str, Any]:
    """The processor, with the threads that torch was told to use, and the versions of what ran on it."""
    packages = ("torch", "transformers", "peft", "ssvd")
    return {
        "processor": hardware(torch.device(device)),
        "versions": {package: version(package) for package in packages},
    }
