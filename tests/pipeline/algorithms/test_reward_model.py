"""The reward model learns what the judge preferred, as surely as it did, and says how well on prompts it never saw."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import (
    ENCODERS,
    END,
    inputs_read,
    job_of,
    make_architecture,
    preference_of,
    preferences_of,
    prompt_of,
    response_of,
    said,
)

from pipeline import agreement, store, train
from pipeline.algorithms import held_out, reward_model, scoring
from pipeline.algorithms.base import Setting
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, load_scorer
from pipeline.records import Pair, Preference, Verdict
from pipeline.train import Training
from pipeline.worker import Job

LEFT = {
    "adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "summary.json", "README.md",
    "reward_model.json",
}  # fmt: skip
KINDS = ("none", "nf4", pytest.param("int8", marks=pytest.mark.slow))


def config(tiny: ModelConfig, quantization: Any = "none", **options: Any) -> Training:
    """Eight updates on four pairs each, with a checkpoint after every second."""
    defaults = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    return Training(
        seed=3,
        model=tiny.model_copy(update={"quantization": quantization}),
        algorithm={"name": "reward_model", **defaults, "max_steps": 8, "save_steps": 2, **options},  # type: ignore[arg-type]
    )


def prepared(top: Path, training: Training, preferences: list[Preference] | None = None) -> Job:
    """The job of the step in `top`, as generate and label would leave these preferences."""
    found = preferences_of(24) if preferences is None else preferences
    pairs = [Pair.of(each.prompt, each.chosen, each.rejected) for each in found]
    verdicts = [
        said(pair, each.confidence if pair.a == each.chosen else 1 - each.confidence)
        for pair, each in zip(pairs, found, strict=True)
    ]
    inputs = {"generate": top / "generate", "label": top / "label"}
    for folder in inputs.values():
        store.make_dirs(folder)
    store.write_jsonl(inputs["generate"] / "pairs.jsonl", pairs)
    store.write_jsonl(inputs["label"] / "verdicts.jsonl", verdicts)
    store.write_jsonl(inputs["label"] / "preferences.jsonl", found[:12])
    return job_of(top, training, step="train.reward_model", inputs=inputs)


def trained(top: Path, training: Training, preferences: list[Preference] | None = None) -> dict[str, bytes]:
    job = prepared(top, training, preferences)
    train.finish(job)
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def facts(files: dict[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files["reward_model.json"])
    return found


def lines(files: dict[str, bytes]) -> list[dict[str, float]]:
    return [json.loads(line) for line in files["metrics.jsonl"].splitlines()]


@pytest.fixture(scope="module")
def once(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, bytes]]]:
    """Where a reward model was trained without an interruption, and what it left."""
    found: dict[str, tuple[Path, dict[str, bytes]]] = {}

    def of(quantization: str) -> tuple[Path, dict[str, bytes]]:
        if quantization not in found:
            top = tmp_path_factory.mktemp("once")
            found[quantization] = top, trained(top, config(tiny, quantization))
        return found[quantization]

    return of


# ---- the loss, against NumPy


def ranked(prompts: int) -> list[Preference]:
    """Prompts with three answers and all pairs of them, the last with one pair; no confidence comes twice."""
    found = []
    for number in range(prompts):
        texts = [f"{word} {number}" * (1 + number) for word in ("Best", "Middle", "Bad")]
        answers = [response_of(text, index=index) for index, text in enumerate(texts)]
        pairs = [(0, 1), (0, 2), (1, 2)] if number < prompts - 1 else [(0, 2)]
        found += [preference_of(prompt_of(f"Question {number}?"), answers[one], answers[two]) for one, two in pairs]
    return [each.model_copy(update={"confidence": 0.55 + 0.03 * n}) for n, each in enumerate(found)]


def oracle(
    scores_N2: np.ndarray, confidence_N: np.ndarray, weight_N: np.ndarray, margin: float, centre: float
) -> tuple[float, np.ndarray]:
    """The loss of the file's head and its gradient by the scores of each pair, in float64 from the formula."""
    p = 1 / (1 + np.exp(-(scores_N2[:, 0] - scores_N2[:, 1] - margin)))
    total = scores_N2.sum(axis=1)
    loss = -confidence_N * np.log(p) - (1 - confidence_N) * np.log(1 - p) + centre * total**2
    slope, both = weight_N * (p - confidence_N), weight_N * 2 * centre * total
    return float(weight_N @ loss), np.stack([slope + both, -slope + both], axis=1)


