"""The adapted linear map, `y = x (W + U (C - S) V^T)^T + b`."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ssvd.spectral.planner import Plan, plan

# Rows of a block of a banded core.
_BLOCK = 64


def spectral_linear(
    x: Tensor,
    W: Tensor,
    bias: Tensor | None,
    U: Tensor,
    V: Tensor,
    change: Tensor,
    *,
    weight: Tensor | None = None,
    inverse: Tensor | None = None,
    band: int | None = None,
    keep_input: bool = False,
    stride: int = 1,
    way: Plan | None = None,
) -> Tensor:
    """Apply a linear layer whose weight W is changed in the basis (U, V), arXiv 2509.02830.

    Computes in the dtype of autocast if that is on, else in the dtype of W. The frozen part stays exact: with a zero
    change the result is that of the plain layer, bit for bit. Keeps k numbers per token for the backward pass, or x.

    Args:
        x: (..., n); the leading dimensions together are the tokens.
        W: (m, n).
        bias: (m,) or None.
        U: (m, k), constant.
        V: (n, k), constant.
        change: The change of the core, `C - S`, (k, k); see `core_change`.
        weight: `effective_weight(W, U, V, change)` in the dtype of the computation, if already formed; (m, n).
        inverse: C^-1, (k, k); only if (U, V) are singular vectors of W, `W V = U S`. It makes the gradient of the core
            cheaper.
        band: If given, only entries of `change` at most this far from the diagonal are nonzero or need a gradient.
        keep_input: Whether to keep x for the backward pass instead of k numbers per token, as other layers keep it too.
        stride: If above 1, the gradient of the core is estimated from every stride-th token, starting at a random one,
            which is unbiased; the random generator is torch's for the CPU. It has no effect under `torch.compile`, if W
            has a gradient, or for few tokens.
        way: The result of `plan_step`.

    Returns:
        (..., m), differentiable once in x, W, bias and change.
    """
    if way is None:
        way = plan_step(x, W, U, weight is not None, inverse is not None, stride)
    rows = slice(None)
    if stride > 1 and way.change == "weight" and not W.requires_grad and not torch.compiler.is_compiling():
        rows = slice(int(torch.randint(stride, ())), None, stride)
    result: Tensor = _SpectralLinear.apply(  # type: ignore[no-untyped-call]
        x, W, bias, U, V, change, weight, inverse, band, keep_input, rows, way
    )
    return result


def plan_step(
    x: Tensor, W: Tensor, U: Tensor, has_weight: bool = False, has_inverse: bool = False, stride: int = 1
) -> Plan:
    """Return the plan of `spectral_linear` for these arguments; see `plan`."""
    (m, k), n = U.shape, W.shape[1]
    make = plan.__wrapped__ if torch.compiler.is_compiling() else plan  # the compiler warns of caches
    return make(
        x.numel() // n,
        m,
        n,
        k,
        has_weight=has_weight,
        has_inverse=has_inverse,
        wants_input=x.requires_grad,
        wants_weight=W.requires_grad and torch.is_grad_enabled(),
        stride=stride,
        device=W.device.type,
        itemsize=compute_dtype(W).itemsize,
    )


def effective_weight(
    W: Tensor, U: Tensor, V: Tensor, change: Tensor, dtype: torch.dtype | None = None, band: int | None = None
) -> Tensor:
    """Compute `W + U change V^T`, (m, n): products in `dtype` (default: that of W), sum in the wider of both dtypes."""
    dtype = dtype or W.dtype
    U, V, change = U.to(dtype), V.to(dtype), change.to(dtype)
    if len(U) <= len(V):
        U = _times_banded(U, change, band)
    else:
        V = _times_banded(V, change.mT, band)
    return torch.addmm(W, U, V.mT) if W.dtype == dtype else (W + U @ V.mT).to(dtype)


def compute_dtype(W: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer computes: that of autocast if it is on, else that of its weight W."""
    device = W.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W.dtype


