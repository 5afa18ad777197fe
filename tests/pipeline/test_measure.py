"""Perplexity is what NumPy says of the model's own logits, and a reward what the reward model by itself gives; whatever
the batch, the number of processes, and whoever else is on the base."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CHATML, full_logprobs, job_of, make_adapter, prompt_of, response_of
from tiny_training import trained, training

from pipeline import measure, models, store
from pipeline.adapters import attach, role
from pipeline.algorithms import scoring
from pipeline.demonstrations import Demonstration
from pipeline.errors import DataError
from pipeline.generate import Answer
from pipeline.measure import Measuring, Reading, Score, nll_of
from pipeline.models import ModelConfig, load_model
from pipeline.ratings import perplexity
from pipeline.recipe import PerplexityConfig
from pipeline.records import Message

ROWS = [
    '{"prompt": "Why?", "completion": "Because it is so."}',
    '{"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes, one."},'
    ' {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "No."}]}',
    '{"text": "A plain text, of some length."}',
    '{"prompt": "A longer question than the others?", "completion": "So."}',
]


@pytest.fixture(scope="module")
def reward_folder(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reward_model step left, published."""
    top = tmp_path_factory.mktemp("reward")
    trained(top, training(tiny, "reward_model", max_steps=2, pairs="preferences"))
    store.publish(top / "out", top / "published", {})
    return top / "published"


@pytest.fixture(scope="module")
def policy_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter, published."""
    top = tmp_path_factory.mktemp("policy")
    make_adapter(tiny_folder, top / "adapter", 7)
    store.publish(top / "adapter", top / "published", {})
    return top / "published"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    return path


def counted_by_hand(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Of each row: its tokens, and the places of those that count, from the rows' texts as a template writes them."""
    head = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    turns = [
        [("Why?", "Because it is so.")], [("One?", "Yes, one."), ("Two?", "No.")], [],
        [("A longer question than the others?", "So.")],
    ]  # fmt: skip
    found = []
    for row in turns:
        ids: list[int] = []
        places: list[int] = []
        for number, (asked, said) in enumerate(row):
            between = "\n" if number else ""
            ids += tokenizer(between + head.format(asked), add_special_tokens=False)["input_ids"]
            answer = tokenizer(said + "<|im_end|>", add_special_tokens=False)["input_ids"]
            places += range(len(ids), len(ids) + len(answer))
            ids += answer
        if not row:
            ids = [*tokenizer("A plain text, of some length.")["input_ids"], tokenizer.eos_token_id]
            places = list(range(1, len(ids)))
        found.append((ids, places))
    return found


def by_hand(model: Any, tokenizer: Any) -> list[tuple[float, int]]:
    """Sum of the NLLs and number of tokens of each row, from one forward pass a row, in float64."""
    found = []
    for ids, places in counted_by_hand(tokenizer):
        logprobs = full_logprobs(model, ids)
        found.append((-float(np.sum(logprobs[[place - 1 for place in places]])), len(places)))
    return found


def config_of(tiny: ModelConfig, text: Path | None, rewards: tuple[str, ...] = (), **options: Any) -> Measuring:
    return Measuring(
        model=tiny,
        checkpoints=("base", "dpo"),
        rewards=rewards,
        perplexity=PerplexityConfig(files=(text,), **options) if text else None,
    )


def answers_in(top: Path) -> Path:
    """The answers step's folder: three prompts, two checkpoints, one answer that was cut."""
    store.make_dirs(top / "answers")
    store.write_jsonl(top / "answers" / "prompts.jsonl", [prompt_of(f"What is {n}?", f"p{n}") for n in range(3)])
    said = [
        Answer(prompt_id=f"p{n}", response=response_of(f"It is {n}" * (n + 1), source, finished=n != 1))
        for n in range(3)
        for source in ("base", "dpo")
    ]
    store.write_jsonl(top / "answers" / "answers.jsonl", said)
    return top / "answers"


