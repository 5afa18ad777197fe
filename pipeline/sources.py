"""What a comparison compares: the words of a command line -> checkpoints, each known by what is in it.

    runs/rlaif                      every policy of a run, rlaif/ppo and so on, and the base
    runs/rlaif:ppo                  one of them
    base                            the base
    adapters/mine                   an adapter by PEFT, or weights of the base that prefloop left
    models/merged                   a whole model
    org/name, org/name@revision     an adapter or a whole model of the Hugging Face hub
    mine=adapters/v3                any of them under another name

What is left out: whether an adapter goes on the base (`pipeline.fitting`), and the comparison (`pipeline.comparison`).
"""

import difflib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline import plan, recipe, recipe_steps, store, weights
from pipeline.algorithms.scoring import FACTS
from pipeline.contents import content_of
from pipeline.errors import DataError, RecipeError
from pipeline.models import ADAPTER, ADAPTER_TENSORS, BUILT_IN, ModelConfig, home, path_of
from pipeline.plugins import Config
from pipeline.recipe import BASE, Recipe
from pipeline.rounds import made_by, step_of
from pipeline.run import State
from pipeline.terminal import COMPARISON, SWEEP

HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is asked of the hub: no pickle and no code."""


class Source(Config):
    """One word of the command."""

    place: str
    """A folder, `base`, or an id on the hub."""
    step: str | None = None
    """Of a run: the policy. None: all of them."""
    name: str | None = None
    """What it is called in the comparison. None: as it is where it comes from."""

    def __str__(self) -> str:
        return self.place if self.step is None else f"{self.place}:{self.step}"


@dataclass(frozen=True)
class OpenRun:
    """A run whose policies are compared."""

    label: str
    """What its policies are named by."""
    directory: Path
    recipe: Recipe
    states: dict[str, State]


class Found(NamedTuple):
    """What is at the place of a source."""

    source: Source
    kind: Literal["base", "run", "adapter", "weights", "model"]
    folder: Path
    run: OpenRun | None = None


class Made(NamedTuple):
    """A checkpoint that is compared."""

    name: str
    algorithm: str
    kind: Literal["base", "adapter", "weights", "model", "step"]
    folder: Path | None = None
    """Where it lies; None: it is the base."""
    digest: str = ""
    """Hash of what is in the folder."""
    run: str | None = None
    """The label of the run whose step made it."""
    source: str = ""
    """The word that it comes from, for messages."""


# ---- words


def read_words(words: Sequence[str], keys: Collection[str]) -> tuple[list[Source], list[str]]:
    """Sources, and overrides of options: those have a dot before the `=`, or one of `keys`.

    Raises:
        RecipeError: a name or a place is empty.
    """
    sources: list[Source] = []
    overrides: list[str] = []
    for word in words:
        name, equals, place = word.partition("=")
        if not equals or "/" in name or os.path.exists(word):
            sources.append(_source(word))
        elif "." in name or name in keys:
            overrides.append(word)
        elif re.fullmatch(r"[\w-]+", name) and place:
            sources.append(_source(place).model_copy(update={"name": name}))
        else:
            raise RecipeError(
                f"{word!r}: neither name=place, whose name is letters, digits, _ and -, nor key.path=value"
            )
    return sources, overrides


def _source(text: str) -> Source:
    place, colon, step = text.rpartition(":")
    if colon and not os.path.exists(text) and os.path.isdir(place):
        return Source(place=place, step=step)
    return Source(place=text)


# ---- places


def find(source: Source) -> Found:
    """What the source is.

    Raises:
        DataError: nothing that can be compared.
    """
    if source.place == BASE:
        return Found(source, "base", Path())
    folder = _folder(source.place)
    kind = _kind(folder)
    if source.step is not None and kind != "run":
        raise DataError(f"{source}: {source.place} is no run directory, and so has no steps; leave :{source.step} out")
    if kind == "run":
        return Found(source, kind, folder, _open(source, folder))
    return Found(source, kind, folder)


def _kind(folder: Path) -> Literal["run", "adapter", "weights", "model"]:
    """What a folder holds.

    Raises:
        DataError: nothing that can be compared.
    """
    if (folder / COMPARISON).is_file():
        raise DataError(
            f"{folder}: is a comparison; name the runs and adapters that it compares ({COMPARISON} has them)"
        )
    if (folder / SWEEP).is_file():
        raise DataError(f"{folder}: is a sweep; name folders of its policies, {folder}/steps/train.*/*")
    if (folder / "recipe.yaml").is_file():
        return "run"
    if (folder / FACTS).is_file():
        raise DataError(f"{folder}: is a reward model, which answers no prompts; name a policy")
    if (folder / ADAPTER).is_file():
        if not (folder / ADAPTER_TENSORS).is_file():
            raise DataError(
                f"{folder}: has {ADAPTER} and no {ADAPTER_TENSORS}; {_pickled(folder) or 'copy the whole folder'}"
            )
        return "adapter"
    if (folder / weights.FILE).is_file():
        return "weights"
    if (folder / "config.json").is_file():
        if not any(folder.glob("*.safetensors")):
            raise DataError(f"{folder}: a model without *.safetensors; {_pickled(folder) or 'copy the whole folder'}")
        return "model"
    raise DataError(f"{folder}: neither a run, nor an adapter, nor a model: {_there(folder)}")


def _pickled(folder: Path) -> str:
    """The remedy where the weights are there as a pickle."""
    found = [each.name for each in sorted(folder.glob("*.bin"))]
    return f"{found[0]} is a pickle, which could run any code: save it as safetensors" if found else ""


def _there(folder: Path) -> str:
    """What is in a folder that is of no use, and where something of use may be meant."""
    inner = [each for each in sorted(folder.iterdir()) if not each.name.startswith(".")]
    better = [each for each in inner if each.is_dir() and any((each / mark).is_file() for mark in
              ("recipe.yaml", ADAPTER, weights.FILE, "config.json"))]  # fmt: skip
    if better:
        return f"is one of these meant? {', '.join(str(each) for each in better[:6])}"
    more = f" and {len(inner) - 6} more" if len(inner) > 6 else ""
    return f"it has {', '.join(each.name for each in inner[:6])}{more}" if inner else "it is empty"


def _folder(place: str) -> Path:
    """The folder of a place; what is on the hub is fetched.

    Raises:
        DataError: there is none.
    """
    if place == BUILT_IN:
        return Path(path_of(ModelConfig()))
    path = Path(place)
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(f"{place}: is a file; name the folder of a run, of an adapter or of a model")
    hub = HUB.fullmatch(place)
    # `runs/rlaiff` is a mistake, and not somebody's model on the hub.
    if hub is None or (path.parent.is_dir() and str(path.parent) != "."):
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        meant = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise DataError(f"{place}: there is no such folder{meant or '; name a run directory, an adapter or a model'}")
    return _fetched(place, hub["id"], hub["revision"])


def _siblings(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []


def _fetched(place: str, name: str, revision: str | None) -> Path:
    """The folder of an adapter or a model of the hub, in the hub's own cache.

    Raises:
        DataError: the hub does not give it, or is not to be asked and the cache does not have it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FETCHED)))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        offline = " (HF_HUB_OFFLINE is set, so only the cache was asked)" if _offline() else ""
        again = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise DataError(
            f"{place}: there is no such folder, and the hub does not give it{offline}: {first}\n"
            f"Connect and run `{again}` once, or name a folder"
        ) from error


