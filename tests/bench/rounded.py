"""Products of bf16 matrices, computed in fp32 and rounded once, as a processor with bf16 instructions computes them.

torch's own way without such instructions gives the same numbers to rounding, and takes seven times as long as fp32.
What is left out: attention in one piece (small here), and everything that is no product.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
OUTER = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.linear.default)
WITHIN = {aten.addmm_.default: aten.addmm.default, aten.baddbmm_.default: aten.baddbmm.default}
"""Products that are added into their first argument."""


class Rounded(TorchDispatchMode):
    """Inside, forward and backward."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The product in fp32 in the place of one in bf16; anything else as it is."""
        if (func not in OUTER and func not in WITHIN) or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        wide = tree_map_only(torch.Tensor, torch.Tensor.float, args)
        found = WITHIN.get(func, func)(*wide, **(kwargs or {}))
        return args[0].copy_(found) if func in WITHIN else found.to(torch.bfloat16)