def run(top: Path, config: Measuring, inputs: dict[str, Path], world: int = 1) -> dict[str, bytes]:
    """The bytes of what the step leaves."""
    for rank in range(world):
        measure.work(job_of(top, config, step="measure", inputs=inputs, rank=rank, world=world))
    job = job_of(top, config, step="measure", inputs=inputs)
    measure.finish(job)
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def test_the_template_of_these_tests_is_the_one_that_the_rows_were_written_by_hand_from() -> None:
    assert "<|im_start|>" in CHATML and "<|im_end|>" in CHATML


def test_perplexity_of_base_and_adapter_is_exp_of_the_mean_nll_that_float64_gives(
    tiny: ModelConfig, tiny_tokenizer: Any, policy_folder: Path, text: Path, tmp_path: Path
) -> None:
    inputs = {"answers": answers_in(tmp_path), "train.dpo": policy_folder}
    run(tmp_path / "run", config_of(tiny, text), inputs)
    readings = measure.read(tmp_path / "run" / "out").readings
    model = attach(load_model(tiny), {"dpo": policy_folder})
    values = {}
    for name in ("base", "dpo"):
        own = {each.where: each for each in readings if each.source == name}
        with role(model, name):
            expected = by_hand(model, tiny_tokenizer)
        found = [own[f"{text}:{number}"] for number in range(1, 5)]
        assert [each.tokens for each in found] == [tokens for _, tokens in expected]
        assert [each.nll for each in found] == pytest.approx([nll for nll, _ in expected], abs=1e-4)
        value = perplexity([(each.nll, each.tokens) for each in found]).value
        nll, tokens = (math.fsum(column) for column in zip(*expected, strict=True))
        assert value == pytest.approx(math.exp(nll / tokens), rel=1e-5)
        values[name] = value
    assert abs(math.log(values["base"] / values["dpo"])) > 0.01  # the adapter was read, and the base without it


