"""A folder is what is in it."""

import os
from pathlib import Path

import pytest
from tiny import make_model

from pipeline import contents
from pipeline.models import ModelConfig


def test_a_folder_has_the_hash_of_its_copy_and_not_of_one_with_another_byte_or_name(tmp_path: Path) -> None:
    found = []
    for folder, name, text in (("a", "x", "1"), ("copy", "x", "1"), ("byte", "x", "2"), ("name", "y", "1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
        found.append(contents.content_of(tmp_path / folder, tmp_path / "hashes"))
    first, copy, byte, name = found
    assert first == copy
    assert len({first, byte, name}) == 3


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "LARGE", 1)
    read: list[str] = []
    hashed = contents.store.sha256_file
    monkeypatch.setattr(contents.store, "sha256_file", lambda path: read.append(path.name) or hashed(path))
    folder, remembered = tmp_path / "model", tmp_path / "hashes"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"first")
    first = contents.content_of(folder, remembered)
    assert contents.content_of(folder, remembered) == first
    assert read == ["model.safetensors"]
    told = weights.stat()
    weights.write_bytes(b"other")
    os.utime(weights, ns=(told.st_atime_ns, told.st_mtime_ns))  # as a tool that unpacks files sets it
    assert contents.content_of(folder, remembered) != first


def test_a_base_with_other_weights_under_the_same_path_is_another_base(tmp_path: Path) -> None:
    make_model(tmp_path)
    base = ModelConfig(base=str(tmp_path))
    before = base.identity()
    assert base.identity() == before
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert base.identity() != before


def test_a_base_that_is_no_folder_has_its_name_alone() -> None:
    assert "content" not in ModelConfig(base="someone/some-model").identity()
