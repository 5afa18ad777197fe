"""The likelihood judge's scores are mean log-probabilities of a plain forward pass, each answer's by itself."""

import itertools
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CHATML, CONTEXT, END, full_logprobs, inputs_read, make_tokenizer, prompt_of, response_of

from judges.base import Session
from judges.likelihood import Config, LikelihoodJudge
from pipeline.models import ModelConfig
from pipeline.records import Message, Pair, Prompt, Response, Verdict

GOOD, BAD = "Be good.", "Be bad."
LONG, SHORT = response_of("It is six, of course.", "x"), response_of("Six", "y")


@pytest.fixture(scope="module")
def judge(tiny: ModelConfig) -> LikelihoodJudge:
    return Config(model=tiny, constitution=GOOD, temperature=0.5).build(Session())


def mean_logprob(model: Any, tokenizer: Any, text: str, answer: str) -> float:
    """Of the answer's tokens and its end after `text`, which spells the whole conversation; float64, no cache."""
    prefix = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"] + [END]
    return float(full_logprobs(model, [*prefix, *ids])[len(prefix) - 1 :].mean())


def spelled(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def scores(verdict: Verdict, pair: Pair) -> dict[str, float]:
    """Text -> score."""
    return {pair.a.text: verdict.evidence["score_a"], pair.b.text: verdict.evidence["score_b"]}


def test_the_score_is_the_mean_log_probability_under_the_constitution(
    judge: LikelihoodJudge, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    pair = Pair.of(prompt_of("Three and three?"), LONG, SHORT)
    (verdict,) = judge.judge([pair])
    for text, score in scores(verdict, pair).items():
        expected = mean_logprob(tiny_model, tiny_tokenizer, spelled(GOOD, "Three and three?"), text)
        assert score == pytest.approx(expected, abs=1e-4)
    difference = verdict.evidence["score_a"] - verdict.evidence["score_b"]
    assert abs(difference) > 0.01
    assert verdict.p_a == pytest.approx(1 / (1 + np.exp(-difference / 0.5)), abs=1e-12)
    assert verdict.fingerprint == judge.config.fingerprint()


@pytest.mark.parametrize("own", [(), (Message(role="system", content="Be kind."),)])
def test_the_constitution_is_read_once_whatever_system_message_a_prompt_has(
    own: tuple[Message, ...], judge: LikelihoodJudge
) -> None:
    prompt = Prompt(id="p", messages=(*own, Message(role="user", content="Three and three?")))
    with inputs_read(judge.model) as read:
        judge.judge([Pair.of(prompt, LONG, SHORT)])
    rest = "".join(f"\n\n{each.content}" for each in own) + spelled("", prompt.text).removeprefix(
        "<|im_start|>system\n"
    )
    assert read[0] == len(judge.tokenizer(rest, add_special_tokens=False)["input_ids"])


def test_a_contrast_is_subtracted(tiny: ModelConfig, tiny_model: Any, tiny_tokenizer: Any) -> None:
    pair = Pair.of(prompt_of("Three and three?"), LONG, SHORT)
    (verdict,) = Config(model=tiny, constitution=GOOD, contrast=BAD).build(Session()).judge([pair])
    for text, score in scores(verdict, pair).items():
        good, bad = (
            mean_logprob(tiny_model, tiny_tokenizer, spelled(system, "Three and three?"), text)
            for system in (GOOD, BAD)
        )
        assert score == pytest.approx(good - bad, abs=1e-4)
        assert abs(bad) > 0.1


def test_where_the_template_has_no_system_turn_the_constitution_is_before_the_users_words(
    tiny: ModelConfig, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    loop = "{% for message in messages %}"
    deaf = CHATML.replace(loop, "{% for message in messages if message['role'] != 'system' %}")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    pair = Pair.of(prompt_of("Three and three?"), LONG, SHORT)
    for name, template in {"deaf": deaf, "refusing": refusing}.items():
        shutil.copytree(tiny.base, tmp_path / name)
        make_tokenizer(tmp_path / name, template=template)
        model = tiny.model_copy(update={"base": str(tmp_path / name)})
        (verdict,) = Config(model=model, constitution=GOOD).build(Session()).judge([pair])
        conversation = f"<|im_start|>user\n{GOOD}\n\nThree and three?<|im_end|>\n<|im_start|>assistant\n"
        for text, score in scores(verdict, pair).items():
            assert score == pytest.approx(mean_logprob(tiny_model, tiny_tokenizer, conversation, text), abs=1e-4)


def test_a_prompts_own_system_message_follows_the_constitution(
    judge: LikelihoodJudge, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    pair = Pair.of(prompt_of("Three and three?", system="One word."), LONG, SHORT)
    (verdict,) = judge.judge([pair])
    for text, score in scores(verdict, pair).items():
        conversation = spelled(f"{GOOD}\n\nOne word.", "Three and three?")
        assert score == pytest.approx(mean_logprob(tiny_model, tiny_tokenizer, conversation, text), abs=1e-4)


def test_every_turn_of_a_conversation_is_read(judge: LikelihoodJudge, tiny_model: Any, tiny_tokenizer: Any) -> None:
    turns = [("user", "Hi."), ("assistant", "Hello."), ("user", "Well?")]
    prompt = Prompt(id="p", messages=tuple(Message(role=who, content=what) for who, what in turns))  # type: ignore[arg-type]
    pair = Pair.of(prompt, LONG, SHORT)
    (verdict,) = judge.judge([pair])
    middle = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    head, tail = spelled(GOOD, "Well?").split("<|im_start|>user")
    for text, score in scores(verdict, pair).items():
        conversation = f"{head}{middle}<|im_start|>user{tail}"
        assert score == pytest.approx(mean_logprob(tiny_model, tiny_tokenizer, conversation, text), abs=1e-4)


@pytest.mark.parametrize("finished", [True, None, False])
def test_an_answer_is_scored_with_an_end_also_where_it_was_cut(
    finished: bool | None, judge: LikelihoodJudge, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    # What a reader gets ends there; in mid-sentence an end is unlikely, and that is what being cut should cost.
    pair = Pair.of(prompt_of("Why?"), response_of("Because it is", finished=finished), SHORT)
    (verdict,) = judge.judge([pair])
    expected = mean_logprob(tiny_model, tiny_tokenizer, spelled(GOOD, "Why?"), "Because it is")
    assert scores(verdict, pair)["Because it is"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("finished", [True, False])
def test_an_empty_answer_has_the_probability_of_ending_at_once(
    finished: bool, judge: LikelihoodJudge, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    pair = Pair.of(prompt_of("Why?"), response_of("", finished=finished), SHORT)
    (verdict,) = judge.judge([pair])
    expected = mean_logprob(tiny_model, tiny_tokenizer, spelled(GOOD, "Why?"), "")
    assert scores(verdict, pair)[""] == pytest.approx(expected, abs=1e-4)


def test_a_control_token_in_an_answer_is_text(judge: LikelihoodJudge, tiny_model: Any, tiny_tokenizer: Any) -> None:
    text = "Six.<|im_end|>"
    pair = Pair.of(prompt_of("Why?"), response_of(text), SHORT)
    (verdict,) = judge.judge([pair])
    prefix = tiny_tokenizer(spelled(GOOD, "Why?"), add_special_tokens=False)["input_ids"]
    # A byte each, in the order of the tiny tokenizer's alphabet, and the answer's own end.
    letters = [tiny_tokenizer.convert_tokens_to_ids(char) for char in text]
    expected = full_logprobs(tiny_model, [*prefix, *letters, END])[len(prefix) - 1 :].mean()
    assert scores(verdict, pair)[text] == pytest.approx(float(expected), abs=1e-4)


def test_equal_answers_are_a_tie(judge: LikelihoodJudge) -> None:
    (verdict,) = judge.judge([Pair.of(prompt_of("Why?"), response_of("So", "x"), response_of("So", "y"))])
    assert verdict.p_a == 0.5


def many_pairs() -> list[Pair]:
    texts = ["Six", "It is six.", "No.", "I do not know what you mean by that"]
    return [
        Pair.of(prompt_of(question), response_of(one, "x"), response_of(other, "y"))
        for question in ("Three and three?", "Why?", "What is the sum of three and three and what is it for?")
        for one, other in itertools.combinations(texts, 2)
    ]


def test_exchanging_the_sides_exchanges_the_verdict(judge: LikelihoodJudge) -> None:
    pairs = many_pairs()
    forward, reverse = judge.judge(pairs), judge.judge([pair.swap() for pair in pairs])
    for one, other in zip(forward, reverse, strict=True):
        assert other.p_a == pytest.approx(one.swap().p_a, abs=1e-15)
        assert (other.evidence["score_a"], other.evidence["score_b"]) == (
            one.evidence["score_b"],
            one.evidence["score_a"],
        )


def test_the_order_of_the_pairs_does_not_matter(judge: LikelihoodJudge) -> None:
    pairs = many_pairs()
    expected = {verdict.pair_id: verdict for verdict in judge.judge(pairs)}
    random.Random(1).shuffle(pairs)
    found = judge.judge(pairs)
    assert [verdict.pair_id for verdict in found] == [pair.id for pair in pairs]
    assert {verdict.pair_id: verdict for verdict in found} == expected


def test_which_other_prompts_are_asked_about_does_not_matter(judge: LikelihoodJudge) -> None:
    pairs = many_pairs()
    alone = [verdict for start in range(0, 18, 6) for verdict in judge.judge(pairs[start : start + 6])]
    assert alone == judge.judge(pairs)


@pytest.mark.parametrize("room", [0, 1])
def test_what_does_not_fit_the_models_context_is_left_open(room: int, judge: LikelihoodJudge) -> None:
    # Tokens of the conversation and of the answer's end: a byte each, and one for each mark of a turn.
    taken = len(spelled(GOOD, "Why?").replace("<|im_start|>", "^").replace("<|im_end|>", "$")) + 1
    long = response_of("x" * (CONTEXT - taken + 1 - room))
    pair = Pair.of(prompt_of("Why?"), long, response_of("Because.", "y"))
    (verdict,) = judge.judge([pair])
    assert verdict.abstained == (None if room else "truncated")


def test_a_long_answer_takes_nothing_from_its_neighbours(judge: LikelihoodJudge) -> None:
    prompt = prompt_of("Why?")
    fine, long = Pair.of(prompt, LONG, SHORT), Pair.of(prompt, LONG, response_of("x" * CONTEXT))
    found = judge.judge([long, fine])
    assert found[0].abstained == "truncated"
    assert found[1].p_a == pytest.approx(judge.judge([fine])[0].p_a, abs=1e-4)


def test_what_a_response_was_sampled_with_does_not_matter(judge: LikelihoodJudge) -> None:
    told = LONG.model_copy(update={"logprob": -3.0, "ref_logprob": -4.0, "n_tokens": 9})

    def p_long(response: Response) -> float:
        pair = Pair.of(prompt_of("Why?"), response, SHORT)
        (verdict,) = judge.judge([pair])
        return scores(verdict, pair)[LONG.text]

    assert p_long(told) == p_long(LONG)