def test_the_loss_by_hand() -> None:
    # d = ln 3: sigmoid(d) = 3/4. c = 0.8: -(0.8 ln 0.75 + 0.2 ln 0.25) = 0.230146 + 0.277259.
    one = torch.tensor([np.log(3.0)], dtype=torch.float64)
    zero, sure = torch.zeros(1, dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    assert reward_model.bradley_terry(one, zero, sure, 0.0).item() == pytest.approx(0.507405, abs=1e-6)
    # With m = ln 3 as well nothing is left of the difference.
    assert reward_model.bradley_terry(one, zero, sure, np.log(3.0)).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    "options",
    [{}, {"soft_labels": False}, {"margin": 0.7}, {"center_rewards_coefficient": 0.05}],
)
def test_loss_and_gradient_of_the_trainer_are_those_of_the_formula(
    options: dict[str, Any], tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    algorithm = reward_model.Config(per_device_train_batch_size=4, **options)
    preferences = ranked(4)
    model = load_scorer(tiny, seed=1, training=True)
    setting = Setting(model=model, tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1)
    trainer: Any = algorithm.trainer(algorithm.rows(preferences), setting)
    head = trainer.model.base_model.model.score.modules_to_save["default"].weight
    with torch.no_grad():
        head.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()

    # The hidden states by the body alone, answer by answer and so without padding; all that follows is NumPy's.
    body = trainer.model.get_base_model().model

    def hidden(preference: Preference, answer: Any) -> np.ndarray:
        ids = scoring.conversation_ids(tiny_tokenizer, preference.prompt.messages, answer, 99)
        with torch.no_grad():
            found: np.ndarray = body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].double().numpy()
        return found

    hidden_N2H = np.stack([[hidden(each, each.chosen), hidden(each, each.rejected)] for each in preferences])
    scores_N2 = hidden_N2H @ head.detach().double().numpy()[0]
    confidence_N = np.array([each.confidence if algorithm.soft_labels else 1.0 for each in preferences])
    # Four prompts, of which the first three have three pairs.
    weight_N = np.array([1 / 12] * 9 + [1 / 4])
    expected, slope_N2 = oracle(
        scores_N2, confidence_N, weight_N, algorithm.margin, algorithm.center_rewards_coefficient or 0.0
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    gradient = np.einsum("nk,nkh->h", slope_N2, hidden_N2H)
    assert np.abs(head.grad.double().numpy()[0] - gradient).max() < 1e-5
    assert np.abs(gradient).max() > 1e-2


def test_each_answer_is_read_once_and_each_pair_keeps_its_own_confidence(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    algorithm = reward_model.Config(per_device_train_batch_size=5)
    preferences = ranked(5)
    setting = Setting(model=load_scorer(tiny, seed=1), tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1)
    (batch,) = algorithm.trainer(algorithm.rows(preferences), setting).get_train_dataloader()
    texts = [tiny_tokenizer.decode(ids) for ids in batch["input_ids"]]
    assert len(texts) == len(set(texts)) == 14
    known = {(each.prompt.text, each.chosen.text, each.rejected.text): each.confidence for each in preferences}
    pairs = zip(batch["pairs"].tolist(), batch["confidence"].tolist(), strict=True)
    for (chosen, rejected), confidence in pairs:
        (found,) = [
            value
            for (prompt, one, two), value in known.items()
            if f"{prompt}<" in texts[chosen] and f"\n{one}<" in texts[chosen] and f"\n{two}<" in texts[rejected]
        ]
        assert confidence == pytest.approx(found)
    assert batch["weight"].sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_prompt_is_read_once_for_all_its_answers_and_loss_and_gradients_stay(
    checkpointing: bool, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    algorithm = reward_model.Config(per_device_train_batch_size=3, gradient_checkpointing=checkpointing)
    found: list[tuple[float, torch.Tensor]] = []
    read: list[int] = []
    for trees in (True, False):
        setting = Setting(
            model=load_scorer(tiny, seed=1, training=True), tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1
        )
        trainer: Any = algorithm.trainer(algorithm.rows(ranked(3)), setting)
        assert trainer.trees
        trainer.trees = trees
        generator = torch.Generator().manual_seed(1)
        trained = [each for each in trainer.model.parameters() if each.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.normal_(std=0.2, generator=generator)
        (batch,) = trainer.get_train_dataloader()
        with inputs_read(trainer.model) as counted:
            loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        read.append(counted[0])
        found.append((loss.item(), torch.cat([each.grad.flatten() for each in trained])))
    (tree, gradient), (rows, expected) = found
    assert tree == pytest.approx(rows, abs=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5) and expected.norm() > 0.1
    # The template's beginning once, each question once, and of the answers what no other begins with.
    ids = [
        scoring.conversation_ids(tiny_tokenizer, each.prompt.messages, answer, 99)
        for each in ranked(3)
        for answer in (each.chosen, each.rejected)
    ]
    assert read[0] == len({tuple(row[:end]) for row in ids for end in range(1, len(row) + 1)})
    assert read[1] == len(set(map(tuple, ids))) * max(map(len, ids))
    assert read[0] < 0.6 * read[1]


def test_dropout_in_the_attention_is_nothing_for_a_tree(tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = load_scorer(tiny, seed=1, training=True)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    setting = Setting(model=model, tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1)
    algorithm = reward_model.Config()
    trainer: Any = algorithm.trainer(algorithm.rows(ranked(3)), setting)
    assert not trainer.trees
    (batch,) = trainer.get_train_dataloader()
    assert np.isfinite(trainer.compute_loss(trainer.model, dict(batch)).item())


def test_answers_are_scored_at_their_end_of_turn_and_cut_ones_at_their_last_token(tiny_tokenizer: Any) -> None:
    prompt = prompt_of("Why?")
    ended = scoring.conversation_ids(tiny_tokenizer, prompt.messages, response_of("So", finished=True), 99)
    cut = scoring.conversation_ids(tiny_tokenizer, prompt.messages, response_of("So", finished=False), 99)
    assert ended == [*cut, END]
    assert tiny_tokenizer.decode(cut).endswith("<|im_start|>assistant\nSo")


# ---- what is left


@pytest.mark.parametrize("quantization", KINDS)
def test_a_step_leaves_an_adapter_with_a_head_in_fp32_and_what_it_is_worth(quantization: str, once: Any) -> None:
    from safetensors.torch import load_file

    top, files = once(quantization)
    assert files.keys() == LEFT
    tensors = load_file(top / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert tensors["base_model.model.score.weight"].shape == (1, 32)
    found = facts(files)
    assert (found["shared"], found["pool"], found["trailing_ids"]) == (True, "last", [])
    assert found["pad_id"] != END
    exam = found["held_out"]
    assert (exam["prompts"], exam["pairs"]) == (5, 5)
    assert exam["low"] <= exam["accuracy"] <= exam["high"]
    summary = json.loads(files["summary.json"])
    assert (summary["preferences"], summary["examples"], summary["updates"]) == (24, 19, 8)
    assert summary["held_out"] == exam
    assert [line["step"] for line in lines(files)] == list(range(1, 9))


@pytest.mark.parametrize("quantization", KINDS)
def test_it_learns_to_tell_the_two_kinds_of_answer_apart(quantization: str, once: Any) -> None:
    metrics = lines(once(quantization)[1])
    assert metrics[-1]["accuracy"] == 1.0
    # The least that a label of 0.9 allows is the entropy of it: 0.325 nats.
    assert 0.325 <= metrics[-1]["loss"] < 0.4


def test_the_pairs_of_a_prompt_are_trained_on_or_held_out_together() -> None:
    preferences = [
        preference_of(prompt_of(f"Question {prompt}?"), response_of(f"Good {number}"), response_of(f"Bad {number}"))
        for prompt in range(20)
        for number in range(3)
    ]
    taught, kept = held_out.split(preferences, 0.25, seed=1)
    assert (len(taught), len(kept)) == (45, 15)
    assert not {each.prompt.id for each in taught} & {each.prompt.id for each in kept}
    assert held_out.split(preferences[::-1], 0.25, seed=1)[1] == kept[::-1]
    _, other = held_out.split(preferences, 0.25, seed=2)
    assert {each.prompt.id for each in other} != {each.prompt.id for each in kept}


def test_one_prompt_is_too_few() -> None:
    with pytest.raises(TrainingError, match="pairs of 1 prompts; it needs one to train on and one held out"):
        held_out.split(preferences_of(1), 0.2, seed=1)


@pytest.mark.parametrize(("pairs", "count"), [("all", 24), ("preferences", 12)])
def test_it_learns_from_every_decided_pair_or_from_what_the_others_learn_from(
    pairs: str, count: int, tiny: ModelConfig, tmp_path: Path
) -> None:
    files = trained(tmp_path, config(tiny, pairs=pairs, max_steps=1))
    assert json.loads(files["summary.json"])["preferences"] == count


# ---- how good it is


def test_the_figures_of_the_exam_by_hand() -> None:
    # Three pairs of two prompts: right by 2, wrong by 1, undecided.
    preferences = [
        preference_of(prompt_of(name, name), response_of(f"a{n}"), response_of(f"b{n}", index=1))
        for n, name in enumerate(("one", "one", "two"))
    ]
    scores = [(2.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    lengths = [(4, 1), (2, 3), (7, 7)]
    found = held_out.examine(preferences, scores, lengths, seed=1)
    assert (found.prompts, found.pairs) == (2, 3)
    assert found.accuracy == pytest.approx(0.5)
    assert found.longer_wins == pytest.approx(0.5)
    p = [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1)), 0.5]
    assert found.brier == pytest.approx(np.mean([(each - 0.9) ** 2 for each in p]))
    # Bins of the likelier answer: 0.88 with truth 0.9, 0.73 with truth 0.1, 0.5 with truth 0.9; each has its own.
    assert found.ece == pytest.approx((abs(p[0] - 0.9) + abs(1 - p[1] - 0.1) + 0.4) / 3)
    # Two pairs have different scores, so that 0.9 is drawn towards one half by 2 / 4, to 0.7. T is where the slope of
    # the likelihood, 2 (sigmoid(2 / T) - 0.7) - (sigmoid(-1 / T) - 0.7), is nought: found on a grid.
    grid = np.linspace(0.5, 100, 1_000_000)
    slope = 2 / (1 + np.exp(-2 / grid)) - 1 / (1 + np.exp(1 / grid)) - 0.7
    assert found.temperature == pytest.approx(grid[np.abs(slope).argmin()], rel=1e-3)
    # Of two prompts a quarter of all resamples has the undecided one alone, which fits any temperature.
    assert found.temperature_high == agreement.HOTTEST
    flat = np.ravel(scores), np.ravel(lengths)
    assert found.pearson == pytest.approx(stats.pearsonr(*flat)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(*flat)[0])


def test_an_answer_in_several_pairs_counts_once_in_the_correlation_with_length() -> None:
    best, middle, worst = (response_of(text, index=index) for index, text in enumerate("abc"))
    prompt = prompt_of("Why?")
    preferences = [preference_of(prompt, *each) for each in ((best, middle), (best, worst), (middle, worst))]
    scores, lengths = [(3.0, 1.0), (3.0, 0.0), (1.0, 0.0)], [(5, 2), (5, 6), (2, 6)]
    found = held_out.examine(preferences, scores, lengths, seed=1)
    assert found.pearson == pytest.approx(stats.pearsonr([3, 1, 0], [5, 2, 6])[0])


def test_a_constant_score_has_no_correlation() -> None:
    found = held_out.examine(preferences_of(3), [(0.0, 0.0)] * 3, [(1, 2), (3, 4), (5, 6)], seed=1)
    assert (found.accuracy, found.pearson, found.spearman) == (0.5, None, None)


def test_calibration_is_zero_for_one_that_says_what_the_judge_says() -> None:
    p = np.array([0.1, 0.35, 0.5, 0.72, 0.99])
    assert held_out.calibration_error(p, p) == pytest.approx(0.0)
    assert held_out.calibration_error(1 - p, 1 - p) == pytest.approx(0.0)
    # Always sure and right in three of four: a quarter.
    assert held_out.calibration_error(np.ones(4), np.array([1, 1, 1, 0])) == pytest.approx(0.25)


# ---- the same score by another way


def with_adapter(model: Any) -> Any:
    """A policy in training: an adapter on every linear layer, with random weights on both sides."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM", init_lora_weights=False)
        return get_peft_model(model, lora)


@pytest.fixture(scope="module")
def padded_with_end(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """The tiny model with a tokenizer that pads with the end of turn, as the built-in model's does."""
    from tiny import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("pad_is_end")
    make_model(folder)
    make_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ModelConfig(base=str(folder), quantization="none", dtype="fp32")


@pytest.mark.parametrize("pads_with_end", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_adapter_of_the_causal_base_scores_as_the_classifier_does(
    pads_with_end: bool, quantization: Any, tiny: ModelConfig, padded_with_end: ModelConfig, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from pipeline.models import load_model, load_tokenizer, path_of
    from pipeline.models import quantization as quantized

    base = (padded_with_end if pads_with_end else tiny).model_copy(update={"quantization": quantization})
    trained(tmp_path, config(base, quantization))
    head = scoring.load_reward(tmp_path / "out")
    tokenizer = load_tokenizer(base)
    assert (tokenizer.pad_token_id == END) == pads_with_end
    prompts = [prompt_of(f"What is {number}?") for number in range(6)]
    answers = [response_of("Fine" * number, finished=number % 2 == 0) for number in range(1, 7)]

    policy = with_adapter(load_model(base, training=True))
    before = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    shared = scoring.SharedReward(head, policy, tokenizer)
    after = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    found = shared.score(prompts, answers)
    assert policy.active_adapter == "default"
    assert {name: value for name, value in after.items() if name in before} == before
    assert not any(value for name, value in after.items() if name not in before)
    assert {name: parameter.requires_grad for name, parameter in policy.named_parameters()} == after

    # transformers' and PEFT's own classifier, one text at a time and so without padding.
    config_ = quantized(base)
    if config_ is not None:
        config_.llm_int8_skip_modules = ["score"]
    classifier = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(
            path_of(base), num_labels=1, quantization_config=config_, dtype=torch.float32
        ),
        tmp_path / "out",
    ).eval()
    classifier.config.pad_token_id = head.pad_id
    for module in classifier.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes repacks weights there, and cannot do these
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        turns = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer.text}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
        ids = tokenizer(text if answer.finished else text.removesuffix("<|im_end|>"))["input_ids"]
        assert (ids[-1] == END) == answer.finished
        with torch.no_grad():
            expected.append(classifier(input_ids=torch.tensor([ids])).logits.item())
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 0.1
    separate = scoring.SeparateReward(head).score(prompts, answers)
    assert separate == pytest.approx(expected, abs=1e-4)


def test_neither_the_batch_nor_its_order_changes_a_score(once: Any, tiny: ModelConfig, tiny_tokenizer: Any) -> None:
    from pipeline.models import load_model

    policy = with_adapter(load_model(tiny))
    reward = scoring.SharedReward(scoring.load_reward(once("none")[0] / "out"), policy, tiny_tokenizer)
    assert reward.trees
    rows = [[5] * length for length in (*range(1, 20), 200)]
    with inputs_read(policy) as counted:
        together = reward.score_ids(rows)
    # Rows that begin alike are read as far as the longest of them, sixteen at a time.
    assert counted == [16, 200]
    reward.trees = False
    assert together == pytest.approx(reward.score_ids(rows), abs=1e-5)
    reward.trees = True
    assert together == pytest.approx([reward.score_ids([row])[0] for row in rows], abs=1e-5)
    assert reward.score_ids(rows[::-1]) == pytest.approx(together[::-1], abs=1e-5)


def test_a_policy_in_training_is_scored_without_dropout_and_goes_on_with_it(
    once: Any, tiny: ModelConfig, tiny_tokenizer: Any
) -> None:
    from pipeline.models import load_model

    policy = with_adapter(load_model(tiny))
    for layer in policy.get_base_model().model.layers:
        layer.self_attn.attention_dropout = 0.5
    reward = scoring.SharedReward(scoring.load_reward(once("none")[0] / "out"), policy.train(), tiny_tokenizer)
    rows = [[5, 6, 7, 8], [5, 6, 9], [10, 11]]
    found = [reward.score_ids(rows) for _ in range(2)]
    assert policy.training and reward.trees
    assert (
        found[0]
        == found[1]
        == pytest.approx(
            scoring.SharedReward(reward.head, with_adapter(load_model(tiny)), tiny_tokenizer).score_ids(rows), abs=1e-6
        )
    )


def test_the_policy_computes_as_before_once_a_reward_is_on_it(
    once: Any, tiny: ModelConfig, tiny_tokenizer: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    from pipeline.models import load_model

    lora = LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    policy = get_peft_model(load_model(tiny), lora)
    ids = torch.tensor([[1, 50, 60, 70]])
    with torch.no_grad():
        before = policy(ids).logits
        reward = scoring.SharedReward(scoring.load_reward(once("none")[0] / "out"), policy, tiny_tokenizer)
        reward.score_ids([[5, 6, 7]])
        assert torch.equal(policy(ids).logits, before)


# ---- an encoder


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A random BERT of two layers that reads the tiny model's tokens."""
    import shutil

    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("encoder")
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    settings["model_max_length"] = 64
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = BertConfig(vocab_size=300, max_position_embeddings=64, pad_token_id=0, initializer_range=0.2, **sizes)
        BertForMaskedLM(whole).save_pretrained(folder)
    return ModelConfig(base=str(folder), quantization="none", dtype="fp32")


def test_an_encoder_is_a_reward_model_of_its_own(tiny: ModelConfig, encoder: ModelConfig, tmp_path: Path) -> None:
    training = config(tiny, base=encoder.model_dump(), max_steps=40, save_steps=40)
    files = trained(tmp_path, training)
    found = facts(files)
    assert (found["shared"], found["pool"], found["model"]["base"]) == (False, "own", encoder.base)
    assert lines(files)[-1]["loss"] < 0.5 < lines(files)[0]["loss"]
    assert json.dumps(encoder.base) in files["README.md"].decode()
    reward = scoring.SeparateReward(scoring.load_reward(tmp_path / "out"))
    better, worse = reward.score(
        [prompt_of("What is 3 plus 3?")] * 2, [response_of("It is 6."), response_of("No idea at all")]
    )
    assert better is not None and worse is not None
    assert better > worse


@pytest.mark.parametrize("quantization", KINDS[1:])
def test_an_encoder_that_was_saved_without_a_pooler_is_trained_on_a_quantised_base_with_its_pooler_in_full(
    quantization: Any, tiny: ModelConfig, encoder: ModelConfig, tmp_path: Path
) -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from safetensors.torch import load

    base = encoder.model_copy(update={"quantization": quantization})
    modules = dict(load_scorer(base, seed=0, training=True).named_modules())
    quantised = {name for name, module in modules.items() if isinstance(module, Linear4bit | Linear8bitLt)}
    assert len(quantised) == 2 * 6  # two layers of four projections and two of the feed-forward part
    assert not {name for name in quantised if "pooler" in name or "classifier" in name}
    files = trained(tmp_path, config(tiny, base=base.model_dump()))
    assert lines(files)[-1]["loss"] < lines(files)[0]["loss"]
    assert load(files["adapter_model.safetensors"])["base_model.model.bert.pooler.dense.weight"].shape == (32, 32)


def judged_again(folder: Path, preferences: list[Preference]) -> list[Verdict]:
    """What the judge `reward_model` says of pairs from the folder of a train step; `a` is the answer preferred."""
    from judges.base import Session
    from judges.reward_model import Config as JudgeConfig

    pairs = [Pair(id=each.pair_id, prompt=each.prompt, a=each.chosen, b=each.rejected) for each in preferences]
    return JudgeConfig(adapter=folder).build(Session()).judge(pairs)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_that_is_loaded_again_judges_as_it_did_when_it_was_trained_and_at_its_temperature(
    kind: str, tiny: ModelConfig, tmp_path: Path
) -> None:
    # Its pooler, or its head, is in no file of the base: drawn anew with each loading, it would give other scores.
    make_architecture(tmp_path / "base", kind)
    base = ModelConfig(base=str(tmp_path / "base"), quantization="none", dtype="fp32")
    training = config(tiny, base=base.model_dump(), max_steps=20, save_steps=20)
    preferences = preferences_of(24)
    found = facts(trained(tmp_path, training, preferences))
    exam = found["held_out"]
    _, kept = held_out.split(preferences, 0.2, training.seed)
    verdicts = judged_again(tmp_path / "out", kept)
    differences = np.array([said.evidence["score_a"] - said.evidence["score_b"] for said in verdicts])
    p = 1 / (1 + np.exp(-differences))
    assert np.mean((p - 0.9) ** 2) == pytest.approx(exam["brier"], abs=1e-4)
    assert np.abs(differences).min() > 1e-3
    # By default it is as sure as its scores on the held-out pairs warrant.
    assert exam["temperature_low"] <= exam["temperature"] <= exam["temperature_high"]
    assert exam["temperature"] != 1.0
    wanted = 1 / (1 + np.exp(-differences / exam["temperature"]))
    assert [said.p_a for said in verdicts] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert {said.evidence["temperature"] for said in verdicts} == {exam["temperature"]}


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_reads_as_many_tokens_as_it_has_places_for(kind: str, tiny: ModelConfig, tmp_path: Path) -> None:
    # 96, though the tokenizer says nothing and max_length is 1024: the next token would break it.
    make_architecture(tmp_path / "base", kind)
    base = ModelConfig(base=str(tmp_path / "base"), quantization="none", dtype="fp32")
    long = [
        preference_of(prompt_of(f"{number} " * 60), response_of("yes " * 60), response_of("no", index=1))
        for number in range(4)
    ]
    assert facts(trained(tmp_path, config(tiny, base=base.model_dump(), max_steps=1), long))["max_length"] == 96
    assert {said.abstained for said in judged_again(tmp_path / "out", long)} == {"truncated"}


def too_long(prompts: int) -> list[Preference]:
    """Every second prompt fills 64 tokens by itself; of the others the better answer ends beyond them."""
    return [
        preference_of(
            prompt_of(f"{n}" + " long" * (20 * (n % 2))), response_of("Yes " * 20), response_of("No", index=1)
        )
        for n in range(prompts)
    ]


def test_pairs_that_are_the_same_within_max_length_are_left_out_and_told(tiny: ModelConfig, tmp_path: Path) -> None:
    files = trained(tmp_path, config(tiny, max_length=64, max_steps=2), too_long(8))
    summary = json.loads(files["summary.json"])
    assert summary["preferences"] == 4
    assert facts(files)["held_out"]["pairs"] + summary["examples"] == 4
    assert summary["alarms"] == [
        "4 of 8 pairs have answers that are the same within max_length (64 tokens): left out.",
        # Eight of the long prompts, and the four long answers to short ones.
        "12 of 16 answers do not fit into max_length (64 tokens): cut there.",
    ]


def test_prompts_that_all_fill_max_length_are_an_error_that_names_it(tiny: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"8 of 8 pairs .* max_length \(8 tokens\); raise max_length"):
        trained(tmp_path, config(tiny, max_length=8), too_long(8))


def test_an_encoder_counts_the_answers_that_it_cuts(tiny: ModelConfig, encoder: ModelConfig, tmp_path: Path) -> None:
    long = [preference_of(prompt_of(f"{n}?"), response_of("yes " * 60), response_of("no", index=1)) for n in range(4)]
    options = {"base": encoder.model_dump(), "max_length": 32, "max_steps": 1}
    summary = json.loads(trained(tmp_path, config(tiny, **options), long)["summary.json"])
    assert summary["alarms"] == ["4 of 8 answers do not fit into max_length (32 tokens): cut there."]


# ---- the same bytes


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_two_trainings_leave_the_same_bytes(quantization: str, once: Any, tiny: ModelConfig, tmp_path: Path) -> None:
    assert trained(tmp_path, config(tiny, quantization)) == once(quantization)[1]


def test_another_seed_leaves_another_adapter(once: Any, tiny: ModelConfig, tmp_path: Path) -> None:
    other = trained(tmp_path, config(tiny).model_copy(update={"seed": 4}))
    assert other["adapter_model.safetensors"] != once("none")[1]["adapter_model.safetensors"]


def test_all_scores_are_equal_before_training_and_every_pair_costs_what_a_toss_does(once: Any) -> None:
    first = lines(once("none")[1])[0]
    assert (first["mean_reward"], first["margin"]) == (0.0, 0.0)
    # -0.9 ln 0.5 - 0.1 ln 0.5
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("last", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_a_resumed_training_leaves_the_bytes_of_an_uninterrupted_one(
    last: int, quantization: str, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    seal = store.seal

    def keep(folder: Path, manifest: dict[str, Any]) -> None:
        seal(folder, manifest)
        shutil.copytree(folder, tmp_path / "kept" / folder.name)

    with monkeypatch.context() as patched:
        patched.setattr(store, "seal", keep)
        expected = trained(tmp_path / "whole", config(tiny, quantization))
    killed = tmp_path / "killed"
    checkpoint = killed / "work" / "checkpoints" / f"checkpoint-{last}"
    shutil.copytree(tmp_path / "kept" / checkpoint.name, checkpoint)
    started = (checkpoint / "optimizer.pt").stat().st_mtime_ns
    assert trained(killed, config(tiny, quantization)) == expected
    # The two newest stay, so that an early one is gone by now; a late one was not written again.
    assert not checkpoint.exists() or (checkpoint / "optimizer.pt").stat().st_mtime_ns == started
