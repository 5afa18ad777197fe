"""What a checkpoint took is the time and the money of its own step and of every step that it stands on."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import provenance, store
from pipeline.ratings import TrainingCost


def publish(top: Path, name: str, *inputs: Path, seconds: float | None = 1.0, usd: float = 0.0) -> Path:
    """A published step of a run in `top`, with its provenance."""
    fingerprint = f"{name:x<20}"
    staging, folder = top / "staging", top / "steps" / name / fingerprint[:12]
    store.make_dirs(staging)
    store.write_json(staging / "summary.json", {})
    told = {each.parent.name: {"fingerprint": f"{each.parent.name:x<20}"} for each in inputs}
    store.make_dirs(folder.parent)
    store.publish(staging, folder, {"inputs": told})
    spent = {"step": name, "judge": "llm", "calls": 1, "failed": 0, "tokens_in": 1, "tokens_out": 1, "usd": usd}
    took: dict[str, Any] = {"wall_seconds": seconds, "peak_memory_bytes": 100, **({"spending": [spent]} if usd else {})}
    if seconds is not None:
        store.write_json(folder.with_name(f"{folder.name}.provenance.json"), took)
    return folder


def test_a_checkpoint_stands_on_what_it_learned_from_each_step_once(tmp_path: Path) -> None:
    generate = publish(tmp_path, "generate", seconds=10)
    exam = publish(tmp_path, "exam", generate, seconds=3, usd=0.5)
    label = publish(tmp_path, "label", generate, exam, seconds=7, usd=2.25)
    reward = publish(tmp_path, "train.reward_model", label, seconds=20)
    ppo = publish(tmp_path, "train.ppo", generate, reward, seconds=100, usd=0.25)
    publish(tmp_path, "train.dpo", label, seconds=1000)
    assert provenance.cost(ppo) == TrainingCost(
        training_seconds=100,
        peak_memory_bytes=100,
        upstream=("generate", "exam", "label", "train.reward_model"),
        upstream_seconds=40,
        labelling_seconds=10,
        judge_usd=3.0,
    )


def test_what_brings_its_own_data_stands_on_nothing(tmp_path: Path) -> None:
    found = provenance.cost(publish(tmp_path, "train.sft", seconds=5))
    assert found is not None
    assert (found.training_seconds, found.upstream, found.upstream_seconds, found.judge_usd) == (5, (), 0, 0)


def test_labels_of_a_later_round_are_labels(tmp_path: Path) -> None:
    label = publish(tmp_path, "round2.label", seconds=7)
    found = provenance.cost(publish(tmp_path, "round2.train.dpo", label))
    assert found is not None
    assert found.labelling_seconds == 7


def test_labels_of_a_variant_of_a_sweep_are_labels(tmp_path: Path) -> None:
    exam = publish(tmp_path, "exam[judge=length]", seconds=3)
    label = publish(tmp_path, "label[judge=length]", exam, seconds=7)
    found = provenance.cost(publish(tmp_path, "train.dpo[judge=length]", label, seconds=100))
    assert found is not None
    assert (found.labelling_seconds, found.upstream_seconds) == (10, 10)


@pytest.mark.parametrize("unknown", ["label", "train.dpo"])
def test_unknown_times_are_no_cost(unknown: str, tmp_path: Path) -> None:
    label = publish(tmp_path, "label", seconds=None if unknown == "label" else 1)
    dpo = publish(tmp_path, "train.dpo", label, seconds=None if unknown == "train.dpo" else 1)
    assert provenance.cost(dpo) is None
