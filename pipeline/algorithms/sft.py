"""Supervised fine-tuning: the policy learns to write what it is shown, by TRL's SFTTrainer.

    loss = - mean over the tokens t that are learned of log pi(y_t | what precedes it)

What it is shown is a file (Parquet, JSONL, JSON, CSV) of conversations or plain texts, or the chosen answers of the
label step. Of a conversation only the assistant's turns are learned, each with the token that ends it; of a text every
token. Conversations become tokens as they do when the policy answers, so that it learns at the very positions that it
later writes at; where a template writes an earlier turn in another way than when it was asked for (Qwen3 takes out its
thoughts), each turn of the assistant is an example of its own.

What is left out: which weights are trained (`policy.py`), and reading the files (`pipeline.demonstrations`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from pipeline import architectures, demonstrations
from pipeline.algorithms import checkpoints
from pipeline.algorithms.base import Setting, TrainRun, repeated
from pipeline.algorithms.policy import PolicyConfig
from pipeline.demonstrations import Demonstration, DemonstrationsConfig
from pipeline.errors import TrainingError
from pipeline.models import answer_ids, chat_ids

if TYPE_CHECKING:
    from transformers import Trainer

MASKED = -100
"""The label of a token that is read and not learned."""


class Example(NamedTuple):
    """Tokens, and what is learned of them."""

    ids: list[int]
    labels: list[int]
    """The same ids, or `MASKED`."""


class Config(PolicyConfig):
    """SFT's options, by TRL's and transformers' names."""

    VERSION: ClassVar[int] = 3
    DROPOUT: ClassVar[bool] = True
    ENCODER_DECODERS: ClassVar[bool] = True

    name: Literal["sft"] = "sft"
    data: DemonstrationsConfig | None = None
    """Files of what is learned. None: the chosen answers of the label step."""
    assistant_only_loss: bool = True
    """Of a conversation, learn the assistant's turns alone. false: every token, the user's too."""
    packing: bool = False
    """Lay examples end to end in rows of `max_length`, each of them blind to the others."""
    group_by_length: bool = False
    """Batches of examples of about one length: less padding, in an order that is less random."""
    eval_steps: int = Field(default=0, ge=0)
    """Updates between two measurements of the loss on `data.test`. 0: before the first update and after the last."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate: 2e-4 for an adapter (Dettmers et al. 2023), a tenth of it for the weights themselves."""

    @model_validator(mode="after")
    def _rows_as_said(self) -> Self:
        if self.packing and self.group_by_length:
            raise ValueError("group_by_length: packed rows all have one length; leave one of the two out")
        if self.eval_steps and (self.data is None or self.data.test is None):
            raise ValueError("eval_steps: there is nothing to measure on; name data.test, or leave it out")
        return self

    def reads(self) -> tuple[str, ...]:
        """The labels, unless there are files."""
        return () if self.data else ("label",)

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The demonstrations."""
        return {"data.train": self.data.train, "data.test": self.data.test or ()} if self.data else {}

    def train(self, run: TrainRun) -> None:
        """See `AlgorithmConfig.train`. Measures the loss on the test rows as well.

        Raises:
            DataError: a file has no demonstrations, or rows that are none.
            TrainingError: there is nothing to learn from.
        """
        shown, tested = self.demonstrations(run)
        setting = self.setting(run)
        apart = architectures.is_encoder_decoder(setting.model)
        if apart:
            self._check_encoder([*shown, *tested])
        examples = self.encoded(shown, setting.tokenizer, apart=apart)
        test_examples = self.encoded(tested, setting.tokenizer, apart=apart)
        rows, tests = self.fitting(examples), self.fitting(test_examples)
        for given, fitting, what in ((shown, rows, "demonstrations"), (tested, tests, "test rows (data.test)")):
            if given and not fitting:
                raise TrainingError(
                    f"{run.step}: none of {len(given)} {what} has a token to learn within "
                    f"max_length ({self.max_length}); raise it"
                )
        trainer: Any = self.sft_trainer(rows, tests, setting)
        # accelerate takes a model that was evaluated for one that it has prepared: DDP would not wrap it, and each
        # process would learn from its own rows alone. DeepSpeed divides the model only when training begins.
        several = run.launch.world > 1 or run.launch.zero > 0
        trainer.args.eval_on_start = bool(tests) and several and run.checkpoints.newest is None
        metrics = _held_out_loss(trainer, 0, run.step) if tests and not several else []
        metrics += checkpoints.fit(trainer, run.checkpoints)
        # With eval_steps the trainer has measured it at the last update already.
        if tests and ("eval_loss" not in metrics[-1] or metrics[-1]["step"] < trainer.state.global_step):
            metrics += _held_out_loss(trainer, trainer.state.global_step, run.step)
        summary: dict[str, Any] = {
            "demonstrations": len(shown),
            "examples": len(rows),
            "updates": trainer.state.global_step,
            "tokens_learned": sum(label != MASKED for row in rows for label in row["labels"][1:]),
        }
        if tests:
            summary["held_out"] = {
                "examples": len(tests), "loss_before": metrics[0]["eval_loss"], "loss_after": metrics[-1]["eval_loss"],
            }  # fmt: skip
        alarms = [
            *self._cut(examples),
            *self._cut(test_examples, "test examples"),
            *repeated(trainer, run.launch.world),
            *self.alarms(metrics),
        ]
        if alarms:
            summary["alarms"] = alarms
        run.publish(self, trainer.model, metrics, summary, start=setting.start)

    def demonstrations(self, run: TrainRun) -> tuple[list[Demonstration], list[Demonstration]]:
        """What is learned, and what the loss is measured on.

        Raises:
            DataError: a file has none, or rows that are none.
            TrainingError: the label step decided nothing.
        """
        if self.data is None:
            found = demonstrations.of(run.preferences())
            if not found:
                raise TrainingError("SFT has no chosen answers to learn from; see label/summary.json for why")
            return found, []
        return demonstrations.of_files(self.data)

    def _check_encoder(self, shown: Sequence[Demonstration]) -> None:
        """Refuse what an encoder-decoder cannot learn from: its decoder writes answers alone."""
        plain = [each.where for each in shown if each.text is not None]
        if plain:
            raise TrainingError(
                f"{plain[0]}: an encoder-decoder reads a prompt and writes an answer, and this is one text; give it "
                "prompt and completion, or messages"
            )
        wrong = [name for name in ("packing", "group_by_length") if getattr(self, name)]
        wrong += [] if self.assistant_only_loss else ["assistant_only_loss: false"]
        if wrong:
            raise TrainingError(f"{wrong[0]}: not for an encoder-decoder; leave it out")

    def encoded(self, shown: Sequence[Demonstration], tokenizer: Any, *, apart: bool = False) -> list[Example]:
        """The demonstrations as tokens; with `apart`, each turn of the assistant as an example of its own."""
        return [
            each
            for one in shown
            for each in encode(tokenizer, one, assistant_only=self.assistant_only_loss, apart=apart)
        ]

    def fitting(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """The examples cut to `max_length`, as rows of TRL; those with nothing left to learn are left out."""
        return [
            {"input_ids": each.ids[: self.max_length], "labels": each.labels[: self.max_length]}
            for each in examples
            if self._learns(each)
        ]

    def _learns(self, example: Example) -> bool:
        # Nothing precedes the first token, so nothing predicts it.
        return any(label != MASKED for label in example.labels[1 : self.max_length])

    def sft_trainer(
        self, rows: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]], setting: Setting
    ) -> "Trainer":
        """TRL's SFTTrainer on the rows; that of `seq2seq.py` for an encoder-decoder.

        Raises:
            TrainingError: these options cannot work with this model.
        """
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        if architectures.is_encoder_decoder(setting.model):
            from pipeline.algorithms import seq2seq

            learned, tested = list(map(_sides, rows)), list(map(_sides, tests))
            return seq2seq.sft_trainer(self, learned, tested, setting, self._evaluation())
        if self.packing and architectures.is_recurrent(setting.model):
            raise TrainingError(
                f"packing: the state of {setting.model.config.model_type} would run on from one example into the next; "
                "set packing to false"
            )
        arguments = SFTConfig(
            **self.policy_arguments(setting),
            packing=self.packing,
            eval_packing=False,
            assistant_only_loss=False,  # the rows' labels say what is learned
            completion_only_loss=False,
            train_sampling_strategy="group_by_length" if self.group_by_length else "random",
            **self._evaluation(),
        )
        trainer: Trainer = SFTTrainer(
            **self.policy(setting, reference=False),
            args=arguments,
            train_dataset=Dataset.from_list(list(rows)),
            eval_dataset=Dataset.from_list(list(tests)) if tests else None,
            processing_class=setting.tokenizer,
        )
        return self.ready(trainer, setting)

    def _evaluation(self) -> dict[str, Any]:
        return {
            "per_device_eval_batch_size": self.per_device_train_batch_size,
            "eval_strategy": "steps" if self.eval_steps else "no",
            "eval_steps": self.eval_steps or None,
        }

    def _cut(self, examples: Sequence[Example], what: str = "examples") -> list[str]:
        learned = [each for each in examples if self._learns(each)]
        cut = sum(len(each.ids) > self.max_length for each in learned)
        found = []
        if cut:
            found.append(f"{cut} of {len(examples)} {what} are longer than max_length ({self.max_length}): cut there.")
        if len(learned) < len(examples):
            left_out = len(examples) - len(learned)
            found.append(f"{left_out} of {len(examples)} {what} were left out: nothing to learn within max_length.")
        return found


def encode(tokenizer: Any, shown: Demonstration, *, assistant_only: bool, apart: bool = False) -> list[Example]:
    """A demonstration as tokens: one example, or several where the template rewrites earlier turns.

    Args:
        apart: several in any case, one for each turn of the assistant.
    """
    if shown.text is not None:
        return [_plain(tokenizer, shown.text)]
    examples: list[Example] = []
    whole = Example([], [])
    last = len(shown.messages) - 1
    for place, turn in enumerate(shown.messages):
        if turn.role != "assistant":
            continue
        asked = chat_ids(tokenizer, shown.messages[:place])
        if whole.ids and (apart or asked[: len(whole.ids)] != whole.ids):
            examples.append(whole)
            whole = Example([], [])
        between = asked[len(whole.ids) :]
        answer = answer_ids(tokenizer, turn.content, finished=shown.finished if place == last else True)
        unlearned = [MASKED] * len(between) if assistant_only else between
        whole = Example([*whole.ids, *between, *answer], [*whole.labels, *unlearned, *answer])
    return [*examples, whole]


def _sides(row: dict[str, Any]) -> dict[str, Any]:
    """An example of one answer as what an encoder reads and what a decoder writes."""
    ids, labels = row["input_ids"], row["labels"]
    read = next(place for place, label in enumerate(labels) if label != MASKED)
    return {"prompt_ids": ids[:read], "answer_ids": ids[read:]}


def _plain(tokenizer: Any, text: str) -> Example:
    ids = [int(token) for token in tokenizer(text)["input_ids"]]
    # Texts that were made for a template often bring its first and last token along.
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, int(tokenizer.eos_token_id)]
    return Example(ids, list(ids))


def _held_out_loss(trainer: Any, update: int, step: str) -> list[dict[str, float]]:
    """A line for the metrics.

    Raises:
        TrainingError: it is not a number.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    found = trainer.evaluate()
    trainer.state.log_history.clear()
    line = {"step": update, "eval_loss": found["eval_loss"]}
    checkpoints.check(line, step)
    return [line]
