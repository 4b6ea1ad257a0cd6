"""The mathematics of SSVD and SVFT: bases, cores and the adapted linear map; imports torch only."""

from ssvd.spectral.basis import SUBSPACES, SVD_METHODS, Basis, Subspace
from ssvd.spectral.cache import cached_basis
from ssvd.spectral.linear import compute_dtype, effective_weight, plan_step, spectral_linear
from ssvd.spectral.pattern import PATTERNS, checksum, pattern_positions, pattern_size, sparse_change
from ssvd.spectral.planner import Plan, plan, step_products
from ssvd.spectral.rotation import (
    ROTATIONS,
    SIDES,
    Form,
    Rotation,
    Side,
    core_change,
    core_inverse,
    orthogonality_error,
    solve_rotations,
    step,
)

__all__ = [
    "PATTERNS",
    "ROTATIONS",
    "SIDES",
    "SUBSPACES",
    "SVD_METHODS",
    "Basis",
    "Form",
    "Plan",
    "Rotation",
    "Side",
    "Subspace",
    "cached_basis",
    "checksum",
    "compute_dtype",
    "core_change",
    "core_inverse",
    "effective_weight",
    "orthogonality_error",
    "pattern_positions",
    "pattern_size",
    "plan",
    "plan_step",
    "solve_rotations",
    "sparse_change",
    "spectral_linear",
    "step",
    "step_products",
]
