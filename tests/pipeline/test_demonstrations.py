"""Files of demonstrations are read as what they are, and rows that are none are told by file and row."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import preference_of, prompt_of, response_of

from pipeline import demonstrations
from pipeline.errors import DataError
from pipeline.importers.files import write

ASK, SAY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}

ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [ASK, SAY]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
    "prompt and completion": {"prompt": "Hi?", "completion": "Hello."},
    "turns of both": {"prompt": [ASK], "completion": [SAY]},
}


def kept(path: Path, **options: Any) -> list[demonstrations.Demonstration]:
    return demonstrations.read([path], "text", **options)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz"])
def test_conversations_are_read_in_the_shapes_that_people_have(tmp_path: Path, row: Any, suffix: str) -> None:
    path = tmp_path / f"shown{suffix}"
    write(path, [row, row])
    found = kept(path)
    assert [[turn.model_dump() for turn in each.messages] for each in found] == [[ASK, SAY]] * 2
    assert found[0].prompt is not None
    assert [turn.content for turn in found[0].prompt.messages] == ["Hi?"]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_turns_are_json_in_a_cell_of_a_table(tmp_path: Path, row: dict[str, Any], suffix: str) -> None:
    path = tmp_path / f"shown{suffix}"
    cells = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
    write(path, [cells])
    (found,) = kept(path)
    assert [turn.model_dump() for turn in found.messages] == [ASK, SAY]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_system_column_is_the_first_message_unless_there_is_one_already(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "shown.jsonl"
    terse, kind = ({"role": "system", "content": said} for said in ("You are terse.", "You are kind."))
    write(path, [{**row, "system": system} for system in (terse["content"], "", None)])
    found = [[turn.model_dump() for turn in each.messages] for each in kept(path)]
    assert found == [[terse, ASK, SAY], [ASK, SAY], [ASK, SAY]]
    write(path, [{"messages": [kind, ASK, SAY], "system": terse["content"]}])
    assert [turn.model_dump() for turn in kept(path)[0].messages] == [kind, ASK, SAY]


@pytest.mark.parametrize("answer", ['{"messages": [{"role": "user", "content": "x"}]}', '[{"name": "Ana"}]', "[{"])
def test_a_completion_that_is_json_and_no_list_of_turns_is_learned_as_it_is(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "shown.csv"
    write(path, [{"prompt": "As JSON, please.", "completion": answer}])
    assert kept(path)[0].messages[-1].content == answer


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_plain_texts_keep_every_character(tmp_path: Path, suffix: str) -> None:
    text = 'A "text", with\ttabs,\r\nlines and é.'
    path = tmp_path / f"texts{suffix}"
    write(path, [{"text": text, "kind": "x"}])
    assert [each.text for each in kept(path)] == [text]
    assert kept(path)[0].prompt is None


def test_the_column_of_texts_may_have_another_name(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    write(path, [{"body": "One."}])
    assert demonstrations.read([path], "body")[0].text == "One."
    with pytest.raises(DataError, match="the columns are body; needs messages, prompt and completion, or text"):
        kept(path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [SAY]}, "it ends with the turns of assistant, not of user and assistant"),
        ({"messages": [ASK]}, "it ends with the turns of user, not of user and assistant"),
        ({"messages": [ASK, SAY, SAY]}, "it ends with the turns of assistant and assistant"),
        ({"messages": [ASK, {**SAY, "content": " "}]}, "the last question or its answer is empty"),
        ({"messages": [ASK, {"role": "assistant", "content": None}]}, "a turn has role, content; needs"),
        ({"messages": [{"role": "tool", "content": "x"}, SAY]}, "Input should be 'system', 'user' or 'assistant'"),
        ({"messages": "Hi?"}, "messages are text here"),
        ({"text": "  "}, "the text is empty"),
        ({"prompt": "Hi?"}, "the columns are prompt; needs"),
        ({"prompt": "Hi?", "completion": ""}, "completion is empty"),
        ({"prompt": None, "completion": "Hello."}, "prompt is empty"),
        ({"prompt": [], "completion": [], "text": None}, "prompt is empty and completion is empty"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [ASK, SAY], "system": 5}, "system: 5 found; needs a text"),
        ({"conversations": None, "id": 7}, "conversations is empty"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_demonstration_is_told_with_its_place(tmp_path: Path, row: Any, told: str) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text(json.dumps({"messages": [ASK, SAY]}) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        kept(path)
    assert str(raised.value).startswith(f"{path}:2: {told}"), raised.value
    assert str(raised.value).endswith("; mend or remove these rows")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_empty_text_of_a_table_is_told_as_empty(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"texts{suffix}"
    write(path, [{"text": "One.", "kind": "x"}, {"text": None, "kind": "x"}])
    with pytest.raises(DataError, match=": text is empty; mend or remove these rows"):
        kept(path)


def test_of_many_bad_rows_the_first_three_are_named(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text("{\n" * 5, encoding="utf-8")
    with pytest.raises(DataError, match=r"shown.jsonl:1: not JSON .*shown.jsonl:3: not JSON .*\(and 2 more\)"):
        kept(path)


def test_a_limit_counts_rows_over_all_files_and_reads_no_further(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    write(one, [{"text": "1"}, {"text": "2"}])
    write(other, [{"text": "3"}, {"bad": "row"}])
    found = demonstrations.read([one, other], "text", 3)
    assert [each.text for each in found] == ["1", "2", "3"]


def test_no_rows_at_all_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text("")
    with pytest.raises(DataError, match="there are no rows"):
        kept(path)


def test_chosen_answers_are_demonstrations_and_a_cut_one_says_so() -> None:
    whole = preference_of(prompt_of("One?"), response_of("Yes."), response_of("No.", index=1))
    cut = preference_of(prompt_of("Two?"), response_of("It is", finished=False), response_of("No.", index=1))
    found = {each.messages[0].content: each for each in demonstrations.of([whole, cut])}
    assert [turn.content for turn in found["One?"].messages] == ["One?", "Yes."]
    assert (found["One?"].finished, found["Two?"].finished) == (True, False)
