"""What is written in a format and read back is the same pairs, votes and verdicts, whatever the texts hold."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import crowd, votes
from pipeline.errors import DataError
from pipeline.importers.base import BadRow, Ballot, Judged, Options, Thumbed
from pipeline.importers.collect import Collected, collect, format_names, format_of
from pipeline.records import Message

HARD = ("=1+1", "+a", "-b", "@c", 'say "hi", she said', "a\r\nb\rc\nd", "🦤 ‮ \u2028", "\ufeffx", "[{",
        '[{"role": "user"}]', "\t", " x ", "Human: no", "\\ud800", "null", "nan", "1", "", "ç" * 3,
        '[{"role": "assistant", "content": "x", "name": "y"}]', '{"messages": [{"from": "human", "value": "x"}]}',
        '[{"from": "Oslo", "value": "7", "to": "Rome"}]')  # fmt: skip
"""Texts that some writer or reader would change."""

TEXT = st.one_of(st.sampled_from(HARD), st.text(st.characters(codec="utf-8"), max_size=12))
NAMES = st.sampled_from(["ana", "ben", "3", "Zoë"])


@st.composite
def judged(draw: st.DrawFn, carries: frozenset[str]) -> Judged:
    """A pair with votes that the format can carry."""
    user = st.builds(Message, role=st.just("user"), content=TEXT.filter(str.strip))
    bot = st.builds(Message, role=st.just("assistant"), content=TEXT)
    system = st.builds(Message, role=st.just("system"), content=TEXT)
    before = draw(st.sampled_from([[], [system], [user, bot]]))
    prompt = tuple(draw(turn) for turn in [*before, user])
    a = draw(TEXT)
    b = draw(TEXT.filter(lambda text: text != a))
    choices = st.sampled_from(["a", "b", "tie"] if "ties" in carries else ["a", "b"])
    if "annotators" in carries:
        who = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    else:
        who = [None] * (draw(st.integers(1, 3)) if "votes" in carries else 1)
    cast = tuple(Ballot(draw(choices), annotator=name) for name in who)
    return Judged(prompt, a, b, cast)


def collected(items: list[Judged | Thumbed]) -> Collected:
    """The items as if a file had held them."""
    found = Collected()
    for item in items:
        found._keep(found._checked(item))
    return found


def told(found: Collected) -> dict[str, object]:
    """What was collected; votes of nobody in particular are in no particular order."""
    pairs = {
        pair.id: (pair, sorted((vote.annotator.partition("/")[0], vote.choice) for vote in cast))
        for pair, cast in found.judgements()
    }
    verdicts = {each.pair_id: each.p_a for each in crowd.verdicts(found.votes(), "dawid_skene")}
    thumbs = sorted(found.thumbs, key=str)
    return {"pairs": pairs, "verdicts": verdicts, "thumbs": thumbs}


def one_of_each(items: list[Judged]) -> list[Judged]:
    """Without a second item of the same pair, whose votes would be put together in the file's own order."""
    return list({(item.prompt, frozenset((item.a, item.b))): item for item in items}.values())


def writable(name: str, item: Judged) -> bool:
    """Whether the format has a place for it: it says so itself, and tests below say when."""
    try:
        return bool(list(format_of(name).write(item)))
    except BadRow:
        return False


SUFFIXES = {
    "votes": (".csv", ".tsv", ".parquet", ".jsonl.gz"),
    "pairs": (".csv", ".parquet"),
    "shp": (".csv", ".jsonl"),
}
OTHERS = (".jsonl", ".json")
CASES = [(name, suffix) for name in format_names() if "thumbs" not in format_of(name).CARRIES
         for suffix in SUFFIXES.get(name, OTHERS)]  # fmt: skip


@pytest.mark.parametrize(("name", "suffix"), CASES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pairs_votes_and_verdicts_come_back(tmp_path: Path, name: str, suffix: str, data: st.DataObject) -> None:
    items = data.draw(st.lists(judged(format_of(name).CARRIES), min_size=1, max_size=4).map(one_of_each))
    items = [item for item in items if writable(name, item)]
    if not items:
        return
    before = collected(items)
    path = tmp_path / f"file{suffix}"
    votes.convert(before, name, path)
    after = collect([path], name, Options(), max_bad=0)
    assert told(after) == told(before)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_thumbs_come_back(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    one = st.builds(Thumbed, st.builds(lambda text: (Message(role="user", content=text),), TEXT.filter(str.strip)),
                    TEXT, st.booleans(), st.integers(1, 3))  # fmt: skip
    before = collected(data.draw(st.lists(one, min_size=1, max_size=4)))
    path = tmp_path / f"file{suffix}"
    votes.convert(before, "thumbs", path)
    assert told(collect([path], "thumbs", Options(), max_bad=0)) == told(before)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_an_answer_of_100_kilobytes_comes_back(tmp_path: Path, name: str, suffix: str) -> None:
    long = 'äöü "quoted",\n' * 8000
    before = collected([Judged((Message(role="user", content="P?"),), long, "short", (Ballot("a"),))])
    votes.convert(before, name, tmp_path / f"file{suffix}")
    assert told(collect([tmp_path / f"file{suffix}"], name, Options(), max_bad=0)) == told(before)


def test_what_a_format_cannot_carry_is_told() -> None:
    prompt = (Message(role="user", content="P?"),)
    tie = collected([Judged(prompt, "x", "y", (Ballot("tie"),))])
    with pytest.raises(DataError, match=r"nothing can be written as openai \(ties: 1\)"):
        votes.convert(tie, "openai", Path("never.jsonl"))
    marker = Judged(prompt, "x\n\nAssistant: y", "y", (Ballot("a"),))
    assert not writable("anthropic_hh", marker)
    assert not writable(
        "anthropic_hh", Judged((Message(role="system", content="s"), *prompt), "x", "y", (Ballot("a"),))
    )
    with pytest.raises(DataError, match="holds a list, and a table cannot"):
        votes.convert(collected([marker]), "openai", Path("never.csv"))


def test_who_voted_is_lost_aloud_and_what_they_said_together_is_kept(tmp_path: Path) -> None:
    prompt = (Message(role="user", content="P?"),)
    cast = tuple(Ballot(choice, annotator=who) for who, choice in (("ana", "b"), ("ben", "b"), ("cy", "a")))
    before = collected([Judged(prompt, "x", "y", cast)])
    written = votes.convert(before, "openai", tmp_path / "f.jsonl", "majority")
    assert written.rows == 1 and "who voted" in written.lost
    ((pair, (vote,)),) = collect([tmp_path / "f.jsonl"], "openai", Options(), 0).judgements()
    assert {"a": pair.a.text, "b": pair.b.text}[vote.choice] == "y"
