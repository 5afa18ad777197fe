"""Processes of their own, for tests that kill: forked from one that has imported everything and computed nothing."""

import multiprocessing
from collections.abc import Callable
from typing import Any

PRELOADED = (
    "pipeline.train", "pipeline.algorithms.ppo_trainer", "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer",
    "trl.trainer.reward_trainer", "trl.trainer.sft_trainer", "peft", "bitsandbytes",
)  # fmt: skip
"""Imported once for all tests: the first one that asks decides what the process they are forked from has imported."""


def started(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that calls a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process: Any) -> int | None:
    """Its exit code, once it has ended; -9 if it was killed."""
    process.join(600)
    code: int | None = process.exitcode
    return code
