"""`prefloop import` and `prefloop convert` as they are typed."""

from pathlib import Path

import pytest

from pipeline import cli, store
from pipeline.records import Pair, Thumb, Verdict, Vote

EXAMPLES = Path(__file__).parents[2] / "data" / "annotations"


def test_import_says_what_it_understood_and_leaves_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", str(EXAMPLES / "votes.csv"), "--to", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "votes.csv: read as votes" in said
    assert "6 rows = 6 imported + 0 skipped + 0 in the quarantine" in said
    assert "votes as the files have them: a 2, b 3, tie 1; 1 replaced by a later one" in said
    assert "2 pairs with two votes or more, 1 unanimous" in said
    pairs = list(store.read_jsonl(tmp_path / "out" / "pairs.jsonl", Pair))
    verdicts = list(store.read_jsonl(tmp_path / "out" / "verdicts.jsonl", Verdict))
    assert [verdict.pair_id for verdict in verdicts] == [pair.id for pair in pairs]
    assert len(list(store.read_jsonl(tmp_path / "out" / "votes.jsonl", Vote))) == 5
    assert not (tmp_path / "out" / "thumbs.jsonl").exists()


def test_import_says_how_many_answers_are_blank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text('{"prompt": "P?", "response_a": "one", "response_b": "", "winner": "b"}\n', encoding="utf-8")
    assert cli.main(["import", str(path), "--to", str(tmp_path / "out")]) == 0
    assert "1 answers are blank: a model said nothing, or nobody filled them in" in capsys.readouterr().out


def test_records_go_to_a_folder_of_the_file_s_name_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", str(EXAMPLES / "votes.csv")]) == 0
    assert (tmp_path / "runs" / "imported" / "votes" / "verdicts.jsonl").is_file()


def test_thumbs_are_left_beside_the_pairs(tmp_path: Path) -> None:
    files = [str(EXAMPLES / "thumbs.jsonl"), str(EXAMPLES / "openai.jsonl")]
    assert cli.main(["import", *files, "--to", str(tmp_path)]) == 0
    assert [thumb.good for thumb in store.read_jsonl(tmp_path / "thumbs.jsonl", Thumb)] == [True, False]


def test_a_value_of_choices_that_is_no_choice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for choices, problem in (("1=c", "--choices.1: 'c' found"), ("1", "needs NAME=VALUE")):
        words = ["import", str(EXAMPLES / "votes.csv"), "--to", str(tmp_path), "--choices", choices]
        assert cli.main(words) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-bad", "5"], "--max-bad: 5 found; needs a share from 0 to 1"),
        (["--max-bad", "nan"], "--max-bad: nan found"),
        (["--columns", "rater=who"], "--columns.rater: 'rater' found; Input should be 'prompt', 'a', 'b', 'vote'"),
        (["--prompt-split", "("], "--prompt-split: '(' found; needs to be a regular expression"),
        (["--format", "argila"], "no format is called 'argila'"),
    ],
)
def test_an_option_that_could_not_be_meant_is_refused_with_what_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert cli.main(["import", str(EXAMPLES / "votes.csv"), "--to", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_convert_says_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "f.jsonl"
    words = ["convert", str(EXAMPLES / "votes.csv"), "--to-format", "openai", "--to", str(target)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "2 rows of openai" in said and "not in this format: who voted" in said
    assert len(target.read_text(encoding="utf-8").splitlines()) == 2


def test_the_folder_of_a_converted_file_is_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "f.jsonl"
    assert cli.main(["convert", str(EXAMPLES / "votes.csv"), "--to-format", "openai", "--to", str(target)]) == 0
    assert len(target.read_text(encoding="utf-8").splitlines()) == 2


def test_records_are_not_written_to_where_a_file_is_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for folder in (taken, taken / "below"):
        assert cli.main(["import", str(EXAMPLES / "votes.csv"), "--to", str(folder)]) == 2
        assert capsys.readouterr().err.startswith(f"{taken}: a file is in the way")
    assert taken.read_text() == "mine"


def test_a_path_that_the_system_refuses_is_told_in_one_line_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    words = ["convert", str(EXAMPLES / "votes.csv"), "--to-format", "openai", "--to"]
    for name, reason in (("folder.jsonl", "Is a directory"), (f"{'x' * 300}.jsonl", "File name too long")):
        assert cli.main([*words, str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(tmp_path) in line and f": {reason}; " in line
