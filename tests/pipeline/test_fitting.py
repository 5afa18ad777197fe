"""What was trained elsewhere is refused with its reason where it does not go on the base, before anything loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_adapter, make_model, make_tokenizer

from pipeline import fitting, store
from pipeline.errors import DataError
from pipeline.models import ModelConfig
from pipeline.sources import Made


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny model, made elsewhere."""
    make_adapter(tiny_folder, tmp_path / "mine", seed=1)
    return tmp_path / "mine"


def made(folder: Path) -> Made:
    return Made("mine", "lora", "adapter", folder, source="mine")


def tell(folder: Path, **options: Any) -> None:
    """Change what an adapter's configuration says."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))


def give(folder: Path, drop: str = "", **tensors: torch.Tensor) -> None:
    """Add tensors to an adapter's file, and take those out whose names hold `drop`."""
    file = folder / "adapter_model.safetensors"
    kept = {name: each for name, each in load_file(file).items() if not drop or drop not in name}
    save_file({**kept, **tensors}, file, metadata={"format": "pt"})


def test_an_adapter_of_this_base_fits_by_its_name_and_by_what_is_in_the_folder(
    tiny: ModelConfig, folder: Path, tmp_path: Path
) -> None:
    fitting.check(made(folder), tiny, ())
    make_model(tmp_path / "copy")
    make_tokenizer(tmp_path / "copy")
    tell(folder, base_model_name_or_path=str(tmp_path / "copy"))
    fitting.check(made(folder), tiny, ())


def test_an_adapter_of_another_base_is_refused_unless_the_user_names_the_base(tiny: ModelConfig, folder: Path) -> None:
    tell(folder, base_model_name_or_path="org/other")
    with pytest.raises(DataError, match=f"mine: an adapter of org/other, and the base here is {tiny.base}; leave"):
        fitting.check(made(folder), tiny, ())
    fitting.check(made(folder), tiny, ("base",))


def test_an_adapter_for_layers_of_another_width_is_refused_whatever_the_user_names(
    tiny: ModelConfig, folder: Path
) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    give(folder, **{name: torch.zeros(4, 10)})
    width = load_file(Path(tiny.base) / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].shape
    expected = rf"q_proj is {width[0]} x {width[1]}, and its LoRA is for {width[0]} x 10; it was trained on another"
    with pytest.raises(DataError, match=expected):
        fitting.check(made(folder), tiny, ("base",))


def test_an_adapter_for_layers_that_the_base_lacks_is_refused(tiny: ModelConfig, folder: Path) -> None:
    name = "base_model.model.model.layers.9.self_attn.q_proj"
    give(folder, **{f"{name}.lora_A.weight": torch.zeros(4, 32), f"{name}.lora_B.weight": torch.zeros(32, 4)})
    with pytest.raises(DataError, match=r"there is no model\.layers\.9\.self_attn\.q_proj; it was trained on another"):
        fitting.check(made(folder), tiny, ())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3; LoRA and DoRA can be compared"),
        ({"task_type": "SEQ_CLS"}, "its task is SEQ_CLS, which answers no prompts; name a policy"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base that all share"),
    ],
)
def test_an_adapter_that_is_no_policy_or_changes_the_base_is_refused(
    options: dict[str, Any], said: str, tiny: ModelConfig, folder: Path
) -> None:
    tell(folder, **options)
    with pytest.raises(DataError, match=said):
        fitting.check(made(folder), tiny, ())


def test_an_adapter_that_carries_embeddings_of_the_base_is_refused(tiny: ModelConfig, folder: Path) -> None:
    embeddings = load_file(Path(tiny.base) / "model.safetensors")["model.embed_tokens.weight"]
    give(folder, **{"base_model.model.model.embed_tokens.weight": embeddings + 1})
    with pytest.raises(DataError, match=r"beside the adapter it has tensors of the base itself \(.*embed_tokens"):
        fitting.check(made(folder), tiny, ("base",))
    # With a module that it has a copy of its own of, the base stays as it is.
    tell(folder, modules_to_save=["embed_tokens"])
    fitting.check(made(folder), tiny, ("base",))


def test_a_damaged_file_is_named(tiny: ModelConfig, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"^{file}: cannot be read \(.*\); copy it again"):
        fitting.check(made(folder), tiny, ())


def test_a_policy_of_prefloop_is_held_to_the_quantisation_it_was_trained_over(tiny: ModelConfig, folder: Path) -> None:
    told = {**tiny.identity(), "quantization": "nf4"}
    store.seal(folder, {"identity": {"model": told}})
    with pytest.raises(DataError, match=r"trained with model.quantization: nf4, and here it is none; say model\.quant"):
        fitting.check(made(folder), tiny, ())
    fitting.check(made(folder), tiny, ("quantization",))
