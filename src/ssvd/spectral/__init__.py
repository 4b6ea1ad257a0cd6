"""The mathematics of SSVD with torch alone: bases, rotations and the adapted linear map."""

from .basis import SVD_METHODS, Basis
from .linear import effective_weight, spectral_linear
from .rotation import (
    ROTATIONS,
    change_signs,
    core_change,
    orthogonality_error,
    rotation_size,
    step,
)

__all__ = [
    "ROTATIONS",
    "SVD_METHODS",
    "Basis",
    "change_signs",
    "core_change",
    "effective_weight",
    "orthogonality_error",
    "rotation_size",
    "spectral_linear",
    "step",
]
