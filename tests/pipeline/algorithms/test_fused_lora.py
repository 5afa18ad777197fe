"""The faster LoRA layers compute what PEFT's compute, forward and backward, and leave the base as it was."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from pipeline.algorithms.fused_lora import fuse, held
from pipeline.errors import ModelError
from pipeline.models import ModelConfig, load_model

IDS = torch.tensor([[1, 50, 60, 70, 2, 80], [1, 9, 8, 7, 6, 5]])
KINDS = ("none", "nf4", "int8")


def adapted(tiny: ModelConfig, quantization: Any, dtype: Any = "fp32", **options: Any) -> Any:
    """The tiny model with an adapter whose weights are random on both sides."""
    base = load_model(tiny.model_copy(update={"quantization": quantization, "dtype": dtype}), training=True)
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraConfig(**{**settings, "init_lora_weights": False, **options}))


def logits_and_gradient(model: Any) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    logits = model.get_base_model()(IDS, use_cache=False).logits.float()
    (logits.log_softmax(-1)[..., 3].sum()).backward()
    gradient = torch.cat([each.grad.float().flatten() for each in model.parameters() if each.requires_grad])
    return logits.detach(), gradient


@pytest.mark.parametrize("quantization", KINDS)
def test_the_numbers_are_pefts(quantization: str, tiny: ModelConfig) -> None:
    model = adapted(tiny, quantization)
    logits, gradient = logits_and_gradient(model)
    switch = fuse(model)
    switch.active = "default"
    found, slope = logits_and_gradient(model)
    # int8 rounds activations to 8 bits, and a last bit can fall the other way.
    tolerance = 1e-4 if quantization != "int8" else 2e-2
    assert torch.allclose(found, logits, rtol=tolerance, atol=tolerance * float(logits.abs().max()))
    assert torch.allclose(slope, gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))
    assert gradient.norm() > 0


@pytest.mark.parametrize("quantization", KINDS)
def test_with_no_adapter_active_it_is_the_base(quantization: str, tiny: ModelConfig) -> None:
    model = adapted(tiny, quantization)
    with model.disable_adapter(), torch.no_grad():
        plain = model.get_base_model()(IDS, use_cache=False).logits
    fuse(model)
    with torch.no_grad():
        assert torch.equal(model.get_base_model()(IDS, use_cache=False).logits, plain)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_held_weights_give_the_same_bits_and_are_given_back(quantization: str, tiny: ModelConfig) -> None:
    model = adapted(tiny, quantization, "bf16")
    switch = fuse(model)
    for active in ("default", None):
        switch.active = active
        with torch.no_grad():
            plain = model.get_base_model()(IDS, use_cache=False).logits
            with held(model):
                assert torch.equal(model.get_base_model()(IDS, use_cache=False).logits, plain)
    layers = [each.forward for each in model.modules() if hasattr(each, "lora_A")]
    assert len(layers) == 14
    assert all(layer.held is None for layer in layers)
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_generate_under_nf4_leaves_the_gradient_as_it_was(dtype: str, tiny: ModelConfig) -> None:
    # On processors with AVX512-bf16 an unprotected 4-bit layer repacks itself, and later gradients are silently wrong.
    model = adapted(tiny, "nf4", dtype)
    fuse(model).active = "default"
    _, before = logits_and_gradient(model)
    base = model.get_base_model()
    with torch.no_grad(), held(model):
        base.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)
    assert torch.equal(logits_and_gradient(model)[1], before)


def test_adapters_that_are_not_active_change_nothing(tiny: ModelConfig) -> None:
    model = adapted(tiny, "none")
    model.add_adapter("poison", LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    switch = fuse(model)
    switch.active = "default"
    for name, each in model.named_parameters():
        each.requires_grad_(".default." in name)
    logits, gradient = logits_and_gradient(model)
    for name, each in model.named_parameters():
        if ".poison." in name:
            each.data.fill_(1e3)
    found, slope = logits_and_gradient(model)
    assert torch.equal(found, logits)
    assert torch.equal(slope, gradient)


@pytest.mark.parametrize(("options", "word"), [({"lora_dropout": 0.1}, "lora_dropout"), ({"use_dora": True}, "DoRA")])
def test_what_it_cannot_compute_is_refused(options: dict[str, Any], word: str, tiny: ModelConfig) -> None:
    with pytest.raises(ModelError, match=word):
        fuse(adapted(tiny, "none", **options))


def test_a_merged_adapter_is_refused(tiny: ModelConfig) -> None:
    model = adapted(tiny, "none")
    model.merge_adapter()
    with pytest.raises(ModelError, match="merged"):
        fuse(model)
