"""What a response means: one outcome of a closed set, one charge, and no answer where there is none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.replies import (
    FREE,
    Outcome,
    Price,
    Request,
    charge_of,
    checked,
    message_of,
    outcome_of,
    pause_of,
    read_completion,
)

PRICE = Price(input=0.4, output=1.6)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (0, b"", Outcome.TRANSIENT),
        (400, b'{"error": {"message": "bad", "code": null, "type": "invalid_request_error"}}', Outcome.REJECTED),
        (400, b'{"error": {"message": "x", "code": "context_length_exceeded"}}', Outcome.TOO_LONG),
        (400, b'{"error": {"message": "This model\'s maximum context length is 4096", "code": 400}}', Outcome.TOO_LONG),
        (
            400,
            b'{"error": {"message": "Could not finish the message because max_tokens or model output limit was '
            b'reached."}}',
            Outcome.TOO_LONG,
        ),
        (400, b'{"error": {"message": "x", "code": "content_filter"}}', Outcome.FILTERED),
        (401, b"", Outcome.NO_ACCESS),
        (403, b'{"error": {"message": "Your account is not active", "code": "billing"}}', Outcome.NO_ACCESS),
        (403, b'{"error": {"message": "You are not allowed to request logprobs from this model"}}', Outcome.REJECTED),
        (403, b'{"error": {"message": "moderated", "metadata": {"flagged_input": "x"}}}', Outcome.FILTERED),
        (403, b'{"error": {"message": "moderated", "metadata": {"reasons": ["hate"]}}}', Outcome.FILTERED),
        (403, b'{"error": {"message": "Your input was flagged", "code": 403}}', Outcome.FILTERED),
        (402, b"", Outcome.NO_QUOTA),
        (404, b"", Outcome.NO_SUCH),
        (307, b"", Outcome.NO_SUCH),
        (408, b"", Outcome.TRANSIENT),
        (409, b"", Outcome.TRANSIENT),
        (422, b"not json", Outcome.REJECTED),
        (429, b'{"error": {"message": "x", "code": "rate_limit_exceeded"}}', Outcome.RATE_LIMITED),
        (429, b'{"error": {"message": "x", "type": "insufficient_quota"}}', Outcome.NO_QUOTA),
        (500, b"<html>", Outcome.TRANSIENT),
        (529, b"", Outcome.TRANSIENT),
    ],
)
def test_a_status_and_its_body_are_one_outcome(status: int, body: bytes, outcome: Outcome) -> None:
    assert outcome_of(status, body) == outcome


@pytest.mark.parametrize(
    ("status", "charge"), [(400, 0), (429, 0), (500, 0), (503, 0), (529, 0), (502, None), (504, None), (0, None)]
)
def test_a_gateway_may_have_cost_and_a_refused_request_has_not(status: int, charge: int | None) -> None:
    assert charge_of(status) == charge


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "300"}, 300.0),
        ({"retry-after": "Wed, 25 Nov 2026 00:00:30 GMT"}, 30.0),
        ({"retry-after": "Tue, 24 Nov 2026 00:00:30 GMT"}, 0.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "inf"}, 0.0),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-tokens": "whenever"}, 0.0),
        ({}, 0.0),
    ],
)
def test_a_server_is_waited_for_as_long_as_it_asks(headers: dict[str, str], seconds: float) -> None:
    midnight = 1795564800.0  # Wed, 25 Nov 2026 00:00:00 GMT
    assert pause_of(headers, midnight) == pytest.approx(seconds)


@given(st.binary(max_size=200) | st.sampled_from([b"{}", b"[]", b"null", b'{"choices": [{}]}', b'{"choices": [null]}']))
def test_no_bytes_that_are_no_completion_become_an_answer(content: bytes) -> None:
    assert read_completion(content, FREE).reply.outcome == Outcome.MALFORMED


def completion(content: str | None = "K", finish: str = "stop", **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": finish}], **more}).encode()


def test_half_a_character_is_a_question_mark_wherever_it_stands_in_a_reply() -> None:
    told = json.loads(completion("nice \ud83d", "stop\udc00"))
    told["choices"][0]["logprobs"] = {"content": [{"top_logprobs": [{"token": "\ud83dK", "logprob": -0.5}]}]}
    reply = read_completion(json.dumps(told).encode(), PRICE).reply
    assert (reply.text, reply.finish, reply.logprobs) == ("nice ?", "stop?", [("?K", -0.5)])
    told["choices"][0]["message"] = {"content": None, "refusal": "no \ud83d"}
    assert read_completion(json.dumps(told).encode(), PRICE).reply.text == "no ?"
    told["choices"][0] = {"message": {"content": "K"}, "error": {"message": "gone \ud83d"}}
    assert "gone ?" in read_completion(json.dumps(told).encode(), PRICE).reply.detail
    assert message_of(b'{"error": {"message": "bad \\ud83d"}}') == "bad ?"


def test_a_character_in_two_halves_is_one_character() -> None:
    content = b'{"choices": [{"message": {"content": "nice \\ud83d\\ude00"}, "finish_reason": "stop"}]}'
    assert read_completion(content, PRICE).reply.text == "nice \N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ('{"token": "K", "logprob": -0.5}, {"token": "P", "logprob": -Infinity}', [("K", -0.5)]),
        ('{"token": "K", "logprob": NaN}, {"token": "P", "logprob": -2}', [("P", -2.0)]),
        ('{"token": "K", "logprob": 1e999}, {"token": "P", "logprob": -2}', [("P", -2.0)]),
        ('{"token": "K", "logprob": 1e-7}', [("K", 0.0)]),
        ('{"token": "K", "logprob": NaN}', None),
        ('{"token": "K", "logprob": -1%s}' % ("0" * 400), None),
        ('{"token": "K"}', None),
        ("", None),
    ],
)  # fmt: skip
def test_only_log_probabilities_that_can_be_some_are_read(listed: str, found: Any) -> None:
    logprobs = f'{{"content": [{{"top_logprobs": [{listed}]}}]}}'
    content = f'{{"choices": [{{"message": {{"content": "K"}}, "logprobs": {logprobs}}}]}}'
    assert read_completion(content.encode(), PRICE).reply.logprobs == found


def test_a_response_nested_too_deeply_is_no_answer_and_no_error_of_ours() -> None:
    nested = b'{"error": ' + b"[" * 100_000
    assert read_completion(nested, PRICE).reply.outcome == Outcome.MALFORMED
    assert outcome_of(500, nested) == Outcome.TRANSIENT
    assert outcome_of(403, nested) == Outcome.NO_ACCESS
    assert message_of(nested).startswith('{"error": [[[')


def test_a_count_of_tokens_that_cannot_be_true_is_unknown() -> None:
    usage = {"prompt_tokens": 10**20, "completion_tokens": 1}
    attempt = read_completion(completion(usage=usage), PRICE)
    assert (attempt.reply.tokens_in, attempt.charge) == (0, None)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": "9"}, {"prompt_tokens": -1}])
def test_a_bill_that_is_missing_is_the_reserve(usage: Any) -> None:
    attempt = read_completion(completion(usage=usage), PRICE)
    assert (attempt.reply.outcome, attempt.reply.tokens_in, attempt.charge) == (Outcome.OK, 0, None)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 9}, {"completion_tokens": 9}, {"total_tokens": 9}])
def test_half_a_bill_is_the_reserve(usage: Any) -> None:
    assert read_completion(completion(usage=usage), PRICE).charge is None


def test_reasoning_that_is_counted_only_in_the_total_is_paid_for() -> None:
    # What xAI said of one reply.
    details = {"reasoning_tokens": 386}
    usage = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 399, "completion_tokens_details": details}
    attempt = read_completion(completion(usage=usage), PRICE)
    assert attempt.reply.tokens_out == 387
    assert attempt.charge == attempt.reply.cost == 12 * 400 + 387 * 1600


@pytest.mark.parametrize("choice", [{"finish_reason": "error"}, {"error": {"code": 502, "message": "gone"}}])
def test_an_error_inside_a_choice_is_no_answer(choice: dict[str, Any]) -> None:
    told = json.loads(completion("Half an", usage={"prompt_tokens": 9, "completion_tokens": 2}))
    told["choices"][0] |= choice
    attempt = read_completion(json.dumps(told).encode(), PRICE)
    assert attempt.reply.outcome == Outcome.TRANSIENT
    assert attempt.charge == 9 * 400 + 2 * 1600


def test_an_empty_answer_is_none_only_if_it_is_said_that_nothing_was_read_and_nothing_written() -> None:
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    for usage, outcome in ((nothing, Outcome.TRANSIENT), (None, Outcome.OK), ({"prompt_tokens": 9}, Outcome.OK)):
        assert read_completion(completion("", usage=usage), PRICE).reply.outcome == outcome
    assert read_completion(completion("K", usage=nothing), PRICE).reply.outcome == Outcome.OK


def read(question: str, tokens_in: int) -> Outcome:
    asked = Request({"messages": [{"role": "user", "content": question}]}, 1)
    usage = {"prompt_tokens": tokens_in, "completion_tokens": 1}
    return checked(asked, read_completion(completion(usage=usage), PRICE)).reply.outcome


def test_a_question_of_which_too_few_tokens_were_read_is_too_long_and_an_unknown_count_says_nothing() -> None:
    english = "It is better to say what was found and what is to be done. " * 200  # 11,800 characters
    assert read(english, 2800) == Outcome.OK
    assert read(english, 1476) == Outcome.OK
    assert read(english, 1474) == Outcome.TOO_LONG
    assert read(english, 0) == Outcome.OK
    # Tokens of many characters: what is drawn with one sign, and indents.
    assert read("-" * 5000 + " " * 5000 + "\n" * 5000, 300) == Outcome.OK


def test_a_price_is_rounded_up_to_whole_nano_dollars() -> None:
    # 100 tokens at 0.4 dollars a million and 10 at 1.6: 0.00004 + 0.000016 dollars.
    assert PRICE.nano(100, 10) == 56_000
    assert Price(input=0.0001, output=0).nano(1, 0) == 1
    assert FREE.nano(10**9, 10**9) == 0


@given(st.text(max_size=300))
def test_a_question_never_has_more_tokens_than_it_is_reserved_for(text: str) -> None:
    # A byte-level tokenizer, the worst there is, has a token a byte; a chat template adds some for each message.
    asked = Request({"messages": [{"role": "user", "content": text}]}, 1)
    assert asked.tokens_in() >= len(text.encode()) + 16
