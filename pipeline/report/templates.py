"""The templates of the report, as Jinja reads them: a name that is not given is an error."""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

UNSEEN = dict.fromkeys((*range(9), *range(14, 32), 127, *range(8234, 8239), *range(8294, 8298)), "�")
"""Characters that show nothing and may change what is around them: controls, and those that turn the direction."""


def template(name: str, *, autoescape: bool, write: Callable[[str], str] = str) -> Template:
    """A template of the folder, in which every text but our own markup passes `visible` and then `write`."""

    def finalize(value: Any) -> Any:
        return write(visible(value)) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("pipeline", "templates"),
        undefined=StrictUndefined,
        autoescape=autoescape,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["tight"] = _tight
    return environment.get_template(name)


def visible(text: str) -> str:
    """The text with a sign in the place of whatever would not be seen: the name of a checkpoint may hold anything."""
    return text.translate(UNSEEN)


def _tight(text: str) -> str:
    """Keeps a number and its percent sign on one line."""
    return text.replace(" %", "\u202f%")
