"""A file is a plugin by being there, and what is wrong with a name or a block is said in words."""

import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from judges.base import JudgeConfig
from pipeline import plugins
from pipeline.algorithms.rewards import RewardConfig
from pipeline.plugins import Config, Plugin, config_class, names, parse, plugin


class Block(Config):
    RUNTIME = frozenset({"processes"})

    rate: float = 0.1
    on: bool = False
    counts: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()
    of: plugin("judge") = None  # type: ignore[valid-type]
    judge: Annotated[JudgeConfig, Plugin("judge")] | None = None
    processes: int = 1


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_every_name_that_is_offered_has_a_config_with_that_name(kind: str) -> None:
    for name in names(kind):
        assert config_class(kind, name).model_fields["name"].default == name


def test_what_is_in_the_folder_and_defines_no_config_is_not_offered() -> None:
    assert "length" in names("judge")
    assert "base" not in names("judge")
    with pytest.raises(LookupError, match="no judge is called 'base'"):
        config_class("judge", "base")


def test_names_are_found_without_importing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "somejudges"
    folder.mkdir()
    (folder / "broken.py").write_text("import a_package_nobody_has\nclass Config(JudgeConfig):\n    pass\n")
    (folder / "helper.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(plugins.FOLDERS, "judge", "somejudges")
    assert names("judge") == ["broken"]
    assert "somejudges.broken" not in sys.modules


def test_a_dotted_name_is_any_module_that_defines_a_config() -> None:
    assert config_class("judge", "judges.length") is config_class("judge", "length")
    with pytest.raises(LookupError, match=r"'os\.path': os\.path has no Config; define `class Config\(JudgeConfig\)`"):
        config_class("judge", "os.path")
    with pytest.raises(
        LookupError, match=r"no judge is called 'os\.none'; the folder that holds it needs to be the curr"
    ):
        config_class("judge", "os.none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\ndef :\n", r"SyntaxError: invalid syntax \(.*/ownlab/rubric\.py:2\)"),
        ("import os\nfrom os import nothing_there\n", r"ImportError: cannot import name .*/ownlab/rubric\.py:2\)"),
        ("import json\n\njson.loads('{')\n", r"JSONDecodeError: .*/ownlab/rubric\.py:3\)"),
        ("raise SystemExit('no')\n", r"SystemExit: no \(.*/ownlab/rubric\.py:1\)"),
        ("{}['lost']\n", r"KeyError: 'lost' \(.*/ownlab/rubric\.py:1\)"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_told_with_its_line_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    (tmp_path / "ownlab").mkdir()
    (tmp_path / "ownlab" / "rubric.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ownlab", raising=False)
    with pytest.raises(ValueError, match="judge 'ownlab.rubric': ownlab.rubric cannot be imported: " + told):
        parse("judge", "ownlab.rubric")
    with pytest.raises(ValueError, match="function: ownlab.rubric cannot be imported: " + told):
        RewardConfig.model_validate("ownlab.rubric:score")


@pytest.mark.parametrize(
    "name", ["", ".", "..length", "length.", "a b", "../length", "length\0", "judges..length", "-"]
)
def test_a_name_that_no_module_can_have_is_an_unknown_name(name: str) -> None:
    with pytest.raises(LookupError, match="no judge is called"):
        config_class("judge", name)


def test_a_plugin_is_read_from_its_name_a_block_or_its_config() -> None:
    by_name = parse("judge", "length")
    assert by_name == parse("judge", {"name": "length"}) == parse("judge", by_name)


def test_a_config_of_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="instance of JudgeConfig"):
        Block.model_validate({"judge": Block()})


def test_a_nested_plugin_is_written_with_all_its_fields() -> None:
    block = Block.model_validate({"judge": {"name": "length", "prefer": "shorter"}, "of": "length"})
    assert block.model_dump()["judge"] == {"name": "length", "prefer": "shorter"}
    assert block.model_dump(mode="json")["of"] == {"name": "length", "prefer": "longer"}
    assert Block.model_validate(block.model_dump(mode="json")) == block


@pytest.mark.parametrize(
    "wrong",
    [{"rate": "0.1"}, {"rate": True}, {"rate": float("nan")}, {"rate": float("inf")}, {"on": "yes"}, {"on": 1},
     {"counts": ["1"]}, {"counts": [1.0]}, {"processes": True}, {"unknown": 1}],
    ids=str,
)  # fmt: skip
def test_numbers_and_booleans_are_taken_as_they_are(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Block.model_validate(wrong)


def test_a_list_is_fine_for_a_tuple_text_for_a_path_and_a_whole_number_for_any() -> None:
    block = Block.model_validate({"rate": 1, "counts": [1, 2], "files": ["a"]})
    assert (block.rate, block.counts, block.files) == (1.0, (1, 2), (Path("a"),))


def test_the_identity_leaves_out_what_only_changes_how_the_work_is_done() -> None:
    one, other = Block(processes=1, files=(Path("a"),)), Block(processes=8, files=(Path("a"),))
    assert one.identity() == other.identity()
    assert one.identity()["files"] == ["a"]
    assert one.identity() != Block(rate=0.2, files=(Path("a"),)).identity()


def test_the_identity_of_a_nested_block_is_its_own() -> None:
    block = Block.model_validate({"judge": "length"})
    assert block.judge is not None
    assert block.identity()["judge"] == block.judge.identity()
