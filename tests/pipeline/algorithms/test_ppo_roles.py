"""Every role computes its own numbers on the one base, which is in memory once and stays as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import absolute_model, full_logprobs, make_architecture
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.algorithms.ppo_packing import pack, pack_ends
from pipeline.algorithms.ppo_roles import Roles
from pipeline.algorithms.scoring import RewardHead
from pipeline.algorithms.short_attention import LONGEST
from pipeline.errors import ModelError
from pipeline.models import ModelConfig, load_model

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CPU = torch.device("cpu")
PREFIXES = [[1, 50, 60], [1, 9, 8, 7, 6, 5, 4], [1, 2, 40]]
ANSWERS = [[70, 80, 2], [33], [90, 91, 92, 93, 94, 2]]
"""The first and the last end by themselves; 2 also stands in the third prompt."""


def base_of(tiny: ModelConfig, quantization: Any = "none") -> Any:
    return load_model(tiny.model_copy(update={"quantization": quantization}), training=True)


def randomised(roles: Roles, name: str = "policy") -> Roles:
    """With weights in the adapter that change what it computes."""
    random = torch.Generator().manual_seed(5)
    for key, each in roles.model.named_parameters():
        if f".{name}." in key:
            each.data.copy_(torch.randn(each.shape, generator=random) * 0.2)
    return roles


@pytest.fixture(scope="module")
def reward(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardHead, list[float]]:
    """A reward model as Hugging Face's sequence classifier has it, saved, and its scores of the three answers."""
    torch.manual_seed(7)
    base = AutoModelForSequenceClassification.from_pretrained(tiny.base, num_labels=1, dtype=torch.float32)
    config = LoraConfig(**{**LORA, "task_type": "SEQ_CLS"}, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    folder = tmp_path_factory.mktemp("reward")
    model.save_pretrained(str(folder))
    # Padded with 0, which no answer holds, it reads the last token. One by one there is no padding at all.
    base.config.pad_token_id = 0
    with torch.no_grad():
        rows = [torch.tensor([p + a]) for p, a in zip(PREFIXES, ANSWERS, strict=True)]
        scores = [float(model(input_ids=row).logits) for row in rows]
    weight = model.base_model.model.score.modules_to_save["default"].weight.detach().clone()
    head = RewardHead(folder, tiny, True, "last", 0, 512, weight, (1.0, 1.0, 1.0), 1.0)
    return head, scores


# ---- log-probabilities


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_a_plain_forward_pass_in_float64(
    temperature: float, tree: bool, tiny: ModelConfig
) -> None:
    roles = randomised(Roles(base_of(tiny), LoraConfig(**LORA), seed=0))
    packed = pack(PREFIXES, ANSWERS, CPU, tree=tree)
    with torch.no_grad(), roles.acting("policy"):
        logp, entropy, _ = roles.logprobs(packed, temperature)

        class Tempered:
            """The policy with its logits divided."""

            def __call__(self, ids: Tensor, use_cache: bool) -> Any:
                output = roles.base(ids, use_cache=use_cache)
                output.logits = output.logits / temperature
                return output

        expected = [
            full_logprobs(Tempered(), [*prefix, *answer])[len(prefix) - 1 :]
            for prefix, answer in zip(PREFIXES, ANSWERS, strict=True)
        ]
    assert logp.numpy() == pytest.approx(np.concatenate(expected), abs=1e-4)
    assert bool((entropy > 0).all())


@pytest.mark.parametrize("tree", [False, True])
def test_padding_order_and_company_of_a_sequence_change_nothing(tree: bool, tiny: ModelConfig) -> None:
    roles = randomised(Roles(base_of(tiny), LoraConfig(**LORA), seed=0))

    def of(order: list[int]) -> list[list[float]]:
        with torch.no_grad(), roles.acting("policy"):
            packed = pack([PREFIXES[n] for n in order], [ANSWERS[n] for n in order], CPU, tree=tree)
            logp, _, states = roles.logprobs(packed, 1.0)
            both = torch.stack([logp, roles.values(states + 1) + states.sum(-1)], dim=1)
        split = torch.split(both, [len(ANSWERS[n]) for n in order])
        return [split[order.index(n)].flatten().tolist() for n in sorted(order)]

    together = of([0, 1, 2])
    assert sum(map(len, together)) == 2 * sum(map(len, ANSWERS))
    for found in (of([2, 0, 1]), [*of([0]), *of([1]), *of([2])]):
        for one, other in zip(found, together, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_the_value_belongs_to_the_state_before_the_token(tiny: ModelConfig) -> None:
    # A head that reads one coordinate: the value of token t is that of the position that predicts it.
    roles = Roles(base_of(tiny), LoraConfig(**LORA), seed=0)
    roles.value_head.weight.data[0, 3] = 1.0
    packed = pack(PREFIXES[:1], ANSWERS[:1], CPU)
    with torch.no_grad(), roles.acting("policy"):
        _, _, states = roles.logprobs(packed, 1.0)
        whole = roles.base.base_model(torch.tensor([PREFIXES[0] + ANSWERS[0]])).last_hidden_state[0]
        assert roles.values(states).tolist() == pytest.approx(whole[2:5, 3].tolist(), abs=1e-5)


def test_gradient_checkpointing_and_trees_change_no_gradient(tiny: ModelConfig) -> None:
    found = []
    for checkpointing, tree in ((False, False), (True, False), (False, True), (True, True)):
        roles = Roles(base_of(tiny), LoraConfig(**LORA), seed=0, gradient_checkpointing=checkpointing)
        randomised(roles)
        packed = pack(PREFIXES, ANSWERS, CPU, tree=tree)
        with roles.acting("policy"):
            roles.logprobs(packed, 1.0)[0].sum().backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad for _, each in roles.trained()["policy"]]
        found.append(torch.cat([each.flatten() for each in gradients if each is not None]))
    assert found[0].norm() > 0
    for other in found[1:]:
        assert torch.allclose(found[0], other, atol=1e-5)


def test_a_tree_has_each_beginning_once_and_no_padding() -> None:
    # Computed are 5 6 8, which both begin with, and 9 and 7 6; not the ends of the answers.
    packed = pack([[5, 6], [5, 6, 8], [5, 7]], [[8, 9, 2], [2], [6, 2]], CPU, tree=True)
    assert packed.ids_BT.tolist() == [[5, 6, 8, 9, 7, 6]]
    assert packed.options["position_ids"].tolist() == [[0, 1, 2, 3, 1, 2]]
    assert packed.read_N.tolist() == [1, 2, 3, 2, 4, 5]
    assert packed.target_N.tolist() == [8, 9, 2, 2, 6, 2]
    ends = pack_ends([[5, 6], [5, 6, 8]], [[8, 2], [2]], CPU, tree=True)
    assert (ends.ids_BT.tolist(), ends.read_N.tolist(), ends.target_N.tolist()) == ([[5, 6, 8, 2]], [3, 3], [])


def test_long_rows_are_no_tree() -> None:
    for length, rows in ((LONGEST - 1, 1), (LONGEST, 2)):
        packed = pack([[5] * length, [6]], [[7, 2], [2]], CPU, tree=True)
        assert len(packed.ids_BT) == rows


# ---- who is who


def test_before_training_the_policy_is_its_reference_to_the_bit(tiny: ModelConfig) -> None:
    for quantization in ("none", "nf4", "int8"):
        roles = Roles(base_of(tiny, quantization), LoraConfig(**LORA), seed=0)
        packed = pack(PREFIXES, ANSWERS, CPU)
        with torch.no_grad():
            found = []
            for name in ("policy", roles.reference):
                with roles.acting(name):
                    found.append(roles.logprobs(packed, 0.7)[0])
        assert torch.equal(*found), quantization


def test_a_policy_that_starts_from_an_adapter_has_its_frozen_copy_as_reference(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    earlier = get_peft_model(base_of(tiny), LoraConfig(**LORA, init_lora_weights=False))
    earlier.save_pretrained(str(tmp_path))
    packed = pack(PREFIXES, ANSWERS, CPU)
    roles = Roles(base_of(tiny), LoraConfig(**LORA), seed=0, start=tmp_path)
    with torch.no_grad():
        found = {}
        for name in ("policy", "reference", None):
            with roles.acting(name):
                found[name] = roles.logprobs(packed, 1.0)[0]
        expected = full_logprobs(earlier, PREFIXES[0] + ANSWERS[0])[2:]
        assert torch.equal(found["policy"], found["reference"])
        assert found["policy"][:3].numpy() == pytest.approx(expected, abs=1e-4)
        assert not torch.allclose(found["policy"], found[None], atol=0.1)
        randomised(roles)
        with roles.acting(roles.reference):
            assert torch.equal(roles.logprobs(packed, 1.0)[0], found["reference"])


def test_an_adapter_of_another_rank_is_refused_as_a_start(tiny: ModelConfig, tmp_path: Path) -> None:
    get_peft_model(base_of(tiny), LoraConfig(**{**LORA, "r": 2})).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="another rank"):
        Roles(base_of(tiny), LoraConfig(**LORA), seed=0, start=tmp_path)


def test_scores_on_the_shared_base_are_those_of_the_sequence_classifier(
    tiny: ModelConfig, reward: tuple[RewardHead, list[float]]
) -> None:
    head, expected = reward
    roles = randomised(Roles(base_of(tiny), LoraConfig(**LORA), seed=0, reward=head))
    for tree in (False, True):
        assert roles.scores(pack_ends(PREFIXES, ANSWERS, CPU, tree=tree)).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_critic_of_its_own_starts_as_the_normalised_reward_model(
    tiny: ModelConfig, reward: tuple[RewardHead, list[float]]
) -> None:
    head, expected = reward
    roles = Roles(base_of(tiny), LoraConfig(**LORA), seed=0, reward=head, critic="own")
    roles.start_critic(mean=0.5, deviation=2.0)
    with torch.no_grad(), roles.acting(roles.critic):
        states = roles.states(pack_ends(PREFIXES, ANSWERS, CPU))
        assert roles.values(states).tolist() == pytest.approx([(s - 0.5) / 2 for s in expected], abs=1e-4)


def test_the_trained_are_the_policy_and_the_critic_and_fp32_and_nobody_else(
    tiny: ModelConfig, reward: tuple[RewardHead, list[float]]
) -> None:
    roles = Roles(base_of(tiny, "nf4"), LoraConfig(**LORA), seed=0, reward=reward[0], critic="own")
    wanted = {name for name, each in roles.model.named_parameters() if each.requires_grad}
    assert wanted == {n for n, _ in roles.model.named_parameters() if ".policy." in n or ".critic." in n}
    for role, parameters in roles.trained().items():
        assert all(each.dtype == torch.float32 and each.requires_grad for _, each in parameters), role


# ---- memory


def storages(model: Any) -> dict[int, int]:
    """Bytes of every piece of memory that parameters lie in, each once."""
    found = [each.untyped_storage() for each in model.parameters()]
    return {each.data_ptr(): each.nbytes() for each in found}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_base_is_in_memory_once_and_roles_add_their_adapters_only(
    quantization: str, tiny: ModelConfig, reward: tuple[RewardHead, list[float]]
) -> None:
    base = base_of(tiny, quantization)
    alone = storages(base)
    roles = Roles(base, LoraConfig(**LORA), seed=0, reward=reward[0], critic="own")
    after = storages(roles.model)
    assert alone.items() <= after.items()
    added = {each for name, each in roles.model.named_parameters() if "lora_" in name}
    assert len(added) == 3 * 2 * 14  # policy, reward, critic; A and B; seven layers in two blocks
    # Rank 4 on every layer: 4 x (in + out); q, o 32+32, k, v 32+16, MLP three times 32+64.
    parameters = 3 * 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96)
    assert sum(after.values()) - sum(alone.values()) == 4 * parameters


