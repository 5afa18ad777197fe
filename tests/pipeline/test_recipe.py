"""A recipe is read strictly, says what it means, and tells all its mistakes at once, each by its key path."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, check_files, dump, load, schema
from pipeline.recipe_mistakes import explain
from pipeline.recipe_steps import policies

ROOT = Path(__file__).parents[2]

SMALL = """\
model: smollm2-135m-instruct
generate:
  prompts: {files: data/train.jsonl}
  sampler: local
judge: {name: length, prefer: shorter}
train:
  dpo: {beta: 0.1}
  dpo_hot: {name: dpo, beta: 0.5}
compare:
  prompts: {files: [data/heldout.jsonl]}
  judges: [rules]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def small(write: Write) -> Path:
    return write(SMALL)


def mistakes(path: Path, *overrides: str) -> list[str]:
    """The lines of the error under its heading, which counts them."""
    with pytest.raises(RecipeError) as raised:
        load(path, overrides)
    heading, *lines = str(raised.value).split("\n  ")
    assert heading == f"{path}: {len(lines)} mistake" + ("s" if len(lines) > 1 else "")
    return lines


def changed(small: Path, *overrides: str) -> dict[str, Any]:
    return load(small, overrides).model_dump(mode="json")


# What a recipe means


def test_a_plugin_is_named_by_its_name_alone_or_by_a_block(small: Path) -> None:
    recipe = changed(small)
    assert recipe["judge"] == {"name": "length", "prefer": "shorter"}
    assert recipe["compare"]["judges"][0]["name"] == "rules"


def test_a_step_is_its_algorithm_unless_it_says_otherwise(small: Path) -> None:
    steps = changed(small)["train"]
    assert list(steps) == ["dpo", "dpo_hot"]
    assert [(step["name"], step["beta"]) for step in steps.values()] == [("dpo", 0.1), ("dpo", 0.5)]


def test_a_step_without_options_is_its_algorithm_with_the_defaults(small: Path) -> None:
    assert changed(small, "train.kto={}")["train"]["kto"]["name"] == "kto"


def test_a_single_prompt_file_needs_no_list(small: Path) -> None:
    assert load(small).generate.prompts.files == (Path("data/train.jsonl"),)


