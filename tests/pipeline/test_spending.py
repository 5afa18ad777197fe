"""What a run would cost is told before, and what it did cost is in its manifest, attempts that failed included."""

import json
import os
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import judge_server
from tiny import job_of, prompt_of, response_of

from judges.llm import Config as Llm
from pipeline import cli, store
from pipeline.label import Labelling, judge_share, tell_spending
from pipeline.recipe import LabelConfig
from pipeline.records import Pair
from pipeline.worker import told

ROOT = Path(__file__).parents[2]

RECIPE = """\
model: smollm2-135m-instruct
generate: {{prompts: {{files: data/prompts/train.jsonl, limit: 6}}, sampler: {{name: scripted.sampler}}}}
judge:
  name: both_orders
  of: {{name: llm, model: m, base_url: {url}, price: {{input: 0.4, output: 1.6}}, limits: {{timeout_s: 2}}}}
exam: {{prompts: 2}}
train: {{dpo: }}
compare: {{prompts: {{files: data/prompts/heldout.jsonl, limit: 4}}, judges: [rules]}}
"""


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


def recipe(top: Path, url: str, more: str = "") -> str:
    (top / "recipe.yaml").write_text(RECIPE.format(url=url) + more)
    return str(top / "recipe.yaml")


def costs(told: str) -> dict[str, list[str]]:
    return {
        line.split()[0]: line.split()[1:] for line in told.splitlines() if re.match(r"(exam|label|compare|all) ", line)
    }


def test_an_estimate_counts_every_question_in_both_orders_before_anybody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server() as server:
        path, run = recipe(tmp_path, server.url), ["--run", str(tmp_path / "run")]
        assert cli.main(["judge", "cost", path, *run, "budget_usd=0.000001"]) == 0
        told = capsys.readouterr().out
        # Six prompts with four answers are 36 pairs, each asked about in both orders; rules cost nothing.
        assert costs(told)["label"][:3] == ["both_orders", "36", "72"]
        assert costs(told)["compare"][:3] == ["rules", "4", "0"]
        assert "each is counted at its greatest length" in told
        assert "more than budget_usd, 1e-06: the run would stop there" in told
        assert server.tell("stats")["calls"] == 0


def test_a_recipe_whose_steps_bring_their_data_has_judges_that_compare_and_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(Path(__file__).parents[2] / "recipes" / "sft.yaml")
    assert cli.main(["judge", "cost", path, "--run", str(tmp_path / "run")]) == 0
    assert set(costs(capsys.readouterr().out)) == {"compare", "all"}


REWARDED = """\
model: smollm2-135m-instruct
generate: {prompts: {files: data/prompts/train.jsonl, limit: 20}, sampler: {name: scripted.sampler}}
judge: length
exam: {prompts: 0}
train:
  ppo:
    reward: {judge: {name: rating, model: m, price: {input: 1, output: 2}, api_key_env: NO_SUCH_KEY}}
    per_device_train_batch_size: 4
    gradient_accumulation_steps: 2
    max_steps: 3
    normalize_samples: 16
    eval_steps: 2
    eval_prompts: 5
    eval_judge: rules
  rloo:
    reward: {judge: {name: rating, model: m, price: {input: 1, output: 2}, api_key_env: NO_SUCH_KEY}}
    num_generations: 2
    per_device_train_batch_size: 4
    gradient_accumulation_steps: 1
    save_steps: 1
compare: {prompts: {files: data/prompts/heldout.jsonl, limit: 4}, judges: [length]}
"""


