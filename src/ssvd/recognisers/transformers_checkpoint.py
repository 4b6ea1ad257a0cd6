"""Read checkpoints of Transformers: safetensors only, every tensor accounted for, no file taken to be well formed."""

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ssvd.errors import UserError
from ssvd.recognisers.agreement import MOST_LAYERS, check_finite, reading
from ssvd.recognisers.quantisation import Quantisation

# Used by training without labels and by masking only: the published wav2vec2-base-960h lacks the first.
_MASKING = re.compile(r"(^|\.)masked_spec_embed$")
_PRETRAINING = re.compile(r"(^|\.)(masked_spec_embed$|(quantizer|project_q|project_hid)\.)")
_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")  # of batch normalisation: an integer in every checkpoint
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_json(name: str, file: str) -> dict[str, Any] | None:
    """Return the content of a JSON file of a checkpoint, or None if there is no such file.

    Args:
        name: Folder, or name on the hub.
        file: Name of the file.

    Raises:
        UserError: The file is damaged, is no object, or has numbers that are not finite.
    """
    path = _path(name, file)
    if path is None:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"The {file} of {name} is not valid JSON ({error}): copy it from the model that it comes from."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"The {file} of {name} holds no fields: copy it from the model that it comes from.")
    return value


def _path(name: str, file: str) -> Path | None:
    """Return the path of a file of a checkpoint, fetched if need be, or None; a checkpoint may be a config alone."""
    if Path(name).is_file():
        return Path(name) if file == "config.json" else None
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        _refuse_number(text)
    return number


def read_config(name: str) -> Any:
    """Return the config of a checkpoint.

    Args:
        name: Folder, or name on the hub.

    Raises:
        UserError: It is damaged or states what no checkpoint has.
    """
    read_json(name, "config.json")
    with reading(f"The config.json of {name}", "copy it from the model that it comes from"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        for field, value in config.to_dict().items():
            most = (
                MOST_LAYERS if field.endswith("layers") else 1 if field.endswith(("drop", "dropout", "prob")) else None
            )
            if most is not None and isinstance(value, int | float) and not 0 <= value <= most:
                raise ValueError(f"{field} is {value}")
    return config


def load_network(
    kind: Any, name: str, outline: Any, *, replaced: str | None = None, quantisation: Quantisation | None = None
) -> tuple[Any, torch.dtype]:
    """Load the network of a checkpoint in float32 and evaluation mode; return it and the dtype of its stored weights.

    Tensors that only training by masking needs may be missing and are zero then; those that only training without
    labels needs may be left over.

    Args:
        kind: The class of the network, or an auto class.
        name: Folder, or name on the hub.
        outline: The network without its weights, on the meta device.
        replaced: Name of a layer that will be replaced, and may be missing therefore; it is zero then.
        quantisation: How linear layers are quantised; None for not at all.

    Raises:
        UserError: The weights are not in safetensors files, are damaged or quantised, do not fit the config, or are no
            finite numbers.
    """
    if read_json(name, "adapter_config.json") is not None:
        raise UserError(f"{name} holds an adapter beside the weights: keep it in a folder of its own, and name both.")
    read_json(name, "generation_config.json")
    remedy = (
        "weights are read from safetensors files only, so convert pickled ones (.bin, .pt) first, and fetch damaged "
        "files anew"
    )
    with reading(f"The weights of {name}", remedy):
        dtype = _check_stored(name, outline)
        options: dict[str, Any] = {} if replaced is None else {"config": copy.deepcopy(outline.config)}
        if quantisation is not None:
            options |= quantisation.loading_options(outline)
        network, report = kind.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    missing = [key for key in report["missing_keys"] if not _MASKING.search(key)]
    missing = [key for key in missing if replaced is None or not key.startswith(f"{replaced}.")]
    if missing:
        raise UserError(
            f"The checkpoint {name} lacks weights, among them {min(missing)} ({len(missing)} in all): take a whole one "
            "that was trained to transcribe, with its own config.json."
        )
    unused = [key for key in report["unexpected_keys"] if not _PRETRAINING.search(key)]
    if unused:
        raise UserError(
            f"The checkpoint {name} holds weights that the network of its config.json lacks, among them {min(unused)} "
            f"({len(unused)} in all): copy the config.json of the model that the weights come from."
        )
    with torch.no_grad():
        for key in report["missing_keys"]:
            network.get_parameter(key).zero_()  # else random: another one at each loading
    if quantisation is not None:
        network = quantisation.finish(name, network)
    check_finite(name, network)
    return network.eval(), dtype


def _check_stored(name: str, outline: nn.Module) -> torch.dtype:
    """Check the stored tensors by their headers alone, and return the dtype of most of them.

    Loading would take memory for the sizes that the config states before it finds that the weights have others.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in outline.state_dict().items()}
    dtypes: Counter[str] = Counter()
    for file, listed in _weight_files(name).items():
        with safe_open(file, "pt") as tensors:
            held = set(tensors.keys())
            if listed is not None and held != listed:
                raise UserError(
                    f"{SAFE_WEIGHTS_INDEX_NAME} of {name} does not list what {file.name} holds, among it "
                    f"{min(held ^ listed)}: fetch both anew."
                )
            for key in held:
                part = tensors.get_slice(key)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if dtype not in _DTYPES and not _COUNTER.search(key):
                    raise UserError(
                        f"The weights of {name} are of the type {dtype} ({key}), as quantised ones are: take the model "
                        "that they were made from."
                    )
                if shape != expected.get(key, shape):
                    raise UserError(
                        f"The weights of {name} do not fit its config.json: {key} has the shape {shape}, and the "
                        f"network {expected[key]}. Copy the config.json of the model that the weights come from."
                    )
                if dtype in _DTYPES:
                    dtypes[dtype] += 1
    return _DTYPES[dtypes.most_common(1)[0][0]]


def _weight_files(name: str) -> dict[Path, set[str] | None]:
    """Return the files of the weights, each with the tensors that the index lists for it; None without an index."""
    if (whole := _path(name, SAFE_WEIGHTS_NAME)) is not None:
        return {whole: None}
    index = read_json(name, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        raise FileNotFoundError(f"there is no {SAFE_WEIGHTS_NAME}")
    where, metadata = index.get("weight_map"), index.get("metadata")
    shards: dict[str, set[str]] = {}
    if not isinstance(where, dict) or not isinstance(metadata, dict) or not where:
        raise UserError(
            f"The {SAFE_WEIGHTS_INDEX_NAME} of {name} lists no files (weight_map, metadata): fetch it anew."
        )
    for key, file in where.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"The {SAFE_WEIGHTS_INDEX_NAME} of {name} says that {key} is in {file!r}, which is no safetensors file "
                "beside it: fetch it anew."
            )
        shards.setdefault(file, set()).add(key)
    files: dict[Path, set[str] | None] = {}
    for file, keys in sorted(shards.items()):
        path = _path(name, file)
        if path is None:
            raise UserError(f"{file} of {name} is missing, which {SAFE_WEIGHTS_INDEX_NAME} lists: fetch it.")
        files[path] = keys
    return files
