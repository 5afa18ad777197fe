"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300), by TRL's GRPOTrainer.

An answer's advantage is its reward in deviations from the mean of its prompt's answers (section 4.1.2), the same for
each of its tokens. No critic; the divergence from the reference, if any, is in the loss.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.algorithms.base import Setting
from pipeline.algorithms.groups import GroupConfig

Loss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo"]
"""The names that TRL 1.16 knows."""

UNCLIPPED = ("cispo", "sapo", "vespo")
"""Those that bound a token's weight otherwise than by 1 +- epsilon."""


class Config(GroupConfig):
    """GRPO's options, by TRL's names."""

    name: Literal["grpo"] = "grpo"
    beta: float = Field(default=0.04, ge=0)
    """Weight of the divergence from the reference in the loss, in nats a token; the paper's."""
    loss_type: Loss = "dapo"
    """How tokens are averaged. `grpo` is the paper's mean of means, which favours short right answers."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide by the deviation of a prompt's rewards (the paper's), of the whole batch's, or not at all."""

    epsilon_high: float | None = Field(default=None, gt=0)
    """The upper bound of a ratio is 1 + epsilon_high, if it is another than 1 + epsilon (DAPO's clip-higher, Yu et al.
    2025, arXiv:2503.14476: 0.28). Of cispo the most that a token weighs, by itself; None: 5, as TRL recommends."""

    @model_validator(mode="after")
    def _clips_as_it_says(self) -> Self:
        usual = type(self).model_fields["epsilon"].default
        if self.loss_type in UNCLIPPED and self.epsilon != usual:
            raise ValueError(f"epsilon={self.epsilon:g} is not read by loss_type={self.loss_type}; leave it out")
        if self.loss_type in ("sapo", "vespo") and self.epsilon_high is not None:
            raise ValueError(f"epsilon_high is not read by loss_type={self.loss_type}; leave it out")
        return self

    def of_trl(self, setting: Setting) -> tuple[Any, Any]:
        """GRPOTrainer."""
        from trl import GRPOConfig, GRPOTrainer

        arguments = GRPOConfig(
            **self.group_arguments(setting),
            beta=self.beta,
            loss_type=self.loss_type,
            epsilon_high=5.0 if self.loss_type == "cispo" and self.epsilon_high is None else self.epsilon_high,
            scale_rewards=self.scale_rewards,
        )
        return GRPOTrainer, arguments
