"""A sweep does what its variants share once, tells apart what they do not, and compares all of it in one report."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from scripted_run import RECIPE, here, prepare
from tiny import make_adapter

from pipeline import plan, store, sweep
from pipeline import run as engine
from pipeline.cli import main
from pipeline.errors import DataError, RecipeError
from pipeline.launch import Process
from pipeline.ratings import Results
from pipeline.recipe import dump, load

STROLLING = RECIPE.replace("compare:", "  stroll: {name: scripted.walker, steps: 9}\ncompare:")
"""The recipe with a policy that stands on no other."""


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where recipe and prompts are, and where the process is."""
    prepare(tmp_path, monkeypatch, STROLLING)
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps run in this process, which need not import everything again for each; their names as they finish."""
    names: list[str] = []

    def told(step: str, phase: str, processes: Sequence[Process], lock: int) -> int:
        peak = here(step, phase, processes, lock)
        if phase == "finish":
            names.append(step)
        return peak

    monkeypatch.setattr(engine, "run_workers", told)
    return names


def names_of(*words: str) -> list[str]:
    return [step.name for step in sweep.graph(sweep.load(Path("recipe.yaml"), words).variants).steps]


# ---- words


def test_commas_outside_brackets_and_quotes_are_between_values() -> None:
    fixed, swept = sweep.read_words(
        ["seed=2", "a.b=0.03, 0.1,0.3", "c=[1, 2],[3]", "d={name: x, of: [1, 2]},y", "e='a, b'", "f=it's,fine"]
    )
    assert fixed == ["seed=2", "e='a, b'"]
    assert swept == {
        "a.b": ["0.03", "0.1", "0.3"],
        "c": ["[1, 2]", "[3]"],
        "d": ["{name: x, of: [1, 2]}", "y"],
        "f": ["it's", "fine"],
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is swept; give a key several values"),
        (["walk"], "'walk' is neither key.path=value nor key.path=value,value"),
        (["train.walk.steps=1,"], "a value is empty"),
        (["train.walk.steps=1,2", "train.walk.steps=3,4"], "train.walk.steps: is swept twice"),
        (["train.walk.stebs=1,2"], "train.walk.stebs: no such option; did you mean 'steps'?"),
        (["train.walk.steps=1,many"], "train.walk.steps: 'many' found; needs to be a whole number"),
        (["train.walk.steps=1,1"], "train.walk.steps=1 and train.walk.steps=1 are the same experiment"),
        (["train.walk.steps=1,+1"], "train.walk.steps=1 and train.walk.steps=+1 are the same experiment"),
        (["label.processes=1,2"], "it only changes how the work is done"),
        (["model.base=a,b"], "model.base: cannot be swept: one base is in memory"),
        (["compare.samples=1,2"], "compare.samples: cannot be swept: all variants are compared alike"),
        (["train.walk.steps=1,2", "rounds=2", "carry=walk"], "rounds: 2 found; a sweep has one round"),
        (["generate.sampler.grows=true,false"], "generate.sampler: is swept, and held-out answers are drawn as in"),
        (["train.walk.steps=1,2,3,4,5", "seed=1,2,3,4"],
         "4 values are 20 variants, and 190 comparisons by each judge; say --most 20"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_what_does(top: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        sweep.load(Path("recipe.yaml"), words)
    assert message in str(raised.value)


def test_a_directory_of_a_run_is_left_to_it(top: Path) -> None:
    store.make_dirs(top / "runs" / "test")
    (top / "runs" / "test" / "recipe.yaml").write_text("")
    with pytest.raises(DataError, match="is a run; give the sweep a directory of its own"):
        sweep.open_sweep(sweep.load(Path("recipe.yaml"), ["train.walk.steps=1,2"]), Path("runs/test"))


# ---- names


def test_names_are_as_short_as_they_are_told_apart_by_and_go_into_a_file_name() -> None:
    values = {"train.dpo.beta": "0.03", "train.kto.beta": "1e-2", "judge": "{name: length, prefer: shorter}", "a": "/"}
    assert sweep.label(values, ["train.dpo.beta"]) == "beta=0.03"
    assert sweep.label(values, ["train.dpo.beta", "train.kto.beta"]) == "dpo.beta=0.03,kto.beta=1e-2"
    long = sweep.label(values, ["judge"])
    assert long.startswith("judge=name_length_prefe~")
    assert len(long) <= len("judge=") + sweep.LONGEST_VALUE
    assert "/" not in sweep.label(values, ["a"])
    many = {f"key{number}": "some_value" for number in range(20)}
    assert len(sweep.label(many, list(many))) == sweep.LONGEST


# ---- the graph


def test_a_step_that_the_key_leaves_as_it_is_comes_once_and_one_that_follows_from_it_once_for_each_value(
    top: Path,
) -> None:
    shared = ["generate", "label", "train.score", "train.stroll"]
    apart = ["doctor", "doctor.labels", "train.walk", "train.run"]
    assert sorted(names_of("train.walk.steps=1,2")) == sorted(
        [*shared, *(f"{step}[steps={value}]" for step in apart for value in (1, 2))]
    )


def test_of_two_keys_a_step_has_those_it_depends_on_alone(top: Path) -> None:
    trained = [name for name in names_of("train.walk.steps=1,2", "train.stroll.steps=8,9") if "train" in name]
    assert sorted(trained) == [
        "train.run[steps=1]", "train.run[steps=2]", "train.score",
        "train.stroll[steps=8]", "train.stroll[steps=9]", "train.walk[steps=1]", "train.walk[steps=2]",
    ]  # fmt: skip


def test_values_that_differ_in_what_no_file_name_can_have_are_two_variants(top: Path) -> None:
    words = ('generate.prompts.system="Be brief!","Be brief?"', "judge=length")
    generated = [name for name in names_of(*words) if name.startswith("generate")]
    assert len(generated) == 2 and generated[0] == "generate[system=Be_brief]"
    assert generated[1].startswith("generate[system=Be_brief") and generated[1].endswith("]")


def test_another_judge_labels_and_trains_anew_on_the_same_answers_and_comes_before_any_training(top: Path) -> None:
    names = names_of("judge=length,rules")
    assert "generate" in names
    assert {"label[judge=length]", "label[judge=rules]", "train.stroll[judge=rules]"} < set(names)
    first = next(place for place, name in enumerate(names) if name.startswith("train."))
    assert all("train." in name for name in names[first:])


def test_a_single_value_is_a_sweep_of_one_in_which_steps_are_called_as_in_a_run(top: Path) -> None:
    alone = [step.name for step in plan.steps(load("recipe.yaml", ["train.walk.steps=2"]), "")]
    assert set(names_of("train.walk.steps=2")) == set(alone) - {"answers", "measure", "compare", "report"}


# ---- doing it


def test_shared_steps_run_once_and_every_policy_is_compared_with_every_other(
    top: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "recipe.yaml", "train.walk.steps=1,2"]
    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "2 variants: 12 steps before the comparison, 4 of them shared by all, where runs apart would take 16" in told
    lines = {line.split()[0]: line.split()[1:4] for line in told.splitlines() if "would run" in line}
    assert lines["train.stroll"][0] == "all"
    assert lines["train.walk[steps=2]"] == ["1", "of", "2"]
    assert not ran
    assert not (top / "runs").exists()

    assert main(command) == 0
    assert set(Counter(ran).values()) == {1}
    directory = top / "runs" / "sweep-recipe-steps"
    results = Results.model_validate_json((directory / "results.json").read_text())
    # `run` goes on from `walk`, so it is another for each value too; `length` prefers who walked further.
    order = ["base", "walk[steps=1]", "walk[steps=2]", "run[steps=1]", "run[steps=2]", "stroll"]
    assert [each.name for each in results.checkpoints] == order
    for place, one in enumerate(order):
        for other in order[:place]:
            assert results.between(one, other)[0].win_rate == 1.0, (one, other)
    walked = {
        path.parents[1].name: json.loads((path).read_text())["words"]
        for path in directory.glob("steps/train.*/*/walked.json")
    }
    assert walked == {
        "train.walk[steps=1]": 1, "train.walk[steps=2]": 2, "train.run[steps=1]": 4, "train.run[steps=2]": 5,
        "train.stroll": 9,
    }  # fmt: skip
    assert "# swept: train.walk.steps=1,2" in (directory / "report.html").read_text()

    ran.clear()
    capsys.readouterr()
    assert main(command) == 0
    assert main(["status", str(directory)]) == 0
    assert "would run" not in capsys.readouterr().out
    # One value more: only what it changes, and what tells of all.
    assert main(["sweep", "recipe.yaml", "train.walk.steps=1,2,3"]) == 0
    apart = {f"{step}[steps=3]" for step in ("doctor", "doctor.labels", "train.walk", "train.run")}
    assert set(ran) == {*apart, "answers", "measure", "compare", "report"}


def test_when_the_judge_is_swept_the_same_judges_compare_and_the_report_says_who_labelled(
    top: Path, ran: list[str]
) -> None:
    assert main(["sweep", "recipe.yaml", "judge=length,{name: length, prefer: shorter}", "--run", "runs/judged"]) == 0
    assert Counter(ran)["generate"] == 1
    results = Results.model_validate_json((top / "runs" / "judged" / "results.json").read_text())
    assert [judge.name for judge in results.judges] == ["length", "rules"]
    assert [judge.labelled for judge in results.judges] == [True, False]
    assert results.labelling_judge == "length 1 and length 2"
    assert len(results.checkpoints) == 1 + 2 * 3


def test_a_sweep_that_stopped_in_the_middle_goes_on_from_there(
    top: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = engine.run_workers

    def stops(step: str, phase: str, processes: Sequence[Process], lock: int) -> int:
        if step == "train.run[steps=1]":
            raise KeyboardInterrupt
        return goes_on(step, phase, processes, lock)

    monkeypatch.setattr(engine, "run_workers", stops)
    with pytest.raises(KeyboardInterrupt):
        main(["sweep", "recipe.yaml", "train.walk.steps=1,2"])
    assert "train.walk[steps=1]" in ran
    monkeypatch.setattr(engine, "run_workers", goes_on)
    assert main(["sweep", "recipe.yaml", "train.walk.steps=1,2"]) == 0
    assert set(Counter(ran).values()) == {1}


# ---- exporting what was chosen


def export(directory: Path, to: Path, *policies: str) -> int:
    return main(["export", str(directory), *policies, "--to", str(to)])


def test_of_a_sweep_the_policies_of_one_variant_are_exported_as_its_report_calls_them(
    top: Path, ran: list[str], tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "recipe.yaml", f"model.base={tiny_folder}", "train.walk.steps=1,2"]) == 0
    directory, out = top / "runs" / "sweep-recipe-steps", top / "out"
    adapters = {}
    for number, made in enumerate(sorted(path.parent for path in directory.glob("steps/train.*/*/walked.json"))):
        make_adapter(tiny_folder, made, seed=number)
        adapters[made.parent.name] = (made / "adapter_model.safetensors").read_bytes()
    capsys.readouterr()

    assert export(directory, out, "walk[steps=2]", "run[steps=2]", "stroll") == 0
    served = f"vllm serve {tiny_folder} --enable-lora --max-lora-rank 8 --max-loras 3 --lora-modules"
    assert f"{served} walk=walk run=run stroll=stroll" in capsys.readouterr().out
    for name, step in (("walk", "walk[steps=2]"), ("run", "run[steps=2]"), ("stroll", "stroll")):
        assert (out / name / "adapter_model.safetensors").read_bytes() == adapters[f"train.{step}"]
    card = (out / "README.md").read_text()
    assert "- walk (in the sweep walk[steps=2]): scripted.walker on 6 examples, 2 updates" in card
    assert "- stroll: scripted.walker on 6 examples, 9 updates" in card
    # The judge prefers whoever walked further, and the base stands still.
    rows = [line.split("|")[1:4] for line in card.partition("## Comparison")[2].splitlines() if "| length |" in line]
    assert rows == [[f" {name} ", " length ", " 100.0 % "] for name in ("walk[steps=2]", "run[steps=2]", "stroll")]
    recipe = yaml.safe_load(card.partition("~~~~yaml\n")[2].partition("~~~~")[0])
    assert recipe["train"]["walk"]["steps"] == 2

    assert export(directory, top / "other", "stroll", "walk[steps=1]") == 0
    assert (top / "other" / "walk" / "adapter_model.safetensors").read_bytes() == adapters["train.walk[steps=1]"]

    for policies, reason in (
        (["walk[steps=1]", "walk[steps=2]"], "no variant has all of these; export them one by one"),
        (["walk[steps=1]", "run[steps=2]"], "no variant has all of these; export them one by one"),
        (
            ["walk"],
            "no train step of the sweep is called 'walk'; there are: run[steps=1], run[steps=2], score, stroll,",
        ),
    ):
        assert export(directory, top / "refused", *policies) == 2
        assert reason in capsys.readouterr().err
        assert not (top / "refused").exists()


def test_of_a_sweep_that_is_not_done_what_is_missing_is_named_as_its_report_will(
    top: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sweep.load(Path("recipe.yaml"), ["train.walk.steps=1,2"])
    store.make_dirs(top / "runs" / "sweep")
    store.write_text(top / "runs" / "sweep" / "sweep.yaml", dump(config))
    assert export(top / "runs" / "sweep", top / "out", "walk[steps=2]") == 2
    assert "train.walk[steps=2] is not done; run the recipe first" in capsys.readouterr().err
