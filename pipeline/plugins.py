"""A name in a recipe -> the module of that name -> its Config. The file is the registration.

`judge: {name: length}` is `judges/length.py`; `train: {dpo: {...}}` is `pipeline/algorithms/dpo.py`; a dotted name
(`mylab.judges.rubric`) is any importable module. Nothing is registered by decorators or entry points, and no module
is imported that the recipe does not name.

What is left out: the types of the recipe itself, and reading it (`pipeline.recipe`).
"""

import difflib
import importlib
import importlib.util
import pkgutil
import re
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

FOLDERS = {"judge": "judges", "algorithm": "pipeline.algorithms", "sampler": "pipeline.sampling"}
"""What a recipe can name, and the package whose modules carry those names."""

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DEFINES_CONFIG = re.compile(r"^class Config\(", re.MULTILINE)


def _take_numbers_as_they_are(schema: Any) -> None:
    # Above its use, because it is called as soon as a class is made.
    if isinstance(schema, dict):
        if schema.get("type") in ("bool", "int", "float"):
            schema["strict"] = True
        for key, part in schema.items():
            if key not in ("metadata", "default"):
                _take_numbers_as_they_are(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _take_numbers_as_they_are(part)


def one_or_many(value: Any) -> Any:
    """A single text or path as a list of one."""
    return (value,) if isinstance(value, str | Path) else value


Files = Annotated[tuple[Path, ...], BeforeValidator(one_or_many), Field(min_length=1)]
"""Data files that a block names; a single path is enough."""


class Config(BaseModel):
    """Base of every block of a recipe: frozen, unknown keys refused, prose under each field is its documentation.

    Numbers and booleans are taken as they are: no `"0.1"` for 0.1, no `yes` for true, no true for 1, no infinity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    RUNTIME: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that change how the work is done and not what comes out (processes, timeouts).
    All others are identity: a change of their value makes the step another one. `tests/pipeline/test_identity.py`
    lists every field of every Config with its class, so that a new field is classified by a person."""

    ONE_OF: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields of which a block has exactly one: a recipe that names another takes the first back."""

    FILE_KEYS: ClassVar[tuple[str, ...]] = ()
    """Keys of a file that holds such a block which are no options of it."""

    def identity(self) -> dict[str, Any]:
        """The options that can change the outcome, JSON-ready, nested blocks included: what fingerprints hash."""
        return {name: _identity(getattr(self, name)) for name in type(self).model_fields if name not in self.RUNTIME}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # `strict=True` for the whole model would also refuse lists for tuples and text for paths, which is all that
        # YAML can give.
        schema = handler(source)
        _take_numbers_as_they_are(handler.resolve_ref_schema(schema))
        return schema


@dataclass(frozen=True)
class Plugin:
    """Marks the type of a field that names a plugin: `judge: Annotated[JudgeConfig, Plugin("judge")]`."""

    kind: str
    """One of `FOLDERS`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # An instance schema writes what it holds with all its own fields, and not only those of the base.
        return core_schema.no_info_before_validator_function(
            partial(parse, self.kind), core_schema.is_instance_schema(source)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"plugin": self.kind}  # `recipe.schema` puts the choices in its place


def plugin(kind: str) -> Any:
    """The type of a field that names a plugin of this kind, where the base of its Configs is not at hand."""
    return Annotated[Config, Plugin(kind)]


class UnknownPluginError(LookupError):
    """No plugin has this name."""


def names(kind: str) -> list[str]:
    """The names a recipe may use for this kind: modules of its folder that define a `class Config`.

    Their text is searched and nothing is imported, so that one that is broken or lacks a package hides no other.
    """
    package = importlib.import_module(FOLDERS[kind])
    found = (module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)
    return sorted(name for name in found if _defines_config(f"{FOLDERS[kind]}.{name}"))


def config_class(kind: str, name: str) -> type[Config]:
    """The Config class of the plugin `name`.

    Raises:
        UnknownPluginError: there is none (the message lists those there are).
        LookupError: it cannot be imported, lacks a package, or defines no Config.
    """
    if not _NAME.fullmatch(name):
        raise UnknownPluginError(_unknown(kind, name))
    path = name if "." in name else f"{FOLDERS[kind]}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # A plugin that exists but lacks a package must not be reported as "no such plugin".
        if error.name is not None and path != error.name and not path.startswith(error.name + "."):
            raise LookupError(f"{kind} {name!r} needs the package {error.name!r}: pip install {error.name}") from error
        raise UnknownPluginError(_unknown(kind, name)) from error
    except (Exception, SystemExit) as error:  # whatever somebody's module does when it is imported
        raise LookupError(f"{kind} {name!r}: {broken_import(path, error)}") from error
    found = getattr(module, "Config", None)
    if (isinstance(found, type) and issubclass(found, Config)) and found is not Config:
        return found
    if "." not in name:
        raise UnknownPluginError(_unknown(kind, name))
    raise LookupError(f"{kind} {name!r}: {path} has no Config; define `class Config({kind.capitalize()}Config)` in it")


def broken_import(module: str, error: BaseException) -> str:
    """What went wrong when a module was imported, with the line of it where that was."""
    where = ""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}:{error.lineno})"
    else:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<")]
        end = Path(*module.split("."))
        # The module's own line, and not one deep in a library that it calls.
        own = [each for each in frames if Path(each.filename).with_suffix("").parts[-len(end.parts) :] == end.parts]
        for frame in (own or frames[1:])[-1:]:
            where = f" ({frame.filename}:{frame.lineno})"
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{module} cannot be imported: {type(error).__name__}: {said}{where}; mend it"


def parse(kind: str, value: Any) -> Config:
    """A plugin's Config from what a recipe holds: its name alone, or a mapping with `name`.

    Raises:
        PydanticCustomError: `plugin_name` if no plugin is named by it. `plugin` for mistakes inside the block: its
            context carries all of them with their paths, so that `recipe_mistakes.explain` can print each by its own.
    """
    if isinstance(value, Config):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        keys = [str(key) for key in value] if isinstance(value, dict) else []
        near = difflib.get_close_matches("name", keys, n=1)
        hint = f"; is {near[0]!r} meant to be 'name'?" if near else ""
        raise _refusal(f"needs a name, one of {', '.join(names(kind))}{hint}")
    try:
        chosen = config_class(kind, value["name"])
    except LookupError as error:
        raise _refusal(str(error)) from error
    try:
        return chosen.model_validate(value)
    except ValidationError as error:
        raise PydanticCustomError(
            "plugin", "{count} mistakes", {"count": error.error_count(), "errors": error.errors(), "model": chosen}
        ) from error


def _identity(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, dict):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _defines_config(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return False
    return _DEFINES_CONFIG.search(Path(spec.origin).read_text(encoding="utf-8", errors="replace")) is not None


def _refusal(message: str) -> PydanticCustomError:
    # The text goes in as a value: pydantic would read braces in a template.
    return PydanticCustomError("plugin_name", "{message}", {"message": message})


def _unknown(kind: str, name: str) -> str:
    known = names(kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    if "." in name and _NAME.fullmatch(name):
        hint = "the folder that holds it needs to be the current one or on PYTHONPATH. Without a dot there are"
    return f"no {kind} is called {name!r}; {hint}: {', '.join(known)}"
