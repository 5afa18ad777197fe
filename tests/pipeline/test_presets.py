"""`--judge NAME` is a preset or a judge; every preset is a recipe that loads."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import RecipeError
from pipeline.recipe import PRESETS, RECIPES, Recipe, load

ROOT = Path(__file__).parents[2]
PRESET_FILES = sorted((ROOT / RECIPES / PRESETS).glob("*.yaml"))
RLAIF = ROOT / RECIPES / "rlaif.yaml"


def preset(name: str, *overrides: str) -> Recipe:
    return load(RLAIF, overrides, judge=name)


def test_the_presets_that_the_readme_promises_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith("Presets"))
    assert [path.stem for path in PRESET_FILES] == sorted(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("path", PRESET_FILES, ids=lambda path: str(path.stem))
def test_every_preset_loads_says_how_it_is_used_and_sets_little_but_the_judge(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"make rlaif JUDGE={path.stem}" in text
    told = yaml.safe_load(text)
    assert set(told) <= {"judge", "budget_usd"}
    found = preset(path.stem).judge
    assert found.order_free
    assert found.name == told["judge"]["name"]
    # A judge that is paid for has a budget, and its key is a name of the environment.
    assert ("price: {" in text) == ("budget_usd" in told) == ("api_key_env: OPENAI_API_KEY" in text)


def test_a_judge_is_named_where_no_preset_is() -> None:
    assert preset("length").judge.model_dump() == {"name": "length", "prefer": "longer"}


def test_a_preset_beside_the_recipe_comes_before_those_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "likelihood.yaml").write_text("judge: {name: likelihood, temperature: 7.0}\n")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: {RLAIF}\n")

    def told(name: str) -> Any:
        return load(recipe, judge=name).judge.model_dump()

    assert told("likelihood")["temperature"] == 7.0
    assert told("local")["of"]["name"] == "local_llm"  # of the project


def test_overrides_go_over_the_preset() -> None:
    assert preset("local", "judge.of.rubric=honest").judge.model_dump()["of"]["rubric"] == "honest"
    assert preset("likelihood", "judge=length").judge.name == "length"


def test_an_unknown_name_lists_presets_and_judges_along_with_other_mistakes() -> None:
    with pytest.raises(RecipeError) as raised:
        preset("lokal", "train.dpo.betta=1")
    first, second = str(raised.value).split("\n  ")[1:]
    assert first.startswith(
        "--judge: no preset and no judge is called 'lokal'; did you mean 'local'? There are presets"
    )
    assert re.search(r"presets: .*likelihood, .*; and judges: .*both_orders, ", first)
    assert second.startswith("train.dpo.betta: no such option")


def test_a_preset_is_something_to_extend(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: [{RLAIF}, {ROOT / 'recipes/judges/local.yaml'}]\n")
    assert load(recipe).judge == preset("local").judge
