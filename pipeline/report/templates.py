"""The templates of the report, as Jinja reads them: a name that is not given is an error."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str, **options: Any) -> Template:
    """A template of the folder; `options` are those of Jinja's `Environment`."""
    environment = Environment(
        loader=PackageLoader("pipeline", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters["tight"] = _tight
    return environment.get_template(name)


def _tight(text: str) -> str:
    """Keeps a number and its percent sign on one line."""
    return text.replace(" %", "\u202f%")
