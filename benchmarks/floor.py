"""What an exact step of an adapted layer takes at the least beyond the frozen layer's y and dx, in multiplications."""

from ssvd.spectral import step_products


def direct(tokens: int, m: int, n: int, k: int) -> int:
    """From x and dy, or from the gradient of the weight; without what brings the change of the core into y and dx."""
    return min(tokens * k * (m + n + k), tokens * m * n + m * k * (n + k))


def planned(tokens: int, m: int, n: int, k: int, has_inverse: bool) -> int:
    """All products of the way that SSVD's planner chooses, the forming of the changed weight among them."""
    return step_products(tokens, m, n, k, has_inverse=has_inverse)
