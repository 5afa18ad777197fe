"""A train step of the tiny model as the engine runs it: two steps that give it its inputs, then as many processes as
its `launch` says. The functions that workers call are here too, and rewards that go wrong in one process alone."""

import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny_ppo
from rich.console import Console
from tiny import preferences_of, said

from pipeline import store
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig
from pipeline.records import Pair, Prompt, Response
from pipeline.run import Run, Step
from pipeline.train import Training
from pipeline.worker import Job

EXAMPLES = 16


def prompts_step(job: Job) -> None:
    """The prompts of all preferences, and their pairs."""
    store.write_jsonl(job.out / "prompts.jsonl", [each.prompt for each in preferences_of(EXAMPLES)])
    pairs = [Pair.of(each.prompt, each.chosen, each.rejected) for each in preferences_of(EXAMPLES)]
    store.write_jsonl(job.out / "pairs.jsonl", pairs)


def labels_step(job: Job) -> None:
    """The preferences, and the verdicts that they come from."""
    preferences = preferences_of(EXAMPLES)
    store.write_jsonl(job.out / "preferences.jsonl", preferences)
    pairs = [Pair.of(each.prompt, each.chosen, each.rejected) for each in preferences]
    sides = [pair.a.text == each.chosen.text for pair, each in zip(pairs, preferences, strict=True)]
    verdicts = [said(pair, 0.9 if side else 0.1) for pair, side in zip(pairs, sides, strict=True)]
    store.write_jsonl(job.out / "verdicts.jsonl", verdicts)


def training(
    base: Path, algorithm: str, launch: dict[str, Any], *, quantization: str = "none", dtype: str = "fp32", **more: Any
) -> Training:
    """Four updates of four examples with DPO; of eight with PPO, which has two of them."""
    options: dict[str, Any] = {
        "name": algorithm,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0.0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 1,
        "max_steps": 4,
        "lora": {"r": 4, "lora_alpha": 8},
    }
    if algorithm == "ppo":
        options |= {"reward": tiny_ppo.LETTERS, "max_steps": 2, "num_mini_batches": 2, "num_ppo_epochs": 2}
        options |= {"max_new_tokens": 12, "normalize_samples": 8}
    model = ModelConfig.model_validate({"base": str(base), "quantization": quantization, "dtype": dtype})
    return Training.model_validate(
        {"seed": 3, "model": model, "algorithm": {**options, **more}, "launch": {"timeout_s": 120, **launch}}
    )


def run(top: Path, config: Training) -> Run:
    """The run in `top` with the step `train.<its algorithm>`."""
    train = Step(
        name=f"train.{config.algorithm.name}",
        identity=config.identity(),
        inputs=("generate", "label"),
        options={"config": config.model_dump(mode="json")},
        finish="pipeline.train:finish",
        launch=config.launch,
    )
    given = [
        Step(name="generate", identity={}, finish="distributed.rig:prompts_step"),
        Step(name="label", identity={}, finish="distributed.rig:labels_step"),
    ]
    return Run(top, [*given, train], "", top / "cache", Console(file=io.StringIO()))


def trained(top: Path, config: Training) -> Path:
    """The folder that the step leaves."""
    return run(top, config).execute()[-1].path


def metrics(folder: Path) -> list[dict[str, Any]]:
    """A line an update."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    """The adapter's tensors."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


# ---- rewards


def breaks_in_the_second(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """A defect in one process."""
    if os.environ.get("RANK") == "1":
        raise ValueError("this reward is broken")
    return tiny_ppo.capitals(prompts, responses)


def refuses_in_the_second(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """A reason that a user can mend, in one process."""
    if os.environ.get("RANK") == "1":
        raise TrainingError("train.ppo: the second process has no reward")
    return tiny_ppo.capitals(prompts, responses)


def sleeps_in_the_second(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """One process says nothing any more."""
    if os.environ.get("RANK") == "1":
        time.sleep(600)
    return tiny_ppo.capitals(prompts, responses)


# ---- as a command of its own


def main(arguments: Sequence[str]) -> int:
    """`rig TOP TRAINING.json`: execute the run, as `prefloop run` would. For a test that starts it elsewhere."""
    from pipeline.errors import PrefloopError

    top, told = arguments
    try:
        run(Path(top), Training.model_validate_json(Path(told).read_text())).execute()
    except PrefloopError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
