"""What the README shows is what there is."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline import recipe

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


def words(command: str, folder: Path) -> list[str]:
    """What prefloop is given by this command of make, in the place of which a script writes them down."""
    (folder / "prefloop").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (folder / "prefloop").chmod(0o755)
    (folder / "ready").touch()
    told = f"{command} BIN={shlex.quote(str(folder))} READY={shlex.quote(str(folder / 'ready'))}"
    # A make that is called by a make (make test) also writes where it is.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(told, shell=True, cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout
    found: list[str] = json.loads(done)
    return found


def test_the_commands_of_the_recipe_for_votes_reach_it_as_they_are_meant(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "rlhf.yaml").read_text(encoding="utf-8")
    plain, mapped = re.findall(r"^#   (make rlhf .*)", text, flags=re.MULTILINE)
    assert words(plain, tmp_path) == ["run", "recipes/rlhf.yaml", "annotations.files=votes.csv"]
    votes = recipe.load(ROOT / "recipes" / "rlhf.yaml", words(mapped, tmp_path)[2:]).annotations
    assert votes is not None
    assert (votes.files, votes.choices["1"], votes.choices["0"]) == ((Path("votes.csv"),), "b", "a")


def test_a_name_with_a_blank_in_it_is_one_word(tmp_path: Path) -> None:
    assert words('make rlhf ANNOTATIONS="my votes.csv"', tmp_path)[2:] == ["annotations.files=my votes.csv"]
    assert words('make exam GOLD="my pairs.jsonl"', tmp_path)[2:] == ["recipes/rlaif.yaml", "--gold", "my pairs.jsonl"]


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
