"""Every architecture answers in a batch as it answers alone, and its log-probabilities are those of plain passes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DECODERS, ENCODER_DECODERS, END, make_architecture, prompt_of

from pipeline import models
from pipeline.algorithms import dpo
from pipeline.algorithms.base import LoraConfig, Setting, TrainRun
from pipeline.architectures import alike, cache_argument, is_recurrent, padding_leaks
from pipeline.errors import ModelError, TrainingError
from pipeline.models import ModelConfig
from pipeline.reading import Opening, Read, answer_logprobs
from pipeline.sampling.base import Batch
from pipeline.sampling.local import Config, decode

EVERY = (*DECODERS, *ENCODER_DECODERS)
PREFIXES = [[1, 40, 41, 42, 2, 1, 99], [1, 60], [1, *range(50, 90)], [1, 70, 71, 72, 73, 2, 99], [1]]
"""Two of one length; the third is longer than Mistral's window, the last is a single token."""

SOME_END = frozenset({END, *range(100, 140)})
"""So many that a random model's answers end after a few tokens, each at another."""


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig(base=str(folder), quantization="none", dtype="fp32")


@pytest.fixture(scope="module")
def loaded(architectures: dict[str, Path]) -> dict[str, Any]:
    """Every model, as a recipe loads it."""
    return {kind: models.load_model(config_of(folder)) for kind, folder in architectures.items()}


