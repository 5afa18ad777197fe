"""Where a policy starts, what it is held to, and which of its weights are trained: for SFT, DPO and KTO alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import job_of, preferences_of

from pipeline import adapters, models, store, train, weights
from pipeline.algorithms import dpo, kto, policy, sft
from pipeline.algorithms.base import AlgorithmConfig, Setting, TrainRun
from pipeline.errors import ModelError, TrainingError
from pipeline.models import ModelConfig
from pipeline.plugins import config_class
from pipeline.train import Training

TUNES: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4}},
    "dora": {"lora": {"r": 4, "use_dora": True}},
    "full": {"tune": "full"},
    "layers": {"tune": "layers", "layers": ["model.layers.1", "lm_head"]},
    "lm_head": {"tune": "lm_head"},
}
SHORT = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
RATE = {"lora": 1e-2, "dora": 1e-2, "full": 1e-3, "layers": 1e-3, "lm_head": 1e-2}
PREFERENCE = {"dpo": dpo.Config, "kto": kto.Config}
HELD = ("none", "nf4")


@pytest.fixture(scope="module")
def label(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label")
    store.write_jsonl(folder / "preferences.jsonl", preferences_of(12))
    return folder


def trained(top: Path, model: ModelConfig, algorithm: AlgorithmConfig, inputs: dict[str, Path]) -> Path:
    job = job_of(top, Training(seed=1, model=model, algorithm=algorithm), step="train.next", inputs=inputs)
    train.finish(job)
    return job.out


def held_as(tiny: ModelConfig, quantization: str) -> ModelConfig:
    return tiny.model_copy(update={"quantization": quantization})


@pytest.fixture(scope="module")
def started(tiny: ModelConfig, label: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What SFT left, by how it tunes and how the base is held; trained when it is first asked for."""
    found: dict[tuple[str, str], Path] = {}

    def of(tune: str, quantization: str = "none") -> Path:
        if (tune, quantization) not in found:
            config = sft.Config(**TUNES[tune], **SHORT, learning_rate=RATE[tune])
            top = tmp_path_factory.mktemp("sft")
            found[tune, quantization] = trained(top, held_as(tiny, quantization), config, {"label": label})
        return found[tune, quantization]

    return of


def first_line(out: Path) -> dict[str, float]:
    line: dict[str, float] = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    return line


def run_of(tiny: ModelConfig, start: Path, label: Path, top: Path) -> TrainRun:
    inputs = {"train.sft": start, "label": label}
    return TrainRun(step="train.next", seed=1, model=tiny, inputs=inputs, work_dir=top, out=top / "out")


# ---- the reference of a policy that goes on


@pytest.mark.parametrize("quantization", HELD)
@pytest.mark.parametrize("tune", ["lora", "dora"])
@pytest.mark.parametrize("name", PREFERENCE)
def test_the_reference_of_a_continued_sft_adapter_is_that_adapter_and_not_the_raw_base(
    name: str, tune: str, quantization: str, tiny: ModelConfig, label: Path, started: Any, tmp_path: Path
) -> None:
    start = started(tune, quantization)
    config = PREFERENCE[name](start_from="sft", **TUNES[tune], **SHORT, learning_rate=1e-2)
    out = trained(tmp_path, held_as(tiny, quantization), config, {"label": label, "train.sft": start})
    assert store.read_json(out / "summary.json")["start_gap"] == 0.0
    # As TRL computes it: nothing has moved from the reference in the batch before the first step.
    line = first_line(out)
    assert (line["rewards/chosen"], line["rewards/rejected"], line["rewards/margins"]) == (0.0, 0.0, 0.0)
    assert line["loss"] == pytest.approx({"dpo": 0.6931472, "kto": 0.5}[name], abs=1e-6)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (start, out))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before), "and then it learns"


def test_the_reference_stays_what_it_was_while_the_policy_moves(
    tiny: ModelConfig, label: Path, started: Any, tmp_path: Path
) -> None:
    config = dpo.Config(start_from="sft", **TUNES["lora"], **SHORT, learning_rate=1e-2)
    run = run_of(tiny, started("lora"), label, tmp_path)
    trainer: Any = config.trainer(config.rows(run.preferences()), config.setting(run))
    saved = load_file(started("lora") / "adapter_model.safetensors")

    def adapter(name: str) -> dict[str, torch.Tensor]:
        return {
            key.replace(f".{name}.", "."): value.detach().clone()
            for key, value in trainer.model.named_parameters()
            if f".{name}." in key
        }

    for name in ("default", "ref"):
        found = adapter(name)
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[key], saved[key]) for key in saved), name
    trainer.train()
    moved = adapter("default")
    assert all(torch.equal(value, saved[key]) for key, value in adapter("ref").items())
    assert any(not torch.equal(value, saved[key]) for key, value in moved.items())


