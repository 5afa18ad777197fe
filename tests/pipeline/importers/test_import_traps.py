"""What goes wrong with people's files, each by the name of its trap."""

import copy
import gzip
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline import votes
from pipeline.errors import DataError
from pipeline.importers import files
from pipeline.importers.base import Options, Source
from pipeline.importers.collect import Collected, collect, format_names, format_of, recognised

EXAMPLES = Path(__file__).parents[3] / "data" / "annotations"

AB = {"prompt": "P?", "response_a": "one", "response_b": "two"}


def read(tmp_path: Path, rows: Any, name: str = "auto", max_bad: float = 1.0, **options: Any) -> Collected:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return collect([path], name, Options(**options), max_bad)


def reasons(found: Collected) -> str:
    return "\n".join(each.reason for each in found.quarantine)


def test_numbers_are_never_guessed_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    rows = [{**AB, "rater": "ana", "choice": value} for value in (1, 2, 0)]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the vote 1 can mean anything; say what with choices"):
        read(tmp_path, rows, max_bad=0.01)
    choices = {"1": "a", "2": "b", "0": "tie"}
    # Votes of one person on one pair replace each other, so each row here has its own prompt.
    rows = [{**row, "prompt": f"P{n}?"} for n, row in enumerate(rows)]
    assert read(tmp_path, rows, choices=choices).counts().choices == {"a": 1, "b": 1, "tie": 1}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("rater", [{"rater": "ana"}, {}])
def test_nobody_voted_yet_is_the_same_in_every_kind_of_file(tmp_path: Path, suffix: str, rater: dict[str, str]) -> None:
    rows = [{**AB, "prompt": f"P{n}?", **rater, "choice": "a" if n else None} for n in range(2)]
    path = tmp_path / f"rows{suffix}"
    files.write(path, iter(rows))
    for columns in ({}, {"vote": "choice"}):
        counts = collect([path], "auto", Options(columns=columns), 0).counts()
        assert (counts.imported, counts.skipped, counts.quarantined) == (1, {"no vote": 1}, 0)


def test_a_column_that_is_not_there_and_a_cell_that_is_empty_are_told_apart(tmp_path: Path) -> None:
    rows = [{**AB, "response_b": None, "winner": "a"}, {**AB, "prompt": None, "winner": "a"}, {**AB, "winner": "a"}]
    told = reasons(read(tmp_path, rows))
    assert told.startswith("response_b is empty; fill it in or leave the row out, or write [{")
    assert told.endswith("\nprompt: prompt is empty; fill it in")
    with pytest.raises(DataError, match=r"no vote: the row has .*_b; say which it is with columns \(vote=NAME\)"):
        read(tmp_path, [AB], name="pairs", max_bad=0)


VOTE = {**AB, "who": "ana", "choice": "a"}
ASKED = "\n\nHuman: P?\n\nAssistant:"


def test_the_column_that_says_who_voted_is_theirs_whatever_it_is_called(tmp_path: Path) -> None:
    rows = [{**VOTE, "who": who, "choice": choice} for who, choice in (("ana", "a"), ("ben", "b"), ("ana", "b"))]
    found = read(tmp_path, rows, max_bad=0, columns={"annotator": "who"})
    counts = found.counts()
    assert set(counts.formats.values()) == {"votes"}
    assert (counts.votes, counts.annotators, counts.anonymous_votes, counts.votes_replaced) == (2, 2, 0, 1)


