"""The adapted linear map, `y = x (W + U (C - S) V^T)^T + b`."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear


def spectral_linear(x: Tensor, W: Tensor, bias: Tensor | None, U: Tensor, V: Tensor, change: Tensor) -> Tensor:
    """Apply a linear layer whose weight W is changed in the basis (U, V), arXiv 2509.02830.

    Computes in the dtype of autocast where that is on, else in that of W. The frozen part stays exact: with a zero
    change the result is that of the plain layer, bit for bit. The backward pass needs x and the changed weight, nothing
    else of the size of x.

    Args:
        x: (..., n), any number of leading dimensions, which together are the tokens.
        W: (m, n).
        bias: (m,) or None.
        U, V: (m, k) and (n, k); constants.
        change: The change of the core, `C - S`, (k, k); see `core_change`.

    Returns:
        (..., m), differentiable once in x, W, bias and change.
    """
    result: Tensor = _SpectralLinear.apply(x, W, bias, U, V, change)
    return result


def effective_weight(W: Tensor, U: Tensor, V: Tensor, change: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`W + U change V^T`, (m, n), multiplied in `dtype` (default: that of W), added in the wider of it and W's."""
    dtype = dtype or W.dtype
    U, V, change = U.to(dtype), V.to(dtype), change.to(dtype)
    product = (U @ change) @ V.mT if len(U) <= len(V) else U @ (change @ V.mT)
    return (W + product).to(dtype)


def compute_dtype(W: Tensor) -> torch.dtype:
    """What a linear layer with the weight W computes in: the dtype of autocast where that is on, else that of W."""
    device = W.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W.dtype


class _SpectralLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, W: Tensor, bias: Tensor | None, U: Tensor, V: Tensor, change: Tensor
    ) -> Tensor:
        dtype = compute_dtype(W)
        if dtype != W.dtype:  # autocast: below, its own conversions find nothing left to do
            x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        weight = effective_weight(W, U, V, change, dtype)
        ctx.save_for_backward(x, weight, U, V)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, weight, U, V = ctx.saved_tensors
        wants_x, wants_W, wants_bias, _, _, wants_change = ctx.needs_input_grad
        dx = dy @ weight if wants_x else None
        dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        db = dy.sum(0) if wants_bias else None
        dW = dy.mT @ x if wants_W or (wants_change and _prefers_weight_gradient(len(x), U, V)) else None
        dC = _core_gradient(dy, x, U.to(x.dtype), V.to(x.dtype), dW) if wants_change else None
        # Autograd converts each gradient to the dtype of its input.
        return dx, dW if wants_W else None, db, None, None, dC


def _prefers_weight_gradient(tokens: int, U: Tensor, V: Tensor) -> bool:
    """Whether the gradient of the core costs less by way of that of the whole weight than in thin products."""
    (m, k), n = U.shape, len(V)
    return (tokens + k) * m * n < tokens * k * (m + n)


def _core_gradient(dy: Tensor, x: Tensor, U: Tensor, V: Tensor, dW: Tensor | None) -> Tensor:
    """`U^T dy^T x V`, (k, k), multiplied in the order in which the square factors come last and on the shorter side."""
    if len(V) <= len(U):
        return (U.mT @ dW if dW is not None else (dy @ U).mT @ x) @ V
    return U.mT @ (dW @ V if dW is not None else dy.mT @ (x @ V))
