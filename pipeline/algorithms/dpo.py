"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290), by TRL's DPOTrainer.

Raises the log-probability of the chosen answer over the rejected one, measured against the frozen policy it started
from. No reward model and no sampling.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline import views
from pipeline.algorithms.base import AlgorithmConfig, CutAnswers, Setting
from pipeline.errors import TrainingError
from pipeline.records import Preference

if TYPE_CHECKING:
    from transformers import Trainer


class Config(AlgorithmConfig):
    """DPO's options, by TRL's names."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How firmly the policy is held to the reference; the paper uses 0.1 to 0.5."""

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

        arguments = DPOConfig(**setting.arguments(self), beta=self.beta)
        collator = DataCollatorForPreference(pad_token_id=setting.tokenizer.pad_token_id, max_length=self.max_length)
        return DPOTrainer(
            model=setting.model,
            args=arguments,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=setting.tokenizer,
            data_collator=CutAnswers(collator, setting.tokenizer.eos_token_id),
            peft_config=setting.peft_config(self),
        )