class _SpectralLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, bias, U, V, change, weight, inverse, band, keep_input, rows, way):  # type: ignore[no-untyped-def]
        dtype = compute_dtype(W)
        bases = U, V
        if dtype != W.dtype:  # convert once here, instead of autocast at each product below
            x, bias, U, V = x.to(dtype), None if bias is None else bias.to(dtype), U.to(dtype), V.to(dtype)
        _, wants_W, _, _, _, wants_core, *_ = ctx.needs_input_grad
        xV = None
        if way.change == "activations":
            xV, weight = x @ V, W.to(dtype)
            y = linear(x, weight, bias) + xV @ change.to(dtype).mT @ U.mT
        else:
            weight = effective_weight(W, U, V, change, dtype, band) if weight is None else weight
            y = linear(x, weight, bias)

        kept = None
        if wants_W or (wants_core and keep_input and way.core != "output" and xV is None):
            kept = x
        elif wants_core and way.core == "weight gradient":
            kept = x if rows == slice(None) else _tokens(x)[rows].clone()
        elif wants_core and way.core == "output":
            kept = _tokens(y)[rows] @ U if bias is None else _tokens(y)[rows] @ U - bias @ U
        elif wants_core:
            kept = _tokens(x)[rows] @ V if xV is None else xV
        ctx.save_for_backward(kept, weight, *bases, None if xV is None else change, inverse)
        ctx.core, ctx.band, ctx.rows, ctx.kept_input = way.core, band, rows, kept is x
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        kept, weight, U, V, change, inverse = ctx.saved_tensors
        U, V = U.to(dy.dtype), V.to(dy.dtype)
        wants_x, wants_W, wants_bias, _, _, wants_core, *_ = ctx.needs_input_grad
        dx = dy @ weight if wants_x else None
        dyU = None if change is None else dy @ U
        if dx is not None and dyU is not None:
            dx += dyU @ change.to(dy.dtype) @ V.mT

        dy, rows = _tokens(dy), ctx.rows
        dW = dC = None
        if kept is not None:
            kept = _tokens(kept)[rows] if ctx.kept_input else _tokens(kept)
            some = dy[rows]
            if ctx.core == "weight gradient":
                dW = some.mT @ kept
                dC = _near_diagonal((dW.mT @ U).mT, V, ctx.band) if wants_core else None
            else:
                kept = kept @ V if ctx.kept_input else kept
                if ctx.core == "output":
                    dC = (inverse @ ((kept.mT @ some) @ U).to(inverse.dtype)).mT
                elif ctx.core == "input gradient":
                    assert dx is not None
                    dC = (((kept.mT @ _tokens(dx)[rows]) @ V).to(inverse.dtype) @ inverse).mT
                elif dyU is None and len(some) > len(U):
                    dC = _near_diagonal(kept.mT @ some, U, ctx.band).mT
                else:
                    dC = _near_diagonal((some @ U if dyU is None else _tokens(dyU)).mT, kept, ctx.band)
            if rows.step and dC is not None:
                dC = dC * rows.step
        # Autograd converts each gradient to the dtype of its input.
        return dx, dW if wants_W else None, dy.sum(0) if wants_bias else None, None, None, dC, *[None] * 6


def _tokens(x: Tensor) -> Tensor:
    """Return x as (tokens, features)."""
    return x.reshape(-1, x.shape[-1])


def _near_diagonal(A: Tensor, B: Tensor, band: int | None) -> Tensor:
    """Compute the entries of `A @ B`, (k, k), at most `band` off the diagonal; others may be zero."""
    if band is None or 2 * band + _BLOCK >= len(A):
        return A @ B
    product = A.new_zeros(len(A), len(A))
    for start in range(0, len(A), _BLOCK):
        rows, near = slice(start, start + _BLOCK), slice(max(0, start - band), start + _BLOCK + band)
        product[rows, near] = A[rows] @ B[:, near]
    return product


def _times_banded(A: Tensor, C: Tensor, band: int | None) -> Tensor:
    """Compute `A @ C` for a C whose entries more than `band` off the diagonal are zero."""
    if band is None or 2 * band + _BLOCK >= len(C):
        return A @ C
    product = A.new_empty(A.shape)
    for start in range(0, len(C), _BLOCK):
        near, columns = slice(max(0, start - band), start + _BLOCK + band), slice(start, start + _BLOCK)
        product[:, columns] = A[:, near] @ C[near, columns]
    return product