def _offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return bool(is_offline_mode())


# ---- runs


def _open(source: Source, directory: Path) -> OpenRun:
    loaded = recipe.load(directory / "recipe.yaml")
    states = {state.step.name: state for state in plan.open_run(loaded, directory).states()}
    label = directory.absolute().name if source.name is None else source.name
    return OpenRun(label, directory, loaded, states)


def policies(run: OpenRun, step: str | None) -> list[plan.Contender]:
    """Those of all rounds in the order of the recipe, or the one that is named.

    Raises:
        DataError: there is no such policy.
    """
    every = [each for number in range(1, run.recipe.rounds + 1) for each in plan.contenders(run.recipe, number)]
    if step is None:
        return list({each.name: each for each in every}.values())
    known = recipe_steps.policies(run.recipe.train)
    made = made_by(run.recipe.train, step)
    if step == BASE:
        return [plan.Contender(BASE, BASE)]
    if made is None or made[0] > run.recipe.rounds:
        near = difflib.get_close_matches(step, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise DataError(f"{run.directory}: no train step is called {step!r}; {hint}")
    algorithm = run.recipe.train[made[1]]
    if algorithm.MAKES != "policy":
        what = f"{step!r} makes a {algorithm.MAKES}, which answers no prompts"
        raise DataError(f"{run.directory}: {what}; those that do: {', '.join(known)}")
    return [plan.Contender(step, algorithm.name, step_of(made[0], f"train.{made[1]}"))]


def _of_run(found: Found, run: OpenRun) -> Iterator[Made]:
    """The checkpoints of a run.

    Raises:
        DataError: a step is not done, or is damaged.
    """
    wanted = policies(run, found.source.step)
    for each in wanted:
        if each.step is None:
            yield Made(BASE, BASE, "base", source=str(found.source))
            continue
        state = run.states[each.step]
        if state.digest is None:
            raise DataError(_unfinished(run, state, wanted))
        if damaged := store.verify(state.path, hashes=True):
            raise DataError(f"{state.path}: {damaged[0]}; {_again(run)}")
        alone = found.source.step is not None and found.source.name is not None
        name = run.label if alone else f"{run.label}/{each.name}"
        yield Made(name, each.algorithm, "step", state.path, state.digest, run.label, str(found.source))


def _unfinished(run: OpenRun, state: State, wanted: Sequence[plan.Contender]) -> str:
    there = [f"{run.directory}:{each.name}" for each in wanted if each.step and run.states[each.step].done]
    instead = f", or compare what is there: {' '.join(there)}" if there else ""
    return f"{run.directory}: {state.step.name} is not done ({state.why}); {_again(run)}{instead}"


def _again(run: OpenRun) -> str:
    directory = shlex.quote(str(run.directory))
    return f"finish the run with `prefloop run {shlex.quote(str(run.directory / 'recipe.yaml'))} --run {directory}`"


# ---- checkpoints


def checkpoints(found: Sequence[Found]) -> list[Made]:
    """What is compared: the base first, where it is, and then everything as it was named.

    Raises:
        DataError: a step is not done, two have one name, or there is nothing to compare with another.
    """
    every: list[Made] = []
    for each in found:
        every += _of_run(each, each.run) if each.run else [_alone(each)]
    base = [each for each in every if each.kind == "base"][:1]
    made = [*base, *(each for each in every if each.kind != "base")]
    _check_names(made)
    if len(made) < 2:
        one = made[0].name if made else "nothing"
        raise DataError(
            f"only {one} is named, and a comparison takes two or more: add another run, an adapter, or base"
        )
    return made


def _alone(found: Found) -> Made:
    source = found.source
    if found.kind == "base":
        return Made(source.name or BASE, BASE, "base", source=str(source))
    assert found.kind != "run"
    manifest = store.read_manifest(found.folder)
    if manifest is None:
        digest, name, algorithm = content_of(found.folder, home() / "hashes"), _name_of(source), found.kind
    else:
        if damaged := store.verify(found.folder, hashes=True):
            raise DataError(f"{found.folder}: {damaged[0]}; copy it again")
        digest = manifest["digest"]
        name = str(manifest.get("step", _name_of(source))).removeprefix("train.")
        algorithm = manifest.get("identity", {}).get("algorithm", {}).get("name", found.kind)
    return Made(source.name or name, algorithm, found.kind, found.folder, digest, source=str(source))


def _name_of(source: Source) -> str:
    return (
        source.place
        if HUB.fullmatch(source.place) and not Path(source.place).is_dir()
        else Path(source.place).absolute().name
    )


def _check_names(made: Sequence[Made]) -> None:
    first: dict[str, Made] = {}
    for each in made:
        if each.name == BASE and each.kind != "base":
            raise DataError(f"{each.source}: would be called {BASE!r}, as the base is; name it: other={each.source}")
        if each.name not in first:
            first[each.name] = each
            continue
        if (each.source, each.folder) == (first[each.name].source, first[each.name].folder):
            raise DataError(f"{each.source}: is there twice; leave one out")
        raise DataError(
            f"{first[each.name].source} and {each.source}: both would be called {each.name!r}; "
            f"give one another name: other={each.source}"
        )


def read_adapter(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        told = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{folder / ADAPTER}: is no JSON ({error}); copy the folder again") from error
    if not isinstance(told, dict):
        raise DataError(f"{folder / ADAPTER}: is no JSON object; copy the folder again")
    return told