def test_a_recipe_cannot_be_changed(small: Path) -> None:
    with pytest.raises(ValidationError):
        load(small).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_that_is_shipped_loads_and_survives_being_written(
    path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load(path)
    check_files(recipe)
    assert load(write(dump(recipe))) == recipe


# Overrides


@pytest.mark.parametrize(
    ("overrides", "path", "expected"),
    [
        (["seed=7"], "seed", 7),
        (["train.dpo.beta=1e-2"], "train.dpo.beta", 0.01),
        (["judge=rules"], "judge.name", "rules"),
        (["judge=length"], "judge.prefer", "shorter"),
        (["judge.name=length"], "judge.prefer", "shorter"),
        (["judge=rules", "judge=length"], "judge.prefer", "longer"),
        (["judge.name=rules", "judge.name=length"], "judge.prefer", "longer"),
        (["judge.name=both_orders", "judge.of=length"], "judge.of.prefer", "longer"),
        (["judge={name: both_orders, of: length}", "judge.of.prefer=shorter"], "judge.of.prefer", "shorter"),
        (["compare.judges=[length, rules]", "compare.judges.0.prefer=shorter"], "compare.judges.0.prefer", "shorter"),
        (["compare.judges=[length, rules]", "compare.judges.0.name=rules"], "compare.judges.0.name", "rules"),
        (["model=other", "model.quantization=none"], "model.base", "other"),
        (["model.quantization=none"], "model.base", "smollm2-135m-instruct"),
        (["generate.prompts.files=[a.jsonl, b.jsonl]", "generate.prompts.files.1=c.jsonl"],
         "generate.prompts.files", ["a.jsonl", "c.jsonl"]),
        (["label.max_abstained=0.5", "label=null"], "label.max_abstained", 0.2),
        (["compare.sampler=local", "compare.sampler=null"], "compare.sampler", None),
    ],
)  # fmt: skip
def test_an_override_is_one_more_recipe_of_one_line(
    small: Path, overrides: list[str], path: str, expected: object
) -> None:
    value: Any = changed(small, *overrides)
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    assert value == expected


def test_null_takes_a_step_out(small: Path) -> None:
    assert list(changed(small, "train.dpo_hot=null")["train"]) == ["dpo"]


def test_null_over_a_block_that_is_needed_says_who_needs_it(small: Path) -> None:
    needs = "learns from labels, and nothing makes them; add generate and judge, or annotations"
    assert mistakes(small, "generate=null") == [
        "judge: there is no generate block, whose answers it could label; add one",
        f"train.dpo: {needs}",
        f"train.dpo_hot: {needs}",
        "compare.sampler: missing; there is no generate.sampler to take",
    ]


# supervised fine-tuning, and steps that start from others

SUPERVISED = """\
model: {base: smollm2-135m-instruct, quantization: none}
train:
  sft: {data: {train: data/shown.jsonl}}
compare:
  prompts: {files: [data/heldout.jsonl]}
  sampler: local
  judges: [rules]
"""


def test_steps_that_bring_data_of_their_own_need_no_answers_and_no_judge(write: Write) -> None:
    recipe = load(write(SUPERVISED))
    assert recipe.generate is recipe.judge is recipe.annotations is None
    with pytest.raises(RecipeError, match=r"train\.sft\.data\.train: there is no file .*shown\.jsonl"):
        check_files(recipe)


def test_one_that_goes_on_with_an_adapter_has_its_shape_unless_it_says_so(small: Path) -> None:
    more = ["train.first={name: sft, lora: {r: 4, lora_dropout: 0.1}}", "train.next={name: dpo, start_from: first}"]
    found = load(small, more).train["next"]
    assert (found.lora.r, found.lora.lora_dropout) == (4, 0.0), "dropout is each step's own"
    assert dump(load(small, more)).count("r: 4") == 2, "the recipe says so where it is written out"
    changed = load(small, [*more, "train.last={name: kto, start_from: next}", "train.first.lora.r=8"]).train
    assert [changed[name].lora.r for name in ("first", "next", "last")] == [8, 8, 8], "whichever way it came to it"
    assert mistakes(small, *more, "train.next.lora.r=8") == [
        "train.next.lora.r: 8 found, and the adapter of 'first', which it goes on with, has 4; make them the same"
    ]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.sft.tune=full", "model.quantization=nf4"],
         "train.sft.tune: trains weights themselves, which cannot be quantised; set model.quantization to none (it is "
         "nf4), or tune to lora"),
        (["train.sft.tune=layers"], "train.sft: layers: name those that tune: layers trains"),
        (["train.sft.layers=[lm_head]"], "train.sft: layers is read with tune: layers alone, and tune is lora"),
        (["train.sft.reinit_head=true"], "train.sft: reinit_head is read with tune: lm_head alone"),
        (["train.more={name: sft, data: {train: x.jsonl}, tune: full, start_from: sft}"],
         "train.more.start_from: 'sft' has trained an adapter, which is not gone on with by training the base"),
        (["train.sft.tune=full", "train.rl={name: ppo, reward: {judge: {name: length}}, start_from: sft}"],
         "train.rl.start_from: 'sft' has trained weights of the base itself, and ppo goes on with an adapter alone"),
        (["train.sft.tune=full", "train.rl={name: rloo, reward: {judge: {name: length}}, start_from: sft}"],
         "train.rl.start_from: 'sft' has trained weights of the base itself, and rloo goes on with an adapter alone"),
        (["train.sft.packing=true", "train.sft.group_by_length=true"], "train.sft: group_by_length: packed rows"),
        (["train.sft.eval_steps=5"], "train.sft: eval_steps: there is nothing to measure on; name data.test"),
        (["train.rl={name: ppo, lora: {use_dora: true}}"], "train.rl: lora.use_dora: PPO computes its adapters"),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_or_started_from_is_refused_before_a_model_loads(
    write: Write, overrides: list[str], told: str
) -> None:
    found = mistakes(write(SUPERVISED), *overrides)
    assert any(line.startswith(told) for line in found), found


