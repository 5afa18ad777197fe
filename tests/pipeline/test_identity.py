"""Every option is either identity or runtime, a person said which, and something reads it.

A step is done again when an identity option changes, and is reused when only runtime options do. An option that is
classified wrongly either reuses results that another setting made, or throws hours of work away.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline.plugins import FOLDERS, Config, config_class, names
from pipeline.recipe import Recipe

ROOT = Path(__file__).parents[2]

OPTIONS: dict[str, dict[str, str]] = {
    "judges.both_orders.Config": {
        "name": "identity",
        "of": "identity",
    },
    "judges.cascade.Config": {
        "name": "identity",
        "cheap": "identity",
        "dear": "identity",
        "threshold": "identity",
        "temperature": "identity",
    },
    "judges.exam.ExamConfig": {
        "prompts": "identity",
        "gold": "identity",
        "floors": "identity",
        "enforce": "identity",
    },
    "judges.exam.Floors": {
        "answered": "identity",
        "decided": "identity",
        "lost": "identity",
        "constant": "identity",
        "tied": "identity",
        "exchanged": "identity",
        "padding": "identity",
        "filler": "identity",
        "injection": "identity",
        "position": "identity",
        "accuracy": "identity",
    },
    "judges.human.Config": {
        "name": "identity",
        "votes": "identity",
        "otherwise": "identity",
    },
    "judges.length.Config": {
        "name": "identity",
        "prefer": "identity",
    },
    "judges.likelihood.Config": {
        "name": "identity",
        "model": "identity",
        "constitution": "identity",
        "contrast": "identity",
        "temperature": "identity",
    },
    "judges.batch.BatchConfig": {"poll_s": "runtime", "requests": "runtime", "price_share": "runtime"},
    "judges.client.Limits": {
        "concurrency": "runtime",
        "requests_per_minute": "runtime",
        "tokens_per_minute": "runtime",
        "timeout_s": "runtime",
        "attempts": "runtime",
        "outage_s": "runtime",
    },
    "judges.replies.Price": {"input": "runtime", "output": "runtime"},
    "judges.llm.Config": {
        "name": "identity",
        "model": "identity",
        "base_url": "identity",
        "api_key_env": "runtime",
        "allow_http": "runtime",
        "price": "runtime",
        "limits": "runtime",
        "batch": "runtime",
        "temperature": "identity",
        "extra_body": "identity",
        "mode": "identity",
        "fallback": "identity",
        "samples": "identity",
        "max_tokens": "identity",
        "prompt": "identity",
        "rubric": "identity",
        "constitution": "identity",
        "principle": "identity",
        "labels": "identity",
        "min_label_mass": "identity",
    },
    "judges.rating.Config": {
        "name": "identity",
        "model": "identity",
        "base_url": "identity",
        "api_key_env": "runtime",
        "allow_http": "runtime",
        "price": "runtime",
        "limits": "runtime",
        "batch": "runtime",
        "temperature": "identity",
        "extra_body": "identity",
        "prompt": "identity",
        "rubric": "identity",
        "points": "identity",
        "min_digit_mass": "identity",
    },
    "judges.local_llm.Config": {
        "name": "identity",
        "model": "identity",
        "prompt": "identity",
        "rubric": "identity",
        "constitution": "identity",
        "principle": "identity",
        "labels": "identity",
        "min_label_mass": "identity",
        "batch_tokens": "runtime",
    },
    "judges.panel.Config": {
        "name": "identity",
        "of": "identity",
        "quorum": "identity",
    },
    "judges.panel.Member": {
        "judge": "identity",
        "accuracy": "identity",
        "weight": "identity",
        "temperature": "identity",
    },
    "judges.reward_model.Config": {
        "temperature": "identity",
        "name": "identity",
        "model": "identity",
        "adapter": "identity",
    },
    "judges.rules.Config": {
        "name": "identity",
        "scale": "identity",
        "empty": "identity",
        "cut": "identity",
        "repetition": "identity",
        "repeated_lines": "identity",
        "debris": "identity",
        "unrelated": "identity",
        "copy_of_prompt": "identity",
        "language": "identity",
    },
    "pipeline.algorithms.base.LoraConfig": {
        "r": "identity",
        "lora_alpha": "identity",
        "lora_dropout": "identity",
        "target_modules": "identity",
        "use_dora": "identity",
    },
    "pipeline.algorithms.dpo.Config": {
        "loss_type": "identity",
        "loss_weights": "identity",
        "name": "identity",
        "lora": "identity",
        "learning_rate": "identity",
        "lr_scheduler_type": "identity",
        "warmup_steps": "identity",
        "num_train_epochs": "identity",
        "max_steps": "identity",
        "per_device_train_batch_size": "identity",
        "gradient_accumulation_steps": "identity",
        "max_grad_norm": "identity",
        "max_length": "identity",
        "gradient_checkpointing": "identity",
        "logging_steps": "identity",
        "save_steps": "identity",
        "report_to": "runtime",
        "launch": "runtime",
        "beta": "identity",
        "label_smoothing": "identity",
        "start_from": "identity",
        "tune": "identity",
        "layers": "identity",
        "reinit_head": "identity",
        "optim": "identity",
        "weight_decay": "identity",
    },
    "pipeline.algorithms.grpo.Config": {
        "name": "identity",
        "lora": "identity",
        "learning_rate": "identity",
        "lr_scheduler_type": "identity",
        "warmup_steps": "identity",
        "num_train_epochs": "identity",
        "max_steps": "identity",
        "per_device_train_batch_size": "identity",
        "gradient_accumulation_steps": "identity",
        "max_grad_norm": "identity",
        "max_length": "identity",
        "gradient_checkpointing": "identity",
        "logging_steps": "identity",
        "save_steps": "identity",
        "report_to": "runtime",
        "launch": "runtime",
        "beta": "identity",
        "epsilon": "identity",
        "mask_truncated_completions": "identity",
        "max_completion_length": "identity",
        "num_generations": "identity",
        "num_iterations": "identity",
        "reward": "identity",
        "start_from": "identity",
        "steps_per_generation": "identity",
        "temperature": "identity",
        "loss_type": "identity",
        "epsilon_high": "identity",
        "scale_rewards": "identity",
    },
    "pipeline.algorithms.kto.Config": {
        "name": "identity",
        "lora": "identity",
        "learning_rate": "identity",
        "lr_scheduler_type": "identity",
        "warmup_steps": "identity",
        "num_train_epochs": "identity",
        "max_steps": "identity",
        "per_device_train_batch_size": "identity",
        "gradient_accumulation_steps": "identity",
        "max_grad_norm": "identity",
        "max_length": "identity",
        "gradient_checkpointing": "identity",
        "logging_steps": "identity",
        "save_steps": "identity",
        "report_to": "runtime",
        "launch": "runtime",
        "beta": "identity",
        "desirable_weight": "identity",
        "undesirable_weight": "identity",
        "start_from": "identity",
        "tune": "identity",
        "layers": "identity",
        "reinit_head": "identity",
        "optim": "identity",
        "weight_decay": "identity",
    },
    "pipeline.algorithms.ppo.Config": {
        "name": "identity",
        "lora": "identity",
        "learning_rate": "identity",
        "lr_scheduler_type": "identity",
        "warmup_steps": "identity",
        "num_train_epochs": "identity",
        "max_steps": "identity",
        "per_device_train_batch_size": "identity",
        "gradient_accumulation_steps": "identity",
        "max_grad_norm": "identity",
        "max_length": "identity",
        "gradient_checkpointing": "identity",
        "logging_steps": "identity",
        "save_steps": "identity",
        "report_to": "runtime",
        "launch": "runtime",
        "reward": "identity",
        "start_from": "identity",
        "critic_learning_rate": "identity",
        "adam_beta2": "identity",
        "num_mini_batches": "identity",
        "num_ppo_epochs": "identity",
        "max_new_tokens": "identity",
        "rollout_batch_size": "identity",
        "rollouts": "identity",
        "temperature": "identity",
        "missing_eos_penalty": "identity",
        "normalize_scores": "identity",
        "normalize_samples": "identity",
        "score_clip": "identity",
        "whiten_rewards": "identity",
        "kl_in": "identity",
        "kl_estimator": "identity",
        "kl_coef": "identity",
        "target_kl_per_sequence": "identity",
        "kl_budget": "identity",
        "kl_horizon": "identity",
        "gamma": "identity",
        "lam": "identity",
        "cliprange": "identity",
        "dual_clip": "identity",
        "target_kl": "identity",
        "ent_coef": "identity",
        "importance_cap": "identity",
        "critic": "identity",
        "critic_warmup_updates": "identity",
        "vf_coef": "identity",
        "cliprange_value": "identity",
        "eval_steps": "identity",
        "eval_prompts": "identity",
        "eval_judge": "identity",
        "guards": "identity",
    },
    "pipeline.algorithms.ppo_guards.GuardConfig": {
        "max_skipped": "identity",
        "max_kl": "identity",
        "min_entropy": "identity",
        "max_length": "identity",
        "max_truncated": "identity",
        "max_mismatch": "identity",
        "patience": "identity",
    },
    "pipeline.algorithms.ppo_server.ServerConfig": {
        "base_url": "runtime",
        "api_key_env": "runtime",
        "allow_http": "runtime",
        "adapter_dir": "runtime",
        "timeout_s": "runtime",
        "outage_s": "runtime",
    },
    "pipeline.algorithms.reward_model.Config": {
        "name": "identity",
        "lora": "identity",
        "learning_rate": "identity",
        "lr_scheduler_type": "identity",
        "warmup_steps": "identity",
        "num_train_epochs": "identity",
        "max_steps": "identity",
        "per_device_train_batch_size": "identity",
        "gradient_accumulation_steps": "identity",
        "max_grad_norm": "identity",
        "max_length": "identity",
        "gradient_checkpointing": "identity",
        "logging_steps": "identity",
        "save_steps": "identity",
        "report_to": "runtime",
        "launch": "runtime",
        "base": "identity",
        "pairs": "identity",
        "soft_labels": "identity",
        "margin": "identity",
        "center_rewards_coefficient": "identity",
        "held_out": "identity",
    },
    "pipeline.algorithms.rewards.RewardConfig": {
        "step": "identity",
        "judge": "identity",
        "function": "identity",
        "min_accuracy": "identity",
    },
    "pipeline.algorithms.rloo.Config": {
        "name": "identity",
        "lora": "identity",
        "learning_rate": "identity",
        "lr_scheduler_type": "identity",
        "warmup_steps": "identity",
        "num_train_epochs": "identity",
        "max_steps": "identity",
        "per_device_train_batch_size": "identity",
        "gradient_accumulation_steps": "identity",
        "max_grad_norm": "identity",
        "max_length": "identity",
        "gradient_checkpointing": "identity",
        "logging_steps": "identity",
        "save_steps": "identity",
        "report_to": "runtime",
        "launch": "runtime",
        "beta": "identity",
        "epsilon": "identity",
        "mask_truncated_completions": "identity",
        "max_completion_length": "identity",
        "num_generations": "identity",
        "num_iterations": "identity",
        "reward": "identity",
        "start_from": "identity",
        "steps_per_generation": "identity",
        "temperature": "identity",
        "normalize_advantages": "identity",
    },
    "pipeline.algorithms.sft.Config": {
        "name": "identity",
        "lora": "identity",
        "learning_rate": "identity",
        "lr_scheduler_type": "identity",
        "warmup_steps": "identity",
        "num_train_epochs": "identity",
        "max_steps": "identity",
        "per_device_train_batch_size": "identity",
        "gradient_accumulation_steps": "identity",
        "max_grad_norm": "identity",
        "max_length": "identity",
        "gradient_checkpointing": "identity",
        "logging_steps": "identity",
        "save_steps": "identity",
        "report_to": "runtime",
        "launch": "runtime",
        "start_from": "identity",
        "tune": "identity",
        "layers": "identity",
        "reinit_head": "identity",
        "optim": "identity",
        "weight_decay": "identity",
        "data": "identity",
        "assistant_only_loss": "identity",
        "packing": "identity",
        "group_by_length": "identity",
        "eval_steps": "identity",
    },
    "pipeline.demonstrations.DemonstrationsConfig": {
        "train": "identity",
        "test": "identity",
        "dataset_text_field": "identity",
        "limit": "identity",
    },
    "pipeline.models.ModelConfig": {
        "base": "identity",
        "revision": "identity",
        "quantization": "identity",
        "double_quantization": "identity",
        "dtype": "identity",
        "trust_remote_code": "identity",
    },
    "pipeline.recipe.AnnotationsConfig": {
        "choices": "identity",
        "columns": "identity",
        "prompt_split": "identity",
        "assume_submitted": "identity",
        "files": "identity",
        "format": "identity",
        "max_bad": "identity",
        "aggregate": "identity",
        "limit": "identity",
        "held_out": "identity",
    },
    "pipeline.importers.base.Source": {
        "choices": "identity",
        "columns": "identity",
        "prompt_split": "identity",
        "assume_submitted": "identity",
        "files": "identity",
        "format": "identity",
        "max_bad": "identity",
        "aggregate": "identity",
    },
    "pipeline.recipe.CompareConfig": {
        "prompts": "identity",
        "checkpoints": "identity",
        "judges": "identity",
        "sampler": "identity",
        "samples": "identity",
        "confidence": "identity",
        "perplexity": "identity",
        "processes": "runtime",
    },
    "pipeline.recipe.GenerateConfig": {
        "prompts": "identity",
        "sampler": "identity",
        "policy": "identity",
        "candidates": "identity",
        "pairing": "identity",
        "processes": "runtime",
    },
    "pipeline.recipe.LabelConfig": {
        "min_confidence": "identity",
        "max_abstained": "identity",
        "processes": "runtime",
    },
    "pipeline.recipe.PerplexityConfig": {
        "files": "identity",
        "dataset_text_field": "identity",
        "limit": "identity",
        "max_length": "identity",
    },
    "pipeline.recipe.PromptsConfig": {
        "files": "identity",
        "limit": "identity",
        "system": "identity",
    },
    "pipeline.recipe.Recipe": {
        "seed": "identity",
        "model": "identity",
        "annotations": "identity",
        "generate": "identity",
        "judge": "identity",
        "exam": "identity",
        "label": "identity",
        "train": "identity",
        "rounds": "identity",
        "carry": "identity",
        "compare": "identity",
        "launch": "runtime",
        "budget_usd": "runtime",
        "allow_inexact_resume": "runtime",
    },
    "pipeline.launch.LaunchConfig": {
        "gpus": "runtime",
        "hosts": "runtime",
        "shell": "runtime",
        "port": "runtime",
        "zero": "runtime",
        "offload": "runtime",
        "timeout_s": "runtime",
    },
    "pipeline.sampling.openai.Config": {
        "name": "identity",
        "model": "identity",
        "base_urls": "runtime",
        "api_key_env": "runtime",
        "allow_http": "runtime",
        "temperature": "identity",
        "top_p": "identity",
        "top_k": "identity",
        "max_new_tokens": "identity",
        "extra_body": "identity",
        "batch_size": "identity",
        "concurrency": "runtime",
        "timeout_s": "runtime",
        "attempts": "runtime",
    },
    "pipeline.sampling.local.Config": {
        "name": "identity",
        "batch_size": "identity",
        "temperature": "identity",
        "top_p": "identity",
        "top_k": "identity",
        "max_new_tokens": "identity",
    },
}


def configs() -> dict[str, type[Config]]:
    """Every Config that a recipe can hold, by its full name."""
    plugins = [config_class(kind, name) for kind in FOLDERS for name in names(kind)]
    found = {each for config in [Recipe, *plugins] for each in blocks_of(config)}
    return {f"{each.__module__}.{each.__name__}": each for each in sorted(found, key=str)}


def blocks_of(annotation: Any) -> Iterator[type[Config]]:
    """The Configs in an annotation, and those in their fields."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        if not is_base(annotation):
            yield annotation
        for field in annotation.model_fields.values():
            yield from blocks_of(field.annotation)
    for part in get_args(annotation):
        yield from blocks_of(part)


