"""Stage 3 gives the same adapter, byte for byte, however often it is killed, and learns what the preferences say."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import END, job_of, preference_of, preferences_of, prompt_of

from pipeline import store, train
from pipeline.algorithms import checkpoints
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, chat_ids, load_model
from pipeline.records import Preference
from pipeline.train import Training
from pipeline.worker import Job

LEFT = {"adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "summary.json", "README.md"}
BOTH = pytest.mark.parametrize("algorithm", ["dpo", "kto"])


def cases(*given: tuple[Any, ...], slow: int) -> list[Any]:
    """The cases as they are, the last `slow` of them marked so."""
    fast = len(given) - slow
    return [*given[:fast], *(pytest.param(*case, marks=pytest.mark.slow) for case in given[fast:])]


def training(tiny: ModelConfig, algorithm: str, quantization: Any = "none", **options: Any) -> Training:
    """Eight updates on four examples each, with a checkpoint after every second."""
    defaults = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 8,
        "save_steps": 2,
    }
    return Training(
        seed=3,
        model=tiny.model_copy(update={"quantization": quantization}),
        algorithm={"name": algorithm, **defaults, **options},  # type: ignore[arg-type]
    )


def prepared(top: Path, config: Training, preferences: list[Preference] | None = None) -> Job:
    """The job of a training step in `top`, on these preferences."""
    label = top / "label"
    store.make_dirs(label)
    store.write_jsonl(label / "preferences.jsonl", preferences_of(12) if preferences is None else preferences)
    return job_of(top, config, step="train.test", inputs={"label": label})


def published(job: Job) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def trained(top: Path, config: Training, preferences: list[Preference] | None = None) -> dict[str, bytes]:
    """The bytes of every file that the step leaves."""
    job = prepared(top, config, preferences)
    train.finish(job)
    return published(job)


def lines(files: dict[str, bytes]) -> list[dict[str, float]]:
    return [json.loads(line) for line in files["metrics.jsonl"].splitlines()]


@pytest.fixture(scope="module")
def once(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, bytes]]]:
    """Where an algorithm was trained without an interruption, and what it left; done when it is first asked for."""
    found: dict[tuple[str, str], tuple[Path, dict[str, bytes]]] = {}

    def of(algorithm: str, quantization: str = "none") -> tuple[Path, dict[str, bytes]]:
        key = (algorithm, quantization)
        if key not in found:
            top = tmp_path_factory.mktemp("once")
            found[key] = top, trained(top, training(tiny, algorithm, quantization))
        return found[key]

    return of


# ---- what is left


@BOTH
def test_a_trained_step_leaves_an_adapter_its_card_its_metrics_and_their_summary(algorithm: str, once: Any) -> None:
    _, files = once(algorithm)
    assert files.keys() == LEFT
    summary = json.loads(files["summary.json"])
    # Rank 16 on all linear layers of two blocks: 16 x (in + out) each; q, o 32+32, k, v 32+16, MLP three times 32+64.
    parameters = 2 * 16 * (2 * 64 + 2 * 48 + 3 * 96)
    examples = {"dpo": 12, "kto": 24}[algorithm]
    assert summary == {
        "algorithm": algorithm,
        "preferences": 12,
        "examples": examples,
        "updates": 8,
        "trainable_parameters": parameters,
        "dtype": "torch.float32",
    }
    assert [line["step"] for line in lines(files)] == list(range(1, 9))
    assert not [name for line in lines(files) for name in line if "runtime" in name or "per_second" in name]
    card = files["README.md"].decode()
    assert f"# {algorithm} adapter for " in card
    assert f"on {examples} examples" in card
    assert "library_name: peft" in card


@pytest.mark.parametrize(
    ("algorithm", "quantization"),
    cases(("dpo", "none"), ("kto", "none"), ("dpo", "nf4"), ("kto", "nf4"), ("dpo", "int8"), ("kto", "int8"), slow=2),
)
def test_the_first_loss_is_that_of_a_policy_that_is_its_own_reference(
    algorithm: str, quantization: str, once: Any
) -> None:
    # -log sigmoid(0) for DPO, 1 - sigmoid(0) for KTO.
    first = {"dpo": math.log(2), "kto": 0.5}[algorithm]
    metrics = lines(once(algorithm, quantization)[1])
    assert metrics[0]["loss"] == pytest.approx(first, abs=1e-4)
    assert metrics[-1]["loss"] < first - 0.1


@BOTH
def test_the_adapter_is_fp32_and_loads_by_peft(algorithm: str, once: Any, tiny_folder: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    top, _ = once(algorithm, "nf4")
    tensors = load_file(top / "out" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.tensor([[1, 50, 60, 70]])
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, top / "out")(ids).logits
    assert not torch.allclose(plain, adapted, atol=0.1)


def test_adapters_on_a_bf16_base_are_fp32_too(tiny: ModelConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = training(tiny.model_copy(update={"dtype": "bf16"}), "dpo", "nf4", max_steps=2)
    trained(tmp_path, config)
    for folder in (tmp_path / "out", tmp_path / "work" / "checkpoints" / "checkpoint-2"):
        tensors = load_file(folder / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@BOTH
def test_no_pickle_of_the_arguments_is_left_anywhere(algorithm: str, once: Any) -> None:
    top, _ = once(algorithm)
    assert not list(top.rglob("training_args.bin"))


def test_the_two_newest_checkpoints_stay_and_are_sealed(once: Any) -> None:
    top, _ = once("dpo")
    left = sorted(path.name for path in (top / "work" / "checkpoints").glob("checkpoint-*"))
    assert left == ["checkpoint-6", "checkpoint-8"]
    for name in left:
        assert store.verify(top / "work" / "checkpoints" / name, hashes=True) == []


def test_saving_an_adapter_asks_nobody_about_its_base(tiny: ModelConfig, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_model(tiny), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoints.save_adapter(model, tmp_path, "smollm2-135m-instruct")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"


# ---- what is learned


def test_dpo_makes_the_chosen_answer_likelier_than_the_rejected(once: Any) -> None:
    last = lines(once("dpo")[1])[-1]
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] > 1.0


def end_probability(adapter: Path, tiny: ModelConfig, tokenizer: Any) -> float:
    """Mean log-probability of the end of turn after the chosen answers."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(tiny), adapter).eval()
    found = []
    for each in preferences_of(6):
        ids = chat_ids(tokenizer, each.prompt.messages)
        ids += tokenizer(each.chosen.text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            found.append(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[END].item())
    return sum(found) / len(found)


@BOTH
def test_answers_that_were_cut_do_not_teach_the_model_to_stop(
    algorithm: str, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    # The rejected answers are cut in both, so that only what follows a chosen one differs.
    def preferences(finished: bool) -> list[Preference]:
        return [
            preference_of(
                each.prompt,
                each.chosen.model_copy(update={"finished": finished}),
                each.rejected.model_copy(update={"finished": False}),
            )
            for each in preferences_of(6)
        ]

    after = {}
    for finished in (True, False):
        top = tmp_path / str(finished)
        trained(top, training(tiny, algorithm, learning_rate=3e-3), preferences(finished))
        after[finished] = end_probability(top / "out", tiny, tiny_tokenizer)
    assert after[True] > after[False] + 0.5


# ---- what it is given


def test_a_step_is_given_what_it_reads_and_the_steps_that_it_needs(tiny: ModelConfig, tmp_path: Path) -> None:
    generate, scorer = tmp_path / "generate", tmp_path / "scorer"
    for folder in (generate, scorer):
        store.make_dirs(folder)
    store.write_jsonl(generate / "prompts.jsonl", [prompt_of("Hello?", "one"), prompt_of("Why?", "two")])
    config = Training(seed=3, model=tiny, algorithm={"name": "scripted.learner"})  # type: ignore[arg-type]
    inputs = {"generate": generate, "train.scorer": scorer}
    train.finish(job_of(tmp_path, config, step="train.late", inputs=inputs))
    assert json.loads((tmp_path / "out" / "given.json").read_text()) == {
        "step": "train.late",
        "seed": 3,
        "base": tiny.base,
        "prompts": ["one", "two"],
        "teacher": str(scorer),
    }


# ---- what stops it


def test_nothing_to_learn_from_is_an_error(tiny: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="DPO has no preferences"):
        trained(tmp_path, training(tiny, "dpo"), [])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_error_that_names_the_update(loss: float) -> None:
    with pytest.raises(TrainingError, match=r"^train\.dpo: the loss is (nan|inf) at update 2; lower learning_rate"):
        checkpoints._check([{"loss": 0.6, "step": 1}, {"loss": loss, "step": 2}], "train.dpo")


# ---- the same bytes


@pytest.mark.parametrize(
    ("algorithm", "quantization"),
    cases(("dpo", "none"), ("kto", "none"), ("dpo", "nf4"), ("kto", "nf4"), ("dpo", "int8"), ("kto", "int8"), slow=3),
)
def test_two_trainings_leave_the_same_bytes(
    algorithm: str, quantization: str, once: Any, tiny: ModelConfig, tmp_path: Path
) -> None:
    again = trained(tmp_path, training(tiny, algorithm, quantization))
    assert again == once(algorithm, quantization)[1]


def test_another_seed_leaves_another_adapter(once: Any, tiny: ModelConfig, tmp_path: Path) -> None:
    config = training(tiny, "dpo").model_copy(update={"seed": 4})
    assert trained(tmp_path, config)["adapter_model.safetensors"] != once("dpo")[1]["adapter_model.safetensors"]


# ---- going on after a kill


def stopped_after(top: Path, into: Path, *, checkpoints: tuple[int, ...]) -> Path:
    """A copy of the step's directory as a kill leaves it: only these checkpoints, nothing published."""
    shutil.copytree(top, into)
    shutil.rmtree(into / "out")
    for path in (into / "work" / "checkpoints").glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) not in checkpoints:
            shutil.rmtree(path)
    return into


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped byte in the adapter": lambda folder: flip_a_byte(folder / "adapter_model.safetensors"),
    "a flipped byte in the optimizer": lambda folder: flip_a_byte(folder / "optimizer.pt"),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "no scheduler": lambda folder: (folder / "scheduler.pt").unlink(),
    "no random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "half a trainer state": lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 6,'),
    "no seal": lambda folder: (folder / "MANIFEST.json").unlink(),
    "nothing in it": lambda folder: [path.unlink() for path in folder.iterdir()] and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_deleted_and_the_one_before_is_used(damage: str, once: Any, tmp_path: Path) -> None:
    top, _ = once("dpo")
    folder = stopped_after(top, tmp_path / "step", checkpoints=(6,)) / "work" / "checkpoints"
    shutil.copytree(folder / "checkpoint-6", folder / "checkpoint-7")
    DAMAGES[damage](folder / "checkpoint-7")
    assert checkpoints.newest_sound(folder) == folder / "checkpoint-6"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]
    DAMAGES[damage](folder / "checkpoint-6")
    assert checkpoints.newest_sound(folder) is None
    assert not list(folder.glob("checkpoint-*"))


