"""Iterated runs: what comes again in each round, what it is called, and where it starts.

    rounds: 3
    carry: dpo

The first round is the recipe as it stands. A later one generates from the policy that `carry` made in the round before,
examines the judge and labels what came, and trains again: policies go on from the policy carried, reward models begin
anew. Its steps are called `round2.generate`, `round2.train.dpo` and so on, its policies `round2_dpo`. Train steps that
learn neither from labels nor from prompts are the same in every round, and not repeated.

What is left out: the graph (`pipeline.plan`), and refusing recipes in which it makes no sense (`pipeline.recipe`).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.algorithms.base import AlgorithmConfig
from pipeline.records import seed_of

SEEDS = 2**31
"""A later round's seed is below this: NumPy takes no more than 32 bits."""

LATER = re.compile(r"round([1-9]\d*)_")
"""How the names of later rounds' policies begin."""


def step_of(number: int, step: str) -> str:
    """What a step of the first round is called in this one."""
    return step if number == 1 else f"round{number}.{step}"


def place_of(name: str) -> tuple[int, str]:
    """The round of a step, and what it is called in the first."""
    found = re.fullmatch(r"round([1-9]\d*)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (1, name)


def policy_of(number: int, step: str) -> str:
    """What a policy that a train step made in this round is called, where policies are compared."""
    return step if number == 1 else f"round{number}_{step}"


def made_by(steps: Mapping[str, AlgorithmConfig], policy: str) -> tuple[int, str] | None:
    """The round in which a policy of this name was made, and by which train step. None: there is no such step."""
    found = LATER.match(policy)
    number, step = (int(found[1]), policy[found.end() :]) if found and policy not in steps else (1, policy)
    return (number, step) if step in steps else None


def seen_from(number: int, steps: Mapping[str, Path]) -> dict[str, Path]:
    """Folders by the name of their step, as a round sees them: its stages under the names that they have in the first,
    and what was trained in any round by the names of the policies."""
    found = {}
    for name, folder in steps.items():
        own, plain = place_of(name)
        if plain.startswith("train."):
            found[f"train.{policy_of(own, plain.removeprefix('train.'))}"] = folder
        elif own == number:
            found[plain] = folder
    return found


def seed_in(number: int, seed: int) -> int:
    """The seed of a round: the recipe's own in the first, so that one round more changes nothing of those before."""
    return seed if number == 1 else seed_of(seed, "round", number) % SEEDS


def files_in(number: int, rounds: int, files: Sequence[Path]) -> tuple[Path, ...]:
    """The prompt files of a round: of several each round has the next, over again from the first when all were had."""
    return tuple(files) if rounds == 1 else (files[(number - 1) % len(files)],)


def repeated(steps: Mapping[str, AlgorithmConfig]) -> list[str]:
    """The train steps that learn from something that is another in each round: from a stage, or from such a step."""
    found: list[str] = []
    for name, algorithm in steps.items():
        if algorithm.reads() or any(need.step in found for need in algorithm.needs()):
            found.append(name)
    return found


def before_generate(steps: Mapping[str, AlgorithmConfig], policy: str | None) -> list[str]:
    """The train steps that are done before anything is generated: the policy that answers, and what that one needs."""
    if policy is None or policy not in steps:
        return []
    earlier = [before_generate(steps, need.step) for need in steps[policy].needs()]
    return list(dict.fromkeys([*(name for found in earlier for name in found), policy]))


def goes_on(algorithm: AlgorithmConfig, again: Sequence[str]) -> bool:
    """Whether a step starts from the policy carried: a policy that does not start from another step of its round."""
    return algorithm.MAKES == "policy" and getattr(algorithm, "start_from", None) not in again


def in_later(algorithm: AlgorithmConfig, carry: str, again: Sequence[str]) -> AlgorithmConfig:
    """A step's options in a later round.

    Args:
        again: the steps that are repeated.

    Raises:
        ValidationError: it cannot start from another policy.
    """
    if not goes_on(algorithm, again):
        return algorithm
    return type(algorithm).model_validate({**algorithm.model_dump(), "start_from": carry})
