"""YAML as a recipe is written: strict, so that a file means what it seems to mean.

YAML 1.2's plain scalars, no tags, no aliases, no key twice, and no more than a person would write. What is left out:
what the keys mean (`pipeline.recipe`).
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 30
"""Of a recipe file. Real ones have a few thousand bytes and six levels; more is an accident or an attack."""


def text_of(path: Path) -> str:
    """What is in a recipe file.

    Raises:
        RecipeError: there is none, or it is too large or not UTF-8.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, False for any name that cannot be one
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.yaml")], n=1)
        raise RecipeError(f"{path}: there is no such file" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{path}: is larger than {MAX_BYTES:,} bytes, which no recipe is")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def parse(text: str, where: str, *, lines: bool = True) -> Any:
    """The one YAML document in `text`.

    Raises:
        RecipeError: it is none, or uses what `Loader` refuses; with `where` and, if `lines`, the line.
    """
    try:
        # A subclass of SafeLoader that refuses all tags; yaml.safe_load would read 1.1's numbers and aliases.
        return yaml.load(text, Loader=Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and lines else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{where}{line}: {problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: {str(error).splitlines()[0]}") from error


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars; no tags, no aliases, no key twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (that is how PyYAML keeps them)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            # Ten lines of them can stand for a billion values.
            raise _refused(f"the alias *{event.anchor} is not read; write the value out, or use extends", event)
        if getattr(event, "tag", None) is not None:
            raise _refused(f"the tag {event.tag} is not read; write the value without it", event)
        if self.depth == MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} levels deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refused("a key needs to be text; put it in quotes", key)
            if key.value in lines:
                raise _refused(f"the key {key.value!r} is there twice, first on line {lines[key.value]}", key)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Puts in quotes whatever YAML 1.1 or 1.2 would not read as text, and writes no alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Readers turn Unicode's own line ends into \n unless they are escaped. Texts of several lines stay readable.
        style = '"' if re.search("[\x85\u2028\u2029]", data) else "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


Dumper.add_representer(str, Dumper.represent_str)


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


# YAML 1.1, PyYAML's own, reads 1e-5 as text, no as false, 012 as ten and 1:30 as ninety.
for _tag, _scalar in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]{0,999})",
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*|(?=[eE]))|\.[0-9]+)([eE][-+]?[0-9]+)?",
}.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_scalar})\Z"), None)
