"""Files: what is read, what is refused and where, what is kept when something goes wrong."""

import errno
import gzip
import json
import math
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline import store
from pipeline.errors import DataError
from pipeline.records import Pair, Preference, Prompt, Record, Response, Verdict
from pipeline.store import Journal

PROMPT = Prompt.model_validate({"id": "p1", "prompt": "Pourquoi le ciel est-il bleu ?\u2028Vite.", "lang": "fr"})
PAIR = Pair.of(PROMPT, Response(text="Rayleigh.", source="base"), Response(text="", source="dpo", finished=False))
VERDICT = Verdict(pair_id=PAIR.id, judge="llm", fingerprint="f", p_a=0.5, evidence={"logit": None, "raw": {}})
SILENCE = Verdict(pair_id=PAIR.id, judge="llm", fingerprint="f", abstained="refused")
CHOICE = Preference(pair_id=PAIR.id, prompt=PROMPT, chosen=PAIR.a, rejected=PAIR.b, confidence=0.75)


class FullDisk(store.Disk):
    """Fails at the n-th operation as a full disk does."""

    def __init__(self, good: int) -> None:
        self.left = good

    def _spend(self) -> None:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1

    def create(self, path: Path, chunks: Iterable[bytes]) -> None:
        super().create(path, chunks if self.left else [])
        self._spend()

    def sync(self, path: Path) -> None:
        self._spend()
        super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self._spend()
        super().rename(source, target)


# ---- files


def test_a_file_is_written_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    store.write_json(tmp_path / "a.json", {"b": 2, "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 2\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("good", range(3))
def test_a_full_disk_is_an_error_and_the_old_file_stays(tmp_path: Path, good: int) -> None:
    store.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="No space left"):
        store.write_text(tmp_path / "a.txt", "new", FullDisk(good))
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_cannot_be_json_is_refused_before_the_file_is_touched(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "a.json", math.nan)
    assert (tmp_path / "a.json").read_text() == "1\n"


# ---- records


@pytest.mark.parametrize("record", [PROMPT, PAIR.a, PAIR.b, PAIR, VERDICT, SILENCE, CHOICE])
def test_reading_back_gives_equal_records(tmp_path: Path, record: Record) -> None:
    path = tmp_path / "r.jsonl"
    store.write_jsonl(path, [record, record])
    assert list(store.read_jsonl(path, type(record))) == [record, record]


def test_lines_hold_the_fields_in_order_without_those_that_say_nothing(tmp_path: Path) -> None:
    store.write_jsonl(tmp_path / "v.jsonl", [SILENCE])
    assert json.loads((tmp_path / "v.jsonl").read_text()) == {
        "pair_id": PAIR.id, "judge": "llm", "fingerprint": "f", "abstained": "refused",
        "tokens_in": 0, "tokens_out": 0, "cost_usd": 0.0,
    }  # fmt: skip
    assert (tmp_path / "v.jsonl").read_text().startswith('{"pair_id": ')


def test_an_iterator_that_fails_leaves_the_old_records(tmp_path: Path) -> None:
    def broken() -> Iterable[Record]:
        yield SILENCE
        raise KeyError("a defect of ours")

    store.write_jsonl(tmp_path / "v.jsonl", [VERDICT])
    with pytest.raises(KeyError):
        store.write_jsonl(tmp_path / "v.jsonl", broken())
    assert list(store.read_jsonl(tmp_path / "v.jsonl", Verdict)) == [VERDICT]


def test_gzip_a_byte_order_mark_blank_lines_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"id": "a", "prompt": "x"}\r\n\r\n  \n{"id": "b", "prompt": "y"}'))
    assert [prompt.text for prompt in store.read_jsonl(path, Prompt)] == ["x", "y"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id": "a", "prompt": }\n', r"not JSON \(Expecting value at column 23\); put one object on each line"),
        (b'{"id": "a", "prom', r"the file ends inside this line .*: it was cut short; make it again"),
        (b'{"id": "a", "prompt": "\xe9"}\n', r"byte 0xe9 at column 24 is not UTF-8; save the file as UTF-8"),
        (b'{"id": "a", "prompt": NaN}\n', r"NaN is not a JSON number"),
        (b'{"id": "a"}\n', r"messages: Field required. The fields of a Prompt are id, kind, lang, messages, reference"),
        (
            b'{"id": "a", "promt": "x"}\n',
            r"promt: no such field, did you mean 'prompt'\?.* prompt in the place of messages",
        ),
        (b'{"id": "a", "prompt": "x", "langg": "fr"}\n', r"langg: no such field, did you mean 'lang'\?"),
        (b'{"id": "a", "prompt": " "}\n', r"2: the last message must be a user's and must not be empty"),
        (b'["a"]\n', r"Input should be a valid dictionary"),
    ],
)
def test_a_bad_line_is_named_with_what_was_found_and_what_to_do(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"id": "ok", "prompt": "x"}\n' + line)
    with pytest.raises(DataError, match=rf"p.jsonl:2: .*{said}" if not said.startswith("2:") else f"p.jsonl:{said}"):
        list(store.read_jsonl(path, Prompt))


