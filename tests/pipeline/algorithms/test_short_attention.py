"""Attention by plain products is torch's own, forward and backward, and is used only where it may be."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.algorithms.short_attention import NAME, causal, use_short_attention
from pipeline.models import ModelConfig, load_model


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (3, 1)])
def test_it_is_torchs_attention_and_gradient(heads: int, shared: int) -> None:
    random = torch.Generator().manual_seed(heads)
    shapes = [(2, heads, 7, 8), (2, shared, 7, 8), (2, shared, 7, 8)]
    inputs = [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weights = torch.randn(2, 7, heads, 8, generator=random, dtype=torch.float64)
    found = causal(*inputs, 0.3)
    true = F.scaled_dot_product_attention(*inputs, is_causal=True, scale=0.3, enable_gqa=True).transpose(1, 2)
    # The softmax is fp32 whatever comes in.
    assert torch.allclose(found, true, atol=1e-6)
    slopes = torch.autograd.grad((found * weights).sum(), inputs)
    for slope, expected in zip(slopes, torch.autograd.grad((true * weights).sum(), inputs), strict=True):
        assert torch.allclose(slope, expected, atol=1e-5)


def test_a_model_computes_the_same_with_it_masks_and_caches_included(tiny: ModelConfig) -> None:
    ids = torch.tensor([[1, 50, 60, 70, 80, 2], [1, 9, 8, 7, 6, 5]])
    padded = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])

    def computed(model: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            cache = model(ids[:, :4], use_cache=True).past_key_values
            return [
                model(ids, use_cache=False).logits,
                model(ids, attention_mask=padded, use_cache=False).logits[0, 2:],
                model(ids[:, 4:], past_key_values=cache, use_cache=True).logits,
            ]

    model = load_model(tiny)
    expected = computed(model)
    use_short_attention(model)
    assert model.config._attn_implementation == NAME
    for one, other in zip(computed(model), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
