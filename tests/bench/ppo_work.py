"""The work that both sides of the benchmark do."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.models import ModelConfig, dtype_of

PROMPTS, EPISODES, NEW_TOKENS, EPOCHS, MICRO_BATCH, TEMPERATURE, RANK, ALPHA = 64, 16, 48, 4, 4, 0.7, 16, 32
LEARNING_RATE = 1e-5


def held(kind: str) -> ModelConfig:
    """The base of a kind. `bf16` is that whatever the processor; NF4 computes in what the processor multiplies."""
    if kind == "bf16":
        return ModelConfig(quantization="none", dtype="bf16")
    dtype: Literal["bf16", "fp32"] = "bf16" if dtype_of(ModelConfig()) == torch.bfloat16 else "fp32"
    return ModelConfig(quantization="nf4", dtype=dtype)


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
