"""The options of PPO, by the names of TRL's last PPOConfig where it had them, and what follows from them.

What is left out: what is done with them (`ppo.py`).
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from judges.base import AnyJudge
from pipeline.algorithms.base import AlgorithmConfig, Need
from pipeline.algorithms.ppo_guards import GuardConfig
from pipeline.algorithms.ppo_server import ServerConfig
from pipeline.algorithms.rewards import RewardConfig
from pipeline.launch import LaunchConfig

ESTIMATOR = {"reward": "k1", "loss": "k2"}
"""The one estimator of the divergence that leads to the right policy, by where it is used. On a bandit with a known
optimum, k3 in the reward ends 0.2 to 0.5 away from it in total variation, and k1 in the loss has no gradient at all."""


class Options(AlgorithmConfig):
    """PPO's options."""

    reward: RewardConfig = RewardConfig(step="reward_model")
    """What scores an answer: a reward-model step, a judge, or a Python function."""
    start_from: str | None = None
    """An earlier train step whose policy this one starts from, and is held to. None: the base."""

    learning_rate: float = Field(default=3e-5, gt=0)
    """Of the policy's adapter: 1e-5 to 3e-5 from a billion parameters on, up to 1e-4 for small models."""
    critic_learning_rate: float | None = Field(default=None, gt=0)
    """Of the critic: its head, and its adapter if it has one. None: ten times `learning_rate`."""
    warmup_steps: float = Field(default=0.03, ge=0)
    """Updates of linear warm-up; below 1 it is the share of all updates."""
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)
    """Decay of AdamW's second moment: shorter than the usual 0.999, because the target moves."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the prompts."""
    max_steps: int = Field(default=-1, ge=-1)
    """Stop after so many updates, each with a batch of fresh answers; -1: no such limit."""
    num_mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps an epoch. Answers an update: this x per_device_train_batch_size x gradient_accumulation_steps."""
    num_ppo_epochs: int = Field(default=4, ge=1)
    """Passes over the answers of an update; 2 are often as good."""
    save_steps: int = Field(default=10, ge=1)
    """Updates between two checkpoints to resume from."""

    max_new_tokens: int = Field(default=128, ge=1)
    """An answer that has not ended by then is cut."""
    rollout_batch_size: int = Field(default=32, ge=1)
    """Answers sampled at once, a process."""
    rollouts: ServerConfig | None = None
    """A vLLM server that samples the answers from the policy's adapter. None: this process does."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of every log-probability: the policy that is trained is the one that samples."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Subtracted from the normalised score of an answer that was cut."""

    normalize_scores: bool = True
    """Subtract the mean of the untrained policy's scores and divide by their deviation, both fixed once."""
    normalize_samples: int = Field(default=256, ge=2)
    """Answers that this mean and deviation are taken from, before the first update."""
    score_clip: float | None = Field(default=5.0, gt=0)
    """Normalised scores are clipped to this size. None: they are not."""
    whiten_rewards: bool = False
    """Scale the rewards of a batch to deviation 1; their mean stays."""

    kl_in: Literal["reward", "loss"] = "reward"
    """Where the divergence from the reference is charged: in each token's reward, or as a term of the loss."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """k1 in the reward, k2 in the loss; no other combination has the right optimum. None: the right one."""
    kl_coef: float = Field(default=0.05, ge=0)
    """Price of a nat of divergence, in deviations of the score."""
    target_kl_per_sequence: float | None = Field(default=None, gt=0)
    """Adapt `kl_coef` to keep this divergence of a whole answer, in nats (Ziegler et al. 2019: 6). None: fixed."""
    kl_budget: float | None = Field(default=None, gt=0)
    """End the training once the answers of three updates are on average this far from the reference, in nats: what a
    policy gains is a matter of its divergence (Gao et al. 2022, arXiv:2210.10760). None: all updates are made."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Answers over which the adaptive coefficient reacts."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda: 1 trusts the sampled outcome alone, 0 the critic alone."""
    cliprange: float = Field(default=0.2, gt=0, lt=1)
    """The ratio of new to old policy counts up to 1 +- this."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound on the loss of a bad token, in multiples of its advantage (Ye et al. 2019: 3). None: unbounded."""
    target_kl: float | None = Field(default=None, gt=0)
    """End the epochs of an update when a minibatch is this far from the sampling policy, in nats a token."""
    ent_coef: float = Field(default=0.0, ge=0)
    """Bonus a nat of entropy a token."""
    importance_cap: float | None = Field(default=None, ge=1)
    """Weigh tokens by the ratio of the trainer's to the sampler's probability, at most this. None: 2 where a server
    samples, and no correction where both are this program. Their gap is the metric `mismatch`, 0 where the trainer
    takes what the sampler computed: in fp32 on a processor, where they differ by rounding alone."""

    critic: Literal["shared", "own"] = "shared"
    """shared: a value head on the policy's hidden states, half the time of a critic with an adapter of its `own`, which
    starts from the reward model if that is on the same base."""
    critic_warmup_updates: int = Field(default=0, ge=0)
    """First updates in which only the critic learns."""
    vf_coef: float = Field(default=0.1, gt=0)
    """Weight of the critic's loss."""
    cliprange_value: float | None = Field(default=0.2, gt=0)
    """The critic's step in a batch is clipped to this, in deviations of the score. None: it is not."""

    eval_steps: int = Field(default=0, ge=0)
    """Updates between two evaluations on held-out prompts; 0: there are none."""
    eval_prompts: int = Field(default=32, ge=2)
    """Prompts that are held out of training for this."""
    eval_judge: AnyJudge | None = None
    """Another judge than the reward, asked at each evaluation: if it falls while the reward rises, training stops."""
    guards: GuardConfig = GuardConfig()
    """What stops the training."""

    @model_validator(mode="before")
    @classmethod
    def _samples_from_the_policy(cls, value: Any) -> Any:
        for name in ("top_p", "top_k", "repetition_penalty"):
            if isinstance(value, dict) and name in value:
                raise ValueError(
                    f"{name}: PPO samples from the policy as it is; with {name} the answers come from another "
                    "distribution than the one that is trained, and the divergence turns negative. Take it out"
                )
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        right = ESTIMATOR[self.kl_in]
        if self.kl_estimator not in (None, right):
            raise ValueError(
                f"kl_estimator: {self.kl_estimator} in the {self.kl_in} converges to another policy; use {right} there"
            )
        if self.lora.use_dora:
            raise ValueError(
                "lora.use_dora: PPO computes its adapters in fewer passes than a DoRA has; set it to false"
            )
        if self.max_length <= self.max_new_tokens:
            raise ValueError(f"max_length: {self.max_length} leaves no room for a prompt beside max_new_tokens")
        if self.eval_judge is not None and not self.eval_steps:
            raise ValueError("eval_judge: it is asked every eval_steps updates; set eval_steps")
        return self

    def needs(self) -> tuple[Need, ...]:
        """The reward model, and the step that it starts from."""
        start = () if self.start_from is None else (Need("start_from", self.start_from, "policy", adapter=True),)
        return (*self.reward.needs("reward"), *start)

    def refusals(self, launch: LaunchConfig) -> list[str]:
        """See `AlgorithmConfig.refusals`. Any number of processes can share PPO's answers."""
        found = []
        if launch.zero:
            found.append(
                f"launch.zero={launch.zero}: PPO trains adapters on a frozen base that every process holds whole, for "
                "it acts as four models in turn and samples; DeepSpeed would divide nothing but the adapters' small "
                "state. Give this step a launch of its own without zero"
            )
        if self.rollouts and launch.world > 1 and self.rollouts.outage_s >= launch.timeout_s:
            found.append(
                f"rollouts.outage_s={self.rollouts.outage_s:g}: while one process asks a server that does not reply, "
                f"the others wait for launch.timeout_s={launch.timeout_s:g} and would end the step first; set "
                "launch.timeout_s higher"
            )
        return found

    # ---- what follows from the options

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's."""
        return (0.9, self.adam_beta2)

    @property
    def cap(self) -> float | None:
        """Of the importance weights; None: there are none."""
        return 2.0 if self.importance_cap is None and self.rollouts is not None else self.importance_cap

    @property
    def critic_rate(self) -> float:
        """The critic's learning rate."""
        return self.critic_learning_rate or 10 * self.learning_rate

    @property
    def episodes(self) -> int:
        """Answers an update, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    def updates(self, prompts: int, episodes: int) -> int:
        """How many there are."""
        return self.max_steps if self.max_steps > 0 else max(1, round(self.num_train_epochs * prompts / episodes))

    def schedule(self, updates: int) -> list[float]:
        """The factor of the learning rate at each update."""
        import torch
        from transformers import get_scheduler

        warmup = round(self.warmup_steps * updates if self.warmup_steps < 1 else self.warmup_steps)
        # A warm-up would begin, and a decay end, with an update at a rate of zero: with one the count starts at 1.
        first = 1 if warmup else 0
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = get_scheduler(self.lr_scheduler_type, optimizer, warmup, updates + first)
        factors = []
        for _ in range(updates + first):
            factors.append(float(scheduler.get_last_lr()[0]))
            optimizer.step()
            scheduler.step()
        return factors[first:]
