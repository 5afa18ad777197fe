"""A name in a recipe -> the module of that name -> its Config. The file is the registration.

`judge: {name: length}` is `judges/length.py`; `train: {dpo: {...}}` is `pipeline/algorithms/dpo.py`; a dotted name
(`mylab.judges.rubric`) is any importable module. Nothing is registered by decorators or entry points, and no module
is imported that the recipe does not name.
"""

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError
from pydantic_core import PydanticCustomError

FOLDERS = {"judge": "judges", "algorithm": "pipeline.algorithms", "sampler": "pipeline.sampling"}
"""What a recipe can name, and the package whose modules carry those names."""


class Config(BaseModel):
    """Base of every block of a recipe: frozen, unknown keys refused, prose under each field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    RUNTIME: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that change how the work is done and not what comes out (processes, timeouts).
    All others are identity: a change of their value makes the step another one. `tests/pipeline/test_identity.py`
    lists every field of every Config with its class, so that a new field is classified by a person."""

    def identity(self) -> dict[str, Any]:
        """The options that can change the outcome, JSON-ready, nested blocks included: what fingerprints hash."""
        return {
            name: _identity(getattr(self, name)) for name in type(self).model_fields if name not in self.RUNTIME
        }


def names(kind: str) -> list[str]:
    """The names a recipe may use for this kind: modules of its folder that define a plugin (a class `Config`)."""
    package = importlib.import_module(FOLDERS[kind])
    found = (module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)
    return sorted(name for name in found if _is_plugin(f"{FOLDERS[kind]}.{name}"))


def config_class(kind: str, name: str) -> type[Config]:
    """The Config class of the plugin `name`.

    Raises:
        LookupError: there is no such plugin (the message lists those there are), or it needs a missing package.
    """
    path = name if "." in name else f"{FOLDERS[kind]}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # A plugin that exists but lacks a package must not be reported as "no such plugin".
        if error.name is not None and path != error.name and not path.startswith(error.name + "."):
            raise LookupError(f"{kind} {name!r} needs the package {error.name!r}: pip install {error.name}") from error
        raise LookupError(_unknown(kind, name)) from error
    found = getattr(module, "Config", None)
    if not (isinstance(found, type) and issubclass(found, Config)) or found is Config:
        raise LookupError(_unknown(kind, name))
    return found


def parse(kind: str, value: Any) -> Any:
    """A plugin's Config from what a recipe holds: its name alone, or a mapping with `name`.

    Mistakes inside the block are raised as one pydantic error of type `plugin` whose context carries them all with
    their paths, so that `recipe.explain` can print each by its own key path.
    """
    if isinstance(value, Config):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        keys = [str(key) for key in value] if isinstance(value, dict) else []
        near = difflib.get_close_matches("name", keys, n=1)
        hint = f"; did you mean 'name' by {near[0]!r}?" if near else ""
        raise PydanticCustomError(
            "plugin_name", "{message}", {"message": f"needs a name, one of {', '.join(names(kind))}{hint}"}
        )
    try:
        chosen = config_class(kind, value["name"])
    except LookupError as error:
        raise PydanticCustomError("plugin_name", "{message}", {"message": str(error)}) from error
    try:
        return chosen.model_validate(value)
    except ValidationError as error:
        raise PydanticCustomError(
            "plugin", "{count} mistakes", {"count": error.error_count(), "errors": error.errors(), "model": chosen}
        ) from error


def plugin(kind: str) -> Any:
    """The type of a recipe field that names a plugin of this kind."""
    return Annotated[SerializeAsAny[Config], BeforeValidator(lambda value: parse(kind, value))]


def _identity(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, dict):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _is_plugin(path: str) -> bool:
    found = getattr(importlib.import_module(path), "Config", None)
    return isinstance(found, type) and issubclass(found, Config) and found.__module__ == path


def _unknown(kind: str, name: str) -> str:
    known = names(kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no {kind} is called {name!r}{hint} There are: {', '.join(known)}"
