"""What the train steps of a recipe must be to each other: what each reads is made before it, and it can go on with it.

Each function yields mistakes, which the recipe raises together. What is left out: what one step may be by itself, which
its algorithm says.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline import rounds as iterated
from pipeline.algorithms.base import AlgorithmConfig, Need
from pipeline.launch import LaunchConfig
from pipeline.models import ModelConfig
from pipeline.recipe_mistakes import hint, mistakes_in, nearest
from pipeline.sampling.base import SamplerConfig


def policies(steps: Mapping[str, AlgorithmConfig]) -> list[str]:
    """The train steps that make a policy, which can be compared."""
    return [name for name, step in steps.items() if step.MAKES == "policy"]


def wrong_needs(steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    names = list(steps)
    for index, (name, algorithm) in enumerate(steps.items()):
        for need in algorithm.needs():
            earlier = [each for each in names[:index] if need.makes == steps[each].MAKES]
            remedy = hint(need.step, earlier) if earlier else f"; put a step that makes a {need.makes} before {name!r}"
            if need.step in names[index:]:
                problem = f"{need.step!r} does not come before {name!r}; put it first under train"
            elif need.step not in names:
                problem = f"no earlier step is called {need.step!r}{remedy}"
            elif need.step not in earlier:
                problem = f"{need.step!r} makes a {steps[need.step].MAKES}, and a {need.makes} is needed{remedy}"
            else:
                continue
            yield mistake((name, *need.option.split(".")), problem)


def without_answers(steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    learned = {"label": "labels", "generate": "prompts"}
    for name, algorithm in steps.items():
        read = [learned[stage] for stage in algorithm.reads()]
        if read:
            what = f"learns from {' and '.join(read)}, and nothing makes them; add generate and judge, or annotations"
            yield mistake((name,), what)


def wrong_tuning(steps: Mapping[str, AlgorithmConfig], model: ModelConfig) -> Iterator[InitErrorDetails]:
    for name, algorithm in steps.items():
        if algorithm.trains_base() and model.quantization != "none":
            what = "trains weights themselves, which cannot be quantised; set model.quantization to none "
            yield mistake((name, "tune"), f"{what}(it is {model.quantization}), or tune to lora")


SHAPE = ("r", "lora_alpha", "target_modules", "use_dora")
"""What an adapter that is gone on with has from the step before."""


def wrong_starts(steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    """Starts whose kind of weights a step cannot go on with, or whose adapter is of another shape than its own."""
    for name, algorithm in steps.items():
        for need in algorithm.needs():
            start = steps.get(need.step)
            if start is not None and need.makes == start.MAKES == "policy":
                wrong = _wrong_start(steps, algorithm, need)
                if wrong:
                    yield mistake((name, *wrong[0].split(".")), wrong[1])


def _wrong_start(
    steps: Mapping[str, AlgorithmConfig], algorithm: AlgorithmConfig, need: Need
) -> tuple[str, str] | None:
    """The option and what is wrong with it."""
    start = steps[need.step]
    if need.adapter and _changes_base(steps, need.step):
        what = (
            f"{need.step!r} has trained weights of the base itself, and {algorithm.name} goes on with an adapter alone"
        )
        return need.option, f"{what}; start from a step with tune: lora"
    if algorithm.trains_base() and not start.trains_base():
        what = f"{need.step!r} has trained an adapter, which is not gone on with by training the base"
        return need.option, f"{what}; set tune to lora here, or in {need.step} to what it is here"
    if algorithm.trains_base() or start.trains_base():
        return None
    for each in SHAPE:
        own, theirs = getattr(algorithm.lora, each), getattr(start.lora, each)
        if own != theirs:
            what = f"{own!r} found, and the adapter of {need.step!r}, which it goes on with, has {theirs!r}"
            return f"lora.{each}", f"{what}; make them the same"
    return None


def _changes_base(steps: Mapping[str, AlgorithmConfig], name: str) -> bool:
    """Whether a step's policy has other weights than the base below its adapter, if it has one."""
    earlier = list(steps)[: list(steps).index(name)]
    starts = [need.step for need in steps[name].needs() if need.makes == "policy" and need.step in earlier]
    return steps[name].trains_base() or any(_changes_base(steps, start) for start in starts)


def wrong_launches(
    steps: Mapping[str, AlgorithmConfig], launch: LaunchConfig, model: ModelConfig | None
) -> Iterator[InitErrorDetails]:
    for name, algorithm in steps.items():
        own = algorithm.launch or launch
        for problem in algorithm.refusals(own):
            yield mistake((name,), problem)
        base = getattr(algorithm, "base", None) or model
        if own.zero == 3 and base is not None and base.quantization == "int8":
            problem = "launch.zero=3 cannot divide weights in int8; set model.quantization to nf4 or none, or zero to 2"
            yield mistake((name,), problem)


