"""A reward is a reward model, a judge or a function; one that is no good stops training before it begins."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny import prompt_of, response_of

from judges.length import Config as Length
from pipeline import store
from pipeline.algorithms import rewards
from pipeline.algorithms.base import Need, TrainRun
from pipeline.algorithms.rewards import RewardConfig
from pipeline.errors import ModelError, TrainingError
from pipeline.models import ModelConfig

PROMPTS = [prompt_of("One?"), prompt_of("Two?"), prompt_of("Three?")]
ANSWERS = [response_of("two 2 go"), response_of("7"), response_of("")]


def run_in(top: Path, tiny: ModelConfig) -> TrainRun:
    return TrainRun(
        step="train.ppo",
        seed=1,
        model=tiny,
        inputs={"train.reward_model": top / "reward_model"},
        work_dir=top / "work",
        out=top / "out",
    )


def reward(value: Any) -> RewardConfig:
    return RewardConfig.model_validate(value)


# ---- in a recipe


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("reward_model", {"step": "reward_model"}),
        ("scripted.reward:letters", {"function": "scripted.reward:letters"}),
        ({"judge": "length"}, {"judge": Length()}),
    ],
)
def test_text_is_a_step_or_with_a_colon_a_function(value: Any, expected: dict[str, Any]) -> None:
    assert reward(value) == RewardConfig(**expected)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "needs one of function, judge and step, and has none"),
        ({"step": "rm", "function": "scripted.reward:letters"}, "and has function and step"),
        ("scripted.nothing:letters", "function: there is no module 'scripted.nothing'"),
        ("scripted.reward:nothing", "function: scripted.reward has no function 'nothing'"),
        ("scripted.reward:NOT_A_FUNCTION", "function: scripted.reward has no function 'NOT_A_FUNCTION'"),
        (":letters", "function: ':letters' found; needs to be module:function"),
        ("scripted.reward:", "function: 'scripted.reward:' found; needs to be module:function"),
    ],
)
def test_a_reward_that_is_none_is_refused_with_the_recipe(value: Any, problem: str) -> None:
    with pytest.raises(ValidationError) as raised:
        reward(value)
    assert problem in str(raised.value)


def test_a_function_that_was_edited_is_another_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each version lies in a folder of its own, because this process imports a module once.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    shared = "def brevity(prompts, responses):\n    return [-len(each.text) for each in responses]\n"
    versions = {
        "as it is": (shared, "from mine_shared import brevity\n"),
        "again": (shared, "from mine_shared import brevity\n"),
        "another number": (shared.replace("-len", "-2 * len"), "from mine_shared import brevity\n"),
        "another module": (shared, "from mine_shared import brevity\nEASY = True\n"),
    }
    found = {}
    for name, (own, module) in versions.items():
        store.make_dirs(tmp_path / name)
        (tmp_path / name / "mine_shared.py").write_text(own)
        (tmp_path / name / "mine.py").write_text(module)
        with monkeypatch.context() as changed:
            changed.syspath_prepend(str(tmp_path / name))
            for each in ("mine", "mine_shared"):
                changed.delitem(sys.modules, each, raising=False)
            found[name] = reward("mine:brevity").identity()
    assert found["as it is"] == found["again"]
    assert len({json.dumps(each) for each in found.values()}) == 3
    assert "code" not in reward("reward_model").identity()
    assert rewards.code_of("math:sqrt") == []  # which is no Python


def test_only_a_step_is_needed_from_the_recipe() -> None:
    assert reward("rm").needs("reward") == (Need("reward", "rm", "reward"),)
    assert reward("scripted.reward:letters").needs("reward") == ()
    assert reward({"judge": "length"}).needs("reward") == ()


# ---- at work


def test_a_function_is_asked_and_may_have_no_answer(tiny: ModelConfig, tmp_path: Path) -> None:
    scorer = rewards.build(reward("scripted.reward:letters"), run_in(tmp_path, tiny), None, None)
    assert scorer.score(PROMPTS, ANSWERS) == [5 / 8, 0.0, None]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("too_few", "2 rewards for 3 responses; one for each"),
        ("no_number", "the reward 'good' is no number; return a float or None"),
        ("infinite", "the reward inf is not finite; return None where there is none"),
    ],
)
def test_what_a_function_returns_is_looked_at(name: str, problem: str, tiny: ModelConfig, tmp_path: Path) -> None:
    scorer = rewards.build(reward(f"scripted.reward:{name}"), run_in(tmp_path, tiny), None, None)
    with pytest.raises(TrainingError, match=f"scripted.reward:{name}: {problem}"):
        scorer.score(PROMPTS, ANSWERS)


def test_a_judge_that_scores_single_answers_is_a_reward(tiny: ModelConfig, tmp_path: Path) -> None:
    scorer = rewards.build(reward({"judge": "length"}), run_in(tmp_path, tiny), None, None)
    long, short, empty = scorer.score(PROMPTS, ANSWERS)
    assert long is not None and short is not None and empty is not None
    assert long > short > empty


def test_a_judge_that_only_compares_is_refused(tiny: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"reward\.judge: scripted\.judge compares two answers and cannot score"):
        rewards.build(reward({"judge": "scripted.judge"}), run_in(tmp_path, tiny), None, None)


# ---- the floor


def reward_model(top: Path, *, accuracy: float, low: float) -> None:
    """The facts and the head of a reward model; its adapter is not looked at here."""
    import torch
    from safetensors.torch import save_file

    folder = top / "reward_model"
    store.make_dirs(folder)
    facts = {
        "model": {"base": "b"}, "shared": True, "pool": "last", "pad_id": 0, "max_length": 9,
        "held_out": {"accuracy": accuracy, "low": low, "high": 0.9},
    }  # fmt: skip
    (folder / "reward_model.json").write_text(json.dumps(facts))
    save_file({"base_model.model.score.weight": torch.ones(1, 4)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("low", "least", "admitted"), [(0.51, 0.5, True), (0.5, 0.5, False), (0.3, 0.0, True), (0.7, 0.75, False)]
)
def test_a_reward_model_has_to_beat_the_floor_with_its_low_end(
    low: float, least: float, admitted: bool, tiny: ModelConfig, tmp_path: Path
) -> None:
    reward_model(tmp_path, accuracy=0.8, low=low)
    config = reward({"step": "reward_model", "min_accuracy": least})
    if admitted:
        rewards.check(config, run_in(tmp_path, tiny))
        return
    with pytest.raises(TrainingError) as raised:
        rewards.check(config, run_in(tmp_path, tiny))
    assert str(raised.value).startswith(
        f"train.ppo: the reward model 'reward_model' orders 80.0% [{low:.1%}, 90.0%] of its held-out pairs as the "
        f"judge did, and the low end needs to exceed {least:.1%}"
    )
    assert str(raised.value).endswith("reward.min_accuracy=0")


def test_a_folder_without_a_head_is_refused(tiny: ModelConfig, tmp_path: Path, tiny_adapters: dict[str, Path]) -> None:
    import shutil

    reward_model(tmp_path, accuracy=0.8, low=0.7)
    folder = tmp_path / "reward_model"
    shutil.copy(tiny_adapters["one"] / "adapter_model.safetensors", folder)
    with pytest.raises(ModelError, match="the adapter has no score head; train it with the algorithm reward_model"):
        rewards.check(reward("reward_model"), run_in(tmp_path, tiny))
    (folder / "reward_model.json").unlink()
    with pytest.raises(ModelError, match="not what a reward_model step leaves"):
        rewards.check(reward("reward_model"), run_in(tmp_path, tiny))
