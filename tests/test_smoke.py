"""recipes/smoke.yaml through the real command line: it ends, a second time it does nothing, a kill changes nothing."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STEPS = (
    "doctor", "generate", "exam", "label", "doctor.labels", "train.reward_model", "train.ppo", "train.dpo", "train.kto",
    "train.sft", "train.sft_dpo",
    "answers", "measure", "compare",
)  # fmt: skip
"""Every step whose output has no times in it; the report shows those."""


def start(run: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.cli", "run", "recipes/smoke.yaml", "--run", str(run), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(run: Path, *more: str) -> str:
    process = start(run, *more)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    return output


def digests(run: Path, steps: tuple[str, ...]) -> dict[str, str]:
    """What each of these steps published, every byte of it."""
    found = {}
    for step in steps:
        (folder,) = [path for path in (run / "steps" / step).iterdir() if path.is_dir()]
        assert not store.verify(folder, hashes=True)
        found[step] = str(json.loads((folder / "MANIFEST.json").read_text())["digest"])
    return found


def rows(run: Path, kind: str) -> int:
    journal = run.parent / ".cache" / "journal.sqlite"
    if not journal.exists():
        return 0
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=30) as connection:
        try:
            (count,) = connection.execute("SELECT count(*) FROM entries WHERE kind = ?", (kind,)).fetchone()
        except sqlite3.OperationalError:
            return 0
    return int(count)


def kill_when(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """kill -9 as soon as something has happened, while there is still work to do."""
    deadline = time.monotonic() + 600
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("uninterrupted") / "smoke"
    return run, finish(run)


def test_it_ends_with_the_comparison_and_the_path_of_the_report(finished: tuple[Path, str]) -> None:
    run, output = finished
    lines = output.rstrip().splitlines()
    assert lines[-1] == f"report: {run / 'report.html'}"
    for checkpoint in ("base", "ppo", "dpo", "kto", "sft", "sft_dpo"):
        assert any(line.strip().startswith(checkpoint) for line in lines)
    for name in ("report.html", "report.md", "results.json", "recipe.yaml", "manifest.json"):
        assert (run / name).stat().st_size > 0
    assert (run / "steps" / "train.dpo").is_dir()


def test_the_manifest_has_time_and_memory_of_every_step(finished: tuple[Path, str]) -> None:
    run, _ = finished
    manifest = json.loads((run / "manifest.json").read_text())
    assert set(manifest["steps"]) == {*STEPS, "report"}
    for step in manifest["steps"].values():
        assert step["wall_seconds"] > 0
        assert 0 < step["peak_memory_bytes"] < 5 * 2**30


def test_a_second_run_writes_nothing_and_works_at_nothing(finished: tuple[Path, str]) -> None:
    run, _ = finished

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    before = times()
    output = finish(run)
    assert times() == before
    assert "runs:" not in output
    assert output.rstrip().endswith(f"report: {run / 'report.html'}")


def test_another_judge_reuses_the_answers_and_redoes_what_follows(finished: tuple[Path, str]) -> None:
    run, _ = finished
    output = finish(run, "--dry-run", "judge.name=length")
    states = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert "runs:" not in states["generate"]
    assert "judge.name: 'likelihood' -> 'length'" in states["label"]
    for step in (*STEPS[4:], "report"):
        assert "runs:" in states[step], output


@pytest.mark.parametrize("last", ["train.ppo", pytest.param("compare", marks=pytest.mark.wide)])
def test_killed_in_generate_in_the_exam_and_in_training_it_leaves_the_same_bytes(
    last: str, finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "smoke"
    kill_when(start(run), lambda: rows(run, "answers") >= 1)
    assert not (run / "steps" / "generate").exists()
    kill_when(start(run), lambda: rows(run, "verdict") >= 1)
    assert not (run / "steps" / "exam").exists()
    sealed = ".staging/train.ppo-*/work/checkpoints/checkpoint-*/MANIFEST.json"
    kill_when(start(run), lambda: any(run.glob(sealed)))
    assert not (run / "steps" / "train.ppo").exists()
    kill_when(start(run), lambda: any(run.glob(f"steps/{last}/*/{store.MANIFEST}")))
    steps = STEPS[: STEPS.index(last) + 1]
    assert digests(run, steps) == digests(finished[0], steps)


def test_a_recipe_whose_steps_bring_demonstrations_goes_from_files_to_a_report_without_labels(tmp_path: Path) -> None:
    from tiny import make_model, make_tokenizer

    make_model(tmp_path / "tiny")
    make_tokenizer(tmp_path / "tiny")
    more = "{name: sft, tune: lm_head, reinit_head: true, max_steps: 2, data: {train: data/demonstrations/train.jsonl}}"
    changes = (
        f"model.base={tmp_path / 'tiny'}", "model.quantization=none", "train.sft.optim=adamw_torch",
        "train.sft.learning_rate=0.01", f"train.more={more}", "compare.prompts.limit=6",
        "compare.judges=[rules, length]",
    )  # fmt: skip
    command = ["run", "recipes/sft_plain_parquet.yaml", "--run", str(tmp_path / "run"), *changes]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = sorted(path.name for path in (tmp_path / "run" / "steps").iterdir())
    assert steps == ["answers", "compare", "doctor", "report", "train.more", "train.sft"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {each["name"] for each in results["checkpoints"]} == {"base", "sft", "more"}
    assert results["labelling_judge"] is None
    held_out = store.read_json(next((tmp_path / "run" / "steps" / "train.sft").glob("*/summary.json")))["held_out"]
    assert held_out["loss_after"] < held_out["loss_before"]
    assert "held out" in (tmp_path / "run" / "report.html").read_text(), "beside the loss of training"
