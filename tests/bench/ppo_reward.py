"""`make bench-ppo-reward`: PPO and RLOO on a reward whose optimum is known to be far off, on the built-in model in NF4.

    runs/bench/ppo_reward.json   by algorithm: rise_in_sd, kl (nats an answer), minutes

The reward is the share of the letter e among an answer's letters. `rise_in_sd` is by how many deviations of the
untrained policy's scores the mean of the last updates is above the untrained mean; `kl` is that of the same updates.
Both algorithms see the same prompts, take two optimizer steps from every 64 answers, pay the same for a nat, and run as
a recipe would run them; PPO ends at a budget of divergence, RLOO after 1,280 answers.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import store, train
from pipeline.models import ModelConfig
from pipeline.records import Message, Prompt, Response
from pipeline.train import Training
from pipeline.worker import Job

ROOT = Path(__file__).parents[2]
LAST = 3
"""Updates at the end that are averaged."""

SHARED = {"reward": "ppo_reward:share_of_e", "temperature": 1.0, "lr_scheduler_type": "constant", "save_steps": 1000}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {
        "learning_rate": 6e-4,
        "critic_learning_rate": 6e-4,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 2,
        # Fresh answers teach more than a second pass over the last ones, which takes as long.
        "num_ppo_epochs": 1,
        "rollout_batch_size": 64,
        "max_new_tokens": 16,
        "normalize_samples": 128,
        "kl_coef": 0.2,
        # The optimum is far away, and the last way to it is short: three updates from 4 nats to 11.
        "kl_budget": 7.0,
        "lam": 1.0,
        # Or the first thing that it learns is to end its answers, which the reward is not about.
        "missing_eos_penalty": 0.0,
        "max_steps": 45,
    },
    "rloo": {
        "learning_rate": 6e-4,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        # Two optimizer steps from 64 answers, as PPO has.
        "steps_per_generation": 4,
        "num_generations": 4,
        "max_completion_length": 16,
        "normalize_advantages": True,
        # PPO's price of a nat, in the reward's own units.
        "beta": 0.01,
        "max_steps": 40,
    },
}


def share_of_e(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
    """The share of e among the letters; 0 for an answer without letters."""
    import ppo_work  # only here: this file is run by its path, and read by a test as part of a package

    return [ppo_work.share_of_e(response.text) for response in responses]


def main() -> None:
    """Run the algorithms that are named, or both, and write what came out."""
    top = Path("runs/bench/reward")
    written = Path("runs/bench/ppo_reward.json")
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    for name in sys.argv[1:] or ALGORITHMS:
        began = time.perf_counter()
        metrics, summary = run(name, top / name)
        minutes = (time.perf_counter() - began) / 60
        found[name] = {**outcome(name, metrics, summary), "minutes": round(minutes, 1)}
        store.make_dirs(written.parent)
        store.write_json(written, found)
        print(name, json.dumps(found[name]))


def run(name: str, top: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics and summary of a train step."""
    store.remove(top)
    for part in ("generate", "out", "work"):
        store.make_dirs(top / part)
    store.write_jsonl(top / "generate" / "prompts.jsonl", prompts())
    training = Training(
        seed=1,
        model=ModelConfig(quantization="nf4"),
        algorithm={"name": name, **SHARED, **ALGORITHMS[name]},  # type: ignore[arg-type]
    )
    train.finish(
        Job(
            step=f"train.{name}",
            identity={},
            options={"config": training.model_dump(mode="json")},
            inputs={"generate": top / "generate"},
            files=(),
            out=top / "out",
            work_dir=top / "work",
            cache=top / "cache",
            rank=0,
            world=1,
        )
    )
    lines = (top / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads((top / "out" / "summary.json").read_text(encoding="utf-8"))


def prompts() -> list[Prompt]:
    """The shorter half of the English training prompts, to be answered briefly."""
    every = store.read_jsonl(ROOT / "data" / "prompts" / "train.jsonl", Prompt)
    single = [each for each in every if len(each.messages) == 1 and len(each.text) < 120]
    system = Message(role="system", content="Answer in one short sentence.")
    return [each.model_copy(update={"messages": (system, *each.messages)}) for each in single]


def outcome(name: str, metrics: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """How far the score rose, in deviations of the untrained policy's, at which divergence."""
    score, kl = ("score", "kl") if name == "ppo" else ("reward", "kl")
    # TRL tells of answers where it draws them, and not at each step that learns from them.
    last = [line for line in metrics if score in line][-LAST:]
    start = summary.get("start") or start_of_ppo()
    rise = sum(line[score] for line in last) / len(last) - start["score"]
    tokens = 1.0 if name == "ppo" else sum(line["completions/mean_length"] for line in last) / len(last)
    return {
        "rise_in_sd": round(rise / start["score_deviation"], 2),
        "kl": round(sum(line[kl] for line in last) / len(last) * tokens, 2),
        "score_at_start": round(start["score"], 4),
        "score_sd_at_start": round(start["score_deviation"], 4),
        "updates": len(metrics),
    }


def start_of_ppo() -> dict[str, float]:
    """The untrained policy's scores, as PPO measured them."""
    file = Path("runs/bench/reward/ppo/out/summary.json")
    if not file.exists():
        sys.exit(f"{file}: not there; run PPO first, which measures the untrained policy")
    found: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["start"]
    return found


if __name__ == "__main__":
    main()
