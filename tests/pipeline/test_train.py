"""Stage 3 gives the same adapter, byte for byte, however often it is run, and learns what the preferences say."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import END, job_of, preference_of, preferences_of, prompt_of
from tiny_training import Once, cases, lines, prepared, published, trained, training

from pipeline import store, train
from pipeline.algorithms import checkpoints
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, chat_ids, load_model
from pipeline.records import Preference
from pipeline.train import Training

LEFT = {"adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "summary.json", "README.md"}
BOTH = pytest.mark.parametrize("algorithm", ["dpo", "kto"])


@pytest.fixture(scope="module")
def once(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Once:
    return Once(tiny, tmp_path_factory)


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
        "start_gap": 0.0,
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


def test_losses_on_held_out_examples_are_kept_and_what_depends_on_the_clock_is_not() -> None:
    history = [
        {"loss": 0.7, "grad_norm": 1.0, "epoch": 0.5, "step": 1},
        {"eval_loss": 0.6, "eval_runtime": 3.1, "eval_samples_per_second": 7.0, "epoch": 0.5, "step": 1},
        {"train_runtime": 9.0, "train_loss": 0.7, "total_flos": 0.0, "epoch": 1.0, "step": 2},
    ]
    assert checkpoints._metrics(history) == [
        {"loss": 0.7, "grad_norm": 1.0, "epoch": 0.5, "step": 1},
        {"eval_loss": 0.6, "epoch": 0.5, "step": 1},
    ]


@pytest.mark.parametrize("name", ["loss", "eval_loss"])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_error_that_names_the_update(loss: float, name: str) -> None:
    with pytest.raises(TrainingError, match=rf"^train\.dpo: the {name} is (nan|inf) at update 2; lower learning_rate"):
        checkpoints.check({name: loss, "step": 2}, "train.dpo")


def test_a_loss_that_is_no_number_before_anything_is_learned_is_not_blamed_on_the_learning_rate() -> None:
    with pytest.raises(TrainingError, match=r"the eval_loss is nan at update 0; set model\.dtype to bf16 or fp32"):
        checkpoints.check({"eval_loss": math.nan, "step": 0}, "train.sft")


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_a_training_whose_loss_becomes_nan_stops_at_that_update_and_leaves_nothing_to_publish(
    algorithm: str, tiny: ModelConfig, tmp_path: Path
) -> None:
    # After the first update of 1e30 the weights are so large that the second loss is no number.
    config = training(tiny, algorithm, learning_rate=1e30, warmup_steps=0.0, save_steps=1)
    with pytest.raises(TrainingError, match=r"^train\.test: the loss is nan at update 2; lower learning_rate"):
        trained(tmp_path, config)
    job = prepared(tmp_path, config)
    assert published(job) == {}
    assert [path.name for path in (job.work_dir / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("logging_steps", [1, 8])
def test_a_gradient_that_is_nan_at_the_last_update_is_an_error_though_every_loss_was_finite(
    logging_steps: int, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    step = Trainer.training_step

    def broken(trainer: Any, model: Any, *given: Any, **named: Any) -> Any:
        loss = step(trainer, model, *given, **named)
        if trainer.state.global_step == 7:
            next(each for each in model.parameters() if each.requires_grad).grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(Trainer, "training_step", broken)
    said = r"^train\.test: the (gradient is nan at|weights are no finite numbers after) update 8; lower learning_rate"
    with pytest.raises(TrainingError, match=said):
        trained(tmp_path, training(tiny, "dpo", logging_steps=logging_steps))


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_steps_that_fp16_skips_are_counted_and_the_training_goes_on(
    optim: str, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    prepare = Accelerator.__init__

    def as_on_a_gpu(accelerator: Any, *given: Any, **named: Any) -> None:
        prepare(accelerator, *given, **named)
        # The loss times 2^20 has gradients beyond fp16's 65504; each step that is skipped halves the factor.
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**20)

    monkeypatch.setattr(Accelerator, "__init__", as_on_a_gpu)
    half = tiny.model_copy(update={"dtype": "fp16"})
    each = lines(trained(tmp_path / "1", training(half, "sft", optim=optim)))
    skipped = [line.get("steps_skipped", 0) for line in each]
    assert skipped[0] == 1 and skipped[-1] == 0 and set(skipped) == {0, 1}
    assert [("grad_norm" in line) for line in each] == [not one for one in skipped]
    fours = lines(trained(tmp_path / "4", training(half, "sft", optim=optim, logging_steps=4)))
    assert [line.get("steps_skipped", 0) for line in fours] == [sum(skipped[:4]), sum(skipped[4:])]


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
