"""What was read once gives every answer the log-probabilities of a plain forward pass, however often it is asked."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import full_logprobs, inputs_read

from pipeline.decoding import shared
from pipeline.reading import ROWS, Opening, Read, answer_logprobs

random = np.random.default_rng(1)
PREFIXES = [random.integers(3, 259, size=length).tolist() for length in (23, 4, 11, 1, 40)]
PLACES = [0, 1, 1, 2, 3, 4, 0, 4, 2, 2]
ANSWERS = [random.integers(2, 259, size=length).tolist() for length in (1, 17, 3, 30, 9, 1, 2, 12, 5, 30)]


def assert_as_alone(model: Any, found: list[torch.Tensor], places: list[int], answers: list[list[int]]) -> None:
    for place, answer, logprobs in zip(places, answers, found, strict=True):
        prefix = PREFIXES[place]
        expected = full_logprobs(model, [*prefix, *answer])[len(prefix) - 1 :]
        assert logprobs.dtype == torch.float32
        assert logprobs.numpy() == pytest.approx(expected, abs=1e-4)


def test_each_answer_follows_its_own_conversation(tiny_model: Any) -> None:
    # More than are scored at once.
    assert len(ANSWERS) > ROWS
    assert_as_alone(tiny_model, Read(tiny_model, PREFIXES).logprobs(PLACES, ANSWERS), PLACES, ANSWERS)


def test_what_was_asked_before_leaves_no_trace(tiny_model: Any) -> None:
    read = Read(tiny_model, PREFIXES)
    first = read.logprobs(PLACES, ANSWERS)
    read.logprobs([4, 3], [[7, 8, 9], [5]])
    again = read.logprobs(PLACES, ANSWERS)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_one_token_answers_need_no_further_pass(tiny_model: Any) -> None:
    read = Read(tiny_model, PREFIXES)
    with inputs_read(tiny_model) as counted:
        found = read.logprobs([0, 2], [[9], [33]])
    assert counted == []
    assert_as_alone(tiny_model, found, [0, 2], [[9], [33]])


def test_the_conversations_are_read_once(tiny_model: Any) -> None:
    with inputs_read(tiny_model) as counted:
        read = Read(tiny_model, PREFIXES)
        for _ in range(3):
            read.logprobs([0, 1], [[9, 9, 9, 9], [5, 6]])
    # Conversations of 40 and 23 tokens alone and those of 11 and 4 together, up to the last token, which is read of all
    # five together; then three times two answers whose last token is not needed.
    assert counted == [39, 22, 2 * 10, 5, 2 * 3, 2 * 3, 2 * 3]


# ---- of one conversation


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [9, 1, 30, 2], [5, 5]])
def test_answer_log_probabilities_are_those_of_a_plain_forward_pass(lengths: list[int], tiny_model: Any) -> None:
    random = np.random.default_rng(sum(lengths))
    prefix = random.integers(3, 259, size=23).tolist()
    answers = [random.integers(2, 259, size=length).tolist() for length in lengths]
    found = answer_logprobs(tiny_model, prefix, answers)
    for answer, logprobs in zip(answers, found, strict=True):
        expected = full_logprobs(tiny_model, [*prefix, *answer])[len(prefix) - 1 :]
        assert logprobs.dtype == torch.float32
        assert logprobs.numpy() == pytest.approx(expected, abs=1e-4)


def test_an_answers_log_probabilities_do_not_depend_on_the_others_order(tiny_model: Any) -> None:
    prefix, answers = [5, 6, 7], [[9, 10, 11, 12], [30], [40, 41]]
    forward = answer_logprobs(tiny_model, prefix, answers)
    backward = answer_logprobs(tiny_model, prefix, answers[::-1])
    for one, other in zip(forward, reversed(backward), strict=True):
        assert one.numpy() == pytest.approx(other.numpy(), abs=1e-5)


def test_an_opening_that_was_read_before_is_not_read_again(tiny_model: Any) -> None:
    prefix, answers = PREFIXES[4], [ANSWERS[1], ANSWERS[3], ANSWERS[7]]
    opening = Opening.of(tiny_model, prefix[:30])
    for _ in range(2):
        with inputs_read(tiny_model) as counted:
            found = answer_logprobs(tiny_model, prefix, answers, opening)
        # Ten tokens behind the opening, then all but the last of the answers: of 30 alone, of 17 and 12 together.
        assert counted == [10, 29, 2 * 16]
        assert_as_alone(tiny_model, found, [4, 4, 4], answers)


def test_a_conversation_that_begins_otherwise_is_read_whole(tiny_model: Any) -> None:
    opening = Opening.of(tiny_model, PREFIXES[4])
    for place in (0, 4):  # the fifth is the opening and nothing more, and what follows it has to be read off something
        with inputs_read(tiny_model) as counted:
            found = answer_logprobs(tiny_model, PREFIXES[place], [[9]], opening)
        assert counted == [len(PREFIXES[place])]
        assert_as_alone(tiny_model, found, [place], [[9]])


def test_what_rows_share_is_what_all_begin_with() -> None:
    assert shared([[1, 2, 3], [1, 2, 4], [1, 2, 3, 9]]) == [1, 2]
    assert shared([[1, 2], [1, 2, 3]]) == [1, 2]
    assert shared([[1], [2]]) == []
    assert shared([[5, 6]]) == [5, 6]
