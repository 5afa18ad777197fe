"""Our PPO on the benchmark's work: python ppo_ours.py nf4|bf16 UPDATES RESULT.json"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from ppo_work import (
    ALPHA,
    EPISODES,
    EPOCHS,
    LEARNING_RATE,
    MICRO_BATCH,
    NEW_TOKENS,
    RANK,
    TEMPERATURE,
    held,
    prompts,
)

from pipeline.algorithms.checkpoints import Checkpoints
from pipeline.algorithms.ppo import Config
from pipeline.algorithms.ppo_roles import Roles
from pipeline.algorithms.ppo_rollout import Task
from pipeline.algorithms.ppo_trainer import PPOTrainer
from pipeline.algorithms.scoring import RewardHead
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Message, Prompt
from pipeline.sampling.local import end_tokens

kind, updates, result = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


class Timed(PPOTrainer):
    """Notes the time of its forward and backward passes, and of each update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passes = 0.0
        self.updates: list[dict[str, float]] = []

    def _micro_batch(self, *args: Any) -> Any:
        began = time.perf_counter()
        found = super()._micro_batch(*args)
        self.passes += time.perf_counter() - began
        return found

    def update(self) -> Any:
        began, self.passes = time.perf_counter(), 0.0
        line = super().update()
        whole = time.perf_counter() - began
        self.updates.append({**self.seconds, "passes": self.passes, "whole": whole, "length": line["length"]})
        return line


torch.set_num_threads(1)
torch.manual_seed(1)
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
    roles = Roles(adapted.unload(), lora, seed=1, reward=head)
config = Config(
    reward="the_adapter_above",
    learning_rate=LEARNING_RATE,
    per_device_train_batch_size=MICRO_BATCH,
    gradient_accumulation_steps=EPISODES // MICRO_BATCH,
    num_mini_batches=1,
    max_steps=updates,
    num_ppo_epochs=EPOCHS,
    max_new_tokens=NEW_TOKENS,
    temperature=TEMPERATURE,
    normalize_samples=EPISODES,
)
tasks = []
for text, ids in prompts(tokenizer):
    tasks.append(Task(Prompt(id=text, messages=(Message(role="user", content=text),)), tuple(ids)))
trainer = Timed(
    config,
    roles,
    tokenizer,
    tasks,
    reward=None,
    eos=end_tokens(base, tokenizer),
    seed=1,
    checkpoints=Checkpoints(result.with_suffix(".checkpoints"), "bench"),
    step="bench",
)
trainer.train()
kept = trainer.updates[1:]
found = {
    "dtype": model.dtype,
    "episodes": EPISODES,
    "seconds": [each["whole"] for each in trainer.updates],
    "phases": {name: round(sum(each[name] for each in kept) / len(kept), 2) for name in kept[0]},
    "overhead": round(sum(each["whole"] for each in kept) / sum(each["rollout"] + each["passes"] for each in kept), 3),
}
result.write_text(json.dumps(found), encoding="utf-8")
