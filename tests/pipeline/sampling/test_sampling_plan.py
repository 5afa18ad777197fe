"""The plan of batches is a function of prompts and recipe alone, and a batch's key of everything that changes it."""

import dataclasses
import hashlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import prompt_of

from pipeline.records import Message, Prompt
from pipeline.sampling.base import Batch, plan

prompt_lists = st.lists(st.text(min_size=1).filter(str.strip), max_size=40, unique=True).map(
    lambda texts: [prompt_of(text, name=f"p{number}") for number, text in enumerate(texts)]
)


def planned(prompts: list[Prompt], **changed: Any) -> list[Batch]:
    return plan(prompts, **{"samples": 2, "batch_size": 8, "seed": 1, "purpose": "train", **changed})


@given(prompt_lists, st.integers(1, 6), st.integers(1, 20))
def test_every_prompt_is_in_exactly_one_batch_of_at_most_the_asked_size(
    prompts: list[Prompt], samples: int, size: int
) -> None:
    batches = planned(prompts, samples=samples, batch_size=size)
    assert sorted(prompt.id for batch in batches for prompt in batch.prompts) == sorted(each.id for each in prompts)
    for batch in batches:
        assert batch.samples == samples
        # One prompt's answers stay together, also where there are more of them than the size.
        assert len(batch.prompts) == 1 or len(batch.prompts) * samples <= size


@given(prompt_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_prompts_does_not_matter(prompts: list[Prompt], order: random.Random) -> None:
    shuffled = list(prompts)
    order.shuffle(shuffled)
    assert planned(shuffled) == planned(prompts)


def test_the_longest_prompts_come_first() -> None:
    batches = planned([prompt_of("x" * n) for n in (3, 9, 1, 5, 7)], samples=1, batch_size=2)
    assert [[len(prompt.text) for prompt in batch.prompts] for batch in batches] == [[9], [7, 5], [3, 1]]


@pytest.mark.parametrize(("prompts", "sizes"), [(84, [42, 42]), (80, [80]), (161, [53, 54, 54]), (1, [1]), (0, [])])
def test_batches_are_as_few_as_can_be_and_of_one_size_for_the_processes_that_share_them(
    prompts: int, sizes: list[int]
) -> None:
    batches = planned([prompt_of(f"question {number}") for number in range(prompts)], samples=1, batch_size=80)
    assert [len(batch.prompts) for batch in batches] == sizes


@given(prompt_lists, st.integers(1, 6), st.integers(1, 20))
def test_no_batch_has_two_prompts_more_than_another(prompts: list[Prompt], samples: int, size: int) -> None:
    sizes = [len(batch.prompts) for batch in planned(prompts, samples=samples, batch_size=size)]
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_batches_and_purposes_and_recipes_have_seeds_of_their_own() -> None:
    prompts = [prompt_of(f"question {number}") for number in range(40)]
    seeds = [batch.seed for purpose in ("train", "heldout") for batch in planned(prompts, purpose=purpose)]
    seeds += [batch.seed for batch in planned(prompts, seed=2)]
    assert len(set(seeds)) == len(seeds) == 30
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_plan_made_again_is_the_same() -> None:
    prompts = [prompt_of(f"question {number}") for number in range(9)]
    assert planned(prompts) == planned(prompts)
    # Spelled out, so that a change of the seeds, which loses every kept answer, is never made unawares.
    expected = int.from_bytes(hashlib.sha256(b'["1","train","only"]').digest()[:8], "big") // 2
    assert planned([prompt_of("only")])[0].seed == expected


BATCH = Batch((prompt_of("one"), prompt_of("two")), samples=2, seed=7)
IDENTITY = {"model": "m", "sampler": {"temperature": 1.0}, "adapter": None}


@pytest.mark.parametrize(
    ("batch", "identity"),
    [
        (BATCH, {**IDENTITY, "sampler": {"temperature": 0.9}}),
        (BATCH, {**IDENTITY, "adapter": "abc"}),
        (dataclasses.replace(BATCH, prompts=(prompt_of("one"), prompt_of("two!", name="two"))), IDENTITY),
        (dataclasses.replace(BATCH, prompts=(prompt_of("one"), prompt_of("two", name="too"))), IDENTITY),
        (dataclasses.replace(BATCH, prompts=(prompt_of("one"), prompt_of("two", system="Be short."))), IDENTITY),
        (dataclasses.replace(BATCH, prompts=BATCH.prompts[::-1]), IDENTITY),
        (dataclasses.replace(BATCH, prompts=BATCH.prompts[:1]), IDENTITY),
        (dataclasses.replace(BATCH, samples=3), IDENTITY),
        (dataclasses.replace(BATCH, seed=8), IDENTITY),
    ],
)
def test_whatever_changes_the_answers_changes_the_key(batch: Batch, identity: dict[str, Any]) -> None:
    assert batch.key(identity) != BATCH.key(IDENTITY)


def test_what_does_not_change_the_answers_keeps_the_key() -> None:
    described = BATCH.prompts[0].model_copy(update={"kind": "sum", "lang": "fr", "reference": "two"})
    assert dataclasses.replace(BATCH, prompts=(described, BATCH.prompts[1])).key(IDENTITY) == BATCH.key(IDENTITY)
    assert BATCH.key(dict(reversed(IDENTITY.items()))) == BATCH.key(IDENTITY)


def test_who_says_what_is_in_the_key() -> None:
    def conversation(*roles: Any) -> Batch:
        turns = tuple(Message(role=role, content="x") for role in (*roles, "user"))
        return Batch((Prompt(id="p", messages=turns),), samples=1, seed=1)

    assert conversation("user").key({}) != conversation("assistant").key({})