def is_base(config: type[Config]) -> bool:
    """True for the Config that all plugins of a kind build on: it stands in annotations, and never in a recipe."""
    name = config.model_fields.get("name")
    return not config.model_fields or (name is not None and name.is_required())


@pytest.mark.parametrize("name", sorted({*configs(), *OPTIONS}))
def test_every_option_is_classified_by_a_person(name: str) -> None:
    config, listed = configs().get(name), OPTIONS.get(name, {})
    assert config is not None, f"{name} is gone; take it out of OPTIONS"
    for field in config.model_fields:
        assert field in listed, (
            f"{name}.{field} is new. Can its value change what the step writes? Then add it to OPTIONS as identity. "
            f"If it only changes how the work is done, add it as runtime here and to {name}.RUNTIME"
        )
        actual = "runtime" if field in config.RUNTIME else "identity"
        assert listed[field] == actual, f"{name}.{field} is {listed[field]} in OPTIONS, but {actual} by {name}.RUNTIME"
    for field in listed:
        assert field in config.model_fields, f"{name}.{field} is gone; take it out of OPTIONS"
    assert set(config.model_fields) >= config.RUNTIME, f"{name}.RUNTIME names options that there are not"


@pytest.mark.parametrize("name", configs())
def test_every_option_is_read_somewhere(name: str) -> None:
    unread = [field for field in configs()[name].model_fields if field not in read_names()]
    assert not unread, f"nothing reads {unread} of {name}; an option that changes nothing misleads, so take it out"


@functools.cache
def read_names() -> set[str]:
    """Names that code of the two packages reads: `config.beta` for beta."""
    files = [file for package in ("pipeline", "judges") for file in (ROOT / package).rglob("*.py")]
    return {name for file in files for name in names_read_in(ast.parse(file.read_text(encoding="utf-8")))}


def names_read_in(module: ast.Module) -> Iterator[str]:
    """Attributes, and where a file says getattr(config, name), the names that it keeps for that."""
    nodes = list(ast.walk(module))
    yield from (node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))
    calls = (ast.unparse(node) for node in nodes if isinstance(node, ast.Call))
    if any(re.fullmatch(r"getattr\((\w+\.)*config, \w+\)", call) for call in calls):
        # They are in a table of strings, or are all the fields of a class.
        yield from (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
        whole = {
            ast.unparse(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr == "model_fields"
        }
        for block in nodes:
            if isinstance(block, ast.ClassDef) and block.name in whole:
                yield from (ast.unparse(line.target) for line in block.body if isinstance(line, ast.AnnAssign))
