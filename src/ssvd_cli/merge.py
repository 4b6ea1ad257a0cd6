"""`ssvd merge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssvd_cli.base_model import base_of
from ssvd_cli.errors import CommandError
from ssvd_cli.options import Scale
from ssvd_cli.terminal import console

_LOADING = {
    "transformers": "transformers' from_pretrained",
    "espnet": "ESPnet",
    "ctranslate2": "faster-whisper",
}


def merge(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] RUN OUT",
            help="Base checkpoint (by default, the one that the run names), run folder or PEFT adapter, and folder for "
            "the merged checkpoint.",
        ),
    ],
    to: Annotated[
        Literal["transformers", "espnet", "ctranslate2", "lora", "espnet-ssvd", "peft"] | None,
        typer.Option(
            help="Format: a checkpoint of Transformers or ESPnet (by default, as the base model), of CTranslate2 for "
            "faster-whisper, a LoRA adapter on the base model, or a model with an adapter as the ESPnet of SSVD's "
            "authors saves it; peft turns such a model, RUN, into an adapter for this package."
        ),
    ] = None,
    scale: Scale = None,
    quantization: Annotated[
        Literal["float32", "float16", "bfloat16", "int8", "int8_float16"] | None,
        typer.Option(help="Type of the weights for CTranslate2; by default, as in the base model."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of the LoRA adapter; by default, the smallest that keeps all of SSVD."),
    ] = None,
) -> None:
    """Write an adapted model as a plain checkpoint.

    Transformers, ESPnet or faster-whisper loads the checkpoint without this package.
    """
    if len(names) not in (2, 3):
        raise CommandError("Write ssvd merge RUN OUT, or ssvd merge MODEL RUN OUT.")
    if rank is not None and to != "lora":
        raise CommandError("--rank is for --to lora.")
    if quantization is not None and to != "ctranslate2":
        raise CommandError("--quantization is for --to ctranslate2.")
    if scale is not None and to in ("espnet-ssvd", "peft"):
        raise CommandError(f"--to {to} has no --scale.")
    if to == "peft" and len(names) != 3:
        raise CommandError("Name the base model too: ssvd merge MODEL TRAINED OUT --to peft.")
    run, out = names[-2:]
    model = names[0] if len(names) == 3 else base_of([run])
    from ssvd.merge import merge as write_merged
    from ssvd.merge import read_authors, write_authors, write_lora

    if to == "peft":
        converted = read_authors(model, run, Path(out))
        console.print(
            f"{out} holds an adapter of {model} with {converted.layers} layers, whose changes differ by "
            f"{converted.error:.2g} of their size at most from those of {run}"
            f"{'; the singular bases are stored in it.' if converted.basis == 'stored' else '.'}",
            highlight=False,
        )
        return
    if to == "espnet-ssvd":
        write_authors(model, run, Path(out))
        console.print(f"{out} holds the model and its adapter for the ESPnet of SSVD's authors.", highlight=False)
        return
    if to == "lora":
        error = write_lora(model, run, Path(out), rank=rank, scale=scale)
        console.print(
            f"{out} holds a LoRA adapter of {model}; its changes of the weights differ by {error:.2g} of their size "
            "from those of the run.",
            highlight=False,
        )
        return
    written = write_merged(model, run, Path(out), to=to, scale=scale, quantization=quantization)
    console.print(f"{out} holds the merged model; load it with {_LOADING[written]}.", highlight=False)
