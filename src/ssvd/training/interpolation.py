"""The weights on the way from a base model to an adapted one (WiSE-FT, arXiv 2109.01903), for every method alike.

At a *scale* a the weights are W + a (W' - W): those of the base model at 0, and those of the adapted one at 1.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser

SCALE_FILE = "scale.json"


def merge_adapter(speech: Recogniser) -> None:
    """Add the adapter of a recogniser, if it has one, to the weights of its network.

    Raises:
        UserError: It is of a method that cannot be merged, or its weights would not be finite.
    """
    if isinstance(speech.module, PeftModel):
        _unwrap_trained_modules(speech.module)
        try:
            speech.module = speech.module.merge_and_unload(safe_merge=True)
        except ValueError as refusal:
            raise UserError(f"The adapter cannot be merged: {refusal}") from refusal


def _unwrap_trained_modules(network: PeftModel) -> None:
    """Put modules that were trained in full in the place of PEFT's wrappers.

    `merge_and_unload` does so too, but for most methods only if the module is a single layer.
    """
    wrappers = [(name, m) for name, m in network.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    for name, wrapper in wrappers:
        trained = wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        network.set_submodule(name, trained)


def copied_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and floating-point buffers by name, each once where layers share it."""
    return {name: tensor.detach().clone() for name, tensor in _tensors(module)}


def interpolated(base: Mapping[str, Tensor], adapted: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the weights at a scale between those of two networks of the same architecture."""
    return {name: torch.lerp(weight, adapted[name], scale) for name, weight in base.items()}


@torch.no_grad()
def set_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights, named as by `copied_weights`, into a network."""
    for name, tensor in _tensors(module):
        tensor.copy_(weights[name])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())


def scale_of(run: str | Path, scale: float | None = None) -> float:
    """Return the scale to use an adapter at: the given one, else the one that its run chose, else 1.

    Raises:
        UserError: The scale is negative or not finite, or the run's own cannot be read.
    """
    if scale is None:
        file = Path(run) / SCALE_FILE
        if not file.is_file():
            return 1.0
        try:
            scale = float(json.loads(file.read_text(encoding="utf-8"))["scale"])
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{file} does not state a scale: name one yourself.") from None
    if not (math.isfinite(scale) and scale >= 0):
        raise UserError(f"A scale of {scale:g} is not possible: give a number from 0 (the base model) on.")
    return scale
