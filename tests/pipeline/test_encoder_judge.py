"""An encoder of the BERT family learns in one run what its judge prefers, and labels and compares in the next."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import ENCODERS, make_architecture, prompt_of

from pipeline import plan, store
from pipeline.recipe import load
from pipeline.records import Preference

pytestmark = pytest.mark.slow

RECIPE = """\
model: {{base: {model}, quantization: none, dtype: fp32}}
generate: {{prompts: {{files: {top}/train.jsonl}}, sampler: {{name: scripted.sampler, grows: true}}, processes: 1}}
judge: {judge}
exam: {{prompts: 0}}
label: {{processes: 1}}
train:
{train}
  pupil: {{name: scripted.pupil}}
compare: {{prompts: {{files: {top}/heldout.jsonl}}, judges: [{judge}, rules], processes: 1}}
"""
REWARD = """\
  reward_model:
    base: {{base: {encoder}, quantization: none, dtype: fp32}}
    learning_rate: 1.0e-2
    max_steps: 40"""


def done(top: Path, name: str, until: str | None = None, **words: Any) -> Path:
    """The directory of a run of the recipe with these words, done as far as that step."""
    path = top / f"{name}.yaml"
    path.write_text(RECIPE.format(top=top, **words))
    plan.open_run(load(path), top / "runs" / name).execute(until=until)
    return top / "runs" / name


def step(run: Path, name: str) -> Path:
    (found,) = [path for path in (run / "steps" / name).iterdir() if path.is_dir()]
    return found


@pytest.mark.parametrize(
    "kind", [pytest.param(each, marks=() if each == "bert" else pytest.mark.wide) for each in ENCODERS]
)
def test_an_encoder_trained_in_one_run_judges_the_next(
    kind: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))
    make_architecture(tmp_path / "encoder", kind)
    store.write_jsonl(tmp_path / "train.jsonl", [prompt_of(f"Question {number}?") for number in range(24)])
    store.write_jsonl(tmp_path / "heldout.jsonl", [prompt_of(f"Other {number}?") for number in range(6)])
    train = REWARD.format(encoder=tmp_path / "encoder")
    first = done(tmp_path, "first", "train.reward_model", model=tiny_folder, judge="length", train=train)
    adapter = step(first, "train.reward_model")
    exam = store.read_json(adapter / "reward_model.json")["held_out"]

    second = done(tmp_path, "second", model=tiny_folder, judge=f"{{name: reward_model, adapter: {adapter}}}", train="")
    labelled = step(second, "label")
    summary = store.read_json(labelled / "summary.json")
    assert summary["judge_summary"] == {"temperature_points": exam["temperature"]}
    assert (summary["pairs"], summary["abstained"]) == (24 * 6, {})
    results = json.loads((second / "results.json").read_text())
    assert [judge["name"] for judge in results["judges"]] == ["reward_model", "rules"]
    assert f"{exam['temperature']:.2f} points" in (second / "report.md").read_text()
    # The same pairs, of which it was trained on four in five: it says what it was taught.
    taught, said = (
        [each.chosen.text for each in store.read_jsonl(step(run, "label") / "preferences.jsonl", Preference)]
        for run in (first, second)
    )
    assert len(taught) == len(said) == 24
    assert sum(map(str.__eq__, taught, said)) >= 20
