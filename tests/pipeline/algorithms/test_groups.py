"""RLOO and GRPO learn what a reward asks for, end with the same bytes however often they are killed, and say what they
cannot do before a model is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import END, job_of, preferences_of, prompt_of, said

from pipeline import store, train
from pipeline.algorithms import groups, grpo, rloo
from pipeline.algorithms.base import Setting
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, load_model
from pipeline.records import Pair
from pipeline.train import Training
from pipeline.worker import Job

BOTH = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
LETTERS = "scripted.reward:letters"
ADAPTER = "adapter_model.safetensors"


def config(tiny: ModelConfig, algorithm: str, quantization: Any = "none", **options: Any) -> Training:
    """Six updates, each on two groups of four answers of six tokens, with a checkpoint after every second."""
    defaults = {
        "reward": LETTERS,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 6,
        "max_steps": 6,
        "save_steps": 2,
    }
    return Training(
        seed=3,
        model=tiny.model_copy(update={"quantization": quantization}),
        algorithm={"name": algorithm, **defaults, **options},  # type: ignore[arg-type]
    )


def prepared(top: Path, training: Training, inputs: dict[str, Path] | None = None) -> Job:
    generate = top / "generate"
    store.make_dirs(generate)
    store.write_jsonl(generate / "prompts.jsonl", [prompt_of(f"What is {number}?") for number in range(5)])
    return job_of(top, training, step="train.test", inputs={"generate": generate, **(inputs or {})})


def trained(top: Path, training: Training, inputs: dict[str, Path] | None = None) -> dict[str, bytes]:
    job = prepared(top, training, inputs)
    train.finish(job)
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def lines(files: dict[str, bytes]) -> list[dict[str, float]]:
    return [json.loads(line) for line in files["metrics.jsonl"].splitlines()]


@pytest.fixture(scope="module")
def once(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, bytes]]]:
    found: dict[str, tuple[Path, dict[str, bytes]]] = {}

    def of(algorithm: str) -> tuple[Path, dict[str, bytes]]:
        if algorithm not in found:
            top = tmp_path_factory.mktemp("once")
            found[algorithm] = top, trained(top, config(tiny, algorithm))
        return found[algorithm]

    return of


# ---- what is learned


@BOTH
def test_a_step_leaves_an_adapter_and_its_metrics(algorithm: str, once: Any) -> None:
    _, files = once(algorithm)
    left = {"adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "summary.json", "README.md"}
    assert files.keys() == left
    summary = json.loads(files["summary.json"])
    assert (summary["prompts"], summary["examples"], summary["updates"]) == (5, 5, 6)
    assert all({"reward", "kl", "entropy", "completions/mean_length"} <= line.keys() for line in lines(files))
    assert not [name for line in lines(files) for name in line if "step_time" in name or "runtime" in name]


@BOTH
@pytest.mark.slow
def test_the_share_of_a_letter_rises_when_it_is_rewarded(algorithm: str, tiny: ModelConfig, tmp_path: Path) -> None:
    options = {"max_steps": 40, "save_steps": 40, "beta": 0.0, "per_device_train_batch_size": 32}
    rewards = [line["reward"] for line in lines(trained(tmp_path, config(tiny, algorithm, **options)))]
    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert last > first + 0.2


@BOTH
@pytest.mark.parametrize("quantization", ["nf4"])
def test_a_policy_that_has_learned_nothing_has_no_divergence(
    algorithm: str, quantization: str, tiny: ModelConfig, tmp_path: Path
) -> None:
    first = lines(trained(tmp_path, config(tiny, algorithm, quantization, max_steps=2)))[0]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)


# ---- from an earlier step


def fine_tuned(tiny: ModelConfig, top: Path, quantization: str) -> Path:
    """The folder of an adapter that learned three updates of chosen answers."""
    training = Training(
        seed=3,
        model=tiny.model_copy(update={"quantization": quantization}),
        algorithm={"name": "sft", "max_steps": 3, "learning_rate": 1e-2},  # type: ignore[arg-type]
    )
    store.make_dirs(top / "label")
    store.write_jsonl(top / "label" / "preferences.jsonl", preferences_of(12))
    job = job_of(top, training, step="train.sft", inputs={"label": top / "label"})
    train.finish(job)
    return job.out


@BOTH
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_policy_that_goes_on_is_held_to_the_adapter_that_it_goes_on_with(
    algorithm: str, quantization: str, tiny: ModelConfig, tmp_path: Path
) -> None:
    start = fine_tuned(tiny, tmp_path / "sft", quantization)
    training = config(tiny, algorithm, quantization, max_steps=2, start_from="sft")
    files = trained(tmp_path / "next", training, {"train.sft": start})
    assert json.loads(files["summary.json"])["start_gap"] == 0.0
    assert lines(files)[0]["kl"] == 0.0
    before, after = (load_file(folder / ADAPTER) for folder in (start, tmp_path / "next" / "out"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before), "and then it learns"


@BOTH
def test_the_reference_stays_what_it_was_while_the_policy_moves(
    algorithm: str, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    start = fine_tuned(tiny, tmp_path / "sft", "nf4")
    given: Any = config(tiny, algorithm, "nf4", max_steps=2, start_from="sft")
    model = load_model(given.model, training=True)
    setting = Setting(model=model, tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=3, start=start)
    prompts = [prompt_of(f"What is {number}?") for number in range(5)]
    rewarded = groups.Rewarded(prompts, {END})
    rewarded.scorer = Noting()
    rows = given.algorithm.fitting(prompts, tiny_tokenizer)
    trainer: Any = given.algorithm.group_trainer(given.algorithm.in_order(rows, 3), setting, rewarded)
    trainer.train()
    saved = load_file(start / ADAPTER)
    found = dict(trainer.model.named_parameters())
    for key, value in saved.items():
        assert torch.equal(found[key.replace(".weight", ".ref.weight")], value)
    assert any(not torch.equal(found[key.replace(".weight", ".default.weight")], saved[key]) for key in saved)


def test_a_policy_that_went_on_goes_on_again_after_a_kill(tiny: ModelConfig, tmp_path: Path) -> None:
    inputs = {
        "train.sft": fine_tuned(tiny, tmp_path / "sft", "nf4"),
        "train.rm": reward_model(tiny, tmp_path / "reward"),
    }
    training = config(tiny, "rloo", "nf4", reward={"step": "rm", "min_accuracy": 0}, start_from="sft")
    expected = trained(tmp_path / "whole", training, inputs)
    checkpoints = tmp_path / "killed" / "work" / "checkpoints"
    shutil.copytree(tmp_path / "whole" / "work" / "checkpoints" / "checkpoint-4", checkpoints / "checkpoint-4")
    assert trained(tmp_path / "killed", training, inputs) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "cispo", "epsilon": 0.3}, "epsilon=0.3 is not read by loss_type=cispo"),
        ({"loss_type": "sapo", "epsilon": 0.3}, "epsilon=0.3 is not read by loss_type=sapo"),
        ({"loss_type": "vespo", "epsilon_high": 0.3}, "epsilon_high is not read by loss_type=vespo"),
    ],
)
def test_a_bound_that_a_loss_does_not_read_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo.Config(**options)


def test_the_weight_of_a_token_under_cispo_is_bounded_by_five_and_not_by_the_clipping_of_others(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    setting = Setting(model=load_model(tiny, training=True), tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1)
    bounds = [grpo.Config(**each).of_trl(setting)[1].epsilon_high for each in ({"loss_type": "cispo"}, {})]
    assert bounds == [5.0, None]


# ---- rewards


class Noting:
    """A scorer that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bool | None]] = []

    def score(self, prompts: Any, responses: Any) -> list[float | None]:
        both = zip(prompts, responses, strict=True)
        self.asked += [(prompt.id, response.text, response.finished) for prompt, response in both]
        return [None if response.text == "" else float(len(response.text)) for response in responses]


