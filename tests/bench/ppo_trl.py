"""TRL 1.12's PPO on a benchmark's work: python ppo_trl.py nf4|bf16 speed|curve SEED RESULT.json"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from pipeline.models import built_in, dtype_of, quantization

kind, work, seed, result = sys.argv[1], WORKS[sys.argv[2]], int(sys.argv[3]), Path(sys.argv[4])
spent = {"rollout": 0.0, "backward": 0.0}
seconds: list[float] = []
curve: list[tuple[float, float]] = []


def timed(phase: str, function: Any) -> Any:
    """The function, its time added up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        value = function(*args, **kwargs)
        spent[phase] += time.perf_counter() - began
        return value

    return call


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes what each update takes."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        turns.next()
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds.append(time.perf_counter() - self.began)
        turns.next()
        self.began = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        curve.append((logs["objective/kl"], logs["objective/scores"]))


def paid(model: Any, ids_BT: torch.Tensor, pad_id: int, prompt: int) -> tuple[Any, torch.Tensor, Any]:
    """TRL's `get_reward`, by which it asks reward and critic alike, with the learnable reward in the reward's place."""
    if model is not reward:
        return ask(model, ids_BT, pad_id, prompt)  # type: ignore[no-any-return]
    texts = tokenizer.batch_decode(ids_BT[:, prompt:], skip_special_tokens=True)
    return None, torch.tensor([learnable(text) for text in texts]), None


turns = Turns()
torch.set_num_threads(1)
torch.manual_seed(seed)
folder = str(built_in())
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = "<|endoftext|>"  # with pad == eos TRL would take the ends of turns in a prompt for padding
model = held(kind)
policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype_of(model), quantization_config=quantization(model))
value, reward = (
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype_of(model), num_labels=1) for _ in range(2)
)
if not work.timed:
    ask, ppo_trainer.get_reward = ppo_trainer.get_reward, paid
    value = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"), value)
    for parameter in filter(lambda each: each.requires_grad, value.parameters()):
        parameter.data = parameter.data.float()
    torch.nn.init.zeros_(value.score.weight.requires_grad_(True))  # as our critic starts
ppo_trainer.batch_generation = timed("rollout", ppo_trainer.batch_generation)
trainer = PPOTrainer(
    args=PPOConfig(
        output_dir=tempfile.mkdtemp(),
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        # It accumulates over the whole batch, whatever its minibatches are, unless it need not accumulate.
        per_device_train_batch_size=work.micro_batch if work.mini_batches == 1 else work.episodes,
        gradient_accumulation_steps=work.accumulated if work.mini_batches == 1 else 1,
        num_mini_batches=work.mini_batches,
        total_episodes=work.episodes * work.updates,
        num_ppo_epochs=work.epochs,
        kl_coef=work.kl_coef,
        lam=work.lam,
        response_length=work.new_tokens,
        temperature=TEMPERATURE,
        stop_token="eos",
        missing_eos_penalty=work.missing_eos_penalty,
        num_sample_generations=0,
        local_rollout_forward_batch_size=16,
        bf16=kind == "bf16",  # with bf16=True it cannot sample from a 4-bit policy
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
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
with computing(kind, work):
    trainer.train()
found = {"dtype": model.dtype, "episodes": work.episodes, "seconds": seconds, "curve": curve, "all_updates": spent}
result.write_text(json.dumps(found), encoding="utf-8")
