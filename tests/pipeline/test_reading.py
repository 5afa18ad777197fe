"""A conversation that was read once gives every answer the log-probabilities of a plain forward pass, however often."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tiny import full_logprobs

from pipeline.reading import ROWS, Read

random = np.random.default_rng(1)
PREFIXES = [random.integers(3, 259, size=length).tolist() for length in (23, 4, 11, 1, 40)]
PLACES = [0, 1, 1, 2, 3, 4, 0, 4, 2, 2]
ANSWERS = [random.integers(2, 259, size=length).tolist() for length in (1, 17, 3, 30, 9, 1, 2, 12, 5, 30)]


@contextmanager
def tokens_read(model: Any) -> Iterator[list[int]]:
    """The tokens of every forward pass inside, padding included."""
    counted: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: counted.append(given[0].numel()))
    yield counted
    hook.remove()


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
    with tokens_read(tiny_model) as counted:
        found = read.logprobs([0, 2], [[9], [33]])
    assert counted == []
    assert_as_alone(tiny_model, found, [0, 2], [[9], [33]])


def test_the_conversations_are_read_once(tiny_model: Any) -> None:
    with tokens_read(tiny_model) as counted:
        read = Read(tiny_model, PREFIXES)
        for _ in range(3):
            read.logprobs([0, 1], [[9, 9, 9, 9], [5, 6]])
    # Conversations of 40, 23 and 11 tokens alone and those of 4 and 1 together, then three times two answers whose last
    # token is not needed.
    assert counted == [40, 23, 11, 2 * 4, 2 * 3, 2 * 3, 2 * 3]
