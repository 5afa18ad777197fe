"""The product with a frozen matrix that is multiplied with many times, laid out once as the processor wants it.

oneDNN, by which torch multiplies bf16 on a processor, rearranges the matrix at every call of `F.linear`, and throws the
result away. For the 16 rows of a token's step in a rollout that is nearly half of the time, for 300 rows 8 %. Arranged
beforehand, the numbers are the same to the bit. In fp32 torch multiplies by another library, from which oneDNN's
numbers differ by rounding; arranged beforehand, on an EPYC without AVX512, 16 rows took 57 % of the time in the output
layer, and 91 % in the other matrices. What is left out: gradients; and other dtypes and processors, where the product
is `F.linear`.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED = (torch.bfloat16, torch.float32)
"""The dtypes of matrices that are laid out."""


def product(weight_OI: Tensor, bias_O: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x -> W x + bias, for passes without gradient. On a processor it holds a copy of the matrix."""
    if weight_OI.device.type == "cpu" and weight_OI.dtype in PACKED and _packs(weight_OI.dtype):
        return functools.partial(_times, _packed(weight_OI), None if bias_O is None else bias_O.detach())
    return functools.partial(F.linear, weight=weight_OI, bias=bias_O)


def _packed(weight_OI: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), None)  # type: ignore[no-any-return]


def _times(packed: Tensor, bias_O: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias_O, "none", [], "")  # type: ignore[no-any-return]


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor can: torch's compiler calls these operations, and nobody promises them."""
    x, weight = torch.arange(96.0).view(3, 32).to(dtype), torch.arange(512.0).view(16, 32).to(dtype)
    try:
        able = dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        # Whole numbers so small that fp32, in which both are added up, has the same sum in any order.
        return bool(able) and torch.equal(_times(_packed(weight), None, x), F.linear(x, weight))
    except (AttributeError, RuntimeError, TypeError):
        return False
