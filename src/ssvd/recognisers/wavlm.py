"""The attention of WavLM (arXiv 2110.13900), computed by its layers instead of by their weights.

Transformers reads the weights of the four projections and leaves their layers aside, so that an adapter around one of
them would be trained on nothing. Here the layers are called; the result is the same up to rounding.
"""

from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

_Network = TypeVar("_Network", bound=nn.Module)


def call_projections(network: _Network) -> _Network:
    """Let all attention of a WavLM call its projections, and return the network, which is changed in place.

    Adapters around them then count. Attention weights are not returned any more.
    """
    for layer in network.modules():
        if isinstance(layer, WavLMAttention):
            layer.torch_multi_head_self_attention = partial(_attend, layer)
    return network


def _attend(
    layer: WavLMAttention, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
) -> tuple[Tensor, None]:
    """Return the output of attention over `hidden_states` (rows, frames, width), in place of the layer's own method.

    Args:
        layer: The attention.
        hidden_states: What it attends to, and from.
        attention_mask: (rows, frames): 1 where there is speech.
        gated_position_bias: (rows x heads, frames, frames), added to the products of queries and keys.
    """
    rows, frames, width = hidden_states.shape
    query, key, value = (
        project(hidden_states).view(rows, frames, layer.num_heads, layer.head_dim).transpose(1, 2)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    bias = gated_position_bias.view(rows, layer.num_heads, frames, frames)
    if attention_mask is not None:
        bias = bias.masked_fill(attention_mask.ne(1)[:, None, None], -torch.inf)
    dropout = layer.dropout if layer.training else 0.0
    attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return layer.out_proj(attended.transpose(1, 2).reshape(rows, frames, width)), None