TALK = {f"conversation_{side}": [{"role": "user", "content": "P?"}, {"role": "assistant", "content": side}]
        for side in "ab"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("pairs", VOTE),
        ("rankings", {"prompt": "P?", "responses": ["one", "two"], "ranking": [0, 1], "who": "ana"}),
        ("arena", {**TALK, "winner": "model_a", "who": "ana"}),
        ("label_studio", {**AB, "annotation_id": 1, "said": [{"selected": "left"}], "who": "ana"}),
        ("hf_preference", {"prompt": "P?", "chosen": "one", "rejected": "two", "who": "ana"}),
        ("llama_factory", {"instruction": "P?", "chosen": "one", "rejected": "two", "who": "ana"}),
        ("anthropic_hh", {"chosen": f"{ASKED} one", "rejected": f"{ASKED} two", "who": "ana"}),
        ("shp", {"history": "P?", "human_ref_A": "one", "human_ref_B": "two", "labels": 1, "who": "ana"}),
        ("openai", {"input": {"messages": [{"role": "user", "content": "P?"}]}, "preferred_output": "one",
                    "non_preferred_output": "two", "who": "ana"}),
    ],
)  # fmt: skip
def test_who_voted_is_read_from_the_named_column_in_every_format_that_has_one_vote_a_row(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    (vote,) = read(tmp_path, [row], name=name, max_bad=0, columns={"annotator": "who"}).votes()
    assert vote.annotator == "ana"
    with pytest.raises(DataError, match=r"no column 'wo': the row has .*, who"):
        read(tmp_path, [row], name=name, max_bad=0, columns={"annotator": "wo"})


@pytest.mark.parametrize("what", ["prompt", "a", "b", "vote", "annotator"])
@pytest.mark.parametrize("name", ["votes", "pairs"])
def test_a_named_column_that_is_not_there_is_a_bad_row(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(DataError, match=r"no column 'alice': the row has prompt, .*, choice; mend its name in columns"):
        read(tmp_path, [VOTE], name=name, max_bad=0, columns={what: "alice"})


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("prompt", r"no column is called what columns says \(prompt=alice\)"),
        ("vote", r"no column is called what columns says \(vote=alice\)"),
        ("annotator", "no column 'alice': the row has"),
        ("votes", "no column 'alice': the row has"),
    ],
)
def test_a_named_column_that_is_not_there_is_told_where_the_format_is_not_named(
    tmp_path: Path, what: str, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        read(tmp_path, [VOTE], max_bad=0, columns={what: "alice"})


def test_columns_of_each_annotator_are_recognised_by_their_names(tmp_path: Path) -> None:
    row = {**AB, "rater": "the firm", "choice": "tie", "alice": "a", "bob": "b"}
    found = read(tmp_path, [row], max_bad=0, columns={"votes": "alice+bob"})
    assert sorted(vote.annotator for vote in found.votes()) == ["alice", "bob"]


def test_thumbs_are_recognised_by_the_columns_that_are_named(tmp_path: Path) -> None:
    row = {"asked": "P?", "completion": "x", "stars": 5}
    columns = {"prompt": "asked", "vote": "stars"}
    (thumb,) = read(tmp_path, [row], max_bad=0, columns=columns, choices={"5": "a"}).thumbs
    assert (thumb.prompt.text, thumb.good) == ("P?", True)


ODD: tuple[Any, ...] = (None, 5, True, "", "x", "[{", '[{"selected": "left"}]', [], [5], [["left"]], {}, {"x": []},
                        float("nan"), [{"selected": ["left"]}], [{"value": {}}])  # fmt: skip


def spoilt(value: Any) -> Iterator[Any]:
    """The value with something odd in each place of it, one at a time."""
    yield from ODD
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for other in spoilt(value[key]):
            copied = copy.copy(value)
            copied[key] = other
            yield copied


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_an_odd_row_is_never_a_traceback(path: Path) -> None:
    options = Options(assume_submitted="nested" in path.name)
    reader = format_of(recognised(path, options))
    others = [format_of(name) for name in format_names()]
    for raw in files.rows(path):
        assert raw.value is not None
        for row in spoilt(raw.value):
            if isinstance(row, dict):
                Collected()._take(path, files.Raw(1, row), reader, options)
                assert all(0 <= each.recognise([row], options) <= 1 for each in others)


def test_a_named_prompt_that_is_not_there_is_a_bad_row_of_a_preference_set(tmp_path: Path) -> None:
    row = {"prompt": "P?", "chosen": "one", "rejected": "two"}
    with pytest.raises(DataError, match="no column 'typo': the row has prompt, chosen, rejected"):
        read(tmp_path, [row], max_bad=0, columns={"prompt": "typo"})


def test_a_selection_that_is_no_word_is_a_bad_row(tmp_path: Path) -> None:
    found = read(tmp_path, [task({"result": [{"value": {"selected": said}}]}) for said in (["left"], "left")])
    assert reasons(found) == "selected: ['left'] found; needs left or right"


def test_a_history_that_is_no_list_is_a_bad_row(tmp_path: Path) -> None:
    row = {"instruction": "P?", "chosen": "one", "rejected": "two"}
    found = read(tmp_path, [{**row, "history": 5}, row])
    assert reasons(found) == "history: 5 found; needs a list of what the user and the assistant said"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt_split": "(Answer:"}, r"'\(Answer:' found; needs to be a regular expression \(missing \)"),
        ({"columns": {"rater": "who"}}, "Input should be 'prompt', 'a', 'b', 'vote', 'annotator' or 'votes'"),
        ({"format": "argila"}, "no format is called 'argila'; there are: anthropic_hh, arena, argilla"),
    ],
)
def test_an_option_that_could_do_nothing_is_refused_before_anything_is_read(options: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Source(files=(Path("never.csv"),), **options)


def test_a_map_of_1_and_2_does_not_silently_misread_0_and_1(tmp_path: Path) -> None:
    rows = [{**AB, "prompt": f"P{n}?", "rater": "ana", "choice": n % 2} for n in range(20)]
    with pytest.raises(DataError, match="of 20 votes not one is for b"):
        read(tmp_path, rows, choices={"1": "a", "2": "b", "0": "tie"})


def test_shp_says_1_for_a_and_0_for_b(tmp_path: Path) -> None:
    rows = [{"history": "P?", "human_ref_A": "one", "human_ref_B": "two", "labels": label} for label in (0, 2)]
    found = read(tmp_path, rows)
    assert found.counts().choices == {"a": 0, "b": 1, "tie": 0}
    assert "needs 1 (A is better) or 0 (B is)" in reasons(found)


def test_identical_answers_are_skipped_and_no_fault_of_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, [{**AB, "response_b": "one", "winner": "a"}, {**AB, "winner": "a"}], max_bad=0)
    counts = found.counts()
    assert (counts.pairs, counts.skipped, counts.quarantined) == (1, {"the two answers are the same text": 1}, 0)


def test_a_swapped_pair_is_the_same_pair_and_its_votes_are_exchanged(tmp_path: Path) -> None:
    swapped = {"prompt": "P?", "response_a": "two", "response_b": "one"}
    rows = [{**AB, "rater": "ana", "choice": "a"}, {**swapped, "rater": "ben", "choice": "a", "shown": "ba"}]
    ((pair, (ana, ben)),) = read(tmp_path, rows).judgements()
    text = {"a": pair.a.text, "b": pair.b.text}
    assert (text[ana.choice], text[ben.choice]) == ("one", "two")
    assert text[str(ben.shown)[0]] == "one"  # ben saw the file's b, which is `one`, on the left


