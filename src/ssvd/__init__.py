"""SSVD: structured SVD fine-tuning of speech recognisers (arXiv 2509.02830).

Importing this package registers SSVD and SVFT with Hugging Face PEFT, for `get_peft_model` and for loading adapters.
"""

from importlib.metadata import version

from ssvd.tuners import SSVDConfig, SSVDModel, SVFTConfig, SVFTModel

__version__ = version("ssvd")

__all__ = ["SSVDConfig", "SSVDModel", "SVFTConfig", "SVFTModel", "__version__"]
