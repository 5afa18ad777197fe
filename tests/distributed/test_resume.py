"""A run of two processes that was killed goes on, and with another number of them where that can be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import rig
from pipeline import store
from pipeline.algorithms.checkpoints import Checkpoints
from pipeline.errors import StepFailedError, TrainingError
from pipeline.train import Training


def killed(top: Path, config: Training, update: int) -> None:
    """Start the run in a process of its own, and kill that when the checkpoint of this update is sealed."""
    told = top.with_suffix(".json")
    told.write_text(json.dumps(config.model_dump(mode="json")))
    process = subprocess.Popen([sys.executable, "-m", "distributed.rig", str(top), str(told)])
    sealed = f"train.dpo-*/work/checkpoints/checkpoint-{update}/{store.MANIFEST}"
    deadline = time.monotonic() + 300
    while not list((top / ".staging").glob(sealed)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    # Who holds the run: a warm process has a client before it, which ends when it has ended.
    os.kill(int(json.loads((top / ".lock").read_text())["pid"]), signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.distributed
@pytest.mark.parametrize("zero", [2, 3])
def test_a_killed_run_under_deepspeed_ends_as_one_that_was_not(zero: int, tiny_folder: Path, tmp_path: Path) -> None:
    config = rig.training(tiny_folder, "dpo", {"gpus": 2, "zero": zero}, max_steps=40, save_steps=2)
    whole = rig.trained(tmp_path / "whole", config)
    killed(tmp_path / "killed", config, update=4)
    again = rig.trained(tmp_path / "killed", config)
    assert rig.metrics(again) == rig.metrics(whole)
    theirs = rig.weights(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in rig.weights(again).items())


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.distributed
def test_one_process_goes_on_where_two_were_killed_if_it_is_told_to(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"max_steps": 40, "save_steps": 2}
    whole = rig.trained(tmp_path / "whole", rig.training(tiny_folder, "dpo", {}, **options))
    killed(tmp_path / "killed", rig.training(tiny_folder, "dpo", {"gpus": 2}, **options), update=4)
    alone = rig.training(tiny_folder, "dpo", {}, **options)
    with pytest.raises(StepFailedError):
        rig.trained(tmp_path / "killed", alone)
    assert "world_size: 2 -> 1" in capfd.readouterr().err
    again = rig.trained(tmp_path / "killed", alone.model_copy(update={"allow_inexact_resume": True}))
    lines = list(zip(rig.metrics(again), rig.metrics(whole), strict=True))
    assert len(lines) == 40
    for line, other in lines:
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-3)
    assert "world_size: 2 -> 1" in json.loads((again / "summary.json").read_text())["inexact_resume"][0]


@pytest.mark.parametrize("now", [{"zero": 2, "world_size": 4}, {"zero": 0, "world_size": 2}])
def test_the_parts_of_a_checkpoint_are_not_taken_up_by_other_processes(now: dict[str, int], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    Checkpoints(tmp_path, "train.dpo", made_by={"zero": 2, "world_size": 2}).seal(2, of=9)
    other = Checkpoints(tmp_path, "train.dpo", made_by=now, allow_inexact=True)
    with pytest.raises(
        TrainingError, match=r"2 processes under launch.zero=2 wrote it.*Set launch as it was, or delete"
    ):
        _ = other.newest
    assert Checkpoints(tmp_path, "train.dpo", made_by={"zero": 2, "world_size": 2}).newest == folder
