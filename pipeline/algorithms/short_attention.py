"""Causal attention over short rows on a processor, by plain matrix products.

torch's fused attention is made for long rows: with 4 x 78 tokens of the built-in model its backward pass takes 8 of 20
milliseconds a layer. Here queries that share a key-value head are one matrix, and the softmax is fp32. Whatever else a
model asks for (a mask, long rows, a GPU, decoding with a cache) goes to transformers' own function.
"""

from typing import Any

import torch
from torch import Tensor

NAME = "prefloop_short"
LONGEST = 512
"""The table of attention weights is kept for the backward pass; beyond this the fused kernel is the better one."""


def use_short_attention(model: Any) -> None:
    """Let a model that attends by torch's fused kernel use this where it can."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if getattr(model.config, "_attn_implementation", None) == "sdpa" and model.device.type == "cpu":
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' signature; (B, heads, T, D) in, (B, T, heads, D) out."""
    length = query.shape[2]
    whole = attention_mask is None and 1 < length == key.shape[2] <= LONGEST
    plain = not options.get("dropout") and options.get("softcap") is None and getattr(module, "is_causal", True)
    if whole and plain and options.get("position_bias") is None:
        scaling = options.get("scaling")
        return causal(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
    return output, None


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(q k^T scaling) v, each token looking back at itself and those before it.

    Args:
        query: (B, H, T, D).
        key, value: (B, K, T, D), with K a divisor of H.

    Returns:
        (B, T, H, D).
    """
    batch, heads, length, depth = query.shape
    shared = key.shape[1]
    grouped = query.reshape(batch, shared, heads // shared * length, depth)
    weights = (grouped @ key.transpose(-1, -2)).float().view(batch, shared, -1, length, length)
    later = torch.full((length, length), -torch.inf, device=query.device).triu(1)
    weights = (weights * scaling + later).softmax(-1).to(value.dtype)
    mixed = weights.view(batch, shared, -1, length) @ value
    return mixed.view(batch, heads, length, depth).transpose(1, 2)
