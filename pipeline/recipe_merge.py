"""One recipe over another: the files that it extends, presets, and overrides, as one tree of YAML values.

Blocks merge key by key, lists replace, and another `name` replaces its whole block. What is left out: what the values
may be (`recipe.py`).
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.plugins import Config, UnknownPluginError, config_class, names
from pipeline.recipe_mistakes import nearest, shown
from pipeline.recipe_steps import with_names
from pipeline.recipe_types import alternatives, block_class, plugin_of, type_under
from pipeline.recipe_yaml import parse, text_of


def tree_of(path: Path, kind: type[Config], within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file that holds a block of this kind, over those that it extends.

    Args:
        within: the files that were being read when it was named.

    Raises:
        RecipeError: one cannot be read, or they go in a circle.
    """
    if any(os.path.realpath(path) == os.path.realpath(each) for each in within):
        raise RecipeError(f"extends goes in a circle: {' -> '.join(str(each) for each in [*within, path])}")
    tree = parse(text_of(path), str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: needs to be a block of options, `key: value` lines")
    bases = tree.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and "\0" not in base for base in bases):
        raise RecipeError(f"{path}: extends: {shown(bases)} found; needs to be a file or a list of files")
    merged: dict[str, Any] = {}
    for each in [*(tree_of(path.parent / base, kind, (*within, path)) for base in bases), tree]:
        merged = over(merged, each, kind)
    return merged


def preset(name: str, folders: Sequence[Path], kind: type[Config]) -> dict[str, Any]:
    """The recipe in the preset of this name, the first folder's if there are two, or one that names the judge.

    Raises:
        RecipeError: there is neither.
    """
    presets = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    if name in presets:
        return tree_of(presets[name], kind)
    try:
        config_class("judge", name)
    except LookupError as error:
        if not isinstance(error, UnknownPluginError):
            raise RecipeError(f"--judge: {error}") from error
        judges = names("judge")
        near = nearest(name, [*presets, *judges]) or "."
        raise RecipeError(
            f"--judge: no preset and no judge is called {name!r}{near} There are presets: "
            f"{', '.join(sorted(presets)) or 'none'}; and judges: {', '.join(judges)}"
        ) from error
    return {"judge": {"name": name}}


def overridden(tree: dict[str, Any] | None, override: str, kind: type[Config]) -> dict[str, Any] | None:
    """The tree of a block of this kind with `key.path=value` over it; without a tree the override is checked alone."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{override!r} is no override; those are key.path=value")
    if not text.strip():
        # YAML reads nothing as null, and a shell leaves nothing of `budget_usd=$5`: the limit would be gone unsaid.
        raise RecipeError(f"{override!r}: the value is empty; write null if that is meant")
    value = parse(text, override, lines=False)
    if tree is None:
        return None
    try:
        return over(tree, _one_line(keys, value, tree, kind), kind)
    except IndexError as error:
        raise RecipeError(f"{override}: {error}") from error


def over(base: dict[str, Any], child: dict[str, Any], kind: type[Config]) -> dict[str, Any]:
    """`child` over `base`, trees of a block of this kind."""
    if "train" in base:
        base = {**base, "train": with_names(base["train"])}
    merged: dict[str, Any] = _merged(base, child, kind)
    return merged


def _merged(base: Any, child: Any, expected: Any) -> Any:
    """`child` over `base`, where the types of a recipe expect `expected`."""
    base, child = _spelled_out(base, expected), _spelled_out(child, expected)
    if not (isinstance(base, dict) and isinstance(child, dict)):
        return child
    names_a_plugin = any(plugin_of(each) for each in alternatives(expected))
    if names_a_plugin and "name" in child and child["name"] != base.get("name"):
        return child
    merged = {key: value for key, value in base.items() if key not in _replaced(child, expected)}
    for key, value in child.items():
        below = type_under(expected, base, key)
        if value is None and isinstance(base.get(key), dict) and NoneType not in get_args(below):
            del merged[key]  # no value is null here: it takes the block back, to the default if there is one
        else:
            merged[key] = _merged(base[key], value, below) if key in base else value
    return merged


def _replaced(child: dict[str, Any], expected: Any) -> frozenset[str]:
    """Options of a block that has only one of them, where `child` names another."""
    given = {key for key, value in child.items() if value is not None}
    blocks = [block for each in alternatives(expected) if (block := block_class(each, child))]
    return frozenset().union(*(block.ONE_OF for block in blocks if block.ONE_OF & given)) - child.keys()


def _one_line(keys: Sequence[str], value: Any, base: Any, expected: Any) -> Any:
    """The recipe that an override of `base` is: `a.b=1` is {a: {b: 1}}. A list is repeated with its one item changed.

    Raises:
        IndexError: a key does not count an item of its list.
    """
    if not keys:
        return value
    key = keys[0]
    below = type_under(expected, base, key)
    if not isinstance(base, list):
        inside = base.get(key) if isinstance(base, dict) else None
        return {key: _one_line(keys[1:], value, inside, below)}
    if key not in map(str, range(len(base))):
        raise IndexError(f"{key!r} is no item of a list that has {len(base)}, counted from 0")
    item = base[int(key)]
    changed = _merged(item, _one_line(keys[1:], value, item, below), below)
    return [*base[: int(key)], changed, *base[int(key) + 1 :]]


def _spelled_out(value: Any, expected: Any) -> Any:
    """The block that a short form stands for, `{name: length}` for `length`, so that keys can be put over it."""
    if isinstance(value, str):
        for each in alternatives(expected):
            if plugin_of(each):
                return {"name": value}
            block = block_class(each, None)
            if block:
                with contextlib.suppress(ValidationError):
                    return block.model_validate(value).model_dump(exclude_unset=True)
    return value
