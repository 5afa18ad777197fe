"""Each rule fires on its fault, and none on sound text."""

import pytest

from judges.base import Session
from judges.rules import RULES, Config
from pipeline.records import Pair, Prompt, Response

SKY = "Why is the sky blue during the day and red in the evening?"
LONG = (
    "Sunlight is made of many colours. Air molecules scatter short blue waves far more strongly than long red ones, so "
    "blue light reaches our eyes from every part of the sky. In the evening the light crosses much more air, the blue "
    "is scattered away, and mostly red is left."
)
LONG_FR = (
    "La lumière du soleil est faite de plusieurs couleurs. Les molécules de l'air dispersent les ondes bleues plus "
    "que les rouges, et le bleu nous arrive donc de toutes les parties du ciel. Le soir, la lumière a plus d'air."
)
SHOPPING = (
    "A very long list of things that we could buy at the market on Saturday morning with ten euros in our pocket."
)


def faults(text: str, prompt: str = SKY, lang: str = "en", finished: bool | None = True) -> dict[str, float]:
    asked = Prompt.model_validate({"id": "p", "lang": lang, "prompt": prompt})
    return Config().build(Session()).penalties(asked, Response(text=text, source="s", finished=finished))


@pytest.mark.parametrize(
    ("prompt", "text", "lang"),
    [
        ("What is the capital of France?", "Paris.", "en"),
        ("What is 7 times 6?", "42", "en"),
        ("Is water wet? Answer with one emoji.", "👍", "en"),
        (SKY, LONG, "en"),
        ("Pourquoi le ciel est-il bleu ?", LONG_FR, "fr"),
        ("Pourquoi le ciel est-il bleu ?", LONG_FR, "en"),  # nobody filled in the language
        ("Why is the sky blue? Answer in French.", LONG_FR, "en"),
        ("Translate into Russian: the sky is blue because air scatters light.", "Небо синее, потому что воздух", "en"),
        ("Correct the spelling: Teh sky are blue and teh sea are too.", "The sky is blue and the sea is too.", "en"),
        (f"Correct the spelling of this text: {LONG}", LONG, "en"),
        (SKY, f"{LONG} So that is why light reaches our eyes from every part of the sky.", "en"),
        ("Write a dialogue between a user and an assistant.", "User: Hello!\nAssistant: Hello, how are you?", "en"),
        ("What does <|im_end|> mean?", "<|im_end|> ends a turn in the ChatML format.", "en"),
        ("Write a loop in C.", "for (;;) {\n  if (x) {\n    y();\n  }\n}\n", "en"),
        ("Name three cities of Italy.", "1. Rome\n2. Milan\n3. Naples", "en"),
        ("Hello", "Hello! How can I help you today?", "en"),
        ("为什么天空是蓝色的?", "因为空气中的分子散射蓝光比散射红光更强, 所以我们看到的天空是蓝色的。", "zh"),
    ],
)
def test_a_sound_answer_has_no_fault_however_short_it_is(prompt: str, text: str, lang: str) -> None:
    assert faults(text, prompt, lang) == {}


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("empty", ""),
        ("empty", " \n\t\u200b\u202e"),
        ("repetition", "The sky is blue. " * 10),
        ("repeated_lines", f"{LONG}\n" * 3),
        ("debris", f"{LONG}<|im_end|>"),
        ("debris", f"{LONG}\n<|im_start|>user\nAnd why is grass green?"),
        ("debris", f"[INST] {LONG}"),
        ("debris", f"{LONG}</s>"),
        ("debris", f"{LONG}\nUser: And why is grass green?"),
        ("debris", f"### Response:\n{LONG}"),
        ("unrelated", SHOPPING),
        ("copy_of_prompt", SKY),
        ("copy_of_prompt", "why is the sky blue, during the DAY and red in the evening"),
        ("language", LONG_FR),
        ("language", "Небо синее днём, потому что воздух рассеивает синий свет сильнее красного."),
    ],
)
def test_each_fault_is_found_and_named(fault: str, text: str) -> None:
    assert fault in faults(text)


def test_french_answered_in_english_is_the_wrong_language() -> None:
    assert "language" in faults(LONG, "Pourquoi le ciel est-il bleu le jour et rouge le soir ?", "fr")


def test_an_empty_answer_has_that_one_fault() -> None:
    assert faults("", finished=False) == {"empty": 8.0}


@pytest.mark.parametrize(("finished", "expected"), [(True, {}), (None, {}), (False, {"cut": 2.0})])
def test_only_an_answer_that_is_known_to_be_cut_is_cut(finished: bool | None, expected: dict[str, float]) -> None:
    assert faults(LONG, finished=finished) == expected


def test_repetition_is_the_share_of_four_word_sequences_that_were_there_before() -> None:
    # 12 words, 9 sequences of four, of which the first 4 are new: 5/9.
    assert faults("sky red blue green " * 3)["repetition"] == pytest.approx(4.0 * 5 / 9)


def test_the_probability_is_the_sigmoid_of_the_difference_of_the_scores() -> None:
    pair = _pair(LONG, LONG, finished_b=False)
    (verdict,) = Config(cut=3.0, scale=0.5).build(Session()).judge([pair])
    assert verdict.p_a == pytest.approx(0.817574, abs=1e-6)  # sigmoid(1.5)
    assert verdict.evidence == {"penalties_a": {}, "penalties_b": {"cut": 3.0}}


@pytest.mark.parametrize(("a", "b"), [("Paris.", LONG), ("", ""), (f"{LONG}</s>", f"{LONG} And so on.</s>")])
def test_equal_penalties_are_an_exact_tie_whatever_the_lengths(a: str, b: str) -> None:
    (verdict,) = Config().build(Session()).judge([_pair(a, b)])
    assert verdict.is_tie


def test_every_rule_has_its_weight() -> None:
    assert {*RULES, "empty", "name", "scale"} == set(Config.model_fields)


def _pair(a: str, b: str, finished_b: bool = True) -> Pair:
    prompt = Prompt.model_validate({"id": "p", "prompt": SKY})
    sides = (Response(text=a, source="x", finished=True), Response(text=b, source="y", finished=finished_b))
    return Pair(id="pair", prompt=prompt, a=sides[0], b=sides[1])
