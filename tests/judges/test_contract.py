"""Every file in `judges/` keeps the contract of `judges.base`: a new judge is tested by being there.

A judge with required fields, or one that loads a model, adds its block to EXAMPLES; an option whose other values
cannot be guessed from its type adds one to OTHER_VALUES.
"""

import atexit
import functools
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from servers import judge_server
from tiny import make_reward_model

from judges.base import Judge, JudgeConfig, Session
from pipeline import plugins
from pipeline.records import Message, Pair, Prompt, Response, Verdict

VOTES = Path(__file__).parents[2] / "data" / "annotations"

EXAMPLES: dict[str, dict[str, Any]] = {
    "human": {"votes": {"files": str(VOTES / "votes.csv")}, "otherwise": "rules"},
    "both_orders": {"of": "rules"},
    "cascade": {"cheap": "rules", "dear": "length"},
    "panel": {"of": [{"judge": "rules", "accuracy": 0.7}, {"judge": "length", "accuracy": 0.6}]},
    "llm": {"model": "planted", "price": "free"},
    "rating": {"model": "planted", "price": "free"},
    # The built-in model means to say something else than a label; what it says about the labels is tested all the same.
    "local_llm": {"min_label_mass": 0.0},
}
"""The block of a judge that cannot be built from its name alone."""

BEHIND_AN_API = {"llm", "rating"}


@functools.cache
def example(name: str) -> dict[str, Any]:
    """The block of EXAMPLES, or one whose model has to be made first."""
    if name == "reward_model":
        folder = make_reward_model(Path(tempfile.mkdtemp(prefix="contract-")))
        return {"model": {"base": str(folder), "quantization": "none", "dtype": "fp32"}}
    return EXAMPLES.get(name, {})


LOADS_A_MODEL = {"likelihood", "local_llm"}

OTHER_VALUES: dict[tuple[str, str], Any] = {
    ("cascade", "threshold"): 0.9,
    ("human", "votes"): {"files": str(VOTES / "pairs.csv")},
    ("llm", "api_key_env"): "HOME",
    ("llm", "base_url"): "https://example.org/v1",
    ("llm", "batch"): {},
    ("llm", "extra_body"): {"seed": 1},
    ("llm", "fallback"): [],
    ("llm", "labels"): [["M", "R"]],
    ("llm", "price"): {"input": 1.0, "output": 2.0},
    ("llm", "principle"): "truth",
    ("llm", "temperature"): 0.5,
    ("local_llm", "labels"): [["M", "R"]],
    ("local_llm", "principle"): "truth",
    ("panel", "of"): [{"judge": "rules", "accuracy": 0.7}, {"judge": "length", "accuracy": 0.9}],
    ("panel", "quorum"): 1,
    ("rating", "api_key_env"): "HOME",
    ("rating", "base_url"): "https://example.org/v1",
    ("rating", "batch"): {},
    ("rating", "extra_body"): {"seed": 1},
    ("rating", "price"): {"input": 1.0, "output": 2.0},
    ("rating", "temperature"): 0.5,
    ("reward_model", "temperature"): 0.5,
}
"""(judge, option) -> a value that is neither the default nor the example's."""


ONLY_WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("llm", "constitution"): {"principle": "all"},
    ("llm", "samples"): {"temperature": 1.0},
    ("local_llm", "constitution"): {"principle": "all"},
}
"""(judge, option) -> options without which this one changes no answer."""

TESTED_ELSEWHERE = {("reward_model", "adapter")}  # it takes the place of the example's model


def conversation(name: str, lang: str, *turns: str) -> Prompt:
    roles: list[Literal["user", "assistant"]] = ["user", "assistant"]
    messages = tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(turns))
    return Prompt(id=name, lang=lang, messages=messages)


SKY = conversation("sky", "en", "Why is the sky blue?")
ROME = conversation("rome", "fr", "Quelle est la capitale de l'Italie ?")
TEA = conversation("tea", "en", "I like tea.", "Which one?", "Green. How hot should the water be?")

PAIRS = [
    Pair.of(
        SKY,
        Response(text="Air scatters blue light more than red light.", source="one", finished=True),
        Response(text="It is blue it is blue it is blue it is blue it is", source="two", finished=False),
    ),
    Pair.of(SKY, Response(text="Because of the sea.", source="one"), Response(text="Air scatters it.", source="two")),
    Pair.of(ROME, Response(text="Rome.", source="one"), Response(text="Paris", source="two")),
    Pair.of(TEA, Response(text="About 80 °C.", source="one"), Response(text="", source="two")),
]


def names() -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in LOADS_A_MODEL else name for name in plugins.names("judge")
    ]


every_judge = pytest.mark.parametrize("name", names())


def config_of(name: str, **changed: Any) -> JudgeConfig:
    served = {"base_url": api()} if name in BEHIND_AN_API else {}
    block = {"name": name, **served, **example(name), **changed}
    try:
        config = plugins.config_class("judge", name).model_validate(block)
    except ValidationError as error:
        pytest.fail(f"judge {name}: {block} is refused; put a block that works into EXAMPLES or OTHER_VALUES. {error}")
    assert isinstance(config, JudgeConfig)
    return config


@functools.cache
def api() -> str:
    """The address of a server that runs as long as these tests."""
    server = judge_server(accuracy=0.8, bias=1.0)
    atexit.register(server.__exit__, None, None, None)
    return server.__enter__().url