def test_weights_under_an_adapter_are_found_through_the_steps_between(write: Write) -> None:
    between = [
        "train.sft.tune=full",
        "train.more={name: sft, data: {train: x.jsonl}, start_from: sft}",
        "train.rl={name: ppo, reward: {judge: {name: length}}, start_from: more}",
    ]
    assert any(
        line.startswith("train.rl.start_from: 'more' has trained weights")
        for line in mistakes(write(SUPERVISED), *between)
    )


def test_overrides_that_cannot_be_read_are_told_with_the_other_mistakes(small: Path) -> None:
    assert mistakes(small, "seed", "=3", "a..b=1", "seed=[", "compare.judges.1=length", "sed=1") == [
        "'seed' is no override; those are key.path=value",
        "'=3' is no override; those are key.path=value",
        "'a..b=1' is no override; those are key.path=value",
        "seed=[: while parsing a flow node, expected the node content, but found '<stream end>'",
        "compare.judges.1=length: '1' is no item of a list that has 1, counted from 0",
        "sed: no such option; did you mean 'seed'?",
    ]


def test_an_empty_override_is_refused_and_does_not_take_the_budget_away(small: Path) -> None:
    empty = "the value is empty; write null if that is meant"
    assert mistakes(small, "budget_usd=3", "budget_usd=", "seed= ") == [
        f"'{each}': {empty}" for each in ("budget_usd=", "seed= ")
    ]
    assert changed(small, "budget_usd=3", "budget_usd=null")["budget_usd"] is None


# extends


def test_a_recipe_says_only_what_differs_from_the_one_it_extends(write: Write) -> None:
    write(SMALL, "base.yaml")
    child = write("extends: ../base.yaml\nseed: 5\ntrain: {dpo: {beta: 0.3}}\n", "mine/child.yaml")
    expected = load(child.parent / "../base.yaml", ["seed=5", "train.dpo.beta=0.3"])
    assert load(child) == expected


def test_of_several_bases_the_later_wins(write: Write) -> None:
    write(SMALL + "seed: 1\n", "one.yaml")
    write("seed: 2\nlabel: {min_confidence: 0.6}\n", "two.yaml")
    recipe = load(write("extends: [one.yaml, two.yaml]\nlabel: {max_abstained: 0}\n"))
    assert (recipe.seed, recipe.label.min_confidence, recipe.label.max_abstained) == (2, 0.6, 0)


def test_another_name_in_the_child_replaces_the_block(write: Write) -> None:
    write(SMALL, "base.yaml")
    recipe = load(write("extends: base.yaml\njudge: {name: both_orders, of: length}\ntrain: {dpo: {name: kto}}\n"))
    assert recipe.judge.model_dump() == {"name": "both_orders", "of": {"name": "length", "prefer": "longer"}}
    assert recipe.train["dpo"].name == "kto"


@pytest.mark.parametrize(
    ("override", "reward"),
    [
        ("train.rloo.reward=other", {"step": "other", "min_accuracy": 0.6}),
        ("train.rloo.reward=scripted.reward:letters", {"function": "scripted.reward:letters", "min_accuracy": 0.6}),
        ("train.rloo.reward.judge=likelihood", {"judge": "likelihood", "min_accuracy": 0.6}),
        ("train.rloo.reward.min_accuracy=0.7", {"step": "scorer", "min_accuracy": 0.7}),
        ("train.rloo.reward=null", {"step": "reward_model", "min_accuracy": 0.5}),
    ],
)
def test_another_of_several_alternatives_takes_the_first_back(
    small: Path, write: Write, override: str, reward: dict[str, Any]
) -> None:
    write(
        """\
        extends: recipe.yaml
        train:
          scorer: scripted.scorer
          other: scripted.scorer
          reward_model: scripted.scorer
          rloo: {reward: {step: scorer, min_accuracy: 0.6}}
        """,
        "child.yaml",
    )
    found = changed(small.parent / "child.yaml", override)["train"]["rloo"]["reward"]
    judge = found.pop("judge")
    given = {name: value for name, value in {**found, "judge": judge and judge["name"]}.items() if value is not None}
    assert given == reward