def test_logits_that_are_changed_after_the_output_layer_are_refused(tiny: ModelConfig) -> None:
    base = base_of(tiny)
    base.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: logits * 0.5)
    with pytest.raises(ModelError, match="scaled or capped"):
        Roles(base, LoraConfig(**LORA), seed=0)


def other_model(kind: str) -> Any:
    """A random model of two layers of another family than Llama."""
    shape: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    config = AutoConfig.for_model(kind, **shape, **heads)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "mixtral"])
def test_other_families_have_the_log_probabilities_of_a_plain_forward_pass(kind: str) -> None:
    base = other_model(kind)
    expected = full_logprobs(base, PREFIXES[0] + ANSWERS[0])[2:]
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    roles = Roles(base, LoraConfig(**{**LORA, "target_modules": targets}), seed=0)
    for tree in {False, roles.tree}:
        with torch.no_grad(), roles.acting("policy"):
            found = roles.logprobs(pack(PREFIXES, ANSWERS, CPU, tree=tree), 1.0)[0]
        assert found[:3].numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "tree"),
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("mixtral", {}, True),
        ("gpt2", {}, True),
        ("mistral", {"sliding_window": None}, True),
        ("mistral", {"sliding_window": 64}, False),
        ("llama", {"attn_implementation": "eager"}, False),
        ("mamba", {}, False),
        ("jamba", {}, False),
    ],
)
def test_trees_are_for_models_that_read_along_their_branches(
    kind: str, options: dict[str, Any], tree: bool, tmp_path: Path
) -> None:
    make_architecture(tmp_path, kind, **options)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    roles = Roles(base, LoraConfig(**{**LORA, "target_modules": TARGETS.get(kind, ["q_proj", "v_proj"])}), seed=0)
    assert roles.tree == tree


