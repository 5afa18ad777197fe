"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306), by TRL's KTOTrainer.

Learns from answers that are each good or bad by themselves: no pairs needed. Its reference point is the policy's
divergence from where it started, estimated on answers that are shifted by one within each batch; so batches need more
than one example, and neighbours from different prompts. What is left out: thumbs that were never a pair.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline import views
from pipeline.algorithms.base import AlgorithmConfig, CutAnswers, Setting
from pipeline.errors import TrainingError
from pipeline.records import Preference, canonical

if TYPE_CHECKING:
    from transformers import Trainer

SHIFTS = 100
"""Orders that are tried so that a batch's mismatched answers are to other prompts; the first is nearly always right."""


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
        rows = _apart(views.unpaired(preferences), self.per_device_train_batch_size)
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


def _apart(rows: Sequence[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Good and bad examples in turn, the bad ones half a round later, so that no neighbours share a prompt.

    Half a round is the first of the shifts that are tried; the one with the fewest neighbours of one prompt is taken.
    """
    rows = _in_rounds(rows)
    good = [row for row in rows if row["label"]]
    bad = [row for row in rows if not row["label"]]
    best, fewest = rows, len(rows) + 1
    for shift in range(len(bad) // 2, min(len(bad) // 2 + SHIFTS, len(bad))):
        tried = [row for both in zip(good, bad[shift:] + bad[:shift], strict=True) for row in both]
        count = _neighbours_of_one_prompt(tried, batch)
        if count < fewest:
            best, fewest = tried, count
        if not count:
            break
    return best


def _in_rounds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every prompt's first preference, then every prompt's second, and so on; two rows are a preference."""
    seen: Counter[tuple[str, bool]] = Counter()
    rounds: list[tuple[int, dict[str, Any]]] = []
    for row in rows:
        key = (canonical(row["prompt"]), row["label"])
        rounds.append((seen[key], row))
        seen[key] += 1
    return [row for _, row in sorted(rounds, key=lambda each: each[0])]


def _neighbours_of_one_prompt(rows: Sequence[dict[str, Any]], batch: int) -> int:
    """How many examples are to the prompt of the one before them in their batch; before the first comes the last."""
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return sum(group[at]["prompt"] == group[at - 1]["prompt"] for group in batches for at in range(len(group)))
