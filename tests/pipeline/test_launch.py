"""How processes that train together are started, and what is refused before any of them is."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipeline import cli_slurm, launch
from pipeline import recipe as recipes
from pipeline.algorithms import dpo, kto, ppo, reward_model, rloo, zero
from pipeline.algorithms.base import repeated
from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.launch import HERE, LaunchConfig

ROOT = Path(__file__).parents[2]
JOB = Path("/shared/runs/rlaif/.staging/train.dpo-1/job.json")


def started(config: LaunchConfig) -> list[dict[str, str]]:
    return [process.environment for process in launch.together(JOB, "finish", config)]


# ---- what is started


def test_one_process_is_a_worker_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    (alone,) = launch.together(JOB, "finish", HERE)
    assert alone.command[1:] == ["-m", "pipeline.worker", str(JOB), "finish"]
    assert "RANK" not in alone.environment and alone.environment["PREFLOOP_WORLD"] == "1"


@pytest.mark.parametrize(
    ("set_to", "seen"),
    [(None, "0"), ("0,1", "0"), ("3, 1", "3"), ("GPU-8932f937,GPU-46dcde59", "GPU-8932f937"), ("", ""), ("-1", "-1")],
)
def test_one_process_sees_the_first_visible_gpu_alone_because_transformers_would_spread_its_batches_over_all(
    set_to: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if set_to is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", set_to)
    (alone,) = started(HERE)
    assert alone["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize(
    ("devices", "visible", "told"),
    [(["null"], None, "cpu"), (["nvidia0"], None, None), (["nvidia0"], "", "cpu"), (["nvidia0"], "-1", "cpu")],
)
def test_deepspeed_is_told_to_look_for_no_gpu_where_none_is_seen(
    devices: list[str], visible: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("os.listdir", lambda path: devices)
    assert {each.get("DS_ACCELERATOR") for each in started(LaunchConfig(gpus=2))} == {told}


def test_processes_that_train_together_see_the_gpus_that_the_run_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in started(LaunchConfig(gpus=2))] == ["4,5", "4,5"]


def test_processes_on_one_machine_are_numbered_and_meet_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = started(LaunchConfig(gpus=4))
    assert [each["RANK"] for each in found] == [each["LOCAL_RANK"] for each in found] == ["0", "1", "2", "3"]
    assert {each["WORLD_SIZE"] for each in found} == {each["PREFLOOP_WORLD"] for each in found} == {"4"}
    assert {each["MASTER_ADDR"] for each in found} == {"127.0.0.1"}
    assert len({each["MASTER_PORT"] for each in found}) == 1
    assert {each["OMP_NUM_THREADS"] for each in found} == {"2"}


def test_another_machine_gets_the_command_with_its_directory_and_variables_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("HF_TOKEN", "secret-1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    monkeypatch.setenv("PYTHONPATH", "/shared/code")
    found = launch.together(JOB, "finish", LaunchConfig(gpus=2, hosts=("one", "two"), port=29500))
    assert [process.command[0] for process in found[:2]] == [found[0].command[0]] * 2
    assert found[2].command[:5] == ["ssh", "two", "env", "-C", str(Path.cwd())]
    words = found[3].command
    for word in ("RANK=3", "LOCAL_RANK=1", "WORLD_SIZE=4", "MASTER_ADDR=one", "MASTER_PORT=29500"):
        assert word in words
    assert "NCCL_SOCKET_IFNAME=ib0" in words and "PYTHONPATH=/shared/code" in words
    assert not any("secret" in word for word in words)
    assert words[-4:] == ["-m", "pipeline.worker", str(JOB), "finish"]


def test_a_path_that_a_shell_would_read_is_not_sent_to_another_machine() -> None:
    with pytest.raises(RecipeError, match=r"cannot be told to two.*letters, digits"):
        launch.together(Path("/my runs/job.json"), "finish", LaunchConfig(hosts=("one", "two")))


# ---- what is refused


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"hosts": ["a", "a"]}, "one is there twice"),
        ({"offload": True}, "set zero to 1, 2 or 3"),
        ({"gpus": 0}, "greater than or equal to 1"),
        ({"zero": 4}, "Input should be 0, 1, 2 or 3"),
    ],
)
def test_a_launch_that_contradicts_itself_is_refused(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LaunchConfig.model_validate(block)


def test_here_is_one_process() -> None:
    assert LaunchConfig.model_validate("here") == HERE and HERE.world == 1
    assert LaunchConfig(gpus=8, hosts=("a", "b")).world == 16


@pytest.mark.parametrize(
    ("batch", "accumulation", "world", "by_example", "own"),
    [
        (4, 4, 2, False, (4, 2)),  # two turns of two passes
        (4, 4, 8, True, (2, 1)),  # a pass each, and half of its examples
        (4, 4, 8, False, None),
        (4, 1, 2, True, (2, 1)),
        (3, 1, 2, True, None),
        (4, 6, 4, True, (2, 3)),
    ],
)
def test_an_update_has_the_same_examples_however_many_processes_share_it(
    batch: int, accumulation: int, world: int, by_example: bool, own: tuple[int, int] | None
) -> None:
    losses = ("sigmoid",) if by_example else ("sigmoid", "sft")
    config = dpo.Config(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, loss_type=losses)  # type: ignore[arg-type]
    assert config.share(world) == own
    if own is not None:
        assert own[0] * own[1] * world == batch * accumulation
        assert config.refusals(LaunchConfig(gpus=world)) == []
    else:
        (reason,) = config.refusals(LaunchConfig(gpus=world))
        assert f"gradient_accumulation_steps={accumulation}" in reason and f"{world} processes" in reason


def test_kto_shares_out_whole_passes_alone_because_answers_of_one_are_mismatched_with_each_other() -> None:
    assert kto.Config(per_device_train_batch_size=4, gradient_accumulation_steps=1).share(2) is None
    assert reward_model.Config(per_device_train_batch_size=4, gradient_accumulation_steps=1).share(2) == (2, 1)


def test_ppo_refuses_deepspeed_and_takes_any_number_of_processes() -> None:
    config = ppo.Config(gradient_accumulation_steps=1)
    assert config.refusals(LaunchConfig(gpus=7)) == []
    (reason,) = config.refusals(LaunchConfig(gpus=2, zero=2))
    assert "PPO trains adapters on a frozen base" in reason and "without zero" in reason


def test_processes_do_not_wait_less_long_for_each_other_than_one_of_them_waits_for_a_server() -> None:
    rollouts = {"base_url": "http://localhost:8000/v1", "outage_s": 700}
    config = ppo.Config(gradient_accumulation_steps=1, rollouts=rollouts)
    (reason,) = config.refusals(LaunchConfig(gpus=2, timeout_s=700))
    assert "launch.timeout_s=700" in reason and "set launch.timeout_s higher" in reason
    assert config.refusals(LaunchConfig(gpus=2, timeout_s=701)) == []
    assert config.refusals(LaunchConfig(timeout_s=10)) == []


def test_algorithms_that_compare_answers_in_groups_run_in_one_process() -> None:
    assert rloo.Config().refusals(HERE) == []
    assert "runs in one process" in rloo.Config().refusals(LaunchConfig(gpus=2))[0]


def test_a_recipe_is_told_what_cannot_run_so_by_its_step() -> None:
    with pytest.raises(RecipeError) as raised:
        recipes.load(ROOT / "recipes" / "rlaif.yaml", ["launch={gpus: 2, zero: 3}", "model.quantization=int8"])
    text = str(raised.value)
    assert "train.ppo: launch.zero=3: PPO trains adapters" in text
    assert "train.dpo: launch.zero=3 cannot divide weights in int8" in text


def test_a_step_can_have_a_launch_of_its_own() -> None:
    overrides = ["launch={gpus: 2, zero: 2}", "train.ppo.launch={gpus: 2}"]
    recipe = recipes.load(ROOT / "recipes" / "rlaif.yaml", overrides)
    assert recipe.train["ppo"].launch == LaunchConfig(gpus=2)
    assert recipe.train["ppo"].identity() == recipes.load(ROOT / "recipes" / "rlaif.yaml").train["ppo"].identity()


# ---- files for the public commands


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("zero1", LaunchConfig(zero=1)),
        ("zero2", LaunchConfig(zero=2)),
        ("zero3", LaunchConfig(zero=3)),
        ("zero3_offload", LaunchConfig(zero=3, offload=True)),
    ],
)
def test_the_files_for_deepspeed_say_what_a_launch_does(name: str, config: LaunchConfig) -> None:
    assert json.loads((ROOT / "recipes" / "deepspeed" / f"{name}.json").read_text()) == zero.options(config)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_for_accelerate_are_read_by_it(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    named = yaml.safe_load(path.read_text()).get("deepspeed_config", {}).get("deepspeed_config_file")
    assert named is None or (ROOT / named).is_file()


def test_slurm_runs_the_recipe_on_the_nodes_that_it_is_given(tmp_path: Path) -> None:
    alone = cli_slurm.script(Path("recipes/rlaif.yaml"), ["seed=2"], gpus=4, nodes=1)
    assert "#SBATCH --gpus-per-node=4" in alone and "#SBATCH --nodes=1" in alone
    assert alone.splitlines()[-1].endswith("-m pipeline.cli run recipes/rlaif.yaml seed=2")
    two = cli_slurm.script(Path("recipes/rlaif.yaml"), [], gpus=4, nodes=2)
    assert '"launch.hosts=[$hosts]"' in two.splitlines()[-1]
    assert "'launch.shell=srun --overlap --nodes=1 --ntasks=1 --nodelist={host}'" in two


def test_slurm_asks_for_as_many_gpus_as_the_step_with_the_most_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", str(ROOT / "recipes" / "rlaif.yaml"), "train.kto.launch={gpus: 2}"]) == 0
    assert "#SBATCH --gpus-per-node=2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("examples", "batch", "world", "again"),
    [
        (16, 2, 2, None),
        (17, 2, 2, "its first 3 examples"),
        (15, 4, 2, "its first 1 examples"),  # as many batches for each, of which the last lacks one
        (9, 2, 4, "its first 7 examples"),
        (9, 2, 1, None),
    ],
)
def test_batches_that_are_learned_twice_are_told(examples: int, batch: int, world: int, again: str | None) -> None:
    trainer = SimpleNamespace(train_dataset=range(examples), args=SimpleNamespace(per_device_train_batch_size=batch))
    found = repeated(trainer, world)
    assert (again is None and found == []) or again in found[0]
