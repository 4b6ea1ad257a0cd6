"""The order of the matrix products in a training step of an adapted layer, chosen by cost for its shapes.

A step of `y = x W'^T` with `W' = W + U (C - S) V^T` has the two products of the frozen layer, y and dx. It must also
apply the change of the core to y and dx, and compute the gradient of the core, dC = U^T dy^T x V. There are two ways
for the first and four for the second. Two of these need `W V = U S` and `U^T W = S V^T`, that is, the basis of W:

    dx V = dy W' V = dy U C,    so dC = C^-T (dx V)^T (x V), without a product with U, the larger in a tall layer;
    y U = x W'^T U = x V C^T,   so dC = (dy U)^T (y U) C^-T, without a product with V, the larger in a wide layer.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Change = Literal["weight", "activations"]
Core = Literal["activations", "weight gradient", "input gradient", "output"]
Product = tuple[int, int, int]

# Multiplications in the time of moving a byte: in float32 on a CPU core, in bfloat16 on a GPU.
_MULTIPLICATIONS_PER_BYTE = {"cpu": 4, "cuda": 100}
# LAPACK inverts a matrix of a few hundred rows in the time of about this number of products of its size.
_INVERSION = 6


@dataclass(frozen=True)
class Plan:
    """How a step applies the change of the core to y and dx, how it computes dC, and the costs.

    Attributes:
        change: "weight", by the adapted weight; "activations", by products of x and dy with the bases.
        core: "activations", (dy U)^T (x V); "weight gradient", U^T (dy^T x) V; "input gradient" and "output" as in the
            two lines at the top of the module.
        costs: Cost of each possible way in multiplications, without the two products of the frozen layer. A product
            that is limited by memory bandwidth counts as the multiplications that would take the same time.
    """

    change: Change
    core: Core
    costs: dict[tuple[Change, Core], int]


@lru_cache(maxsize=4096)
def plan(
    tokens: int,
    m: int,
    n: int,
    k: int,
    *,
    has_weight: bool = False,
    has_inverse: bool = False,
    wants_input: bool = True,
    wants_weight: bool = False,
    stride: int = 1,
    device: str = "cpu",
    itemsize: int = 4,
) -> Plan:
    """Return the cheapest plan for a training step of a layer.

    Args:
        tokens: Number of tokens in x, (tokens, n).
        m: Outputs of the layer.
        n: Inputs of the layer.
        k: Number of triplets of the bases, (m, k) and (n, k).
        has_weight: Whether the adapted weight is already formed.
        has_inverse: Whether C^-1 exists, and the basis is that of the weight.
        wants_input: Whether dx is needed.
        wants_weight: Whether the gradient of the whole weight is needed; that of the core is computed from it.
        stride: dC is estimated from every stride-th token.
        device: Type of the device.
        itemsize: Bytes of a number in the products.
    """
    products_of_ways = ways(tokens, m, n, k, has_weight, has_inverse, wants_input, stride)
    rate = _MULTIPLICATIONS_PER_BYTE.get(device, _MULTIPLICATIONS_PER_BYTE["cuda"]) * itemsize
    costs = {
        way: sum(max(a * b * c, rate * (a * b + b * c + a * c)) for a, b, c in products)
        for way, products in products_of_ways.items()
        if not wants_weight or way[1] == "weight gradient"
    }
    change, core = min(costs, key=lambda way: costs[way])
    return Plan(change, core, costs)


def ways(
    tokens: int,
    m: int,
    n: int,
    k: int,
    has_weight: bool = False,
    has_inverse: bool = False,
    wants_input: bool = True,
    stride: int = 1,
) -> dict[tuple[Change, Core], list[Product]]:
    """Return the products of each way beside y and dx, as (rows, inner size, columns); see `plan` for the arguments."""
    turn = (tokens, k, k)
    passing = [(tokens, n, k), turn, (tokens, k, m), (tokens, m, k), turn, (tokens, k, n)]
    forming = [] if has_weight else [(min(m, n), k, k), (m, k, n)]
    some = -(-tokens // stride)
    xV, dyU, inverting = (some, n, k), (some, m, k), [(k, k, k)] * (_INVERSION + 1)
    products: dict[tuple[Change, Core], list[Product]] = {
        ("weight", "activations"): [*forming, xV, (k, some, m), (k, min(m, some), k)],
        ("weight", "weight gradient"): [*forming, (m, some, n), (k, m, n), (k, n, k)],
        ("activations", "activations"): [*passing, (k, tokens, k)],
        ("activations", "weight gradient"): [*passing, (m, tokens, n), (k, m, n), (k, n, k)],
    }
    if has_inverse:
        products["weight", "output"] = [*forming, dyU, (k, some, m), (k, m, k), *inverting]
    if has_inverse and wants_input:
        products["weight", "input gradient"] = [*forming, xV, (k, some, n), (k, n, k), *inverting]
    return products


def step_products(tokens: int, m: int, n: int, k: int, *, has_inverse: bool = False) -> int:
    """Return the multiplications of the chosen plan, without y and dx; see `plan` for the arguments."""
    chosen = plan(tokens, m, n, k, has_inverse=has_inverse)
    return sum(a * b * c for a, b, c in ways(tokens, m, n, k, has_inverse=has_inverse)[chosen.change, chosen.core])
