"""Checkpoints of several runs, and from elsewhere, are compared as those of one run are, and nothing is paid twice."""

import csv
import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from scripted_run import here, prepare

from pipeline import comparison, plan, sources, store
from pipeline import run as engine
from pipeline.errors import DataError, JudgeError
from pipeline.generate import Answer
from pipeline.ratings import Results, schema
from pipeline.recipe import load
from pipeline.records import Prompt


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of three policies each, `runs/short` and `runs/long`, to be copied."""
    top = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        prepare(top, patch)
        patch.setattr(engine, "run_workers", here)
        for name, steps in (("short", 1), ("long", 2)):
            done = load(top / "recipe.yaml", [f"train.walk.steps={steps}"])
            plan.open_run(done, Path("runs") / name).execute()
    return top


@pytest.fixture
def top(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, this test's own, and where the process is."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    prepare(tmp_path, monkeypatch)
    monkeypatch.setattr(engine, "run_workers", here)
    return tmp_path


def opened(*words: str, out: Path | None = None) -> Any:
    named, overrides = sources.read_words(words, comparison.OPTIONS)
    return comparison.open_comparison(named, overrides, out)


def names(run: Any) -> list[str]:
    config = next(step for step in run.steps if step.name == "answers").options["config"]
    return list(config["checkpoints"])


def rows(top: Path) -> dict[str, int]:
    with sqlite3.connect(top / "runs" / ".cache" / "journal.sqlite") as journal:
        return dict(journal.execute("SELECT kind, count(*) FROM entries GROUP BY kind").fetchall())


# ---- the whole way


def test_two_runs_are_compared_in_one_report_and_nothing_that_they_paid_for_is_paid_again(top: Path) -> None:
    before = rows(top)
    run = opened("runs/short", "runs/long")
    assert run.directory == top / "runs" / "compare-short-long"
    states = run.execute()
    assert [state.step.name for state in states] == ["answers", "measure", "compare", "report"]
    after = rows(top)
    # Both have answered the same prompts before.
    assert after["answers"] == before["answers"]
    results = Results.model_validate_json((run.directory / "results.json").read_text())
    assert [each.name for each in results.checkpoints] == ["base", "short/walk", "short/run", "long/walk", "long/run"]
    # `length` prefers who walked further: 1, 4, 2 and 5 words.
    order = ["base", "short/walk", "long/walk", "short/run", "long/run"]
    for place, one in enumerate(order):
        for other in order[:place]:
            assert results.between(one, other)[0].win_rate == 1.0, (one, other)
    # 5 prompts and 10 matches by 2 judges, of which each run has had 3; the matches with the base and within a run.
    assert after["verdict"] - before["verdict"] == 2 * 5 * (10 - 2 * 3)
    assert results.labelling_judge == "length"
    assert [judge.labelled for judge in results.judges] == [True, False]
    report = (run.directory / "report.md").read_text()
    for told in ("long/run", "short/label", "long/train.score"):
        assert told in report
    # A second time nothing is done, and the directory says what it is.
    assert all(state.done for state in opened("runs/short", "runs/long").states())
    assert all(state.done for state in comparison.reopen(run.directory).states())
    assert not (run.directory / "recipe.yaml").exists()


def test_prompts_of_a_later_round_were_trained_on_too(top: Path) -> None:
    files = "generate.prompts.files=[train.jsonl, more.jsonl]"
    done = load(top / "recipe.yaml", ["rounds=2", "carry=walk", files, "generate.prompts.limit=6"])
    plan.open_run(done, Path("runs") / "rounds").execute()
    with pytest.raises(DataError, match=r"4 of 4 held-out prompts are trained on, such as 'more 0\?'"):
        opened("runs/rounds", "compare.prompts.files=more.jsonl")
    assert names(opened("runs/rounds", "compare.prompts.files=other.jsonl"))


def test_two_runs_whose_directories_have_one_name_are_told_apart_or_refused(top: Path) -> None:
    shutil.copytree("runs/long", "elsewhere/short")
    words = ("runs/short:walk", "elsewhere/short:run")
    told = "runs/short:walk and elsewhere/short:run: both runs would be called 'short'; give one another name: "
    with pytest.raises(DataError, match=f"^{re.escape(told)}other=elsewhere/short:run$"):
        opened(*words)
    run = opened(words[0], f"other={words[1]}")
    assert names(run) == ["short/walk", "other"]
    origins = next(step for step in run.steps if step.name == "report").options["config"]["origins"]
    folders = {(each["run"], each["step"]): each["folder"] for each in origins}
    assert folders["short", "train.score"] != folders["other", "train.score"]
    assert {"short/score", "other/score"} <= {each["name"] for each in origins}
    # One run is one run, however it is written.
    assert names(opened("runs/short:walk", f"{top}/runs/short:run")) == ["short/walk", "short/run"]


def test_where_people_voted_on_some_of_the_policies_only_the_others_are_compared_by_the_other_judges(top: Path) -> None:
    answers = next(Path("runs/short/steps/answers").glob("*/answers.jsonl"))
    prompts = {
        each.id: each.messages[-1].content for each in store.read_jsonl(answers.parent / "prompts.jsonl", Prompt)
    }
    texts = {(each.prompt_id, each.response.source): each.response.text for each in store.read_jsonl(answers, Answer)}
    # Both policies against the base, and nothing on one against the other.
    votes = [(asked, texts[name, who], texts[name, "base"], "ana", "a") for name, asked in prompts.items()
             for who in ("walk", "run")]  # fmt: skip
    with open("votes.csv", "w", newline="") as file:
        csv.writer(file).writerows([("prompt", "response_a", "response_b", "rater", "choice"), *votes])
    judges = "compare.judges=[{name: human, votes: {files: votes.csv}}, length]"
    run = opened("runs/short", judges)
    run.execute()
    told = json.loads((run.directory / "results.json").read_text())
    Draft202012Validator(schema()).validate(told)
    results = Results.model_validate(told)
    by = {judge: [(each.one, each.other) for each in results.comparisons if each.judge == judge]
          for judge in ("human", "length")}  # fmt: skip
    every = [("short/walk", "base"), ("short/run", "base"), ("short/run", "short/walk")]
    assert by == {"human": every[:2], "length": every}
    # One prompt after the other was won: 2 to the power of 1 - 5, twice under Holm for two comparisons, not three.
    assert [each.p_holm for each in results.comparisons if each.judge == "human"] == [2 / 16, 2 / 16]
    warning = "human left everything open between short/run and short/walk: these it does not compare"
    for page in ("report.md", "report.html"):
        assert warning in (run.directory / page).read_text()
    # Votes on other answers than these decide nothing, and that is no comparison.
    Path("votes.csv").write_text("prompt,response_a,response_b,rater,choice\nWhy?,x,y,ana,a\n")
    with pytest.raises(JudgeError, match=r"judge 'human': it abstained on all 15 verdicts"):
        opened("runs/short", judges).execute()
