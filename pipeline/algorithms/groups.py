"""What RLOO and GRPO share: several answers to each prompt, rewarded, and compared with one another.

The mean of a prompt's other answers takes the place of PPO's critic. Both run on TRL's trainers. What is left out: the
losses (TRL's), where rewards come from (`rewards.py`), and how an adapter is gone on with (`policy.py`).
"""

import math
import random
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from judges.base import Scorer
from pipeline.algorithms import checkpoints, policy, rewards
from pipeline.algorithms.base import AlgorithmConfig, Need, Setting, TrainRun
from pipeline.algorithms.rewards import RewardConfig
from pipeline.errors import TrainingError
from pipeline.launch import LaunchConfig
from pipeline.models import chat_ids
from pipeline.records import Message, Prompt, Response, seed_of

if TYPE_CHECKING:
    from transformers import Trainer


class GroupConfig(AlgorithmConfig):
    """Base of the Configs of both, by TRL's names."""

    READS: ClassVar[tuple[str, ...]] = ("generate",)

    reward: RewardConfig = RewardConfig(step="reward_model")
    """What answers are rewarded by."""
    start_from: str | None = None
    """An earlier train step whose adapter this one goes on with, and is held to. None: the base."""
    num_generations: int = Field(default=4, ge=2)
    """Answers to each prompt that are compared with one another."""
    max_completion_length: int = Field(default=256, ge=1)
    """Tokens of an answer; a longer one is cut there."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of the log-probabilities that are trained."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """A probability ratio outside 1 +- epsilon earns nothing more."""
    num_iterations: int = Field(default=1, ge=1)
    """Times that each batch of answers is learned from before new ones are drawn."""
    steps_per_generation: int | None = Field(default=None, ge=1)
    """Forward passes over which one batch of answers is spread. None: those of one update."""
    mask_truncated_completions: bool = False
    """Learn nothing from answers that were cut."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Answers a forward pass."""
    max_length: int = Field(default=1024, ge=2)
    """Tokens of prompt and answer together; prompts that leave no room for a whole answer are left out."""

    @model_validator(mode="after")
    def _batches_hold_whole_groups(self) -> Self:
        answers = self.per_device_train_batch_size * self.passes
        if answers % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size times steps_per_generation is {answers}, which does not hold whole "
                f"groups of num_generations={self.num_generations} answers; change one of them"
            )
        if self.passes % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation={self.passes} is no multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: an update would see two batches"
            )
        return self

    @model_validator(mode="after")
    def _checkpoints_are_between_batches(self) -> Self:
        # TRL keeps the answers in memory only. A run that went on from between two updates on one batch would draw new
        # ones, and end as another policy.
        updates = self.num_iterations * self.passes // self.gradient_accumulation_steps
        if self.save_steps % updates:
            next_one = -(-self.save_steps // updates) * updates
            raise ValueError(
                f"save_steps={self.save_steps} is no multiple of the {updates} updates on each batch of answers, so a "
                f"run that was killed could not go on as if nothing had happened; take {next_one}"
            )
        return self

    @property
    def passes(self) -> int:
        """Forward passes over one batch of answers."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    def needs(self) -> tuple[Need, ...]:
        """The reward model's step, if that is the reward, and the step that it starts from."""
        start = () if self.start_from is None else (Need("start_from", self.start_from, "policy", adapter=True),)
        return (*self.reward.needs("reward"), *start)

    def refusals(self, launch: LaunchConfig) -> list[str]:
        """See `AlgorithmConfig.refusals`."""
        if launch.world == 1 and not launch.zero:
            return []
        return [f"{self.name} runs in one process without DeepSpeed; give this step launch: here, or use ppo"]

    def train(self, run: TrainRun) -> None:
        """See `AlgorithmConfig.train`."""
        from pipeline.sampling.local import end_tokens

        rewards.check(self.reward, run)
        prompts = run.prompts()
        setting = run.setting(self.start_from)
        rewarded = Rewarded(prompts, end_tokens(setting.model, setting.tokenizer))
        rows = self.fitting(prompts, setting.tokenizer)
        trainer: Any = self.group_trainer(self.in_order(rows, run.seed), setting, rewarded)
        started = self.started(trainer)
        rewarded.scorer = rewards.build(self.reward, run, trainer.model, setting.tokenizer)
        checkpoints.save_only_the_policy(trainer.model)
        metrics = checkpoints.fit(trainer, run.checkpoints)
        summary = {"prompts": len(prompts), "examples": len(rows), "updates": trainer.state.global_step, **started}
        run.publish(self, trainer.model, metrics, summary, start=setting.start)

    def started(self, trainer: Any) -> dict[str, Any]:
        """See `AlgorithmConfig.started`: how far the policy is from its reference, if it is held to one.

        There are no answers yet: the prompts' own tokens are compared, each given those before it.
        """
        if not trainer.beta:
            return {}
        rows = trainer.train_dataset.select(range(min(policy.CHECKED, len(trainer.train_dataset))))
        encode = partial(chat_ids, trainer.processing_class)
        prompts = [encode([Message(**turn) for turn in turns]) for turns in rows["prompt"]]
        return {"start_gap": policy.start_gap(trainer, [ids[:1] for ids in prompts], [ids[1:] for ids in prompts])}

    def fitting(self, prompts: Sequence[Prompt], tokenizer: Any) -> list[dict[str, Any]]:
        """The prompts that leave room for an answer, as TRL's prompt-only format with their ids.

        Raises:
            TrainingError: there is none.
        """
        room = self.max_length - self.max_completion_length
        rows = [
            {"prompt": [message.model_dump() for message in prompt.messages], "prompt_id": prompt.id}
            for prompt in prompts
            if len(chat_ids(tokenizer, prompt.messages)) <= room
        ]
        if not rows:
            raise TrainingError(
                f"no prompt fits into max_length={self.max_length} with an answer of "
                f"max_completion_length={self.max_completion_length} tokens; change one of them"
            )
        return rows

    def in_order(self, rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        """The rows of all batches, one after the other, each pass over them in another order.

        TRL shuffles anew from where its generator stands, which after a kill is the beginning: a run that went on in
        its second epoch would see the prompts in another order.
        """
        groups = self.per_device_train_batch_size * self.passes // self.num_generations
        batches = math.ceil(self.num_train_epochs * len(rows) / groups)
        if self.max_steps > 0:
            batches = math.ceil(self.max_steps * self.gradient_accumulation_steps / (self.num_iterations * self.passes))
        epochs = math.ceil(batches * groups / len(rows))
        ordered = [
            row
            for epoch in range(epochs)
            for row in random.Random(seed_of(seed, "prompts", epoch)).sample(list(rows), len(rows))
        ]
        return ordered[: batches * groups]

    def group_trainer(self, rows: Sequence[dict[str, Any]], setting: Setting, reward: "Rewarded") -> "Trainer":
        """TRL's trainer on the rows in their order, rewarded by `reward`."""
        from datasets import Dataset

        kind, arguments = self.of_trl(setting)
        trainer: Trainer = kind(
            **policy.adapted(self, setting),
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=setting.tokenizer,
        )
        if setting.start:
            policy.reload(trainer.model, setting.start)
        return trainer

    def of_trl(self, setting: Setting) -> tuple[Any, Any]:
        """TRL's class of trainer and its arguments."""
        raise NotImplementedError

    def group_arguments(self, setting: Setting) -> dict[str, Any]:
        """The options that both trainers know, as keyword arguments of their TrainingArguments."""
        arguments = setting.arguments(self)
        del arguments["max_length"]
        return {
            **arguments,
            "num_generations": self.num_generations,
            "max_completion_length": self.max_completion_length,
            "temperature": self.temperature,
            "epsilon": self.epsilon,
            "num_iterations": self.num_iterations,
            "steps_per_generation": self.passes,
            "mask_truncated_completions": self.mask_truncated_completions,
            "disable_dropout": True,
            # `in_order` has laid out the epochs.
            "num_train_epochs": 1.0,
            "shuffle_dataset": False,
        }


class Rewarded:
    """A reward as TRL calls it: with conversations and texts, where `judges.base.Scorer` takes records."""

    __name__ = "reward"
    """What TRL's metrics call it."""

    def __init__(self, prompts: Sequence[Prompt], ends: Collection[int]) -> None:
        """Args:
        ends: the tokens that end an answer.
        """
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.ends = ends
        self.scorer: Scorer | None = None

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], prompt_id: Sequence[str], **_: Any
    ) -> list[float | None]:
        """A score for each completion; TRL leaves those with None out of their group."""
        assert self.scorer is not None, "rewards are asked for only once training has begun"
        responses = [
            Response(
                text=turns[-1]["content"],
                source="policy",
                n_tokens=len(ids),
                finished=bool(ids) and ids[-1] in self.ends,
            )
            for turns, ids in zip(completions, completion_ids, strict=True)
        ]
        return self.scorer.score([self.prompts[name] for name in prompt_id], responses)
