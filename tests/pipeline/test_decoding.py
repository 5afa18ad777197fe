"""Conversations of unlike lengths are read in parts where that costs less than padding, and nothing else changes."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import full_logprobs, inputs_read

from pipeline import decoding
from pipeline.decoding import PASS, Passes, begin, by_length

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTHS = (23, 4, 11, 1, 40, 24)


def test_rows_share_a_part_where_their_padding_costs_less_than_a_pass() -> None:
    # A pass costs 8 tokens: 4 and 1 together have 3 of padding, 11 with them would have 17, 23 with 24 has 1.
    assert by_length(LENGTHS, CPU) == [[4], [0, 5], [2], [3, 1]]


def test_a_gpu_pads_short_rows_rather_than_computing_twice() -> None:
    assert by_length(LENGTHS, GPU) == [[3, 1, 2, 0, 5, 4]]
    assert by_length([4000, 10], GPU) == [[0], [1]]


def test_a_part_has_no_more_rows_than_it_may() -> None:
    assert by_length([5, 5, 5, 5, 5], CPU, most=2) == [[3, 4], [1, 2], [0]]
    assert by_length([], CPU) == []


def divisions(order: list[int]) -> Iterator[list[list[int]]]:
    """Every way to cut a list."""
    for cuts in itertools.product((False, True), repeat=len(order) - 1):
        parts = [[order[0]]]
        for cut, each in zip(cuts, order[1:], strict=True):
            if cut:
                parts.append([])
            parts[-1].append(each)
        yield parts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [None, 3])
def test_no_other_division_has_fewer_tokens(most: int | None, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 60, size=9).tolist()

    def cost(parts: list[list[int]]) -> int:
        return sum(len(part) * max(lengths[place] for place in part) + PASS["cpu"] for part in parts)

    found = by_length(lengths, CPU, most)
    every = divisions(sorted(range(9), key=lambda place: lengths[place]))
    assert cost(found) == min(cost(each) for each in every if most is None or max(map(len, each)) <= most)
    assert sorted(itertools.chain(*found)) == list(range(9))


def test_an_opening_is_read_once_and_the_last_tokens_together() -> None:
    opening = list(range(100, 120))
    prefixes = [[*opening, *[place] * length] for place, length in enumerate((30, 1, 2, 31))]
    # 29 and 30 tokens together, one alone, and one has nothing between the opening and its last token.
    assert Passes.of(prefixes, CPU) == (opening, [[0, 3], [2]])


def test_conversations_are_read_together_where_that_costs_no_more() -> None:
    assert Passes.of([[1, 2, 3, 4]], CPU) is None
    assert Passes.of([[1] * 20, [2] * 21], CPU) is None
    assert Passes.of([[1] * 200, [2] * 20], GPU) is None
    # An opening of two tokens is not worth a pass.
    assert Passes.of([[7, 7, each, *[each] * 40] for each in range(3)], CPU) is None


OPENING = [9, 8, 7, 6, 5, 4, 3]
CASES = {
    "unlike": ([], [(1, 39), (2, 23), (2, 10), (6, 1)]),
    "an opening": (OPENING, [(1, 7), (1, 39), (2, 23), (2, 10), (6, 1)]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_in_parts_goes_on_as_what_was_padded_together(
    case: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, shapes = CASES[case]
    random = np.random.default_rng(2)
    prefixes = [[*opening, *random.integers(10, 259, size=length).tolist()] for length in LENGTHS]
    with torch.inference_mode(), inputs_read(tiny_model, lambda ids: tuple(ids.shape)) as read:
        apart, logits_apart = begin(tiny_model, prefixes)
        monkeypatch.setattr(decoding, "PASS", {"cpu": 10**6})
        together, logits_together = begin(tiny_model, prefixes)
        assert read == [*shapes, (6, 40 + len(opening))]
        assert torch.allclose(logits_apart, logits_together, atol=1e-4)
        rows = torch.tensor([5, 1, 3, 3, 0])
        for each in (apart, together):
            each.select(rows)
        for _ in range(2):
            token_B = torch.randint(3, 259, (5,))
            assert torch.allclose(apart.step(token_B), together.step(token_B), atol=1e-4)


def test_what_is_read_in_parts_is_what_each_conversation_says_alone(tiny_model: Any) -> None:
    random = np.random.default_rng(3)
    rows = [[*OPENING, *random.integers(10, 259, size=length).tolist()] for length in LENGTHS]
    with torch.inference_mode(), inputs_read(tiny_model, lambda ids: tuple(ids.shape)) as read:
        logits_BV = begin(tiny_model, [row[:-1] for row in rows])[1]
    assert len(read) > 2
    for row, logits_V in zip(rows, logits_BV, strict=True):
        expected = full_logprobs(tiny_model, row)[-1]
        assert float(logits_V.log_softmax(-1)[row[-1]]) == pytest.approx(expected, abs=1e-4)
