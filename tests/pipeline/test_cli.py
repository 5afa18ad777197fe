"""The command line tells mistakes all at once, quickly, and before anything heavy is imported."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which says at its end which heavy packages it imported."""
    program = (
        "import sys; from pipeline.cli import main; code = main(sys.argv[1:]);"
        "print('heavy:', *sorted({'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules))); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_two_misspelt_options_are_both_named_with_what_was_meant() -> None:
    result = run("run", "recipes/rlaif.yaml", "train.dpo.betta=1", "judge.nme=x")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "recipes/rlaif.yaml: 2 mistakes",
        "  judge.nme: no such option; did you mean 'name'?",
        "  train.dpo.betta: no such option; did you mean 'beta'?",
    ]
    assert result.stdout.strip() == "heavy:"


def test_a_dry_run_names_every_step_and_imports_nothing_heavy(tmp_path: Path) -> None:
    result = run("run", "recipes/smoke.yaml", "--run", str(tmp_path / "run"), "--dry-run")
    assert result.returncode == 0, result.stderr
    steps = [line.split()[0] for line in result.stdout.splitlines()]
    assert steps == [
        "doctor",
        "generate",
        "exam",
        "label",
        "doctor.labels",
        "train.sft",
        "train.reward_model",
        "train.ppo",
        "train.dpo",
        "train.kto",
        "train.sft_dpo",
        "answers",
        "measure",
        "compare",
        "report",
        "heavy:",
    ]
    assert result.stdout.strip().endswith("heavy:")
    assert not (tmp_path / "run").exists()


def test_overrides_are_read_before_and_after_an_option(tmp_path: Path) -> None:
    result = run("run", "recipes/smoke.yaml", "seed=-1", "--run", str(tmp_path), "train.dpo.betta=1")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == "recipes/smoke.yaml: 2 mistakes"


def test_a_missing_prompt_file_is_named_before_anything_runs(tmp_path: Path) -> None:
    result = run("run", "recipes/smoke.yaml", "--run", str(tmp_path), "generate.prompts.files=nowhere.jsonl")
    assert result.returncode == 2
    assert "nowhere.jsonl" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_key_is_named_before_anything_runs_and_a_dry_run_needs_none(tmp_path: Path) -> None:
    preset = ("run", "recipes/smoke.yaml", "--judge", "cascade", "--run", str(tmp_path / "run"))
    result = run(*preset, "judge.dear.of.api_key_env=NO_SUCH_KEY", "compare.judges=[rules]")
    assert result.returncode == 2
    assert "judge: api_key_env: the environment variable NO_SUCH_KEY is not set" in result.stderr
    assert not (tmp_path / "run").exists()
    assert run(*preset, "judge.dear.of.api_key_env=NO_SUCH_KEY", "--dry-run").returncode == 0


def test_a_run_is_not_begun_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    result = run("run", "recipes/rlaif.yaml", "--run", str(tmp_path / "taken"))
    assert result.returncode == 2
    assert result.stderr.startswith(f"{tmp_path / 'taken'}: a file is in the way")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_judge_of_ones_own_is_found_from_the_folder_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "mylab" / "judges").mkdir(parents=True)
    (tmp_path / "mylab" / "judges" / "rubric.py").write_text(
        "from typing import Literal\n"
        "from judges.length import Config as Length\n"
        "class Config(Length):\n"
        "    name: Literal['mylab.judges.rubric'] = 'mylab.judges.rubric'\n"
    )
    (tmp_path / "data").symlink_to(ROOT / "data")
    # As a console script is started: the current folder is not on its path.
    program = f"import sys; sys.path[:] = [{str(ROOT)!r}, *filter(None, sys.path)]; from pipeline.cli import main; "
    program += "sys.exit(main(sys.argv[1:]))"
    for choice in (["judge=mylab.judges.rubric"], ["--judge", "mylab.judges.rubric"]):
        words = ["run", str(ROOT / "recipes" / "rlaif.yaml"), *choice, "--dry-run"]
        command = [sys.executable, "-c", program, *words]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    command = f"{sys.executable} -m pipeline.cli schema | head -n 3; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[0] == "{"
    assert result.stdout.splitlines()[-1] == "141"  # as the shell calls a command that SIGPIPE ended
    assert result.stderr == ""


def test_an_unknown_option_of_the_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "recipes/smoke.yaml", "--bogus"])
    assert stopped.value.code == 2
    assert "--bogus" in capsys.readouterr().err


def test_a_second_process_is_told_who_is_at_work(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("run", "recipes/smoke.yaml", "--run", str(tmp_path))
    assert result.returncode == 3
    assert str(tmp_path) in result.stderr


def test_status_of_something_that_is_no_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "no recipe.yaml" in capsys.readouterr().err


def test_status_of_a_run_that_was_never_begun_lists_what_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "recipe.yaml").write_text((ROOT / "recipes" / "rlaif.yaml").read_text())
    assert cli.main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("would run: never ran") == 14


def test_the_schema_is_json_and_knows_every_judge(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    text = json.dumps(json.loads(capsys.readouterr().out))
    for judge in ("likelihood", "both_orders", "rules", "length", "local_llm"):
        assert f'"const": "{judge}"' in text
