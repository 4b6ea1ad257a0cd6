"""SSVD, SVFT and bottleneck adapters as methods of Hugging Face PEFT; importing this package registers them there."""

from ssvd.tuners.bottleneck import BottleneckConfig, BottleneckLinear, BottleneckModel
from ssvd.tuners.registration import register
from ssvd.tuners.ssvd import Rotated, SSVDConfig, SSVDLinear, SSVDModel, portion_rank
from ssvd.tuners.svft import SVFTConfig, SVFTLinear, SVFTModel

register("ssvd", SSVDConfig, SSVDModel)
register("svft", SVFTConfig, SVFTModel)
register("bottleneck", BottleneckConfig, BottleneckModel)

__all__ = [
    "BottleneckConfig",
    "BottleneckLinear",
    "BottleneckModel",
    "Rotated",
    "SSVDConfig",
    "SSVDLinear",
    "SSVDModel",
    "SVFTConfig",
    "SVFTLinear",
    "SVFTModel",
    "portion_rank",
]
