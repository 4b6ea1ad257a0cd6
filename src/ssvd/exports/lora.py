"""LoRA, for software that serves no other adapters."""

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, convert_to_lora
from safetensors.torch import save_file
from torch import Tensor

from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser
from ssvd.tuners import BottleneckConfig
from ssvd.tuners.layer import SpectralLayer

_CARD = """---
base_model: {base}
library_name: peft
tags: [automatic-speech-recognition, lora]
---

# LoRA adapter of {base}

Converted from an adapter of the method {method} at rank {rank}; the relative error of the change of the weights is
{error:.2g}. It needs PEFT alone.
"""


def save_lora(speech: Recogniser, folder: Path, *, rank: int | None = None, scale: float = 1.0) -> float:
    """Write the adapter of a recogniser as a LoRA adapter, by PEFT's own conversion, and return its error.

    The changes of the weights are truncated to the leading singular directions.

    Args:
        speech: The recogniser, whose module is a `PeftModel` with one adapter.
        folder: Where to write, a folder that exists.
        rank: Rank of every layer; None for the smallest that keeps all of SSVD, the k of its largest core.
        scale: Factor of the changes.

    Returns:
        The error relative to the changes: ||dW - B A|| / ||dW||, over all layers, a fraction.

    Raises:
        UserError: There is no adapter, or none that LoRA can stand for, or the rank is not possible.
    """
    network = speech.module
    if not isinstance(network, PeftModel):
        raise UserError(
            "There is no adapter to convert: full fine-tuning changes all weights. Merge the model instead."
        )
    config = network.peft_config["default"]
    method = str(config.peft_type.value)
    if isinstance(config, BottleneckConfig):
        raise UserError("A bottleneck adapter is not linear, so there is no LoRA that it equals: use it as it is.")
    if method == "LORA":
        raise UserError("The adapter is of LoRA's kind already: use its own folder, or merge the model.")
    if scale != 1 and config.modules_to_save:
        raise UserError("Whole modules were trained beside the adapter, which LoRA cannot scale: use the scale 1.")
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "get_delta_weight")}
    rank = rank or _whole_rank(network)
    try:
        lora, tensors = convert_to_lora(network, rank)
    except (ValueError, TypeError) as refusal:
        raise UserError(f"PEFT does not convert this adapter of {method} to LoRA: {refusal}") from refusal
    error = _relative_error(layers, tensors)
    for name in tensors:
        if name.endswith("lora_B.weight"):
            tensors[name] = tensors[name] * scale
    _write(folder, lora, tensors)
    card = _CARD.format(base=config.base_model_name_or_path, method=method, rank=rank, error=error)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return error


def _whole_rank(network: PeftModel) -> int:
    cores = [
        basis.k for layer in network.modules() if isinstance(layer, SpectralLayer) for basis in layer.bases.values()
    ]
    if not cores:
        raise UserError("The rank of this method's changes is not known: state one.")
    return max(cores)


@torch.no_grad()
def _relative_error(layers: dict[str, torch.nn.Module], tensors: dict[str, Tensor]) -> float:
    missing = total = 0.0
    for name, layer in layers.items():
        change = layer.get_delta_weight("default").double()  # type: ignore[operator]
        converted = tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
        missing += float((change - converted).square().sum())
        total += float(change.square().sum())
    return (missing / total) ** 0.5 if total else 0.0


def _write(folder: Path, config: PeftConfig, tensors: dict[str, Tensor]) -> None:
    """Write a PEFT adapter that only serves, not trains."""
    config.inference_mode = True
    config.save_pretrained(str(folder))
    weights = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
