"""One attention layer, with or without its probabilities, as diffusers' default processors compute it."""

from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F


def attend(
    attn: Attention,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    temb: Tensor | None = None,
    *,
    allowed: Tensor | None = None,
    record: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """One attention layer, as diffusers' default processor computes it.

    Args:
        attn: The layer.
        hidden_states: (B,C,H,W) or (B,queries,C).
        encoder_hidden_states: Context (B,keys,C); by default the hidden states themselves.
        attention_mask: diffusers' additive mask.
        temb: Time embedding, for a spatial norm.
        allowed: Boolean (B or 1, queries, keys): which keys a query may see; each row has at least one.
        record: Gets the probabilities, averaged over heads, (B,queries,keys), with their gradient. Without it they
            are never held in memory at once.
    """
    residual = hidden_states
    if attn.spatial_norm is not None:
        hidden_states = attn.spatial_norm(hidden_states, temb)
    shape = hidden_states.shape
    if len(shape) == 4:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
    context = encoder_hidden_states
    batch, keys, _ = (hidden_states if context is None else context).shape
    mask = attn.prepare_attention_mask(attention_mask, keys, batch)
    if mask is not None:
        mask = mask.view(batch, attn.heads, -1, mask.shape[-1])
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    query = attn.to_q(hidden_states)
    if context is None:
        context = hidden_states
    elif attn.norm_cross:
        context = attn.norm_encoder_hidden_states(context)
    query, key, value = (
        x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, attn.to_k(context), attn.to_v(context))
    )
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    if allowed is not None:
        allowed = allowed[:, None]
        mask = allowed if mask is None else mask.masked_fill(~allowed, float("-inf"))
    if record is None:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale)
    else:
        probabilities = _probabilities(attn, query, key, mask)
        record(probabilities.mean(1))
        output = probabilities @ value
    output = output.transpose(1, 2).flatten(2).to(query.dtype)
    output = attn.to_out[1](attn.to_out[0](output))
    if len(shape) == 4:
        output = output.transpose(-1, -2).reshape(shape)
    if attn.residual_connection:
        output = output + residual
    return output / attn.rescale_output_factor


def _probabilities(attn: Attention, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """(B,heads,queries,keys); in float32 inside where the layer asks for it."""
    dtype = query.dtype
    if attn.upcast_attention:
        query, key = query.float(), key.float()
    scores = query @ key.transpose(-1, -2) * attn.scale
    if attn.upcast_softmax:
        scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(dtype)
