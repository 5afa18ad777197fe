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
from judges.base import Cost, JudgeConfig
from judges.exam import GoldPair
from pipeline import generate, people, plan, store, votes
from pipeline.algorithms.base import AlgorithmConfig
from pipeline.algorithms.groups import GroupConfig
from pipeline.algorithms.ppo_options import Options as PPO
from pipeline.recipe import Recipe, scoring_judges
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
    answers: bool = False
    """It is asked about so many single answers, and no pairs."""


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
    yield from _rewards(recipe)
    matches = list(_matches(whole, number))
    for judge in recipe.compare.judges:
        yield Line("compare", judge.name, len(matches), judge.cost(matches))


# ---- rewards


class Asking(NamedTuple):
    """What a train step asks a judge about."""

    answers: int
    """At most."""
    tokens: int
    """Of an answer, at most."""


def uncounted(recipe: Recipe) -> list[str]:
    """The train steps whose judges are asked while they learn, and whose algorithm does not tell how often."""
    return [
        f"train.{path[0]}"
        for path, _ in scoring_judges(recipe.train)
        if _asking(recipe.train[path[0]], path[1], 1) is None
    ]


def _rewards(recipe: Recipe) -> Iterator[Line]:
    asked = list(scoring_judges(recipe.train))
    prompts = _trained_on(recipe) if asked else []
    for (name, option, *_), judge in asked if prompts else ():
        asking = _asking(recipe.train[name], option, len(prompts))
        if asking is not None:
            yield Line(f"train.{name}", judge.name, asking.answers, _cost_of(judge, asking, prompts), answers=True)


def _trained_on(recipe: Recipe) -> list[Prompt]:
    if recipe.annotations is None:
        return list(generate.read_prompts(recipe.generate.prompts)) if recipe.generate else []
    found = votes.read(recipe.annotations)
    names, _ = people.split(found, recipe.annotations, recipe.seed)
    return [Prompt.model_validate_json(found.prompts[name]) for name in names]


def _asking(step: AlgorithmConfig, option: str, prompts: int) -> Asking | None:
    """What the judge of this option is asked if every update is made. None: the algorithm does not tell."""
    if isinstance(step, GroupConfig):
        groups = len(step.in_order([{}] * prompts, seed=0))
        return Asking(groups * step.num_generations, step.max_completion_length)
    if not isinstance(step, PPO):
        return None
    held_out = step.eval_prompts if step.eval_steps else 0
    updates = step.updates(max(0, prompts - held_out), step.episodes)
    # The untrained policy is evaluated too.
    evaluated = held_out * (1 + updates // step.eval_steps) if step.eval_steps else 0
    first = step.normalize_samples if step.normalize_scores else step.episodes
    return Asking(evaluated + (first + updates * step.episodes if option == "reward" else 0), step.max_new_tokens)


def _cost_of(judge: JudgeConfig, asking: Asking, prompts: Sequence[Prompt]) -> Cost:
    """A judge that scores answers by themselves asks about both sides of a pair, so pairs of them are counted."""
    text = CHARACTERS * asking.tokens
    pairs = []
    for number in range((asking.answers + 1) // 2 if prompts else 0):
        prompt = prompts[number % len(prompts)]
        both = (_answer("policy", index, text) for index in (2 * number, 2 * number + 1))
        pairs.append(Pair.of(prompt, *both))
    return judge.cost(pairs)


# ---- answers that are not there yet


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
    return [_answer(source, index, length) for source, index in who]


def _answer(source: str, index: int, length: int) -> Response:
    return Response(text=f"{source} {index} ".ljust(length, "."), source=source, index=index)
