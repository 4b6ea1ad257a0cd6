"""The bases of a layer whose parameters are being loaded: those in which the parameters were trained, or an error."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ssvd.spectral import Basis, cached_basis
from ssvd.tuners.core_layer import CoreLayer


def prepare_loading(layer: CoreLayer, state_dict: dict[str, Any], prefix: str) -> None:
    """Give each adapter of a layer the basis in which the parameters in a state dict were trained.

    Args:
        layer: The layer, before anything is copied into it.
        state_dict: Tensors by their full names.
        prefix: What the names of this layer's tensors begin with.

    Raises:
        ValueError: The weight of the layer does not have that basis, or the parameters belong to another kind of core.
    """
    name = prefix.removeprefix("base_model.model.").rstrip(".")
    loaded = state_dict.get(f"{prefix}base_layer.weight")
    if loaded is not None and not loaded.is_floating_point():  # quantised, and the same: bitsandbytes loads no other
        loaded = None
    _decompose_loaded_weight(layer, loaded, name)
    for adapter_name in list(layer.bases):
        _load_basis(layer, state_dict, prefix, adapter_name, name, loaded)
        layer.check_core(state_dict, prefix, adapter_name, name)


def _decompose_loaded_weight(layer: CoreLayer, loaded: Tensor | None, name: str) -> None:
    """Decompose the weight that is about to be loaded into the base layer, if it is a different one."""
    weight = layer.get_base_layer().weight
    if loaded is None or loaded.shape != weight.shape:
        return
    if not weight.is_meta and torch.equal(weight, loaded.to(weight)):
        return
    if layer.merged:
        raise ValueError(f"Unmerge the adapters before another base weight is loaded into {name}.")
    loaded = layer.as_matrix(loaded.detach().to(loaded.device if weight.is_meta else weight.device, weight.dtype))
    for adapter_name, basis in list(layer.bases.items()):
        new = cached_basis(loaded, basis.k, *layer.decomposition[adapter_name])
        layer.bases[adapter_name] = new.narrow(basis.k, len(basis.fingerprint), basis.stored).padded()
        layer.follow_new_basis(adapter_name)


def _load_basis(
    layer: CoreLayer, state_dict: dict[str, Any], prefix: str, adapter_name: str, name: str, loaded: Tensor | None
) -> None:
    """Take the stored basis of an adapter, or verify the recomputed one by the stored fingerprint."""
    basis = layer.bases[adapter_name]
    basis_prefix = f"{prefix}{layer.method}_basis.{adapter_name}."
    fingerprint = state_dict.get(f"{basis_prefix}fingerprint")
    if fingerprint is None:
        if any(f"{prefix}{parameters}.{adapter_name}" in state_dict for parameters in layer.adapter_layer_names):
            warnings.warn(
                f"Parameters of {layer.method.upper()} without the fingerprints of the bases they were trained in "
                "cannot be checked; save adapters with `save_pretrained` or `get_peft_model_state_dict`.",
                stacklevel=2,
            )
        return
    if fingerprint.shape != basis.fingerprint.shape:
        return  # another k: PyTorch raises an error next
    keys = [f"{basis_prefix}{vectors}" for vectors in "USV"]
    triplets = [state_dict[key] for key in keys if key in state_dict]
    if basis.stored and [t.shape for t in triplets] == [basis.U.shape, basis.S.shape, basis.V.shape]:
        # A whole checkpoint brings the weight too.
        weight = layer.as_matrix(layer.frozen_weight() if loaded is None else loaded)
        U, S, V = (tensor.detach().to(weight.device) for tensor in triplets)
        stored = Basis.of_triplets(U, S, V, len(fingerprint))
        if not stored.misfit(weight) <= layer.largest_misfit:
            raise ValueError(
                f"The adapter was trained on another base model: its stored basis of {name} holds only part of "
                "the weight; load the base model of the training, or a copy of it that was rounded less."
            )
        layer.bases[adapter_name] = stored.to(weight.dtype)
        return
    aligned = basis.aligned(fingerprint)
    if aligned is None:
        raise ValueError(
            f"The adapter was trained on another base model, or on this one in another precision: the weight "
            f"of {name} has another singular basis. Load the base model in the dtype that it had in training and "
            'convert it afterwards, or train with basis="stored", which keeps the basis in the adapter.'
        )
    layer.bases[adapter_name] = aligned
