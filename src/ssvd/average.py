"""Average adapted models of one base: their weights, or what SSVD and SVFT train."""

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssvd.errors import UserError
from ssvd.files import check_new, whole_folder, write_json, write_whole
from ssvd.recognisers.loading import Recogniser
from ssvd.recognisers.vocabulary import VOCABULARY
from ssvd.training.adapter_file import ADAPTER_CONFIG, ADAPTER_WEIGHTS, bind_adapter
from ssvd.training.base_fingerprint import base_fingerprint
from ssvd.training.interpolation import copied_weights, merge_adapter, scale_of, set_weights
from ssvd.training.model_card import public_name
from ssvd.training.run_folder import (
    BASE,
    adapter_folder,
    check_run,
    has_own_model,
    load_adapted,
    load_base,
    quantise_of,
    stated_options,
    vocabulary_of,
)

Averaged = Literal["cores", "weights"]

# Fields of an adapter's configuration that do not decide what its parameters mean.
_INCIDENTAL = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_weights", "peft_version", "revision",
    "runtime_config", "task_type", "token_stride",
}  # fmt: skip
_NAMES = {"peft_type": "method", "use_dora": "method", "init_lora_weights": "method", "target_modules": "layers"}
_NAMES |= {"r": "rank", "off_diagonals": "rank", "portion": "rank", "oft_block_size": "rank"}
_SAME_BASIS = 1e-3  # between fingerprints; a vector of the other sign moves one by about 2


def average(model: str | Path, runs: Sequence[str | Path], out: Path, of: Averaged | None = None) -> Averaged:
    """Write the average of runs of one base model and method as a run folder, and return what was averaged.

    The average of *weights* (model soups, arXiv 2203.05482) is a whole model, for any method. That of *cores* is an
    adapter, for SSVD and SVFT: the mean of their trained parameters. The core of SSVD is not linear in these, so the
    two differ for it; for SVFT they are the same model.

    Args:
        model: The base checkpoint.
        runs: Two or more run folders or PEFT adapters.
        out: Run folder to write, new or empty.
        of: What to average; by default, cores where all runs have them, else weights.

    Raises:
        UserError: The runs cannot be averaged, and the sentence says in what they differ; or `out` is not empty.
    """
    if len(runs) < 2:
        raise UserError("One run has no average: name two or more.")
    check_new(out)
    for first, second in pairwise(runs):
        _check_alike(first, second)
    options = stated_options(runs[0])
    quantise = quantise_of(runs[0])
    speech = load_base(model, runs[0], window=options.get("window"), language=options.get("language"), dequantise=True)
    base = base_fingerprint(speech.module)
    for run in runs:
        check_run(run, speech.module, model)
    of = of or ("cores" if _have_cores(runs[0]) and all(scale_of(run) == 1 for run in runs) else "weights")
    config = {
        "model": str(model),
        "window": options.get("window"),
        "language": options.get("language"),
        "averaged": [str(run) for run in runs],
        "of": of,
        "quantise": quantise if of == "cores" else None,
    }
    with whole_folder(out) as folder:
        write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_json(folder / BASE, base)
        if speech.vocabulary is not None:
            speech.vocabulary.write(folder / VOCABULARY)
        if of == "cores":
            _average_cores(runs, folder / "adapter")
            bind_adapter(folder / "adapter", folder / BASE, public_name(str(model)), quantise)
        else:
            _average_weights(model, runs, speech)
            speech.save(folder / "model")
    return of


def _check_alike(first: str | Path, second: str | Path) -> None:
    """Refuse runs that differ in method, layers, rank, or anything else that decides what they are."""
    one, other = _settings(first), _settings(second)
    for name in ("peft_type", *one, *other):
        if one.get(name) != other.get(name):
            values = f"{_in_words(one.get(name))} and {_in_words(other.get(name))}"
            raise UserError(
                f"{first} and {second} cannot be averaged: they differ in {_NAMES.get(name, name)} ({values})."
            )


def _settings(run: str | Path) -> dict[str, Any]:
    """Return what decides the meaning of a run's parameters."""
    options = {name: value for name, value in stated_options(run).items() if name in ("window", "language")}
    options["quantise"] = quantise_of(run)
    if (vocabulary := vocabulary_of(run)) is not None:
        options["symbols"] = vocabulary.symbols
    if has_own_model(run):
        return {"peft_type": "full fine-tuning"} | options
    config = json.loads((adapter_folder(run) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return {
        name: sorted(value) if isinstance(value, list) else value
        for name, value in config.items()
        if name not in _INCIDENTAL
    } | options


def _in_words(value: Any) -> str:
    return f"{len(value)} names" if isinstance(value, list | dict) and len(value) > 3 else str(value)


def _have_cores(run: str | Path) -> bool:
    return _settings(run)["peft_type"] in ("SSVD", "SVFT")


def _average_cores(runs: Sequence[str | Path], folder: Path) -> None:
    """Write an adapter whose trained parameters are the means of those of the runs."""
    for run in runs:
        if not _have_cores(run):
            raise UserError(f"{run} has no cores, which only SSVD and SVFT have: average the weights.")
        if scale_of(run) != 1:
            raise UserError(f"{run} chose a scale, which holds for its weights and not for its cores: average those.")
    adapters = [load_file(adapter_folder(run) / ADAPTER_WEIGHTS) for run in runs]
    names = [
        name for name in adapters[0] if all(name in adapter for adapter in adapters)
    ]  # older ones lack the variant
    averaged = {name: _mean_or_same(name, [adapter[name] for adapter in adapters], runs) for name in names}
    folder.mkdir()
    for file in (ADAPTER_CONFIG, VOCABULARY):
        if (adapter_folder(runs[0]) / file).is_file():
            shutil.copy(adapter_folder(runs[0]) / file, folder)
    save_file(averaged, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _mean_or_same(name: str, tensors: Sequence[Tensor], runs: Sequence[str | Path]) -> Tensor:
    """Return the mean of a trained parameter; of what identifies a basis or a pattern, the one that all have."""
    if "_basis." not in name and "_pattern." not in name:
        return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
    for run, tensor in zip(runs, tensors, strict=True):
        if not torch.allclose(tensor, tensors[0], rtol=0, atol=_SAME_BASIS):
            raise UserError(
                f"{run} and {runs[0]} have other singular bases, as of two base models or two machines: average the "
                "weights."
            )
    return tensors[0]


def _average_weights(model: str | Path, runs: Sequence[str | Path], speech: Recogniser) -> None:
    """Give a recogniser the mean of the weights of the adapted models, which are loaded one at a time."""
    total: dict[str, Tensor] = {}
    for run in runs:
        adapted = load_adapted(model, run, window=speech.window, dequantise=True)
        merge_adapter(adapted)
        for name, weight in copied_weights(adapted.module).items():
            total[name] = total[name] + weight if name in total else weight
    set_weights(speech.module, {name: weight / len(runs) for name, weight in total.items()})
