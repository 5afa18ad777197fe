"""What the README shows is what there is."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_make_command_of_the_readme_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^(?:\$ )?make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"rlaif", "test"} <= named <= targets


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert all(f"make {target}" in listed for target in targets)


def test_the_recipe_in_the_readme_is_the_one_that_runs() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "recipes" / "rlaif.yaml").read_text())


def test_every_file_that_the_tree_names_is_there() -> None:
    tree = README.split("## Files")[1].split("```")[1]
    for line in tree.strip().splitlines():
        indent = line.startswith("  ")
        for name in re.findall(r"[a-z_]+\.py|[a-z_]+/|[a-z]+\.yaml", line.split("   ")[0] if not indent else line[:44]):
            assert list(ROOT.glob(f"**/{name.rstrip('/')}")), name


def test_every_judge_of_the_table_is_a_file() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", README.split("## Swap the judge")[1].split("\n## ")[0], flags=re.MULTILINE)
    from pipeline.plugins import names

    assert sorted(rows) == names("judge")
