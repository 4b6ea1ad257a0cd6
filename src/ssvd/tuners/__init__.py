"""SSVD and SVFT as methods of Hugging Face PEFT; importing this package registers them there."""

from ssvd.tuners.registration import register
from ssvd.tuners.ssvd import Rotated, SSVDConfig, SSVDLinear, SSVDModel, portion_rank
from ssvd.tuners.svft import SVFTConfig, SVFTLinear, SVFTModel

register("ssvd", SSVDConfig, SSVDModel)
register("svft", SVFTConfig, SVFTModel)

__all__ = [
    "Rotated",
    "SSVDConfig",
    "SSVDLinear",
    "SSVDModel",
    "SVFTConfig",
    "SVFTLinear",
    "SVFTModel",
    "portion_rank",
]
