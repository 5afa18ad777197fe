"""A matrix that is laid out beforehand gives the numbers of one that is not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import packed

SIZES = [(576, 1536), (1536, 576), (576, 192), (33, 7)]


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_product_is_to_the_bit_that_of_torch(inputs: int, outputs: int, biased: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    times = packed.product(weight, bias)
    for shape in ((1,), (3,), (16,), (300,), (2, 5)):
        x = torch.randn(*shape, inputs).to(dtype)
        assert torch.equal(times(x), F.linear(x, weight, bias)), shape


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_in_fp32_it_is_that_in_float64_to_rounding(inputs: int, outputs: int, biased: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs) if biased else None
    times = packed.product(weight, bias)
    for shape in ((1,), (3,), (16,), (300,), (2, 5)):
        x = torch.randn(*shape, inputs)
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).numpy()
        # The bound of Higham 2002 (section 3.1) for sums in any order: each product passes through at most so many
        # additions, and each rounds to 24 bits.
        whole = F.linear(x.abs().double(), weight.abs().double(), None if bias is None else bias.abs().double()).numpy()
        assert (np.abs(times(x).numpy() - exact) <= (inputs + 1) * 2**-24 * whole).all(), shape


def test_the_product_has_a_copy_of_its_own_and_leaves_the_matrix_alone() -> None:
    weight = torch.randn(64, 64).bfloat16()
    before = weight.clone()
    times = packed.product(weight, None)
    times(torch.randn(16, 64).bfloat16())
    assert torch.equal(weight, before)


def test_a_torch_that_lacks_the_operations_multiplies_as_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operation")

    monkeypatch.setattr(packed, "_packed", missing)
    packed._packs.cache_clear()
    try:
        for dtype in packed.PACKED:
            weight, x = torch.randn(8, 16).to(dtype), torch.randn(3, 16).to(dtype)
            assert torch.equal(packed.product(weight, None)(x), F.linear(x, weight))
    finally:
        packed._packs.cache_clear()
