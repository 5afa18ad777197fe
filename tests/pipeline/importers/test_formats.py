"""Every file of `pipeline/importers` keeps the contract of its base: a new format is tested by being there.

Each has at least one small example in data/annotations, whose name begins with the format's; what must come out of it
is in EXPECTED, counted by hand.
"""

from pathlib import Path

import pytest

from pipeline.crowd import majority
from pipeline.importers import files
from pipeline.importers.base import Options
from pipeline.importers.collect import Collected, collect, format_names, format_of, recognised

EXAMPLES = Path(__file__).parents[3] / "data" / "annotations"

# file: (rows, imported, pairs, votes, thumbs); then the majority of each pair in the order of the file, where A is the
# ostrich, 56 or the good wishes, B the other answer, and = a tie.
EXPECTED: dict[str, tuple[tuple[int, int, int, int, int], str]] = {
    "anthropic_hh.jsonl": ((2, 2, 2, 2, 0), "AA"),
    "arena.jsonl": ((2, 2, 2, 2, 0), "A="),
    "arena_table.csv": ((2, 2, 2, 2, 0), "AA"),
    "argilla.jsonl": ((3, 2, 2, 3, 0), "A="),
    "argilla_nested.json": ((1, 1, 1, 2, 0), "A"),
    "hf_preference.jsonl": ((2, 2, 2, 2, 0), "AA"),
    "hf_preference_implicit.jsonl": ((3, 3, 3, 3, 0), "AA="),
    "label_studio.json": ((3, 2, 2, 4, 0), "A="),
    "label_studio_min.csv": ((3, 3, 2, 3, 0), "A="),
    "llama_factory_alpaca.json": ((2, 2, 2, 2, 0), "AA"),
    "llama_factory_kto.json": ((2, 2, 0, 0, 2), ""),
    "llama_factory_sharegpt.json": ((2, 2, 2, 2, 0), "AA"),
    "openai.jsonl": ((2, 2, 2, 2, 0), "AA"),
    "pairs.csv": ((3, 2, 2, 5, 0), "A="),
    "rankings.jsonl": ((2, 2, 4, 4, 0), "A=BA"),
    "ratings.jsonl": ((1, 1, 3, 3, 0), "A=B"),
    "shp.jsonl": ((2, 2, 2, 2, 0), "AA"),
    "thumbs.jsonl": ((3, 2, 0, 0, 2), ""),
    "votes.csv": ((6, 6, 2, 5, 0), "AA"),
}

GOOD = ("An ostrich.", "56.", "Have a wonderful trip, Odile!")


def example(name: str, **options: bool) -> Collected:
    return collect([EXAMPLES / name], "auto", Options(assume_submitted="nested" in name), max_bad=0)


def winners(found: Collected) -> str:
    """A where the good answer won (the other one, for pairs without it), B where it lost, = for a tie."""
    said = ""
    for pair, votes in found.judgements():
        label = majority([vote.choice for vote in votes])
        good = "a" if pair.a.text in GOOD else "b"
        # Of the pairs of a ranking that hold no good answer, the first in the file is the bad one.
        if not {pair.a.text, pair.b.text} & set(GOOD):
            good = "a" if "penguin" not in pair.a.text else "b"
        said += "=" if label == "tie" else "A" if label == good else "B"
    return said


def test_every_format_has_an_example_and_every_example_is_expected() -> None:
    found = {path.name for path in EXAMPLES.iterdir()}
    assert found == set(EXPECTED)
    for name in format_names():
        assert any(file.startswith(name) for file in found), f"put a small example of {name} into data/annotations"


@pytest.mark.parametrize("name", format_names())
def test_a_format_says_what_it_carries(name: str) -> None:
    assert {"ties", "votes", "annotators", "sources", "details", "thumbs"} >= format_of(name).CARRIES


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_is_recognised_and_nobody_else_is_as_sure(name: str) -> None:
    path = EXAMPLES / name
    chosen = recognised(path, Options())
    assert name.startswith(chosen)
    rows = [raw.value for raw in files.rows(path) if raw.value is not None]
    sure = {each: format_of(each).recognise(rows, Options()) for each in format_names()}
    assert all(0 <= value <= 1 for value in sure.values())
    assert sum(value >= sure[chosen] for value in sure.values()) == 1


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_gives_what_a_person_counts_in_it(name: str) -> None:
    found = example(name)
    counts = found.counts()
    assert (counts.rows, counts.imported, counts.pairs, counts.votes, counts.thumbs) == EXPECTED[name][0]
    assert counts.rows == counts.imported + sum(counts.skipped.values()) + counts.quarantined
    assert winners(found) == EXPECTED[name][1]


def test_a_model_that_wrote_an_answer_is_kept_and_nobody_is_called_chosen() -> None:
    pairs = [pair for name in EXPECTED for pair, _ in example(name).judgements()]
    assert {side.source for pair in pairs for side in (pair.a, pair.b)} == {
        "imported",
        "heron-7b",
        "wren-2b",
        "lark-1b",
    }


def test_which_side_is_a_does_not_tell_who_won() -> None:
    lines = [{"prompt": f"Question {n}?", "chosen": f"Good {n}.", "rejected": f"Bad {n}."} for n in range(200)]
    found = Collected()
    for number, row in enumerate(lines):
        found._take(Path("made"), files.Raw(number, row), format_of("hf_preference"), Options())
    wins = sum(votes[0].choice == "a" for _, votes in found.judgements())
    assert 70 < wins < 130  # a fair coin leaves this range once in 40,000 times