def test_a_row_is_cut_at_max_length_and_one_whose_prompt_fills_it_counts_for_nothing(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    turns = (Message(role="user", content="Why?"), Message(role="assistant", content="Because it is so."))
    row, whole = Demonstration(where="a", messages=turns), Demonstration(where="b", text="Some text.")
    ids, places = counted_by_hand(tiny_tokenizer)[0]
    cut = places[0] + 3
    ((nll, tokens),) = nll_of(tiny_model, tiny_tokenizer, [row], cut)
    assert tokens == 3
    assert nll == pytest.approx(-full_logprobs(tiny_model, ids[:cut])[places[0] - 1 :].sum(), abs=1e-4)
    found = nll_of(tiny_model, tiny_tokenizer, [row, whole], places[0])
    assert found[0] == (0.0, 0)
    assert found[1][1] > 0
    assert nll_of(tiny_model, tiny_tokenizer, [row], places[0]) == [(0.0, 0)]


def test_each_turn_of_an_encoder_decoder_is_an_answer_of_its_own(architectures: dict[str, Path], text: Path) -> None:
    bart = ModelConfig(base=str(architectures["bart"]), quantization="none", dtype="fp32")
    with pytest.raises(DataError, match=r"text.jsonl:3: .* is an encoder-decoder"):
        measure.texts_of(PerplexityConfig(files=(text,)), bart)
    text.write_text("\n".join(ROWS[:2]))
    rows = measure.texts_of(PerplexityConfig(files=(text,)), bart)
    model, tokenizer = load_model(bart), models.load_tokenizer(bart)
    together = nll_of(model, tokenizer, rows, 1024)
    second = rows[1].messages
    apart = [Demonstration(where="x", messages=second[:2]), Demonstration(where="y", messages=second)]
    alone = [nll_of(model, tokenizer, [each], 1024)[0] for each in apart]
    assert together[1][0] == pytest.approx(alone[1][0], abs=1e-4)
    assert alone[0][1] < together[1][1]


def test_a_reward_model_on_the_base_scores_as_it_does_alone_and_the_base_is_loaded_once(
    tiny: ModelConfig,
    reward_folder: Path,
    policy_folder: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[Any] = []

    def counting(config: ModelConfig, **options: Any) -> Any:
        loaded.append(config)
        return load_model(config, **options)

    monkeypatch.setattr(measure, "load_model", counting)
    answers = answers_in(tmp_path)
    inputs = {"answers": answers, "train.dpo": policy_folder, "train.one": reward_folder, "train.two": reward_folder}
    run(tmp_path / "run", config_of(tiny, text, ("one", "two")), inputs)
    assert loaded == [tiny]
    scores = measure.read(tmp_path / "run" / "out").scores
    assert [each.model for each in scores] == ["one"] * 6 + ["two"] * 6
    assert [each.score for each in scores[:6]] == [each.score for each in scores[6:]]
    said = list(store.read_jsonl(answers / "answers.jsonl", Answer))
    prompts = {f"p{n}": prompt_of(f"What is {n}?", f"p{n}") for n in range(3)}
    alone = scoring.SeparateReward(scoring.load_reward(reward_folder))
    expected = alone.score([prompts[each.prompt_id] for each in said], [each.response for each in said])
    by_answer = {(each.prompt_id, each.source): each.score for each in scores[:6]}
    found = [by_answer[each.prompt_id, each.response.source] for each in said]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(by_answer.values())) > 2


def test_a_reward_model_is_put_on_a_base_without_adapters(
    tiny: ModelConfig, reward_folder: Path, tmp_path: Path
) -> None:
    inputs = {"answers": answers_in(tmp_path), "train.one": reward_folder}
    files = run(tmp_path / "run", config_of(tiny, None, ("one",)), inputs)
    assert len(files["scores.jsonl"].splitlines()) == 6
    assert files["perplexity.jsonl"] == b""


def test_any_number_of_processes_and_a_kill_leave_the_same_bytes(
    tiny: ModelConfig, reward_folder: Path, policy_folder: Path, text: Path, tmp_path: Path
) -> None:
    config = config_of(tiny, text, ("one",))
    inputs = {"answers": answers_in(tmp_path), "train.dpo": policy_folder, "train.one": reward_folder}
    alone = run(tmp_path / "alone", config, inputs)
    assert run(tmp_path / "shared", config, inputs, world=3) == alone
    # One of three was killed before it had done anything: the next run does its part and no more.
    top = tmp_path / "killed"
    for rank in (0, 2):
        measure.work(job_of(top, config, step="measure", inputs=inputs, rank=rank, world=3))
    with pytest.raises(DataError, match="a batch of numbers is missing"):
        measure.finish(job_of(top, config, step="measure", inputs=inputs))
    assert run(top, config, inputs) == alone


def test_another_adapter_is_not_taken_for_the_one_before(
    tiny: ModelConfig, tiny_folder: Path, policy_folder: Path, text: Path, tmp_path: Path
) -> None:
    answers = answers_in(tmp_path)
    before = run(tmp_path / "run", config_of(tiny, text), {"answers": answers, "train.dpo": policy_folder})
    make_adapter(tiny_folder, tmp_path / "other", 8)
    store.publish(tmp_path / "other", tmp_path / "published", {})
    shutil.rmtree(tmp_path / "run" / "out")
    after = run(tmp_path / "run", config_of(tiny, text), {"answers": answers, "train.dpo": tmp_path / "published"})
    one, other = (
        {each.where: each.nll for each in map(Reading.model_validate_json, files["perplexity.jsonl"].splitlines())
         if each.source == "dpo"} for files in (before, after)
    )  # fmt: skip
    assert one.keys() == other.keys()
    assert all(one[where] != other[where] for where in one)


def test_there_is_nothing_to_read_where_there_is_no_such_step() -> None:
    assert measure.read(None) == ((), ())
    assert Score(prompt_id="p", source="s", index=0, model="m", score=0.5).score == 0.5
