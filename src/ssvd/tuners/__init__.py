"""SSVD as a method of Hugging Face PEFT; importing this package registers it there."""

from .config import SSVDConfig
from .layer import SSVDLinear
from .model import SSVDModel
from .registration import register

register("ssvd", SSVDConfig, SSVDModel)

__all__ = ["SSVDConfig", "SSVDLinear", "SSVDModel"]