def test_a_list_in_the_child_replaces_the_list(write: Write) -> None:
    write(SMALL, "base.yaml")
    recipe = load(write("extends: base.yaml\ncompare: {judges: [length]}\n"))
    assert [judge.name for judge in recipe.compare.judges] == ["length"]


def test_a_block_that_the_base_has_in_short_form_keeps_its_name_under_a_key_of_the_child(write: Write) -> None:
    write(SMALL.replace("judge: {name: length, prefer: shorter}", "judge: length"), "base.yaml")
    recipe = load(write("extends: base.yaml\njudge: {prefer: shorter}\nmodel: {dtype: fp32}\n"))
    assert recipe.judge.model_dump() == {"name": "length", "prefer": "shorter"}
    assert (recipe.model.base, recipe.model.dtype) == ("smollm2-135m-instruct", "fp32")


def test_extends_in_a_circle_is_refused_naming_the_chain(write: Write) -> None:
    write("extends: b.yaml\n", "a.yaml")
    b = write("extends: a.yaml\n", "b.yaml")
    [line] = mistakes(b)
    assert line.startswith("extends goes in a circle:")
    assert [Path(name).name for name in line.split(": ")[1].split(" -> ")] == ["b.yaml", "a.yaml", "b.yaml"]


def test_a_base_that_is_not_there_is_named_with_the_nearest_that_is(write: Write) -> None:
    base = write(SMALL, "base.yaml")
    recipe = write("extends: bse.yaml\n", "child.yaml")
    assert mistakes(recipe) == [f"{base.parent / 'bse.yaml'}: there is no such file; did you mean 'base.yaml'?"]


# Mistakes


