"""The mathematics of SSVD and SVFT with torch alone: bases, cores and the adapted linear map."""

from .basis import SVD_METHODS, Basis
from .cache import cached_basis
from .linear import compute_dtype, effective_weight, spectral_linear
from .pattern import PATTERNS, checksum, pattern_positions, pattern_size, sparse_change
from .rotation import ROTATIONS, SIDES, core_change, orthogonality_error, rotation_size, step

__all__ = [
    "PATTERNS",
    "ROTATIONS",
    "SIDES",
    "SVD_METHODS",
    "Basis",
    "cached_basis",
    "checksum",
    "compute_dtype",
    "core_change",
    "effective_weight",
    "orthogonality_error",
    "pattern_positions",
    "pattern_size",
    "rotation_size",
    "sparse_change",
    "spectral_linear",
    "step",
]