def test_a_reward_sees_each_prompt_with_its_own_answer_and_whether_it_ended_by_any_end_token() -> None:
    rewarded = groups.Rewarded([prompt_of("One?"), prompt_of("Two?")], {END, 4})
    noting = Noting()
    rewarded.scorer = noting
    turns = [[{"role": "assistant", "content": text}] for text in ("yes", "no!!", "")]
    found = rewarded(
        completions=turns, completion_ids=[[5, 4], [6, 7], [END]], prompt_id=["Two?", "One?", "One?"], prompts=None
    )
    assert found == [3.0, 4.0, None]
    assert noting.asked == [("Two?", "yes", True), ("One?", "no!!", False), ("One?", "", True)]


@BOTH
def test_a_reward_model_on_the_same_base_is_no_part_of_what_is_saved(
    algorithm: str, tiny: ModelConfig, tmp_path: Path
) -> None:
    reward = reward_model(tiny, tmp_path / "reward")
    options = {"reward": {"step": "rm", "min_accuracy": 0}, "max_steps": 2}
    files = trained(tmp_path / "policy", config(tiny, algorithm, "nf4", **options), {"train.rm": reward})
    assert len({line["reward"] for line in lines(files)}) == 2
    assert not [path for path in (tmp_path / "policy").rglob("reward") if path.is_dir()]
    checkpoint = tmp_path / "policy" / "work" / "checkpoints" / "checkpoint-2"
    for folder in (checkpoint, tmp_path / "policy" / "out"):
        assert len(load_file(folder / ADAPTER)) == 2 * 7 * 2


