"""The benchmarks name options, prompts and rewards that there are; running them is `make bench-ppo`."""

import ast
import itertools
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench import ppo_reward
from bench.ppo_work import PROMPTS, WORKS, learnable, prompts, share_of_e
from bench.rounded import Rounded
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


def test_the_two_works_are_those_that_are_told_of() -> None:
    assert WORKS["speed"].episodes == 16  # with 4 epochs of 48 tokens: what TRL, LLaMA-Factory and we were measured on
    assert WORKS["curve"].episodes == 64


def test_the_learnable_reward_is_the_share_of_e_in_deviations() -> None:
    assert share_of_e("See, 12!") == 2 / 3
    assert learnable("e") - learnable("xe") == pytest.approx(0.5 / 0.0539)


def test_the_gain_is_the_slope_of_the_reward_over_the_root_of_the_divergence_up_to_where_all_have_been() -> None:
    from ppo_curve import compared

    ours = {"1": [[0.0, 0.0], [1.0, 3.0], [4.0, 6.0], [9.0, 0.0]], "2": [[1.0, 5.0], [4.0, 10.0]]}  # 3 and 5 sqrt(kl)
    trl = {"1": [[-0.1, 0.5], [1.0, 1.0], [4.0, 2.0]]}  # sqrt(kl), but for a divergence that counts as 0
    found = compared(ours, trl)
    assert found["kl_up_to"] == 4.0  # so ours at 9 is left out
    assert (found["ours"]["gain"], found["trl"]["gain"], found["gain_ratio"]) == (4.0, 1.0, 4.0)
    assert found["ours"]["gain_error"] == 1.0  # 3 and 5 deviate by sqrt(2), over the root of two
    assert found["trl"]["gain_error"] is None and "error" not in found
    trl["2"] = [[1.0, 3.0], [4.0, 6.0]]
    found = compared(ours, trl)
    assert (found["gain_ratio"], found["error"]) == (2.0, round(2 * (1 / 16 + 1 / 4) ** 0.5, 3))
    assert found["trl"]["curves"] == trl


def test_rounded_products_are_those_of_fp32_rounded_once_forward_and_backward() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 40).bfloat16(), torch.randn(8).bfloat16()
    x = torch.randn(5, 40).bfloat16().requires_grad_()
    with Rounded():
        y = F.linear(x, weight, bias)
        (by_x,) = torch.autograd.grad(y.float().sum(), x)
    exact = (x.detach().double() @ weight.double().T + bias.double()).bfloat16()
    assert torch.equal(y, exact)
    assert torch.equal(by_x, weight.double().sum(0).bfloat16().expand(5, 40))


def test_sides_that_take_turns_never_work_at_once(tmp_path: Path) -> None:
    script = tmp_path / "side.py"
    script.write_text(
        "import json, sys, time\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from ppo_work import Turns\n"
        "turns, spans = Turns(), []\n"
        "for _ in range(int(sys.argv[3])):\n"
        "    began = time.monotonic()\n"
        "    time.sleep(0.02)\n"
        "    spans.append((began, time.monotonic()))\n"
        "    turns.next()\n"
        "json.dump({'seconds': [1, 2], 'episodes': 1, 'spans': spans}, open(sys.argv[4], 'w'))\n"
    )
    from bench.ppo import Side, in_turn

    sides = [
        Side.start(sys.executable, script, kind, "speed", tmp_path, seed=count)
        for kind, count in (("one", 2), ("other", 4))
    ]
    in_turn(sides)
    one, other = (side.found()["spans"] for side in sides)
    assert (len(one), len(other)) == (2, 4)
    spans = sorted([*one, *other])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    # One after the other, as long as both have work.
    assert [span in one for span in spans[:4]] == [True, False, True, False]
