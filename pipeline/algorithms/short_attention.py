"""Causal attention over short rows on a processor, by plain matrix products.

torch's fused attention is made for long rows: with 4 x 78 tokens of the built-in model its backward pass takes 8 of 20
milliseconds a layer. Here queries that share a key-value head are one matrix, and the softmax is fp32. Whatever else a
model asks for (a mask, long rows, a GPU, decoding with a cache) goes to transformers' own function. Rows that begin
alike may come as one `Tree`, in which what they have in common is there once.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.decoding import padded

NAME = "prefloop_short"
LONGEST = 512
"""The table of attention weights is kept for the backward pass; beyond this the fused kernel is the better one."""


@dataclass(frozen=True)
class Tree:
    """Where the tokens of B rows are among the S of a tree. A model is given it as the option `tree`."""

    place_BT: Tensor
    """The place in the tree of each row's tokens; of padding, on the right, any."""
    first_S: Tensor
    """For each token of the tree one of the B x T places where it is."""

    @classmethod
    def of(cls, paths: Sequence[Sequence[int]], device: torch.device) -> "Tree":
        """Args:
        paths: of each row the places of its tokens, from its first on.
        """
        place_BT, _ = padded(paths, device)
        width = place_BT.shape[1]
        first = {node: row * width + t for row, path in enumerate(paths) for t, node in enumerate(path)}
        return cls(place_BT, torch.tensor([first[node] for node in range(len(first))], device=device))


def use_short_attention(model: Any) -> None:
    """Let a model that attends by torch's fused kernel use this where it can."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if getattr(model.config, "_attn_implementation", None) == "sdpa" and model.device.type == "cpu":
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


@contextlib.contextmanager
def short_attention(model: Any) -> Iterator[None]:
    """Inside, a model attends so where it can; after, as it did."""
    before = getattr(model.config, "_attn_implementation", None)
    use_short_attention(model)
    try:
        yield
    finally:
        if getattr(model.config, "_attn_implementation", None) != before:
            model.set_attn_implementation(before)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' signature; (B, heads, T, D) in, (B, T, heads, D) out."""
    length = query.shape[2]
    tree: Tree | None = options.pop("tree", None)
    plain = not options.get("dropout") and options.get("softcap") is None and getattr(module, "is_causal", True)
    plain = plain and options.get("position_bias") is None
    scaling = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    if tree is not None:
        if not plain or options.get("sliding_window") is not None:
            raise ValueError("an attention that a tree is not made for")
        return _along(tree, query, key, value, scaling), None
    if plain and attention_mask is None and 1 < length == key.shape[2] <= LONGEST:
        return causal(query, key, value, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
    return output, None


def _along(tree: Tree, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """`causal` along each row of a tree; (1, heads, S, D) in, (1, S, heads, D) out."""

    def rows(x_1HSD: Tensor) -> Tensor:
        _, heads, length, depth = x_1HSD.shape
        # As a lookup of embeddings, whose backward pass is the fast one where a token is in many rows.
        found = F.embedding(tree.place_BT, x_1HSD.transpose(1, 2).reshape(length, heads * depth))
        return found.view(*tree.place_BT.shape, heads, depth).transpose(1, 2)

    mixed_BTHD = causal(rows(query), rows(key), rows(value), scaling)
    _, _, heads, depth = mixed_BTHD.shape
    mixed_SC = F.embedding(tree.first_S, mixed_BTHD.reshape(-1, heads * depth))
    return mixed_SC.view(1, -1, heads, depth)


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
