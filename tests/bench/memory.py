"""`make bench-memory`: what the memory plan says of some steps on a processor, beside the peaks that they had.

Writes runs/bench/memory.json: for each setting `predicted_mb`, `measured_mb` and their `ratio`. Every step runs as the
engine runs it, in a process of its own with the engine's environment, for two updates on rows of one known length; its
peak is the kernel's. The built-in model throughout.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tiny import preference_of, prompt_of, response_of

from pipeline import store
from pipeline.algorithms import dpo, kto, ppo, reward_model, sft
from pipeline.doctor_memory import work_of
from pipeline.generate import Pairing, Sampling
from pipeline.launch import environment
from pipeline.memory import Work, number_of, peak, sizes_of
from pipeline.models import ModelConfig, chat_ids, load_tokenizer
from pipeline.recipe import PromptsConfig
from pipeline.records import Pair, Preference, Verdict
from pipeline.sampling.local import Config as Local
from pipeline.train import Training

ROOT = Path(__file__).parents[2]
NF4, PLAIN = ModelConfig(quantization="nf4"), ModelConfig(quantization="none")
FP32 = ModelConfig(quantization="none", dtype="fp32")
WORD = " day"
"""One token of the built-in model, and still one in a row of them."""


def preferences(length: int, prompts: int, answers: int = 2) -> list[Preference]:
    """Preferences whose prompt and answer have so many tokens together, all of them; half of that is the prompt."""
    tokenizer = load_tokenizer(NF4)
    found = []
    for number in range(prompts):
        text = f"{number}"
        while len(chat_ids(tokenizer, prompt_of(text).messages)) < length // 2:
            text += WORD
        prompt = prompt_of(text, name=f"p{number:03}")
        room = length - len(chat_ids(tokenizer, prompt.messages)) - 2
        said = [response_of(f"{index}" + WORD * room, index=index) for index in range(answers)]
        found += [preference_of(prompt, said[0], other) for other in said[1:]]
    return found


def write_inputs(folder: Path, found: list[Preference]) -> dict[str, Path]:
    """What the stages generate and label would have left."""
    generate, label = folder / "generate", folder / "label"
    for each in (generate, label):
        each.mkdir(parents=True)
    prompts = {each.prompt.id: each.prompt for each in found}
    pairs = [Pair.of(each.prompt, each.chosen, each.rejected) for each in found]
    verdicts = [
        Verdict(pair_id=pair.id, judge="j", fingerprint="f", p_a=0.9 if pair.a == each.chosen else 0.1)
        for pair, each in zip(pairs, found, strict=True)
    ]
    store.write_jsonl(generate / "prompts.jsonl", prompts.values())
    store.write_jsonl(generate / "pairs.jsonl", pairs)
    store.write_jsonl(label / "preferences.jsonl", found)
    store.write_jsonl(label / "verdicts.jsonl", verdicts)
    return {"generate": generate, "label": label}


def peak_mb(folder: Path, step: str, config: Any, inputs: dict[str, Path], target: str) -> float:
    """The peak of one worker process, which leaves its output in `folder`/out."""
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True)
    job = {
        "step": step,
        "identity": {},
        "options": {"config": config.model_dump(mode="json")},
        "inputs": {name: {"path": str(path)} for name, path in inputs.items()},
        "files": [],
        "cache": str(folder / "cache"),
        "run": "bench",
        "work": target,
    }
    (folder / "job.json").write_text(json.dumps(job))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.worker", str(folder / "job.json"), "work"],
        env={**environment("finish", 0, 1), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{step}: ended with status {status}")
    return usage.ru_maxrss * 1024 / 1e6


def measure(top: Path, name: str, model: ModelConfig, algorithm: Any, found: list[Preference], **more: Path) -> float:
    """The peak of a train step."""
    inputs = {**write_inputs(top / name / "inputs", found), **more}
    config = Training(seed=1, model=model, algorithm=algorithm)
    return peak_mb(top / name, f"train.{algorithm.name}", config, inputs, "pipeline.train:finish")


def sample(top: Path, model: ModelConfig, length: int, batch: int, tokens: int) -> float:
    """The peak of a process that samples two answers to each prompt."""
    rows = preferences(2 * length, batch // 2)
    folder = top / "generate"
    folder.mkdir(parents=True)
    store.write_jsonl(folder / "prompts.jsonl", [each.prompt for each in rows])
    sampling = Sampling(
        seed=1,
        model=model,
        sampler=Local(max_new_tokens=tokens, batch_size=batch),
        prompts=PromptsConfig(files=(folder / "prompts.jsonl",)),
        samples=2,
        purpose="train",
    )
    config = Pairing(sampling=sampling, pairing="random")
    return peak_mb(folder / "step", "generate", config, {}, "pipeline.generate:work")


class Setting(NamedTuple):
    """One step: prompts and answers of so many tokens, and so many answers to a prompt."""

    name: str
    model: ModelConfig
    algorithm: Any
    """None: answers are drawn, 32 at once."""
    prompt: int
    answer: int
    answers: int = 2


def ppo_of(tokens: int) -> Any:
    """PPO with minibatches of four answers."""
    return ppo.Config(
        reward={"step": "reward_model", "min_accuracy": 0.0},
        per_device_train_batch_size=4,
        num_mini_batches=4,
        num_ppo_epochs=1,
        max_new_tokens=tokens,
        rollout_batch_size=16,
        normalize_samples=16,
        **TWO,
    )


TWO: dict[str, Any] = {"max_steps": 2, "gradient_accumulation_steps": 1}
SHORT: dict[str, Any] = {"per_device_train_batch_size": 2, **TWO}
REWARD = "reward model, NF4, 2 prompts x 4 x 128"
SETTINGS = (
    Setting("DPO, NF4, 2 x 128", NF4, dpo.Config(per_device_train_batch_size=2, **TWO), 64, 64),
    Setting("DPO, NF4, 4 x 256", NF4, dpo.Config(per_device_train_batch_size=4, **TWO), 128, 128),
    Setting("KTO, bf16, 4 x 192", PLAIN, kto.Config(per_device_train_batch_size=4, **TWO), 96, 96),
    Setting("KTO, NF4, 4 x 128", NF4, kto.Config(per_device_train_batch_size=4, **TWO), 64, 64),
    Setting(REWARD, NF4, reward_model.Config(per_device_train_batch_size=2, **TWO), 64, 64, 4),
    Setting(
        "reward model, bf16, 2 prompts x 2 x 256",
        PLAIN,
        reward_model.Config(per_device_train_batch_size=2, **TWO),
        128,
        128,
    ),
    Setting("SFT, NF4, 4 x 128", NF4, sft.Config(per_device_train_batch_size=4, **TWO), 64, 64),
    Setting("SFT with DoRA, NF4, 4 x 128", NF4, sft.Config(lora={"use_dora": True}, **TWO), 64, 64),
    Setting("SFT of all weights, fp32, 2 x 64", FP32, sft.Config(tune="full", **SHORT), 32, 32),
    Setting("SFT of all weights, bf16, 2 x 64", PLAIN, sft.Config(tune="full", **SHORT), 32, 32),
    Setting("SFT of the output layer, bf16, 4 x 128", PLAIN, sft.Config(tune="lm_head", **TWO), 64, 64),
    Setting("DPO of all weights, bf16, 2 x 64", PLAIN, dpo.Config(tune="full", **SHORT), 32, 32),
    Setting("PPO, NF4, 4 x (64 + 64)", NF4, ppo_of(64), 64, 64),
    Setting("PPO, NF4, 4 x (128 + 128)", NF4, ppo_of(128), 128, 128),
    Setting("generate, NF4, 32 x (128 + 64)", NF4, None, 128, 64),
)


def measured_mb(top: Path, each: Setting) -> float:
    """The peak of a setting."""
    if each.algorithm is None:
        # Its peak is while the model loads from a mapped file, of which the kernel counts more or less.
        found = [sample(top / str(number), each.model, each.prompt, 32, each.answer) for number in range(3)]
        return statistics.median(found)
    prompts = 16 if each.algorithm.name == "ppo" else 12
    rows = preferences(each.prompt + each.answer, prompts, each.answers)
    more = {"train.reward_model": top / REWARD / "out"} if each.algorithm.name == "ppo" else {}
    return measure(top, each.name, each.model, each.algorithm, rows, **more)


def predicted_mb(each: Setting) -> float:
    """What the plan says of it."""
    if each.algorithm is None:
        work = Work(kind="sample", batch=32, each=1, length=each.prompt + each.answer, answer=each.answer, rollout=32)
    else:
        told = {"prompt": each.prompt, "answer": each.answer, "candidates": each.answers}
        work = work_of(each.algorithm, each.model, **told)
    work = replace(work, number=number_of(each.model, gpu=False))
    return peak(sizes_of(each.model), work, gpu=False).total / 1e6


def main() -> None:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for each in SETTINGS:
            measured, predicted = measured_mb(Path(folder), each), predicted_mb(each)
            figures[each.name] = {
                "predicted_mb": round(predicted),
                "measured_mb": round(measured),
                "ratio": round(predicted / measured, 3),
            }
            print(each.name, figures[each.name], flush=True)
    target = ROOT / "runs" / "bench" / "memory.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
