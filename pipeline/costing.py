"""What the judges of a run would cost, before anybody is asked: `prefloop judge cost RECIPE`.

Where the answers are there already, they are what is counted; where they are not, answers of the greatest length that
the recipe allows stand in for them. What is left out: what a judge counts (its `cost`) and what was spent
(`judges.ledger`).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from judges import exam
from judges.base import Cost
from judges.exam import GoldPair
from pipeline import generate, people, plan, store
from pipeline.recipe import Recipe
from pipeline.records import Pair, Prompt, Response
from pipeline.rounds import step_of

CHARACTERS = 4
"""Of a token, about."""


class Line(NamedTuple):
    """One judge in one step."""

    step: str
    judge: str
    pairs: int
    cost: Cost


def lines(recipe: Recipe, generated: Path | None) -> Iterator[Line]:
    """What every judge of a run would be asked, in every round.

    Args:
        generated: the folder that the first generate step published; None: it has not run.
    """
    for number in range(1, recipe.rounds + 1):
        for line in _round(recipe, number, generated if number == 1 else None):
            yield line._replace(step=step_of(number, line.step))


def _round(whole: Recipe, number: int, generated: Path | None) -> Iterator[Line]:
    recipe = plan.recipe_in(whole, number)
    if recipe.judge is not None:
        pairs = list(store.read_jsonl(generated / "pairs.jsonl", Pair) if generated else _imagined(recipe))
        if plan.examines(recipe):
            gold = store.read_jsonl(recipe.exam.gold, GoldPair) if recipe.exam.gold else ()
            asked = [each.pair for each in exam.questions(pairs, gold, recipe.exam.prompts, recipe.seed)]
            yield Line("exam", recipe.judge.name, len(asked), recipe.judge.cost(asked))
        yield Line("label", recipe.judge.name, len(pairs), recipe.judge.cost(pairs))
    if recipe.annotations is not None:
        held_out = people.held_out_pairs(recipe.annotations, recipe.seed)
        for judge in recipe.compare.judges:
            yield Line("people", judge.name, len(held_out), judge.cost(held_out))
    matches = list(_matches(whole, number))
    for judge in recipe.compare.judges:
        yield Line("compare", judge.name, len(matches), judge.cost(matches))


def _imagined(recipe: Recipe) -> Iterator[Pair]:
    assert recipe.generate is not None
    for prompt in generate.read_prompts(recipe.generate.prompts):
        answers = _answers(recipe.generate.sampler, (("base", n) for n in range(recipe.generate.candidates)))
        yield from generate.pairs_of(prompt, answers, recipe.generate.pairing, recipe.seed)


def _matches(recipe: Recipe, number: int) -> Iterator[Pair]:
    prompts: Sequence[Prompt] = generate.read_prompts(recipe.compare.prompts)
    sampler, names = plan.sampler_of(recipe), [each.name for each in plan.contenders(recipe, number)]
    for prompt, sample in itertools.product(prompts, range(recipe.compare.samples)):
        answers = _answers(sampler, ((name, sample) for name in names))
        yield from (Pair.of(prompt, *both) for both in itertools.combinations(answers, 2))


def _answers(sampler: Any, who: Iterable[tuple[str, int]]) -> list[Response]:
    """Answers as long as the sampler allows, each with a text of its own."""
    length = CHARACTERS * getattr(sampler, "max_new_tokens", 256)
    return [Response(text=f"{source} {index} ".ljust(length, "."), source=source, index=index) for source, index in who]
