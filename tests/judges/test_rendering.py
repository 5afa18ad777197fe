"""Rubrics and constitutions are data that says the same in every language, and the principle that decided is kept."""

import re
from collections import Counter
from pathlib import Path

import pytest
from test_local_llm import judge_with, pair_of, shown

from judges.rendering import PROMPTS, Constitution, Template, read_texts, text_of

FILES = sorted(PROMPTS.glob("*.txt"))
FAMILIES = sorted({path.name[: -len(".en.txt")] for path in FILES})


def constitution(lang: str) -> Constitution:
    return Constitution.parse(read_texts("assistant", prefix="constitution.")[lang])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_every_file_says_which_it_is_and_which_version_and_shows_that_to_nobody(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    name = re.escape(path.name[: -len(".txt")])
    assert re.match(rf"# {name}, version \d+\. ", text)
    assert not text_of(text).startswith("#")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_is_there_in_english_and_french(family: str) -> None:
    english, french = ((PROMPTS / f"{family}.{lang}.txt").read_text(encoding="utf-8") for lang in ("en", "fr"))
    assert re.findall(r"^\d\.", english, re.MULTILINE) == re.findall(r"^\d\.", french, re.MULTILINE)
    assert re.findall(r"^\[.*\]$", english, re.MULTILINE) == re.findall(r"^\[.*\]$", french, re.MULTILINE)
    assert re.findall(r"\{\{\w+\}\}", english) == re.findall(r"\{\{\w+\}\}", french)


def test_the_constitution_names_the_same_principles_in_both_languages() -> None:
    assert list(constitution("en").principles) == list(constitution("fr").principles)
    assert len(constitution("en").principles) == 13


def test_one_principle_stands_in_the_place_of_the_rubric() -> None:
    question = shown(pair_of(), principle="truth")
    assert "What the answer says is true" in question.system
    assert "It does what the request asks" not in question.system
    assert "good language" not in question.system
    assert "These count for nothing: the length" in question.system


def test_all_principles_are_numbered() -> None:
    system = shown(pair_of(lang="fr"), principle="all").system
    assert "\n1. La réponse fait ce que la demande exige" in system
    assert "\n13. La réponse va droit au but" in system


def test_without_a_principle_the_rubric_counts_and_nothing_is_recorded() -> None:
    (verdict,) = judge_with().judge([pair_of()])
    assert "principles" not in verdict.evidence
    assert "It does what the request asks" in shown(pair_of()).system


def test_the_sampled_principle_is_recorded_shown_and_the_same_in_both_orders() -> None:
    pairs = [pair_of(name=str(number)) for number in range(200)]
    judge = judge_with(principle="sampled")
    texts = constitution("en").principles
    for pair, one, other in zip(pairs, judge.judge(pairs), judge.judge([p.swap() for p in pairs]), strict=True):
        (name,) = one.evidence["principles"]
        assert other.evidence["principles"] == [name]
        system = judge.question(pair).system
        assert [each for each, text in texts.items() if text in system] == [name]


def test_each_principle_is_sampled_about_as_often() -> None:
    verdicts = judge_with(principle="sampled").judge([pair_of(name=str(number)) for number in range(2600)])
    counts = Counter(verdict.evidence["principles"][0] for verdict in verdicts)
    # 200 each; the standard deviation of one count is 13.6, and five of them are 68.
    assert len(counts) == 13
    assert all(132 < count < 268 for count in counts.values())


def test_an_edited_constitution_is_another_judge_only_where_a_principle_counts(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    text = (PROMPTS / "constitution.assistant.en.txt").read_text(encoding="utf-8")
    file.write_text(text + "Be kind.\n", encoding="utf-8")

    def fingerprint(**options: str) -> str:
        return judge_with(**options).fingerprint

    assert fingerprint(constitution=str(file)) == fingerprint()
    assert fingerprint(constitution=str(file), principle="all") != fingerprint(principle="all")
    assert fingerprint(principle="all") != fingerprint(principle="sampled") != fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Keep this:\n[a]\nBe good.\n", "needs {{principles}}"),
        ("{{principles}}\n", "found None"),
        ("{{principles}}\n[a]\n\n[b]\nBe good.\n", "found a, b"),
        ("{{principles}}\n[a]\nBe good.\n[a]\nBe kind.\n", "found a, a"),
    ],
)
def test_a_constitution_that_would_say_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Constitution.parse(text)


def test_a_text_that_holds_no_comment_is_shown_whole() -> None:
    assert text_of("#1 rule: be kind\n# not a head\n") == "#1 rule: be kind\n# not a head"
    assert Template.parse((PROMPTS / "pairwise.fr.txt").read_text(encoding="utf-8")).tags == ("demande", "réponse")
