"""The benchmarks name options, prompts and rewards that there are; running them is `make bench-ppo`."""

import ast
from pathlib import Path

import pytest

from bench import ppo_reward
from bench.ppo_work import PROMPTS, prompts
from pipeline.algorithms.ppo import Config
from pipeline.models import ModelConfig
from pipeline.records import Response
from pipeline.train import Training

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark is run by its path, and so finds the files beside it."""
    monkeypatch.syspath_prepend(str(HERE))


@pytest.mark.parametrize("name", ppo_reward.ALGORITHMS)
def test_the_contrived_reward_is_learned_with_options_that_there_are(name: str) -> None:
    options = {"name": name, **ppo_reward.SHARED, **ppo_reward.ALGORITHMS[name]}
    algorithm = Training(seed=1, model=ModelConfig(), algorithm=options).algorithm  # type: ignore[arg-type]
    assert algorithm.name == name
    assert algorithm.max_steps > 0


def test_the_contrived_reward_is_a_share_of_letters() -> None:
    answers = [Response(text=text, source="s") for text in ("See!", "E", "no", "12")]
    assert ppo_reward.share_of_e([], answers) == [2 / 3, 1.0, 0.0, 0.0]


def test_the_rise_is_that_of_the_lines_that_tell_of_answers() -> None:
    drawn = {"kl": 0.1, "completions/mean_length": 10.0}
    metrics = [line for reward in (9.0, 1.0, 2.0, 3.0) for line in ({"loss": 1.0}, {"reward": reward, **drawn})]
    found = ppo_reward.outcome("rloo", [*metrics, {"loss": 1.0}], {"start": {"score": 1.0, "score_deviation": 0.5}})
    assert (found["rise_in_sd"], found["kl"]) == (2.0, 1.0)


def test_the_benchmark_has_its_prompts_and_our_side_names_options_that_there_are(tiny_tokenizer: object) -> None:
    assert len(prompts(tiny_tokenizer)) == PROMPTS
    calls = [node for node in ast.walk(ast.parse((HERE / "ppo_ours.py").read_text())) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "Config"]
    assert {keyword.arg for keyword in call.keywords} <= set(Config.model_fields)
