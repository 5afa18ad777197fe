"""What a training algorithm is: its options, its view of the preferences, and the TRL trainer that runs it.

Options carry TRL's and transformers' own names, so that their documentation is ours. What is left out: loading the
model, resuming and saving (`pipeline.train`), which are the same for every algorithm.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pipeline.plugins import Config
from pipeline.records import Preference

if TYPE_CHECKING:
    from transformers import Trainer


class LoraConfig(Config):
    """The adapter that is trained (Hu et al. 2021, arXiv:2106.09685); the base below it stays frozen."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    lora_alpha: int = Field(default=32, ge=1)
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs set to zero in training. Preference losses compare two passes: 0 is the rule."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers get one: PEFT's `all-linear`, or names such as [q_proj, v_proj]."""


class AlgorithmConfig(Config):
    """Base of every algorithm's Config. The subclass adds `name: Literal["its file"]` and its own options."""

    VERSION: ClassVar[int] = 1
    """Raised by hand when a change of the code changes the adapter, so that old ones are not taken for new."""
    RUNTIME: ClassVar[frozenset[str]] = frozenset({"report_to"})

    name: str
    """The algorithm: a file of `pipeline/algorithms/`, or the dotted name of a module that defines such a Config."""
    lora: LoraConfig = LoraConfig()
    """The adapter that is trained."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: str = "linear"
    """transformers' name of the schedule after the warm-up."""
    warmup_steps: float = Field(default=0.1, ge=0)
    """Steps of linear warm-up; below 1 it is the share of all steps."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the preferences."""
    max_steps: int = Field(default=-1, ge=-1)
    """Stop after so many updates, whatever the epochs; -1: no such limit."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Examples a forward pass and process."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Forward passes an update."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this norm."""
    max_length: int = Field(default=1024, ge=2)
    """Tokens of prompt and answer together; longer ones are cut at the end."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    logging_steps: int = Field(default=1, ge=1)
    """Updates between two lines of metrics."""
    save_steps: int = Field(default=25, ge=1)
    """Updates between two checkpoints to resume from."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers that also get the metrics: trackio, wandb, tensorboard, mlflow."""

    def identity(self) -> dict[str, Any]:
        """The options, and the version of the code."""
        # In capitals, which no option is: a plugin may have one that is called `version`.
        return {**super().identity(), "VERSION": self.VERSION}

    def rows(self, preferences: Sequence[Preference]) -> list[dict[str, Any]]:
        """The preferences as this algorithm learns from them, one training example a row.

        Raises:
            TrainingError: there is nothing to learn from.
        """
        raise NotImplementedError

    def trainer(self, rows: Sequence[dict[str, Any]], setting: "Setting") -> "Trainer":
        """TRL's trainer, ready to train.

        Raises:
            TrainingError: these options cannot work with these rows.
        """
        raise NotImplementedError


class Setting(Config):
    """What a trainer needs besides options and data; the same for every algorithm."""

    model: Any
    """The frozen base."""
    tokenizer: Any
    output_dir: Path
    """Where checkpoints are written."""
    seed: int

    def arguments(self, config: AlgorithmConfig) -> dict[str, Any]:
        """The options that every trainer of transformers knows, as keyword arguments of its TrainingArguments."""
        import torch

        shared = AlgorithmConfig.model_fields.keys() - {"name", "lora", "report_to"}
        dtype = self.model.dtype
        return {
            **{name: getattr(config, name) for name in shared},
            "report_to": list(config.report_to) or "none",
            "output_dir": str(self.output_dir),
            "seed": self.seed,
            "use_cpu": self.model.device.type == "cpu",
            "bf16": dtype == torch.bfloat16,
            "fp16": dtype == torch.float16,
            "save_strategy": "steps",
            "disable_tqdm": True,
            # Keeps the column `cut`, which CutAnswers reads.
            "remove_unused_columns": False,
            "dataloader_pin_memory": self.model.device.type != "cpu",
        }

    def peft_config(self, config: AlgorithmConfig) -> Any:
        """PEFT's LoraConfig for the adapter."""
        import peft

        lora = config.lora
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        return peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        )


class CutAnswers:
    """A data collator that takes the end-of-turn off answers that were cut at the token limit, before TRL's own.

    TRL ends every answer with it. On an answer that was cut, that would teach the model to stop in mid-sentence.
    An example says which of its sequences were cut in the column `cut`.
    """

    def __init__(self, collator: Any, end_of_turn: int, *, rotated: tuple[str, str] | None = None) -> None:
        """Args:
        collator: TRL's, for the same examples.
        end_of_turn: token id.
        rotated: (column, column it was made from) of a column that holds, within each batch, the value that the
            example before has in the other column (KTO's mismatched answers).
        """
        self.collator = collator
        self.end_of_turn = end_of_turn
        self.rotated = rotated

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        return self.collator([self._mended(examples, number) for number in range(len(examples))])

    def _mended(self, examples: list[dict[str, Any]], number: int) -> dict[str, Any]:
        example = dict(examples[number])
        cut = list(example.pop("cut"))
        if self.rotated and self.rotated[1] in examples[number - 1]["cut"]:
            cut.append(self.rotated[0])
        for column in cut:
            example[column] = without_end(example[column], self.end_of_turn)
        return example


def without_end(ids: Sequence[int], end_of_turn: int) -> list[int]:
    """The ids before the last end-of-turn token; all of them if there is none."""
    ids = list(ids)
    for position in range(len(ids) - 1, -1, -1):
        if ids[position] == end_of_turn:
            return ids[:position]
    return ids
