"""The work that both sides of the benchmarks do."""

import contextlib
import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.models import ModelConfig, dtype_of

PROMPTS, TEMPERATURE, RANK, ALPHA = 64, 0.7, 16, 32


@dataclass(frozen=True)
class Work:
    """What is different between `make bench-ppo` and `make bench-ppo-curve`."""

    updates: int
    new_tokens: int
    epochs: int
    micro_batch: int
    accumulated: int
    mini_batches: int
    learning_rate: float
    """Of the policy, and of TRL's critic, for which it has no other."""
    kl_coef: float
    lam: float
    missing_eos_penalty: float
    timed: bool
    """The reward is a model whose head is drawn at random, and TRL's critic a whole model, which is what it makes of
    one. Else the reward can be learned, and TRL's critic is an adapter, which such a rate does not destroy."""

    @property
    def episodes(self) -> int:
        """Answers an update."""
        return self.micro_batch * self.accumulated * self.mini_batches


WORKS = {
    # The first update is a warm-up.
    "speed": Work(3, 48, 4, 4, 4, 1, learning_rate=1e-5, kl_coef=0.05, lam=0.95, missing_eos_penalty=1.0, timed=True),
    # As `ppo_reward.py` learns. From 16 answers in four epochs more noise is learned than reward.
    "curve": Work(24, 8, 1, 16, 2, 2, learning_rate=6e-4, kl_coef=0.2, lam=1.0, missing_eos_penalty=0.0, timed=False),
}
SHARE_MEAN, SHARE_DEVIATION = 0.1228, 0.0539
"""Of the share of e in the untrained policy's answers, four to each prompt."""


TURNS = "PREFLOOP_BENCH_TURNS"
"""The environment's variable with two open files: to read a turn from, and to write its end to."""


class Turns:
    """The turns of this process, the first of which it waits for here; started by hand, it is always its turn."""

    def __init__(self) -> None:
        self.files = tuple(int(number) for number in os.environ.get(TURNS, "").split())
        if self.files:
            os.read(self.files[0], 1)

    def next(self) -> None:
        """End this turn and wait for another."""
        if self.files:
            os.write(self.files[1], b".")
            os.read(self.files[0], 1)


def share_of_e(text: str) -> float:
    """The share of e among the letters; 0 for a text without letters."""
    letters = [each for each in text.lower() if each.isalpha()]
    return letters.count("e") / len(letters) if letters else 0.0


def learnable(text: str) -> float:
    """The share of e, in deviations of the untrained policy's from their mean: what both sides are paid."""
    return (share_of_e(text) - SHARE_MEAN) / SHARE_DEVIATION


def held(kind: str) -> ModelConfig:
    """The base of a kind. `bf16` is that whatever the processor; NF4 computes in what the processor multiplies."""
    if kind == "bf16":
        return ModelConfig(quantization="none", dtype="bf16")
    dtype: Literal["bf16", "fp32"] = "bf16" if dtype_of(ModelConfig()) == torch.bfloat16 else "fp32"
    return ModelConfig(quantization="nf4", dtype=dtype)


def computing(kind: str, work: Work) -> AbstractContextManager[Any]:
    """Inside which a side trains. What is not timed need not wait for the emulated products of bf16."""
    if work.timed or kind != "bf16" or dtype_of(ModelConfig()) == torch.bfloat16:
        return contextlib.nullcontext()
    from rounded import Rounded

    return Rounded()


def prompts(tokenizer: Any) -> list[tuple[str, list[int]]]:
    """The 64 shortest English training prompts, as text and as token ids of a conversation."""
    file = Path(__file__).parents[2] / "data" / "prompts" / "train.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [line["messages"][0]["content"] for line in lines if len(line["messages"]) == 1]
    every = []
    for text in texts:
        turns = [{"role": "system", "content": "Answer."}, {"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        every.append((text, [int(token) for token in ids["input_ids"]]))
    return sorted(every, key=lambda each: (len(each[1]), each[0]))[:PROMPTS]
