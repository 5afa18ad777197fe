"""A sweep: one recipe with several values of some keys, every step that they leave as it is done once, and one report.

    prefloop sweep recipes/rlaif.yaml train.dpo.beta=0.03,0.1,0.3

    generate -> exam -> label -> train.kto ----------------------> answers -> measure -> compare -> report
                           \\--> train.dpo[beta=0.03], [beta=0.1], [beta=0.3] --/

Each combination of the values is a variant, a recipe of its own. The steps of all variants are one graph in one
directory: steps that are the same, from what they read to what they do, are one step. A step that is another in some
variants is called by the values that it depends on, `train.dpo[beta=0.03]`, and so is its policy. All policies answer
the same held-out prompts, and the same judges compare them. What holds of a run holds of a sweep: it goes on after a
kill, and does nothing twice. Further values in the same directory leave what is done.

    sweep.yaml    the recipe of each variant, in the place of a run's recipe.yaml

What is left out: choosing the next values by the results of the last, and rounds.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field
from rich.console import Console

from pipeline import plan, recipe
from pipeline.errors import DataError, RecipeError
from pipeline.plugins import Config
from pipeline.recipe import Recipe
from pipeline.recipe_yaml import parse, text_of
from pipeline.records import canonical, digest
from pipeline.run import Run, Step
from pipeline.terminal import RUNS, SWEEP

MOST = 16
"""Variants that need no saying so: compared each with each, they are 120 comparisons by every judge."""

LONGEST_VALUE, LONGEST = 24, 80
"""Characters of a value, and of all values, in a name."""

FIXED = {
    "model": "one base is in memory, and all policies are compared on it; run each base, and compare the runs",
    "compare": "all variants are compared alike; give it one value",
    "rounds": "a sweep has one round",
    "carry": "a sweep has one round",
}
"""Keys that have one value in a sweep, and why."""


class Variant(Config):
    """One combination of the values."""

    values: dict[str, str]
    """Key path -> its value, as it was written."""
    recipe: Recipe
    """The whole recipe."""


class SweepConfig(Config):
    """What sweep.yaml holds."""

    variants: tuple[Variant, ...] = Field(min_length=1)
    """In the order of the values, those of the last key changing fastest."""


@dataclass(frozen=True)
class Graph:
    """The steps of all variants before the comparison, each of them once."""

    steps: list[Step]
    names: list[dict[str, str]]
    """Of each variant: what a run of it alone calls a step -> what the sweep calls it."""

    def users(self, name: str) -> int:
        """How many variants have this step."""
        return sum(name in names.values() for names in self.names)


# ---- words


def read_words(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of all variants, and the values of each swept key: those have commas outside brackets and quotes.

    Raises:
        RecipeError: a word is no key.path=value, a value is empty, or a key is there twice.
    """
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key, values = key.strip(), [value.strip() for value in _split(text)]
        if not equals or not key:
            raise RecipeError(f"{word!r} is neither key.path=value nor key.path=value,value")
        if len(values) == 1:
            fixed.append(word)
            continue
        if not all(values):
            raise RecipeError(f"{word!r}: a value is empty; write null if that is meant, or leave the comma out")
        if key in swept:
            raise RecipeError(f"{key}: is swept twice; give all its values at once, {key}=value,value")
        if key.split(".")[0] in FIXED:
            raise RecipeError(f"{key}: cannot be swept: {FIXED[key.split('.')[0]]}")
        swept[key] = values
    return fixed, swept


