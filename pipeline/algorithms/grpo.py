"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300), by TRL's GRPOTrainer.

An answer's advantage is its reward in deviations from the mean of its prompt's answers (section 4.1.2), the same for
each of its tokens. No critic; the divergence from the reference, if any, is in the loss.
"""

from typing import Any, Literal

from pydantic import Field

from pipeline.algorithms.base import Setting
from pipeline.algorithms.groups import GroupConfig

Loss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo"]
"""The names that TRL 1.16 knows."""


class Config(GroupConfig):
    """GRPO's options, by TRL's names."""

    name: Literal["grpo"] = "grpo"
    beta: float = Field(default=0.04, ge=0)
    """Weight of the divergence from the reference in the loss, in nats a token; the paper's."""
    loss_type: Loss = "dapo"
    """How tokens are averaged. `grpo` is the paper's mean of means, which favours short right answers."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide by the deviation of a prompt's rewards (the paper's), of the whole batch's, or not at all."""

    def of_trl(self, setting: Setting) -> tuple[Any, Any]:
        """GRPOTrainer."""
        from trl import GRPOConfig, GRPOTrainer

        arguments = GRPOConfig(
            **self.group_arguments(setting),
            beta=self.beta,
            loss_type=self.loss_type,
            scale_rewards=self.scale_rewards,
        )
        return GRPOTrainer, arguments
