"""Each later round begins with the policy of the one before, and one round more redoes nothing of those there are."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from scripted_run import RECIPE, here, prepare
from tiny import prompt_of

from pipeline import cli, costing, plan, rounds, store
from pipeline import run as engine
from pipeline.annotate import material
from pipeline.annotate.ballots import open_ballots
from pipeline.annotate.desk import Desk
from pipeline.errors import RecipeError
from pipeline.generate import Answer
from pipeline.ratings import Results
from pipeline.recipe import Recipe, load
from pipeline.records import Pair, Preference, Prompt, Response, Verdict
from pipeline.run import Run, State
from pipeline.sampling import base as sampling
from pipeline.sampling.local import Config as Local

BEGUN = RECIPE.replace("  score: {name: scripted.scorer}", "  shown: {name: scripted.starter}").replace(
    "walk: {name: scripted.walker}", "walk: {name: scripted.walker, start_from: shown}"
)
"""The same with a policy to begin with, that learns from data of its own."""


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where recipe and prompts are, and where the process is."""
    prepare(tmp_path, monkeypatch)
    (tmp_path / "begun.yaml").write_text(BEGUN)
    return tmp_path


def recipe(top: Path, *overrides: str) -> Recipe:
    return load(top / "recipe.yaml", overrides)


def iterated(top: Path, count: int, *overrides: str) -> Recipe:
    return recipe(top, f"rounds={count}", "carry=walk", *overrides)


def run_of(top: Path, asked: Recipe) -> Run:
    return plan.open_run(asked, top / "runs" / "test")


def marks(top: Path, asked: Recipe) -> dict[str, str]:
    """Step -> fingerprint."""
    return {state.step.name: state.fingerprint for state in run_of(top, asked).states()}


def inputs(asked: Recipe) -> dict[str, dict[str, str]]:
    """Step -> what its functions are given: step -> by what name."""
    steps = plan.steps(asked, "title")
    found = {step.name: {name: step.called.get(name, name) for name in step.inputs} for step in steps}
    assert len(found) == len(steps)
    return found


# ---- the graph


ROUND = [
    "generate", "label", "doctor.labels", "train.score", "train.walk", "train.run", "answers", "measure", "compare",
]  # fmt: skip


def test_each_round_is_a_visible_part_of_the_run(top: Path) -> None:
    again = [f"round{number}.{step}" for number in (2, 3) for step in ROUND]
    assert list(inputs(iterated(top, 3))) == ["doctor", *ROUND, *again, "report"]


def test_a_round_reads_its_own_steps_and_the_policy_of_the_round_before_under_the_names_of_the_first(top: Path) -> None:
    found = inputs(iterated(top, 3))
    assert found["round2.generate"] == {"train.walk": "policy"}
    assert found["round3.generate"] == {"round2.train.walk": "policy"}
    assert found["round3.label"] == {"round3.generate": "generate"}
    assert found["round3.train.walk"] == {"round3.label": "label", "round2.train.walk": "train.walk"}
    # What started from another step of its round does so again; what makes no policy begins anew.
    assert found["round3.train.run"] == {"round3.label": "label", "round3.train.walk": "train.walk"}
    assert found["round3.train.score"] == {"round3.label": "label"}
    assert found["report"].keys() == found.keys() - {"report"}


def test_each_round_is_compared_with_the_base_and_with_the_policy_that_it_began_with(top: Path) -> None:
    found = inputs(iterated(top, 3))
    assert found["answers"] == {"train.walk": "train.walk", "train.run": "train.run"}
    assert found["round3.answers"] == {
        "round2.train.walk": "train.round2_walk",
        "round3.train.walk": "train.round3_walk",
        "round3.train.run": "train.round3_run",
    }
    who = [each.name for each in plan.contenders(iterated(top, 3), 3)]
    assert who == ["base", "round2_walk", "round3_walk", "round3_run"]
    chosen = iterated(top, 3, "compare.checkpoints=[run, base]")
    assert [each.name for each in plan.contenders(chosen, 2)] == ["base", "walk", "round2_run"]


def test_every_policy_starts_from_the_one_carried_unless_it_starts_from_another_of_its_round(top: Path) -> None:
    later = plan.recipe_in(iterated(top, 3), 3)
    assert {name: getattr(step, "start_from", "nothing") for name, step in later.train.items()} == {
        "score": "nothing",
        "walk": "walk",
        "run": "walk",
    }


