"""A run's budget is its own wherever its directory goes, and who loses the journal on the way is told of it."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted_run import here

from judges.ledger import bill
from pipeline import run as engine
from pipeline import store
from pipeline.errors import BudgetError, DataError
from pipeline.run import Run, Step


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "run_workers", here)


def did(directory: Path, *steps: str, cache: Path | None = None, **options: Any) -> str:
    """What a run said that asks for these words, a step for those of each text, on a budget of three dollars."""
    said = io.StringIO()
    asking = [
        Step(name=f"ask{n}", identity={"words": words.split()}, options=options, finish="tiny_steps:pays")
        for n, words in enumerate(steps)
    ]
    console = Console(file=said, force_terminal=False, width=20)
    Run(directory, asking, "", cache or directory.parent / ".cache", console).execute()
    return said.getvalue()


def charged(top: Path, account: str) -> float:
    return sum(line.usd for line in bill(top / ".cache" / "journal.sqlite", account))


def account_in(directory: Path) -> str:
    found: str = json.loads((directory / "manifest.json").read_text())["account"]
    return found


def lines(said: str) -> list[str]:
    """What was said of accounts."""
    return [line for line in said.splitlines() if "budget_usd" in line]


# ---- renamed and copied


def test_a_renamed_run_goes_on_with_what_it_was_charged(tmp_path: Path) -> None:
    did(tmp_path / "a", "one two")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(BudgetError, match="four: the budget is spent"):
        did(tmp_path / "b", "one two", "three four")
    assert (account_in(tmp_path / "b"), charged(tmp_path, "a"), charged(tmp_path, "b")) == ("a", 3, 0)
    (tmp_path / "b").rename(tmp_path / "c")
    assert lines(did(tmp_path / "c", "one two", "three")) == [], "all is as it should be"


def test_the_account_is_written_before_anybody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        did(tmp_path / "a", "one", **{"dies before": "one"})
    assert account_in(tmp_path / "a") == "a"


def test_a_directory_without_an_account_keeps_its_name_as_that_even_if_nothing_is_left_to_do(tmp_path: Path) -> None:
    did(tmp_path / "old", "one")
    path = tmp_path / "old" / "manifest.json"
    store.write_json(path, {name: told for name, told in store.read_json(path).items() if name != "account"})
    assert lines(did(tmp_path / "old", "one")) == []
    (tmp_path / "old").rename(tmp_path / "new")
    did(tmp_path / "new", "one", "two")
    assert (account_in(tmp_path / "new"), charged(tmp_path, "old"), charged(tmp_path, "new")) == ("old", 2, 0)


def test_a_copy_shares_the_account_so_that_the_budget_holds_for_both_together(tmp_path: Path) -> None:
    did(tmp_path / "a", "one")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    did(tmp_path / "a", "one", "two")
    with pytest.raises(BudgetError, match="four"):
        did(tmp_path / "b", "one", "three four")
    assert charged(tmp_path, "a") == 3


def test_a_task_of_a_job_array_is_told_the_account_of_a_renamed_run(tmp_path: Path) -> None:
    did(tmp_path / "a", "one")
    (tmp_path / "a").rename(tmp_path / "b")
    work = "tiny_steps:says_whose_account"
    step = Step(name="shared", identity={}, work=work, parted=True, finish="tiny_steps:nothing")
    Run(tmp_path / "b", [step], "", tmp_path / ".cache").share("shared", task=1, tasks=2)
    (told,) = (tmp_path / "b").rglob("account-1")
    assert told.read_text() == "a"


def test_a_damaged_manifest_does_not_begin_the_budget_again(tmp_path: Path) -> None:
    did(tmp_path / "a", "one")
    for damaged in ("{", "[]", '{"account": ""}'):
        (tmp_path / "a" / "manifest.json").write_text(damaged)
        with pytest.raises(DataError, match=r"manifest.json: damaged, .* or remove it: the account is then 'a'"):
            did(tmp_path / "a", "one", "two")
    assert charged(tmp_path, "a") == 1


# ---- what is told before anybody is asked


def test_a_run_that_was_moved_without_its_journal_is_told_so_before_it_asks(tmp_path: Path) -> None:
    did(tmp_path / "runs" / "a", "one", "two")
    (tmp_path / "else").mkdir()
    (tmp_path / "runs" / "a").rename(tmp_path / "else" / "a")
    assert lines(did(tmp_path / "else" / "a", "one", "two")) == [], "nothing is left to ask"
    said = did(tmp_path / "else" / "a", "one", "two", "three").splitlines()
    journal = tmp_path / "else" / ".cache" / "journal.sqlite"
    assert said[0].startswith(
        f"{tmp_path / 'else' / 'a'}: its steps were charged 2.0000 USD, and {journal} has no charge to its account, 'a'"
    )
    assert "copy .cache from beside where it was; if there is" in said[0]
    assert charged(tmp_path / "else", "a") == 1


def test_a_step_that_is_half_done_says_where_the_journal_was_left(tmp_path: Path) -> None:
    runs, other = tmp_path / "runs", tmp_path / "else"
    with pytest.raises(ZeroDivisionError):
        did(runs / "a", "one two", **{"dies before": "two"})
    other.mkdir()
    (runs / "a").rename(other / "a")
    (found,) = lines(did(other / "a", "one two"))
    assert found.startswith(f"{other / 'a'}: a step that it has begun was charged, and {other / '.cache'}")
    assert f"copy .cache from beside where it was (it is {runs / '.cache'}); if" in found


def test_a_run_that_was_moved_with_its_journal_goes_on_without_a_word(tmp_path: Path) -> None:
    runs, other = tmp_path / "runs", tmp_path / "else"
    did(runs / "a", "one")
    with pytest.raises(ZeroDivisionError):
        did(runs / "a", "one", "two three", **{"dies before": "three"})
    other.mkdir()
    (runs / "a").rename(other / "b")
    shutil.copytree(runs / ".cache", other / ".cache")
    assert lines(did(other / "b", "one", "two three")) == []
    assert charged(other, "a") == 3


def test_a_new_run_is_told_that_another_one_of_its_name_was_charged(tmp_path: Path) -> None:
    did(tmp_path / "a", "one two")
    (tmp_path / "a").rename(tmp_path / "b")
    (found,) = lines(did(tmp_path / "a", "three"))
    assert found.startswith(
        f"{tmp_path / '.cache' / 'journal.sqlite'}: 2.0000 USD were charged to the account 'a' before this run began"
    )
    assert lines(did(tmp_path / "a", "one two")) == [], "it is told once"
    assert lines(did(tmp_path / "c", "three")) == [], "nobody had this name"


def test_two_runs_of_one_name_in_different_places_have_one_account_if_they_have_one_journal(tmp_path: Path) -> None:
    did(tmp_path / "runs" / "a", "one two")
    # As a comparison does, which keeps what it asks in the journal of the first run, wherever it is itself.
    (found,) = lines(did(tmp_path / "else" / "a", "three", cache=tmp_path / "runs" / ".cache"))
    assert "2.0000 USD were charged to the account 'a' before this run began, by one that had its name" in found
    assert charged(tmp_path / "runs", "a") == 3


def test_steps_that_cost_nothing_ask_for_no_journal(tmp_path: Path) -> None:
    def free(words: str) -> list[str]:
        said = io.StringIO()
        step = Step(name="free", identity={"words": words}, finish="tiny_steps:nothing")
        Run(tmp_path / "a", [step], "", tmp_path / ".cache", Console(file=said)).execute()
        return lines(said.getvalue())

    assert free("one") == free("two") == []
    assert not (tmp_path / ".cache").exists()
