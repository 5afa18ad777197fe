"""What a task of a job array wrote down is there or is missing: never something else."""

from pathlib import Path

import pytest

from pipeline import parts, store
from pipeline.errors import DataError
from pipeline.parts import Part

ROWS = {"one": [{"text": "é\u2028", "logprob": -0.1}], "two": [], "three": [1, None]}


def written(path: Path) -> Part:
    part = Part(path)
    for key, value in ROWS.items():
        part.put_many("answers", {key: value})
    return part


def test_what_a_task_wrote_its_next_attempt_finds(tmp_path: Path) -> None:
    written(tmp_path / "work" / "0-of-2.jsonl")
    again = Part(tmp_path / "work" / "0-of-2.jsonl")
    assert again.get_many("answers", [*ROWS, "four"]) == ROWS
    assert (again.count("answers", ["one", "four"]), again.count("verdicts", ROWS)) == (1, 0)


def test_cut_at_any_byte_whole_rows_are_there_and_what_is_written_next_too(tmp_path: Path) -> None:
    written(tmp_path / "whole.jsonl")
    text = (tmp_path / "whole.jsonl").read_bytes()
    ends = [number + 1 for number, byte in enumerate(text) if byte == ord("\n")]
    path = tmp_path / "cut.jsonl"
    for length in range(len(text) + 1):
        path.write_bytes(text[:length])
        # A line is whole with its last brace; that its end is missing is no loss.
        whole = [key for key, end in zip(ROWS, ends, strict=True) if end - 1 <= length]
        part = Part(path)
        assert list(part.get_many("answers", ROWS)) == whole
        part.put_many("answers", {"four": 4})
        assert [key for _, key, _ in parts.rows(path)] == [*whole, "four"]


@pytest.mark.parametrize("place", [20, 60, 120])
def test_a_line_with_another_byte_is_passed_over(place: int, tmp_path: Path) -> None:
    written(tmp_path / "part.jsonl")
    text = bytearray((tmp_path / "part.jsonl").read_bytes())
    text[place] ^= 1
    (tmp_path / "part.jsonl").write_bytes(text)
    assert list(Part(tmp_path / "part.jsonl").get_many("answers", ROWS)) == ["two", "three"]


def test_a_disk_that_refuses_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "part.jsonl").mkdir()
    part = Part(tmp_path / "other.jsonl")
    part.path = tmp_path / "part.jsonl"
    with pytest.raises(DataError, match=r"part\.jsonl: cannot be written .*make room"):
        part.put_many("answers", ROWS)


def test_the_journal_takes_every_part_in_and_keeps_what_it_had(tmp_path: Path) -> None:
    journal = store.Journal(tmp_path / "journal.sqlite")
    journal.put_many("answers", {"one": "before"})
    written(tmp_path / "parts" / "0-of-2.jsonl")
    Part(tmp_path / "parts" / "1-of-2.jsonl").put_many("answers", {"four": 4})
    for _ in range(2):
        parts.merge(tmp_path / "parts", journal)
        assert journal.get_many("answers", [*ROWS, "four"]) == {**ROWS, "one": "before", "four": 4}
    parts.merge(tmp_path / "none", journal)
