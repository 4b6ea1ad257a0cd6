"""What a change of signs in the singular decomposition does to a saved adapter: PEFT's PSOFT, and the methods here.

    python speed/portability.py

A perturbed adapter of a small Whisper is saved and loaded twice: as it was, and with a decomposition that gives every
other pair of singular vectors the opposite sign, as another device or library may. Printed is how far the logits of the
loaded model are from those of the saved one, relative to what the adapter does to them: 0 is perfect, and 1 as bad as
no adapter.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import typer
from peft import PeftConfig, PeftModel, PsoftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from ssvd import SSVDConfig, SVFTConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
METHODS: dict[str, Callable[[], PeftConfig]] = {
    "PSOFT (PEFT), k = 51": lambda: PsoftConfig(r=51, psoft_alpha=51, target_modules=TARGETS),
    "SSVD, p = 0.4": SSVDConfig,
    "SVFT, banded": SVFTConfig,
}


def whisper() -> WhisperForConditionalGeneration:
    """A model of random weights, the same each time."""
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 512))}
    config = WhisperConfig(d_model=128, vocab_size=500, max_source_positions=100, init_std=0.1, pad_token_id=0, **sizes)
    config.encoder_attention_heads = config.decoder_attention_heads = 4
    return WhisperForConditionalGeneration(config).eval()


@contextmanager
def other_signs() -> Iterator[None]:
    """Every routine that finds singular vectors gives every other one the opposite sign."""
    svd, eigh = torch.linalg.svd, torch.linalg.eigh

    def signs(vectors: Tensor, dim: int) -> Tensor:
        shape = [1] * vectors.dim()
        shape[dim] = -1
        return (1 - 2 * (torch.arange(vectors.shape[dim], device=vectors.device) % 2)).to(vectors).view(shape)

    def flipped_svd(*args, **kwargs):  # type: ignore[no-untyped-def]
        U, S, Vh = svd(*args, **kwargs)
        return U * signs(U, -1), S, Vh * signs(Vh, -2)

    def flipped_eigh(*args, **kwargs):  # type: ignore[no-untyped-def]
        values, vectors = eigh(*args, **kwargs)
        return values, vectors * signs(vectors, -1)

    torch.linalg.svd, torch.linalg.eigh = flipped_svd, flipped_eigh
    try:
        yield
    finally:
        torch.linalg.svd, torch.linalg.eigh = svd, eigh


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 80, 200, generator=generator)
    tokens = torch.randint(500, (2, 12), generator=generator)
    return model(input_features=features, decoder_input_ids=tokens).logits


def main() -> None:
    """Print the table."""
    os.environ["SSVD_CACHE"] = "off"
    table = Table("method", "loaded as saved", "loaded with other signs")
    base = logits(whisper())
    for name, make in METHODS.items():
        model = get_peft_model(whisper(), make()).eval()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        trained = logits(model)
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            cells.append(logits(PeftModel.from_pretrained(whisper(), folder)))
            with other_signs():
                cells.append(logits(PeftModel.from_pretrained(whisper(), folder)))
        errors = [float((cell - trained).norm() / (trained - base).norm()) for cell in cells]
        table.add_row(name, *(f"{error:.1e}" for error in errors))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