def test_all_mistakes_are_told_at_once_with_what_was_probably_meant(small: Path) -> None:
    assert mistakes(small, "train.dpo.betta=1", "judge.nme=x") == [
        "judge.nme: no such option; did you mean 'name'?",
        "train.dpo.betta: no such option; did you mean 'beta'?",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("generate.candidates=1", "generate.candidates: 1 found; needs to be 2 or more"),
        ("generate.candidates=2.5", "generate.candidates: 2.5 found; needs to be a whole number"),
        ("generate.candidates='4'", "generate.candidates: '4' found; needs to be a whole number"),
        ("seed=true", "seed: true found; needs to be a whole number"),
        ("seed=012", "seed: '012' found; needs to be a whole number"),
        ("seed=1:30", "seed: '1:30' found; needs to be a whole number"),
        ("label.min_confidence=.inf", "label.min_confidence: '.inf' found; needs to be a number"),
        ("label.min_confidence=1", "label.min_confidence: 1 found; needs to be less than 1"),
        ("label.max_abstained=1e999", "label.max_abstained: inf found; needs to be a finite number"),
        ("model.trust_remote_code=yes", "model.trust_remote_code: 'yes' found; needs to be true or false"),
        ("model.trust_remote_code=1", "model.trust_remote_code: 1 found; needs to be true or false"),
        ("model.base=7", "model.base: 7 found; needs to be text (in quotes, if it looks like something else)"),
        ("generate.pairing=best", "generate.pairing: 'best' found; needs to be 'best_worst', 'random' or 'all'"),
        ("generate.prompts=3", "generate.prompts: 3 found; needs to be a block of options"),
        ("generate.prompts.files=3", "generate.prompts.files: 3 found; needs to be a list"),
        ("generate.prompts.files=[a, 3]", "generate.prompts.files.1: 3 found; needs to be a path"),
        ("train.dpo.lora.target_modules=3",
         "train.dpo.lora.target_modules: 3 found; needs to be text (in quotes, if it looks like something else) or a "),
        ("train=3", "train: 3 found; needs to be a block of options"),
        ("train.Dpo=dpo", "train.Dpo: a step's name needs to be lower-case letters, digits and _, a letter first"),
        ("train.base=dpo", "train.base: 'base' is the policy before training; call the step something else"),
        ("train.ddpo={}", "train.ddpo: no algorithm is called 'ddpo'; did you mean 'dpo'? There are: "),
        ("judge=lenth", "judge: no judge is called 'lenth'; did you mean 'length'? There are: "),
        ("judge=../length", "judge: no judge is called '../length'; did you mean 'length'? There are: "),
        ("judge=null", "judge: missing; one of: "),
        ("compare.judges=[{nme: length}]", "compare.judges.0: needs a name, one of "),
        ("judge={name: both_orders, of: {name: length, prefr: longer}}",
         "judge.of.prefr: no such option; did you mean 'prefer'?"),
        ("judge=judges.length", "judge.name: 'judges.length' found; needs to be 'length'"),
        ("compare.judges=[]", "compare.judges: [] found; needs to be 1 or more of them"),
        ("compare.judges=[length, lenth]", "compare.judges.1: no judge is called 'lenth'; did you mean 'length'?"),
        ("compare.checkpoints=[base, dpoo]",
         "compare.checkpoints.1: no step is called 'dpoo'; did you mean 'dpo'?"),
        ("compare.checkpoints=[dpo, base, dpo]", "compare.checkpoints.2: 'dpo' is there twice"),
        ("compare.checkpoints=[dpo]", "compare.checkpoints: ['dpo'] found; needs to be 2 or more of them"),
        ("compare.prompts.files=[x.jsonl, data/../data/train.jsonl]",
         "compare.prompts.files.1: 'data/../data/train.jsonl' is in generate.prompts too; "),
        ("compare.perplexity=[x.jsonl]", "compare.perplexity: ['x.jsonl'] found; needs to be a block of options"),
        ("train.late={name: scripted.learner, teacher: later}",
         "train.late.teacher: no earlier step is called 'later'; put a step that makes a reward before 'late'"),
        ("train.late={name: scripted.learner, teacher: dpo}",
         "train.late.teacher: 'dpo' makes a policy, and a reward is needed; put a step that makes a "),
        ("train.late={name: scripted.learner, teacher: late}",
         "train.late.teacher: 'late' does not come before 'late'; put it first under train"),
        ("train={one: scripted.scorer, late: {name: scripted.learner, teacher: ona}}",
         "train.late.teacher: no earlier step is called 'ona'; did you mean 'one'?"),
        ("train={late: {name: scripted.learner, teacher: one}, one: scripted.scorer}",
         "train.late.teacher: 'one' does not come before 'late'; put it first under train"),
        ("train={dpo: null, dpo_hot: null, one: scripted.scorer}",
         "compare.checkpoints: no step makes a policy; add one that does, such as dpo, under train"),
        ("train.rloo={reward: scripted.reward:nothing}",
         "train.rloo.reward: function: scripted.reward has no function 'nothing'"),
        ("train.rloo={reward: rm}",
         "train.rloo.reward: no earlier step is called 'rm'; put a step that makes a reward before 'rloo'"),
        ("train.rloo={reward: {judge: length}, save_steps: 3, num_iterations: 2}",
         "train.rloo: save_steps=3 is no multiple of the 2 updates on each batch of answers, so a run that "),
        ("extend=base.yaml", "extend: no such option; did you mean 'extends'?"),
        ("colour=blue", "colour: no such option; there are: seed, model, annotations, generate, judge, exam, label, "),
        ("_target_=os.system", "_target_: no such option; there are: "),
    ],
)  # fmt: skip
def test_a_mistake_says_where_what_and_what_is_allowed(small: Path, override: str, line: str) -> None:
    [told] = mistakes(small, override)
    assert told.startswith(line)


def test_a_step_that_makes_no_policy_is_not_compared(small: Path) -> None:
    recipe = load(small, ["train.scorer=scripted.scorer"])
    assert policies(recipe.train) == ["dpo", "dpo_hot"]
    assert mistakes(small, "train.scorer=scripted.scorer", "compare.checkpoints=[base, scorer]") == [
        "compare.checkpoints.1: 'scorer' makes no policy; those that do: base, dpo, dpo_hot"
    ]


