"""LoRA layers that compute faster and hold less than PEFT's, on the adapters that PEFT made; the numbers are the same.

PEFT multiplies, scales, casts and adds in six passes over a layer's output, and autograd keeps what lies between. Here
the low-rank product is added into the output in one pass, and backward keeps the input and the rank-r activations only.
A 4-bit weight is dequantised where it is needed, or once for a while (`held`): on a processor a rollout would
otherwise dequantise the whole model for every single token. Weights are never merged: merging would change an NF4 base.

What is left out: dropout, DoRA and merged adapters (refused), and everything PEFT does well: making, saving, loading.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.packed import product


class Switch:
    """Which adapter all layers compute with; None is the base alone. Unlike PEFT's it changes no `requires_grad`."""

    active: str | None = None


def fuse(model: Any) -> Switch:
    """Replaces the forward pass of every LoRA layer of a PeftModel by one that the returned switch directs.

    Raises:
        ModelError: a layer has dropout, DoRA or a merged adapter, or an adapter sits on something else than a layer
            with a matrix.
    """
    from peft.tuners.lora import LoraLayer

    switch = Switch()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            _check(name, module)
            module.forward = _Layer(module, switch)
    return switch


@contextlib.contextmanager
def held(model: Any) -> Iterator[None]:
    """Inside, for passes without gradient: what each would dequantise, cast or rearrange is held ready.

    Costs the compute dtype's bytes a parameter of the adapted and the output layers meanwhile. No weight may change
    inside.
    """
    layers = [module.forward for module in model.modules() if isinstance(getattr(module, "forward", None), _Layer)]
    head = model.get_output_embeddings()
    heads = [head] if type(head) is nn.Linear and "forward" not in vars(head) else []
    for layer in layers:
        layer.hold()
    for each in heads:
        vars(each)["forward"] = product(each.weight, each.bias)
    try:
        yield
    finally:
        for layer in layers:
            layer.held = None
        for each in heads:
            del vars(each)["forward"]


def _check(name: str, module: Any) -> None:
    if not hasattr(module.base_layer, "weight"):
        raise ModelError(
            f"{name}: an adapter on experts that are one tensor, which PPO does not compute yet; name other layers "
            "in lora.target_modules, such as [q_proj, k_proj, v_proj, o_proj]"
        )
    if module.merged or any(module.use_dora.values()) or module.lora_embedding_A:
        raise ModelError(f"{name}: PPO takes plain LoRA on linear layers; no DoRA, no embeddings, nothing merged")
    if any(isinstance(each, nn.Dropout) and each.p > 0 for each in module.lora_dropout.values()):
        raise ModelError(f"{name}: the adapter has dropout; PPO compares two passes, so lora_dropout must be 0")


class Held(NamedTuple):
    """A layer's matrices, ready for passes without gradient."""

    product: Callable[[Tensor], Tensor]
    """x -> W x + bias."""
    dtype: torch.dtype
    low: dict[str, tuple[Tensor, Tensor]]
    """A and B of each adapter."""


class _Layer:
    """The forward pass of one LoRA layer."""

    def __init__(self, module: Any, switch: Switch) -> None:
        self.module = module
        self.switch = switch
        self.base = module.base_layer
        self.quantised = getattr(self.base.weight, "quant_state", None) is not None
        # Anything else than a plain or 4-bit matrix (int8, Conv1D, several GPUs) multiplies by itself.
        self.plain = type(self.base) is nn.Linear or self.quantised
        self.held: Held | None = None

    def hold(self) -> None:
        """Keep the matrices as they are multiplied with."""
        if self.plain:
            weight = self.weight()
            low = {
                name: (a.weight.detach().to(weight.dtype), self.module.lora_B[name].weight.detach().to(weight.dtype))
                for name, a in self.module.lora_A.items()
            }
            self.held = Held(product(weight, self.base.bias), weight.dtype, low)

    def weight(self) -> Tensor:
        """The frozen matrix, in the dtype that is computed in."""
        if not self.quantised:
            return self.base.weight  # type: ignore[no-any-return]
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.base.weight.data, self.base.weight.quant_state)  # type: ignore[no-any-return]

    def __call__(self, x: Tensor) -> Tensor:
        name = self.switch.active
        if name is not None and name not in self.module.lora_A:
            name = None
        if not self.plain:
            y: Tensor = self.base(x)
            return y if name is None else y + self._low_rank(x, name)
        if self.held is not None:
            return self._ready(x, self.held, name)
        if name is None:
            return _fused(x, self, None, None, 0.0)
        return _fused(x, self, self.module.lora_A[name].weight, self.module.lora_B[name].weight, self.scaling(name))

    def _ready(self, x: Tensor, held: Held, name: str | None) -> Tensor:
        """What `_Fused` computes on the way forward, step by step."""
        x_NI = x.reshape(-1, x.shape[-1]).to(held.dtype)
        y_NO = held.product(x_NI)
        if name is not None:
            a, b = held.low[name]
            y_NO.addmm_(F.linear(x_NI, a).mul_(self.scaling(name)), b.T)
        return y_NO.view(*x.shape[:-1], -1).to(x.dtype)

    def scaling(self, name: str) -> float:
        """lora_alpha / r."""
        return float(self.module.scaling[name])

    def _low_rank(self, x: Tensor, name: str) -> Tensor:
        a, b = self.module.lora_A[name].weight, self.module.lora_B[name].weight
        return (F.linear(F.linear(x.to(a.dtype), a), b) * self.scaling(name)).to(x.dtype)


def _fused(x: Tensor, layer: _Layer, a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor:
    found: Tensor = _Fused.apply(x, layer, a, b, scaling)  # type: ignore[no-untyped-call]
    return found


class _Fused(torch.autograd.Function):
    """y = W x + bias + s B A x, with W frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Layer, a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor:
        weight = layer.weight()
        # One dtype throughout, which is the weight's; norms kept in fp32 hand over fp32.
        x_NI = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        y_NO = F.linear(x_NI, weight, layer.base.bias)
        h_NR = None
        if a is not None and b is not None:
            ctx.dtype_low = a.dtype
            a, b = a.to(weight.dtype), b.to(weight.dtype)
            h_NR = F.linear(x_NI, a).mul_(scaling)
            y_NO.addmm_(h_NR, b.T)
        ctx.save_for_backward(x_NI if a is not None else None, h_NR, a, b)
        ctx.layer, ctx.scaling, ctx.shape, ctx.dtype = layer, scaling, x.shape, x.dtype
        return y_NO.view(*x.shape[:-1], -1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x_NI, h_NR, a, b = ctx.saved_tensors
        weight = ctx.layer.weight()
        g_NO = gradients[0].reshape(-1, gradients[0].shape[-1]).to(weight.dtype)
        by_x = by_a = by_b = None
        if ctx.needs_input_grad[0]:
            by_x = g_NO @ weight
        if a is not None:
            by_h_NR = (g_NO @ b).mul_(ctx.scaling)
            if by_x is not None:
                by_x.addmm_(by_h_NR, a)
            by_a = (by_h_NR.T @ x_NI).to(ctx.dtype_low) if ctx.needs_input_grad[2] else None
            by_b = (g_NO.T @ h_NR).to(ctx.dtype_low) if ctx.needs_input_grad[3] else None
        by_x = by_x.view(ctx.shape).to(ctx.dtype) if by_x is not None else None
        return by_x, None, by_a, by_b, None
