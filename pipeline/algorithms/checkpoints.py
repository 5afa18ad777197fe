"""Checkpoints that a killed step goes on from, and what a train step leaves: shared by every algorithm.

A checkpoint counts only once the hashes of all its files are in it: Hugging Face's are not atomic, and one with a
missing optimizer or a flipped byte is accepted in silence. The seal also says what the checkpoint was made by
(`origin.py`): going on with other versions or on another device is refused, or reported. What is left out: what is
learned and how.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import store, weights
from pipeline.algorithms.origin import differences
from pipeline.errors import TrainingError
from pipeline.models import ADAPTER, ModelConfig
from pipeline.progress import Bar
from pipeline.records import canonical

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

Kind = Literal["CausalLM", "Seq2SeqLM", "SequenceClassification"]
"""What transformers' AutoModelFor... is called that loads the base."""

TIMED = ("runtime", "per_second", "total_flos", "num_tokens", "step_time", "preparation_time")
"""Parts of the names of metrics that differ between two equal runs. Tokens are counted from the last resumption."""


LOSSES = frozenset({"loss", "eval_loss"})
"""A line of the trainer's log has one of them, or is a summary of the whole training that we do not keep."""

DAMAGED = "damaged-"
"""What is put before the name of a checkpoint that is not as it was written."""

SHOWN = 5
"""Differences that a message spells out; the rest are counted."""


def fit(trainer: "Trainer", kept: "Checkpoints") -> list[dict[str, float]]:
    """Run a trainer of transformers to its end, from the newest sound checkpoint if there is one.

    Returns:
        What it logged, a line an update and a line an evaluation.

    Raises:
        TrainingError: a loss, a gradient or a weight is not a number, or the checkpoint was made otherwise
            (`Checkpoints.newest`).
    """
    train_in_fp32(trainer.model)
    trainer.add_callback(_callback(kept, trainer))
    trainer.train(resume_from_checkpoint=str(kept.newest) if kept.newest else None)
    _check_weights(trainer, kept.step)
    return _metrics(trainer.state.log_history)


def train_in_fp32(model: Any) -> None:
    """Cast what is trained to fp32, in place."""
    # TRL casts adapters on a 4-bit base to bf16, and PEFT loads them back as fp32: a resumed run would go on in another
    # precision than it began in. fp32 from the start is exact, and what the optimizer needs for small updates.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_only_the_policy(model: Any) -> None:
    """Let a PeftModel write its adapter `default` alone, in place."""
    # A reward model or a reference on the same base is one more adapter. transformers would write it into every
    # checkpoint, and then look there for the policy's when it goes on.
    save = model.save_pretrained

    def save_default(*arguments: Any, **options: Any) -> None:
        # To save embeddings if their number changed, which ours never does, PEFT would look for the base on the hub.
        save(*arguments, **{**options, "selected_adapters": ["default"], "save_embedding_layers": False})

    model.save_pretrained = save_default


def save_adapter(model: Any, folder: Path, base: str, adapter: str = "default") -> None:
    """Write one adapter of a PeftModel as a standard PEFT folder whose bytes depend on its weights alone.

    Args:
        base: the recipe's name of the base, where PEFT would write the path it has on this machine.
    """
    config = model.peft_config[adapter]
    config.base_model_name_or_path = base
    # PEFT keeps the layers' names in a set and writes them in its order, which is another in every process.
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    # To save embeddings if their number changed, which ours never does, PEFT would look for the base on the hub.
    model.save_pretrained(str(folder), selected_adapters=[adapter], save_embedding_layers=False)
    # PEFT puts every adapter but `default` into a folder of its own.
    inner = folder / adapter
    if adapter != "default":
        for path in inner.iterdir():
            path.replace(folder / path.name)
        inner.rmdir()


