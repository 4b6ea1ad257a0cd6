"""Make a model ready for training with a method, and count what is trained."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ssvd.errors import UserError
from ssvd.methods.budget import Budget
from ssvd.methods.method import TOLERANCE, Method, Shape, Shapes, Trained
from ssvd.methods.rank_allocation import pruned_parameters
from ssvd.methods.table import find_method
from ssvd.tuners import SSVDConfig, SVFTConfig
from ssvd.tuners.convolution import Convolution


def apply_method(
    module: nn.Module,
    name: str,
    layers: list[str],
    budget: Budget = Budget("p", 0.4),  # noqa: B008  # frozen
    also_train: Sequence[str] = (),
    token_stride: int = 1,
    tolerance: float = TOLERANCE,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Make a model ready for training with a method.

    Args:
        module: The pretrained model, which is changed in place.
        name: Key of `METHODS`.
        layers: Full names of the layers to adapt.
        budget: How much to train.
        also_train: Names, or ends of names, of modules to train in full and to save with the adapter. Layers in them
            are not adapted.
        token_stride: Above 1, SSVD and SVFT estimate their gradient from every so many tokens.
        tolerance: How far the count may be off, as a share of the budget; see `Method.setting`.
        options: Further fields of the method's PEFT configuration, which override those of the table.

    Returns:
        A `PeftModel`, or the module itself where the method trains everything, the encoder or nothing.

    Raises:
        UserError: A value is wrong, or a layer does not exist or cannot be adapted.
    """
    method = find_method(name)
    full = [] if method.config is None else _modules_to_train(module, also_train)
    adapted = [layer for layer in layers if not _is_in(layer, full)]
    if layers and not adapted:
        raise UserError(
            f"All layers to adapt are in {', '.join(full)}, trained in full: use the method 'full' instead."
        )
    shapes = linear_shapes(module, adapted)
    check_layers(method, module, adapted)
    if token_stride < 1:
        raise UserError(f"The token stride {token_stride} must be at least 1.")
    if token_stride > 1 and not name.startswith(("ssvd", "svft")):
        raise UserError(f"The method {name!r} has no token stride: leave it at 1.")
    setting = method.setting(shapes, budget, parameters(module), tolerance)
    if method.config is None:
        module.requires_grad_(False)
        if (part := method.part(module)) is not None:
            part.requires_grad_(True)
        return module
    _check_names(module, shapes, full)
    config = method.config(shapes, setting)
    config.modules_to_save = full or None
    _set_options(config, method, options or {})
    if isinstance(config, SSVDConfig | SVFTConfig):
        config.token_stride = token_stride
    network: nn.Module = get_peft_model(module, config)
    show_geometry(network)
    return network


def check_layers(method: Method, module: nn.Module, layers: Sequence[str]) -> None:
    """Check that a method can adapt layers of these kinds.

    Raises:
        UserError: It cannot adapt convolutions, and there are some.
    """
    convolutions = [layer for layer in layers if isinstance(module.get_submodule(layer), Convolution)]
    if convolutions and method.trains is Trained.ADAPTER and not method.adapts_convolutions:
        raise UserError(
            f"The method {method.name!r} cannot adapt convolutions, such as {convolutions[0]}: leave them out, or use "
            "another method, such as ssvd, svft, lora or dora."
        )


def show_geometry(network: nn.Module) -> None:
    """Give PEFT's convolutions the stride of the layer that they wrap, which the encoder of Whisper reads."""
    wrapped = (layer for layer in network.modules() if isinstance(layer, BaseTunerLayer))
    for layer in wrapped:
        base = layer.get_base_layer()
        if isinstance(base, Convolution) and not hasattr(layer, "stride"):
            layer.stride = base.stride


def _modules_to_train(module: nn.Module, also_train: Sequence[str]) -> list[str]:
    """Return the full names of the modules to train in full."""
    modules = dict(module.named_modules())
    full = []
    for wanted in also_train:
        names = [name for name in modules if name and (name == wanted or name.endswith(f".{wanted}"))]
        if not names:
            raise UserError(f"The model has no module {wanted!r} to train; `named_modules` lists what it has.")
        full += [name for name in names if name not in full]
    for name in full:
        if isinstance(modules[name], nn.ModuleList | nn.ModuleDict):
            raise UserError(f"{name!r} is a list of modules, which cannot be trained in full: name modules in it.")
        if others := [other for other in full if other != name and _is_in(name, [other])]:
            raise UserError(f"{name!r} is part of {others[0]!r}, which is trained in full anyway: name only one.")
    return full


def _is_in(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _check_names(module: nn.Module, shapes: Shapes, full: Sequence[str]) -> None:
    # PEFT takes full names for ends of names, and would adapt or train the longer ones too.
    for name, _ in module.named_modules():
        if name not in shapes and name.endswith(tuple(f".{layer}" for layer in shapes)):
            raise UserError(f"The name of a layer to adapt is also the end of {name}: adapt both, or rename one.")
        if name not in full and name.endswith(tuple(full)):
            raise UserError(f"The name of a module to train is also the end of {name}: train both, or rename one.")


def _set_options(config: PeftConfig, method: Method, options: Mapping[str, Any]) -> None:
    for field, value in options.items():
        if not hasattr(config, field):
            raise UserError(f"The method {method.name!r} has no option {field!r}.")
        setattr(config, field, value)


def linear_shapes(module: nn.Module, layers: list[str]) -> dict[str, Shape]:
    """Return the shapes (out, in) of the linear layers and convolutions with these full names.

    A kernel (out, in, width) counts as the matrix (out, in x width).

    Raises:
        UserError: The list is empty, or a name is that of another layer or of none.
    """
    if not layers:
        raise UserError("There is no layer to adapt: name at least one layer of the model.")
    modules = dict(module.named_modules())
    shapes: dict[str, Shape] = {}
    for name in layers:
        layer = modules.get(name)
        if layer is None:
            raise UserError(f"The model has no layer {name!r}: give full names, as `named_modules` lists them.")
        if not isinstance(layer, nn.Linear | Convolution):
            raise UserError(
                f"The layer {name!r} is {type(layer).__name__}: only linear layers and convolutions can be adapted."
            )
        if isinstance(layer, nn.Linear):  # of 4 bits, the weight is packed
            shapes[name] = layer.out_features, layer.in_features
        else:
            shapes[name] = len(layer.weight), layer.weight[0].numel()
    return shapes


def parameters(module: nn.Module) -> int:
    """Count the parameters of a model, trained or not; quantised ones too, however many are in a byte."""
    return sum(math.prod((getattr(p, "quant_state", None) or p).shape) for p in module.parameters())


def trainable_parameters(module: nn.Module) -> int:
    """Count the parameters of a model that are trained, without those that AdaLoRA has pruned."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad) - pruned_parameters(module)
