"""An adapter on disk: what binds its file to its configuration, and how it is checked before it is used.

A configuration decides what function the parameters of an adapter compute. So an adapter of a run states in its file's
metadata the digest of its `adapter_config.json`, and that of the fingerprint of its base model. All other checks apply
to any adapter of PEFT: the file must hold exactly the tensors that the configuration demands, with finite values of a
size that training can give.
"""

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssvd.documents import read_json
from ssvd.errors import shortened
from ssvd.methods import show_geometry
from ssvd.recognisers.vocabulary import VOCABULARY, Vocabulary
from ssvd.tuners.quantised import is_quantised

Result = TypeVar("Result")

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Of the metadata.
_CONFIG_DIGEST, _BASE_DIGEST, _VOCABULARY_DIGEST = "ssvd_config", "ssvd_base", "ssvd_vocabulary"
_QUANTISE = "ssvd_quantise"
# Fields of a configuration that do not change the function of the adapter.
_FREE_FIELDS = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
# Tensors that adapters of former versions lack.
_NEW_TENSORS = (".ssvd_variant.number",)
_FLOATS = {"F64", "F32", "F16", "BF16"}  # in the notation of safetensors
# Trained parameters are about 1e-3 to 10.
_LARGEST_PARAMETER = 1e4
# How far an adapter may change the weight of a layer, relative to its norm; training changes it by less than 1.
_LARGEST_CHANGE = 100


def bind_adapter(folder: Path, base: Path, model: str, quantise: str | None = None) -> None:
    """Write into the adapter file of a run what it belongs to, and name its base model without a path.

    Args:
        folder: The folder that PEFT saved.
        base: The fingerprint of the base model, a JSON file.
        model: Name of the base model for others.
        quantise: How the base model was quantised, as `load_model` takes it.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    config["base_model_name_or_path"] = model
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    metadata = {"format": "pt", _CONFIG_DIGEST: _config_digest(config), _BASE_DIGEST: _digest(read_json(base))}
    if quantise is not None:
        metadata[_QUANTISE] = quantise
    if (symbols := _vocabulary_digest(folder)) is not None:
        metadata[_VOCABULARY_DIGEST] = symbols
    weights = folder / ADAPTER_WEIGHTS
    save_file(load_file(weights), weights, metadata)


def quantisation_of(folder: Path) -> str | None:
    """Return how the base model of an adapter was quantised in training; None if it was not, or nothing is known.

    Raises:
        ValueError: The adapter's file is damaged.
    """
    return _metadata(folder).get(_QUANTISE)


def belongs_to_base(folder: Path, base: Any) -> bool:
    """Return whether an adapter was bound to this fingerprint of a base model, or to none."""
    return _metadata(folder).get(_BASE_DIGEST) in (None, _digest(base))


def check_adapter(module: nn.Module, folder: Path) -> None:
    """Check an adapter without loading it; reads its file once.

    Args:
        module: The base model, not wrapped; it is not changed.
        folder: The folder of the adapter.

    Raises:
        ValueError: The configuration or the file is damaged, they do not belong together, or they do not suit the
            base model.
    """
    config = _read_config(folder)
    digest = _metadata(folder).get(_CONFIG_DIGEST)
    if digest is not None and digest != _config_digest(config):
        raise ValueError(
            f"its {ADAPTER_CONFIG} is not the one that it was trained with; copy both files from the same run"
        )
    symbols = _metadata(folder).get(_VOCABULARY_DIGEST)
    if symbols is not None and symbols != _vocabulary_digest(folder):
        raise ValueError(f"its {VOCABULARY} is not the one that it was trained with; copy all its files again")
    expected = _expected_tensors(module, folder)
    _check_header(folder / ADAPTER_WEIGHTS, expected)
    _check_values(folder / ADAPTER_WEIGHTS, module)


def load_adapter(module: nn.Module, folder: Path) -> PeftModel:
    """Load an adapter that `check_adapter` accepted onto a base model, in evaluation mode.

    Raises:
        ValueError: It does not suit the base model, or changes it beyond recognition.
    """
    network = _by_peft(lambda: PeftModel.from_pretrained(module, str(folder)))
    show_geometry(network)
    network.eval()
    _check_change(network)
    return network


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / ADAPTER_CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(f"its {ADAPTER_CONFIG} cannot be read ({_reason(error)})") from None
    if not isinstance(config, dict):
        raise ValueError(f"its {ADAPTER_CONFIG} does not hold fields by name")
    kind = config.get("peft_type")
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind) if isinstance(kind, str) else None
    if tuner is None or not issubclass(tuner, BaseTuner):
        raise ValueError(f"its peft_type, {shortened(kind)}, is not a method that adapts layers")
    return config


def _config_digest(config: Mapping[str, Any]) -> str:
    return _digest({name: value for name, value in config.items() if name not in _FREE_FIELDS})


def _vocabulary_digest(folder: Path) -> str | None:
    file = folder / VOCABULARY
    return _digest(Vocabulary.read(file).symbols) if file.is_file() else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _metadata(folder: Path) -> dict[str, str]:
    file = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(file, "pt") as tensors:
            return dict(tensors.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"its {ADAPTER_WEIGHTS} is damaged or not a safetensors file ({_reason(error)}); copy it again"
        ) from None


def _expected_tensors(module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return the tensors that the configuration demands, on the meta device: no size in it costs any memory."""

    def outline() -> dict[str, Tensor]:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
            if isinstance(config, AdaLoraConfig) and config.rank_pattern:  # a list would become a mask without values
                masks = {name: torch.tensor(kept, device="cpu") for name, kept in config.rank_pattern.items()}
                config.rank_pattern = masks
            network = get_peft_model(_without_memory(module), config, low_cpu_mem_usage=True)
            tensors: dict[str, Tensor] = get_peft_model_state_dict(network, save_embedding_layers=False)
            return tensors

    return _by_peft(outline)


