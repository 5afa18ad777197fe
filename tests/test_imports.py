"""Every module imports, imports run one way, and a recipe can be read without torch."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [
    ["pipeline.errors", "pipeline.records"],
    [
        "pipeline.plugins",
        "pipeline.store",
        "pipeline.progress",
        "pipeline.terminal",
        "pipeline.worker",
        "pipeline.phases",
        "pipeline.lock",
        "pipeline.architectures",
        "pipeline.growing_cache",
        "pipeline.parts",
    ],
    ["pipeline.contents", "pipeline.decoding", "pipeline.packed", "pipeline.weights"],
    [
        "pipeline.models",
        "pipeline.views",
        "pipeline.ratings",
        "pipeline.statistics*",
        "pipeline.agreement",
        "pipeline.importers*",
        "pipeline.findings",
        "pipeline.refusals",
        "pipeline.recipe_yaml",
        "pipeline.memory",
    ],
    [
        "pipeline.adapters",
        "pipeline.crowd",
        "pipeline.demonstrations",
        "pipeline.launch",
        "pipeline.reading",
        "pipeline.votes",
    ],
    ["judges*", "pipeline.sampling*", "pipeline.algorithms*"],
    ["pipeline.rounds", "pipeline.processes"],
    ["pipeline.recipe_types", "pipeline.recipe_mistakes", "pipeline.recipe_steps", "pipeline.recipe_merge"],
    ["pipeline.recipe"],  # the stages read their blocks of it, so it knows none of them
    [
        f"pipeline.{stage}"
        for stage in (
            "generate",
            "label",
            "examine",
            "train",
            "adjustments",
            "provenance",
            "account",
            "measure",
            "compare",
            "report*",
            "people",
            "annotate*",
            "doctor*",
            "export*",
            "scale",
        )
    ],
    ["pipeline.run", "pipeline.plan"],
    [
        "pipeline.costing",
        "pipeline.sources",
        "pipeline.fitting",
        "pipeline.comparison",
        "pipeline.sweep",
        "pipeline.cli_outcome",
    ],
    [
        "pipeline.cli",
        "pipeline.cli_annotate",
        "pipeline.cli_compare",
        "pipeline.cli_doctor",
        "pipeline.cli_export",
        "pipeline.cli_import",
        "pipeline.cli_judge",
        "pipeline.cli_slurm",
        "pipeline.cli_sweep",
    ],
]
"""Lowest first. A module imports from its own layer and from lower ones; who adds a module says where it belongs."""

LIGHT = ["judges*"] + [
    f"pipeline.{name}"
    for name in (
        "records",
        "errors",
        "plugins",
        "store",
        "views",
        "recipe",
        "recipe_yaml",
        "recipe_types",
        "recipe_mistakes",
        "recipe_steps",
        "recipe_merge",
        "account",
        "run",
        "lock",
        "processes",
        "launch",
        "cli",
        "cli_compare",
        "cli_sweep",
        "cli_outcome",
        "cli_judge",
        "cli_import",
        "cli_doctor",
        "cli_export",
        "cli_slurm",
        "findings",
        "importers*",
        "crowd",
        "demonstrations",
        "votes",
    )
]
"""What `--help`, `status`, reading a recipe and labelling through an API need."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for package in ("judges", "pipeline") for file in (ROOT / package).rglob("*.py")}


def matches(module: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def layer_of(module: str) -> int | None:
    return next((level for level, patterns in enumerate(LAYERS) if matches(module, patterns)), None)


def imported(file: Path) -> Iterator[str]:
    """Our modules that this file imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from pipeline import store` names a module, `from pipeline.store import Journal` something in it.
            yield from (name if name in FILES else node.module for name in inner)


IMPORTS = {module: set(imported(file)) - {module, "pipeline", "judges"} for module, file in FILES.items()}


def test_no_import_is_relative() -> None:
    for module, file in FILES.items():
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), module


def test_every_module_has_its_layer() -> None:
    unplaced = [module for module in sorted(FILES) if module != "pipeline" and layer_of(module) is None]
    assert not unplaced, f"say in LAYERS where these belong: {', '.join(unplaced)}"


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_run_one_way(module: str) -> None:
    level = layer_of(module)
    if level is None:
        pytest.skip("has no layer; the test above says so")
    upward = [name for name in sorted(IMPORTS[module]) if (layer_of(name) or 0) > level]
    assert not upward, f"{module} imports from a higher layer: {', '.join(upward)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError with the circle


HEAVY = ["torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes"]

IMPORT_EACH = """
import importlib, json, sys
heavy, modules = json.loads(sys.argv[1])
found = {}
for module in modules:
    try:
        importlib.import_module(module)
    except Exception as error:
        found[module] = repr(error)
    loaded = [name for name in heavy if name in sys.modules]
    if loaded:
        found[module] = f"loads {', '.join(loaded)}"
        break  # what comes after cannot be told apart
print(json.dumps(found))
"""


def trouble_of_importing(modules: list[str], heavy: list[str]) -> dict[str, str]:
    """What goes wrong when a fresh interpreter imports these modules one after the other."""
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps([heavy, sorted(modules)])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_judging_reading_a_recipe_and_help_load_no_torch() -> None:
    light = [module for module in FILES if matches(module, LIGHT)]
    assert trouble_of_importing(light, HEAVY) == {}


@pytest.mark.slow
def test_every_module_imports() -> None:
    assert trouble_of_importing(list(FILES), []) == {}
