"""Each step is given the outputs that it reads, and no others: an input more would redo work for nothing."""

from pathlib import Path

import pytest

from pipeline import plan
from pipeline.compare import Comparing, _how
from pipeline.recipe import Recipe, load

RECIPE = """\
model: smollm2-135m-instruct
generate: {prompts: {files: train.jsonl}, sampler: local}
judge: length
train:
  dpo:
  scorer: {name: scripted.scorer}
  late: {name: scripted.learner}
compare: {prompts: {files: heldout.jsonl}, judges: [rules]}
"""


def inputs(folder: Path, *overrides: str, recipe: str = RECIPE) -> dict[str, tuple[str, ...]]:
    (folder / "recipe.yaml").write_text(recipe)
    return {step.name: step.inputs for step in plan.steps(load(folder / "recipe.yaml", overrides), "title")}


def test_a_train_step_reads_the_stages_that_it_asks_for_and_the_steps_that_it_needs(tmp_path: Path) -> None:
    found = inputs(tmp_path)
    assert found["train.dpo"] == ("label",)
    assert found["train.late"] == ("generate", "train.scorer")


def test_only_policies_answer_the_held_out_prompts(tmp_path: Path) -> None:
    assert inputs(tmp_path)["answers"] == ("train.dpo", "train.late")
    assert inputs(tmp_path, "compare.checkpoints=[base, late]")["answers"] == ("train.late",)


def test_the_report_tells_of_every_step(tmp_path: Path) -> None:
    before = ("doctor", "generate", "exam", "label", "doctor.labels")
    expected = (*before, "train.dpo", "train.scorer", "train.late", "answers", "measure", "compare")
    assert inputs(tmp_path)["report"] == expected


def test_the_doctors_look_before_anything_loads_and_before_anything_trains_and_nothing_is_redone_for_them(
    tmp_path: Path,
) -> None:
    found = inputs(tmp_path)
    order = list(found)
    assert order[0] == "doctor"
    assert order.index("label") < order.index("doctor.labels") < order.index("train.dpo")
    readers = {name for name, read in found.items() if {"doctor", "doctor.labels"} & set(read)}
    assert readers == {"report"}


def test_the_judge_is_examined_before_it_labels_and_on_gold_alone_without_the_policys_answers(tmp_path: Path) -> None:
    found = inputs(tmp_path)
    assert (found["exam"], found["label"]) == (("generate",), ("generate", "exam"))
    gold_alone = inputs(tmp_path, "exam.prompts=0", "exam.gold=gold.jsonl")
    assert (gold_alone["exam"], gold_alone["label"]) == ((), ("generate", "exam"))
    nothing = inputs(tmp_path, "exam.prompts=0")
    assert "exam" not in nothing
    assert nothing["label"] == ("generate",)


def test_what_needs_a_model_and_no_judge_is_measured_where_there_is_something_to_measure(tmp_path: Path) -> None:
    found = inputs(tmp_path)
    assert (found["measure"], found["compare"]) == (("answers", "train.scorer"), ("answers", "measure"))
    text = inputs(tmp_path, "compare.perplexity.files=text.jsonl")
    assert text["measure"] == ("answers", "train.dpo", "train.late", "train.scorer")
    alone = "".join(line for line in RECIPE.splitlines(True) if "scripted" not in line)
    assert "measure" not in inputs(tmp_path, recipe=alone)
    assert inputs(tmp_path, recipe=alone)["compare"] == ("answers",)
    read = inputs(tmp_path, "compare.perplexity.files=text.jsonl", recipe=alone)
    assert read["measure"] == ("answers", "train.dpo")


def test_a_later_rounds_checkpoints_are_scored_by_the_reward_models_of_that_round(tmp_path: Path) -> None:
    recipe = RECIPE.replace("  late: {name: scripted.learner}\n", "")
    found = inputs(tmp_path, "rounds=2", "carry=dpo", recipe=recipe)
    assert found["round2.measure"] == ("round2.answers", "round2.train.scorer")
    assert found["round2.compare"] == ("round2.answers", "round2.measure")


LLM = "{name: llm, model: m, base_url: 'http://localhost:1/v1', price: {input: 0, output: 0}}"


@pytest.mark.parametrize(
    ("labelling", "comparing", "how"),
    [
        ("likelihood", "likelihood", "labelled"),
        ("likelihood", "length", None),
        ("{name: length, prefer: shorter}", "length", None),
        ("{name: cascade, cheap: likelihood, dear: rules}", "likelihood", "labelled in part"),
        ("{name: cascade, cheap: likelihood, dear: rules}", "rules", "labelled in part"),
        ("{name: panel, of: [{judge: likelihood, weight: 1}, {judge: rules, weight: 1}]}", "rules", "labelled in part"),
        ("rules", "{name: panel, of: [{judge: likelihood, weight: 1}, {judge: rules, weight: 1}]}", "labelled in part"),
        (f"{{name: cascade, cheap: length, dear: {{name: both_orders, of: {LLM}}}}}",
         f"{{name: both_orders, of: {LLM}}}", "labelled in part"),
        (f"{{name: cascade, cheap: length, dear: {{name: both_orders, of: {LLM}}}}}",
         f"{{name: both_orders, of: {LLM.replace('model: m', 'model: another')}}}", None),
    ],
)  # fmt: skip
def test_a_comparing_judge_that_had_any_part_in_the_labels_is_known(
    tmp_path: Path, labelling: str, comparing: str, how: str | None
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    found = load(tmp_path / "recipe.yaml", [f"judge={labelling}", f"compare.judges=[{comparing}]"])
    assert had(found) == [how]


def test_whom_people_leave_the_rest_to_has_labelled_in_part() -> None:
    found = load(Path(__file__).parents[2] / "recipes" / "hybrid.yaml", ["judge.votes.files=votes.csv"])
    assert [judge.name for judge in found.compare.judges] == ["likelihood", "rules"]
    assert had(found) == ["labelled in part", None]


def test_a_judge_that_rewarded_a_policy_is_known_too_and_to_have_labelled_is_more(tmp_path: Path) -> None:
    rloo = "train.rloo={reward: {judge: length}}"
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for labelling, how in (("likelihood", "rewarded"), ("length", "labelled")):
        found = load(tmp_path / "recipe.yaml", [f"judge={labelling}", rloo, "compare.judges=[length, rules]"])
        assert had(found) == [how, None]


def had(recipe: Recipe) -> list[str | None]:
    """What the compare step of a recipe knows of each of its judges."""
    options = next(step.options for step in plan.steps(recipe, "title") if step.name == "compare")
    config = Comparing.model_validate(options["config"])
    return [_how(judge, config.labelled) for judge in config.judges]
