"""SSVD and SVFT as methods of Hugging Face PEFT; importing this package registers them there."""

from .registration import register
from .ssvd import SSVDConfig, SSVDLinear, SSVDModel, portion_rank
from .svft import SVFTConfig, SVFTLinear, SVFTModel

register("ssvd", SSVDConfig, SSVDModel)
register("svft", SVFTConfig, SVFTModel)

__all__ = ["SSVDConfig", "SSVDLinear", "SSVDModel", "SVFTConfig", "SVFTLinear", "SVFTModel", "portion_rank"]
