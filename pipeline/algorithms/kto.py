"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306), by TRL's KTOTrainer.

Learns from answers that are each good or bad by themselves: no pairs needed. Its reference point is the policy's
divergence from where it started, estimated on answers that are shifted by one within each batch; so batches need more
than one example, and neighbours from different prompts. What is left out: thumbs that were never a pair.
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
    """KTO's options, by TRL's names."""

    name: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0)
    """How firmly the policy is held to the reference; 0.1 is the paper's best in most settings."""
    per_device_train_batch_size: int = Field(default=8, ge=2)
    """Examples a forward pass and process. At 1 the mismatched answer would be the answer itself."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Forward passes an update."""

    def rows(self, preferences: Sequence[Preference]) -> list[dict[str, Any]]:
        """Each preference gives one good and one bad example, ordered so that neighbours have different prompts."""
        rows = _apart(views.unpaired(preferences))
        if not rows:
            raise TrainingError("KTO has no preferences to learn from; see label/summary.json for why")
        return rows

    def trainer(self, rows: Sequence[dict[str, Any]], setting: Setting) -> "Trainer":
        """TRL's KTOTrainer on the rows."""
        from datasets import Dataset
        from trl import KTOConfig, KTOTrainer
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        arguments = KTOConfig(**setting.arguments(self), beta=self.beta)
        collator = DataCollatorForUnpairedPreference(
            pad_token_id=setting.tokenizer.pad_token_id, max_length=self.max_length
        )
        return KTOTrainer(
            model=setting.model,
            args=arguments,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=setting.tokenizer,
            data_collator=CutAnswers(
                collator, setting.tokenizer.eos_token_id, rotated=("KL_completion_ids", "completion_ids")
            ),
            peft_config=setting.peft_config(self),
        )


def _apart(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Good and bad examples in turn, the bad ones half a round later, so that no neighbours share a prompt."""
    good = [row for row in rows if row["label"]]
    bad = [row for row in rows if not row["label"]]
    bad = bad[len(bad) // 2 :] + bad[: len(bad) // 2]
    return [row for both in zip(good, bad, strict=True) for row in both]