def wrong_policy(policy: str, steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    """What is wrong with the train step whose policy should answer the prompts."""
    if policy not in steps:
        yield mistake((), f"no step is called {policy!r}, as generate.policy has it{nearest(policy, policies(steps))}")
    elif steps[policy].MAKES != "policy":
        yield mistake((policy,), f"makes a {steps[policy].MAKES}, and generate.policy names it as who answers")
    else:
        for name in iterated.before_generate(steps, policy):
            if steps[name].reads():
                read = " and ".join(steps[name].reads())
                yield mistake(
                    (name,), f"learns from {read}, which come of generate, and generate.policy needs it first"
                )


def unserved(
    sampler: SamplerConfig, names: Sequence[str], steps: Mapping[str, AlgorithmConfig]
) -> Iterator[InitErrorDetails]:
    """The train steps among these whose policy the sampler's servers cannot be given."""
    for name in names:
        if why := not_served(sampler, name, steps):
            yield mistake((name,), why)


def not_served(sampler: SamplerConfig, name: str, steps: Mapping[str, AlgorithmConfig]) -> str | None:
    if not sampler.REMOTE:
        return None
    remedy = f"sample with {{name: local}}, or leave {name!r} out"
    if _changes_base(steps, name):
        return f"{sampler.name}'s servers take adapters, and {name!r} trains weights of the base itself; {remedy}"
    if (lora := getattr(steps[name], "lora", None)) and lora.use_dora:
        return f"{sampler.name}'s servers take plain LoRA, and {name!r} trains a DoRA; {remedy}"
    return None


def wrong_carry(carry: str | None, steps: Mapping[str, AlgorithmConfig], rounds: int) -> Iterator[str]:
    """What keeps a later round from going on with this step's policy, a sentence each."""
    again = iterated.repeated(steps)
    known = [name for name in policies(steps) if name in again]
    if carry is None:
        if rounds > 1:
            yield f"missing; name the train step whose policy the next round goes on with: {', '.join(known) or 'none'}"
        return
    if carry not in steps:
        yield f"no step is called {carry!r}{hint(carry, known)}"
    elif steps[carry].MAKES != "policy":
        yield f"{carry!r} makes a {steps[carry].MAKES}, which answers no prompts; those that do: {', '.join(known)}"
    elif carry not in again:
        yield f"{carry!r} learns from nothing that another round brings; those that do: {', '.join(known)}"
    if rounds == 1:
        return
    for name in again:
        algorithm = steps[name]
        if iterated.LATER.match(name):
            yield f"{name!r} is called as a policy of a later round is; call it something else"
        if not iterated.goes_on(algorithm, again):
            continue
        if "start_from" not in type(algorithm).model_fields:
            yield f"{name!r} ({algorithm.name}) cannot start from another policy, and so has no second round"
        elif carry in known:
            try:
                later = iterated.in_later(algorithm, carry, again)
            except ValidationError as error:
                told = "; ".join(problem for _, problem, _ in mistakes_in(error.errors(), type(algorithm)))
                yield f"{name!r} cannot go on with {carry!r}: {told}"
            else:
                starts = (need for need in later.needs() if need.option == "start_from")
                for wrong in filter(None, (_wrong_start(steps, later, need) for need in starts)):
                    yield f"train.{name}.{wrong[0]}: {wrong[1]}"


def mistake(path: tuple[str | int, ...], what: str) -> InitErrorDetails:
    return {"type": PydanticCustomError("recipe", "{what}", {"what": what}), "loc": path, "input": None}


def with_names(steps: Any) -> Any:
    """The block `train` with every step's algorithm written out: `dpo: {beta: 0.1}` has the name dpo."""
    if not isinstance(steps, Mapping):
        return steps
    blocks = {step: {} if block is None else block for step, block in steps.items()}
    return {step: {"name": step, **block} if isinstance(block, Mapping) else block for step, block in blocks.items()}


def with_shapes(steps: Any) -> Any:
    """Such a block with the adapter's shape written out in every step that goes on with another's. Not before all of
    the recipe is there: what is written out counts as said, and an override of the other step would contradict it."""
    if not isinstance(steps, Mapping):
        return steps
    found: dict[Any, Any] = {}
    for step, block in steps.items():
        found[step] = _shaped(block, found) if isinstance(block, Mapping) else block
    return found


def _shaped(block: Mapping[str, Any], steps: Mapping[str, Any]) -> Mapping[str, Any]:
    """A block that goes on with another's adapter, with the shape of that one where it says nothing of it."""
    start = steps.get(block["start_from"]) if isinstance(block.get("start_from"), str) else None
    theirs = start.get("lora") if isinstance(start, Mapping) else None
    own = block.get("lora", {})
    if not isinstance(theirs, Mapping) or not isinstance(own, Mapping):
        return block
    return {**block, "lora": {**{name: theirs[name] for name in SHAPE if name in theirs}, **own}}
