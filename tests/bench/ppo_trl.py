"""TRL 1.12's PPO on the benchmark's work: python ppo_trl.py nf4|bf16 UPDATES RESULT.json"""

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from pipeline.models import built_in, dtype_of, quantization

kind, updates, result = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
spent = {"rollout": 0.0, "backward": 0.0}
ends: list[float] = []


def timed(phase: str, function: Any) -> Any:
    """The function, its time added up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        value = function(*args, **kwargs)
        spent[phase] += time.perf_counter() - began
        return value

    return call


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each update ends."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        ends.append(time.perf_counter())


torch.set_num_threads(1)
torch.manual_seed(1)
folder = str(built_in())
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = "<|endoftext|>"  # with pad == eos TRL would take the ends of turns in a prompt for padding
model = held(kind)
policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype_of(model), quantization_config=quantization(model))
value, reward = (
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype_of(model), num_labels=1) for _ in range(2)
)
ppo_trainer.batch_generation = timed("rollout", ppo_trainer.batch_generation)
trainer = PPOTrainer(
    args=PPOConfig(
        output_dir=tempfile.mkdtemp(),
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=EPISODES // MICRO_BATCH,
        num_mini_batches=1,
        total_episodes=EPISODES * updates,
        num_ppo_epochs=EPOCHS,
        response_length=NEW_TOKENS,
        temperature=TEMPERATURE,
        stop_token="eos",
        missing_eos_penalty=1.0,
        num_sample_generations=0,
        bf16=kind == "bf16",  # with bf16=True it cannot sample from a 4-bit policy
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=1,
    ),
    processing_class=tokenizer,
    model=policy,
    ref_model=None,
    reward_model=reward,
    value_model=value,
    train_dataset=Dataset.from_list([{"input_ids": ids} for _, ids in prompts(tokenizer)]),
    eval_dataset=Dataset.from_list([{"input_ids": ids} for _, ids in prompts(tokenizer)[:4]]),
    peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[Clock()],
)
trainer.accelerator.backward = timed("backward", trainer.accelerator.backward)
trainer.train()
seconds = [after - before for before, after in itertools.pairwise(ends)]
result.write_text(
    json.dumps({"dtype": model.dtype, "episodes": EPISODES, "seconds": seconds, "all_updates": spent}), encoding="utf-8"
)
