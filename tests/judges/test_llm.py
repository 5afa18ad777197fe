"""The judge behind an API: every mode, every fallback, and what is planted in the server comes out again."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bench.label_step import pair_of
from pydantic import ValidationError
from servers import Server, judge_server
from servers.planted import opinion

from judges import cached
from judges.base import Judge, JudgeConfig, Session, logit, sigmoid
from judges.both_orders import Config as BothOrders
from judges.llm import Config
from judges.rating import Config as Rating
from pipeline.errors import JudgeError
from pipeline.records import Pair, Verdict

PAIRS = [pair_of(number, 40) for number in range(120)]

FILLED = (
    "model", "messages", "n", "stream", "max_tokens", "max_completion_tokens", "temperature", "logprobs",
    "top_logprobs", "response_format",
)  # fmt: skip


@pytest.fixture(scope="module")
def planted() -> Iterator[Server]:
    """Right in 80 % of the pairs, 1.5 nats for the first answer, unreadable in 3 %."""
    with judge_server(accuracy=0.8, bias=1.5, unreadable=0.03) as server:
        yield server


def config(server: Server, **options: Any) -> Config:
    return Config(**{"model": "m", "base_url": server.url, "price": "free", **options})


def build(judge: JudgeConfig, top: Path | None = None) -> Judge:
    return judge.build(Session(journal=top / "journal.sqlite" if top else None, run="run"))


def port_of(server: Server) -> int:
    return int(server.url.split(":")[2].split("/")[0])


def both(server: Server, **options: Any) -> list[Verdict]:
    return build(BothOrders(of=config(server, **options))).judge(PAIRS)


def answered(verdicts: Sequence[Verdict]) -> list[tuple[Pair, Verdict]]:
    return [(pair, verdict) for pair, verdict in zip(PAIRS, verdicts, strict=True) if verdict.p_a is not None]


def test_a_planted_bias_is_measured_and_what_is_left_is_the_judges_own_opinion(planted: Server) -> None:
    found = answered(both(planted))
    assert 100 < len(found) < 120
    for pair, verdict in found:
        # The server adds 1.5 nats to whatever is shown first, and thinks this of the two answers:
        assert verdict.evidence["bias"] == pytest.approx(1.5)
        assert verdict.p_a == pytest.approx(sigmoid(opinion(pair.a.text, pair.b.text, 0.8)))


def test_asked_in_one_order_the_same_judge_prefers_the_first_place(planted: Server) -> None:
    alone = answered(build(config(planted)).judge(PAIRS))
    debiased = answered(both(planted))
    firsts = sum(verdict.p_a > 0.5 for _, verdict in alone if verdict.p_a is not None) / len(alone)
    fair = sum(verdict.p_a > 0.5 for _, verdict in debiased if verdict.p_a is not None) / len(debiased)
    assert firsts > 0.7 > 0.6 > fair > 0.4


def test_a_reply_that_is_no_label_is_asked_about_once_more_and_then_left_open(planted: Server) -> None:
    before = planted.tell("stats")["calls"]
    verdicts = build(config(planted)).judge(PAIRS)
    left = [verdict for verdict in verdicts if verdict.p_a is None]
    assert {verdict.abstained for verdict in left} == {"unreadable"} and left
    assert all(verdict.evidence["said"] == ["Both have merits."] * 2 for verdict in left)
    assert planted.tell("stats")["calls"] - before == len(PAIRS) + len(left) + 1  # one to find out what it can


@pytest.mark.parametrize("mode", ["json", "reason"])
def test_every_mode_comes_to_the_same_side(mode: str, planted: Server) -> None:
    verdicts = build(config(planted, mode=mode)).judge(PAIRS)
    for (pair, verdict), by_label in zip(
        answered(verdicts), answered(build(config(planted)).judge(PAIRS)), strict=True
    ):
        assert pair.id == by_label[0].id
        assert verdict.evidence["mode"] == mode
        assert (logit(verdict.p_a or 0) > 0) == (logit(by_label[1].p_a or 0) > 0)


def test_votes_without_probabilities_are_shares(planted: Server) -> None:
    verdicts = build(config(planted, mode="json", samples=3, temperature=1.0)).judge(PAIRS[:10])
    # The server says the same each time: three votes of three, drawn to a tie by one, are 3.5 / 4.
    assert {verdict.p_a for verdict in verdicts if verdict.p_a is not None} <= {0.875, 0.125}


@pytest.mark.parametrize(
    ("lacking", "mode"),
    [
        ({"no_logprobs": True}, "json"),
        ({"no_logprobs": True, "refuses_with": 403}, "json"),  # as OpenAI refuses them for some models
        ({"no_logprobs": True, "no_schema": True}, "reason"),
        ({}, "label"),
    ],
)
def test_what_an_endpoint_cannot_do_is_found_out_once_and_the_next_mode_is_used(
    lacking: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    with judge_server(**lacking) as server:
        first = build(config(server), tmp_path)
        (verdict,) = first.judge(PAIRS[:1])
        assert verdict.evidence["mode"] == mode and verdict.p_a is not None
        calls = server.tell("stats")["calls"]
        assert build(config(server), tmp_path).judge(PAIRS[:1]) == [verdict]
        assert server.tell("stats")["calls"] == calls  # remembered, and the answer as well


def test_a_server_that_lists_no_likely_token_is_asked_in_the_next_mode(tmp_path: Path) -> None:
    with judge_server(only="none listed", first=99) as server:
        verdicts = build(config(server), tmp_path).judge(PAIRS[:3])
        assert all(verdict.evidence["mode"] == "json" and verdict.p_a is not None for verdict in verdicts)


def test_a_sure_verdict_is_one_where_the_server_lists_a_single_token() -> None:
    with judge_server(only="one listed", first=99) as server:
        for pair, verdict in zip(PAIRS[:5], build(config(server)).judge(PAIRS[:5]), strict=True):
            # exp(-0.0001) = 0.9999, and the other label can have no more than what that leaves.
            prefers_a = opinion(pair.a.text, pair.b.text, 1.0) > 0
            assert verdict.p_a == pytest.approx(0.9999 if prefers_a else 0.0001, abs=1e-6)
            assert verdict.evidence["label_mass"] == pytest.approx(1.0)


@pytest.mark.parametrize("lacking", ["no_temperature", "max_completion_tokens"])
def test_an_option_that_an_endpoint_refuses_is_left_out_or_renamed(lacking: str) -> None:
    with judge_server(**{lacking: True}) as server:
        (verdict,) = build(config(server)).judge(PAIRS[:1])
        assert verdict.evidence["mode"] == "label" and verdict.p_a is not None


def test_what_an_endpoint_takes_is_found_out_for_each_temperature(tmp_path: Path) -> None:
    with judge_server(no_temperature=True) as server:  # but its own, which is 1
        for temperature, refused in ((1.0, 0), (0.0, 1)):
            (verdict,) = build(config(server, temperature=temperature), tmp_path).judge(PAIRS[:1])
            assert verdict.p_a is not None
            assert [kind for _, kind in server.tell("calls")].count("rejected") == refused


def test_a_server_that_was_restarted_with_other_options_is_tried_out_once_more(tmp_path: Path) -> None:
    with judge_server() as server:
        build(config(server), tmp_path).judge(PAIRS[:1])
    with judge_server(max_completion_tokens=True, port=port_of(server)) as server:
        assert all(verdict.p_a is not None for verdict in build(config(server), tmp_path).judge(PAIRS[:9]))
        refused = [kind for _, kind in server.tell("calls")].count("rejected")
        build(config(server), tmp_path).judge(PAIRS[9:18])
        assert [kind for _, kind in server.tell("calls")].count("rejected") == refused  # and that is remembered


def test_trying_out_once_more_does_not_forget_that_there_are_no_log_probabilities(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": "reason"}
    with judge_server(no_logprobs=True) as server:
        build(config(server, **options), tmp_path).judge(PAIRS[:1])
    with judge_server(no_logprobs=True, max_completion_tokens=True, port=port_of(server)) as server:
        for pairs in (PAIRS[:5], PAIRS[5:10]):
            assert all(each.p_a is not None for each in build(config(server, **options), tmp_path).judge(pairs))
        refused = [kind for _, kind in server.tell("calls")].count("rejected")
        build(config(server, **options), tmp_path).judge(PAIRS[10:15])
        assert [kind for _, kind in server.tell("calls")].count("rejected") == refused


def test_a_server_that_lost_what_a_mode_needs_stops_the_run_and_the_next_uses_the_next_mode(tmp_path: Path) -> None:
    with judge_server() as server:
        build(config(server), tmp_path)
    with judge_server(no_logprobs=True, port=port_of(server)) as server:
        with pytest.raises(JudgeError, match="no longer takes logprobs"):
            build(config(server), tmp_path).judge(PAIRS[:5])
        verdicts = build(config(server), tmp_path).judge(PAIRS[:5])
        assert {verdict.evidence["mode"] for verdict in verdicts} == {"json"}


def test_a_server_that_was_mended_is_asked_before_it_is_said_that_it_can_do_nothing(tmp_path: Path) -> None:
    with judge_server(no_logprobs=True) as server, pytest.raises(JudgeError, match="gives no log-probabilities"):
        build(config(server, fallback=[]), tmp_path)
    with judge_server(port=port_of(server)) as server:
        assert build(config(server, fallback=[]), tmp_path).judge(PAIRS[:1])[0].p_a is not None


@pytest.mark.parametrize("options", [{}, {"mode": "json"}, {"mode": "reason"}, {"name": "rating"}])
def test_a_server_that_takes_no_small_limit_of_tokens_gets_the_least_that_it_takes(options: dict[str, Any]) -> None:
    with judge_server(least=32) as server:
        kind = Rating if options.get("name") == "rating" else Config
        judge = kind(**{"model": "m", "base_url": server.url, "price": "free", **options})
        assert all(verdict.p_a is not None for verdict in build(judge).judge(PAIRS[:5]))


def test_a_model_whose_thoughts_need_more_than_one_token_is_asked_in_the_next_mode() -> None:
    with judge_server(thoughts=100, unreadable=0.2) as server:
        verdicts = build(config(server)).judge(PAIRS[:30])
    assert {verdict.evidence["mode"] for verdict in verdicts} == {"json"}
    # The question for a verdict alone allows 16 tokens.
    assert {verdict.abstained for verdict in verdicts} == {None, "truncated"}


def test_without_a_fallback_an_endpoint_that_cannot_do_the_mode_is_an_error() -> None:
    with judge_server(no_logprobs=True) as server, pytest.raises(JudgeError, match="gives no log-probabilities"):
        build(config(server, fallback=[]))


def test_an_address_where_nothing_is_stops_before_any_pair() -> None:
    with judge_server() as server:
        gone = config(server)
    with pytest.raises(JudgeError):
        build(gone.model_copy(update={"limits": gone.limits.model_copy(update={"attempts": 1})}))


@pytest.mark.parametrize("kind", ["half an emoji", "not finite"])
def test_a_reply_that_no_json_text_can_hold_is_read_and_kept_all_the_same(kind: str, tmp_path: Path) -> None:
    with judge_server(only=kind, first=99) as server:
        verdicts = build(config(server), tmp_path).judge(PAIRS[:5])
        assert all(verdict.evidence["mode"] == "label" and verdict.p_a is not None for verdict in verdicts)
        assert build(config(server), tmp_path).judge(PAIRS[:5]) == verdicts
        assert server.tell("stats")["calls"] == 6  # one to find out what it can


def test_a_reply_of_thousands_of_brackets_leaves_its_pair_open_and_does_not_end_the_run(tmp_path: Path) -> None:
    with judge_server(only="nested", first=99) as server:
        verdicts = build(config(server, mode="json"), tmp_path).judge(PAIRS[:2])
        assert {verdict.abstained for verdict in verdicts} == {"unreadable"}


@pytest.mark.parametrize(("kind", "reason"), [("refusal", "refused"), ("filter", "filtered"), ("500", "failed")])
def test_no_answer_is_an_abstention_with_its_reason_and_never_a_side(kind: str, reason: str, tmp_path: Path) -> None:
    with judge_server() as server:
        build(config(server), tmp_path)  # finds out what it can
    with judge_server(only=kind, first=99, port=port_of(server)) as server:
        options: dict[str, Any] = {"limits": {"attempts": 1}}
        (verdict,) = build(config(server, **options), tmp_path).judge(PAIRS[:1])
        assert (verdict.p_a, verdict.abstained) == (None, reason)


def test_an_outage_between_a_reply_and_the_question_for_its_verdict_alone_is_a_failure_and_not_kept(
    tmp_path: Path,
) -> None:
    session = Session(journal=tmp_path / "journal.sqlite", run="run")
    pairs, unreadable = PAIRS[:1], {"mode": "json", "fallback": []}
    with judge_server(unreadable=1.0, broken_after=2, broken_status=500) as server:  # a trial, and one reply
        judge = config(server, limits={"attempts": 1}, **unreadable)
        (verdict,) = cached.member(judge, session).judge(pairs)
        assert (verdict.p_a, verdict.abstained) == (None, "failed")
    with judge_server(port=port_of(server)) as server:
        assert cached.member(judge, session).judge(pairs)[0].p_a is not None


def test_a_verdict_of_fewer_samples_than_asked_for_is_not_kept_if_the_others_failed_in_passing(tmp_path: Path) -> None:
    session = Session(journal=tmp_path / "journal.sqlite", run="run")
    votes = {"mode": "json", "samples": 3, "temperature": 1.0, "limits": {"attempts": 1}}
    with judge_server(broken_after=2, broken_status=500) as server:  # a trial, and one of the three
        judge = config(server, **votes)
        (verdict,) = cached.member(judge, session).judge(PAIRS[:1])
        # One vote of one, drawn to a tie by one: 1.5 / 2.
        assert verdict.p_a in (0.75, 0.25) and verdict.evidence["unheard"] == ["failed", "failed"]
    with judge_server(port=port_of(server)) as server:
        (again,) = cached.member(judge, session).judge(PAIRS[:1])
        assert again.p_a in (0.875, 0.125) and "unheard" not in again.evidence
        assert server.tell("stats")["calls"] == 2  # what was answered is asked no second time


@pytest.mark.parametrize("mode", ["json", "reason"])
def test_an_answer_that_was_cut_before_its_verdict_is_truncated_and_says_what_to_raise(mode: str) -> None:
    with judge_server(only="no content", faults=1.0, no_logprobs=True) as server:
        (verdict,) = build(config(server, mode=mode, fallback=["reason"])).judge(PAIRS[:1])
        assert (verdict.p_a, verdict.abstained) == (None, "truncated")
        assert "raise max_tokens" in verdict.evidence["trouble"][0]


@pytest.mark.parametrize("kind", [{"name": "llm"}, {"name": "llm", "mode": "json"}, {"name": "rating"}])
def test_a_question_that_the_server_cut_in_silence_is_left_open_until_its_context_is_raised(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    pairs = [PAIRS[0], pair_of(1, 40_000)]  # a token for each four characters, and 4,096 tokens of context
    session = Session(journal=tmp_path / "journal.sqlite", run="run")
    blocks = {"llm": Config, "rating": Rating}
    with judge_server(context=4096) as server:
        judge = blocks[kind["name"]](model="m", base_url=server.url, price="free", **kind)
        short, long = cached.member(judge, session).judge(pairs)
        assert short.p_a is not None
        assert (long.p_a, long.abstained) == (None, "truncated")
        assert "OLLAMA_CONTEXT_LENGTH" in long.evidence["trouble"][0]
    with judge_server(port=port_of(server)) as server:
        assert all(verdict.p_a is not None for verdict in cached.member(judge, session).judge(pairs))


def test_swapping_the_judge_and_back_costs_no_call_the_second_time(tmp_path: Path) -> None:
    with judge_server() as server:
        session = Session(journal=tmp_path / "journal.sqlite", run="run")
        one, other = BothOrders(of=config(server)), BothOrders(of=config(server, rubric="honest"))
        first = cached.member(one, session).judge(PAIRS)
        cached.member(other, session).judge(PAIRS)
        calls = server.tell("stats")["calls"]
        assert calls >= 4 * len(PAIRS)
        assert cached.member(one, session).judge(PAIRS) == first
        # Not even with the verdicts lost: the replies are kept as well.
        assert build(one, tmp_path).judge(PAIRS) == first
        assert server.tell("stats")["calls"] == calls


def test_a_verdict_carries_the_tokens_and_the_cost_of_its_answers(planted: Server) -> None:
    (verdict,) = both(planted, price={"input": 0.4, "output": 1.6})[:1]
    assert verdict.tokens_in > 300 and verdict.tokens_out == 2
    assert verdict.cost_usd == pytest.approx(verdict.tokens_in * 0.4e-6 + verdict.tokens_out * 1.6e-6)


def test_an_estimate_is_near_the_bill_and_its_ceiling_is_above_it(planted: Server, tmp_path: Path) -> None:
    for mode, off in (("label", 0.2), ("json", 0.5)):  # the server's reasons are shorter than most
        judge = BothOrders(of=config(planted, mode=mode, price={"input": 0.4, "output": 1.6}))
        told = judge.cost(PAIRS)
        spent = sum(verdict.cost_usd for verdict in build(judge).judge(PAIRS))
        assert told.calls == 2 * len(PAIRS)
        assert told.usd == pytest.approx(spent, rel=off)
        assert spent < told.most_usd
    assert config(planted).cost(PAIRS).usd == 0


def test_an_answer_is_rated_once_however_many_pairs_it_is_in(planted: Server) -> None:
    one, two, three = PAIRS[0].a, PAIRS[0].b, PAIRS[1].a
    pairs = [Pair.of(PAIRS[0].prompt, *both) for both in ((one, two), (one, three), (two, three))]
    judge = build(Rating(model="m", base_url=planted.url, price="free"))
    before = planted.tell("stats")["calls"]
    verdicts = judge.judge(pairs)
    assert planted.tell("stats")["calls"] - before == 3
    for pair, verdict in zip(pairs, verdicts, strict=True):
        for side in ("a", "b"):
            quality = float(getattr(pair, side).text.split("quality=")[1][:3])
            digit = 1 + round(8 * quality)
            # The server gives the digit 0.8 and the one below it 0.15.
            expected = (0.8 * digit + 0.15 * max(1, digit - 1)) / 0.95
            assert verdict.evidence[f"score_{side}"] == pytest.approx(expected, abs=1e-5)
        gap = verdict.evidence["score_a"] - verdict.evidence["score_b"]
        assert verdict.p_a == pytest.approx(1 / (1 + math.exp(-gap)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "ftp://x/v1"}, "is no address"),
        ({"base_url": "https://user:secret@host/v1"}, "use api_key_env"),
        ({"base_url": "https://host/v1?key=secret"}, "use api_key_env"),
        ({"base_url": "http://example.org/v1"}, "is not encrypted"),
        ({"samples": 3}, "set a temperature"),
        ({"price": "cheap"}, "price"),
        ({"mode": "vote"}, "mode"),
        ({"extra_body": {"max_tokens": 4000}}, "max_tokens is filled by the judge.*use `max_tokens`"),
        ({"extra_body": {"seed": 1, "n": 8}}, "n is filled by the judge.*use `samples`"),
        *(({"extra_body": {name: None}}, f"{name} is filled by the judge") for name in FILLED),
        ({"batch": {"requests": 60_000}}, "requests"),
    ],
)
def test_a_mistake_is_told_before_anything_is_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**{"model": "m", "price": "free", **options})


def test_a_missing_key_is_told_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    judge = Config(model="m", price="free", api_key_env="NO_SUCH_KEY")
    assert list(judge.lacks()) == [
        "api_key_env: the environment variable NO_SUCH_KEY is not set; it should hold the key"
    ]
    assert list(BothOrders(of=judge).lacks()) == list(judge.lacks())
    with pytest.raises(JudgeError, match="NO_SUCH_KEY is not set"):
        build(judge)