def next_logprobs(model: Any, prefix: Sequence[int], written: Sequence[int]) -> np.ndarray:
    """log p(next token), (L + 1, V), after each of the tokens written: no cache, batch or padding; float64."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = model.config.decoder_start_token_id
            ids = torch.tensor([[start, *written]])
            logits = model(input_ids=torch.tensor([list(prefix)]), decoder_input_ids=ids, use_cache=False).logits[0]
        else:
            logits = model(torch.tensor([[*prefix, *written]]), use_cache=False).logits[0, len(prefix) - 1 :]
    logits = logits.double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def alone(model: Any, prefix: Sequence[int], uniform: Sequence[float]) -> list[int]:
    """An answer to one conversation, by plain forward passes."""
    tokens: list[int] = []
    for number in uniform:
        cdf = np.exp(next_logprobs(model, prefix, tokens)[-1]).cumsum()
        tokens.append(int(np.searchsorted(cdf, number * cdf[-1], side="right")))
        if tokens[-1] in SOME_END:
            break
    return tokens


def assert_as_alone(model: Any) -> None:
    found = decode(model, PREFIXES, Config(max_new_tokens=16), samples=2, seed=5, eos=SOME_END)
    uniform = torch.rand(10, 16, generator=torch.Generator().manual_seed(5)).double().tolist()
    for row, (tokens, logprob) in enumerate(found):
        prefix = PREFIXES[row // 2]
        assert tokens == alone(model, prefix, uniform[row]), row
        expected = next_logprobs(model, prefix, tokens)[np.arange(len(tokens)), tokens].sum()
        assert logprob == pytest.approx(expected, abs=1e-3)
    # Otherwise this would not show that answers leave the batch at different times.
    assert len({len(tokens) for tokens, _ in found}) > 3


@pytest.mark.parametrize("kind", EVERY)
def test_answers_of_a_batch_are_those_of_each_conversation_alone(kind: str, loaded: dict[str, Any]) -> None:
    assert_as_alone(loaded[kind])


@pytest.mark.parametrize("kind", EVERY)
def test_log_probabilities_are_those_of_plain_forward_passes(kind: str, loaded: dict[str, Any]) -> None:
    random = np.random.default_rng(1)
    prefixes = [random.integers(3, 259, size=length).tolist() for length in (23, 4, 11, 1, 40)]
    answers = [random.integers(2, 259, size=length).tolist() for length in (1, 17, 3, 30, 9)]
    together = models.padded_logprobs(loaded[kind], prefixes, answers, rows=4)
    to_one = answer_logprobs(loaded[kind], prefixes[0], answers)
    opening = Opening.of(loaded[kind], prefixes[0][:20])
    behind = answer_logprobs(loaded[kind], prefixes[0], answers, opening)
    read_once = Read(loaded[kind], prefixes).logprobs(range(5), answers)
    for place, answer in enumerate(answers):
        picked = (np.arange(len(answer)), answer)
        expected = next_logprobs(loaded[kind], prefixes[place], answer)[picked]
        assert together[place].numpy() == pytest.approx(expected, abs=2e-4)
        assert read_once[place].numpy() == pytest.approx(expected, abs=2e-4)
        expected = next_logprobs(loaded[kind], prefixes[0], answer)[picked]
        assert to_one[place].numpy() == pytest.approx(expected, abs=2e-4)
        assert behind[place].numpy() == pytest.approx(expected, abs=2e-4)


# ---- recurrent models


@pytest.mark.parametrize("kind", EVERY)
def test_who_is_recurrent(kind: str, loaded: dict[str, Any]) -> None:
    assert is_recurrent(loaded[kind]) == (kind in ("mamba", "jamba"))
    assert cache_argument(loaded[kind]) == ("cache_params" if kind == "mamba" else "past_key_values")
    assert not padding_leaks(loaded[kind])


@pytest.mark.parametrize(("kind", "bias"), [("mamba", "use_bias"), ("jamba", "mamba_proj_bias")])
def test_where_padding_would_leak_into_the_state_only_conversations_of_one_length_share_a_batch(
    kind: str, bias: str, tmp_path: Path
) -> None:
    make_architecture(tmp_path, kind, **{bias: True})
    model = models.load_model(config_of(tmp_path))
    for name, parameter in model.named_parameters():
        if name.endswith("in_proj.bias"):
            torch.nn.init.normal_(parameter, std=2.0, generator=torch.Generator().manual_seed(0))
    assert padding_leaks(model)
    assert alike(model, PREFIXES) == [[0, 3], [1], [2], [4]]
    assert_as_alone(model)
    # Padded all the same, the answer is another: so this guards against something that happens.
    ids, mask = torch.tensor([[0] * 3 + PREFIXES[0]]), torch.tensor([[0] * 3 + [1] * 7])
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).logits[0, -1]
        plain = model(torch.tensor([PREFIXES[0]])).logits[0, -1]
    assert not torch.allclose(padded, plain, atol=1e-2)


def test_a_recurrent_model_that_nobody_has_proved_is_not_padded(loaded: dict[str, Any]) -> None:
    model = loaded["mamba"]
    model.config.model_type = "falcon_mamba"
    try:
        assert padding_leaks(model)
    finally:
        model.config.model_type = "mamba"


# ---- encoder-decoders


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_an_encoder_decoder_reads_the_turns_as_lines_and_its_answer_ends_once(
    kind: str, architectures: dict[str, Path]
) -> None:
    tokenizer = models.load_tokenizer(config_of(architectures[kind]))
    ids = models.chat_ids(tokenizer, prompt_of("Hi", system="Be kind.").messages)
    assert (tokenizer.decode(ids[:-1]), ids[-1]) == ("Be kind.\nHi", END)
    for finished, ends in ((True, [END]), (None, [END]), (False, [])):
        assert models.answer_ids(tokenizer, "Yes", finished=finished) == [*tokenizer("Yes")["input_ids"][:-1], *ends]


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_an_encoder_decoder_keeps_its_encoder(kind: str, loaded: dict[str, Any]) -> None:
    # AutoModelForCausalLM would load BART's decoder alone.
    assert type(loaded[kind]).__name__ == {"t5": "T5", "bart": "Bart"}[kind] + "ForConditionalGeneration"


@pytest.mark.parametrize("kind", EVERY)
def test_every_architecture_answers_through_the_sampler(kind: str, architectures: dict[str, Path]) -> None:
    built = Config(max_new_tokens=6).build(config_of(architectures[kind]), {}, reference=False)
    found = built.sample(Batch((prompt_of("One?"), prompt_of("What is two, and why?")), samples=2, seed=1), "base")
    assert [(each.source, each.index) for each in found] == [("base", 0), ("base", 1)] * 2
    assert all(each.n_tokens and each.logprob for each in found)


def test_a_model_that_writes_no_text_is_no_policy(tmp_path: Path) -> None:
    from tiny import make_reward_model

    make_reward_model(tmp_path, "encoder")
    with pytest.raises(ModelError, match=r"is BertForSequenceClassification, which writes no text; .*reward_model"):
        models.load_model(config_of(tmp_path))


# ---- adapters

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
ADAPTED = {
    "llama": ATTENTION | MLP,
    "mistral": ATTENTION | MLP,
    "qwen3": ATTENTION | MLP,
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    # PEFT knows Mixtral's experts and router, which are parameters and no layers; those of Jamba it does not.
    "mixtral": ATTENTION | {"experts", "base_layer", "gate"},
    "mamba": {"in_proj"},
    "jamba": ATTENTION | MLP | {"in_proj", "x_proj", "out_proj"},
    "t5": {"q", "k", "v", "o", "wi", "wo"},
    "bart": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}
"""What gets an adapter by default."""


def setting_of(folder: Path, quantization: Any = "none") -> Setting:
    config = config_of(folder).model_copy(update={"quantization": quantization})
    return Setting(
        model=models.load_model(config, training=True),
        tokenizer=models.load_tokenizer(config),
        output_dir=folder,
        seed=1,
    )


@pytest.mark.parametrize("kind", EVERY)
def test_all_linear_takes_the_layers_that_can_be_adapted(kind: str, architectures: dict[str, Path]) -> None:
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    setting = setting_of(architectures[kind])
    model = get_peft_model(setting.model, setting.peft_config(dpo.Config()))
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert found == ADAPTED[kind]


@pytest.mark.parametrize(
    ("kind", "named", "message"),
    [
        (
            "mamba",
            ("in_proj", "out_proj"),
            r"in mamba the weight of 'out_proj' is read past the layer.*; there are in_",
        ),
        ("mamba", ("conv1d",), r"in mamba the weight of 'conv1d'"),
        ("jamba", ("mamba.dt_proj",), r"in jamba the weight of 'mamba.dt_proj'"),
        ("mamba", ("q_proj", "v_proj"), r"mamba has none of q_proj, v_proj; there are in_proj"),
        ("gpt2", ("q_proj",), r"gpt2 has none of q_proj; there are c_attn, c_fc, c_proj"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_with_those_that_can(
    kind: str, named: tuple[str, ...], message: str, architectures: dict[str, Path]
) -> None:
    setting = setting_of(architectures[kind])
    with pytest.raises(ModelError, match=rf"^lora\.target_modules: {message}"):
        setting.peft_config(dpo.Config(lora=LoraConfig(target_modules=named)))


QUANTISED = {
    **{kind: names for kind, names in ADAPTED.items() if kind not in ("mixtral", "t5")},
    "mixtral": ATTENTION,
    # transformers keeps `wo` in fp32, because T5 overflows otherwise.
    "t5": {"q", "k", "v", "o", "wi"},
}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("kind", EVERY)
def test_the_layers_that_can_be_adapted_are_those_that_are_quantised_but_for_experts(
    kind: str, quantization: Any, architectures: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = setting_of(architectures[kind], quantization).model
    names = ("Linear4bit", "Linear8bitLt")
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in names}
    assert found == QUANTISED[kind]
    told = [record.getMessage() for record in caplog.records if "are experts, which stay in float32" in record.message]
    assert bool(told) == (kind in ("mixtral", "jamba"))


@pytest.mark.parametrize("kind", ["mamba", *ENCODER_DECODERS])
def test_what_has_no_classifier_is_refused_as_a_reward_model(kind: str, architectures: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=rf"is a {kind}, which cannot be a reward model here; .*train\.reward_model"):
        models.load_scorer(config_of(architectures[kind]), seed=1)


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_an_encoder_decoder_is_no_policy_to_train(
    kind: str, architectures: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pipeline.algorithms.base.load_model")  # nothing is loaded before this is told
    config = config_of(architectures[kind])
    run = TrainRun(step="train.x", seed=1, model=config, inputs={}, work_dir=tmp_path, out=tmp_path)
    with pytest.raises(TrainingError, match=r"^train\.x: .* is an encoder-decoder, .*name a causal model"):
        run.setting()