def test_a_step_with_data_of_its_own_comes_once_and_first_where_its_policy_answers(top: Path) -> None:
    asked = load(top / "begun.yaml", ["rounds=2", "carry=walk", "generate.policy=shown"])
    found = inputs(asked)
    assert list(found)[:4] == ["doctor", "train.shown", "generate", "label"]
    assert found["generate"] == {"train.shown": "policy"}
    assert found["train.walk"] == {"label": "label", "train.shown": "train.shown"}
    assert "round2.train.shown" not in found
    assert found["round2.generate"] == {"train.walk": "policy"}
    assert found["round2.train.walk"] == {"round2.label": "label", "train.walk": "train.walk"}
    assert [each.name for each in plan.contenders(asked, 2)] == ["base", "walk", "round2_walk", "round2_run"]


def test_one_prompt_file_is_answered_with_other_seeds_and_of_several_each_round_has_the_next(top: Path) -> None:
    def asked(found: Recipe) -> list[tuple[int, list[str]]]:
        steps = [step for step in plan.steps(found, "title") if step.name.endswith("generate")]
        return [(step.identity["sampling"]["seed"], [file.name for file in step.files]) for step in steps]

    one = asked(iterated(top, 3))
    assert [files for _, files in one] == [["train.jsonl"]] * 3
    assert one[0][0] == 7
    assert len({seed for seed, _ in one}) == 3
    several = asked(iterated(top, 3, "generate.prompts.files=[train.jsonl, more.jsonl]"))
    assert [files for _, files in several] == [["train.jsonl"], ["more.jsonl"], ["train.jsonl"]]
    assert [seed for seed, _ in several] == [seed for seed, _ in one]


def test_held_out_prompts_may_be_in_no_rounds_file(top: Path) -> None:
    store.write_jsonl(top / "more.jsonl", [prompt_of("heldout 3?", "another id")])
    files = "generate.prompts.files=[train.jsonl, more.jsonl]"
    # One round reads both files, of which the limit leaves the first; of two rounds the second reads the other.
    from pipeline import doctor

    def errors(*overrides: str) -> list[str]:
        found = doctor.before(recipe(top, files, "generate.prompts.limit=6", *overrides), memory=(2**36, False))
        return [each.what for each in found if each.level == "error" and each.check == "data"]

    assert errors() == []
    (overlap,) = errors("rounds=2", "carry=walk")
    assert overlap.startswith("1 of 5 held-out prompts are trained on")
    with pytest.raises(RecipeError, match=r"compare\.prompts\.files\.0: 'train\.jsonl' is in generate\.prompts too"):
        iterated(top, 2, files, "compare.prompts.files=train.jsonl")


def test_what_the_judges_would_cost_is_counted_in_every_round(top: Path) -> None:
    found = [(line.step, line.judge, line.pairs) for line in costing.lines(iterated(top, 2), None)]
    # Two answers to each of 6 prompts; of 5 held-out ones 3 policies' answers in couples, and then 4.
    assert found == [
        ("label", "length", 6), ("compare", "length", 15), ("compare", "rules", 15),
        ("round2.label", "length", 6), ("round2.compare", "length", 30), ("round2.compare", "rules", 30),
    ]  # fmt: skip


def test_a_policy_of_a_later_round_has_a_name_by_which_it_is_exported(top: Path) -> None:
    steps = recipe(top).train
    assert rounds.made_by(steps, "round12_run") == (12, "run")
    assert rounds.made_by(steps, "walk") == (1, "walk")
    assert rounds.made_by(steps, "round2_fly") is None
    every = ("generate", "train.walk", "compare", "round2.generate", "round2.train.walk", "round2.compare")
    found = rounds.seen_from(2, {name: Path(name) for name in every})
    assert found == {
        "generate": Path("round2.generate"),
        "compare": Path("round2.compare"),
        "train.walk": Path("train.walk"),
        "train.round2_walk": Path("round2.train.walk"),
    }


# ---- what is done again


def test_more_rounds_change_nothing_of_those_there_are(top: Path) -> None:
    alone, two, three = marks(top, recipe(top)), marks(top, iterated(top, 2)), marks(top, iterated(top, 3))
    looks = {"doctor", "report"}  # at the whole recipe, and no step reads what it found
    assert {name for name in alone if alone[name] != two[name]} == looks
    assert {name for name in two if two[name] != three[name]} == looks
    assert len(set(three.values())) == len(three)


def test_the_first_rounds_judge_changed_everything_after_it_is_another(top: Path) -> None:
    before, after = marks(top, iterated(top, 2)), marks(top, iterated(top, 2, "judge.prefer=shorter"))
    # What the base answers does not turn on who judges.
    assert {name for name in before if before[name] == after[name]} == {"generate"}


def test_another_policy_carried_changes_what_comes_after_the_first_round_alone(top: Path) -> None:
    before, after = marks(top, iterated(top, 2)), marks(top, iterated(top, 2, "carry=run"))
    changed = {name for name in before if before[name] != after[name]}
    # A scorer begins anew, but learns from other labels.
    assert changed == {"doctor", "report", *(f"round2.{step}" for step in ROUND)}


