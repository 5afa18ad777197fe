"""Stage 2 keeps every verdict, counts what it does not train on, and is the same whoever judges which part."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted.judge import Config as Scripted
from tiny import job_of, prompt_of, response_of

from judges.base import JudgeConfig
from judges.cascade import Config as Cascade
from judges.length import Config as Length
from judges.panel import Config as Panel
from pipeline import label, store
from pipeline.errors import DataError, JudgeError
from pipeline.label import Labelling
from pipeline.recipe import LabelConfig
from pipeline.records import Pair, Preference, Verdict


@pytest.fixture(autouse=True)
def _nothing_built() -> Iterator[None]:
    Scripted.BUILT.clear()
    Scripted.ASKED.clear()
    yield


def pairs_of(question: str, *answers: str) -> list[Pair]:
    """Every pair of these answers."""
    responses = [response_of(text, index=index) for index, text in enumerate(answers)]
    return [Pair.of(prompt_of(question), one, other) for one, other in itertools.combinations(responses, 2)]


def labelling(judge: JudgeConfig | None = None, pairing: Any = "all", **limits: float) -> Labelling:
    return Labelling(judge=judge or Scripted(), label=LabelConfig(**{"max_abstained": 1.0, **limits}), pairing=pairing)


def run(config: Labelling, pairs: list[Pair], top: Path, world: int = 1) -> dict[str, bytes]:
    """The bytes of every file that the step leaves, done by `world` processes."""
    store.make_dirs(top / "generate")
    store.write_jsonl(top / "generate" / "pairs.jsonl", pairs)
    inputs = {"generate": top / "generate"}
    for rank in range(world):
        label.work(job_of(top, config, inputs=inputs, rank=rank, world=world))
    job = job_of(top, config, inputs=inputs)
    label.finish(job)
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def rows(files: dict[str, bytes], name: str, record: Any) -> list[Any]:
    return [record.model_validate_json(line) for line in files[name].splitlines()]


MIXED = [
    *pairs_of("one?", "score=9", "score=1"),  # 0.9
    *pairs_of("two?", "score=3", "score=2"),  # 0.6
    *pairs_of("three?", "score=1 x", "score=1 y"),  # a tie
    *pairs_of("four?", "open=refused", "score=1"),
    *pairs_of("five?", "open=unreadable", "score=1"),
    *pairs_of("six?", "open=refused ", "score=2"),
]


def test_verdicts_are_in_the_order_of_the_pairs_and_none_is_missing(tmp_path: Path) -> None:
    files = run(labelling(), MIXED[::-1], tmp_path)
    found = [verdict.pair_id for verdict in rows(files, "verdicts.jsonl", Verdict)]
    assert found == [pair.id for pair in MIXED[::-1]]


@pytest.mark.parametrize(("min_confidence", "decided", "below"), [(0.5, 2, 0), (0.7, 1, 1)])
def test_the_numbers_of_the_summary_add_up(min_confidence: float, decided: int, below: int, tmp_path: Path) -> None:
    config = labelling(min_confidence=min_confidence)
    files = run(config, MIXED, tmp_path)
    summary = json.loads(files["summary.json"])
    assert summary == {
        "pairs": 6,
        "decided": decided,
        "below_confidence": below,
        "ties": 1,
        "abstained": {"refused": 2, "unreadable": 1},
        "judge": "scripted.judge",
        "judge_fingerprint": Scripted().fingerprint(),
        "prompts": 6,
        "preferences": decided,
        # 0.6 is in [0.6, 0.65), 0.9 in [0.9, 0.95).
        "confidence": [0, 0, 1, 0, 0, 0, 0, 0, 1, 0],
        "judge_summary": {},
        "tokens_in": 60,
        "tokens_out": 6,
        "cost_usd": 1.5,
    }
    left = sum(summary["abstained"].values())
    assert summary["decided"] + summary["ties"] + summary["below_confidence"] + left == summary["pairs"]
    found = rows(files, "preferences.jsonl", Preference)
    assert {each.chosen.text for each in found} == {"score=9", "score=3"} - ({"score=3"} if below else set())


def test_what_the_judge_tells_of_itself_is_in_the_summary(tmp_path: Path) -> None:
    config = labelling(Cascade.model_validate({"cheap": "length", "dear": Scripted()}))
    pairs = [*pairs_of("one?", "score=9", "score=10"), *pairs_of("two?", "score=1", "score=2")]
    files = run(config, pairs, tmp_path)
    # By length the first is clear and the second a tie; half a bill of 0.25 a pair is saved.
    told = json.loads(files["summary.json"])["judge_summary"]
    assert told == {"escalation_rate": 0.5, "saving_rate": 0.5}


def test_best_worst_trains_on_one_pair_a_prompt_and_keeps_every_verdict(tmp_path: Path) -> None:
    pairs = [*pairs_of("one?", "score=1", "score=8", "score=4"), *pairs_of("two?", "score=1", "score=2")]
    files = run(labelling(pairing="best_worst"), pairs, tmp_path)
    found = {each.prompt.id: each for each in rows(files, "preferences.jsonl", Preference)}
    assert len(rows(files, "verdicts.jsonl", Verdict)) == 4
    assert {name: (each.chosen.text, each.rejected.text) for name, each in found.items()} == {
        "one?": ("score=8", "score=1"),
        "two?": ("score=2", "score=1"),
    }
    assert found["one?"].confidence == pytest.approx(8 / 9)


@pytest.mark.parametrize(("allowed", "stops"), [(0.5, False), (0.49, True), (0.0, True)])
def test_too_many_abstentions_stop_the_run_with_their_reasons_counted(
    allowed: float, stops: bool, tmp_path: Path
) -> None:
    config = labelling(max_abstained=allowed)
    if not stops:
        run(config, MIXED, tmp_path)
        return
    with pytest.raises(JudgeError, match=r"left 3 of 6 pairs open \(refused 2, unreadable 1\)") as caught:
        run(config, MIXED, tmp_path)
    assert f"label.max_abstained allows {allowed:.0%}" in str(caught.value)
    assert not (tmp_path / "out" / "preferences.jsonl").exists()


def test_a_judge_that_sees_no_difference_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="it preferred no answer to another"):
        run(labelling(Length()), pairs_of("one?", "same", "size"), tmp_path)


def many_pairs() -> list[Pair]:
    return [
        pair
        for number in range(9)
        for pair in pairs_of(f"question {number}", *(f"score={n + number % 3 + 1} {'x' * n}" for n in range(3)))
    ]


def test_a_judge_is_built_once_and_not_at_all_when_the_journal_knows_every_answer(tmp_path: Path) -> None:
    files = run(labelling(), many_pairs(), tmp_path)
    assert Scripted.BUILT == ["1"]
    assert run(labelling(), many_pairs(), tmp_path) == files
    assert run(labelling(pairing="best_worst", min_confidence=0.6), many_pairs(), tmp_path) != files
    assert Scripted.BUILT == ["1"]
    run(labelling(Scripted(variant="2")), many_pairs(), tmp_path)
    assert Scripted.BUILT == ["1", "2"]


def test_swapping_the_judge_or_what_it_is_made_of_and_back_asks_nothing_again(tmp_path: Path) -> None:
    alone = Scripted(variant="swapped")
    cascade = Cascade.model_validate({"cheap": "rules", "dear": alone})
    panel = Panel.model_validate({"of": [{"judge": alone, "weight": 2.0}, {"judge": "length", "weight": 1.0}]})
    first = [run(labelling(judge), many_pairs(), tmp_path) for judge in (alone, cascade, panel)]
    assert sum(map(len, Scripted.ASKED)) == len(many_pairs())
    assert [run(labelling(judge), many_pairs(), tmp_path) for judge in (alone, cascade, panel)] == first
    assert sum(map(len, Scripted.ASKED)) == len(many_pairs())


def test_a_judge_is_asked_about_all_pairs_of_a_prompt_at_once(tmp_path: Path) -> None:
    pairs = many_pairs()
    run(labelling(), pairs, tmp_path, world=2)
    prompt = {pair.id: pair.prompt.id for pair in pairs}
    assert [len(call) for call in Scripted.ASKED] == [3] * 9
    assert all(len({prompt[pair_id] for pair_id in call}) == 1 for call in Scripted.ASKED)


@pytest.mark.parametrize("world", [2, 3, 20])
def test_any_number_of_processes_leaves_the_same_bytes(world: int, tmp_path: Path) -> None:
    pairs = many_pairs()
    alone = run(labelling(), pairs, tmp_path / "alone")
    Scripted.ASKED.clear()
    assert run(labelling(), pairs, tmp_path / "shared", world) == alone
    assert sorted(itertools.chain.from_iterable(Scripted.ASKED)) == sorted(pair.id for pair in pairs)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    store.make_dirs(tmp_path / "generate")
    store.write_jsonl(tmp_path / "generate" / "pairs.jsonl", many_pairs())
    label.work(job_of(tmp_path, labelling(), inputs={"generate": tmp_path / "generate"}, rank=0, world=3))
    assert len(Scripted.ASKED) == 3
    run(labelling(), many_pairs(), tmp_path)
    assert len(Scripted.ASKED) == 9


def test_a_failure_is_asked_about_again_and_a_lasting_abstention_is_not(tmp_path: Path) -> None:
    pairs = [
        *pairs_of("one?", "open=failed", "x"),
        *pairs_of("two?", "open=empty", "x"),
        *pairs_of("three?", "score=2", "x"),
    ]
    run(labelling(), pairs, tmp_path)
    asked = list(itertools.chain.from_iterable(Scripted.ASKED))
    assert {pair_id: asked.count(pair_id) for pair_id in asked} == {pairs[0].id: 2, pairs[1].id: 1, pairs[2].id: 1}


def test_pairs_of_a_prompt_that_comes_up_twice_are_refused() -> None:
    one, two = pairs_of("one?", "a", "b", "c"), pairs_of("two?", "a", "b")
    assert list(label.by_prompt([*one, *two])) == [one, two]
    with pytest.raises(DataError, match=r"prompt 'one\?' are not one after the other"):
        list(label.by_prompt([*one[:1], *two, *one[1:]]))