def test_the_newest_checkpoint_is_by_number_and_not_by_name(once: Any, tmp_path: Path) -> None:
    top, _ = once("dpo")
    for number in (8, 10, 100):
        shutil.copytree(top / "work" / "checkpoints" / "checkpoint-6", tmp_path / f"checkpoint-{number}")
    assert checkpoints.newest_sound(tmp_path) == tmp_path / "checkpoint-100"


def test_without_checkpoints_training_begins_at_the_beginning(tmp_path: Path) -> None:
    assert checkpoints.newest_sound(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("algorithm", "quantization", "damage"),
    cases(
        ("dpo", "none", None),
        ("kto", "none", None),
        ("dpo", "nf4", None),
        ("dpo", "none", "a flipped byte in the adapter"),
        ("kto", "nf4", None),
        ("kto", "nf4", "no optimizer"),
        ("dpo", "nf4", "no scheduler"),
        slow=3,
    ),
)
def test_a_resumed_training_leaves_the_bytes_of_an_uninterrupted_one(
    algorithm: str, quantization: str, damage: str | None, once: Any, tiny: ModelConfig, tmp_path: Path
) -> None:
    top, expected = once(algorithm, quantization)
    step = stopped_after(top, tmp_path / "step", checkpoints=(6,))
    checkpoints = step / "work" / "checkpoints"
    if damage:
        shutil.copytree(checkpoints / "checkpoint-6", checkpoints / "checkpoint-7")
        DAMAGES[damage](checkpoints / "checkpoint-7")
    started = (checkpoints / "checkpoint-6" / "optimizer.pt").stat().st_mtime_ns
    assert trained(step, training(tiny, algorithm, quantization)) == expected
    # It went on from checkpoint 6: that one was not written again.
    assert (checkpoints / "checkpoint-6" / "optimizer.pt").stat().st_mtime_ns == started