def test_votes_on_the_same_texts_are_on_one_pair_whoever_is_said_to_have_written_them(tmp_path: Path) -> None:
    swapped = {"prompt": "P?", "response_a": "two", "response_b": "one", "source_a": "kto", "source_b": "base"}
    rows = [
        {**AB, "rater": "ana", "choice": "a", "source_a": "base", "source_b": "dpo"},
        {**AB, "rater": "ben", "choice": "b", "source_a": "base", "source_b": "kto"},
        {**swapped, "rater": "cy", "choice": "a"},
        {**swapped, "rater": "ana", "choice": "tie"},
    ]
    ((pair, cast),) = read(tmp_path, rows).judgements()
    text = {"a": pair.a.text, "b": pair.b.text, "tie": "tie"}
    assert {vote.annotator: text[vote.choice] for vote in cast} == {"ana": "tie", "ben": "two", "cy": "two"}
    # The first row says who wrote what.
    assert {side.text: side.source for side in (pair.a, pair.b)} == {"one": "base", "two": "dpo"}


def test_the_later_vote_of_a_person_counts_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    late, early = {"choice": "b", "at": "2026-01-02T00:00:00Z"}, {"choice": "a", "at": "2026-01-01T00:00:00Z"}
    for rows in ([early, late], [late, early]):
        found = read(tmp_path, [{**AB, "rater": "ana", **row} for row in rows])
        ((pair, (vote,)),) = found.judgements()
        assert {"a": pair.a.text, "b": pair.b.text}[vote.choice] == "two"
        assert found.counts().votes_replaced == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2024-01-02 9:05", "2024-01-02 10:05"),
        ("2024-01-02 9:05 UTC", "2024-01-02T10:05:00Z"),
        ("2024-03-01T12:00:00+02:00", "2024-03-01T10:30:00+00:00"),
        ("2024-03-01T10:30:00+00:00", "2024-03-01T10:30:00.5Z"),
        ("999999999", "1000000001"),
        (1704153600.25, 1704153600.5),
        ("1704153600000", "1704153600001"),
    ],
)
def test_times_of_one_kind_are_compared_as_times_and_not_as_texts(tmp_path: Path, first: Any, second: Any) -> None:
    for rows in ([("a", first), ("b", second)], [("b", second), ("a", first)]):
        found = read(tmp_path, [{**AB, "rater": "ana", "choice": said, "at": at} for said, at in rows])
        ((pair, (vote,)),) = found.judgements()
        assert {"a": pair.a.text, "b": pair.b.text}[vote.choice] == "two"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2/1/2024", "10/1/2024"),  # in February and October, or both in January
        ("2024-03-01T12:00:00", "2024-03-01T11:00:00Z"),  # wherever the first was
        ("2024-03-01", "2024-03-01 11:00"),  # whenever on that day
        ("2024-03-01 9:05 PM", "2024-03-01 10:05 AM"),
        ("1704153600", "1704153600001"),  # seconds and milliseconds
        ("2024-03-01", ""),
        ("nan", "2024-03-01"),
        ("2024-03-01", "2024-03-01"),
    ],
)
def test_of_times_that_cannot_tell_which_was_first_the_later_row_counts(tmp_path: Path, one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        rows = [{**AB, "rater": "ana", "choice": said, "at": at} for said, at in (("a", first), ("b", second))]
        ((pair, (vote,)),) = read(tmp_path, rows).judgements()
        assert {"a": pair.a.text, "b": pair.b.text}[vote.choice] == "two"


def test_hh_sides_that_part_early_have_no_one_prompt_and_an_empty_answer_is_one(tmp_path: Path) -> None:
    sides = [
        ("Human: Hi|Assistant: Hello.", "Human: Hi|Assistant:"),
        ("Human: Hi|Assistant: A|Human: x|Assistant: C", "Human: Hi|Assistant: B|Human: x|Assistant: D"),
        ("Human: Hi|Human: Ho|Assistant: A", "Human: Hi|Human: Ho|Assistant: B"),
        ("Human: He said Human: hi|Assistant: A", "Human: He said Human: hi|Assistant: B"),
        ("Human: Hi", "Human: Hi"),
    ]
    turns = [["".join(f"\n\n{turn}" for turn in side.split("|")) for side in both] for both in sides]
    found = read(tmp_path, [{"chosen": chosen, "rejected": rejected} for chosen, rejected in turns])
    pairs = [pair for pair, _ in found.judgements()]
    assert {pairs[0].a.text, pairs[0].b.text} == {"Hello.", ""}
    assert [message.content for message in pairs[1].prompt.messages] == ["Hi", "Ho"]
    assert pairs[2].prompt.text == "He said Human: hi"
    assert [each.place for each in found.quarantine] == [2, 5]


@pytest.mark.parametrize("options", [{}, {"prompt_split": r"\nA:"}])
def test_a_system_column_is_the_first_message_of_the_prompt(tmp_path: Path, options: dict[str, Any]) -> None:
    # As in Intel/orca_dpo_pairs, where some rows have none.
    asked = {} if options else {"question": "Why?"}
    before = "Why?\nA:" if options else ""
    rows = [
        {"system": system, **asked, "chosen": f"{before} {n}", "rejected": f"{before} no"}
        for n, system in enumerate(("You are terse.", "", None))
    ]
    prompts = [pair.prompt.messages for pair, _ in read(tmp_path, rows, max_bad=0, **options).judgements()]
    assert [message.role for message in prompts[0]] == ["system", "user"]
    assert prompts[0][0].content == "You are terse."
    assert [len(prompt) for prompt in prompts] == [2, 1, 1]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("votes", {**AB, "rater": "ana", "choice": "a"}),
        ("pairs", {**AB, "votes_a": 2, "votes_b": 1}),
        ("rankings", {"prompt": "P?", "responses": ["one", "two"], "ranking": [0, 1]}),
        (
            "ratings",
            {"prompt": "P?", "completions": [{"response": "one", "score": 2}, {"response": "two", "score": 1}]},
        ),
        ("argilla", {**AB, "preference.responses": ["response_a"], "preference.responses.status": ["submitted"]}),
        (
            "label_studio",
            {"data": AB, "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}]},
        ),
    ],
)
def test_a_system_column_counts_in_every_format_that_has_prompts(
    name: str, row: dict[str, Any], tmp_path: Path
) -> None:
    told = {**row.get("data", row), "system": "You are terse."}
    found = read(tmp_path, [{**row, "data": told} if "data" in row else told], name=name, max_bad=0)
    ((pair, _),) = found.judgements()
    assert [message.content for message in pair.prompt.messages] == ["You are terse.", "P?"]


