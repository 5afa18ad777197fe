"""Stage 3: one training step, in a process of its own: preferences -> an adapter, saved as a standard PEFT folder.

A killed step goes on from its newest sound checkpoint, with the same numbers as if nothing had happened: a checkpoint
counts only once the hashes of all its files are in it (Hugging Face's are not atomic, and one with a missing optimizer
or a flipped byte is accepted in silence). What is left out: what is learned and how (`pipeline.algorithms`).
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, load_model, load_tokenizer
from pipeline.plugins import Config
from pipeline.progress import Bar
from pipeline.recipe import AnyAlgorithm
from pipeline.records import Preference, canonical
from pipeline.worker import Job

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

VERSION = 1
"""Raised when a change of this file changes what comes out."""

TIMED = ("runtime", "per_second", "total_flos", "num_tokens")
"""Parts of the names of metrics that differ between two equal runs. Tokens are counted from the last resumption."""


class Training(Config):
    """The identity of a train step."""

    seed: int
    model: ModelConfig
    algorithm: AnyAlgorithm


def finish(job: Job) -> None:
    """Train, and write the adapter, its model card, metrics.jsonl and summary.json.

    Raises:
        TrainingError: there is nothing to learn from, or the loss is not a number.
    """
    from pipeline.algorithms.base import Setting

    config = Training.model_validate(job.options["config"])
    preferences = list(store.read_jsonl(job.inputs["label"] / "preferences.jsonl", Preference))
    rows = config.algorithm.rows(preferences)
    checkpoints = job.work_dir / "checkpoints"
    setting = Setting(
        model=load_model(config.model, training=True),
        tokenizer=load_tokenizer(config.model),
        output_dir=checkpoints,
        seed=config.seed,
    )
    trainer = config.algorithm.trainer(rows, setting)
    _train_in_fp32(trainer.model)
    trainer.add_callback(_callback(job.step, trainer))
    trainer.train(resume_from_checkpoint=_newest_sound(checkpoints))
    metrics = _metrics(trainer.state.log_history)
    _check(metrics, job.step)
    _save(trainer.model, job.out, config.model.base)
    _write_card(job.out / "README.md", config, len(rows), metrics)
    store.write_text(job.out / "metrics.jsonl", "".join(canonical(line) + "\n" for line in metrics))
    store.write_json(
        job.out / "summary.json",
        {
            "algorithm": config.algorithm.name,
            "preferences": len(preferences),
            "examples": len(rows),
            "updates": trainer.state.global_step,
            "trainable_parameters": sum(each.numel() for each in trainer.model.parameters() if each.requires_grad),
            "dtype": str(setting.model.dtype),
        },
    )


def _train_in_fp32(model: Any) -> None:
    # TRL casts adapters on a 4-bit base to bf16, and PEFT loads them back as fp32: a resumed run would go on in another
    # precision than it began in. fp32 from the start is exact, and what the optimizer needs for small updates.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _save(model: Any, folder: Path, base: str) -> None:
    for adapter in model.peft_config.values():
        # The recipe's name of the base, where PEFT would write the path it has on this machine.
        adapter.base_model_name_or_path = base
        # PEFT keeps the layers' names in a set and writes them in its order, which is another in every process.
        if isinstance(adapter.target_modules, set):
            adapter.target_modules = sorted(adapter.target_modules)
    model.save_pretrained(str(folder))


def _newest_sound(checkpoints: Path) -> str | None:
    """The newest checkpoint to go on from whose files are all as they were written; the others are deleted."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    sound = next((path for path in found if not store.verify(path, hashes=True) and not _is_last(path)), None)
    for path in found:
        if path != sound:
            shutil.rmtree(path)
    return str(sound) if sound else None


def _is_last(checkpoint: Path) -> bool:
    # transformers 5.23 makes one update too many when it goes on from the last checkpoint in the middle of an epoch.
    manifest = store.read_manifest(checkpoint) or {}
    return bool(manifest.get("step", 0) >= manifest.get("of", math.inf))


def _callback(step: str, trainer: "Trainer") -> "TrainerCallback":
    from transformers import PrinterCallback, TrainerCallback

    trainer.remove_callback(PrinterCallback)

    class Seal(TrainerCallback):  # type: ignore[misc]
        """Seals every checkpoint when it is complete, keeps the two newest, and shows the progress."""

        bar: Bar | None = None

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = self.bar or Bar(step, total=state.max_steps).__enter__()
            losses = [line["loss"] for line in state.log_history if "loss" in line]
            self.bar.at(state.global_step, f"loss {losses[-1]:.3f}" if losses else "")

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # It is a pickle that holds the hub's token in clear, and resuming does not read it.
            (folder / "training_args.bin").unlink(missing_ok=True)
            store.seal(folder, {"step": state.global_step, "of": state.max_steps})
            older = sorted(folder.parent.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
            for path in older[:-2]:
                shutil.rmtree(path)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.bar:
                self.bar.__exit__(None, None, None)

    return Seal()


def _metrics(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """What the trainer logged, a line an update, without what depends on the clock."""
    lines = [
        {name: value for name, value in line.items() if not any(part in name for part in TIMED)} for line in history
    ]
    return [line for line in lines if "loss" in line]


def _check(metrics: Sequence[dict[str, float]], step: str) -> None:
    for line in metrics:
        if not math.isfinite(line["loss"]):
            raise TrainingError(f"{step}: the loss is {line['loss']} at update {line['step']:.0f}; lower learning_rate")


def _write_card(path: Path, config: Training, examples: int, metrics: Sequence[dict[str, float]]) -> None:
    """A model card with what a reader of the folder needs: what it is on top of, how it was made, how to load it."""
    options = json.dumps(config.algorithm.model_dump(mode="json"), indent=2)
    card = f"""---
library_name: peft
base_model: {json.dumps(config.model.base)}
tags: [lora, {config.algorithm.name}, prefloop]
---

# {config.algorithm.name} adapter for {config.model.base}

Trained by prefloop with {config.algorithm.name.upper()} on {examples} examples, base held in
{config.model.quantization}, seed {config.seed}. Loss {metrics[0]["loss"]:.4f} at the first logged update,
{metrics[-1]["loss"]:.4f} at the last ({metrics[-1]["step"]:.0f}).

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "this folder")
```

Options:

```json
{options}
```
"""
    store.write_text(path, card)
