"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751) as a method of PEFT."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import gelu

from ssvd.tuners.config import LayerConfig

_NOT_LINEAR = (
    "A bottleneck adapter is not linear, so it is no change of a weight that could be merged: load it as it is."
)


@dataclass
class BottleneckConfig(LayerConfig):
    """Configuration of bottleneck adapters (Houlsby et al., arXiv 1902.00751).

    The output y of an adapted layer becomes `y + up(GELU(down(y)))`, where down has `width` outputs and both have
    biases: 2 m width + width + m parameters for a layer with m outputs. To have the adapters of the paper, adapt the
    last linear layer of each attention and of each feed-forward block. Unlike in the paper, norms stay frozen, and the
    start is exactly the pretrained model, since `up` is zero.

    Args:
        width: Size of the bottleneck.

    The fields of `ssvd.tuners.config.LayerConfig` choose the layers.

    Raises:
        ValueError: A field is out of range, or two fields contradict each other.
    """

    method: ClassVar[str] = "bottleneck"

    width: int = field(default=64, metadata={"help": "Size of the bottleneck."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"`width` must be a positive integer, not {self.width!r}.")


class BottleneckLinear(nn.Module, BaseTunerLayer):
    """A linear layer and, for each adapter, the bottleneck that follows it.

    Several active adapters follow each other.

    Args:
        base_layer: The layer.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    # PEFT has no types.
    set_adapter: Callable[..., None]
    active_adapters: list[str]
    disable_adapters: bool
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter."""
        down, up = nn.Linear(self.out_features, config.width), nn.Linear(config.width, self.out_features)
        if config.init_weights:
            for zero in (down.bias, up.weight, up.bias):
                nn.init.zeros_(zero)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and the bottlenecks of its active adapters: (..., in) to (..., out)."""
        y: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                down: Any = self.bottleneck_down[name]
                up: Any = self.bottleneck_up[name]
                wide: Tensor = up(gelu(down(y.to(up.bias.dtype))))
                y = y + wide.to(y.dtype)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Raise ValueError: what follows a layer is not a change of its weight."""
        raise ValueError(_NOT_LINEAR)

    def __repr__(self) -> str:
        return f"bottleneck.{super().__repr__()}"


class BottleneckModel(BaseTuner):
    """Puts a bottleneck adapter (arXiv 1902.00751) behind linear layers of a model.

    Args:
        model: The model to adapt, in place.
        config: `BottleneckConfig`, which must name the layers.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Whether to leave the parameters on the meta device, for loading an adapter over them.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLinear
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLinear):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.Linear):
            raise ValueError(
                f"A bottleneck adapter follows torch.nn.Linear, but {current_key} is "
                f"{type(target).__module__}.{type(target).__name__}."
            )
        layer = BottleneckLinear(target).train(target.training)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> NoReturn:
        raise ValueError(_NOT_LINEAR)

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> nullcontext[None]:
        if kwargs.get("adapter_names") is not None:  # PEFT would leave them out in silence
            raise ValueError("Bottleneck adapters have no batches that mix adapters (`adapter_names`).")
        return nullcontext()
