"""What a checkpoint was made by: whether a step that goes on from it ends where one that was not interrupted would.

A step's fingerprint holds its seed, options, model and data, and each fingerprint has a work directory of its own. So a
run with another learning rate never meets these checkpoints: it starts at the beginning. What a fingerprint leaves out
on purpose, because it makes no other experiment, may still be another at the next start: the versions of the
libraries, the device and its threads, the dtype that `auto` means there, the number of processes. All of it is sealed
with a checkpoint; the former too, for work directories that people copy and code that trains without the engine.

What is left out: the weights of the base, which are known by their name and revision alone.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models import ModelConfig, device, dtype_of
from pipeline.records import canonical, digest

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
"""Packages that compute an update, or say what it is."""


def origin(
    identity: Mapping[str, Any], model: ModelConfig, inputs: Mapping[str, Path], zero: int = 0
) -> dict[str, Any]:
    """What the outcome of a train step that runs here and now depends on, JSON-ready.

    Args:
        identity: what the step's fingerprint holds besides its inputs.
        inputs: the folders that it reads.
        zero: DeepSpeed's stage; in the parts of a checkpoint is what each process held.
    """
    import torch

    from pipeline.algorithms.ranks import Ranks

    found = {
        **identity,
        "data": {name: digest(store.hashes(folder)) for name, folder in inputs.items()},
        "versions": {name: importlib.metadata.version(name) for name in (*PACKAGES, *(["deepspeed"] if zero else []))},
        "world_size": Ranks().world,
        "zero": zero,
        "dtype": str(dtype_of(model)),
        "device": _device(),
        # Sums are cut into as many parts as there are threads, and rounded in another order.
        "threads": torch.get_num_threads(),
    }
    as_json: dict[str, Any] = json.loads(canonical(found))
    return as_json


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, each as `algorithm.learning_rate: 0.01 -> 0.02`."""
    was, found = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name}: {was.get(name, 'absent')} -> {found.get(name, 'absent')}"
        for name in sorted({*was, *found})
        if was.get(name, _ABSENT) != found.get(name, _ABSENT)
    ]


_ABSENT = object()


def _device() -> str:
    import torch

    if device().type == "cuda":
        # Those that this process sees: one if it trains alone (`launch.together`), else all, of which it uses one.
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device())}"
    return f"cpu, {torch.backends.cpu.get_cpu_capability()}"


def _flat(value: Mapping[str, Any], above: str = "") -> Any:
    """(dotted path, value) of everything in nested mappings."""
    for name, each in value.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{above}{name}.")
        else:
            yield f"{above}{name}", each
