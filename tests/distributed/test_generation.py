"""Answers drawn by two processes are, byte for byte, those that one draws."""

import io
from pathlib import Path

import pytest
import tiny_ppo
from rich.console import Console

from pipeline import store
from pipeline.generate import Pairing, Sampling
from pipeline.models import ModelConfig
from pipeline.recipe import PromptsConfig
from pipeline.run import Run, Step
from pipeline.sampling.local import Config as Local


def generated(top: Path, prompts: Path, model: ModelConfig, ranks: int) -> dict[str, bytes]:
    """The bytes of every file that the generate step leaves."""
    sampling = Sampling(
        seed=1,
        model=model,
        sampler=Local(max_new_tokens=12, batch_size=4),
        prompts=PromptsConfig(files=(prompts,)),
        samples=2,
        purpose="train",
    )
    config = Pairing(sampling=sampling, pairing="all")
    step = Step(
        name="generate",
        identity=config.identity(),
        files=(prompts,),
        options={"config": config.model_dump(mode="json")},
        work="pipeline.generate:work",
        ranks=ranks,
        finish="pipeline.generate:finish",
    )
    (state,) = Run(top, [step], "", top / "cache", Console(file=io.StringIO())).execute()
    return {path.name: path.read_bytes() for path in state.path.iterdir()}


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.distributed
def test_two_processes_leave_the_bytes_of_one(tiny: ModelConfig, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    store.write_jsonl(prompts, tiny_ppo.prompts(11))
    alone = generated(tmp_path / "one", prompts, tiny, 1)
    assert alone["answers.jsonl"].count(b"\n") == 22
    assert generated(tmp_path / "two", prompts, tiny, 2) == alone
