"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740), by TRL's RLOOTrainer.

Each answer's reward, less beta times its divergence from the reference, is compared with the mean of the prompt's
other answers (section 3, eq. 8). No critic; the whole answer is one action.
"""

from typing import Any, Literal

from pydantic import Field

from pipeline.algorithms.base import Setting
from pipeline.algorithms.groups import GroupConfig


class Config(GroupConfig):
    """RLOO's options, by TRL's names."""

    name: Literal["rloo"] = "rloo"
    beta: float = Field(default=0.05, ge=0)
    """Weight of the divergence from the reference, in nats an answer, against one unit of reward."""
    normalize_advantages: bool = False
    """Divide by the deviation of the batch's advantages, so that the scale of rewards does not matter."""

    def of_trl(self, setting: Setting) -> tuple[Any, Any]:
        """RLOOTrainer."""
        from trl import RLOOConfig, RLOOTrainer

        arguments = RLOOConfig(
            **self.group_arguments(setting), beta=self.beta, normalize_advantages=self.normalize_advantages
        )
        return RLOOTrainer, arguments
