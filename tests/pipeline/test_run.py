"""The run engine with three tiny steps in real processes: what is done again, what is not, and what a kill leaves."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_run import run, steps

from pipeline import store
from pipeline.errors import DataError, RunLockedError, StepFailedError
from pipeline.run import Run, State, Step, _changes

HERE = Path(__file__).parent
IMPORTABLE = os.pathsep.join([str(HERE), str(HERE.parent.parent)])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the tiny steps and the pipeline wherever the tests are started."""
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny steps ran to their end over two dozen words, two ranks sharing the work."""
    top = tmp_path_factory.mktemp("uninterrupted")
    (top / "words.txt").write_text(" ".join("x" * number for number in range(1, 25)))
    subprocess.run(
        command(top, ranks=2, words=str(top / "words.txt")),
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": IMPORTABLE},
    )
    return top


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("one three seventeen\n")
    return tmp_path


def command(top: Path, **options: Any) -> list[str]:
    return [sys.executable, str(HERE / "tiny_run.py"), str(top), json.dumps(options)]


def ran(top: Path) -> list[str]:
    """What ran since this was last asked."""
    trace = top / "trace"
    lines = trace.read_text().split("\n")[:-1] if trace.exists() else []
    trace.unlink(missing_ok=True)
    return lines


def everything(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and directory with what any touch would change."""
    found = ((path, path.stat()) for path in [directory, *directory.rglob("*")])
    return {str(path): (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in found}


def outputs(top: Path) -> dict[str, bytes]:
    """The bytes of everything that was published or lies at the top, without times."""
    files = (path for path in (top / "run").rglob("*") if path.is_file() and path.name != ".lock")
    timed = ("manifest.json", ".provenance.json")
    return {str(path.relative_to(top)): path.read_bytes() for path in files if not path.name.endswith(timed)}


def why(states: list[State]) -> list[str]:
    return [state.why for state in states]


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still waiting after {seconds} s"
        time.sleep(0.01)


def pids_at_work(top: Path, count: int) -> list[int]:
    """The processes that share the work of `label`, when all of them are at it."""

    def found() -> list[str]:
        return [path.read_text() for path in (top / "run" / ".staging").glob("label-*/work/pid-*")]

    wait_until(lambda: len(list(filter(None, found()))) == count)
    return [int(pid) for pid in found()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# ---- what is done, and what is done again


def test_the_first_run_does_everything_and_the_second_starts_no_process_and_touches_no_file(top: Path) -> None:
    assert why(run(top).states()) == ["never ran"] * 3
    run(top).execute()
    assert ran(top) == ["generate", "label", "report"]
    assert (top / "run" / "report.md").read_text() == "170\n"
    before = everything(top)
    states = run(top).execute()
    assert why(states) == ["done"] * 3
    assert everything(top) == before


def test_a_changed_recipe_redoes_what_depends_on_it_and_going_back_redoes_nothing(top: Path) -> None:
    run(top).execute()
    ran(top)
    other = run(top, name="length")
    assert why(other.states()) == ["done", "judge.name: 'likelihood' -> 'length'", "label will run again"]
    other.execute()
    assert ran(top) == ["label", "report"]
    run(top).execute()
    assert ran(top) == []
    assert (top / "run" / "recipe.yaml").read_text() == "judge: likelihood\n"


def test_a_run_up_to_a_step_does_that_step_and_what_it_needs_and_leaves_the_rest_as_it_was(top: Path) -> None:
    run(top).execute(until="label")
    assert ran(top) == ["generate", "label"]
    assert not (top / "run" / "report.md").exists()
    assert why(run(top).states()) == ["done", "done", "never ran"]
    run(top).execute()
    assert ran(top) == ["report"]
    run(top, name="length").execute(until="label")
    assert ran(top) == ["label"]
    assert (top / "run" / "report.md").read_text() == "170\n", "of the run that was finished"
    before = everything(top)
    run(top, name="length").execute(until="label")
    assert everything(top) == before


def test_what_only_changes_how_the_work_is_done_redoes_nothing(top: Path) -> None:
    run(top).execute()
    ran(top)
    run(top, ranks=2, pause=0.001).execute()
    assert ran(top) == []


def test_a_changed_data_file_redoes_the_steps_after_it(top: Path) -> None:
    run(top).execute()
    (top / "words.txt").write_text("two")
    expected = [f"{top / 'words.txt'} changed", "generate will run again", "label will run again"]
    assert why(run(top).states()) == expected
    run(top).execute()
    assert (top / "run" / "report.md").read_text() == "30\n"


def test_a_missing_data_file_is_found_before_anything_runs(top: Path) -> None:
    (top / "words.txt").unlink()
    with pytest.raises(DataError, match=r"words.txt: no such file, and the step 'generate' reads it; check the path"):
        run(top).execute()
    assert not (top / "run").exists()


def test_data_that_changes_under_a_step_is_not_published(top: Path) -> None:
    step = Step(name="edit", identity={}, files=(top / "words.txt",), finish="tiny_steps:edits_its_data")
    with pytest.raises(DataError, match="changed while 'edit' was reading it"):
        Run(top / "run", [step], "", top / "cache").execute()
    assert not list((top / "run" / "steps").rglob(store.MANIFEST))


def test_at_most_three_differences_are_shown(top: Path) -> None:
    def of(**identity: int) -> Run:
        return Run(top / "run", [Step(name="s", identity=identity, finish="tiny_steps:nothing")], "", top / "cache")

    of(a=1, b=1, c=1, d=1, e=1).execute()
    assert why(of(a=1, b=2, c=2, d=2).states()) == ["b: 1 -> 2; c: 1 -> 2; d: 1 -> 2; and 1 more"]
    assert why(of(a=1, b=1, c=1, d=1).states()) == ["e: 1 -> absent"]


def test_a_missing_output_is_made_again_and_what_was_made_from_it_stays(top: Path) -> None:
    states = run(top).execute()
    before = outputs(top)
    ran(top)
    (states[0].path / "words.json").unlink()
    assert why(run(top).states()) == ["outputs damaged: words.json is missing", "done", "done"]
    run(top).execute()
    assert ran(top) == ["generate"]
    assert outputs(top) == before


def test_a_flipped_byte_in_an_input_is_found_before_it_is_used(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    states = run(top).execute()
    words = states[0].path / "words.json"
    words.write_text(words.read_text().replace("one", "two"))
    assert why(run(top).states())[0] == "done", "by its size it looks sound"
    ran(top)
    run(top, name="length").execute()
    assert ran(top) == ["generate", "label", "report"]
    assert "outputs damaged: words.json has other bytes than were written" in capfd.readouterr().out
    assert (top / "run" / "report.md").read_text() == "170\n"


def test_what_was_made_from_an_output_that_came_out_different_is_made_again(top: Path) -> None:
    states = run(top).execute()
    (states[0].path / "words.json").unlink()
    states = run(top, noise=["extra"]).execute()
    assert why(states) == ["done"] * 3
    assert (top / "run" / "report.md").read_text() == "220\n"


def test_a_lost_report_is_copied_again_without_running_anything(top: Path) -> None:
    run(top).execute()
    ran(top)
    (top / "run" / "report.md").unlink()
    (top / "run" / "manifest.json").write_text("{}")
    run(top).execute()
    assert (top / "run" / "report.md").read_text() == "170\n"
    assert json.loads((top / "run" / "manifest.json").read_text())["steps"]["report"]["state"] == "done"
    assert ran(top) == []


def test_a_dry_run_says_what_would_run_and_writes_nothing(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(top).execute(dry_run=True)
    assert capfd.readouterr().out == "generate  runs: never ran\nlabel  runs: never ran\nreport  runs: never ran\n"
    assert not (top / "run").exists()


def test_the_manifest_says_what_was_done_where_and_at_what_cost(top: Path) -> None:
    # As a command: Linux never counts a child's memory below what its parent has, and this process may hold models.
    subprocess.run(command(top), stdout=subprocess.DEVNULL, check=True)
    manifest = json.loads((top / "run" / "manifest.json").read_text())
    report = manifest["steps"]["report"]
    assert report["summary"] == {"words": 3}
    assert report["inputs"] == {"label": manifest["steps"]["label"]["fingerprint"]}
    assert list(manifest["steps"]["generate"]["data"]) == [str(top / "words.txt")]
    assert 5e6 < report["peak_memory_bytes"] < 1e9, "a Python process, in bytes"
    assert manifest["totals"]["wall_seconds"] == pytest.approx(
        sum(step["wall_seconds"] for step in manifest["steps"].values()), abs=2e-3
    )
    (machine,) = manifest["environments"]
    assert machine["steps"] == ["generate", "label", "report"]
    assert machine["versions"]["pydantic"]


def test_names_and_values_are_shown_as_they_are_and_not_as_markup(top: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=False, width=20)
    for value in ("[red]", "[/]"):
        step = Step(name="odd[bold]", identity={"key": value}, finish="tiny_steps:nothing")
        Run(top / "run", [step], "", top / "cache", console).execute()
    assert "odd[bold]  runs: key: '[red]' -> '[/]'\n" in shown.getvalue()


# ---- several processes


def test_two_ranks_sharing_the_work_give_the_bytes_of_one(tmp_path: Path, uninterrupted: Path) -> None:
    run(tmp_path, ranks=1, words=str(uninterrupted / "words.txt")).execute()
    assert ran(tmp_path) == ["generate", "ask 0", "collect", "report"]
    assert outputs(tmp_path) == outputs(uninterrupted)


def test_a_failing_rank_stops_the_others(top: Path) -> None:
    step = Step(name="train", identity={}, work="tiny_steps:rank_1_crashes", ranks=2, finish="tiny_steps:nothing")
    started = time.monotonic()
    with pytest.raises(StepFailedError, match=r"'work' process of rank 1 .*exit code 7.*the same command continues"):
        Run(top / "run", [step], "", top / "cache").execute()
    assert time.monotonic() - started < 50, "the other rank sleeps for a minute"
    (first,) = (top / "run").rglob("pid-0")
    assert is_gone(int(first.read_text()))


def test_a_mistake_of_the_user_is_printed_once_and_keeps_its_exit_code(
    top: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    step = Step(name="label", identity={}, finish="tiny_steps:refuse")
    with pytest.raises(StepFailedError) as caught:
        Run(top / "run", [step], "", top / "cache").execute()
    assert caught.value.exit_code == DataError.exit_code
    assert capfd.readouterr().err == "words.txt:3: not a word; write one\n"


def test_a_defect_of_ours_shows_its_traceback(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step = Step(name="label", identity={}, finish="tiny_steps:crash")
    with pytest.raises(StepFailedError, match=r"exit code 1, see above") as caught:
        Run(top / "run", [step], "", top / "cache").execute()
    assert caught.value.exit_code == 4
    assert "ZeroDivisionError: a defect of ours" in capfd.readouterr().err


def test_only_the_first_rank_talks(top: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step = Step(name="train", identity={}, work="tiny_steps:talks", ranks=2, finish="tiny_steps:nothing")
    Run(top / "run", [step], "", top / "cache").execute()
    assert "rank 0 says hello\n" in (out := capfd.readouterr().out)
    assert "rank 1" not in out


# ---- kills


def test_a_killed_finish_leaves_nothing_in_out_and_all_of_work(top: Path) -> None:
    def one() -> Run:
        step = Step(name="train", identity={}, finish="tiny_steps:half_then_whole")
        return Run(top / "run", [step], "", top / "cache")

    with pytest.raises(StepFailedError, match="killed by SIGKILL, as the kernel does when memory runs out"):
        one().execute()
    (state,) = one().execute()
    assert json.loads((state.path / "found").read_text()) == ["firstagain", []]
    assert not list((top / "run" / ".staging").iterdir())


@pytest.mark.parametrize("after", [0.0, 0.1, 0.3])
def test_kill_9_takes_the_workers_along_and_the_next_run_ends_as_if_nothing_had_been(
    tmp_path: Path, uninterrupted: Path, after: float
) -> None:
    options = {"ranks": 2, "words": str(uninterrupted / "words.txt")}
    parent = subprocess.Popen(command(tmp_path, pause=0.04, **options), stdout=subprocess.DEVNULL)
    workers = pids_at_work(tmp_path, 2)
    time.sleep(after)
    parent.kill()
    parent.wait()
    # At once: the lock is still held by the dying workers, which is nobody's concern.
    run(tmp_path, **options).execute()
    assert all(is_gone(pid) for pid in workers)
    assert outputs(tmp_path) == outputs(uninterrupted)


def test_workers_of_a_killed_run_are_gone_soon_after(top: Path) -> None:
    parent = subprocess.Popen(command(top, ranks=2, pause=60), stdout=subprocess.DEVNULL)
    workers = pids_at_work(top, 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: all(is_gone(pid) for pid in workers), seconds=30)


def test_a_second_process_is_told_at_once_who_is_at_work(top: Path) -> None:
    first = subprocess.Popen(command(top, ranks=1, pause=60), stdout=subprocess.DEVNULL)
    pids_at_work(top, 1)
    started = time.monotonic()
    with pytest.raises(RunLockedError, match=rf"process {first.pid} on .*tiny_run.py") as caught:
        run(top).execute()
    assert time.monotonic() - started < 30, "the first one is at work for a minute"
    assert caught.value.exit_code == 3
    first.kill()
    first.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_stops_its_workers_and_says_how_to_go_on(top: Path, number: int, code: int) -> None:
    parent = subprocess.Popen(
        command(top, ranks=1, pause=60), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    (pid,) = pids_at_work(top, 1)
    parent.send_signal(number)
    out, err = parent.communicate(timeout=5)
    assert parent.returncode == code
    assert "the same command continues from here" in out
    assert err == ""
    assert is_gone(pid)


def test_what_a_killed_run_left_is_not_continued_from_other_inputs(top: Path) -> None:
    def failing(noise: list[str]) -> Run:
        broken = steps(top, ranks=1, noise=noise)
        broken[1] = replace(broken[1], finish="tiny_steps:crash")
        return Run(top / "run", broken, "", top / "cache")

    for noise in ([], ["extra"]):
        with pytest.raises(StepFailedError):
            failing(noise).execute()
        (work,) = (top / "run" / ".staging").glob("label-*/work")
        assert [path.name for path in work.iterdir()] == ["pid-0"]
        (work / "pid-0").rename(work / "of-these-inputs")
        for words in (top / "run").rglob("words.json"):
            words.unlink()


def test_another_plugin_is_told_by_its_name_alone() -> None:
    before = {"judge": {"name": "likelihood", "constitution": "be kind", "contrast": None}, "seed": 1}
    now = {"judge": {"name": "length", "prefer": "longer"}, "seed": 2}
    assert _changes(before, now) == ["judge.name: 'likelihood' -> 'length'", "seed: 1 -> 2"]


# ---- the process of a step


@pytest.mark.parametrize(("said", "found"), [(None, "1"), ("0", "0")])
def test_the_libraries_of_a_step_report_nothing_to_the_hub_unless_the_user_says_so(
    said: str | None, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TRL's trainers tell huggingface.co of themselves as soon as they are made.
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    if said is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", said)
    step = Step(name="only", identity={}, finish="tiny_steps:environment")
    Run(tmp_path / "run", [step], "", tmp_path / "cache").execute()
    (written,) = (tmp_path / "run").rglob("environment.json")
    assert json.loads(written.read_text())["HF_HUB_DISABLE_TELEMETRY"] == found
