"""The types of a recipe, walked along its keys, so that its mistakes are told and its values merged by key path.

A type is what stands in an annotation: a Config, an Annotated[...] with a Plugin, a dict, a tuple, or several joined by
|. What is left out: what is done with them (`recipe_mistakes.py`, `recipe_merge.py`).
"""

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline.plugins import Config, Plugin, config_class


def type_under(expected: Any, value: Any, key: str | int) -> Any:
    """The type of what stands at `key` of `value`, itself of type `expected`. Any: the types do not tell."""
    for each in alternatives(expected):
        block = block_class(each, value)
        if block is not None and key in block.model_fields:
            return _annotation(block.model_fields[str(key)])
        if get_origin(each) in (dict, tuple, list):
            return get_args(each)[1 if get_origin(each) is dict else 0]
    return Any


def block_class(expected: Any, value: Any) -> type[Config] | None:
    """The Config that `value` will be read as; that of a plugin is in the module of its name."""
    plugin = plugin_of(expected)
    if plugin is not None:
        name = value.get("name") if isinstance(value, dict) else None
        try:
            return config_class(plugin.kind, name) if isinstance(name, str) else None
        except LookupError:
            return None  # reading the whole recipe will say so
    return expected if isinstance(expected, type) and issubclass(expected, Config) else None


def alternatives(expected: Any) -> list[Any]:
    if get_origin(expected) in (Union, UnionType):
        return [each for each in get_args(expected) if each is not NoneType]
    return [expected]


def plugin_of(expected: Any) -> Plugin | None:
    return next((mark for mark in getattr(expected, "__metadata__", ()) if isinstance(mark, Plugin)), None)


def _annotation(field: FieldInfo) -> Any:
    marks = [mark for mark in field.metadata if isinstance(mark, Plugin)]
    return Annotated[field.annotation, marks[0]] if marks else field.annotation