def _split(text: str) -> list[str]:
    """The parts between commas that are in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and (depth or not parts[-1].strip()):
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        if sign == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


# ---- variants


def load(path: Path, words: Sequence[str], judge: str | None = None, most: int = MOST) -> SweepConfig:
    """Every variant of the recipe in a file. Loads no model.

    Args:
        words: overrides; those of several values are swept.
        judge: as in `recipe.load`.
        most: variants that are meant at most.

    Raises:
        RecipeError: nothing is swept, a value does not go into the recipe, two variants are the same, or there are
            too many.
    """
    fixed, swept = read_words(words)
    if not fixed and not swept:
        raise RecipeError(f"nothing is swept; give a key several values, such as {path} train.dpo.beta=0.03,0.1,0.3")
    combinations = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    if len(combinations) > most:
        counts = " x ".join(str(len(values)) for values in swept.values())
        raise RecipeError(
            f"{counts} values are {len(combinations)} variants, and {len(combinations) * (len(combinations) - 1) // 2} "
            f"comparisons by each judge; say --most {len(combinations)} if that is meant"
        )
    variants = [_variant(path, fixed, values, judge) for values in combinations]
    _check(variants)
    return SweepConfig(variants=tuple(variants))


def _variant(path: Path, fixed: Sequence[str], values: Mapping[str, str], judge: str | None) -> Variant:
    own = [f"{key}={value}" for key, value in values.items()]
    try:
        return Variant(values=dict(values), recipe=recipe.load(path, [*fixed, *own], judge))
    except RecipeError as error:
        raise RecipeError(f"{' '.join(own)}: {error}" if own else str(error)) from error


def _check(variants: Sequence[Variant]) -> None:
    first: dict[str, Variant] = {}
    for each in variants:
        same = first.setdefault(canonical(each.recipe.identity()), each)
        if same is not each:
            differing = [key for key, value in each.values.items() if same.values[key] != value] or list(each.values)
            one, other = (", ".join(f"{key}={made.values[key]}" for key in differing) for made in (same, each))
            raise RecipeError(
                f"{one} and {other} are the same experiment: the value is the same, another key replaces it, or it "
                "only changes how the work is done; leave one out"
            )
    if variants[0].recipe.rounds > 1:
        raise RecipeError(f"rounds: {variants[0].recipe.rounds} found; a sweep has one round, so set it to 1")
    if len({canonical(plan.sampler_of(each.recipe).identity()) for each in variants}) > 1:
        raise RecipeError(
            "generate.sampler: is swept, and held-out answers are drawn as in generate; set compare.sampler, so that "
            "all are drawn alike"
        )


# ---- the graph


def graph(variants: Sequence[Variant]) -> Graph:
    """The steps of all variants before the comparison: whatever some share comes before what they do not."""
    made = [{step.name: step for step in _before_comparison(each.recipe)} for each in variants]
    marks = [_marks(steps.values()) for steps in made]
    users: dict[tuple[str, str], list[int]] = {}
    for place, found in enumerate(marks):
        for item in found.items():
            users.setdefault(item, []).append(place)
    called = _names(users, variants)
    names = [{plain: called[plain, mark] for plain, mark in found.items()} for found in marks]
    steps = {
        names[place][plain]: _called(step, names[place])
        for place, found in enumerate(made)
        for plain, step in found.items()
    }
    order = list(dict.fromkeys(plain for found in made for plain in found))
    depths = _depths(steps)
    places = {names[place][plain]: order.index(plain) for place, found in enumerate(made) for plain in found}
    # Every exam before any training: what stops a variant is known before hours are spent on another.
    in_order = sorted(steps, key=lambda name: (depths[name], places[name]))
    return Graph([steps[name] for name in in_order], names)


def _before_comparison(variant: Recipe) -> list[Step]:
    steps = plan.steps(variant, "")
    names = [step.name for step in steps]
    return steps[: names.index("answers")]


def _marks(steps: Iterable[Step]) -> dict[str, str]:
    """What tells a step from those of its name in other variants: all that goes into its fingerprint but the bytes of
    its files, which are the same for all."""
    marks: dict[str, str] = {}
    for step in steps:
        inputs = {name: marks[name] for name in step.inputs}
        files = [str(file) for file in step.files]
        marks[step.name] = digest({"identity": step.identity, "inputs": inputs, "files": files}, 64)
    return marks


def _names(users: Mapping[tuple[str, str], Sequence[int]], variants: Sequence[Variant]) -> dict[tuple[str, str], str]:
    """What each step is called, by what a run alone calls it and its mark."""
    found: dict[tuple[str, str], str] = {}
    for (plain, mark), places in users.items():
        name = plain
        if len(places) < len(variants):
            own = [variants[place].values for place in places]
            same = [key for key in own[0] if len({values[key] for values in own}) == 1]
            swept = [key for key in same if len({each.values[key] for each in variants}) > 1]
            name = f"{plain}[{label(own[0], swept)}]"
            if name in found.values():
                name = f"{plain}[{label(own[0], list(own[0]))}]"
            if name in found.values():  # values that differ in what no file's name can have
                name = f"{name[:-1]}~{digest(mark, 6)}]"
        found[plain, mark] = name
    return found


def label(values: Mapping[str, str], keys: Sequence[str]) -> str:
    """These keys with their values, short, and safe in the name of a file: `beta=0.03,epochs=2`."""
    text = ",".join(f"{_short(key, keys)}={_word(values[key])}" for key in keys)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 9]}~{digest(text, 8)}"


def _short(key: str, keys: Sequence[str]) -> str:
    """The end of a key path by which it is told from the others."""
    parts = key.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next((end for end in ends if sum(f".{each}".endswith(f".{end}") for each in keys) == 1), key)


def _word(text: str) -> str:
    word = re.sub(r"[^\w.+-]+", "_", text).strip("_")
    return word if len(word) <= LONGEST_VALUE and word else f"{word[: LONGEST_VALUE - 7]}~{digest(text, 6)}"


def _called(step: Step, names: Mapping[str, str]) -> Step:
    """The step under its name in the sweep; what it reads it still finds under the names of a run."""
    called = {names[name]: step.called.get(name, name) for name in step.inputs}
    return replace(
        step,
        name=names[step.name],
        inputs=tuple(called),
        called={name: alias for name, alias in called.items() if name != alias},
    )


def _depths(steps: Mapping[str, Step]) -> dict[str, int]:
    """How many steps come before each, one after the other."""
    found: dict[str, int] = {}
    for name, step in steps.items():  # of each variant in the order of its work, so inputs are found
        found[name] = 1 + max((found[each] for each in step.inputs), default=-1)
    return found


# ---- the run


def open_sweep(config: SweepConfig, directory: Path, console: Console | None = None) -> Run:
    """The run that does the whole sweep; nothing is loaded or written before it is executed.

    Raises:
        DataError: the directory is that of a run.
    """
    if (directory / "recipe.yaml").is_file():
        raise DataError(f"{directory}: is a run; give the sweep a directory of its own with --run DIR")
    steps = _steps(config.variants, directory.name)
    cache = directory.absolute().parent / ".cache"
    return Run(directory, steps, recipe.dump(config), cache, console, recipe_name=SWEEP)


def reopen(directory: Path) -> Run:
    """A sweep from its directory, to see how far it is.

    Raises:
        RecipeError: its sweep.yaml is damaged.
    """
    return open_sweep(read(directory), directory)


def read(directory: Path) -> SweepConfig:
    """The variants of a sweep, from its directory.

    Raises:
        RecipeError: its sweep.yaml is damaged.
    """
    path = directory / SWEEP
    return recipe.read(SweepConfig, parse(text_of(path), str(path)), (), f"{path}: ")


def variant_of(config: SweepConfig, policies: Sequence[str]) -> tuple[Recipe, dict[str, str]]:
    """The first variant that has all of these.

    Args:
        policies: train steps, as the report calls what they made: `dpo[beta=0.03]`.

    Returns:
        Its recipe; what a run of it alone calls a step -> what the sweep calls it.

    Raises:
        DataError: one is none, or no variant has all of them.
    """
    names = graph(config.variants).names
    made = [{_policy(step) for step in each.values() if step.startswith("train.")} for each in names]
    known = sorted(set().union(*made))
    if unknown := [policy for policy in policies if policy not in known]:
        raise DataError(f"no train step of the sweep is called {unknown[0]!r}; there are: {', '.join(known)}")
    for each, steps, found in zip(config.variants, names, made, strict=True):
        if found.issuperset(policies):
            return each.recipe, steps
    raise DataError(f"{', '.join(policies)}: no variant has all of these; export them one by one")


def directory_of(path: Path, config: SweepConfig) -> Path:
    """Where a sweep is, unless `--run` says otherwise: by the recipe and the keys, whatever their values."""
    keys = list(config.variants[0].values)
    return RUNS / "-".join(["sweep", path.stem, *(_short(key, keys) for key in keys)])


def _steps(variants: Sequence[Variant], title: str) -> list[Step]:
    made, first = graph(variants), variants[0].recipe
    steps = [
        *made.steps,
        *plan.comparison(
            first, _contenders(variants, made), _reward_models(variants, made), [each.recipe for each in variants]
        ),
    ]
    keys = list(variants[0].values)
    told: dict[str, Mapping[str, str]] = {}
    for each, names in zip(variants, made.names, strict=True):
        name = label(each.values, keys) or "all"
        told[f"{name}~{digest(each.values, 6)}" if name in told else name] = names
    return [*steps, plan.report(title, _told(variants), [step.name for step in steps], told)]


def _contenders(variants: Sequence[Variant], made: Graph) -> list[plan.Contender]:
    """The base, then the policies of all variants, those of one train step side by side."""
    found: dict[str, list[plan.Contender]] = {}
    for each, names in zip(variants, made.names, strict=True):
        for who in plan.contenders(each.recipe):
            found.setdefault(who.name, []).append(_renamed(who, names))
    return list(dict.fromkeys(itertools.chain.from_iterable(found.values())))


def _reward_models(variants: Sequence[Variant], made: Graph) -> list[plan.Contender]:
    pairs = zip(variants, made.names, strict=True)
    return list(dict.fromkeys(_renamed(who, names) for each, names in pairs for who in plan.rewards(each.recipe, 1)))


def _renamed(who: plan.Contender, names: Mapping[str, str]) -> plan.Contender:
    """As the sweep calls it."""
    if who.step is None:
        return who
    step = names[who.step]
    return who._replace(name=_policy(step), step=step)


def _policy(step: str) -> str:
    return step.removeprefix("train.")


def _told(variants: Sequence[Variant]) -> str:
    """The recipe in the report: the first variant's, with the values of all above it."""
    swept: dict[str, list[str]] = {}
    for each in variants:
        for key, value in each.values.items():
            swept.setdefault(key, []).append(value)
    lines = [f"# swept: {key}={','.join(dict.fromkeys(values))}\n" for key, values in swept.items()]
    return "".join(lines) + recipe.dump(variants[0].recipe)
