"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306), by TRL's KTOTrainer.

Learns from answers that are each good or bad by themselves: those of the preferences, and people's thumbs. Its
reference point is the policy's divergence from where it started, estimated on answers that are shifted by one within
each batch: an answer to a prompt stands in for one to the next. So every batch needs answers to different prompts, and
one that has none is refused; where only some neighbours share a prompt the report says how many. Several processes take
the mean of their batches' estimates before its positive part, and so learn slightly other weights than one.

What is left out: how many people gave a thumb, and how sure the judge was.
"""

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline import views
from pipeline.algorithms import tokens
from pipeline.algorithms.base import Examples, Setting, TrainRun
from pipeline.algorithms.policy import PolicyConfig
from pipeline.errors import TrainingError
from pipeline.records import Preference, Thumb, canonical

if TYPE_CHECKING:
    from transformers import Trainer

SHIFTS = 100
"""Orders that are tried so that a batch's mismatched answers are to other prompts; the first is nearly always right."""

RATIO = (1.0, 4 / 3)
"""Range of desirable_weight x good / (undesirable_weight x bad) in the paper, eq. 8."""

Weight = Annotated[float, Field(gt=0)] | Literal["auto"]


class Config(PolicyConfig):
    """KTO's options, by TRL's names."""

    VERSION: ClassVar[int] = 3

    name: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0)
    """How firmly the policy is held to the reference; 0.1 is the paper's best in most settings."""
    desirable_weight: Weight = "auto"
    """Weight of the loss of good answers. `auto`: so that good and bad ones weigh the same altogether, which is the
    lower end of the paper's range of 1 to 4/3 (eq. 8); the kind there is more of weighs 1."""
    undesirable_weight: Weight = "auto"
    """The same of bad answers."""
    per_device_train_batch_size: int = Field(default=8, ge=2)
    """Examples a forward pass and process. At 1 the mismatched answer would be the answer itself."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Forward passes an update."""

    def examples(self, run: TrainRun) -> Examples:
        """Good and bad answers: those of the preferences, and the thumbs."""
        preferences, thumbs = run.preferences(), run.thumbs()
        rows = self.rows(preferences, thumbs)
        counts = {"preferences": len(preferences), **({"thumbs": len(thumbs)} if thumbs else {})}
        alarms = (*self._neighbours(rows), *self._imbalance(rows), *_averaged(run.launch.world))
        return Examples(rows, counts, alarms)

    def rows(self, preferences: Sequence[Preference], thumbs: Sequence[Thumb] = ()) -> list[dict[str, Any]]:
        """A good and a bad example a preference, one a thumb, ordered so that neighbours have different prompts.

        Raises:
            TrainingError: there are none, none of one kind, or a batch has answers to one prompt alone.
        """
        found = [*views.unpaired(preferences), *views.single(thumbs)]
        if not found:
            raise TrainingError("KTO has no preferences to learn from; see label/summary.json for why")
        good = sum(row["label"] for row in found)
        if good in (0, len(found)):
            raise TrainingError(
                f"KTO has {good} good answers and {len(found) - good} bad ones; it needs both kinds. Add the other kind"
            )
        rows = _apart(found, self.per_device_train_batch_size)
        _check([canonical(row["prompt"]) for row in rows], self.per_device_train_batch_size)
        return rows

    def weights(self, good: int, bad: int) -> tuple[float, float]:
        """The weights of good and bad answers, of which there are so many."""
        desirable = None if self.desirable_weight == "auto" else self.desirable_weight
        undesirable = None if self.undesirable_weight == "auto" else self.undesirable_weight
        if desirable is None:
            desirable = max(1.0, bad / good) if undesirable is None else undesirable * bad / good
        if undesirable is None:
            undesirable = desirable * good / bad
        return desirable, undesirable

    def trainer(self, rows: Sequence[dict[str, Any]], setting: Setting) -> "Trainer":
        """TRL's KTOTrainer on the rows."""
        from datasets import Dataset
        from trl import KTOConfig, KTOTrainer
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        desirable, undesirable = self.weights(*_counts(rows))
        arguments = KTOConfig(
            **self.policy_arguments(setting), beta=self.beta, desirable_weight=desirable, undesirable_weight=undesirable
        )
        encoded = tokens.single_rows(rows, setting.tokenizer, self.max_length, arguments.per_device_train_batch_size)
        # Prompts that fill max_length are left out, and the batches shift.
        _check([tuple(row["prompt_ids"]) for row in encoded], self.per_device_train_batch_size)
        collator = DataCollatorForUnpairedPreference(
            pad_token_id=setting.tokenizer.pad_token_id, max_length=self.max_length
        )
        trainer: Trainer = tokens.given_ids(KTOTrainer)(
            **self.policy(setting, reference=True),
            args=arguments,
            train_dataset=Dataset.from_list(encoded),
            processing_class=setting.tokenizer,
            data_collator=collator,
        )
        return self.ready(trainer, setting)

    def _neighbours(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        count = _neighbours_of_one_prompt(rows, self.per_device_train_batch_size)
        if not count:
            return []
        return [
            f"{count} of {len(rows)} examples have an answer to their own prompt as the mismatched one, because there "
            "are too few prompts: the reference point is higher than it should be."
        ]

    def _imbalance(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        good, bad = _counts(rows)
        desirable, undesirable = self.weights(good, bad)
        ratio = desirable * good / (undesirable * bad)
        if RATIO[0] - 1e-9 <= ratio <= RATIO[1] + 1e-9:
            return []
        return [
            f"desirable_weight x {good} good / (undesirable_weight x {bad} bad) is {ratio:.2f}; "
            "the paper's range is 1 to 1.33, and auto is within it."
        ]


def _averaged(world: int) -> list[str]:
    """TRL takes the mean of the divergences of a pass over all processes, and its positive part after that."""
    if world == 1:
        return []
    return [
        f"the reference point is the mean of the {world} batches that the processes have at a time, and in one process "
        "each batch's own: another number of processes learns slightly other weights."
    ]


def _counts(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    good = sum(row["label"] for row in rows)
    return good, len(rows) - good


def _check(prompts: Sequence[Hashable], batch: int) -> None:
    """Refuse batches in which every answer is to one prompt: a mismatched answer would be to its own."""
    for start in range(0, len(prompts), batch):
        group = prompts[start : start + batch]
        if len(group) == 1:
            raise TrainingError(
                f"KTO has {len(prompts)} examples in batches of {batch}, and the last would hold a single one, whose "
                "mismatched answer would be its own: the reference point would be its own reward. Set "
                f"per_device_train_batch_size to {_fitting(len(prompts), batch)}"
            )
        if len(set(group)) == 1:
            raise TrainingError(
                f"KTO has a batch of {len(group)} answers that are all to one prompt, so none can stand in for an "
                "answer to another: the reference point would be the reward. Add answers to other prompts, raise "
                "per_device_train_batch_size, or use DPO"
            )


def _fitting(count: int, batch: int) -> int:
    """The batch size nearest to `batch` that leaves no single example over."""
    return min((size for size in range(2, count + 1) if count % size != 1), key=lambda size: (abs(size - batch), size))


def _apart(rows: Sequence[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Good and bad examples evenly mixed, the bad ones half a round later, so that no neighbours share a prompt.

    Half a round is the first of the shifts that are tried; the one with the fewest neighbours of one prompt is taken.
    """
    rows = _in_rounds(rows)
    good = [row for row in rows if row["label"]]
    bad = [row for row in rows if not row["label"]]
    best, fewest = rows, len(rows) + 1
    for shift in range(len(bad) // 2, min(len(bad) // 2 + SHIFTS, len(bad))):
        tried = _mixed(good, bad[shift:] + bad[:shift])
        count = _neighbours_of_one_prompt(tried, batch)
        if count < fewest:
            best, fewest = tried, count
        if not count:
            break
    return best


def _mixed(good: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both in their order, so that every stretch has about the same share of each; a good one first."""
    whole = len(good) + len(bad)
    # The number of good ones among the first n is n * good / whole, rounded up.
    places = [-(-place * len(good) // whole) for place in range(whole + 1)]
    return [
        good[before] if after > before else bad[place - before]
        for place, (before, after) in enumerate(itertools.pairwise(places))
    ]


def _in_rounds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every prompt's first good and first bad example, then every prompt's second ones, and so on."""
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
