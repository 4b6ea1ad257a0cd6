"""The options of commands, each stated once: its type, default, bounds and help text.

The command line and `config.yaml` both come from these models. They are a package of their own, and import nothing but
pydantic and the standard library, because importing `ssvd` imports torch, which `ssvd adapt --help` must not.
Checks that need `ssvd`, such as whether a method exists, are in `ssvd.training.options`.
"""

from ssvd_options.adapt import AdaptOptions
from ssvd_options.preparation import CgnOptions, MystOptions, SourceOptions, Speechocean762Options

__all__ = ["AdaptOptions", "CgnOptions", "MystOptions", "SourceOptions", "Speechocean762Options"]
