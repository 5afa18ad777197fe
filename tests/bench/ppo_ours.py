"""Our PPO on a benchmark's work: python ppo_ours.py nf4|bf16 speed|curve SEED RESULT.json"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from ppo_work import (
    ALPHA,
    RANK,
    TEMPERATURE,
    WORKS,
    Turns,
    computing,
    held,
    learnable,
    prompts,
)

from pipeline.algorithms.checkpoints import Checkpoints
from pipeline.algorithms.ppo import Config
from pipeline.algorithms.ppo_roles import Roles
from pipeline.algorithms.ppo_rollout import Task
from pipeline.algorithms.ppo_trainer import PPOTrainer
from pipeline.algorithms.scoring import RewardHead
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Message, Prompt, Response
from pipeline.sampling.local import end_tokens

kind, work, seed, result = sys.argv[1], WORKS[sys.argv[2]], int(sys.argv[3]), Path(sys.argv[4])


class Timed(PPOTrainer):
    """Notes the time of its forward and backward passes, and of each update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passes = 0.0
        self.updates: list[dict[str, float]] = []
        self.curve: list[tuple[float, float]] = []

    def _micro_batch(self, *args: Any) -> Any:
        began = time.perf_counter()
        found = super()._micro_batch(*args)
        self.passes += time.perf_counter() - began
        return found

    def update(self) -> Any:
        turns.next()
        began, self.passes = time.perf_counter(), 0.0
        line = super().update()
        whole = time.perf_counter() - began
        self.updates.append({**self.seconds, "passes": self.passes, "whole": whole, "length": line["length"]})
        self.curve.append((line["kl"], line["score"]))
        return line


class Learnable:
    """The reward that both sides can learn, as a judge."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """See `judges.base.Scorer`."""
        return [learnable(each.text) for each in responses]


turns = Turns()
torch.set_num_threads(1)
torch.manual_seed(seed)
model = held(kind)
base, tokenizer = load_model(model, training=True), load_tokenizer(model)
lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
with tempfile.TemporaryDirectory() as folder:
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(folder)
    head = RewardHead(
        folder=Path(folder),
        model=model,
        shared=True,
        pool="last",
        pad_id=0,
        max_length=1024,
        weight_1H=torch.randn(1, base.config.hidden_size) / base.config.hidden_size**0.5,
        accuracy=(1.0, 1.0, 1.0),
        temperature=1.0,
    )
    roles = Roles(adapted.unload(), lora, seed=seed, reward=head if work.timed else None)
config = Config(
    reward="the_adapter_above",
    learning_rate=work.learning_rate,
    critic_learning_rate=None if work.timed else work.learning_rate,
    lr_scheduler_type="constant",
    missing_eos_penalty=work.missing_eos_penalty,
    normalize_scores=work.timed,
    per_device_train_batch_size=work.micro_batch,
    gradient_accumulation_steps=work.accumulated,
    num_mini_batches=work.mini_batches,
    max_steps=work.updates,
    num_ppo_epochs=work.epochs,
    kl_coef=work.kl_coef,
    lam=work.lam,
    max_new_tokens=work.new_tokens,
    temperature=TEMPERATURE,
    normalize_samples=work.episodes,
)
tasks = []
for text, ids in prompts(tokenizer):
    tasks.append(Task(Prompt(id=text, messages=(Message(role="user", content=text),)), tuple(ids)))
trainer = Timed(
    config,
    roles,
    tokenizer,
    tasks,
    reward=None if work.timed else Learnable(),
    eos=end_tokens(base, tokenizer),
    seed=seed,
    checkpoints=Checkpoints(result.with_suffix(".checkpoints"), "bench"),
    step="bench",
)
with computing(kind, work):
    trainer.train()
kept = trainer.updates[1:]
found = {
    "dtype": model.dtype,
    "episodes": work.episodes,
    "seconds": [each["whole"] for each in trainer.updates],
    "curve": trainer.curve,
    "phases": {name: round(sum(each[name] for each in kept) / len(kept), 2) for name in kept[0]},
    "overhead": round(sum(each["whole"] for each in kept) / sum(each["rollout"] + each["passes"] for each in kept), 3),
}
result.write_text(json.dumps(found), encoding="utf-8")
