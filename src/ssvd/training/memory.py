"""What takes memory in training and can be made smaller: the frozen weights and the activations."""

from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ssvd.errors import UserError
from ssvd.hardware import pick_device
from ssvd.methods import METHODS, find_method
from ssvd.recognisers.quantisation import checked_bits
from ssvd.spectral import Basis
from ssvd.tuners.quantised import is_quantised
from ssvd_options import AdaptOptions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_quantisable(options: AdaptOptions) -> None:
    """Refuse quantised weights that the method cannot have, or that nothing here can make, before the model is read.

    Raises:
        UserError: They are not possible.
    """
    if options.quantise is None:
        return
    checked_bits(options.quantise)
    method = find_method(options.method)
    if method.config is None:
        raise UserError(
            f"The method {method.name!r} trains the weights themselves, not quantised ones: use an adapter."
        )
    if not method.adapts_quantised:
        usable = ", ".join(row.name for row in METHODS.values() if row.adapts_quantised)
        raise UserError(
            f"The method {method.name!r} cannot adapt quantised weights, which it would change: choose one of {usable}."
        )
    if options.token_stride > 1:
        raise UserError("A token_stride is not possible with quantised weights: leave it at 1.")


def check_savings(options: AdaptOptions, network: nn.Module) -> None:
    """Refuse savings of memory that the method, the model or the device does not have, before any corpus is read.

    Raises:
        UserError: They do not have them.
    """
    is_of_transformers = isinstance(network, PreTrainedModel)
    if options.checkpointing and not getattr(network, "supports_gradient_checkpointing", False):
        raise UserError("The activations of this model cannot be computed again (checkpointing): leave it out.")
    for name, module in network.named_modules():
        is_trained = any(f".{name}".endswith(f".{trained}") for trained in options.also_train)
        if is_trained and any(map(is_quantised, module.modules())):
            raise UserError(f"{name} has quantised weights, which cannot be trained: leave it out of also_train.")
    if options.base_dtype == "float32":
        return
    if options.precision == "float32":
        raise UserError(
            f"A base_dtype of {options.base_dtype} needs mixed precision: leave precision or base_dtype out."
        )
    if find_method(options.method).config is None:
        raise UserError(
            f"The method {options.method!r} trains the base weights themselves, in float32: leave base_dtype out, or "
            "use an adapter."
        )
    if not is_of_transformers:
        raise UserError("Models of ESPnet compute in float32: leave base_dtype out.")
    if options.base_dtype == "float16" and pick_device(options.device).type != "cuda":
        raise UserError("A base_dtype of float16 needs a CUDA GPU: use bfloat16.")


def round_frozen(network: nn.Module, dtype: torch.dtype) -> None:
    """Round what is not trained, weights and bases, to a dtype in place.

    The bases are those of the unrounded weights, so that an adapter fits the base model as it is loaded later. Singular
    values and fingerprints stay in float32, and so do vectors: they are small, and a norm of float32 inputs takes no
    others.
    """
    for parameter in network.parameters():
        if not parameter.requires_grad and parameter.is_floating_point() and parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype)
    for module in network.modules():
        if isinstance(module, Basis):
            module.to(dtype)


def checkpoint_activations(network: nn.Module) -> None:
    """Let each block of a network compute its activations again in the backward pass instead of keeping them."""
    base: Any = network.get_base_model() if isinstance(network, PeftModel) else network
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


Precision = Literal["bf16-mixed", "16-mixed", "32-true"]


def precision_of(options: AdaptOptions) -> Precision:
    """Return in which precision Lightning computes: "auto" is mixed on a GPU, and where frozen weights are rounded."""
    if options.base_dtype == "float16":
        return "16-mixed"
    if "bfloat16" in (options.precision, options.base_dtype):
        return "bf16-mixed"
    is_on_gpu = options.device in ("auto", "cuda") and torch.cuda.is_available()
    if options.precision == "float32" or not is_on_gpu:
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