def test_a_judge_that_rewards_is_counted_by_the_answers_of_all_updates_and_needs_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "recipe.yaml"
    path.write_text(REWARDED)
    assert cli.main(["judge", "cost", str(path), "--run", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    lines = [line.split() for line in told.splitlines() if line.startswith("train.")]
    # PPO: 3 updates of 8 answers, 16 before the first, and 5 held-out ones at updates 0 and 2; each is one call.
    # RLOO: one pass over 20 prompts with two answers each.
    assert [line[:5] for line in lines] == [
        ["train.ppo", "rating", "50", "answers", "50"],
        ["train.ppo", "rules", "10", "answers", "0"],
        ["train.rloo", "rating", "40", "answers", "40"],
    ]
    assert all(float(line[-1]) > 0 for line in (lines[0], lines[2]))
    assert "as there are if training makes all its updates" in told
    assert cli.main(["run", str(path), "--run", str(tmp_path / "run")]) == 2
    wrong = "reward.judge: api_key_env: the environment variable NO_SUCH_KEY is not set"
    told = capsys.readouterr().err
    assert f"train.ppo.{wrong}" in told and f"train.rloo.{wrong}" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("option", "judge"), [("reward.judge", "panel"), ("eval_judge", "both_orders")])
def test_a_judge_that_compares_is_no_reward_and_is_refused_before_anything_is_paid_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, judge: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(REWARDED)
    of = {"panel": "[{judge: length, weight: 1}, {judge: rules, weight: 1}]", "both_orders": "{name: local_llm}"}[judge]
    assert cli.main(["run", str(path), "--dry-run", f"train.ppo.{option}={{name: {judge}, of: {of}}}"]) == 2
    wrong = f"train.ppo.{option}: {judge} compares two answers and cannot score one by itself; name one that does"
    assert wrong in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_spent_is_in_the_manifest_and_stops_at_the_budget(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with judge_server(only="cut inside", first=1) as server:
        path, run = recipe(tmp_path, server.url), ["--run", str(tmp_path / "run")]
        assert cli.main(["judge", "exam", path, *run, "budget_usd=0.0001"]) == 5
        assert "budget_usd: 0.0" in capfd.readouterr().err
        assert cli.main(["judge", "exam", path, *run, "exam.enforce=false"]) in (
            0,
            2,
        )  # it knows nothing of such answers
        bill = server.tell("stats")["bill"] / 1e9
    (spent,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["steps"]["exam"]["spending"]
    with sqlite3.connect(tmp_path / ".cache" / "journal.sqlite") as journal:
        (charged,) = journal.execute("SELECT charged FROM accounts WHERE name = 'run'").fetchone()
    assert spent["usd"] == pytest.approx(charged / 1e9) and spent["usd"] >= bill > 0.0001
    assert spent["failed"] > 40  # every first attempt was cut off
    # Now the answers are there, and the estimate counts them and not the longest ones.
    assert cli.main(["judge", "cost", path, *run]) == 0
    told = capfd.readouterr().out
    assert "greatest length" not in told
    (folder,) = (tmp_path / "run" / "steps" / "generate").glob("*/pairs.jsonl")
    assert costs(told)["label"][1] == str(len(list(store.read_jsonl(folder, Pair))))


def test_labels_cost_what_their_own_judge_was_charged_and_not_what_the_one_before_it_was(tmp_path: Path) -> None:
    pairs = [Pair.of(prompt_of(f"{n}?"), response_of("yes"), response_of("no", index=1)) for n in range(3)]

    def labelled(url: str, model: str, asked: list[Pair]) -> dict[str, Any]:
        """The bill of a label step of one run, whose every making has a folder of its own."""
        judge = Llm(model=model, base_url=url, price={"input": 0.4, "output": 1.6})  # type: ignore[arg-type]
        config = Labelling(judge=judge, label=LabelConfig(), pairing="all")
        made = job_of(tmp_path / f"label-{judge.fingerprint()}", config, step="label")
        job = replace(made, cache=tmp_path / "cache", run="run")
        judge_share(judge, asked, job, None)
        tell_spending(job)
        (spent,) = told(job)["spending"]
        return dict(spent)

    with judge_server() as server:
        first = labelled(server.url, "one", pairs[:2])
        billed = server.tell("stats")["bill"] / 1e9
        assert (first["step"], first["judge"], first["usd"]) == ("label", "llm", pytest.approx(billed))
        second = labelled(server.url, "two", pairs)
        assert second["usd"] == pytest.approx(server.tell("stats")["bill"] / 1e9 - billed)
        # Whoever goes on with the first one after that adds to its own.
        again = labelled(server.url, "one", pairs)
        assert again["calls"] > first["calls"]
        assert first["usd"] < again["usd"] == pytest.approx(server.tell("stats")["bill"] / 1e9 - second["usd"])