def reward_model(tiny: ModelConfig, top: Path) -> Path:
    """The folder of a reward model that was trained for three updates."""
    training = Training(
        seed=3,
        model=tiny.model_copy(update={"quantization": "nf4"}),
        algorithm={"name": "reward_model", "max_steps": 3, "learning_rate": 1e-2},  # type: ignore[arg-type]
    )
    pairs = [Pair.of(each.prompt, each.chosen, each.rejected) for each in preferences_of(8)]
    inputs = {"generate": top / "generate", "label": top / "label"}
    for folder in inputs.values():
        store.make_dirs(folder)
    store.write_jsonl(inputs["generate"] / "pairs.jsonl", pairs)
    store.write_jsonl(inputs["label"] / "verdicts.jsonl", [said(pair, 0.8) for pair in pairs])
    train.finish(job_of(top, training, step="train.rm", inputs=inputs))
    return top / "out"


def test_a_reward_model_that_is_no_better_than_chance_stops_the_step_before_a_model_is_loaded(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    reward = reward_model(tiny, tmp_path / "reward")
    facts = json.loads((reward / "reward_model.json").read_text())
    facts["held_out"] |= {"accuracy": 0.55, "low": 0.45, "high": 0.65}
    (reward / "reward_model.json").write_text(json.dumps(facts))
    nowhere = tiny.model_copy(update={"base": str(tmp_path / "nothing")})
    with pytest.raises(TrainingError, match=r"orders 55\.0% \[45\.0%, 65\.0%\] of its held-out pairs"):
        trained(tmp_path / "policy", config(nowhere, "rloo", reward="rm"), {"train.rm": reward})


# ---- the same bytes


@BOTH
def test_two_trainings_leave_the_same_bytes(algorithm: str, once: Any, tiny: ModelConfig, tmp_path: Path) -> None:
    assert trained(tmp_path, config(tiny, algorithm)) == once(algorithm)[1]


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"steps_per_generation": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_leaves_the_bytes_of_an_uninterrupted_one(
    algorithm: str, options: dict[str, Any], tiny: ModelConfig, tmp_path: Path
) -> None:
    training = config(tiny, algorithm, **options)
    expected = trained(tmp_path / "whole", training)
    checkpoints = tmp_path / "killed" / "work" / "checkpoints"
    shutil.copytree(tmp_path / "whole" / "work" / "checkpoints" / "checkpoint-4", checkpoints / "checkpoint-4")
    assert trained(tmp_path / "killed", training) == expected


def test_a_training_with_a_reward_model_goes_on_as_if_nothing_had_happened(tiny: ModelConfig, tmp_path: Path) -> None:
    reward = {"train.rm": reward_model(tiny, tmp_path / "reward")}
    training = config(tiny, "rloo", "nf4", reward={"step": "rm", "min_accuracy": 0})
    expected = trained(tmp_path / "whole", training, reward)
    checkpoints = tmp_path / "killed" / "work" / "checkpoints"
    shutil.copytree(tmp_path / "whole" / "work" / "checkpoints" / "checkpoint-4", checkpoints / "checkpoint-4")
    assert trained(tmp_path / "killed", training, reward) == expected


# ---- options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"num_iterations": 3, "save_steps": 4},
            "save_steps=4 is no multiple of the 3 updates on each batch of answers",
        ),
        ({"num_iterations": 3, "save_steps": 4}, "take 6"),
        ({"steps_per_generation": 8, "gradient_accumulation_steps": 2, "save_steps": 2}, "of the 4 updates"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2, "save_steps": 6}, "an update would see two"),
        (
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1},
            "is 3, which does not hold whole",
        ),
    ],
)
def test_batches_and_checkpoints_that_do_not_fit_are_refused_with_the_recipe(
    options: dict[str, Any], problem: str
) -> None:
    for module in (rloo, grpo):
        with pytest.raises(ValidationError, match=problem):
            module.Config(reward=LETTERS, **options)


