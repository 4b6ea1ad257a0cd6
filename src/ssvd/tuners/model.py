"""A model adapted with SSVD."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import SSVDConfig
from .layer import SSVDLinear

_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
_WAV2VEC2 = ["projection", *_ATTENTION, "intermediate_dense", "output_dense"]

# All linear layers of encoder and decoder, without the output projection, which is tied to the embedding or, for CTC,
# made anew for each alphabet (then: `modules_to_save=["lm_head"]`).
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


class SSVDModel(BaseTuner):
    """Adapts the linear layers of a model with SSVD, arXiv 2509.02830.

    Args:
        model: The model to adapt, in place.
        config: `SSVDConfig`.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Whether to leave the parameters on the meta device, for loading an adapter over them.
    """

    prefix = "ssvd_"
    tuner_layer_cls = SSVDLinear
    target_module_mapping: ClassVar[dict[str, list[str] | str]] = {
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        **_SPEECH_TARGETS,
    }

    def orthogonality_errors(self, adapter_name: str = "default") -> dict[str, float]:
        """Spectral norm of `G^T G - I` for every layer of an adapter: how far the approximate form left rotations."""
        return {
            name: module.orthogonality_error(adapter_name)
            for name, module in self.model.named_modules()
            if isinstance(module, SSVDLinear) and adapter_name in module.ssvd_basis
        }

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        names = [n for n, m in model.named_modules() if isinstance(m, SSVDLinear) and adapter_name in m.ssvd_basis]
        patterns = self.peft_config[adapter_name].portion_pattern
        unused = [key for key in patterns if not any(re.match(rf"(.*\.)?({key})$", name) for name in names)]
        if unused:
            warnings.warn(
                f"These keys of portion_pattern match no adapted layer: {', '.join(unused)}.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _create_and_replace(
        self,
        peft_config: SSVDConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, SSVDLinear):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        if isinstance(target, BaseTunerLayer) or not isinstance(target, nn.Linear | Conv1D):
            raise ValueError(
                "SSVD adapts torch.nn.Linear and transformers' Conv1D, "
                f"but {current_key} is {type(target).__module__}.{type(target).__name__}."
            )
        if not target.weight.is_floating_point():
            raise ValueError(f"SSVD needs a floating-point weight, but that of {current_key} is {target.weight.dtype}.")
        fan_in_fan_out = isinstance(target, Conv1D)
        if peft_config.fan_in_fan_out != fan_in_fan_out:
            warnings.warn(
                f"{type(target).__name__} needs fan_in_fan_out={fan_in_fan_out}; it is used as such.", stacklevel=2
            )
            peft_config.fan_in_fan_out = fan_in_fan_out
        layer = SSVDLinear(target, fan_in_fan_out).train(target.training)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT would drop the argument and use the active adapter for the whole batch.
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "SSVD has no batches of mixed adapters: choose one with `set_adapter`, not `adapter_names`."
            )
        yield