def test_a_checkpoint_of_a_continued_adapter_asks_nobody_about_its_base(
    tiny: ModelConfig, label: Path, started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its config names the base as the recipe does, and PEFT would look for one of that name on the hub.
    asked: list[str] = []
    monkeypatch.setattr(
        "peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda repo_id, *_, **__: asked.append(repo_id)
    )
    start = tmp_path / "start"
    shutil.copytree(started("lora"), start)
    told = store.read_json(start / models.ADAPTER)
    store.write_json(start / models.ADAPTER, {**told, "base_model_name_or_path": "smollm2-135m-instruct"})
    config = dpo.Config(start_from="sft", **TUNES["lora"], **SHORT, save_steps=1)
    trained(tmp_path, tiny, config, {"label": label, "train.sft": start})
    assert not asked
    assert (tmp_path / "work" / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("tune", ["full", "layers", "lm_head"])
@pytest.mark.parametrize("name", PREFERENCE)
def test_the_reference_of_trained_weights_is_a_copy_of_them(
    name: str, tune: str, tiny: ModelConfig, label: Path, started: Any, tmp_path: Path
) -> None:
    start = started(tune)
    config = PREFERENCE[name](start_from="sft", **TUNES[tune], **SHORT, learning_rate=1e-3)
    out = trained(tmp_path, tiny, config, {"label": label, "train.sft": start})
    assert store.read_json(out / "summary.json")["start_gap"] == 0.0
    assert first_line(out)["rewards/chosen"] == 0.0
    assert weights.read(out).keys() == weights.read(start).keys()
    assert any(not torch.equal(value, weights.read(start)[key]) for key, value in weights.read(out).items())


def test_an_adapter_on_trained_weights_brings_them_along(
    tiny: ModelConfig, label: Path, started: Any, tmp_path: Path
) -> None:
    start = started("full")
    config = dpo.Config(start_from="sft", **SHORT, learning_rate=1e-2)
    out = trained(tmp_path, tiny, config, {"label": label, "train.sft": start})
    assert (out / weights.FILE).read_bytes() == (start / weights.FILE).read_bytes()
    assert (out / models.ADAPTER).exists()
    ids = torch.tensor([[1, 7, 9, 30, 4]])
    base = models.load_model(tiny)
    weights.load(base, start)
    attached = adapters.attach(models.load_model(tiny), {"sft": start, "dpo": out})
    with torch.no_grad():
        with adapters.role(attached, "sft"):
            assert torch.equal(attached(ids).logits, base(ids).logits)
            sft_logits = attached(ids).logits
        with adapters.role(attached, "dpo"):
            assert not torch.equal(attached(ids).logits, sft_logits)


def test_a_policy_that_is_held_to_another_than_it_starts_from_is_stopped(
    tiny: ModelConfig, label: Path, started: Any, tmp_path: Path
) -> None:
    config = dpo.Config(start_from="sft", **TUNES["lora"], **SHORT)
    run = run_of(tiny, started("lora"), label, tmp_path)
    trainer: Any = config.trainer(config.rows(run.preferences()), config.setting(run))
    # What LLaMA-Factory does: the reference is the base with its adapter off.
    trainer.model.delete_adapter("ref")
    with pytest.raises(TrainingError, match=r"nats a token from its reference before the first update"):
        config.started(trainer)


def test_the_gap_is_the_largest_difference_of_a_token(
    tiny: ModelConfig, label: Path, started: Any, tmp_path: Path
) -> None:
    from tiny import full_logprobs

    config = dpo.Config(start_from="sft", **TUNES["lora"], **SHORT)
    run = run_of(tiny, started("lora"), label, tmp_path)
    trainer: Any = config.trainer(config.rows(run.preferences()), config.setting(run))
    prompt, answer = [1, 40, 41], [50, 51, 2]
    with adapters.role(trainer.model, "default"):
        policy_logprobs = full_logprobs(trainer.model.eval(), [*prompt, *answer])[2:]
    with trainer.model.disable_adapter():
        base_logprobs = full_logprobs(trainer.model, [*prompt, *answer])[2:]
    trainer.model.set_adapter("default")
    trainer.model.delete_adapter("ref")
    expected = abs(policy_logprobs - base_logprobs).max()
    assert expected > 1e-3
    with pytest.raises(TrainingError, match=rf"{expected:.3g} nats a token"):
        policy.start_gap(trainer, [prompt], [answer])


# ---- which weights are trained


@pytest.mark.parametrize("tune", TUNES)
def test_exactly_the_chosen_weights_are_trained_and_left(tune: str, tiny: ModelConfig, started: Any) -> None:
    out = started(tune)
    base = dict(models.load_model(tiny).named_parameters())
    expected = {
        "lora": 4 * (2 * 2 * 64 + 2 * 2 * 48 + 2 * 3 * 96),  # r x (in + out): q, o; k, v; three of the MLP; two blocks
        "dora": 4 * (2 * 2 * 64 + 2 * 2 * 48 + 2 * 3 * 96) + 2 * (2 * 32 + 2 * 16 + 2 * 64 + 32),  # and out for each
        "full": sum(each.numel() for each in base.values()),
        "layers": sum(each.numel() for name, each in base.items() if ".layers.1." in name) + 300 * 32,
        "lm_head": 300 * 32,
    }[tune]
    assert store.read_json(out / "summary.json")["trainable_parameters"] == expected
    if tune in ("lora", "dora"):
        saved = load_file(out / "adapter_model.safetensors")
        assert any("lora_magnitude_vector" in name for name in saved) == (tune == "dora")
    else:
        saved = weights.read(out)
        assert all(not torch.equal(value, base[name]) for name, value in saved.items() if "norm" not in name)
    assert sum(value.numel() for value in saved.values()) == expected


@pytest.mark.parametrize("tune", TUNES)
def test_what_is_left_loads_by_the_lines_of_its_card(
    tune: str, tiny: ModelConfig, tiny_folder: Path, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = started(tune)
    lines = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    space: dict[str, Any] = {"BASE": str(tiny_folder)}
    exec(lines.replace('"this folder', f'"{out}'), space)
    ids = torch.tensor([[1, 7, 9, 30, 4]])
    attached = adapters.attach(models.load_model(tiny), {"sft": out})
    with torch.no_grad(), adapters.role(attached, "sft"):
        assert torch.equal(space["model"].eval()(ids).logits, attached(ids).logits)


def test_a_head_that_is_drawn_anew_forgets_the_old_one(tiny: ModelConfig, label: Path, tmp_path: Path) -> None:
    config = sft.Config(tune="lm_head", reinit_head=True, max_steps=1, learning_rate=1e-6)
    out = trained(tmp_path, tiny, config, {"label": label})
    old = models.load_model(tiny).lm_head.weight
    new = weights.read(out)["lm_head.weight"]
    correlation = torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1]
    assert abs(correlation) < 0.05


def test_layers_that_are_not_there_are_an_error_that_names_some_that_are(
    tiny: ModelConfig, label: Path, tmp_path: Path
) -> None:
    config = sft.Config(tune="layers", layers=("model.layers.9",))
    with pytest.raises(ModelError, match=r"nothing called 'model.layers.9'; there are model\.embed_tokens"):
        trained(tmp_path, tiny, config, {"label": label})


def test_what_is_not_trained_is_in_memory_once_though_there_is_a_reference(tiny: ModelConfig, tmp_path: Path) -> None:
    model = models.load_model(tiny, training=True)
    setting = Setting(model=model, tokenizer=None, output_dir=tmp_path, seed=1)
    given = dpo.Config(tune="lm_head").policy(setting, reference=True)
    policy_storages = {each.data_ptr() for each in given["model"].parameters()}
    own = [each.numel() for each in given["ref_model"].parameters() if each.data_ptr() not in policy_storages]
    assert own == [300 * 32], "the output layer, which is trained"


@pytest.mark.parametrize("name", ["dpo", "kto", "reward_model", "rloo", "grpo", "ppo"])
def test_dropout_of_the_adapter_is_refused_where_nothing_would_be_dropped(name: str) -> None:
    with pytest.raises(ValueError, match=f"lora.lora_dropout: {name} compares two passes of the same weights"):
        config_class("algorithm", name)(name=name, lora={"lora_dropout": 0.1})
    assert sft.Config(lora={"lora_dropout": 0.1}).lora.lora_dropout == 0.1


# ---- optimizers


@pytest.mark.parametrize(
    ("name", "device", "taken"),
    [
        ("adamw_torch", "cpu", "adamw_torch"),
        ("paged_adamw_32bit", "cpu", "adamw_torch"),
        ("paged_adamw_32bit", "cuda", "paged_adamw_32bit"),
        ("adamw_bnb_8bit", "cuda", "adamw_bnb_8bit"),
    ],
)
def test_a_paged_optimizer_is_replaced_where_there_is_no_gpu(name: str, device: str, taken: str) -> None:
    assert policy.optimizer(name, device) == taken


@pytest.mark.parametrize(
    ("name", "told"),
    [("adamw_bnb_8bit", "needs a GPU, and there is none; take adamw_torch"), ("adam", "none that transformers knows")],
)
def test_an_optimizer_that_cannot_be_is_refused(name: str, told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        policy.optimizer(name, "cpu")


def test_the_report_is_told_that_another_optimizer_was_taken(tiny: ModelConfig, label: Path, tmp_path: Path) -> None:
    config = sft.Config(optim="paged_adamw_32bit", max_steps=1)
    out = trained(tmp_path, tiny, config, {"label": label})
    assert store.read_json(out / "summary.json")["alarms"] == [
        "paged_adamw_32bit needs a GPU; adamw_torch, which takes the same steps, was used in its place."
    ]


def test_weight_decay_shrinks_weights_by_rate_times_decay(tiny: ModelConfig, label: Path, tmp_path: Path) -> None:
    # One update of AdamW: w <- w (1 - rate x decay) - rate x sign-like step, which does not depend on the decay.
    found = []
    for decay in (0.0, 0.5):
        config = sft.Config(tune="lm_head", max_steps=1, warmup_steps=0, learning_rate=1e-2, weight_decay=decay)
        found.append(weights.read(trained(tmp_path / str(decay), tiny, config, {"label": label}))["lm_head.weight"])
    old = models.load_model(tiny).lm_head.weight
    assert torch.allclose(found[1], found[0] - 1e-2 * 0.5 * old, atol=1e-6)
