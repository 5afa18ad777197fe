"""A run's policy, an adapter and a whole model from elsewhere on real weights: answered, measured and compared."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from scripted_run import here, prepare
from tiny import full_logprobs, make_adapter, make_model, make_tokenizer

from pipeline import comparison, measure, plan, sources
from pipeline import run as engine
from pipeline.adapters import attach, role
from pipeline.errors import DataError
from pipeline.models import ModelConfig, chat_ids, load_model, load_tokenizer
from pipeline.ratings import Results, schema
from pipeline.recipe import load
from pipeline.records import Message

RECIPE = """\
seed: 7
model: {base: base, quantization: none, dtype: fp32}
generate: {prompts: {files: train.jsonl}, sampler: {name: local, max_new_tokens: 6, batch_size: 8}, candidates: 3}
judge: length
exam: {prompts: 0}
train:
  reward_model: {max_steps: 1, held_out: 0.4}
  dpo: {max_steps: 2, learning_rate: 1.0e-2}
compare: {prompts: {files: heldout.jsonl}, judges: [rules]}
"""
WORDS = ("runs/run", "elsewhere/v0.3", "elsewhere/whole")
NAMES = ["base", "run/dpo", "v0.3", "whole"]
TEXT = "compare.perplexity.files=text.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and elsewhere an adapter whose name has a dot and a whole model; to be copied."""
    top = tmp_path_factory.mktemp("made")
    for name, seed in (("base", 0), ("elsewhere/whole", 5)):
        make_tokenizer(top / name)
        make_model(top / name, seed=seed)
    make_adapter(top / "base", top / "elsewhere" / "v0.3", 7)
    (top / "text.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n{"prompt": "And?", "completion": "No"}\n')
    with pytest.MonkeyPatch.context() as patch:
        prepare(top, patch, RECIPE)
        patch.setattr(engine, "run_workers", here)
        plan.open_run(load(top / "recipe.yaml"), Path("runs") / "run").execute()
    return top


@pytest.fixture
def top(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, this test's own, and where the process is."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    prepare(tmp_path, monkeypatch, RECIPE)
    return tmp_path


def opened(*words: str, out: Path | None = None) -> Any:
    named, overrides = sources.read_words(words, comparison.OPTIONS)
    return comparison.open_comparison(named, overrides, out)


def results_of(directory: Path) -> Results:
    text = (directory / "results.json").read_text()
    Draft202012Validator(schema()).validate(json.loads(text))
    return Results.model_validate_json(text)


def published(run: Any, step: str) -> Path:
    return next(Path(state.path) for state in run.states() if state.step.name == step)


def test_policy_adapter_and_whole_model_answer_and_are_measured(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "run_workers", here)
    run = opened(*WORDS, TEXT)
    assert [state.step.name for state in run.execute()] == ["answers", "measure", "compare", "report"]
    found = {each.name: each for each in results_of(run.directory).checkpoints}
    assert list(found) == NAMES
    # The run's reward model scores everybody, under the name of its run; the base's mean is zero by definition.
    assert {tuple(score.model for score in each.rewards) for each in found.values()} == {("run/reward_model",)}
    assert found["base"].rewards[0].score.value == pytest.approx(0, abs=1e-9)
    # Perplexities of one tokenizer: the base, both adapters, and not the whole model.
    assert [name for name, each in found.items() if each.perplexity] == ["base", "run/dpo", "v0.3"]
    assert len({each.perplexity.value for each in found.values() if each.perplexity}) == 3
    # Only on the base there is a KL to the base.
    assert [name for name, each in found.items() if each.kl is not None] == ["base", "run/dpo", "v0.3"]


def test_the_adapters_own_numbers_are_what_a_plain_pass_of_it_gives(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "run_workers", here)
    run = opened("runs/run", "elsewhere/v0.3", TEXT)
    run.execute()
    readings = [
        each for each in measure.read(published(run, "measure")).readings if each.source == "v0.3"
    ]  # fmt: skip
    config = ModelConfig(base="base", quantization="none", dtype="fp32")
    model, tokenizer = attach(load_model(config), {"mine": Path("elsewhere/v0.3")}), load_tokenizer(config)
    for reading, (asked, said) in zip(readings, [("Why?", "So."), ("And?", "No")], strict=True):
        prefix = chat_ids(tokenizer, [Message(role="user", content=asked)])
        answer = tokenizer(said + "<|im_end|>", add_special_tokens=False)["input_ids"]
        with role(model, "mine"):
            expected = -full_logprobs(model, [*prefix, *answer])[len(prefix) - 1 :].sum()
        assert reading.nll == pytest.approx(expected, abs=1e-3)
        assert reading.tokens == len(answer)


def test_a_comparison_that_is_killed_goes_on_to_the_same_results(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*WORDS, TEXT, "compare.sampler.batch_size=1")
    command = [sys.executable, "-m", "pipeline.cli", "compare", *words, "--out", "killed"]
    killed = subprocess.Popen(command, start_new_session=True)
    journal = top / "runs" / ".cache" / "journal.sqlite"
    before = _answers(journal)
    deadline = time.monotonic() + 300
    # 5 prompts by 4 checkpoints, of which this sampler has answered none yet.
    while _answers(journal) < before + 6 and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 6 <= _answers(journal) - before < 20
    monkeypatch.setattr(engine, "run_workers", here)
    opened(*words, out=Path("killed")).execute()
    assert _answers(journal) - before == 20
    shutil.rmtree(journal.parent)
    opened(*words, out=Path("undisturbed")).execute()
    assert (top / "killed" / "results.json").read_bytes() == (top / "undisturbed" / "results.json").read_bytes()
    manifest = json.loads((top / "undisturbed" / "manifest.json").read_text())
    assert set(manifest["steps"]["answers"]["phases"]) == {"loading", "generation"}
    assert set(manifest["steps"]["compare"]["phases"]) == {"judging by rules", "statistics"}


def test_the_base_under_another_name_answers_is_measured_and_is_kept_as_the_base(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_workers", here)
    # Answers that no test before has asked for.
    journal, longer = top / "runs" / ".cache" / "journal.sqlite", "compare.sampler.max_new_tokens=7"
    run = opened("before=base", "runs/run:dpo", TEXT, longer)
    run.execute()
    asked = _answers(journal)
    before, dpo = results_of(run.directory).checkpoints
    plain = opened("base", "runs/run:dpo", TEXT, longer)
    plain.execute()
    assert _answers(journal) == asked
    base, same = results_of(plain.directory).checkpoints
    assert (before.name, before.algorithm) == ("before", "base")
    assert before.kl is not None and before.kl.value == 0
    # Only the seeds of the bootstrap know the name.
    told = [[each.perplexity and each.perplexity.value, each.words_mean, each.rewards[0].score.value]
            for each in (before, base, dpo, same)]  # fmt: skip
    assert told[0] == told[1] != told[2] == told[3]
    assert told[0][0] is not None
    assert results_of(run.directory).base == "before"


def test_nothing_but_the_base_is_called_base(top: Path) -> None:
    shutil.copytree("elsewhere/v0.3", "elsewhere/base")
    told = "^elsewhere/base: would be called 'base', as the base is; name it: other=elsewhere/base$"
    with pytest.raises(DataError, match=told):
        opened("before=base", "elsewhere/base", "runs/run:dpo")
    assert names_of(opened("before=base", "other=elsewhere/base", "runs/run:dpo")) == ["before", "other", "run/dpo"]


def names_of(run: Any) -> list[str]:
    config = next(step for step in run.steps if step.name == "answers").options["config"]
    return list(config["checkpoints"])


def _answers(path: Path) -> int:
    """Batches of answers that are kept."""
    with sqlite3.connect(path) as journal:
        (count,) = journal.execute("SELECT count(*) FROM entries WHERE kind = 'answers'").fetchone()
    return int(count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}\n", "text.jsonl:1"),
        ("", "text.jsonl"),
        ('{"prompt": "Why?"}\n', "text.jsonl:1"),
    ],
)
def test_a_text_that_cannot_be_read_is_told_before_anything_is_loaded(top: Path, text: str, said: str) -> None:
    (top / "text.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        opened(*WORDS, TEXT)