def test_a_system_column_of_thumbs_counts(tmp_path: Path) -> None:
    rows = [{"system": "You are terse.", "prompt": "P?", "completion": "one", "label": True}]
    (thumb,) = read(tmp_path, rows, max_bad=0).thumbs
    assert [message.content for message in thumb.prompt.messages] == ["You are terse.", "P?"]


ALPACA = {"instruction": "Translate to English", "input": "Bonjour"}
PANDALM = {"response1": "Hello", "response2": "Bye", "annotator1": 1, "annotator2": 2}
RATED = [{"response": "Hello", "score": 2}, {"response": "Bye", "score": 1}]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_input_of_an_instruction_is_part_of_the_prompt_of_a_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pandalm{suffix}"
    files.write(path, [{**ALPACA, **PANDALM}, {**ALPACA, "instruction": "Say hello", "input": None, **PANDALM}])
    found = collect([path], "auto", Options(choices={"1": "a", "2": "b"}), 0)
    assert [pair.prompt.text for pair, _ in found.judgements()] == ["Translate to English\nBonjour", "Say hello"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("votes", {"response_a": "Hello", "response_b": "Bye", "rater": "ana", "choice": "a"}),
        ("pairs", {"response_a": "Hello", "response_b": "Bye", "winner": "a"}),
        ("ratings", {"completions": RATED}),
        ("rankings", {"responses": ["Hello", "Bye"], "ranking": [0, 1]}),
        ("thumbs", {"output": "Hello", "label": True}),
        ("llama_factory", {"chosen": "Hello", "rejected": "Bye"}),
    ],
)
def test_an_instruction_and_its_input_are_one_prompt_in_every_format(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    found = read(tmp_path, [{**ALPACA, **row}], name=name, max_bad=0)
    assert [json.loads(line)["messages"][0]["content"] for line in found.prompts.values()] == [
        "Translate to English\nBonjour"
    ]


def test_an_input_that_is_none_of_an_instruction_changes_no_prompt(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "P?"}]
    rows = [
        {**AB, "input": "x", "winner": "a"},
        {"instruction": "Do it", "question": "Why?", "input": "x", **PANDALM, "winner": "a"},
        {"instruction": said, "input": "x", "response_a": "one", "response_b": "four", "winner": "a"},
    ]
    found = read(tmp_path, rows[:1] + rows[2:], max_bad=0)
    assert [pair.prompt.text for pair, _ in found.judgements()] == ["P?", "P?"]
    found = read(tmp_path, rows[1:2], name="pairs", max_bad=0, columns={"prompt": "question", "vote": "winner"})
    assert [pair.prompt.text for pair, _ in found.judgements()] == ["Why?"]


def test_an_arena_row_that_nobody_judged_is_no_vote_and_not_a_bad_one(tmp_path: Path) -> None:
    sides = {f"conversation_{side}": [{"role": "user", "content": "P?"}, {"role": "assistant", "content": side}]
             for side in "ab"}  # fmt: skip
    rows = [{**sides, "model_a": "x", "model_b": "y", "winner": winner} for winner in (None, "model_a")]
    counts = read(tmp_path, rows, max_bad=0).counts()
    assert (counts.imported, counts.skipped, counts.quarantined) == (1, {"no vote": 1}, 0)


