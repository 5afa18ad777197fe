"""How the mistakes of a recipe are told: each on one line, by its full key path, with what was found and what may be.

What is left out: finding them, which pydantic does by the types of `recipe.py`, and `recipe_steps.py`.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import RecipeError
from pipeline.plugins import Config, names
from pipeline.recipe_types import alternatives, block_class, plugin_of, type_under


def explain(error: ValidationError, kind: type[Config]) -> list[str]:
    """Each mistake that pydantic found in a block as one line: full key path, what was found, what is allowed.

    Args:
        kind: the block's.
    """
    lines: dict[str, list[str]] = {}
    for path, problem, remedy in mistakes_in(error.errors(), kind):
        remedies = lines.setdefault(f"{path}: {problem}" if path else problem, [])
        if remedy not in remedies:  # the alternatives of one option are separate errors to pydantic
            remedies.append(remedy)
    return [problem + " or ".join(remedies) for problem, remedies in lines.items()]


def all_of(mistakes: Sequence[str], where: str) -> RecipeError:
    """One error that tells them all, a line each."""
    count = f"{len(mistakes)} mistake" + ("s" if len(mistakes) > 1 else "")
    return RecipeError("\n  ".join([where + count, *mistakes]))


_NEEDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text (in quotes, if it looks like something else)",
    "path_type": "a path",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a block of options",
    "model_type": "a block of options",
    "is_instance_of": "a {class}",
    "too_short": "{min_length} or more of them",
    "none_required": "null",
}
"""What pydantic asks for, in the words of a recipe, by its type of error."""


def mistakes_in(
    errors: Sequence[ErrorDetails], block: type[Config], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """(key path, what was found, what to do) of each error inside `block`, which itself stands at the path `above`."""
    for error in errors:
        if error["type"] == "too_short" and any(_within(other["loc"], error["loc"]) for other in errors):
            continue  # pydantic counts only the items that are right; those that are wrong are told themselves
        inside, owner = _located(block, error["loc"])
        path, context = (*above, *inside), error.get("ctx", {})
        if error["type"] == "plugin":
            yield from mistakes_in(context["errors"], context["model"], path)
        else:
            yield ".".join(path), *_told(error, context, owner)


def _within(inner: tuple[str | int, ...], outer: tuple[str | int, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _told(error: ErrorDetails, context: Mapping[str, Any], owner: type[Config]) -> tuple[str, str]:
    if error["type"] == "extra_forbidden":
        return "no such option", hint(str(error["loc"][-1]), _options(owner))
    if error["type"] == "missing":
        plugin = plugin_of(type_under(owner, None, str(error["loc"][-1])))
        return "missing", f"; one of: {', '.join(names(plugin.kind))}" if plugin else "; it has no default"
    if error["type"] == "value_error":
        return str(context["error"]), ""
    if error["type"] in _NEEDS:
        return f"{shown(error['input'])} found; needs to be ", _NEEDS[error["type"]].format(**context)
    # Only pydantic's own messages have a url; those of a plugin or of this file say what was found.
    return (f"{shown(error['input'])} found; " if "url" in error else "") + error["msg"], ""


def _located(block: type[Config], location: tuple[str | int, ...]) -> tuple[list[str], type[Config]]:
    """pydantic's location as a key path, without the alternatives it tried, and the block its last key stands in."""
    here: Any = block
    path: list[str] = []
    owner = block
    for part in location:
        may_be = alternatives(here)
        if len(may_be) > 1:
            here = next((each for each in may_be if getattr(each, "__name__", "") == part), Any)
        elif part != "[key]":
            owner = block_class(may_be[0], None) or owner
            here = type_under(here, None, part)
            path.append(str(part))
    return path, owner


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that somebody may have meant, as the end of a message; nothing if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def hint(name: str, known: Sequence[str]) -> str:
    """`nearest`, or else the known names."""
    if near := nearest(name, known):
        return near
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"; there are: {', '.join(known[:12])}{more}"


def _options(block: type[Config]) -> list[str]:
    return [*block.model_fields, *block.FILE_KEYS]


def shown(value: Any) -> str:
    """A value as YAML would have it, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