def test_text_for_perplexity_is_none_that_a_step_learns_though_it_may_be_what_one_is_tested_on(small: Path) -> None:
    sft = "train.sft={data: {train: [x.jsonl, a/b.jsonl], test: t.jsonl}}"
    assert load(small, [sft, "compare.perplexity.files=t.jsonl"]).compare.perplexity is not None
    assert mistakes(small, sft, "compare.perplexity.files=[t.jsonl, a/../a/b.jsonl]") == [
        "compare.perplexity.files.1: 'a/../a/b.jsonl' is what train.sft learns; name text that none did"
    ]


def test_an_option_that_is_needed_is_missed_by_its_full_path(write: Write) -> None:
    assert mistakes(write("judge: length\ngenerate: {sampler: local}\ntrain: {}\n")) == [
        "model: missing; it has no default",
        "generate.prompts: missing; it has no default",
        "compare: missing; it has no default",
    ]


def test_a_judge_whose_package_is_missing_is_not_called_unknown(
    small: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    needy = write("import nobody_has_this\n", "mylab/needy.py")
    monkeypatch.syspath_prepend(needy.parents[1])
    [line] = mistakes(small, "judge=mylab.needy")
    assert line == "judge: judge 'mylab.needy' needs the package 'nobody_has_this': pip install nobody_has_this"


def test_explain_reads_pydantics_error_of_a_recipe_made_in_python() -> None:
    with pytest.raises(ValidationError) as raised:
        Recipe.model_validate({"seed": -1})
    assert explain(raised.value, Recipe)[0] == "seed: -1 found; needs to be 0 or more"


def test_prompt_files_that_are_missing_are_told_together(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        check_files(load(small))
    assert str(raised.value).split("\n  ") == [
        "2 mistakes",
        f"generate.prompts.files: there is no file {tmp_path}/data/train.jsonl",
        f"compare.prompts.files: there is no file {tmp_path}/data/heldout.jsonl",
    ]


def test_prompt_files_that_are_there_are_fine(small: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("", "data/train.jsonl").parents[1])
    write("", "data/heldout.jsonl")
    check_files(load(small))


# YAML


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\njudge: length\nseed: 2\n", ":3: the key 'seed' is there twice, first on line 1"),
        ("generate:\n  sampler: {name: a, name: b}\n", ":2: the key 'name' is there twice, first on line 2"),
        ("seed: 1\n1: 2\n", ":2: a key needs to be text"),
        ("seed: &one 1\nlabel: *one\n", ":2: the alias *one is not read"),
        ("seed: !!python/object/apply:os.getpid []\n", ":1: the tag tag:yaml.org,2002:python/object/apply:os.getpid"),
        ("seed: !mine 1\n", ":1: the tag !mine is not read"),
        ("seed: 1\n\tlabel: 2\n", ":2: "),
        ("seed: [1\n", ":2: while parsing a flow sequence, expected ',' or ']'"),
        ("seed: 1\n---\nseed: 2\n", ":2: expected a single document"),
        ("seed: " + "[" * 100, ":1: more than 30 levels deep"),
        ("seed: \x00", ": unacceptable character #x0000"),
        ("", ": needs to be a block of options"),
        ("- seed\n", ": needs to be a block of options"),
        ("extends: {a: b}\n", ": extends: {'a': 'b'} found; needs to be a file or a list of files"),
        ('extends: "a\\0b"\n', ": extends: ['a\\x00b'] found; needs to be a file or a list of files"),
        ("#" * 1_000_001, ": is larger than 1,000,000 bytes"),
    ],
)
def test_what_is_no_recipe_is_refused_by_file_and_line(write: Write, text: str, line: str) -> None:
    path = write("")
    path.write_text(text)
    [told] = mistakes(path)
    assert told.startswith(f"{path}{line}")


def test_a_recipe_that_is_not_utf_8_or_not_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"seed: \xff")
    assert "cannot be read as UTF-8" in mistakes(path)[0]
    assert mistakes(tmp_path) == [f"{tmp_path}: there is no such file"]
    assert mistakes(tmp_path / ("x" * 300)) == [f"{tmp_path / ('x' * 300)}: there is no such file"]


def test_aliases_that_stand_for_a_billion_values_are_refused_at_once(write: Write) -> None:
    laughs = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "the alias *a is not read" in mistakes(write("\n".join(laughs)))[0]


