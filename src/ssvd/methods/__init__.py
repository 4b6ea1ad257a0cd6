"""The methods that can be compared: how a budget becomes a PEFT configuration, what is trained and what it costs."""

from ssvd.methods.apply import (
    apply_method,
    check_layers,
    linear_shapes,
    parameters,
    show_geometry,
    trainable_parameters,
)
from ssvd.methods.budget import Budget
from ssvd.methods.method import Method
from ssvd.methods.rank_allocation import RankAllocation
from ssvd.methods.table import METHODS, find_method

__all__ = [
    "METHODS",
    "Budget",
    "Method",
    "RankAllocation",
    "apply_method",
    "check_layers",
    "find_method",
    "linear_shapes",
    "parameters",
    "show_geometry",
    "trainable_parameters",
]