def test_a_conversation_that_has_its_system_message_gets_no_second_one(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Why?"}]
    row = {"system": "You are terse.", "chosen": [*said, {"role": "assistant", "content": "So."}],
           "rejected": [*said, {"role": "assistant", "content": "No."}]}  # fmt: skip
    ((pair, _),) = read(tmp_path, [row]).judgements()
    assert [message.role for message in pair.prompt.messages] == ["system", "user"]


def test_texts_without_a_prompt_are_refused_until_somebody_says_where_it_ends(tmp_path: Path) -> None:
    row = {"chosen": "Q: sky?\nA: It is blue.", "rejected": "Q: sky?\nA: It is green."}
    assert "prompt_split" in reasons(read_bad(tmp_path, [row]))
    ((pair, _),) = read(tmp_path, [row], prompt_split=r"\nA:").judgements()
    # What both answers begin with stays with the answers.
    assert pair.prompt.text == "Q: sky?\nA:"
    assert {pair.a.text, pair.b.text} == {" It is blue.", " It is green."}


def read_bad(tmp_path: Path, rows: Any, **options: Any) -> Collected:
    """As `read`, with a good row after the bad ones, so that something is left."""
    good = {"prompt": "P?", "chosen": "one", "rejected": "two"}
    return read(tmp_path, [*rows, good], **options)


def test_a_prompt_keeps_its_blanks_and_an_answer_its_own(tmp_path: Path) -> None:
    ((pair, _),) = read(tmp_path, [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green.\n"}]).judgements()
    assert {pair.a.text, pair.b.text} == {" blue.", " green.\n"}


ASKS, SAYS = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
SAYS_NOT = {"role": "assistant", "content": "Go away."}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(
    "row",
    [
        # As binarised UltraFeedback has them, and with the prompt apart.
        {"prompt": "Hi?", "chosen": [ASKS, SAYS], "rejected": [ASKS, SAYS_NOT], "score_chosen": 8, "score_rejected": 3},
        {"prompt": [ASKS], "chosen": [SAYS], "rejected": [SAYS_NOT]},
        {"prompt": "Hi?", "chosen": [SAYS], "rejected": [SAYS_NOT]},
        {"prompt": [{**ASKS, "name": "Ana"}], "chosen": [{**SAYS, "weight": 1}], "rejected": [SAYS_NOT]},
        {"prompt": {"messages": [ASKS]}, "chosen": "Hello.", "rejected": "Go away."},
        {"prompt": [ASKS], "response_a": [SAYS], "response_b": [SAYS_NOT], "rater": "ana", "choice": "a"},
    ],
)
def test_messages_as_json_in_a_cell_are_the_messages(tmp_path: Path, row: dict[str, Any], suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    files.write(path, [{name: json.dumps(value) if isinstance(value, list | dict) else value
                        for name, value in row.items()}])  # fmt: skip
    ((pair, (vote,)),) = collect([path], "auto", Options(), 0).judgements()
    assert [(turn.role, turn.content) for turn in pair.prompt.messages] == [("user", "Hi?")]
    assert {pair.a.text, pair.b.text} == {"Hello.", "Go away."}
    assert {"a": pair.a.text, "b": pair.b.text}[vote.choice] == "Hello."


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ana", "age": 3}',
        json.dumps({"messages": [ASKS, SAYS]}),
        '[{"from": "Oslo", "to": "Rome", "value": 7}]',
        '[{"role": "admin", "content": "x"}]',
        '[{"role": "user"}]',
        "[{" * 20_000,
    ],
)
def test_an_answer_that_is_json_and_no_list_of_turns_is_a_text(tmp_path: Path, text: str) -> None:
    for row in ({"chosen": text, "rejected": "no"}, {"response_a": text, "response_b": "no", "winner": "a"}):
        ((pair, _),) = read(tmp_path, [{"prompt": "As JSON, please.", **row}], max_bad=0).judgements()
        assert text in (pair.a.text, pair.b.text)


def test_conversations_that_part_early_and_several_turns_are_no_answer(tmp_path: Path) -> None:
    user, bot = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    rows = [
        {"chosen": [user, bot, user, bot], "rejected": [user, {**bot, "content": "z"}, user, {**bot, "content": "w"}]},
        {"prompt": "P?", "chosen": [bot], "rejected": [user]},
        {"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
    ]
    found = read_bad(tmp_path, rows)
    assert [each.place for each in found.quarantine] == [1, 2, 3, 4]
    assert "part before the last answer" in reasons(found)
    assert "must not be empty" in reasons(found)


def test_argilla_drafts_discards_and_suggestions_are_no_votes(tmp_path: Path) -> None:
    flat = {
        "prompt": "P?", "response_a": "one", "response_b": "two",
        "preference.responses": ["a", "b", "b"], "preference.responses.users": ["1", "2", "3"],
        "preference.responses.status": ["submitted", "discarded", "draft"], "preference.suggestion": "b",
    }  # fmt: skip
    counts = read(tmp_path, [flat]).counts()
    assert counts.choices == {"a": 1, "b": 0, "tie": 0}
    assert counts.votes_skipped == {"discarded": 1, "draft": 1}


def argilla_row(value: Any, **more: Any) -> dict[str, Any]:
    return {**AB, "preference.responses": [value], "preference.responses.users": ["1"],
            "preference.responses.status": ["submitted"], **more}  # fmt: skip


@pytest.mark.parametrize("nothing", [None, []])
def test_an_argilla_record_that_nobody_annotated_is_skipped_whether_it_has_nulls_or_empty_lists(
    tmp_path: Path, nothing: Any
) -> None:
    names = ("preference.responses", "preference.responses.users", "preference.responses.status")
    counts = read(tmp_path, [argilla_row("a"), {**AB, **dict.fromkeys(names, nothing)}], max_bad=0).counts()
    assert (counts.imported, counts.skipped) == (1, {"no submitted answer": 1})


def ranks(a: Any, b: Any) -> list[dict[str, Any]]:
    return [{"rank": a, "value": "response_a"}, {"rank": b, "value": "response_b"}]


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (ranks(1, 2), "a"),
        (ranks(2, 1), "b"),
        (ranks(1, 1), "tie"),
        ({"rank": [1, 2], "value": ["response_a", "response_b"]}, "a"),
        ({"rank": [3, 1, 2], "value": ["response_a", "response_c", "response_b"]}, "b"),
        (json.dumps(ranks(2, 1)), "b"),
        (["response_b", "response_a"], "b"),
    ],
)
def test_an_argilla_ranking_names_the_best_first_or_says_each_rank(tmp_path: Path, value: Any, choice: str) -> None:
    counts = read(tmp_path, [argilla_row(value)], max_bad=0).counts()
    assert counts.choices == {"a": 0, "b": 0, "tie": 0, choice: 1}


@pytest.mark.parametrize(
    "value",
    [
        {"response_a": 1, "response_b": 2},
        {"rank": [1], "value": ["response_a", "response_b"]},
        {"rank": 1, "value": "response_a"},
        ranks("best", 2),
        ranks(None, 2),
        ranks(1, 2)[:1],
        ["response_a", "response_a"],
        ["response_a", ["response_b"]],
        [],
        '{"rank": ',
    ],
)
def test_an_argilla_ranking_that_says_nothing_of_both_is_a_bad_row(tmp_path: Path, value: Any) -> None:
    found = read(tmp_path, [argilla_row("a"), argilla_row(value)])
    assert [each.place for each in found.quarantine] == [2]


@pytest.mark.parametrize(
    "older",
    [
        {"value": 5, "user_id": "1", "status": "submitted"},
        [{"value": "a", "status": "submitted"}, 5],
    ],
)
def test_answers_of_argilla_1_that_are_no_lists_are_a_bad_row(tmp_path: Path, older: Any) -> None:
    found = read(tmp_path, [{**AB, "preference": older}, argilla_row("a")], name="argilla")
    assert [each.place for each in found.quarantine] == [1]


def test_argillas_nested_export_does_not_say_what_is_submitted_so_somebody_must(tmp_path: Path) -> None:
    fields = {"prompt": "P?", "response_a": "one", "response_b": "two"}
    nested = {"fields": fields, "responses": {"preference": [{"value": ["response_b", "response_a"], "user_id": "1"}]}}
    with pytest.raises(DataError, match="assume_submitted"):
        read(tmp_path, [nested], max_bad=0)
    found = read(tmp_path, [nested], assume_submitted=True)
    assert found.counts().choices == {"a": 0, "b": 1, "tie": 0}  # a ranking names the best first


def task(*annotations: Any) -> dict[str, Any]:
    return {"data": {"prompt": "P?", "answer1": "one", "answer2": "two"}, "annotations": list(annotations)}


def test_label_studio_cancelled_empty_and_contradicting_annotations_are_no_votes(tmp_path: Path) -> None:
    left = {"type": "pairwise", "value": {"selected": "left"}}
    tie = {"type": "choices", "value": {"choices": ["tie"]}}
    rows = [
        task({"completed_by": 1, "was_cancelled": True, "result": [left]}, {"completed_by": 2, "result": []}),
        task({"completed_by": {"id": 3, "email": "x@example.org"}, "result": [left]}),
        task({"completed_by": 4, "result": [left, tie]}),
    ]
    found = read(tmp_path, rows)
    assert found.counts().skipped == {"cancelled": 1}
    assert [vote.annotator for _, votes_ in found.judgements() for vote in votes_] == ["3"]
    assert "one annotation says a and tie" in reasons(found)


def test_an_annotator_by_number_is_one_person_with_gaps_in_the_column_and_without(tmp_path: Path) -> None:
    # Parquet has whole numbers as they are, and as floats where some are missing; pandas then has NaN for them.
    whole, gaps = tmp_path / "whole.parquet", tmp_path / "gaps.parquet"
    files.write(whole, [{**AB, "rater": 3, "choice": "a"}])
    files.write(gaps, [{**AB, "prompt": "Q?", "rater": rater, "choice": "b"} for rater in (3.0, None, math.nan)])
    found = collect([whole, gaps], "votes", Options(), 0)
    assert sorted(vote.annotator for vote in found.votes()) == ["3", "3", "anonymous/1", "anonymous/2"]


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_blank_annotator_is_nobody_in_particular_and_their_votes_replace_none(
    tmp_path: Path, blank: str | None
) -> None:
    talk = {f"conversation_{side}": [{"role": "user", "content": "P?"}, {"role": "assistant", "content": side}]
            for side in "ab"}  # fmt: skip
    left = {"result": [{"type": "pairwise", "value": {"selected": "left"}}], "completed_by": blank}
    twice = {
        "votes": [{**AB, "rater": blank, "choice": "a"}] * 2,
        "arena": [{**talk, "winner": "model_a", "judge": blank}] * 2,
        "rankings": [{"prompt": "P?", "responses": ["one", "two"], "ranking": [0, 1], "annotator": blank}] * 2,
        "argilla": [{**AB, "preference.responses": ["a"] * 2, "preference.responses.users": [blank] * 2,
                     "preference.responses.status": ["submitted"] * 2}],
        "label_studio": [task(left, left)],
    }  # fmt: skip
    for name, rows in twice.items():
        counts = read(tmp_path, rows, name=name, max_bad=0).counts()
        assert (counts.votes, counts.annotators, counts.votes_replaced) == (2, 0, 0), name


HEAD = "prompt,response_a,response_b,rater,choice\n"


@pytest.mark.parametrize(("cell", "told"), [("", "empty"), ('""', "empty"), ("nan", "nan")])
def test_an_answer_that_is_missing_in_a_table_is_a_bad_row_that_says_how_an_answer_like_it_is_written(
    tmp_path: Path, cell: str, told: str
) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(f"{HEAD}P?,one,{cell},ana,b\nP?,one,two,ana,a\n", encoding="utf-8")
    found = collect([path], "auto", Options(), 1)
    assert [each.place for each in found.quarantine] == [2]
    assert reasons(found).startswith(f"response_b is {told}; fill it in or leave the row out, or write ")
    written = reasons(found).partition("or write ")[2].partition(" if ")[0].replace('"', '""')
    path.write_text(f'{HEAD}P?,one,"{written}",ana,b\n', encoding="utf-8")
    ((pair, _),) = collect([path], "auto", Options(), 0).judgements()
    assert {pair.a.text, pair.b.text} == {"one", cell.strip('"')}


@pytest.mark.parametrize("name", ["votes", "pairs", "shp", "argilla", "label_studio", "hf_preference"])
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_answer_is_a_bad_row_in_every_format_with_two_of_them(
    tmp_path: Path, name: str, missing: float | None
) -> None:
    rows = {
        "votes": {**AB, "rater": "ana", "choice": "a"},
        "pairs": {**AB, "winner": "a"},
        "shp": {"history": "P?", "human_ref_A": "one", "human_ref_B": "two", "labels": 1},
        "argilla": argilla_row("a"),
        "label_studio": {**AB, "annotation_id": 1, "said": [{"selected": "left"}]},
        "hf_preference": {"prompt": "P?", "chosen": "two", "rejected": "one"},
    }
    bad = {name: missing if value == "two" else value for name, value in rows[name].items()}
    found = read(tmp_path, [rows[name], bad], name=name)
    assert [each.place for each in found.quarantine] == [2]
    assert "fill it in or leave the row out" in reasons(found)


def test_an_answer_that_json_says_is_empty_is_one_and_is_counted(tmp_path: Path) -> None:
    rows = [{**AB, "response_b": "", "winner": "a"}, {**AB, "response_a": " ", "winner": "a"}] * 2
    assert read(tmp_path, rows, max_bad=0).counts().blank_answers == 2
    thumbs = [{"prompt": "P?", "completion": answer, "label": True} for answer in ("", "", "one")]
    assert read(tmp_path, thumbs, max_bad=0).counts().blank_answers == 1


def test_blanks_around_a_name_make_nobody_else_of_a_person_and_capitals_do(tmp_path: Path) -> None:
    rows = [{**AB, "rater": who, "choice": "a"} for who in ("alice", "alice ", "\talice", "Alice")]
    found = read(tmp_path, rows, max_bad=0)
    assert [vote.annotator for vote in found.votes()] == ["alice", "Alice"]
    assert found.counts().votes_replaced == 2


def test_an_address_is_nobodys_name(tmp_path: Path) -> None:
    ((_, (vote,)),) = read(tmp_path, [{**AB, "rater": "ana@example.org", "choice": "a"}]).judgements()
    assert "@" not in vote.annotator and vote.annotator.startswith("annotator-")


def test_the_mean_of_fine_ratings_decides_and_a_rating_that_is_no_number_is_none(tmp_path: Path) -> None:
    def completion(text: str, rating: str, overall: float) -> dict[str, Any]:
        return {"response": text, "annotations": {"honesty": {"Rating": rating}}, "overall_score": overall}

    row = {"instruction": "P?", "completions": [completion("one", "5", 1.0), completion("two", "2", 10.0)]}
    assert read(tmp_path, [row]).counts().choices == {"a": 1, "b": 0, "tie": 0}
    unrated = {"instruction": "P?", "completions": [completion("one", "5", 1.0), {"response": "two"}]}
    found = read(tmp_path, [row, unrated])
    assert found.counts().skipped == {"fewer than two rated answers": 1}


def test_no_thumb_is_not_a_thumb_down_and_stars_are_not_guessed(tmp_path: Path) -> None:
    rows = [
        {"prompt": "P?", "completion": f"answer {n}", "rating": value} for n, value in enumerate(("👍", -1, None, 5))
    ]
    found = read(tmp_path, rows)
    assert [thumb.good for thumb in found.thumbs] == [True, False]
    assert found.counts().skipped == {"no thumb": 1}
    assert "5=a is good" in reasons(found)


def test_the_same_thumb_twice_is_one_line_of_two_people(tmp_path: Path) -> None:
    (thumb,) = read(tmp_path, [{"prompt": "P?", "completion": "x", "label": True}] * 2).thumbs
    assert thumb.votes == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheets_save_csv_with_marks_other_encodings_and_crlf(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "votes.csv"
    text = 'prompt,answer_a,answer_b,annotator,vote\r\n"Où?\r\nIci",=1+1,"say ""hi""",ana,A\r\n'
    path.write_bytes(text.encode(encoding))
    ((pair, _),) = collect([path], "auto", Options(), 0).judgements()
    assert pair.prompt.text == "Où?\r\nIci"
    assert {pair.a.text, pair.b.text} == {"=1+1", 'say "hi"'}


def test_a_bad_row_is_told_by_file_and_line_and_the_rest_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    head = 'prompt,answer_a,answer_b,annotator,vote\n"P\nQ?",one,two,ana,A\n'
    path.write_text(f"{head}P?,one,two,ben\nP?,one,two,ben,maybe\n", encoding="utf-8")
    found = collect([path], "auto", Options(), 1)
    assert [(each.place, each.reason[:20]) for each in found.quarantine] == [
        (4, "4 cells, and the hea"), (5, "the vote 'maybe' can")
    ]  # fmt: skip
    counts = found.counts()
    assert counts.rows == counts.imported + counts.quarantined == 3


def test_more_bad_rows_than_allowed_stop_with_examples_of_each_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 2 rows are bad, and max_bad allows 10\.0%(.|\n)*rows\.jsonl:2: "):
        read(tmp_path, [{**AB, "winner": "a"}, {**AB, "winner": "?"}], max_bad=0.1)


def test_half_a_character_is_a_bad_row_that_can_be_written_down(tmp_path: Path) -> None:
    found = read(tmp_path, [{**AB, "winner": "a"}, {**AB, "response_a": "\ud800", "winner": "a"}])
    assert found.counts().quarantined == 1
    votes.write(found, tmp_path / "out", "majority")
    assert "?" in (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8")


def test_a_json_list_is_read_object_by_object_with_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    good = json.dumps({**AB, "winner": "b"}, indent=1)
    path.write_text(f"[\n{good},\n 7,\n{good}\n]\n", encoding="utf-8")
    found = collect([path], "pairs", Options(), 1)
    assert [each.place for each in found.quarantine] == [8]
    assert found.counts().imported == 2
    path.write_text(f"[\n{good},\n" + '{"prompt": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json:8: not JSON"):
        collect([path], "pairs", Options(), 1)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[ROW]\n[ROW]\n", "2: '[{"),
        ("[ROW]\n\n ROW\n", "3: '{"),
        ("[ROW], ROW", "1: ', {"),
        ("[ROW]]", "1: ']"),
        ("ROW\nROW]\nROW\n", "2: ']"),
        ("[ROW,\nROW", "2: the list has no ] at its end"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_what_follows_a_json_list_is_never_lost_in_silence(
    tmp_path: Path, text: str, place: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(text.replace("ROW", json.dumps({**AB, "winner": "b"})), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}:{place}")):
        collect([path], "pairs", Options(), 1)


@pytest.mark.parametrize("text", ["[ROW,ROW]\n \n", "\n[\nROW\n,\nROW\n]", "ROW\nROW\n", "ROW,\nROW"])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_json_list_and_json_lines_are_read_to_their_end(
    tmp_path: Path, text: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(text.replace("ROW", json.dumps({**AB, "winner": "b"})), encoding="utf-8")
    assert collect([path], "auto", Options(), 0).counts().imported == 2


def test_lists_in_a_list_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = json.dumps({**AB, "winner": "b"})
    path.write_text(f"[{row},\n[{row}],\n[{row}, {row}]]", encoding="utf-8")
    found = collect([path], "pairs", Options(), 1)
    assert [(each.place, each.reason) for each in found.quarantine] == [
        (2, "needs to be an object"), (3, "needs to be an object")
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"rows\.json: 2 of 3 rows are bad"):
        collect([path], "pairs", Options(), 0.1)


def test_a_file_that_nobody_knows_or_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no format knows the fields x; name one"):
        read(tmp_path, [{"x": 1}])
    with pytest.raises(DataError, match="no such file"):
        recognised(tmp_path / "absent.csv", Options())
    with pytest.raises(DataError, match=r"needs to end in one of \.jsonl"):
        recognised(tmp_path / "votes.xlsx", Options())
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-30])
    with pytest.raises(DataError, match="cannot be unpacked"):
        collect([tmp_path / "cut.jsonl.gz"], "pairs", Options(), 1)
    with pytest.raises(DataError, match="no format is called 'argila'"):
        read(tmp_path, [AB], name="argila")


def test_importing_twice_is_importing_once(tmp_path: Path) -> None:
    rows = [{**AB, "prompt": f"P{n}?", "rater": who, "choice": "a"} for n in range(3) for who in ("ana", "ben")]
    written = []
    for _ in range(2):
        votes.write(read(tmp_path, rows), tmp_path / "out", "dawid_skene")
        written.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert written[0] == written[1]
    twice = read(tmp_path, [*rows, *rows])
    assert twice.counts().votes == 6
    assert list(twice.votes()) == list(read(tmp_path, rows).votes())


def test_a_row_is_imported_whole_or_not_at_all(tmp_path: Path) -> None:
    def rated(*texts: Any) -> dict[str, Any]:
        return {"instruction": "P?", "completions": [{"response": text, "rating": n} for n, text in enumerate(texts)]}

    found = read(tmp_path, [rated("one", "two", 3), {**rated("one", "four"), "instruction": "Q?"}], name="ratings")
    assert found.counts().quarantined == 1
    assert [(pair.prompt.text, len(cast)) for pair, cast in found.judgements()] == [("Q?", 1)]
    assert len(found.prompts) == 1


def test_one_byte_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_bytes("prompt,answer_a,answer_b,annotator,vote\nP?,one,two,ana,A\nP?,café,two,ben,A\n".encode("latin-1"))
    found = collect([path], "auto", Options(), 1)
    assert [each.place for each in found.quarantine] == [3]
    assert "not UTF-8" in reasons(found) and found.counts().imported == 1
    votes.write(found, tmp_path / "out", "majority")


def test_a_quote_that_is_not_closed_stops_the_import_because_it_swallows_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text('prompt,answer_a,answer_b,annotator,vote\nP?,one,two,ana,A\nP?,"one,two,ben,A\nP?,one,two,cy,A\n')
    with pytest.raises(DataError, match=r"votes\.csv:3: not CSV"):
        collect([path], "votes", Options(), 1)


def test_a_strength_below_zero_is_a_bad_row_and_not_a_crash_later(tmp_path: Path) -> None:
    rows = [{**AB, "rater": "ana", "choice": "a", "strength": strength} for strength in (2, -3)]
    found = read(tmp_path, rows)
    assert "a strength of -3" in reasons(found)
    assert [vote.strength for vote in found.votes()] == [2.0]
