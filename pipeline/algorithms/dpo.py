"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290), by TRL's DPOTrainer.

Raises the log-probability of the chosen answer over the rejected one, measured against the frozen policy it started
from. No reward model and no sampling.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline import views
from pipeline.algorithms.base import AlgorithmConfig, CutAnswers, Setting
from pipeline.errors import TrainingError
from pipeline.records import Preference

if TYPE_CHECKING:
    from transformers import Trainer


Loss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
]  # fmt: skip
"""The names that TRL 1.16 knows."""


class Config(AlgorithmConfig):
    """DPO's options, by TRL's names."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How firmly the policy is held to the reference; the paper uses 0.1 to 0.5."""
    loss_type: tuple[Loss, ...] = Field(default=("sigmoid",), min_length=1)
    """TRL's losses, which are added up. `sigmoid` is the paper's; with `sft` the chosen answers are also imitated
    (Pang et al. 2024, arXiv:2404.19733), which keeps their log-probability from sinking, that of their end too."""
    loss_weights: tuple[float, ...] | None = None
    """The weight of each loss, in the order of `loss_type`. None: 1 for each."""

    @model_validator(mode="after")
    def _a_weight_for_each_loss(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"{len(self.loss_weights)} loss_weights for {len(self.loss_type)} losses; one for each")
        return self

    def rows(self, preferences: Sequence[Preference]) -> list[dict[str, Any]]:
        """Chosen against rejected, one row a preference; `cut` names the answers that did not end by themselves."""
        rows = views.paired(preferences)
        if not rows:
            raise TrainingError("DPO has no preferences to learn from; see label/summary.json for why")
        return rows

    def trainer(self, rows: Sequence[dict[str, Any]], setting: Setting) -> "Trainer":
        """TRL's DPOTrainer on the rows."""
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        weights = None if self.loss_weights is None else list(self.loss_weights)
        arguments = DPOConfig(
            **setting.arguments(self), beta=self.beta, loss_type=list(self.loss_type), loss_weights=weights
        )
        collator = DataCollatorForPreference(pad_token_id=setting.tokenizer.pad_token_id, max_length=self.max_length)
        return DPOTrainer(
            model=setting.model,
            args=arguments,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=setting.tokenizer,
            data_collator=CutAnswers(collator, setting.tokenizer.eos_token_id),
            peft_config=setting.peft_config(self),
        )