@BOTH
def test_a_training_that_was_killed_after_its_last_checkpoint_leaves_the_same_bytes(
    algorithm: str, once: Any, tiny: ModelConfig, tmp_path: Path
) -> None:
    # Eight updates end within an epoch: going on from there, transformers would make a ninth.
    top, expected = once(algorithm)
    for left in ((6, 8), (8,)):
        step = stopped_after(top, tmp_path / str(len(left)), checkpoints=left)
        assert trained(step, training(tiny, algorithm)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "last", "killed_after"), [("dpo", 4, (1, 2, 3)), ("kto", 8, (1, 4, 5))])
def test_epochs_that_were_killed_at_any_checkpoint_leave_the_same_bytes(
    algorithm: str,
    last: int,
    killed_after: tuple[int, ...],
    tiny: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 10 or 20 examples, three a batch and two batches an update: no epoch ends with a whole batch or a whole update.
    options = {"num_train_epochs": 2.0, "max_steps": -1, "per_device_train_batch_size": 3, "save_steps": 1}
    config = training(tiny, algorithm, gradient_accumulation_steps=2, lr_scheduler_type="cosine", **options)
    seal = store.seal

    def keep(folder: Path, manifest: dict[str, Any]) -> None:
        seal(folder, manifest)
        shutil.copytree(folder, tmp_path / "kept" / folder.name)

    with monkeypatch.context() as patched:
        patched.setattr(store, "seal", keep)
        expected = trained(tmp_path / "whole", config, preferences_of(10))
    assert lines(expected)[-1]["step"] == last
    for number in killed_after:
        step = stopped_after(tmp_path / "whole", tmp_path / str(number), checkpoints=())
        checkpoint = f"checkpoint-{number}"
        shutil.copytree(tmp_path / "kept" / checkpoint, step / "work" / "checkpoints" / checkpoint)
        assert checkpoints.newest_sound(step / "work" / "checkpoints") is not None
        assert trained(step, config, preferences_of(10)) == expected


def apart(job: Job) -> Any:
    """A process that trains, forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.train", "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer"])
    process = context.Process(target=train.finish, args=(job,))
    process.start()
    return process


def ended(process: Any) -> int | None:
    process.join(120)
    return process.exitcode


@pytest.mark.slow
@BOTH
def test_a_training_that_was_killed_leaves_the_bytes_of_one_that_was_not(
    algorithm: str, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = training(tiny, algorithm, max_steps=24)
    whole, killed = (prepared(tmp_path / name, config) for name in ("whole", "killed"))
    assert ended(apart(whole)) == 0
    seen = []
    for wanted in (2, 14):
        process = apart(killed)
        seal = killed.work_dir / "checkpoints" / f"checkpoint-{wanted}" / store.MANIFEST
        deadline = time.monotonic() + 120
        while not seal.exists() and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        numbers = [int(path.name.rpartition("-")[2]) for path in seal.parents[1].glob("checkpoint-*")]
        seen.append(max(numbers))
        assert not published(killed)
    assert seen == sorted(set(seen)), "every process went further than the one before"
    assert max(seen) < 24
    assert ended(apart(killed)) == 0
    assert published(killed) == published(whole)


@pytest.mark.slow
def test_a_process_of_the_engine_leaves_the_same_bytes(once: Any, tiny: ModelConfig, tmp_path: Path) -> None:
    # Strings hash differently in each process, and sets are written in the order of the hashes.
    job = prepared(tmp_path, training(tiny, "dpo"))
    told = {
        "step": job.step,
        "identity": job.identity,
        "options": job.options,
        "inputs": {name: {"path": str(path)} for name, path in job.inputs.items()},
        "files": [],
        "cache": str(job.cache),
        "run": job.run,
        "finish": "pipeline.train:finish",
    }
    (tmp_path / "job.json").write_text(json.dumps(told))
    environment = {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "PREFLOOP_RANK": "0", "PREFLOOP_WORLD": "1"}
    command = [sys.executable, "-m", "pipeline.worker", str(tmp_path / "job.json"), "finish"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **environment}) as process:
        assert process.wait(120) == 0
    assert published(job) == once("dpo")[1]
