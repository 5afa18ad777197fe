"""What tests of several policies share: a recipe of scripted steps, its prompts, and their work in this process."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import prompt_of

from pipeline import store, worker
from pipeline.launch import Process

RECIPE = """\
seed: 7
model: smollm2-135m-instruct
generate: {prompts: {files: train.jsonl}, sampler: {name: scripted.sampler, grows: true}, candidates: 2, processes: 1}
judge: length
exam: {prompts: 0}
label: {processes: 1}
train:
  score: {name: scripted.scorer}
  walk: {name: scripted.walker}
  run: {name: scripted.walker, start_from: walk, steps: 3}
compare: {prompts: {files: heldout.jsonl}, judges: [length, rules], processes: 1}
"""

PROMPTS = {"train": 6, "more": 4, "heldout": 5, "other": 5}
"""Files of prompts, and how many are in each."""


def prepare(top: Path, patch: pytest.MonkeyPatch, recipe: str = RECIPE) -> None:
    """Put recipe and prompts into this folder, and the process, whose workers find the tests' modules."""
    root = Path(__file__).parents[2]
    patch.chdir(top)
    patch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))
    (top / "recipe.yaml").write_text(recipe)
    for name, count in PROMPTS.items():
        store.write_jsonl(top / f"{name}.jsonl", [prompt_of(f"{name} {number}?") for number in range(count)])


def here(step: str, phase: str, processes: Sequence[Process], lock: int) -> int:
    """In the place of `run_workers`: the step's work in this process, which need not import everything again for each
    of them."""
    for process in processes:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("PREFLOOP_RANK", "PREFLOOP_WORLD"):
                patch.setenv(name, process.environment[name])
            job, target = worker._read_job(Path(process.command[-2]), phase)
            worker._load(target)(job)
    return 0
