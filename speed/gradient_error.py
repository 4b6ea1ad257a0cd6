"""How exact the gradients of SSVD are by each way to the core's gradient, against float64, on real weights and speech.

    python speed/gradient_error.py whisper-tiny.en recording1.flac recording2.flac

The labels are the same sentence for every recording; adapters are moved away from the start. Errors are those of all
gradients together, relative to their norm.
"""

import copy
from pathlib import Path
from typing import Annotated, Any

import soundfile
import torch
import typer
from peft import get_peft_model
from torch import Tensor
from transformers import AutoProcessor, WhisperForConditionalGeneration

import ssvd.tuners.layer
from ssvd import SSVDConfig
from ssvd.spectral import Plan, plan_step

SENTENCE = "Hello there, this is a test."


def forced(core: str) -> Any:
    """`plan_step` that takes this way where there is one, "short" for the one that suits the shape."""

    def plan(x: Tensor, W: Tensor, *arguments: Any) -> Plan:
        m, n = W.shape
        wanted = core if core != "short" else "input gradient" if m >= n else "output"
        costs = plan_step(x, W, *arguments).costs
        way: Any = ("weight", wanted) if ("weight", wanted) in costs else ("weight", "activations")
        return Plan(*way, costs)

    return plan


def gradients(model: WhisperForConditionalGeneration, batch: dict[str, Tensor], portion: float, core: str) -> Tensor:
    adapted = get_peft_model(copy.deepcopy(model), SSVDConfig(portion=portion)).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
    ssvd.tuners.layer.plan_step = forced(core)
    adapted(**batch).loss.backward()
    ssvd.tuners.layer.plan_step = plan_step
    return torch.cat([p.grad.double() for p in adapted.parameters() if p.requires_grad])


def main(
    model: Annotated[str, typer.Argument(help="Whisper checkpoint.")],
    recordings: Annotated[list[Path], typer.Argument(help="Recordings, 16 kHz.")],
    portion: float = 0.4,
) -> None:
    """Print the errors."""
    torch.set_num_threads(1)
    whisper = WhisperForConditionalGeneration.from_pretrained(model).float()
    processor = AutoProcessor.from_pretrained(model)
    audio = [soundfile.read(recording)[0] for recording in recordings]
    features = processor(audio, sampling_rate=16000, return_tensors="pt").input_features
    labels = processor.tokenizer([SENTENCE] * len(audio), return_tensors="pt").input_ids
    exact = gradients(whisper.double(), {"input_features": features.double(), "labels": labels}, portion, "activations")
    whisper.float()
    for autocast in (False, True):
        for core in ("activations", "weight gradient", "short"):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = gradients(whisper, {"input_features": features, "labels": labels}, portion, core)
            error = float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact))
            print(f"{'bfloat16 autocast' if autocast else 'float32':18s} {core:16s} {error:.2e}")


if __name__ == "__main__":
    typer.run(main)
