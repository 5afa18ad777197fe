"""PPO's loop: exact at its first step, the same however the work is cut, resumed to the bit, stopped with a reason."""

import dataclasses
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_ppo
import torch
from apart import ended, started
from tiny import END, job_of, preferences_of, said
from tiny_ppo import config, prepared, published
from torch import Tensor

from pipeline import store, train
from pipeline.algorithms import ppo_guards, ppo_metrics, ppo_rollout
from pipeline.algorithms.base import TrainRun
from pipeline.algorithms.ppo import Config
from pipeline.algorithms.ppo_guards import GuardConfig
from pipeline.algorithms.ppo_rollout import Episode, Task
from pipeline.algorithms.ppo_trainer import PPOTrainer
from pipeline.algorithms.scoring import SeparateReward, load_reward
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig
from pipeline.records import Pair
from pipeline.train import Training

LEFT = {"adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "summary.json", "README.md"}


def run_of(top: Path, training: Training, **options: Any) -> TrainRun:
    job = prepared(top, training, **options)
    return TrainRun(
        step=job.step,
        seed=training.seed,
        model=training.model,
        inputs=job.inputs,
        work_dir=job.work_dir,
        out=job.out,
    )


def trainer_of(top: Path, training: Training, **options: Any) -> PPOTrainer:
    """Loaded, and nothing trained yet."""
    algorithm = training.algorithm
    assert isinstance(algorithm, Config)
    return algorithm.prepare(run_of(top, training, **options))


def computing_in(dtype: str, training: Training) -> Training:
    return training.model_copy(update={"model": training.model.model_copy(update={"dtype": dtype})})


def shift(trainer: PPOTrainer, by: float) -> None:
    """Let its sampler give each token a log-probability that is less by this."""
    answers = trainer._answers

    def shifted(tasks: Any, seed: int) -> list[Episode]:
        return [
            dataclasses.replace(each, sampled=tuple(logp - by for logp in each.sampled))
            for each in answers(tasks, seed)
        ]

    trainer._answers = shifted  # type: ignore[method-assign]


def trained(top: Path, training: Training, **options: Any) -> dict[str, bytes]:
    job = prepared(top, training, **options)
    train.finish(job)
    return published(job)


def lines(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files["metrics.jsonl"].splitlines()]


@pytest.fixture(scope="module")
def once(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, bytes]]]:
    """A training that nobody interrupted, done when it is first asked for."""
    found: dict[str, tuple[Path, dict[str, bytes]]] = {}

    def of(quantization: str) -> tuple[Path, dict[str, bytes]]:
        if quantization not in found:
            top = tmp_path_factory.mktemp("once")
            found[quantization] = top, trained(top, config(tiny, quantization))
        return found[quantization]

    return of


# ---- what is left


def test_a_training_leaves_an_adapter_a_card_and_a_line_an_update(once: Any) -> None:
    _, files = once("none")
    assert files.keys() == LEFT
    summary = json.loads(files["summary.json"])
    assert (summary["updates"], summary["examples"], summary["prompts"]) == (4, 32, 12)
    assert (summary["prompts_too_long"], summary["prompts_held_out"]) == (0, 0)
    # Rank 4 on all linear layers of two blocks: 4 x (in + out) each.
    assert summary["trainable_parameters"] == 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96)
    metrics = lines(files)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert [line["episodes"] for line in metrics] == [8, 16, 24, 32]
    for line in metrics:
        assert all(math.isfinite(each) for each in line.values() if isinstance(each, int | float))


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(tiny: ModelConfig, tmp_path: Path) -> None:
    training = config(tiny, max_length=54, max_steps=1)
    summary = json.loads(trained(tmp_path, training)["summary.json"])
    assert 0 < summary["prompts_too_long"] < 12
    assert summary["prompts"] + summary["prompts_too_long"] == 12