def test_nothing_is_read_from_the_environment(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "value of the variable")
    for text in ("${SECRET}", "${oc.env:SECRET}", "$SECRET", "{{ SECRET }}", "~"):
        assert load(small, [f"model.base='{text}'"]).model.base == text


# Properties

yaml_like = st.text("ab01:,-+#&*!|>'\"%@`{}[]?.~= \n\r\t\0\x85\u2028\ufeffé", max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | yaml_like
scalars = st.sampled_from(
    ["1e-5", "no", "012", "1:30", "null", "0x10", "2020-01-01", "<<", "=", "~", "", "1_000", ".5"]
)
keys = st.sampled_from(["seed", "judge", "train", "dpo", "compare", "judges", "0", "name", "of", "model", "prompts"])
overrides = st.builds("{}={}".format, st.lists(keys, max_size=4).map(".".join), yaml_like)


@settings(max_examples=80, deadline=None)
@given(text=texts | scalars, other=texts | scalars, beta=st.floats(1e-300, 1e300), seed=st.integers(0, 2**63 - 1))
def test_a_recipe_that_was_written_is_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str, other: str, beta: float, seed: int
) -> None:
    tree = yaml.safe_load(SMALL)
    tree |= {"seed": seed, "model": {"base": text, "revision": other}, "train": {"dpo": {"beta": beta}}}
    tree["compare"]["prompts"]["files"] = [text.replace("\0", ""), other.replace("\0", "")]
    recipe = Recipe.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(path) == recipe
    assert dump(load(path)) == dump(recipe)


@settings(max_examples=80, deadline=None)
@given(text=yaml_like, lines=st.lists(overrides, max_size=3), extended=st.booleans())
def test_whatever_is_typed_gives_a_recipe_or_a_list_of_its_mistakes(
    tmp_path_factory: pytest.TempPathFactory, text: str, lines: list[str], extended: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "typed.yaml"
    path.write_text((SMALL if extended else "") + text, encoding="utf-8")
    try:
        recipe = load(path, lines)
    except RecipeError as error:
        heading, *told = str(error).split("\n  ")
        assert heading.startswith(f"{path}: {len(told)} mistake")
    else:
        assert isinstance(recipe, Recipe)


# schema, and what reading a recipe costs


def test_the_schema_offers_every_plugin_and_explains_every_option() -> None:
    document = schema()
    assert document["$defs"]["judge"]["anyOf"][0]["enum"] == sorted(document["$defs"]["judge"]["anyOf"][0]["enum"])
    assert {"both_orders", "length", "rules"} <= set(document["$defs"]["judge"]["anyOf"][0]["enum"])
    assert document["$defs"]["Recipe"]["properties"]["judge"]["anyOf"][0]["$ref"] == "#/$defs/judge"
    undescribed = [
        f"{name}.{key}"
        for name, block in document["$defs"].items()
        for key, option in block.get("properties", {}).items()
        if "description" not in option and key != "name"
    ]
    assert not undescribed, "a docstring under the field is its documentation"
    for reference in _references(document):
        assert reference.removeprefix("#/$defs/") in document["$defs"]


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        here = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return here + [reference for each in part.values() for reference in _references(each)]
    return [reference for each in part for reference in _references(each)] if isinstance(part, list) else []


def test_reading_a_recipe_and_offering_every_plugin_imports_no_torch(small: Path) -> None:
    code = "import sys; from pipeline.recipe import *; load(sys.argv[1]); schema(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(small)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "trl", "numpy", "datasets", "openai", "matplotlib"}
    assert not heavy & set(done.stdout.split())


def test_a_judge_that_may_prefer_a_place_is_refused_until_it_is_asked_in_both_orders(small: Path) -> None:
    found = mistakes(small, "judge=local_llm", "compare.judges=[rules, local_llm]")
    assert [line.split(":")[0] for line in found] == ["judge", "compare.judges.1"]
    assert all("local_llm sees two answers in an order" in line and "both_orders" in line for line in found)
    assert load(small, ["judge={name: both_orders, of: local_llm}"]).judge.order_free
