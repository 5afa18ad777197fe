"""Every method with every kind of weights on every architecture trains, or is refused with a reason; README's table
says the same.

A cell trains a random model of two layers for real, by the path of the recipe, loads what was left as the policy that
it is, and finds it changed and finite.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DECODERS, ENCODER_DECODERS, job_of, make_reward_model, preferences_of, prompt_of, said

from pipeline import adapters, models, store, train
from pipeline.errors import PrefloopError
from pipeline.models import ModelConfig
from pipeline.recipe import Recipe
from pipeline.recipe_mistakes import explain
from pipeline.records import Pair
from pipeline.train import Training

ROOT = Path(__file__).parents[2]

METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {},
    "kto": {},
    "reward_model": {"held_out": 0.5},
    "ppo": {
        "reward": "tiny_ppo:capitals", "max_new_tokens": 6, "normalize_samples": 16, "num_mini_batches": 1,
        "num_ppo_epochs": 2,
    },
    "rloo": {"reward": "scripted.reward:letters", "max_completion_length": 6, "num_generations": 4},
    "grpo": {"reward": "scripted.reward:letters", "max_completion_length": 6, "num_generations": 4},
}  # fmt: skip
"""The methods, with the options that they need here."""

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4}},
    "nf4": {"lora": {"r": 4}},
    "int8": {"lora": {"r": 4}},
    "dora": {"lora": {"r": 4, "use_dora": True}},
    "full": {"tune": "full"},
    "layers": {"tune": "layers"},
    "lm_head": {"tune": "lm_head"},
}
"""What is trained. nf4 and int8 are LoRA on a base that is so quantised."""

LAYERS = {
    "gpt2": "transformer.h.1", "mamba": "backbone.layers.1", "t5": "decoder.block.1", "bart": "model.decoder.layers.1",
}  # fmt: skip
"""The second block, where it is not `model.layers.1`."""

ATTENTION = {"lora": {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}}

BERT = "bert"
"""An encoder, which writes nothing: a reward model."""

ARCHITECTURES = (*DECODERS, *ENCODER_DECODERS, BERT)

ALL = re.compile("")
SHARED = ("reward_model", "ppo", "rloo", "grpo")
"""Methods that train an adapter alone."""


def refusal(method: str, kind: str, architecture: str) -> str | None:
    """Why a cell is refused, as a pattern of the message; None: it trains."""
    if method in SHARED and kind in ("full", "layers", "lm_head"):
        return r"train\.\w+\.tune: no such option"
    if method == "ppo" and kind == "dora":
        return "lora.use_dora: PPO computes its adapters in fewer passes than a DoRA has"
    if architecture == BERT:
        if method != "reward_model":
            return "is BertForSequenceClassification, which writes no text; name a ...ForCausalLM"
        return None
    if architecture in ENCODER_DECODERS and method == "reward_model":
        return "cannot be a reward model here; name a decoder or an encoder that transformers has a classifier for"
    if architecture in ENCODER_DECODERS and method not in ("sft", "dpo"):
        return "is trained by sft and dpo alone; name a causal model"
    if method == "reward_model" and architecture == "mamba":
        return "is a mamba, which cannot be a reward model here"
    if kind == "dora" and architecture in ("mixtral", "jamba"):
        return "lora.use_dora: .* name other layers as lora.target_modules"
    return None


CELLS = [(method, kind, each) for method in METHODS for kind in KINDS for each in ARCHITECTURES]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the stages before training leave: prompts, pairs, verdicts and preferences."""
    top = tmp_path_factory.mktemp("matrix")
    found = {name: top / name for name in ("generate", "label")}
    for folder in found.values():
        folder.mkdir()
    preferences = preferences_of(8)
    pairs = [Pair.of(each.prompt, each.chosen, each.rejected) for each in preferences]
    chosen = [each.chosen.key for each in preferences]
    store.write_jsonl(found["generate"] / "prompts.jsonl", [prompt_of(f"What is {n}?") for n in range(4)])
    store.write_jsonl(found["generate"] / "pairs.jsonl", pairs)
    verdicts = [said(pair, 0.9 if pair.a.key == key else 0.1) for pair, key in zip(pairs, chosen, strict=True)]
    store.write_jsonl(found["label"] / "verdicts.jsonl", verdicts)
    store.write_jsonl(found["label"] / "preferences.jsonl", preferences)
    return found


