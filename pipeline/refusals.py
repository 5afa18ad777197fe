"""Whether an answer refuses to do what it was asked, by lists of phrases: `words/refusals.*.txt`, English and French.

An answer refuses if one of its first two sentences has a phrase of a list, once quotations and what the lists call no
refusal (`not:`) are taken out. Every list is held against every answer: a model may refuse in another language than it
was asked in. The rule is plain and can be read and disputed; it does not see a refusal in other words, in another
language or late in an answer, and takes a letter that declines something, written on request, for a refusal.

What is left out: whether a refusal was right.
"""

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

SENTENCES = 2
"""Where an answer refuses: later, it is more often what somebody in a story says."""

RULE = (
    f"one of the first {SENTENCES} sentences has a phrase of pipeline/words/refusals.en.txt or refusals.fr.txt, "
    "quotations left out"
)
"""For whoever reads the rate."""

QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|„[^“”]*[“”]")
ENDS = re.compile(r"(?<=[.!?…:;])\s+|\n+")
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*'?")


class Lists(NamedTuple):
    """The phrases of all files."""

    refusals: tuple[tuple[str, re.Pattern[str]], ...]
    """Each as it stands in its file, and compiled."""
    others: tuple[re.Pattern[str], ...]
    """What is no refusal."""


def phrase_of_refusal(text: str) -> str | None:
    """The phrase by which this answer refuses, as it stands in its list; None: it does not."""
    lists = _lists()
    for sentence in _sentences(text):
        for other in lists.others:
            sentence = other.sub(" / ", sentence)
        for phrase, pattern in lists.refusals:
            if pattern.search(sentence):
                return phrase
    return None


def _sentences(text: str) -> list[str]:
    """The first sentences as words in small letters, one space between them and at both ends."""
    plain = QUOTED.sub(" ", text.replace("’", "'"))
    sentences = (WORD.findall(each.casefold()) for each in ENDS.split(plain))
    return [f" {' '.join(words)} " for words in sentences if words][:SENTENCES]


@cache
def _lists() -> Lists:
    folder = files("pipeline").joinpath("words")
    named = sorted(each.name for each in folder.iterdir() if each.name.startswith("refusals."))
    lines = [line.strip() for name in named for line in folder.joinpath(name).read_text("utf-8").splitlines()]
    phrases = [line for line in lines if line and not line.startswith("#")]
    others = [line.removeprefix("not:").strip() for line in phrases if line.startswith("not:")]
    return Lists(
        refusals=tuple((line, compiled(line)) for line in phrases if not line.startswith("not:")),
        others=tuple(map(compiled, others)),
    )


def compiled(phrase: str) -> re.Pattern[str]:
    """A line of a list as an expression over words that are separated by single spaces."""
    parts = []
    for part in phrase.split():
        optional = part.startswith("[")
        words = "|".join(
            re.escape(each).replace("_", " ").replace(r"\*", r"\S*") for each in part.strip("[]").split("|")
        )
        parts.append(f"(?:(?:{words}) )?" if optional else f"(?:{words}) ")
    return re.compile(f"(?<= ){''.join(parts)}")
