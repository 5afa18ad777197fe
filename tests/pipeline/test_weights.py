"""Weights of the base that were trained are saved alone, come back as they were, and act one policy at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import absolute_model, make_adapter
from torch import nn
from transformers import AutoModelForCausalLM

from pipeline import adapters, models, weights
from pipeline.errors import ModelError
from pipeline.models import ModelConfig

IDS = torch.tensor([[1, 7, 9, 30, 4]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def model(tiny: ModelConfig) -> Any:
    return models.load_model(tiny)


def test_names_are_of_modules_and_parameters_with_wildcards(model: Any) -> None:
    every = set(dict(model.named_parameters()))
    last = {name for name in every if name.startswith("model.layers.1.")}
    weights.choose(model, ["model.layers.1"])
    assert trained(model) == last
    weights.choose(model, ["model.layers.?.mlp", "lm_head"])
    assert trained(model) == {name for name in every if ".mlp." in name} | {"lm_head.weight"}
    weights.choose(model, [])
    assert trained(model) == every


def test_a_name_of_nothing_is_refused_with_what_there_is(model: Any) -> None:
    with pytest.raises(ModelError, match=r"nothing called 'model.layers.9'; there are model.embed_tokens, .*lm_head"):
        weights.choose(model, ["lm_head", "model.layers.9"])


def test_only_what_was_trained_is_saved_and_it_comes_back_exactly(
    model: Any, tiny: ModelConfig, tmp_path: Path
) -> None:
    weights.choose(model, ["model.layers.1.mlp.up_proj"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(0.25)
    weights.save(model, tmp_path, torch.float32)
    assert set(weights.read(tmp_path)) == {"model.layers.1.mlp.up_proj.weight"}
    other = models.load_model(tiny)
    assert not torch.equal(logits(other), logits(model))
    weights.load(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    assert not trained(other)


def test_weights_of_another_base_are_refused(model: Any, tmp_path: Path) -> None:
    weights.choose(model, ["lm_head"])
    weights.save(model, tmp_path, torch.float32)
    other = absolute_model()
    with pytest.raises(ModelError, match=r"lm_head.weight \(300, 32\) is not in gpt2.*another base"):
        other.lm_head = nn.Linear(32, 10, bias=False)
        weights.load(other, tmp_path)


def test_a_tied_output_layer_is_trained_without_its_embeddings(tmp_path: Path) -> None:
    model = absolute_model()
    assert model.lm_head.weight is model.transformer.wte.weight, "GPT-2 ties them"
    before = logits(model)
    weights.choose(model, ["lm_head"])
    assert trained(model) == {"lm_head.weight"}
    assert torch.equal(logits(model), before), "untying alone changes nothing"
    embeddings = model.transformer.wte.weight.clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    assert torch.allclose(logits(model), 2 * before, rtol=1e-5)
    assert torch.equal(model.transformer.wte.weight, embeddings)
    # As a checkpoint of transformers is written and read.
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again.eval()), logits(model))


def test_a_head_drawn_anew_is_another_one_for_another_seed_and_as_wide_as_the_model_says() -> None:
    one, same, other = absolute_model(), absolute_model(), absolute_model()
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        weights.redraw_head(model, seed)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight.std().item() == pytest.approx(0.3, rel=0.03)
    assert not torch.equal(one.lm_head.weight, one.transformer.wte.weight)


def test_policies_with_weights_adapters_and_both_share_one_base(
    model: Any, tiny: ModelConfig, tiny_folder: Path, tmp_path: Path
) -> None:
    plain = logits(models.load_model(tiny))
    folders = {name: tmp_path / name for name in ("full", "head", "adapter", "both")}
    for name, chosen in (("full", ["model.layers"]), ("head", ["lm_head"])):
        changed = models.load_model(tiny)
        weights.choose(changed, chosen)
        with torch.no_grad():
            for parameter in changed.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)
        folders[name].mkdir()
        weights.save(changed, folders[name], torch.float32)
    make_adapter(tiny_folder, folders["adapter"], seed=5)
    make_adapter(tiny_folder, folders["both"], seed=5)
    (folders["both"] / weights.FILE).write_bytes((folders["head"] / weights.FILE).read_bytes())

    def alone(name: str) -> torch.Tensor:
        from peft import PeftModel

        base = models.load_model(tiny)
        weights.load(base, folders[name])
        return logits(PeftModel.from_pretrained(base, folders[name]) if name in ("adapter", "both") else base)

    expected = {"base": plain, **{name: alone(name) for name in folders}}
    attached = adapters.attach(model, folders)
    for name in ("base", "full", "both", "head", "base", "adapter", "full", "base"):
        with adapters.role(attached, name):
            assert torch.equal(logits(attached), expected[name]), name
    different = list(expected.values())
    assert all(not torch.equal(a, b) for n, a in enumerate(different) for b in different[:n])


def test_weights_do_not_act_when_an_error_ends_the_role(model: Any, tiny: ModelConfig, tmp_path: Path) -> None:
    before = logits(model)
    changed = models.load_model(tiny)
    weights.choose(changed, ["lm_head"])
    with torch.no_grad():
        changed.lm_head.weight.zero_()
    weights.save(changed, tmp_path, torch.float32)
    attached = adapters.attach(model, {"head": tmp_path})
    with pytest.raises(RuntimeError, match="stop"), adapters.role(attached, "head"):
        assert not logits(attached).any()
        raise RuntimeError("stop")
    assert torch.equal(logits(attached), before)