def _without_memory(module: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device, with plain layers in the place of quantised ones."""
    memo: dict[int, Any] = {
        id(layer): nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and is_quantised(layer)
    }
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _check_header(file: Path, expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes and dtypes of the tensors in a file."""
    with safe_open(file, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # no mapping
        stored = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    missing = [name for name in expected if name not in stored and not name.endswith(_NEW_TENSORS)]
    foreign = [name for name in stored if name not in expected]
    if missing:
        raise ValueError(f"its file lacks {len(missing)} tensors of its configuration, among them {missing[0]}")
    if foreign:
        raise ValueError(f"its file holds {len(foreign)} tensors that it has no place for, among them {foreign[0]}")
    for name, (shape, dtype) in stored.items():
        if shape != tuple(expected[name].shape):
            raise ValueError(
                f"{name} has the shape {shape} in its file and {tuple(expected[name].shape)} by its configuration"
            )
        if (dtype in _FLOATS) != expected[name].is_floating_point():
            raise ValueError(f"{name} in its file has the type {dtype}")


def _check_values(file: Path, module: nn.Module) -> None:
    """Check that all values in a file are finite and of a size that training can give."""
    base = module.state_dict()
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # no mapping
            tensor = tensors.get_tensor(name)
            if not tensor.is_floating_point() or tensor.dim() == 0 or not tensor.numel():
                continue
            # A module that is trained in full began with the values of the base model.
            start = base.get(name.removeprefix("base_model.model."))
            size = 1.0 if start is None or not start.numel() else max(1.0, float(start.abs().max()))
            if not float(tensor.abs().max()) <= _LARGEST_PARAMETER * size:
                raise ValueError(f"{name} in its file has values that are not finite or too large for a trained one")


@torch.no_grad()
def _check_change(network: PeftModel) -> None:
    """Check by random inputs how far an adapter changes the weights of its layers."""
    generator = torch.Generator().manual_seed(0)
    for name, layer in network.named_modules():
        if not isinstance(layer, BaseTunerLayer) or not isinstance(base := layer.get_base_layer(), nn.Linear):
            continue
        dtype = base.weight.dtype if base.weight.is_floating_point() else torch.float32  # that of quantised ones
        x = torch.randn(4, base.in_features, generator=generator).to(base.weight.device, dtype)
        plain, adapted = base(x), layer(x)
        layer.train(False)  # drops the weight that an SSVD layer formed
        if not (adapted - plain).norm() <= _LARGEST_CHANGE * (plain.norm() + 0.01 * x.norm()):
            layer_name = name.removeprefix("base_model.model.")
            raise ValueError(f"it changes {layer_name} to more than {_LARGEST_CHANGE} times its size")


def _by_peft(work: Callable[[], Result]) -> Result:
    """Return what PEFT makes of an adapter; its errors as ValueError, whatever they are: the values are a user's."""
    try:
        return work()
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"[.:\s]+$", "", " ".join(lines[:2])) or type(error).__name__
