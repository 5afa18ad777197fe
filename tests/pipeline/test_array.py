"""A job array leaves the bytes of a run without one, whatever becomes of its tasks.

There is no Slurm here. What `prefloop slurm` prints is given to bash, with an `sbatch` that does each job when it is
submitted, and a `python` that writes down what it is asked, which is then done in this process.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import scripted_run
from rich.console import Console
from scripted.sampler import Config as Scripted
from tiny import job_of, prompt_of

from pipeline import cli, cli_slurm, generate, plan, run, store
from pipeline import recipe as recipes
from pipeline.errors import DataError, RecipeError
from pipeline.generate import Pairing, Sampling
from pipeline.models import ModelConfig
from pipeline.recipe import PromptsConfig
from pipeline.sampling.local import Config as Local

SBATCH = """\
#!/bin/bash
echo "$@" >> options.txt
number=$(wc -l < options.txt)
cat > job$number
for task in $(seq 0 "$(sed -n 's/^#SBATCH --array=0-//p' job$number | grep . || echo 0)"); do
  SLURM_ARRAY_TASK_ID=$task bash job$number
done
echo "$number;cluster"
"""

PYTHON = """\
#!/bin/bash
echo "$*" >> asked.txt
"""


@pytest.fixture(autouse=True)
def _nothing_built() -> Iterator[None]:
    Scripted.BUILT.clear()
    Scripted.ANSWERED.clear()
    yield


def config_of(top: Path, **changes: object) -> Pairing:
    """Seven prompts, three answers each, in batches of one prompt (4 // 3)."""
    store.write_jsonl(top / "prompts.jsonl", [prompt_of("x" * n, name=f"p{n}") for n in range(1, 8)])
    told = {"seed": 1, "model": ModelConfig(), "sampler": Scripted(), "samples": 3, "purpose": "train", **changes}
    return Pairing(sampling=Sampling(prompts=PromptsConfig(files=(top / "prompts.jsonl",)), **told), pairing="all")


def task(config: Pairing, top: Path, number: int, tasks: int) -> None:
    job = job_of(top, config, rank=number, world=tasks)
    generate.work(dataclasses.replace(job, part=job.work_dir / "parts" / f"{number}-of-{tasks}.jsonl"))


def finished(config: Pairing, top: Path) -> dict[str, bytes]:
    """The bytes of every file that the step leaves."""
    generate.work(job_of(top, config))
    job = job_of(top, config)
    generate.finish(job)
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


# ---- shares


@pytest.mark.parametrize("tasks", [1, 3, 9])
def test_the_step_takes_in_what_tasks_answered_and_asks_nothing_again(tasks: int, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    alone = finished(config, tmp_path / "alone")
    Scripted.ANSWERED.clear()
    for number in reversed(range(tasks)):
        task(config, tmp_path / "shared", number, tasks)
    assert sorted(Scripted.ANSWERED) == sorted(("base", f"p{n}") for n in range(1, 8))
    assert not (tmp_path / "shared" / "cache").exists()  # the journal is not opened
    assert finished(config, tmp_path / "shared") == alone
    assert len(Scripted.ANSWERED) == 7


def test_a_task_without_a_share_loads_nothing(tmp_path: Path) -> None:
    task(config_of(tmp_path), tmp_path / "a", 8, 9)
    assert Scripted.BUILT == []


def test_what_is_missing_or_cut_short_the_step_answers_itself(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    alone = finished(config, tmp_path / "alone")
    for number in (0, 2):
        task(config, tmp_path / "shared", number, 3)
    part = tmp_path / "shared" / "work" / "parts" / "0-of-3.jsonl"
    part.write_bytes(part.read_bytes()[:-20])
    Scripted.ANSWERED.clear()
    assert finished(config, tmp_path / "shared") == alone
    # Two of three prompts of the first part are whole, and both of the last.
    assert len(Scripted.ANSWERED) == 7 - 2 - 2


def test_a_task_that_begins_again_goes_on_where_it_was(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    task(config, tmp_path / "a", 0, 3)
    whole = list(Scripted.ANSWERED)
    assert len(whole) == 3
    task(config, tmp_path / "a", 0, 3)
    assert whole == Scripted.ANSWERED
    part = tmp_path / "a" / "work" / "parts" / "0-of-3.jsonl"
    part.write_bytes(part.read_bytes()[:-20])
    task(config, tmp_path / "a", 0, 3)
    assert [*whole, whole[-1]] == Scripted.ANSWERED


def test_a_real_model_answers_the_same_in_an_array(tiny: ModelConfig, tmp_path: Path) -> None:
    config = config_of(tmp_path, model=tiny, sampler=Local(max_new_tokens=8, batch_size=4))
    alone = finished(config, tmp_path / "alone")
    for number in range(2):
        task(config, tmp_path / "shared", number, 2)
    lines = [(tmp_path / "shared" / "work" / "parts" / f"{n}-of-2.jsonl").read_bytes().count(b"\n") for n in range(2)]
    assert lines == [4, 3]
    assert finished(config, tmp_path / "shared") == alone


# ---- what is refused


def opened(top: Path) -> run.Run:
    return plan.open_run(recipes.load(top / "recipe.yaml"), top / "runs" / "recipe")


def test_a_share_of_what_is_not_shared_and_before_its_inputs_are_done_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_run.prepare(tmp_path, monkeypatch)
    found = opened(tmp_path)
    with pytest.raises(RecipeError, match=r"label: no step of this name is done in shares.*generate, answers"):
        found.share("label", 0, 2)
    with pytest.raises(RecipeError, match="there is no task 2 of 2; their numbers are 0 to 1"):
        found.share("generate", 2, 2)
    with pytest.raises(DataError, match=r"answers: train\.walk is not done yet.*--before answers"):
        found.share("answers", 0, 2)
    with pytest.raises(RecipeError, match=r"--before judge: there is no such step; there are doctor, generate"):
        found.execute(before="judge")


@pytest.mark.parametrize("tasks", ["0", "-3"])
def test_an_array_of_no_tasks_is_refused(
    tasks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted_run.prepare(tmp_path, monkeypatch)
    assert cli.main(["slurm", "recipe.yaml", f"--array={tasks}"]) == 2
    assert f"--array {tasks}: so many tasks answer nothing; give it 1 or more" in capsys.readouterr().err


def test_an_array_that_would_only_wait_for_servers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted_run.prepare(tmp_path, monkeypatch)
    monkeypatch.setattr(Scripted, "REMOTE", True)
    assert cli.main(["slurm", "recipe.yaml", "--array=2"]) == 2
    assert "others' servers sample all answers of this recipe" in capsys.readouterr().err


def test_what_comes_before_a_step_is_done_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_run.prepare(tmp_path, monkeypatch)
    monkeypatch.setattr(run, "run_workers", scripted_run.here)
    found = opened(tmp_path)
    found.console = Console(quiet=True)
    assert [state.step.name for state in found.execute(before="label") if state.done] == ["doctor", "generate"]
    assert [state.step.name for state in found.execute(before="doctor") if state.done] == ["doctor", "generate"]


# ---- the script


def test_the_jobs_of_a_chain_wait_for_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted_run.prepare(tmp_path, monkeypatch)
    assert cli.main(["slurm", "recipe.yaml", "rounds=2", "carry=walk", "--array=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    submitted = [line for line in lines if "sbatch" in line]
    assert [line.count("afterok") for line in submitted] == [0] + [1] * 8
    assert [line.count("afterany") for line in submitted] == [0, 0] + [1, 0] * 3 + [1]
    steps = [line.partition("recipe.yaml ")[2].split()[0] for line in lines if " share " in line]
    assert steps == ["generate", "answers", "round2.generate", "round2.answers"]
    assert lines.count("#SBATCH --array=0-3") == 4


def asked(top: Path, patch: pytest.MonkeyPatch, out: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """What the jobs of a chain ask of the command line, in the order of their work."""
    for name, text in (("sbatch", SBATCH), ("python", PYTHON)):
        (top / name).write_text(text)
        (top / name).chmod(0o755)
    with patch.context() as inner:
        inner.setattr(cli_slurm.sys, "executable", str(top / "python"))
        out.readouterr()
        assert cli.main(["slurm", "recipe.yaml", *words]) == 0
        printed = out.readouterr().out
    environment = {**os.environ, "PATH": f"{top}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-s", "--", "--account=lab"], input=printed, text=True, env=environment, check=True)
    return [line.split()[2:] for line in (top / "asked.txt").read_text().splitlines()]


def kept(top: Path) -> dict[str, bytes]:
    """The bytes of every file that generate, answers and compare leave."""
    steps = top / "runs" / "recipe" / "steps"
    files = [path for name in ("generate", "answers", "compare") for path in steps.glob(f"{name}/*/*.json*")]
    assert len(files) == 5 + 4 + 5
    return {str(path.relative_to(steps)): path.read_bytes() for path in files}


def test_what_the_jobs_of_a_chain_do_leaves_the_bytes_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_workers", scripted_run.here)
    for name in ("alone", "array"):
        (tmp_path / name).mkdir()
        scripted_run.prepare(tmp_path / name, monkeypatch)
        Scripted.ANSWERED.clear()
        jobs = [["run", "recipe.yaml"]]
        if name == "array":
            jobs = asked(tmp_path / name, monkeypatch, capsys, "--array=2")
        for words in jobs:
            assert cli.main(words) == 0, words
        # Six prompts by the base; five by the base and two policies: nobody is asked twice.
        assert len(Scripted.ANSWERED) == len(set(Scripted.ANSWERED)) == 6 + 3 * 5
    assert [words[0] for words in jobs] == ["run", "share", "share", "run", "share", "share", "run"]
    assert kept(tmp_path / "array") == kept(tmp_path / "alone")
    options = (tmp_path / "array" / "options.txt").read_text().splitlines()
    assert all("--parsable --account=lab" in line for line in options)
    assert [line.partition("--dependency=")[2].partition(" ")[0] for line in options] == [
        "",
        "afterok:1",
        "afterok:1,afterany:2",
        "afterok:3",
        "afterok:3,afterany:4",
    ]


@pytest.mark.slow
def test_a_task_that_is_killed_and_requeued_goes_on_and_nobody_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_run.prepare(tmp_path, monkeypatch, scripted_run.RECIPE.replace("scripted.sampler", "scripted.mortal"))
    first = [sys.executable, "-m", "pipeline.cli", "share", "recipe.yaml", "generate", "--task", "0", "--tasks", "2"]
    killed = subprocess.run(first, capture_output=True, text=True)
    assert killed.returncode == 4 and "killed by SIGKILL" in killed.stderr
    assert (tmp_path / "answered.txt").read_text().count("\n") == 2  # of the four prompts of its two batches
    subprocess.run(first, check=True, capture_output=True)
    assert (tmp_path / "answered.txt").read_text().count("\n") == 4
    monkeypatch.setattr(run, "run_workers", scripted_run.here)
    opened(tmp_path).execute(until="generate")
    shared = {path.name: path.read_bytes() for path in tmp_path.glob("runs/recipe/steps/generate/*/*")}
    assert (tmp_path / "answered.txt").read_text().count("\n") == 6
    store.remove(tmp_path / "runs")
    opened(tmp_path).execute(until="generate")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("runs/recipe/steps/generate/*/*")} == shared