class Checkpoints:
    """The checkpoints of one train step, `checkpoint-<update>` each, in a folder of their own."""

    def __init__(
        self, folder: Path, step: str, *, made_by: Mapping[str, Any] | None = None, allow_inexact: bool = False
    ) -> None:
        """Args:
        step: the step's name, for messages.
        made_by: what `origin.origin` says of this process.
        allow_inexact: go on from a checkpoint that was made otherwise.
        """
        self.folder, self.step = folder, step
        self.made_by, self.allow_inexact = dict(made_by or {}), allow_inexact
        self.inexact: list[str] = []
        """What was not as before where this training went on, a sentence each. Empty: it is one exact training."""

    def seal(self, update: int, of: int) -> None:
        """Make `checkpoint-<update>` count, now that it is complete, and keep the two newest.

        Args:
            of: the number of updates of the whole training.
        """
        from pipeline.algorithms.ranks import Ranks

        ranks = Ranks()
        ranks.wait()  # until each process has written its part
        if ranks.rank == 0:
            self._seal(update, of)
        ranks.wait()

    def _seal(self, update: int, of: int) -> None:
        folder = self.folder / f"checkpoint-{update}"
        # It is a pickle that holds the hub's token in clear, and resuming does not read it.
        (folder / "training_args.bin").unlink(missing_ok=True)
        store.seal(folder, {"step": update, "of": of, "made_by": self.made_by, "inexact": self.inexact})
        for path in _by_number(self.folder)[:-2]:
            store.remove(path)

    @cached_property
    def newest(self) -> Path | None:
        """The checkpoint to go on from, looked for once; None: begin at the beginning.

        Raises:
            TrainingError: going on from it would end elsewhere than an uninterrupted training, and nobody asked for it.
        """
        from pipeline.algorithms.ranks import Ranks

        ranks = Ranks()
        # One looks and sets damaged ones aside; all go on from what it found.
        newest = ranks.first(newest_sound(self.folder, self.step) if ranks.rank == 0 else None)
        if newest is None:
            return None
        manifest = store.read_manifest(newest) or {}
        self.inexact = list(manifest.get("inexact", ()))
        found = differences(manifest.get("made_by", {}), self.made_by)
        if not found:
            return newest
        self._check_parts(newest, manifest.get("made_by", {}))
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        told = "; ".join([*found[:SHOWN], *more])
        if not self.allow_inexact:
            raise TrainingError(
                f"{self.step}: {newest}: it was made otherwise ({told}), so going on from it would not end where an "
                f"uninterrupted training does. Make that as it was, or delete {self.folder} to begin at the beginning, "
                "or set allow_inexact_resume=true to go on all the same: the report will say so"
            )
        self.inexact.append(f"it went on from update {manifest['step']} with another {told}")
        return newest

    def _check_parts(self, newest: Path, before: Mapping[str, Any]) -> None:
        """DeepSpeed writes a part for each process, which the same number of them under the same stage can take up."""
        was, now = ((each.get("zero", 0), each.get("world_size", 1)) for each in (before, self.made_by))
        if was != now and (was[0] or now[0]):
            raise TrainingError(
                f"{self.step}: {newest}: {was[1]} processes under launch.zero={was[0]} wrote it, and {now[1]} under "
                f"launch.zero={now[0]} cannot go on from it. Set launch as it was, or delete {self.folder} to begin at "
                "the beginning"
            )


def newest_sound(folder: Path, step: str) -> Path | None:
    """The newest checkpoint to go on from whose files are all as they were written, and no others.

    A damaged one is set aside under the name `damaged-checkpoint-<update>`, and standard error says what is wrong. One
    without a seal was never finished, which a kill explains: it is deleted, as are those that are not needed.
    """
    sound = None
    for path in reversed(_by_number(folder)):
        problems = [] if sound else _problems(path)
        if problems:
            _put_away(path, step, problems)
        elif sound or _is_last(path):
            store.remove(path)
        else:
            sound = path
    return sound


def _problems(checkpoint: Path) -> list[str]:
    # In a checkpoint a name decides what is loaded: a file that nobody wrote may stand in for one that was.
    return store.verify(checkpoint, hashes=True) or [
        f"{name} was not written with it" for name in store.strangers(checkpoint)
    ]


def _put_away(checkpoint: Path, step: str, problems: Sequence[str]) -> None:
    if not (checkpoint / store.MANIFEST).exists():
        print(f"{step}: {checkpoint.name} was never finished ({problems[0]}); it is deleted", file=sys.stderr)
        store.remove(checkpoint)
        return
    aside = checkpoint.with_name(DAMAGED + checkpoint.name)
    store.remove(aside)
    checkpoint.rename(aside)
    print(f"{step}: {checkpoint.name} is damaged ({'; '.join(problems)}); it is set aside as {aside}", file=sys.stderr)