def test_no_prompt_with_room_is_an_error(tiny: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^train\.ppo: 12 prompts, 12 of them longer"):
        trained(tmp_path, config(tiny, max_length=20))


@pytest.mark.parametrize(("name", "why"), [("wandb", "not installed"), ("wandbb", "none that accelerate knows")])
def test_a_tracker_that_is_not_there_is_told_before_a_model_loads(
    name: str, why: str, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    training = config(tiny.model_copy(update={"base": "nowhere"}), report_to=[name])
    with pytest.raises(TrainingError, match=rf"^train\.ppo: report_to: '{name}' is {why}"):
        trained(tmp_path, training)


# ---- exact at the start


@pytest.mark.parametrize(("quantization", "rounding"), [("none", 1e-4), ("nf4", 0.0)])
def test_the_first_minibatch_has_ratio_one_and_the_first_update_divergence_zero(
    quantization: str, rounding: float, tiny: ModelConfig, tmp_path: Path
) -> None:
    # NF4 computes in bf16 here, and then the log-probabilities before and at the first minibatch are the same bits.
    training = config(tiny, quantization, num_mini_batches=1, num_ppo_epochs=1, max_steps=2)
    first, second = lines(trained(tmp_path, training))
    for line in (first, second):
        found = (line["ratio_min"] - 1, line["ratio_max"] - 1, line["approx_kl"], line["clipped"])
        assert max(map(abs, found)) <= rounding
    assert max(abs(first["kl"]), first["k3_token"]) <= rounding
    assert abs(second["kl"]) > 10 * rounding


@pytest.mark.parametrize("critic", ["shared", "own"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_in_fp32_the_policy_says_while_it_samples_what_a_pass_would_say(
    quantization: str, critic: str, tiny: ModelConfig, tmp_path: Path
) -> None:
    training = computing_in("fp32", config(tiny, quantization, critic=critic, temperature=0.7))
    trainer = trainer_of(tmp_path, training)
    random = torch.Generator().manual_seed(1)
    for part in trainer.trained.values():
        part.flat.data.add_(0.1 * torch.randn(part.flat.shape, generator=random))
    # With many ends answers leave the batch one by one, and rows change their places.
    trainer.eos = frozenset([END, *range(0, 300, 8)])
    with trainer.roles.fixed():
        episodes = trainer._answers(trainer.tasks[:8], seed=5)
        raw_B = trainer.scores(episodes)
        passes = trainer.compare(episodes, raw_B, 0)
        assert trainer._tells(episodes)
        trainer.progress.told = True
        told = trainer.compare(episodes, raw_B, 0)
    assert len({len(each.answer) for each in episodes}) > 2
    mask = told.mask_BT
    assert torch.equal(told.logp_BT, told.sampled_BT)
    assert torch.equal(told.logp_ref_BT, passes.logp_ref_BT)
    for name in ("logp_BT", "entropy_BT", "value_BT"):
        one, other = getattr(told, name)[mask], getattr(passes, name)[mask]
        assert other.std() > 0.01, name
        assert float((one - other).abs().max()) < 1e-5, name


@pytest.mark.parametrize(
    ("kind", "dtype", "exact"), [("llama", "fp32", True), ("llama", "bf16", False), ("mixtral", "fp32", False)]
)
def test_a_policy_whose_samples_may_differ_by_more_than_rounding_tells_nothing(
    kind: str, dtype: str, exact: bool, tiny: ModelConfig, architectures: dict[str, Path], tmp_path: Path
) -> None:
    # In bf16 every number does; a router may choose another expert.
    model = tiny.model_copy(update={"base": str(architectures[kind])})
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    trainer = trainer_of(tmp_path, computing_in(dtype, config(model, lora=lora)))
    episodes = trainer._answers(trainer.tasks[:4], seed=5)
    assert {bool(each.told) for each in episodes} == {exact}
    assert trainer._tells(episodes) is exact


def test_a_policy_that_says_otherwise_in_a_pass_than_it_told_is_asked_in_passes(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, config(tiny, max_steps=1))
    shift(trainer, 2e-4)
    (line,) = trainer.train()
    assert not trainer.progress.told
    assert line["mismatch"] == pytest.approx(2e-4, rel=0.1)


def test_a_policy_that_changes_between_two_passes_is_caught_at_once(tiny: ModelConfig, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, config(tiny))
    logprobs = trainer.roles.logprobs

    def noisy(packed: Any, temperature: float, **options: Any) -> Any:
        logp, entropy, states = logprobs(packed, temperature, **options)
        return logp + 0.01 * torch.rand(logp.shape), entropy, states

    trainer.roles.logprobs = noisy  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"first minibatch of update 1 .* with the same weights"):
        trainer.train()


def test_with_gradient_checkpointing_answers_are_sampled_by_the_policy_that_is_trained(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    # A model in training mode that checkpoints drops its cache: each token would be drawn from the one before it alone.
    trainer = trainer_of(tmp_path, config(tiny, gradient_checkpointing=True))
    with trainer.roles.fixed():
        episodes = trainer._answers(trainer.tasks[:8], seed=5)
        batch = trainer.compare(episodes, trainer.scores(episodes), 0)
    assert float((batch.sampled_BT - batch.logp_BT)[batch.mask_BT].abs().max()) < 1e-3
    assert trainer.roles.base.training, "or nothing would be checkpointed"


# ---- the same however the work is cut


def gradients_of(trainer: PPOTrainer, episodes: list[Episode]) -> list[Tensor]:
    """The gradients of policy and critic on one minibatch of these answers, away from the policy that sampled."""
    batch = trainer.compare(episodes, trainer.scores(episodes), 0)
    trainer.judge_tokens(batch)
    random = torch.Generator().manual_seed(1)
    for part in trainer.trained.values():
        part.flat.data.add_(0.02 * torch.randn(part.flat.shape, generator=random))
    (minibatch,) = trainer._minibatches(episodes, 0, 0)
    trainer._minibatch(batch, minibatch)
    return [part.gradient.clone() for part in trainer.trained.values()]


@pytest.mark.parametrize("critic", ["shared", "own"])
def test_micro_batches_change_no_gradient(critic: str, tiny: ModelConfig, tmp_path: Path) -> None:
    found = []
    for size in (8, 2, 1):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "critic": critic}
        training = config(tiny, num_mini_batches=1, kl_in="loss", ent_coef=0.01, **options)
        trainer = trainer_of(tmp_path / str(size), training)
        found.append(gradients_of(trainer, trainer._answers(trainer.tasks[:8], seed=5)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.norm() > 0
            assert float((one - two).norm() / one.norm()) < 1e-5


def test_a_gradient_in_fp16_is_that_of_fp32_to_rounding(tiny: ModelConfig, tmp_path: Path) -> None:
    # Old GPUs have no bf16.
    found, episodes = [], None
    for dtype in ("fp32", "fp16"):
        training = config(tiny, num_mini_batches=1, per_device_train_batch_size=8)
        trainer = trainer_of(tmp_path / dtype, computing_in(dtype, training))
        episodes = episodes or trainer._answers(trainer.tasks[:8], seed=5)
        found.append(gradients_of(trainer, episodes))
    for exact, rounded in zip(*found, strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 0.05


def test_every_episode_is_learned_from_once_an_epoch() -> None:
    task = Task(tiny_ppo.prompts(1)[0], (1, 2, 3))
    episodes = [Episode(task, (5,) * (1 + n % 4), (0.0,) * (1 + n % 4), True) for n in range(12)]
    one, other = (ppo_rollout.minibatches(episodes, 3, 2, seed) for seed in (1, 2))
    for epoch in (one, other):
        assert [len(minibatch) for minibatch in epoch] == [2, 2, 2]
        assert sorted(index for minibatch in epoch for group in minibatch for index in group) == list(range(12))
        for minibatch in epoch:
            lengths = [len(episodes[index].answer) for group in minibatch for index in group]
            assert lengths == sorted(lengths)
    assert one != other
    assert one == ppo_rollout.minibatches(episodes, 3, 2, 1)


def test_every_prompt_is_answered_once_a_pass_in_another_order() -> None:
    tasks = [Task(prompt, (1,)) for prompt in tiny_ppo.prompts(10)]
    asked = [task.prompt.id for update in range(5) for task in ppo_rollout.take(tasks, 4, update, 7)]
    assert sorted(asked[:10]) == sorted(asked[10:]) == sorted(task.prompt.id for task in tasks)
    assert asked[:10] != asked[10:]


# ---- ends


def test_an_answer_ends_with_its_first_end_token_and_only_with_one_that_it_sampled(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    # Ends stand in every prompt (the template's); with half the vocabulary as ends, answers are short.
    trainer = trainer_of(tmp_path, config(tiny, max_new_tokens=3))
    trainer.eos = frozenset([END, *range(150, 300)])
    episodes = trainer._answers(trainer.tasks, seed=1)
    assert all(END in episode.task.ids for episode in episodes)
    assert {len(episode.answer) for episode in episodes} == {1, 2, 3}
    for episode in episodes:
        assert not trainer.eos.intersection(episode.answer[:-1])
        assert episode.truncated == (episode.answer[-1] not in trainer.eos)
    ended_at_the_limit = [each for each in episodes if len(each.answer) == 3 and not each.truncated]
    assert ended_at_the_limit, "an end in the last place counts as one"
    mask = ppo_rollout.mask_of(episodes)
    assert mask.sum(-1).tolist() == [len(episode.answer) for episode in episodes]


def test_an_answer_that_was_cut_is_penalised_and_scores_are_normalised_and_clipped(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, config(tiny, missing_eos_penalty=0.5, score_clip=2.0))
    trainer.progress.score_mean, trainer.progress.score_deviation = 1.0, 4.0
    task = trainer.tasks[0]
    episodes = [Episode(task, (5,), (0.0,), cut) for cut in (False, True, False, True)]
    found = trainer._normalised(torch.tensor([3.0, 3.0, 100.0, -100.0]), episodes)
    assert found.tolist() == [0.5, 0.0, 2.0, -2.5]


# ---- options that steer


def test_a_training_ends_when_three_updates_have_spent_the_budget_of_divergence(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"learning_rate": 1e-2, "kl_coef": 0.0, "max_steps": 8}
    whole = trained(tmp_path / "whole", config(tiny, **options))
    kl = [line["kl"] for line in lines(whole)]
    means = [sum(kl[place - 3 : place]) / 3 for place in range(3, 9)]
    # The first time that the mean is above that of updates 1 to 3.
    last = 3 + next(place for place, mean in enumerate(means) if mean > means[0])
    budget = means[last - 3] - 1e-9
    spent = trained(tmp_path / "spent", config(tiny, **options, kl_budget=budget))
    assert [line["kl"] for line in lines(spent)] == kl[:last]
    told, before = (json.loads(files["summary.json"]) for files in (spent, whole))
    assert (told["updates"], told["examples"], told["stopped_by"]) == (last, 8 * last, f"kl_budget={budget:g}")
    assert (before["updates"], "stopped_by" in before) == (8, False)


def test_the_adaptive_coefficient_moves_towards_the_target(tiny: ModelConfig, tmp_path: Path) -> None:
    training = config(tiny, target_kl_per_sequence=1e-3, kl_horizon=80, learning_rate=1e-2)
    coefs = [line["kl_coef"] for line in lines(trained(tmp_path, training))]
    # At update 1 the divergence is 0, 20 % under the target; then far above it. 8 of 80 episodes: 2 % an update.
    assert coefs == pytest.approx([0.05, 0.05 * 0.98, 0.05 * 0.98 * 1.02, 0.05 * 0.98 * 1.02**2])


def test_epochs_end_at_the_target_divergence(tiny: ModelConfig, tmp_path: Path) -> None:
    steps = []
    for target in (None, 1e-6):
        training = config(tiny, target_kl=target, num_ppo_epochs=4, max_steps=1)
        steps.append(lines(trained(tmp_path / str(target), training))[0]["steps"])
    assert steps == [8, 1]


def test_while_the_critic_warms_up_the_policy_stays(tiny: ModelConfig, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, config(tiny, critic_warmup_updates=1))
    policy, critic = (trainer.trained[role].flat.data.clone() for role in ("policy", "critic"))
    trainer._begin()
    trainer.update()
    assert torch.equal(trainer.trained["policy"].flat.data, policy)
    assert not torch.equal(trainer.trained["critic"].flat.data, critic)
    trainer.update()
    assert not torch.equal(trainer.trained["policy"].flat.data, policy)


def test_a_sampler_that_computes_otherwise_is_corrected_and_stopped_where_it_is_too_far(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, config(tiny, importance_cap=2.0))
    shift(trainer, math.log(3.0))
    episodes = trainer._answers(trainer.tasks[:8], 1)
    batch = trainer.compare(episodes, trainer.scores(episodes), 0)
    trainer.judge_tokens(batch)
    assert batch.weight_BT is not None
    # pi / pi_sampled is 3 everywhere, and the bound is 2.
    assert batch.weight_BT[batch.mask_BT].tolist() == pytest.approx([2.0] * int(batch.mask_BT.sum()), abs=1e-4)
    with pytest.raises(TrainingError, match=r"stopped at update 1 by the guard max_mismatch: .* 1\.10 nats"):
        trainer.train()


@pytest.mark.parametrize(("quantization", "least", "most"), [("none", 0.0, 0.0), ("nf4", 1e-4, 0.1)])
def test_what_is_between_sampler_and_trainer_is_measured(
    quantization: str, least: float, most: float, once: Any
) -> None:
    # In fp32 the trainer takes the sampler's numbers, in bf16 it computes its own.
    assert all(least <= line["mismatch"] <= most for line in lines(once(quantization)[1]))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"top_p": 0.9}, "samples from the policy as it is"),
        ({"top_k": 50}, "samples from the policy as it is"),
        ({"kl_estimator": "k3"}, "k3 in the reward converges to another policy; use k1"),
        ({"kl_in": "loss", "kl_estimator": "k1"}, "k1 in the loss converges to another policy; use k2"),
        ({"lora": {"lora_dropout": 0.1}}, "lora_dropout"),
        ({"max_length": 100, "max_new_tokens": 100}, "leaves no room"),
        ({"eval_judge": "length"}, "set eval_steps"),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_recipe_is_read(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Config(reward=tiny_ppo.LETTERS, **options)


def test_the_schedule_is_a_function_of_the_update() -> None:
    linear = Config(reward=tiny_ppo.LETTERS, lr_scheduler_type="linear", warmup_steps=0.0)
    assert linear.schedule(4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    both = Config(reward=tiny_ppo.LETTERS, lr_scheduler_type="linear", warmup_steps=2.0)
    assert both.schedule(4) == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])
    warm = Config(reward=tiny_ppo.LETTERS, lr_scheduler_type="constant_with_warmup", warmup_steps=2.0)
    assert warm.schedule(4) == pytest.approx([0.5, 1.0, 1.0, 1.0])


# ---- what stops it


FINE = {"skipped": 0.0, "kl": 5.0, "entropy": 2.0, "length": 40.0, "ended": 0.9, "mismatch": 0.01}
START = {"entropy": 2.5, "length": 40.0}


@pytest.mark.parametrize(
    ("changed", "guard"),
    [
        ({}, None),
        ({"skipped": 0.06}, "max_skipped: 6% of the answers"),
        ({"kl": 61.0}, "max_kl: 61.0 nats"),
        ({"entropy": 0.2}, "min_entropy: 0.200 nats"),
        ({"length": 161.0}, "max_length: 161 tokens"),
        ({"length": 9.0}, "max_length: 9 tokens"),
        ({"ended": 0.1}, "max_truncated: 90% of the answers"),
        ({"mismatch": 1.1}, "max_mismatch: .* 1.10 nats"),
    ],
)
def test_each_guard_says_what_it_found(changed: dict[str, float], guard: str | None) -> None:
    found = ppo_guards.broken(GuardConfig(max_truncated=0.8), {**FINE, **changed}, START)
    if guard is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(guard.split(": ")[0])
        assert guard.rsplit(" .* ", 1)[-1].split(": ")[-1] in found


def test_reward_hacking_is_a_rising_reward_and_a_judge_that_falls_beyond_its_error_for_a_while() -> None:
    def evaluation(step: float, score: float, judge: float) -> dict[str, float]:
        return {"step": step, "score": score, "judge": judge, "judge_error": 0.1}

    first = evaluation(0, 1.0, 3.0)
    bad, unsure, good = evaluation(1, 2.0, 2.0), evaluation(2, 2.0, 2.9), evaluation(3, 2.0, 3.5)
    assert ppo_guards.hacked([first, bad], patience=2) is None
    assert ppo_guards.hacked([first, bad, unsure], patience=2) is None
    assert ppo_guards.hacked([first, bad, good, bad], patience=2) is None
    assert ppo_guards.hacked([first, evaluation(1, 0.5, 2.0), bad], patience=2) is None
    untold, unscored = {"step": 4.0, "score": 2.0}, {"step": 5.0, "judge": 2.0, "judge_error": 0.1}
    found = ppo_guards.hacked([first, good, bad, untold, unscored, bad], patience=2)
    assert found is not None
    assert "reward rose from 1.00 to 2.00 while the judge fell from 3.00 to 2.00" in found


def test_the_judges_fall_is_measured_on_what_it_judged_both_times() -> None:
    # Changes -1, -2, -3 on the three: mean -2, deviation 1, error 1 / sqrt(3).
    found = ppo_metrics.judgement([1.0, 1.0, 1.0, math.nan, 9.0], [2.0, 3.0, 4.0, 5.0, None])
    assert found == {"judge": 1.0, "judge_error": pytest.approx(1 / math.sqrt(3))}
    assert ppo_metrics.judgement([1.0, math.nan], [2.0, 3.0]) == {}


@pytest.mark.parametrize(
    "odd", [{"kl": -1.2}, {"score_length_correlation": -0.9}, {"ended": 0.4}], ids=["negative", "length", "cut"]
)
def test_what_is_odd_three_updates_in_a_row_is_an_alarm(odd: dict[str, float]) -> None:
    calm = {"kl": 0.1, "score_length_correlation": 0.1, "ended": 0.9, "steps_skipped": 0}
    assert ppo_guards.alarms([calm] * 5) == []
    assert ppo_guards.alarms([{**calm, **odd}] * 2) == []
    assert ppo_guards.alarms([{**calm, **odd}, calm, {**calm, **odd}]) == []
    assert len(ppo_guards.alarms([calm, *[{**calm, **odd}] * 3])) == 1


def test_a_step_that_was_skipped_is_an_alarm_at_once() -> None:
    (found,) = ppo_guards.alarms([{**FINE, "steps_skipped": 1}])
    assert "not finite" in found


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(tiny: ModelConfig, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, config(tiny))
    part = trainer.trained["policy"]
    before = part.flat.data.clone()
    part.gradient[5] = math.nan
    assert not math.isfinite(part.step(1e-3, 1.0))
    assert torch.equal(part.flat.data, before)
    assert not part.gradient.any()


def test_a_long_gradient_is_scaled_to_the_norm_that_is_allowed(tiny: ModelConfig, tmp_path: Path) -> None:
    # AdamW's first step is the learning rate's size whatever the gradient's; its moments tell what it was given.
    part = trainer_of(tmp_path, config(tiny)).trained["policy"]
    part.gradient[0] = 30.0
    part.gradient[1] = 40.0
    assert part.step(1e-3, 2.0) == 50.0
    given = part.optimizer.state[part.flat]["exp_avg"] / (1 - 0.9)
    assert given[:3].tolist() == pytest.approx([1.2, 1.6, 0.0], abs=1e-5)


def test_a_reward_that_says_nothing_stops_before_the_first_update(tiny: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="0 of 8 answers of the untrained policy have a score"):
        trained(tmp_path, config(tiny, reward="tiny_ppo:nothing"))


def test_answers_without_a_score_are_left_out_and_too_many_stop_the_training(tiny: ModelConfig, tmp_path: Path) -> None:
    training = config(tiny, reward="tiny_ppo:some")
    with pytest.raises(TrainingError, match=r"stopped at update 1 by the guard max_skipped: 25%"):
        trained(tmp_path / "strict", training)
    lax = config(tiny, reward="tiny_ppo:some", guards={"max_skipped": 0.5}, max_steps=2)
    for line in lines(trained(tmp_path / "lax", lax)):
        assert line["skipped"] == 0.25
        assert math.isfinite(line["policy_loss"])


def test_held_out_prompts_are_judged_and_never_trained_on(tiny: ModelConfig, tmp_path: Path) -> None:
    training = config(tiny, eval_steps=2, eval_prompts=4, eval_judge="length")
    summary = json.loads(trained(tmp_path, training)["summary.json"])
    assert (summary["prompts"], summary["prompts_held_out"]) == (8, 4)
    assert [line["step"] for line in summary["evaluations"]] == [0, 2, 4]
    for line in summary["evaluations"]:
        assert math.isfinite(line["judge"])
    assert summary["evaluations"][0]["judge_error"] == 0


@pytest.mark.parametrize(("held_out", "score", "skipped"), [(4, 3.0, 0.25), (2, None, 1.0)])
def test_a_held_out_answer_without_a_score_is_left_out_of_the_mean_and_counted(
    held_out: int, score: float | None, skipped: float, tiny: ModelConfig, tmp_path: Path
) -> None:
    guards = {"max_skipped": 0.5}
    training = config(
        tiny, reward="tiny_ppo:by_turns", guards=guards, eval_steps=1, eval_prompts=held_out, eval_judge="length",
        max_steps=2,
    )  # fmt: skip
    found = json.loads(trained(tmp_path, training)["summary.json"])["evaluations"]
    assert [line.get("score") for line in found] == [score] * 3
    assert [line["skipped"] for line in found] == [skipped] * 3


# ---- a reward model


@pytest.fixture(scope="module")
def reward_model(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the step before leaves, on 24 preferences."""
    top = tmp_path_factory.mktemp("reward_model")
    pairs = [Pair.of(each.prompt, each.chosen, each.rejected) for each in preferences_of(24)]
    store.make_dirs(top / "generate")
    store.make_dirs(top / "label")
    store.write_jsonl(top / "generate" / "pairs.jsonl", pairs)
    store.write_jsonl(top / "label" / "verdicts.jsonl", [said(pair, 0.9) for pair in pairs])
    store.write_jsonl(top / "label" / "preferences.jsonl", preferences_of(12))
    options = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    training = Training(seed=3, model=tiny, algorithm={"name": "reward_model", **options})  # type: ignore[arg-type]
    inputs = {name: top / name for name in ("generate", "label")}
    job = job_of(top, training, step="train.reward_model", inputs=inputs)
    train.finish(job)
    return job.out


@pytest.mark.parametrize("critic", ["shared", "own"])
def test_a_reward_model_of_the_same_base_scores_as_a_role(
    critic: str, reward_model: Path, tiny: ModelConfig, tmp_path: Path
) -> None:
    training = config(tiny, reward={"step": "reward_model", "min_accuracy": 0}, critic=critic)
    inputs = {"train.reward_model": reward_model}
    trainer = trainer_of(tmp_path / "parts", training, inputs=inputs)
    assert trainer.reward is None
    episodes = []
    for task, text in zip(trainer.tasks, ("It is 2.", "No idea at all", "Sure"), strict=False):
        ids = trainer.tokenizer(text, add_special_tokens=False)["input_ids"]
        episodes.append(Episode(task, (*ids, END), (0.0,) * (len(ids) + 1), truncated=False))
    scored = SeparateReward(load_reward(reward_model)).score(
        [each.task.prompt for each in episodes], [each.response(trainer.tokenizer) for each in episodes]
    )
    assert trainer.scores(episodes).tolist() == pytest.approx(scored, abs=1e-4)
    metrics = lines(trained(tmp_path / "run", training, inputs=inputs))
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert all(line["score_sd"] > 0 for line in metrics)


# ---- the frozen stay as they were


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_training_changes_the_policy_and_the_critic_and_nothing_else(
    quantization: str, tiny: ModelConfig, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, config(tiny, quantization, max_steps=2))
    weights = dict(trainer.roles.model.named_parameters())
    frozen = {name: each.detach().clone() for name, each in weights.items() if not each.requires_grad}
    before = {role: part.flat.data.clone() for role, part in trainer.trained.items()}
    trainer.train()
    assert len(frozen) > 14
    assert all(torch.equal(weights[name], each) for name, each in frozen.items())
    for role, part in trainer.trained.items():
        assert not torch.equal(part.flat.data, before[role]), role


# ---- the same bytes


@pytest.mark.parametrize("quantization", ["none", pytest.param("nf4", marks=pytest.mark.slow)])
def test_two_trainings_leave_the_same_bytes(quantization: str, once: Any, tiny: ModelConfig, tmp_path: Path) -> None:
    assert trained(tmp_path, config(tiny, quantization)) == once(quantization)[1]


RESUMED = {
    "shared": {},
    "own critic, adaptive": {"critic": "own", "target_kl_per_sequence": 1.0, "kl_horizon": 50},
    "judged": {"eval_steps": 1, "eval_prompts": 4, "eval_judge": "length", "lr_scheduler_type": "cosine"},
}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_a_training_that_goes_on_from_any_checkpoint_leaves_the_same_bytes(
    options: dict[str, Any], tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = store.seal

    def keep(folder: Path, manifest: dict[str, Any]) -> None:
        seal(folder, manifest)
        shutil.copytree(folder, tmp_path / "kept" / folder.name)

    training = config(tiny, **options)
    with monkeypatch.context() as patched:
        patched.setattr(store, "seal", keep)
        expected = trained(tmp_path / "whole", training)
    for number in (1, 2, 3):
        top = tmp_path / str(number)
        name = f"checkpoint-{number}"
        shutil.copytree(tmp_path / "kept" / name, top / "work" / "checkpoints" / name)
        assert trained(top, training) == expected, f"from update {number}"


def test_a_checkpoint_that_was_made_by_another_number_of_processes_is_refused(
    once: Any, tiny: ModelConfig, tmp_path: Path
) -> None:
    shutil.copytree(once("none")[0] / "work", tmp_path / "work")
    checkpoint = tmp_path / "work" / "checkpoints" / "checkpoint-3"
    manifest = store.read_manifest(checkpoint)
    assert manifest is not None
    sealed = {name: manifest[name] for name in ("step", "of", "inexact")}
    store.seal(checkpoint, {**sealed, "made_by": {**manifest["made_by"], "world_size": 2}})
    with pytest.raises(TrainingError, match=r"checkpoint-3: it was made otherwise \(world_size: 2 -> 1\)"):
        trained(tmp_path, config(tiny))


def test_a_checkpoint_is_no_pickle(once: Any) -> None:
    top, _ = once("none")
    files = {path.name for path in (top / "work" / "checkpoints").rglob("*") if path.is_file()}
    assert files == {"trained.safetensors", "progress.json", store.MANIFEST}


@pytest.mark.slow
def test_a_training_that_was_killed_leaves_the_bytes_of_one_that_was_not(tiny: ModelConfig, tmp_path: Path) -> None:
    training = config(tiny, "nf4", max_steps=12)
    whole, killed = (prepared(tmp_path / name, training) for name in ("whole", "killed"))
    assert ended(started(train.finish, whole)) == 0
    for wanted in (2, 5, 9):
        process = started(train.finish, killed)
        manifest = killed.work_dir / "checkpoints" / f"checkpoint-{wanted}" / store.MANIFEST
        deadline = time.monotonic() + 120
        while not manifest.exists() and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        assert not published(killed)
    assert ended(started(train.finish, killed)) == 0
    assert published(killed) == published(whole)


# ---- several processes


def one_of_two(rank: int, port: int, top: Path, training: Training) -> None:
    """A process of a run of two, over gloo."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    trainer = trainer_of(top / str(rank), training)
    metrics = trainer.train()
    flat = {role: part.flat.data for role, part in trainer.trained.items()}
    torch.save({"flat": flat, "metrics": metrics}, top / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tiny: ModelConfig, tmp_path: Path) -> None:
    import socket

    # Eight answers an update, in two minibatches.
    options: dict[str, Any] = {"whiten_rewards": True, "target_kl_per_sequence": 2.0, "max_steps": 3}
    training = config(tiny, per_device_train_batch_size=4, **options)
    one = trainer_of(tmp_path / "one", training)
    expected = one.train()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, args=(port, tmp_path, training), nprocs=2)  # type: ignore[no-untyped-call]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["metrics"] == found[1]["metrics"]
    for role, part in one.trained.items():
        assert torch.equal(found[0]["flat"][role], found[1]["flat"][role])
        assert torch.allclose(found[0]["flat"][role], part.flat.data, atol=1e-3)
        assert float((found[0]["flat"][role] - part.flat.data).norm() / part.flat.data.norm()) < 1e-3
    for line, other in zip(expected, found[0]["metrics"], strict=True):
        for name in ("kl", "score", "policy_loss", "value_loss", "kl_coef", "explained_variance"):
            assert line[name] == pytest.approx(other[name], abs=1e-3), name
