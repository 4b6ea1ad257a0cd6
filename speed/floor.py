"""What an exact step of an adapted layer takes at the least beyond the frozen layer's y and dx, in multiplications."""


def direct(tokens: int, m: int, n: int, k: int) -> int:
    """From x and dy, or from the gradient of the weight; without what brings the change of the core into y and dx.

    `ssvd.spectral.step_products` counts all products of the way that SSVD's planner chooses.
    """
    return min(tokens * k * (m + n + k), tokens * m * n + m * k * (n + k))
