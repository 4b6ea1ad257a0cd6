"""SSVD: structured SVD fine-tuning of speech recognisers (arXiv 2509.02830).

Importing this package registers SSVD and SVFT with Hugging Face PEFT, for `get_peft_model` and for loading adapters:
at once if PEFT has been imported, else as soon as it is. Importing PEFT takes seconds, which is too long for commands
that only read corpora. The names below are imported when they are used; the functions that read corpora, load models
and score texts need the extra `ssvd[speech]`. What the command line does is in modules, whose functions have the same
names:

    from ssvd.adapt import AdaptOptions, adapt
    from ssvd.evaluate import evaluate
    from ssvd.transcribe import transcribe_files
    from ssvd.merge import merge
"""

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

import wrapt

from ssvd.errors import UserError

# PEFT imports it where it is installed; it warns of a kernel that it does without, and of every product of 8 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

wrapt.register_post_import_hook(lambda _: import_module("ssvd.tuners"), "peft")

if TYPE_CHECKING:
    from ssvd.corpora.corpus import read_corpus
    from ssvd.recognisers.loading import load_model
    from ssvd.scoring import compare, normaliser, score
    from ssvd.tuners import SSVDConfig, SSVDModel, SVFTConfig, SVFTModel

__version__ = version("ssvd")

__all__ = [
    "SSVDConfig",
    "SSVDModel",
    "SVFTConfig",
    "SVFTModel",
    "UserError",
    "__version__",
    "compare",
    "load_model",
    "normaliser",
    "read_corpus",
    "score",
]

_MODULES = {
    "SSVDConfig": "ssvd.tuners",
    "SSVDModel": "ssvd.tuners",
    "SVFTConfig": "ssvd.tuners",
    "SVFTModel": "ssvd.tuners",
    "compare": "ssvd.scoring",
    "load_model": "ssvd.recognisers.loading",
    "normaliser": "ssvd.scoring",
    "read_corpus": "ssvd.corpora.corpus",
    "score": "ssvd.scoring",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
