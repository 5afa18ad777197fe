"""PPO on the tiny model, ready to take steps: its parts, and rewards that can be named in a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import job_of, prompt_of

from pipeline import store
from pipeline.models import ModelConfig
from pipeline.records import Prompt, Response
from pipeline.train import Training
from pipeline.worker import Job

LETTERS = "tiny_ppo:capitals"


def capitals(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """How many letters of the answer are capitals."""
    return [float(sum(map(str.isupper, response.text))) for response in responses]


def nothing(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """No answer can be scored."""
    return [None for _ in responses]


def some(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """Every fourth answer cannot be scored."""
    return [None if index % 4 == 0 else each for index, each in enumerate(capitals(prompts, responses))]


def by_turns(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """No score, 1, 2, 6 and so on: three is the mean of those that there are. Two answers alone have none."""
    return [(None, 1.0, 2.0, 6.0)[index % 4] if len(responses) > 2 else None for index, _ in enumerate(responses)]


def config(tiny: ModelConfig, quantization: Any = "none", **options: Any) -> Training:
    """Four updates of eight answers of at most twelve tokens, two optimizer steps an epoch."""
    defaults: dict[str, Any] = {
        "reward": LETTERS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0.0,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "save_steps": 1,
        "max_new_tokens": 12,
        "normalize_samples": 8,
        "lora": {"r": 4, "lora_alpha": 8},
    }
    dtype = "fp32" if quantization == "none" else "bf16"
    return Training(
        seed=3,
        model=tiny.model_copy(update={"quantization": quantization, "dtype": dtype}),
        algorithm={"name": "ppo", **defaults, **options},  # type: ignore[arg-type]
    )


def prompts(count: int = 12) -> list[Prompt]:
    """As many prompts, of different lengths."""
    return [prompt_of(f"What is {number}" + " and more" * (number % 3) + "?") for number in range(count)]


def prepared(top: Path, training: Training, inputs: dict[str, Path] | None = None, count: int = 12) -> Job:
    """The job of the step in `top`."""
    folder = top / "generate"
    store.make_dirs(folder)
    store.write_jsonl(folder / "prompts.jsonl", prompts(count))
    return job_of(top, training, step="train.ppo", inputs={"generate": folder, **(inputs or {})})


def published(job: Job) -> dict[str, bytes]:
    """The bytes of every file that the step left."""
    return {path.name: path.read_bytes() for path in job.out.iterdir()}
