"""`make bench-compare`: what comparing five checkpoints takes beside its generation and judging alone.

    runs/bench/compare.json
        time_ratio     seconds of `prefloop compare`, from its start to the report, over those of answering and judging
        memory_ratio   peak of the step that answers, over that of one base with five adapters while it answers
        together       for 32 and for 6 prompts: seconds of batches in which the rows of all adapters are mixed, over
                       those of a batch of each adapter; above 1 the adapters are better exchanged

Five LoRA adapters of rank 16 on the built-in model in NF4 answer held-out prompts, and two judges compare every two of
them. "Alone" is a process of its own with the same batches and the same judges, and nothing else: no journal, no
log-probabilities under the base, no statistics, no report; its loading is not counted.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from judges import likelihood, rules
from judges.base import JudgeConfig, Session
from pipeline import store
from pipeline.adapters import attach
from pipeline.generate import read_prompts
from pipeline.models import ModelConfig, load_model
from pipeline.recipe import PromptsConfig
from pipeline.records import Pair
from pipeline.sampling.base import plan
from pipeline.sampling.local import Config as Sampler

ROOT = Path(__file__).parents[2]
NAMES = tuple(f"adapter{number}" for number in range(1, 6))
BASE = ModelConfig(quantization="nf4")
SAMPLER = Sampler(max_new_tokens=48, batch_size=32)
JUDGES: tuple[JudgeConfig, ...] = (likelihood.Config(), rules.Config())
PROMPTS = PromptsConfig(
    files=(ROOT / "data/prompts/heldout.jsonl",), limit=96, system="Answer in one short sentence."
)  # fmt: skip


def make_adapters(folder: Path) -> None:
    """Five that change the base a little, each in its own direction."""
    import torch
    from peft import LoraConfig, get_peft_model

    for number, name in enumerate(NAMES):
        torch.manual_seed(number)
        model = get_peft_model(load_model(BASE), LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=1e-3)
        model.save_pretrained(str(folder / name))


# ---- alone


def alone(folder: Path, out: Path) -> None:
    """Seconds of generation and judging, and the memory at the end of each."""
    sampler = SAMPLER.build(BASE, {name: folder / name for name in NAMES}, reference=False)
    told: dict[str, float] = {"loaded_mb": _peak_mb()}
    batches = plan(read_prompts(PROMPTS), samples=1, batch_size=SAMPLER.batch_size, seed=1, purpose="heldout")
    sampler.sample(batches[-1], NAMES[0])  # the first batch of a process pays for what the others find ready
    started = time.monotonic()
    answers = {name: [sampler.sample(batch, name) for batch in batches] for name in NAMES}
    told |= {"generation": time.monotonic() - started, "generation_mb": _peak_mb()}
    pairs = list(_pairs(batches, answers))
    session = Session(journal=out / "none.sqlite", run="bench", step="alone")
    for config in JUDGES:
        judge = config.build(session)
        judge.judge(pairs[:10])
        started = time.monotonic()
        judge.judge(pairs)
        told[f"judging by {config.name}"] = time.monotonic() - started
    store.write_json(out / "alone.json", told)


def _pairs(batches: Sequence[Any], answers: dict[str, list[Any]]) -> Iterator[Pair]:
    for number, batch in enumerate(batches):
        for place, prompt in enumerate(batch.prompts):
            said = [answers[name][number][place] for name in NAMES]
            for at, one in enumerate(said):
                yield from (Pair.of(prompt, one, other) for other in said[at + 1 :])


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- in one batch


def together(folder: Path, out: Path) -> None:
    """Seconds of both ways, for many prompts and for few."""
    model = attach(load_model(BASE), {name: folder / name for name in NAMES})
    told = {}
    for prompts in (32, 6):
        size = 32
        mixed = [name for name in NAMES for _ in range(prompts)]
        # In turn, so that what disturbs one disturbs the other.
        seconds = {"exchanged": 0.0, "mixed": 0.0}
        for _ in range(3):
            for name in NAMES:
                model.set_adapter(name)
                seconds["exchanged"] += _answering(model, prompts)
            for start in range(0, len(mixed), size):
                names = mixed[start : start + size]
                seconds["mixed"] += _answering(model, len(names), adapter_names=names)
        told[str(prompts)] = seconds
    store.write_json(out / "together.json", told)


def _answering(model: Any, rows: int, **more: Any) -> float:
    """Seconds of so many conversations of 32 tokens with answers of 16."""
    import torch
    from transformers import DynamicCache

    started = time.monotonic()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        ids = torch.full((rows, 32), 100)
        for _ in range(16):
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more)
            ids = ids[:, :1]
    return time.monotonic() - started


# ---- the product


def product(folder: Path, out: Path) -> dict[str, Any]:
    """What `prefloop compare` took as a whole, with the table of times of its manifest."""
    told = {
        "model.base": "smollm2-135m-instruct",
        "model.quantization": "nf4",
        "compare.prompts": json.dumps(PROMPTS.model_dump(mode="json")),
        "compare.sampler": json.dumps(SAMPLER.model_dump(mode="json")),
        "compare.judges": json.dumps([judge.name for judge in JUDGES]),
    }
    words = [str(folder / name) for name in NAMES] + [f"{key}={value}" for key, value in told.items()]
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipeline.cli", "compare", *words, "--out", str(out)], cwd=ROOT, check=True)
    seconds = time.monotonic() - started
    steps = json.loads((out / "manifest.json").read_text())["steps"]
    kept = ("wall_seconds", "peak_memory_bytes", "phases")
    table = {name: {each: step[each] for each in kept if each in step} for name, step in steps.items()}
    return {"seconds": seconds, "steps": table}


def main() -> None:
    path = ROOT / "runs" / "bench" / "compare.json"
    store.make_dirs(path.parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_adapters(folder)
        compared = product(folder, folder / "compared")
        bare = _measured("alone", folder)
        asked = sum(seconds for part, seconds in bare.items() if not part.endswith("_mb"))
        peak_mb = compared["steps"]["answers"]["peak_memory_bytes"] / 1024**2
        told = {
            "time_ratio": round(compared["seconds"] / asked, 3),
            "memory_ratio": round(peak_mb / bare["generation_mb"], 3),
            "compare": compared,
            "alone": bare,
        }
        # What follows takes longer than all before it.
        _write(path, told)
        ways = _measured("together", folder)
        told |= {"together": {prompts: round(each["mixed"] / each["exchanged"], 3) for prompts, each in ways.items()}}
        _write(path, told | {"ways": ways})


def _measured(part: str, folder: Path) -> dict[str, Any]:
    """What a part tells that runs in a process of its own."""
    subprocess.run([sys.executable, "-m", "bench.compare", part, str(folder)], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())
    return found


def _write(path: Path, told: dict[str, Any]) -> None:
    store.write_json(path, told)
    print(json.dumps(told, indent=2))
    print(f"written to {path}")


if __name__ == "__main__":
    parts = {"alone": alone, "together": together}
    if sys.argv[1:]:
        parts[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[2]))
    else:
        main()