TARGETS = {"gpt2": ["c_attn"], "mamba": ["in_proj"]}


def test_adapters_on_experts_are_refused_with_what_to_name_instead() -> None:
    with pytest.raises(ModelError, match=r"name other layers in lora\.target_modules"):
        Roles(other_model("mixtral"), LoraConfig(**LORA), seed=0)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    with pytest.raises(ModelError, match="scaled or capped"):
        Roles(other_model("gemma2"), LoraConfig(**LORA), seed=0)


def test_an_adapter_on_the_output_layer_is_refused(tiny: ModelConfig) -> None:
    with pytest.raises(ModelError, match="frozen output layer"):
        Roles(base_of(tiny), LoraConfig(**{**LORA, "target_modules": ["q_proj", "lm_head"]}), seed=0)


def test_dropout_is_off_in_training_mode_too() -> None:
    # A GPT-2 drops a tenth of its attention, embeddings and residuals when it trains; its layers are no nn.Linear.
    base = absolute_model()
    expected = full_logprobs(base, PREFIXES[0] + ANSWERS[0])[2:]
    roles = Roles(base, LoraConfig(**LORA, fan_in_fan_out=True), seed=0, gradient_checkpointing=True)
    assert roles.base.training
    packed = pack(PREFIXES, ANSWERS, CPU)
    with torch.no_grad(), roles.acting("policy"):
        first, second = (roles.logprobs(packed, 1.0)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first[:3].numpy() == pytest.approx(expected, abs=1e-4)
