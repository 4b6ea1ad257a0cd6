"""A model whose layers are adapted in the singular bases of their weights."""

import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from tqdm.auto import tqdm
from transformers.pytorch_utils import Conv1D

from ssvd.tuners.config import SpectralConfig
from ssvd.tuners.convolution import Convolution, ConvolutionLayer
from ssvd.tuners.layer import SpectralLayer
from ssvd.tuners.quantised import QuantisedLayer, is_quantised

_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
_WAV2VEC2 = ["projection", *_ATTENTION, "intermediate_dense", "output_dense"]

# All linear layers of encoder and decoder except the output projection: it is tied to the embedding or, for CTC, new
# for each alphabet (then use `modules_to_save=["lm_head"]`).
_SPEECH_TARGETS = {
    "whisper": [*_ATTENTION, "fc1", "fc2"],
    "wav2vec2": _WAV2VEC2,
    "wavlm": _WAV2VEC2,
    "hubert": _WAV2VEC2,
    "unispeech": _WAV2VEC2,
    "unispeech-sat": _WAV2VEC2,
    "data2vec-audio": _WAV2VEC2,
    "sew": ["feature_projection", *_WAV2VEC2],
    "speech_to_text": [*_ATTENTION, "fc1", "fc2"],
    "moonshine": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
}

_FORWARDS = (nn.Linear.forward, Conv1D.forward, nn.Conv1d.forward, nn.Conv2d.forward)


class SpectralModel(BaseTuner):
    """Base of the tuners of SSVD and SVFT."""

    tuner_layer_cls: type[SpectralLayer]
    convolution_cls: type[ConvolutionLayer]
    quantised_cls: type[QuantisedLayer]
    # A view, so that later additions to PEFT's table count too.
    target_module_mapping: ClassVar[MutableMapping[str, list[str]]] = ChainMap(
        _SPEECH_TARGETS, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    )

    def adapted_layers(self, adapter_name: str) -> list[tuple[str, SpectralLayer]]:
        """Return the layers of an adapter with their names."""
        layers = ((n, m) for n, m in self.model.named_modules() if isinstance(m, SpectralLayer))
        return [(name, layer) for name, layer in layers if adapter_name in layer.bases]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap the layers of a model, with a progress bar while their weights are decomposed."""
        # The first decomposition of a large model takes minutes.
        with tqdm(desc="Decomposing weights", unit=" layers", delay=2, leave=False) as progress:
            self._on_layer: Callable[[], Any] | None = progress.update
            try:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            finally:
                self._on_layer = None  # a progress bar cannot be copied or pickled with the model
        self.warn_of_unused(adapter_name)

    def warn_of_unused(self, adapter_name: str) -> None:
        """Warn of settings of an adapter that match no layer."""

    def _create_and_replace(
        self,
        peft_config: SpectralConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if self._on_layer is not None:
            self._on_layer()
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        name = self.tuner_layer_cls.method.upper()
        if isinstance(target, BaseTunerLayer) or not isinstance(target, nn.Linear | Conv1D | Convolution):
            raise ValueError(
                f"{name} adapts torch.nn.Linear, Conv1d and Conv2d, and transformers' Conv1D, "
                f"but {current_key} is {type(target).__module__}.{type(target).__name__}."
            )
        quantised = is_quantised(target)
        if not quantised and type(target).forward not in _FORWARDS:  # an adapted layer would not call it
            raise ValueError(
                f"{name} adapts layers that compute x W^T + b or a convolution, but {current_key} is "
                f"{type(target).__module__}.{type(target).__name__}, which has its own forward method."
            )
        is_convolution = isinstance(target, Convolution)
        if is_convolution and target.groups != 1:
            raise ValueError(
                f"{name} adapts convolutions without groups, but {current_key} has {target.groups}: leave it out."
            )
        if quantised and peft_config.token_stride > 1:
            raise ValueError(f"{name} has no `token_stride` on quantised weights, as those of {current_key} are.")
        if not quantised and (not target.weight.is_floating_point() or target.weight.dtype.itemsize < 2):
            raise ValueError(
                f"{name} needs a floating-point weight, but that of {current_key} is {target.weight.dtype}."
            )
        fan_in_fan_out = isinstance(target, Conv1D)
        if peft_config.fan_in_fan_out != fan_in_fan_out:
            warnings.warn(
                f"{type(target).__name__} needs fan_in_fan_out={fan_in_fan_out}, which is used instead.", stacklevel=2
            )
            peft_config.fan_in_fan_out = fan_in_fan_out
        layer_cls = self.tuner_layer_cls
        if is_convolution or quantised:
            layer_cls = self.convolution_cls if is_convolution else self.quantised_cls
        layer = layer_cls(target, fan_in_fan_out).train(target.training)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # PEFT's method would set the weight and bias of `child`, which a module of several layers does not have.
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Pass `adapter_names`, one for each row of the batch, to the layers; "__base__" means none."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        known = {adapter for m in self.modules() if isinstance(m, SpectralLayer) for adapter in m.bases}
        if unknown := set(names) - known - {"__base__"}:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        # Beam search repeats each row, except in the encoder.
        beams = kwargs.get("num_beams") or 1
        encoder = self.model.get_encoder() if beams > 1 and hasattr(self.model, "get_encoder") else None
        once = set() if encoder is None else set(encoder.modules())
        with ExitStack() as hooks:
            for module in self.modules():
                if isinstance(module, SpectralLayer | AuxiliaryTrainingWrapper):
                    rows = [name for name in names for _ in range(1 if module in once else beams)]
                    handle = module.register_forward_pre_hook(partial(_name_adapters, rows), with_kwargs=True)
                    hooks.callback(handle.remove)
            yield


def _name_adapters(names: list[str], module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": names}