def test_every_prompt_comes_once_in_each_pass_and_in_another_order() -> None:
    rows = [{"prompt_id": str(number)} for number in range(12)]
    # Batches of two groups: 8 answers a pass, 4 to a prompt.
    options = {"gradient_accumulation_steps": 1, "num_generations": 4, "per_device_train_batch_size": 8}
    found = rloo.Config(num_train_epochs=2.5, **options).in_order(rows, seed=1)
    first, second, third = found[:12], found[12:24], found[24:]
    assert sorted(map(str, first)) == sorted(map(str, second)) == sorted(map(str, rows))
    assert first != second
    assert len(third) == 6
    assert rloo.Config(num_train_epochs=1.0, **options).in_order(rows, seed=1) == first
    assert rloo.Config(max_steps=9, **options).in_order(rows, seed=1) == found[:18]
    # Three updates on each batch.
    assert rloo.Config(max_steps=9, num_iterations=3, save_steps=3, **options).in_order(rows, seed=1) == found[:6]


def test_prompts_that_leave_no_room_for_an_answer_are_left_out(tiny_tokenizer: Any) -> None:
    short, long = prompt_of("Why?"), prompt_of("Why? " * 30)
    algorithm = rloo.Config(max_length=100, max_completion_length=40)
    assert [row["prompt_id"] for row in algorithm.fitting([short, long], tiny_tokenizer)] == [short.id]
    with pytest.raises(TrainingError, match="no prompt fits into max_length=100 with an answer of"):
        algorithm.fitting([long], tiny_tokenizer)


def test_every_option_reaches_the_trainer(tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path) -> None:
    shared = {
        "num_generations": 2, "max_completion_length": 7, "temperature": 0.7, "epsilon": 0.3, "num_iterations": 5,
        "steps_per_generation": 8, "mask_truncated_completions": True, "beta": 0.37,
    }  # fmt: skip
    own = {
        rloo: {"normalize_advantages": True},
        grpo: {"loss_type": "dr_grpo", "scale_rewards": "batch", "epsilon_high": 0.4},
    }
    for module, more in own.items():
        algorithm = module.Config(save_steps=10, gradient_accumulation_steps=4, **shared, **more)
        setting = Setting(model=load_model(tiny, training=True), tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1)
        prompts = [prompt_of("One?"), prompt_of("Two?")]
        rewarded = groups.Rewarded(prompts, {END})
        trainer: Any = algorithm.group_trainer(algorithm.fitting(prompts, tiny_tokenizer), setting, rewarded)
        for name, value in {**shared, **more}.items():
            assert getattr(trainer.args, name) == value
            assert module.Config.model_fields[name].default != value
        assert trainer.args.disable_dropout
        assert trainer.ref_model is None
