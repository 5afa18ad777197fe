"""Several processes train what one trains, under DDP and DeepSpeed, and when one fails all end and say why."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_architecture

from distributed import rig
from pipeline.errors import StepFailedError

TWO: dict[str, Any] = {"gpus": 2}


def assert_same_course(found: Path, expected: Path, names: tuple[str, ...]) -> None:
    """Both have the same metrics, step by step, and nearly the same weights."""
    lines = list(zip(rig.metrics(found), rig.metrics(expected), strict=True))
    assert len(lines) > 1
    for line, other in lines:
        for name in names:
            assert line[name] == pytest.approx(other[name], abs=1e-3), (line["step"], name)
    theirs = rig.weights(expected)
    assert rig.weights(found).keys() == theirs.keys()
    for name, tensor in rig.weights(found).items():
        assert torch.allclose(tensor, theirs[name], atol=1e-3), name


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_two_processes_have_the_losses_and_the_adapter_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    one = rig.trained(tmp_path / "one", rig.training(tiny_folder, "dpo", {}))
    ddp = rig.trained(tmp_path / "ddp", rig.training(tiny_folder, "dpo", TWO))
    zero = rig.trained(tmp_path / "zero", rig.training(tiny_folder, "dpo", {**TWO, "zero": 2}))
    for other in (ddp, zero):
        assert_same_course(other, one, ("loss", "grad_norm", "rewards/margins"))
        assert {path.name for path in other.iterdir()} == {path.name for path in one.iterdir()}
        assert (other / "adapter_config.json").read_bytes() == (one / "adapter_config.json").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_processes_that_measure_the_loss_on_test_rows_before_the_first_update_learn_what_one_learns(
    zero: int, tiny_folder: Path, tmp_path: Path
) -> None:
    for name, numbers in (("train", range(16)), ("test", range(16, 20))):
        rows = [{"prompt": f"What is {n}?", "completion": f"It is {n * n}."} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    one = rig.trained(tmp_path / "one", rig.training(tiny_folder, "sft", {}, data=data))
    two = rig.trained(tmp_path / "two", rig.training(tiny_folder, "sft", {**TWO, "zero": zero}, data=data))
    assert_same_course(two, one, ())
    for name in ("loss", "grad_norm", "eval_loss"):
        found, expected = ([line[name] for line in rig.metrics(each) if name in line] for each in (two, one))
        assert found == pytest.approx(expected, abs=1e-3)
    assert [line["step"] for line in rig.metrics(two) if "eval_loss" in line] == [0, 4]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_an_encoder_decoder_learns_in_two_processes_what_it_learns_in_one(method: str, tmp_path: Path) -> None:
    make_architecture(tmp_path / "t5", "t5")
    config = tmp_path / "t5" / "config.json"
    # Each process drops others, where T5 has its dropout, as SFT leaves it.
    config.write_text(json.dumps({**json.loads(config.read_text()), "dropout_rate": 0.0}))
    one = rig.trained(tmp_path / "one", rig.training(tmp_path / "t5", method, {}))
    two = rig.trained(tmp_path / "two", rig.training(tmp_path / "t5", method, TWO))
    assert_same_course(two, one, ("loss",))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.distributed
def test_two_processes_of_ppo_have_the_losses_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    one = rig.trained(tmp_path / "one", rig.training(tiny_folder, "ppo", {}))
    two = rig.trained(tmp_path / "two", rig.training(tiny_folder, "ppo", TWO))
    assert_same_course(two, one, ("policy_loss", "value_loss", "kl", "score"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_a_process_that_fails_ends_the_step_with_its_own_error(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = rig.training(tiny_folder, "ppo", {**TWO, "timeout_s": 600}, reward="distributed.rig:refuses_in_the_second")
    with pytest.raises(StepFailedError, match="for the reason above") as raised:
        rig.trained(tmp_path, config)
    assert raised.value.exit_code == 2
    assert "train.ppo: the second process has no reward" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.distributed
def test_a_defect_in_one_process_is_the_one_that_is_told(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = rig.training(tiny_folder, "ppo", {**TWO, "timeout_s": 600}, reward="distributed.rig:breaks_in_the_second")
    with pytest.raises(StepFailedError, match="process of rank 1 ended badly"):
        rig.trained(tmp_path, config)
    assert "ValueError: this reward is broken" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.distributed
def test_a_process_that_falls_silent_ends_the_step_after_the_timeout(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = rig.training(tiny_folder, "ppo", {**TWO, "timeout_s": 20}, reward="distributed.rig:sleeps_in_the_second")
    began = time.monotonic()
    with pytest.raises(StepFailedError, match="lost touch with one another"):
        rig.trained(tmp_path, config)
    # The sleeper would sleep for ten minutes.
    assert time.monotonic() - began < 300
    assert "did not answer for 20 s (launch.timeout_s)" in capfd.readouterr().err