def test_the_first_ten_mistakes_of_a_file_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "ok", "prompt": "x"}\n' + "broken\n" * 12 + '{"id": "late", "prompt": "x"}\n')
    seen = []
    with pytest.raises(DataError) as caught:
        seen.extend(store.read_jsonl(path, Prompt))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines[:-1]] == [str(number) for number in range(2, 12)]
    assert lines[-1] == "and 2 more"


def test_nothing_is_handed_out_after_the_first_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "prompt": "x"}\nbroken\n{"id": "b", "prompt": "x"}\n')
    seen = []
    with pytest.raises(DataError):
        for prompt in store.read_jsonl(path, Prompt):
            seen.append(prompt.id)
    assert seen == ["a"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: no such file; check the path"):
        list(store.read_jsonl(tmp_path / "none.jsonl", Prompt))
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        list(store.read_jsonl(tmp_path, Prompt))
    whole = gzip.compress(b'{"id": "a", "prompt": "x"}\n' * 1000)
    for name, content in {
        "cut": whole[:-9],
        "plain": b'{"id": "a"}',
        "flipped": whole[:20] + b"\0" + whole[21:],
    }.items():
        (tmp_path / f"{name}.gz").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.gz:\d+: cannot be unpacked"):
            list(store.read_jsonl(tmp_path / f"{name}.gz", Prompt))


# ---- directories


def staged(path: Path, content: str = "weights") -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "model.bin").write_text(content)
    (path / "deep" / "empty").write_text("")
    return path


def test_a_published_directory_verifies_and_its_manifest_says_what_is_in_it(tmp_path: Path) -> None:
    store.publish(staged(tmp_path / "s"), tmp_path / "steps" / "sft" / "f1", {"step": "sft"})
    final = tmp_path / "steps" / "sft" / "f1"
    assert store.verify(final, hashes=True) == []
    manifest = store.read_manifest(final)
    assert manifest is not None
    assert manifest["step"] == "sft"
    assert list(manifest["files"]) == ["deep/empty", "model.bin"]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "content", "said", "quick"),
    [
        ("model.bin", None, "model.bin is missing", True),
        ("model.bin", b"weight", "model.bin has 6 bytes instead of 7", True),
        ("model.bin", b"Weights", "model.bin has other bytes than were written", False),
        ("MANIFEST.json", None, "MANIFEST.json is missing or damaged", True),
        ("MANIFEST.json", b"{", "MANIFEST.json is missing or damaged", True),
        ("MANIFEST.json", b"[]", "MANIFEST.json is missing or damaged", True),
    ],
)
def test_damage_is_found(tmp_path: Path, name: str, content: bytes | None, said: str, quick: bool) -> None:
    final = tmp_path / "final"
    store.publish(staged(tmp_path / "s"), final, {})
    (final / name).unlink()
    if content is not None:
        (final / name).write_bytes(content)
    assert store.verify(final, hashes=True) == [said]
    assert store.verify(final, hashes=False) == ([said] if quick else [])


def test_every_flipped_byte_of_a_manifest_is_found(tmp_path: Path) -> None:
    final = tmp_path / "final"
    store.publish(staged(tmp_path / "s"), final, {"step": "sft"})
    path = final / "MANIFEST.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        # White space may change: what is said does not.
        assert store.verify(final, hashes=True) or json.loads(path.read_bytes()) == json.loads(whole)