def test_a_recipe_without_rounds_has_the_fingerprints_that_it_had_before_there_were_any(top: Path) -> None:
    asked = recipe(top)
    assert not {"rounds", "carry"} & asked.identity().keys()
    assert asked.generate is not None
    assert "policy" not in asked.generate.identity()
    (generate,) = [step for step in plan.steps(asked, "title") if step.name == "generate"]
    assert generate.identity.keys() == {"sampling", "pairing", "version"}


# ---- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds=0"], "rounds: 0 found; needs to be 1 or more"),
        (["rounds=2"], "carry: missing; name the train step whose policy the next round goes on with: walk, run"),
        (["rounds=2", "carry=wolk"], "carry: no step is called 'wolk'; did you mean 'walk'?"),
        (["rounds=2", "carry=score"],
         "carry: 'score' makes a reward, which answers no prompts; those that do: walk, run"),
        (["carry=score"], "carry: 'score' makes a reward"),
        (["rounds=2", "carry=walk", "train.pupil={name: scripted.pupil}"],
         "carry: 'pupil' (scripted.pupil) cannot start from another policy, and so has no second round"),
        (["rounds=2", "carry=walk", "train.round2_walk={name: scripted.walker}"],
         "carry: 'round2_walk' is called as a policy of a later round is; call it something else"),
        (["rounds=2", "carry=walk", "annotations={files: votes.csv}", "judge=null", "compare.sampler=scripted.sampler"],
         "rounds: each round after the first answers prompts and has the answers judged, and people's votes are there "
         "once; set it to 1, or add generate and judge"),
        (["rounds=2", "carry=walk", "train.dpo={lora: {r: 4}}"],
         "carry: train.dpo.lora.r: 4 found, and the adapter of 'walk', which it goes on with, has 16"),
        (["rounds=2", "carry=walk", "train.dpo={tune: lm_head, reinit_head: true}", "model.quantization=none"],
         "carry: 'dpo' cannot go on with 'walk': reinit_head would throw away the output layer of start_from"),
        (["generate.policy=walk"],
         "train.walk: learns from label, which come of generate, and generate.policy needs it first"),
        (["generate.policy=score"], "train.score: makes a reward, and generate.policy names it as who answers"),
        (["generate.policy=wolk"], "train: no step is called 'wolk', as generate.policy has it; did you mean 'walk'?"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_what_does(top: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe(top, *overrides)
    assert message in str(raised.value)


def test_a_policy_that_learns_from_nothing_new_is_not_gone_on_with(top: Path) -> None:
    with pytest.raises(RecipeError, match="carry: 'shown' learns from nothing that another round brings"):
        load(top / "begun.yaml", ["rounds=2", "carry=shown"])


# ---- doing it


def done(states: list[State]) -> dict[str, Path]:
    assert all(state.done for state in states)
    return {state.step.name: state.path for state in states}


@pytest.mark.slow
def test_a_run_of_two_rounds_goes_on_from_its_first_and_a_third_is_added_to_it(top: Path) -> None:
    two = run_of(top, iterated(top, 2))
    states = two.execute()
    folders = done(states)

    def walked(step: str) -> dict[str, Any]:
        found: dict[str, Any] = store.read_json(folders[step] / "walked.json")
        return found

    assert [walked(step)["words"] for step in ("train.walk", "train.run")] == [1, 4]
    assert [walked(step)["words"] for step in ("round2.train.walk", "round2.train.run")] == [2, 5]
    assert (walked("train.walk")["seed"], walked("round2.train.walk")["seed"]) == (7, rounds.seed_in(2, 7))
    # The second round's answers are the first round's policy's, and it learned from labels on those.
    (pairs,) = [json.loads(line) for line in (folders["round2.generate"] / "answers.jsonl").open()][:1]
    assert Response.model_validate(pairs["response"]).source == "walk"
    learned = store.read_jsonl(folders["round2.label"] / "preferences.jsonl", Preference)
    assert walked("round2.train.walk")["learned"] == [each.chosen.text for each in learned]
    # `length` prefers who walked further: in each round against the base and against the round before.
    results = Results.model_validate_json((top / "runs" / "test" / "results.json").read_text())
    for one, other in (("walk", "base"), ("round2_walk", "base"), ("round2_walk", "walk"), ("round2_run", "walk")):
        assert results.between(one, other)[0].win_rate == 1.0
    report = (top / "runs" / "test" / "report.md").read_text()
    table = report.partition("<summary>Rounds</summary>")[2].partition("</details>")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in table.splitlines() if "length" in line]
    assert {(row[0], row[1], row[4]) for row in rows} == {
        ("1", "walk vs base", "100.0 %"),
        ("1", "run vs base", "100.0 %"),
        ("2", "round2_walk vs base", "100.0 %"),
        ("2", "round2_run vs base", "100.0 %"),
        ("2", "round2_walk vs walk", "100.0 %"),
        ("2", "round2_run vs walk", "100.0 %"),
    }
    page = (top / "runs" / "test" / "report.html").read_text()
    assert 'id="rounds"' in page
    assert "round2.train.walk" in page

    before = {state.step.name: state.path.stat().st_mtime_ns for state in states}
    three = run_of(top, iterated(top, 3))
    todo = {state.step.name for state in three.states() if not state.done}
    assert todo == {"doctor", "report", *(f"round3.{step}" for step in ROUND)}
    after = three.execute()
    assert store.read_json(done(after)["round3.train.run"] / "walked.json")["words"] == 6
    for name in before.keys() - {"doctor", "report"}:
        assert done(after)[name].stat().st_mtime_ns == before[name]


def test_votes_on_the_pairs_of_every_round_label_the_pairs_that_they_were_cast_on(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_workers", here)
    before = done(run_of(top, iterated(top, 2)).execute())
    run = top / "runs" / "test"
    wanted = {}
    # Against the judge, and first on the newest round.
    for number in (None, 1):
        pairs, verdicts, _ = material.find(run, number)
        items = material.read(pairs, verdicts, double=0, control=0.1, seed=0)
        with contextlib.closing(open_ballots(run)) as ballots:
            desk = Desk(items, ballots, seed=0)
            while question := desk.next("ann", "1")["question"]:
                side = min(("left", "right"), key=lambda name: len(question[name]))
                wanted[question["pair"]] = question[side]
                desk.vote("ann", "1", question["pair"], side, "")  # type: ignore[arg-type]
    assert cli.main(["annotate", str(run), "--export", "votes.csv"]) == 0

    after = done(run_of(top, iterated(top, 2, "judge={name: human, votes: {files: votes.csv}}")).execute())
    labelled = {}
    for step in ("label", "round2.label"):
        (generated,) = [after[name] for name in after if name == step.replace("label", "generate")]
        pairs_of = {pair.id: pair for pair in store.read_jsonl(generated / "pairs.jsonl", Pair)}
        for verdict in store.read_jsonl(after[step] / "verdicts.jsonl", Verdict):
            assert verdict.p_a is not None and verdict.evidence["decided_by"] == "people"
            pair = pairs_of[verdict.pair_id]
            labelled[pair.id] = (pair.a if verdict.p_a > 0.5 else pair.b).text
    assert labelled == wanted and len(wanted) == 12
    # Other labels in the first round, and with these scripted policies the same answers in the second.
    assert before["round2.generate"] != after["round2.generate"]


@pytest.mark.slow
def test_the_second_round_of_dpo_samples_from_the_first_one_s_adapter_and_is_held_to_it(
    top: Path, tiny_folder: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    sizes = "per_device_train_batch_size: 2, gradient_accumulation_steps: 1"
    dpo = f"{{name: dpo, learning_rate: 1.0e-2, max_steps: 2, {sizes}}}"
    local = "{name: local, max_new_tokens: 12, batch_size: 8}"
    asked = iterated(
        top, 2, f"model={{base: {tiny_folder}, quantization: none, dtype: fp32}}", f"generate.sampler={local}",
        f"train={{score: null, run: null, walk: {dpo}}}",
    )  # fmt: skip
    folders = done(run_of(top, asked).execute())
    first, second = folders["train.walk"], folders["round2.train.walk"]
    # Trained on from where the first round left off: before its first update the policy is its own reference.
    assert store.read_json(second / "summary.json")["start_gap"] < 1e-4
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    moved = max(float((weights[1][name] - weights[0][name]).abs().max()) for name in weights[0])
    # Two updates of Adam move no weight by more than twice the learning rate, and a new adapter is not that near.
    assert 0 < moved <= 2.1e-2
    assert float(torch.cat([each.flatten() for each in weights[1].values()]).abs().max()) > moved

    answers = list(store.read_jsonl(folders["round2.generate"] / "answers.jsonl", Answer))
    assert {each.response.source for each in answers} == {"walk"}
    # Sampled from the adapter: its own log-probabilities, which are not the base's of the same tokens.
    sampler = Local(max_new_tokens=12, batch_size=8)
    (batch,) = [
        batch
        for batch in sampling.plan(
            list(store.read_jsonl(top / "train.jsonl", Prompt)), samples=2, batch_size=8,
            seed=rounds.seed_in(2, 7), purpose="train",
        )
        if any(prompt.id == answers[0].prompt_id for prompt in batch.prompts)
    ]  # fmt: skip
    own = sampler.build(asked.model, {"walk": first}, reference=False).sample(batch, "walk")
    assert answers[0].response.text in [response.text for response in own]
    base = sampler.build(asked.model, {}, reference=False).sample(batch, "base")
    assert [response.text for response in own] != [response.text for response in base]