def _by_number(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _is_last(checkpoint: Path) -> bool:
    # transformers 5.23 makes one update too many when it goes on from the last checkpoint in the middle of an epoch.
    manifest = store.read_manifest(checkpoint) or {}
    return bool(manifest.get("step", 0) >= manifest.get("of", math.inf))


def _callback(kept: Checkpoints, trainer: "Trainer") -> "TrainerCallback":
    from transformers import PrinterCallback, TrainerCallback

    trainer.remove_callback(PrinterCallback)

    class Seal(TrainerCallback):  # type: ignore[misc]
        """Seals every checkpoint when it is complete, keeps the two newest, shows the progress, and stops a training
        whose numbers are none."""

        bar: Bar | None = None
        factor = 1.0
        taken = True
        skipped = 0

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.factor = _loss_factor(trainer)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # accelerate does not see what a fused optimizer skips.
            skipped = trainer.accelerator.optimizer_step_was_skipped or _loss_factor(trainer) < self.factor
            self.taken, self.skipped = not skipped, self.skipped + skipped
            self.bar = self.bar or Bar(kept.step, total=state.max_steps).__enter__()
            last = state.log_history[-1] if state.log_history else {}
            noted = [f"{name} {last[name]:.3f}" for name in ("reward", "loss") if name in last]
            self.bar.at(state.global_step, " ".join(noted))

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            line = state.log_history[-1]
            check(line, kept.step, step_taken=self.taken)
            if self.skipped and "loss" in line:
                line["steps_skipped"], self.skipped = self.skipped, 0

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            kept.seal(state.global_step, state.max_steps)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.bar:
                self.bar.__exit__(None, None, None)

    return Seal()


def _loss_factor(trainer: "Trainer") -> float:
    """What fp16 multiplies the loss by; less after a step that it skipped, because a gradient was no finite number."""
    scaler = trainer.accelerator.scaler
    return 1.0 if scaler is None else float(scaler.get_scale())


def _metrics(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """What the trainer logged, a line an update and a line an evaluation, without what depends on the clock and without
    what is no finite number: the norm of a gradient whose step fp16 skipped, or a mean of nothing."""
    lines = [
        {
            name: value
            for name, value in line.items()
            if not any(part in name for part in TIMED) and (not isinstance(value, float) or math.isfinite(value))
        }
        for line in history
    ]
    return [line for line in lines if LOSSES & line.keys()]


def check(line: Mapping[str, float], step: str, *, step_taken: bool = True) -> None:
    """Stop a training that has gone wrong.

    Args:
        line: what a trainer of transformers logged.
        step: the step's name, for messages.
        step_taken: the last gradient's step was taken, and not skipped as fp16 does now and then.

    Raises:
        TrainingError: a loss, or the gradient of a step that was taken, is not a number.
    """
    found = {name: line[name] for name in sorted(LOSSES & line.keys())}
    if step_taken and "grad_norm" in line:
        found["gradient"] = line["grad_norm"]
    remedy = "lower learning_rate" if line["step"] else "set model.dtype to bf16 or fp32"
    for name, value in found.items():
        if not math.isfinite(value):
            raise TrainingError(f"{step}: the {name} is {value} at update {line['step']:.0f}; {remedy}")


def _check_weights(trainer: "Trainer", step: str) -> None:
    """The last gradients may be in no line of the log."""
    if not all(bool(each.isfinite().all()) for each in trainer.model.parameters() if each.requires_grad):
        raise TrainingError(
            f"{step}: the weights are no finite numbers after update {trainer.state.global_step}; lower learning_rate"
        )


def write_metrics(folder: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """Write metrics.jsonl, a line an update."""
    store.write_text(folder / "metrics.jsonl", "".join(canonical(line) + "\n" for line in metrics))


def write_card(
    folder: Path,
    options: dict[str, Any],
    model: ModelConfig,
    seed: int,
    metrics: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    kind: Kind,
    pad_id: int | None,
) -> None:
    """A model card with what a reader of the folder needs: what it is on top of, how it was made, how to load it.

    Args:
        pad_id: what a reward model's rows are padded with, which is often another than the base's.
    """
    name = options["name"]
    losses = [line for line in metrics if "loss" in line]
    course = (
        f"Loss {losses[0]['loss']:.4f} at the first logged update,\n{losses[-1]['loss']:.4f} at the last "
        f"({losses[-1]['step']:.0f})."
        if losses
        else f"{summary['updates']} updates."
    )
    adapter = (folder / ADAPTER).exists()
    scores = kind == "SequenceClassification"
    padding = f"\nmodel.config.pad_token_id = {pad_id}  # the score is that of the last token that is another"
    card = f"""---
library_name: {"peft" if adapter else "transformers"}
base_model: {json.dumps(model.base)}
tags: [{"lora, " if adapter else ""}{name}, prefloop]
---

# {name} {"adapter" if adapter else "weights"} for {model.base}

Trained by prefloop with {name.upper().replace("_", " ")} on {summary["examples"]} examples, base held in
{model.quantization}, seed {seed}. {course}

```python
{_loading(folder, f"AutoModelFor{kind}", ", num_labels=1" if scores else "")}{padding if scores else ""}
```

Options:

```json
{json.dumps(options, indent=2)}
```
"""
    store.write_text(folder / "README.md", card)


def _loading(folder: Path, kind: str, more: str) -> str:
    """The lines of Python that load what is in the folder."""
    base = f"{kind}.from_pretrained(BASE{more})"
    trained = weights.read(folder)
    if not trained:
        return f"""from peft import PeftModel
from transformers import {kind}

model = PeftModel.from_pretrained({base}, "this folder")"""
    if any(name.endswith("lm_head.weight") for name in trained):
        base = f"{kind}.from_pretrained(BASE, tie_word_embeddings=False)"
    lines = [
        "from safetensors.torch import load_file",
        f"from transformers import {kind}",
        "",
        f"model = {base}",
        f'model.load_state_dict(load_file("this folder/{weights.FILE}"), strict=False)',
    ]
    if (folder / ADAPTER).exists():
        lines = ["from peft import PeftModel", *lines, 'model = PeftModel.from_pretrained(model, "this folder")']
    return "\n".join(lines)