def test_the_first_of_two_equal_publications_stays(tmp_path: Path) -> None:
    for content in ("first", "other"):
        store.publish(staged(tmp_path / "s", content), tmp_path / "final", {"step": "sft"})
        assert not (tmp_path / "s").exists()
    assert (tmp_path / "final" / "model.bin").read_text() == "first"


def test_a_damaged_publication_and_one_of_other_origin_are_replaced(tmp_path: Path) -> None:
    store.publish(staged(tmp_path / "s", "first"), tmp_path / "final", {"input": 1})
    (tmp_path / "final" / "model.bin").write_text("flips")
    store.publish(staged(tmp_path / "s", "second"), tmp_path / "final", {"input": 1})
    assert (tmp_path / "final" / "model.bin").read_text() == "second"
    store.publish(staged(tmp_path / "s", "third"), tmp_path / "final", {"input": 2})
    assert (tmp_path / "final" / "model.bin").read_text() == "third"
    assert store.verify(tmp_path / "final", hashes=True) == []


def test_a_link_is_not_published(tmp_path: Path) -> None:
    (staged(tmp_path / "s") / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="a link cannot be published"):
        store.publish(tmp_path / "s", tmp_path / "final", {})


@pytest.mark.parametrize("good", range(8))
def test_a_full_disk_never_leaves_half_a_directory(tmp_path: Path, good: int) -> None:
    with pytest.raises(OSError, match="No space left"):
        store.publish(staged(tmp_path / "s"), tmp_path / "final", {}, FullDisk(good))
    assert not (tmp_path / "final").exists()


# ---- the journal


def test_the_first_value_of_a_key_is_final(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "cache" / "journal.sqlite3")
    journal.put_many("verdict", {"a": {"p": 0.25}, "b": None})
    journal.put_many("verdict", {"a": {"p": 0.75}, "c": [1, "é"]})
    assert journal.get_many("verdict", ["a", "b", "c", "d"]) == {"a": {"p": 0.25}, "b": None, "c": [1, "é"]}
    assert journal.count("verdict", ["a", "d", "c", "c"]) == 2
    assert journal.get_many("sample", ["a"]) == {}, "kinds do not mix"


def test_a_journal_takes_any_number_of_keys_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    rows = {f"key {number}": number for number in range(40_000)}
    journal.put_many("n", rows)
    assert journal.get_many("n", rows) == rows


def test_a_value_that_is_not_json_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.put_many("n", {"good": 1, "bad": math.inf})
    assert journal.count("n", ["good"]) == 0


def _write(path: Path, name: str, start: "multiprocessing.synchronize.Barrier") -> None:
    for number in range(15):
        start.wait()
        Journal(path.with_name(f"new {number}")).put_many("n", {name: number})
    for number in range(25):
        journal = Journal(path)
        journal.put_many("n", {f"{name} {number}": name, f"shared {number}": name})
        journal.close()


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(4, timeout=10)
    writers = [fork.Process(target=_write, args=(path, name, start)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    keys = [f"{name} {number}" for name in "abcd" for number in range(25)]
    assert Journal(path).get_many("n", keys) == {key: key[0] for key in keys}
    assert [Journal(tmp_path / f"new {number}").count("n", "abcd") for number in range(15)] == [4] * 15
    shared = Journal(path).get_many("n", [f"shared {number}" for number in range(25)])
    assert len(shared) == 25
    assert set(shared.values()) <= set("abcd")


def test_a_journal_that_was_opened_before_a_fork_is_refused_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    journal.put_many("n", {"a": 1})
    child = os.fork()
    if child == 0:
        try:
            journal.get_many("n", ["a"])
        except RuntimeError as error:
            os._exit(0 if "opened before a fork" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_a_journal_that_cannot_be_written_or_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    path.write_text("this was a diary once, and is long enough to look like something that it is not" * 20)
    with pytest.raises(DataError, match=r"journal.sqlite3: the journal cannot be used \(file is not a database\)"):
        Journal(path).put_many("n", {"a": 1})
