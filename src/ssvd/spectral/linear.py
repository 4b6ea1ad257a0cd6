"""The adapted linear map, `y = x (W + U (C - S) V^T)^T + b`."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def spectral_linear(x: Tensor, W: Tensor, bias: Tensor | None, U: Tensor, V: Tensor, change: Tensor) -> Tensor:
    """Apply a linear layer whose weight W is changed in the basis (U, V), arXiv 2509.02830.

    Computes in the dtype of autocast where that is on, else in that of W. The frozen part stays exact: with a zero
    change the result is that of the plain layer, bit for bit. What is kept for the backward pass is `x V`, (..., k), or
    x where k is so large that the gradient of the core is cheaper to take from that of the whole weight.

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
    def forward(ctx, x, W, bias, U, V, change):  # type: ignore[no-untyped-def]
        dtype = compute_dtype(W)
        if dtype != W.dtype:  # autocast: below, its own conversions find nothing left to do
            x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        _, wants_W, _, _, _, wants_change = ctx.needs_input_grad
        few, whole = _has_few_tokens(x, U, V), wants_W or (wants_change and _prefers_weight_gradient(x, U, V))
        xV = x @ V.to(dtype) if few or (wants_change and not whole) else None
        if few:
            weight = W.to(dtype)
            y = linear(x, weight, bias) + xV @ change.to(dtype).mT @ U.to(dtype).mT
        else:
            weight = effective_weight(W, U, V, change, dtype)
            y = linear(x, weight, bias)
        ctx.save_for_backward(x if whole else xV, W if few else weight, U, V, change if few else None)
        ctx.whole = whole
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        kept, weight, U, V, change = ctx.saved_tensors
        wants_x, wants_W, wants_bias, _, _, wants_change = ctx.needs_input_grad
        weight, U, V = weight.to(dy.dtype), U.to(dy.dtype), V.to(dy.dtype)
        dx = dy @ weight if wants_x else None
        dyU = None if change is None else dy @ U
        if wants_x and dyU is not None:
            dx += dyU @ change.to(dy.dtype) @ V.mT
        dy = dy.reshape(-1, len(U))
        dW = dy.mT @ kept.reshape(-1, len(V)) if ctx.whole else None
        dC = None
        if wants_change and ctx.whole:
            dC = U.mT @ (dW @ V)
        elif wants_change:
            kept = kept.reshape(-1, kept.shape[-1])
            dC = U.mT @ (dy.mT @ kept) if dyU is None else dyU.reshape(kept.shape).mT @ kept
        # Autograd converts each gradient to the dtype of its input.
        return dx, dW if wants_W else None, dy.sum(0) if wants_bias else None, None, None, dC


def _has_few_tokens(x: Tensor, U: Tensor, V: Tensor) -> bool:
    """Whether a training step costs less by way of the activations than by forming the changed weight.

    Counts the multiplications that the two ways do not share, forward and backward.
    """
    (m, k), n, tokens = U.shape, len(V), _count(x)
    return tokens * (3 * k + m + n) < m * n + k * (m + min(m, n))


def _prefers_weight_gradient(x: Tensor, U: Tensor, V: Tensor) -> bool:
    """Whether the gradient of the core costs less by way of that of the whole weight than by way of `x V`."""
    (m, k), n, tokens = U.shape, len(V), _count(x)
    return (tokens + k) * m * n < tokens * k * (m + n)


def _count(x: Tensor) -> int:
    """Number of tokens."""
    return x.numel() // max(1, x.shape[-1])