@pytest.fixture(scope="module")
def bases(architectures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {**architectures, BERT: make_reward_model(tmp_path_factory.mktemp(BERT), "encoder")}


def algorithm(method: str, kind: str, architecture: str) -> dict[str, Any]:
    block = {
        "name": method, "max_steps": 1, "warmup_steps": 0, "learning_rate": 1e-2, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1, **METHODS[method], **KINDS[kind],
    }  # fmt: skip
    if kind == "layers" and method not in SHARED:
        block["layers"] = [LAYERS.get(architecture, "model.layers.1")]
    if method == "ppo" and architecture == "mixtral" and kind != "dora":
        # Its fused passes know layers, and the experts are one tensor.
        block |= ATTENTION
    return block


def cell(method: str, kind: str, architecture: str, folder: Path) -> Training:
    """The step, checked as a recipe checks it."""
    quantization = kind if kind in ("nf4", "int8") else "none"
    tree = {
        "model": {"base": str(folder), "quantization": quantization},
        "generate": {"prompts": {"files": "x.jsonl"}, "sampler": "local"},
        "judge": "length",
        "train": {method: algorithm(method, kind, architecture)},
        "compare": {"prompts": {"files": "y.jsonl"}, "judges": ["rules"], "checkpoints": None},
    }
    if method == "reward_model":
        tree["train"]["dpo"] = {}
    found = Recipe.model_validate(tree)
    return Training(seed=1, model=found.model, algorithm=found.train[method])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind", "architecture"), CELLS, ids=["-".join(each) for each in CELLS])
def test_a_cell_of_the_matrix(
    method: str, kind: str, architecture: str, bases: dict[str, Path], inputs: dict[str, Path], tmp_path: Path
) -> None:
    why = refusal(method, kind, architecture)
    if why is not None:
        with pytest.raises((PrefloopError, ValueError)) as raised:
            _trained(method, kind, architecture, bases, inputs, tmp_path)
        told = str(raised.value)
        if not isinstance(raised.value, PrefloopError):
            told = "; ".join(explain(raised.value, Recipe))  # type: ignore[arg-type]
        assert re.search(why, told), told
        return
    out = _trained(method, kind, architecture, bases, inputs, tmp_path)
    summary = store.read_json(out / "summary.json")
    assert summary["updates"] == 1
    if method == "reward_model":
        assert 0 <= summary["held_out"]["accuracy"] <= 1
        return
    config = ModelConfig(base=str(bases[architecture]), dtype="fp32", quantization="none")
    attached = adapters.attach(models.load_model(config), {"policy": out})
    prompts, answers = [[5, 6, 7]], [[8, 9, 10, 2]]
    with adapters.role(attached, "base"):
        (before,) = models.padded_logprobs(attached, prompts, answers)
    with adapters.role(attached, "policy"):
        (after,) = models.padded_logprobs(attached, prompts, answers)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def _trained(
    method: str, kind: str, architecture: str, bases: dict[str, Path], inputs: dict[str, Path], top: Path
) -> Path:
    job = job_of(top, cell(method, kind, architecture, bases[architecture]), step=f"train.{method}", inputs=inputs)
    train.finish(job)
    return job.out


# ---- README's table

REASONS = {
    "train by adapter alone": r"tune: no such option",
    "computes its adapters in fewer passes than a DoRA has": "fewer passes",
    "an encoder writes no text": "writes no text",
    "what reads a prompt with an encoder is no reward model here": "a decoder or an encoder that",
    "TRL's trainers would give the encoder prompt and answer as one text": "sft and dpo alone",
    "transformers has no classifier of it": "is a mamba",
    "its experts are one tensor, which a DoRA cannot be on; name other `target_modules`": r"use_dora: \.\*",
}  # fmt: skip
"""What README says of a refusal, by a part of its pattern."""


def table() -> str:
    """A row for each method and the kinds that fare alike; a dot trains, a number is the reason below."""
    lines = [f"| | weights | {' | '.join(ARCHITECTURES)} |", f"|---|---|{':-:|' * len(ARCHITECTURES)}"]
    for method in METHODS:
        alike: dict[tuple[str, ...], list[str]] = {}
        for kind in KINDS:
            cells = tuple(_mark(refusal(method, kind, each)) for each in ARCHITECTURES)
            alike.setdefault(cells, []).append(kind)
        lines += [f"| `{method}` | {', '.join(kinds)} | {' | '.join(cells)} |" for cells, kinds in alike.items()]
    notes = [f"{number}. {reason}" for number, reason in enumerate(REASONS, start=1)]
    return "\n".join([*lines, "", *notes])


def _mark(why: str | None) -> str:
    if why is None:
        return "●"
    return next(str(number) for number, part in enumerate(REASONS.values(), start=1) if re.search(part, why))


def test_readme_shows_the_matrix_that_is_tested() -> None:
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")