@functools.cache
def judge_of(name: str) -> Judge:
    return config_of(name).build(Session())


@functools.cache
def verdicts_of(name: str) -> list[Verdict]:
    """On every pair and then on every pair with its sides exchanged."""
    return judge_of(name).judge([*PAIRS, *(pair.swap() for pair in PAIRS)])


@every_judge
def test_there_is_one_verdict_per_pair_in_order(name: str) -> None:
    assert [verdict.pair_id for verdict in verdicts_of(name)] == [pair.id for pair in PAIRS] * 2


@every_judge
def test_nothing_asked_is_nothing_answered(name: str) -> None:
    assert judge_of(name).judge([]) == []


@every_judge
def test_verdicts_carry_the_judges_name_and_fingerprint(name: str) -> None:
    expected = (name, config_of(name).fingerprint())
    assert {(verdict.judge, verdict.fingerprint) for verdict in verdicts_of(name)} == {expected}


@every_judge
def test_exchanging_the_sides_exchanges_the_verdict_of_an_order_free_judge(name: str) -> None:
    if not config_of(name).order_free:
        pytest.skip("this judge does not promise it; both_orders does")
    verdicts = verdicts_of(name)
    for one, other in zip(verdicts[: len(PAIRS)], verdicts[len(PAIRS) :], strict=True):
        assert one.abstained == other.abstained
        if one.p_a is not None and other.p_a is not None:
            assert other.p_a == pytest.approx(1 - one.p_a, abs=1e-6)


@every_judge
def test_a_verdict_does_not_depend_on_the_other_prompts_that_are_asked_about(name: str) -> None:
    alone = judge_of(name).judge([pair for pair in PAIRS if pair.prompt.id == "sky"])
    together = judge_of(name).judge(PAIRS)
    assert alone == [verdict for verdict, pair in zip(together, PAIRS, strict=True) if pair.prompt.id == "sky"]


@every_judge
def test_a_verdict_does_not_depend_on_the_order_of_the_questions(name: str) -> None:
    assert judge_of(name).judge(PAIRS[::-1])[::-1] == judge_of(name).judge(PAIRS)


@every_judge
def test_a_judge_that_scores_single_answers_ranks_them_as_it_judges_pairs(name: str) -> None:
    judge: Any = judge_of(name)
    if not hasattr(judge, "score"):
        pytest.skip("this judge only compares")
    prompts = [pair.prompt for pair in PAIRS]
    a, b = (judge.score(prompts, [getattr(pair, side) for pair in PAIRS]) for side in ("a", "b"))
    for verdict, score_a, score_b in zip(verdicts_of(name), a, b, strict=False):
        assert (verdict.p_a is None) == (score_a is None or score_b is None)
        if verdict.p_a is not None:
            assert np.sign(verdict.p_a - 0.5) == np.sign(score_a - score_b)


@every_judge
def test_verdicts_survive_the_way_to_disk_and_back(name: str) -> None:
    for verdict in verdicts_of(name):
        assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@pytest.mark.parametrize("name", plugins.names("judge"))
def test_the_fingerprint_is_that_of_an_equal_config(name: str) -> None:
    config = config_of(name)
    assert config_of(name).fingerprint() == config.fingerprint()
    assert type(config).model_validate_json(config.model_dump_json()).fingerprint() == config.fingerprint()


@pytest.mark.parametrize("name", plugins.names("judge"))
def test_the_fingerprint_changes_with_each_option_that_can_change_an_answer(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    for option in set(type(config).model_fields) - {"name"}:
        if (name, option) in TESTED_ELSEWHERE:
            continue
        needed = ONLY_WITH.get((name, option), {})
        changed = config_of(name, **needed, **{option: other_value(name, option, tmp_path)})
        assert getattr(changed, option) != getattr(config, option), f"{option}: not another value"
        same = changed.fingerprint() == config_of(name, **needed).fingerprint()
        assert same == (option in type(config).RUNTIME), option


def other_value(judge: str, option: str, tmp_path: Path) -> Any:
    """A value of this option that its Config accepts and that is not the present one."""
    if (judge, option) in OTHER_VALUES:
        return OTHER_VALUES[judge, option]
    if judge in ("llm", "local_llm", "rating") and option in PROMPT_FILES:
        default = type(config_of(judge)).model_fields[option].default
        return str(edited_copy(PROMPT_FILES[option].format(default), tmp_path))
    config = config_of(judge)
    return another(getattr(config, option), type(config).model_fields[option].annotation)


PROMPT_FILES = {
    "prompt": "{}.en.txt",
    "rubric": "rubric.{}.en.txt",
    "constitution": "constitution.{}.en.txt",
}


def edited_copy(file: str, folder: Path) -> Path:
    text = (Path(__file__).parents[2] / "judges" / "prompts" / file).read_text(encoding="utf-8")
    (folder / file).write_text(text + "Be strict.\n", encoding="utf-8")
    return folder / file


def another(value: Any, annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    if isinstance(value, BaseModel):
        changeable = next(name for name in type(value).model_fields if name != "name")
        old = getattr(value, changeable)
        return {**value.model_dump(), changeable: another(old, type(value).model_fields[changeable].annotation)}
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 if value else 0.25
        case str() | None:
            return f"{value or ''} another"
    raise AssertionError(f"no other value is known for {value!r}; put one into OTHER_VALUES")
