"""The prompts under `data/prompts` are what `data/README.md` says they are, and no two of them are near-duplicates."""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
COUNTS = {"train": 624, "heldout": 168, "train_fr": 45, "heldout_fr": 20}
ENGLISH = ("train", "heldout")
FRENCH = ("train_fr", "heldout_fr")
HELD_OUT = ("heldout", "heldout_fr")
FIELDS = ["id", "kind", "lang", "messages"]

WORDS_PERCENT = 70
"""Two prompts whose word sets have at least this Jaccard similarity, in percent, are near-duplicates."""
GRAMS_PERCENT = 60
"""The same for their sets of character 5-grams."""


def raw(name: str) -> bytes:
    return (DATA / "prompts" / f"{name}.jsonl").read_bytes()


@cache
def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw(name).decode("utf-8").splitlines()]


def text(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


def kinds(name: str) -> list[str]:
    """The kinds of a file in the order in which they first appear."""
    return list(dict.fromkeys(row["kind"] for row in rows(name)))


def normalise(prompt: str) -> str:
    """Case folded, every run of what is neither letter nor digit made one space."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt).casefold()))


def word_set(prompt: str) -> set[str]:
    return set(normalise(prompt).split())


FRENCH_WORDS = word_set(
    "au aux ce cette ces combien d dans de des du elle en est et il je j l la le les ma mon ne nous pas pourquoi pour "
    "quand que quel quelle quels quelques qui sa se sur ta te tu un une vous écris"
)
ENGLISH_WORDS = word_set("a an and are can do does for how i in is it me my of on the this to was what why with you")


def gram_set(prompt: str) -> set[str]:
    plain = normalise(prompt)
    return {plain[start : start + 5] for start in range(max(1, len(plain) - 4))}


def alike(one: set[str], other: set[str], percent: int) -> bool:
    """Whether the Jaccard similarity of two sets is at least `percent`, without rounding."""
    return 100 * len(one & other) >= percent * len(one | other)


def similar(sets: Sequence[set[str]], percent: int) -> set[tuple[int, int]]:
    """All pairs of sets with a Jaccard similarity of at least `percent`, exactly, by prefix filtering.

    Such a pair shares at least `percent` of the larger set. So, with the members in one order for all sets, the two
    share one among the first n - ceil(n * percent / 100) + 1 of each. Rare members come first: few sets meet there.
    """
    frequency = Counter(member for members in sets for member in members)
    index: dict[str, list[int]] = defaultdict(list)
    found = set()
    for here, members in enumerate(sets):
        kept = len(members) - -(-percent * len(members) // 100) + 1
        prefix = sorted(members, key=lambda member: (frequency[member], member))[:kept]
        for there in {there for member in prefix for there in index[member]}:
            if alike(members, sets[there], percent):
                found.add((there, here))
        for member in prefix:
            index[member].append(here)
    return found


def near_duplicates(prompts: Iterable[str]) -> list[tuple[str, str]]:
    prompts = list(prompts)
    found = similar([word_set(prompt) for prompt in prompts], WORDS_PERCENT)
    found |= similar([gram_set(prompt) for prompt in prompts], GRAMS_PERCENT)
    return [(prompts[one], prompts[other]) for one, other in sorted(found)]


def everything() -> list[str]:
    return [text(row) for name in COUNTS for row in rows(name)]


def french_score(prompt: str) -> int:
    """Above zero if the prompt reads as French: its French function words and accents, less its English words."""
    # The apostrophe splits "l'eau" and "don't" alike; the lone letters left over count for French only where listed.
    words = normalise(prompt).split()
    accents = sum(character in "àâæçéèêëîïôœùûÿ«»" for character in prompt.casefold())
    return sum(word in FRENCH_WORDS for word in words) + accents - sum(word in ENGLISH_WORDS for word in words)


@pytest.mark.parametrize("name", COUNTS)
def test_each_file_has_the_number_of_prompts_the_readme_states(name: str) -> None:
    assert len(rows(name)) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_each_file_is_plain_utf_8_with_one_record_a_line_written_in_one_way(name: str) -> None:
    content = raw(name)
    assert content.endswith(b"\n")
    assert b"\r" not in content
    lines = content.decode("utf-8").removesuffix("\n").split("\n")
    assert lines == [json.dumps(json.loads(line), ensure_ascii=False) for line in lines]


@pytest.mark.parametrize("name", COUNTS)
def test_each_record_has_exactly_the_documented_fields_in_the_documented_order(name: str) -> None:
    for row in rows(name):
        assert list(row) == FIELDS
        assert row["lang"] == ("fr" if name in FRENCH else "en")
        assert [list(message) for message in row["messages"]] == [["role", "content"]]
        assert row["messages"][0]["role"] == "user"


@pytest.mark.parametrize("name", COUNTS)
def test_each_prompt_is_clean_text_that_says_something(name: str) -> None:
    for row in rows(name):
        prompt = text(row)
        assert word_set(prompt), row["id"]
        assert prompt == prompt.strip()
        assert prompt == unicodedata.normalize("NFC", prompt)
        assert all(character == "\n" or character.isprintable() for character in prompt)


@pytest.mark.parametrize("name", ENGLISH)
def test_an_english_file_has_ten_or_more_kinds_and_each_has_a_fair_share(name: str) -> None:
    shares = Counter(row["kind"] for row in rows(name))
    assert len(shares) >= 10
    assert max(shares.values()) - min(shares.values()) <= 1


def test_a_french_file_covers_at_least_eight_kinds() -> None:
    assert all(len(kinds(name)) >= 8 for name in FRENCH)


@pytest.mark.parametrize("name", COUNTS)
def test_the_order_cycles_through_the_kinds_so_that_a_prefix_is_balanced(name: str) -> None:
    cycle = kinds("train")
    assert [row["kind"] for row in rows(name)] == [cycle[at % len(cycle)] for at in range(len(rows(name)))]


def test_no_id_is_used_twice_in_all_files_together() -> None:
    ids = [row["id"] for name in COUNTS for row in rows(name)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", COUNTS)
def test_an_id_says_language_kind_and_number_and_whether_it_is_held_out(name: str) -> None:
    mark = "h" if name in HELD_OUT else ""
    number: Counter[str] = Counter()
    for row in rows(name):
        number[row["kind"]] += 1
        assert row["id"] == f"{row['lang']}-{row['kind']}-{mark}{number[row['kind']]:03d}"


@pytest.mark.parametrize("name", COUNTS)
def test_french_files_are_french_and_english_files_are_not(name: str) -> None:
    wrong = [text(row) for row in rows(name) if (french_score(text(row)) > 0) != (name in FRENCH)]
    assert not wrong


def test_no_two_prompts_of_all_four_files_are_near_duplicates() -> None:
    assert near_duplicates(everything()) == []


def test_the_detector_catches_a_paraphrase_planted_among_the_real_prompts() -> None:
    planted = ["Name three primary colours.", "Please name three primary colours!"]
    real = [prompt for prompt in everything() if prompt not in planted]
    assert near_duplicates([planted[0], *real, planted[1]]) == [tuple(planted)]


def test_the_detector_sees_through_case_punctuation_and_word_order() -> None:
    one, other = "Why is our café, on a hot day, shut?", "On a hot day: why is shut our CAFÉ?"
    assert not alike(gram_set(one), gram_set(other), GRAMS_PERCENT)
    assert near_duplicates([one, other]) == [(one, other)]


def test_the_detector_catches_changed_word_endings_that_leave_few_words_equal() -> None:
    one, other = "Recommend a comfortable neighbourhood restaurant.", "Recommend comfortable neighbourhood restaurants."
    assert not alike(word_set(one), word_set(other), WORDS_PERCENT)
    assert near_duplicates([one, other]) == [(one, other)]


def test_the_detector_leaves_two_questions_with_the_same_opening_alone() -> None:
    assert near_duplicates(["Why do cats purr at night?", "Why do clouds look white?"]) == []


@pytest.mark.parametrize("percent", [10, 25, 34, 50])
def test_the_index_finds_exactly_the_pairs_that_comparing_all_of_them_finds(percent: int) -> None:
    sets = [word_set(prompt) for prompt in everything()[::4]]
    pairs = {(i, j) for (i, one), (j, other) in combinations(enumerate(sets), 2) if alike(one, other, percent)}
    assert similar(sets, percent) == pairs


def test_some_pairs_are_close_enough_for_the_comparison_above_to_mean_something() -> None:
    sets = [word_set(prompt) for prompt in everything()[::4]]
    assert len(similar(sets, 25)) > 10


def test_the_table_of_counts_in_the_readme_agrees_with_the_files() -> None:
    table = re.findall(r"^\| `?(\w+)`? +\|([ \d|]+)\|$", (DATA / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    stated = {kind: [int(cell) for cell in cells.split("|")] for kind, cells in table}
    shares = [Counter(row["kind"] for row in rows(name)) for name in COUNTS]
    actual = {kind: [share[kind] for share in shares] for kind in kinds("train")}
    actual = {kind: [*row, sum(row)] for kind, row in actual.items()}
    actual["all"] = [sum(column) for column in zip(*actual.values(), strict=True)]
    assert stated == actual


def test_the_example_line_in_the_readme_is_a_line_of_the_training_file() -> None:
    example = re.search(r'^\{"id": "en-.*$', (DATA / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert example is not None
    assert example.group() in raw("train").decode("utf-8").split("\n")
