"""The local sampler draws what the model's distribution and the uniform numbers say, and nothing else decides it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import END, full_logprobs, prompt_of

from pipeline import adapters, models
from pipeline.errors import ModelError
from pipeline.models import ModelConfig
from pipeline.sampling.base import Batch
from pipeline.sampling.local import Config, LocalSampler, decode, draw, truncate

Drawn = list[tuple[list[int], float]]


def logits_of(*probabilities: float) -> torch.Tensor:
    """Logits with this softmax; the constant is any."""
    return torch.tensor([probabilities]).log() + 3


def drawn(logits: torch.Tensor, uniform: float, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> int:
    (token,) = draw(logits, torch.tensor([uniform]), temperature, top_p, top_k).tolist()
    return int(token)


# ---- one draw


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.09, 0), (0.11, 1), (0.29, 1), (0.31, 2), (0.59, 2), (0.61, 3), (0.9999, 3), (1 - 2**-24, 3)],
)
def test_a_uniform_number_picks_the_token_whose_part_of_the_line_it_falls_in(uniform: float, token: int) -> None:
    # The parts of 0.1, 0.2, 0.3 and 0.4 end at 0.1, 0.3, 0.6 and 1.
    assert drawn(logits_of(0.1, 0.2, 0.3, 0.4), uniform) == token


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.49, 1), (0.51, 3), (1 - 2**-24, 3)])
def test_a_token_of_probability_zero_is_never_drawn(uniform: float, token: int) -> None:
    assert drawn(logits_of(0.0, 0.5, 0.0, 0.5, 0.0), uniform) == token


def test_the_largest_uniform_number_still_draws_a_token_that_can_be() -> None:
    # Cumulative sums in float32 end a little above or below 1; behind them lie a thousand impossible tokens.
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 3000, generator=random) * 4
    logits[:, 2000:] = -torch.inf
    last = draw(logits, torch.full((200,), 1 - 2**-24), 1.0, 1.0, 0)
    assert int(last.max()) < 2000
    assert int(draw(logits, torch.zeros(200), 1.0, 1.0, 0).max()) < 2000


@pytest.mark.parametrize(
    ("temperature", "border"),
    # exp(log(p) / T) of 1/5 and 4/5: 1 and 16 at T = 1/2, 1 and 2 at T = 2.
    [(0.5, 1 / 17), (1.0, 1 / 5), (2.0, 1 / 3)],
)
def test_temperature_divides_the_logits(temperature: float, border: float) -> None:
    logits = logits_of(0.2, 0.8)
    assert drawn(logits, border - 0.001, temperature) == 0
    assert drawn(logits, border + 0.001, temperature) == 1


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_temperature_zero_takes_the_likeliest_token(uniform: float) -> None:
    assert drawn(logits_of(0.3, 0.1, 0.4, 0.2), uniform, temperature=0) == 2


def kept(logits: torch.Tensor, top_p: float = 1.0, top_k: int = 0) -> set[int]:
    return set(torch.isfinite(truncate(logits, top_p, top_k))[0].nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("top_k", "tokens"),
    [(1, {2}), (2, {2, 1}), (3, {2, 1, 3}), (4, {0, 1, 2, 3}), (9, {0, 1, 2, 3}), (0, {0, 1, 2, 3})],
)
def test_top_k_keeps_the_k_likeliest(top_k: int, tokens: set[int]) -> None:
    assert kept(logits_of(0.05, 0.3, 0.5, 0.15), top_k=top_k) == tokens


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [
        (0.01, {2}),
        (0.49, {2}),
        (0.51, {2, 1}),
        (0.79, {2, 1}),
        (0.81, {2, 1, 3}),
        (0.94, {2, 1, 3}),
        (0.96, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_fewest_that_together_have_p(top_p: float, tokens: set[int]) -> None:
    assert kept(logits_of(0.05, 0.3, 0.5, 0.15), top_p=top_p) == tokens


def test_top_p_counts_within_top_k() -> None:
    # Of 0.5, 0.3 and 0.15 alone the first two have 0.84; of all four they have 0.8.
    assert kept(logits_of(0.05, 0.3, 0.5, 0.15), top_p=0.82, top_k=3) == {2, 1}
    assert kept(logits_of(0.05, 0.3, 0.5, 0.15), top_p=0.82) == {2, 1, 3}


def test_truncation_leaves_the_kept_logits_as_they_are() -> None:
    logits = logits_of(0.05, 0.3, 0.5, 0.15)
    assert truncate(logits, 0.6, 3)[0, [1, 2]].tolist() == logits[0, [1, 2]].tolist()


def test_truncated_draws_share_out_the_probability_that_is_left() -> None:
    # 0.3 and 0.5 are left of the two, that is 3/8 and 5/8 of the line.
    logits = logits_of(0.05, 0.3, 0.5, 0.15)
    assert drawn(logits, 0.374, top_k=2) == 1
    assert drawn(logits, 0.376, top_k=2) == 2


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    count = 20_000
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.5, 0.3, -3.0, 1.7, 0.9]])
    exact = np.exp(logits[0].double().numpy())
    exact /= exact.sum()
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(3))
    tokens = draw(logits.expand(count, -1), uniform, 1.0, 1.0, 0)
    frequencies = np.bincount(tokens.numpy(), minlength=8) / count
    assert (np.abs(frequencies - exact) < 4 * np.sqrt(exact * (1 - exact) / count)).all()


def test_one_rows_draw_does_not_depend_on_the_others() -> None:
    random = torch.Generator().manual_seed(2)
    logits, uniform = torch.randn(16, 50, generator=random) * 3, torch.rand(16, generator=random)
    together = draw(logits, uniform, 0.8, 0.9, 20)
    for row in range(16):
        assert draw(logits[row : row + 1], uniform[row : row + 1], 0.8, 0.9, 20).item() == together[row].item()


# ---- whole answers

PREFIXES = [[1, 40, 41, 42, 2, 1, 99], [1, 60], [1, *range(50, 90)]]
SOME_END = frozenset({END, *range(100, 140)})
"""So many that a random model's answers end after six tokens or so, each at another."""


def naive(model: Any, prefix: Sequence[int], uniform: Sequence[float], eos: frozenset[int], heat: float) -> list[int]:
    """An answer sampled without cache and without batch, in float64."""
    tokens: list[int] = []
    for number in uniform:
        with torch.no_grad():
            logits = model(torch.tensor([[*prefix, *tokens]]), use_cache=False).logits[0, -1].double().numpy() / heat
        cdf = np.exp(logits - logits.max()).cumsum()
        tokens.append(int(np.searchsorted(cdf, number * cdf[-1], side="right")))
        if tokens[-1] in eos:
            break
    return tokens


def sampled(model: Any, *, seed: int = 5, eos: frozenset[int] = SOME_END, **options: Any) -> Drawn:
    return decode(model, PREFIXES, Config(**{"max_new_tokens": 24, **options}), samples=3, seed=seed, eos=eos)


def naively(model: Any, *, seed: int = 5, heat: float = 1.0) -> list[list[int]]:
    uniform = torch.rand(9, 24, generator=torch.Generator().manual_seed(seed)).double().tolist()
    return [naive(model, PREFIXES[row // 3], uniform[row], SOME_END, heat) for row in range(9)]


@pytest.mark.parametrize("heat", [1.0, 0.6])
def test_answers_are_those_of_a_loop_without_cache_and_without_batch(heat: float, tiny_model: Any) -> None:
    found = [tokens for tokens, _ in sampled(tiny_model, temperature=heat)]
    assert found == naively(tiny_model, heat=heat)
    # Otherwise this would not show that answers leave the batch at different times.
    assert len({len(tokens) for tokens in found}) > 3


@pytest.mark.parametrize("limit", [1, 2, 20])
def test_greedy_answers_are_those_of_transformers(limit: int, tiny_model: Any) -> None:
    config = Config(temperature=0, max_new_tokens=limit)
    found = decode(tiny_model, PREFIXES, config, samples=1, seed=1, eos=SOME_END)
    for prefix, (tokens, _) in zip(PREFIXES, found, strict=True):
        ids = torch.tensor([prefix])
        whole = tiny_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=sorted(SOME_END),
            pad_token_id=0,
        )
        assert tokens == whole[0, len(prefix) :].tolist()


def test_an_answers_log_probability_is_that_of_a_plain_forward_pass_at_temperature_one(tiny_model: Any) -> None:
    for options in ({}, {"temperature": 0.5, "top_k": 20, "top_p": 0.9}, {"temperature": 0}):
        for row, (tokens, logprob) in enumerate(sampled(tiny_model, **options)):
            prefix = PREFIXES[row // 3]
            expected = full_logprobs(tiny_model, [*prefix, *tokens])[len(prefix) - 1 :].sum()
            assert logprob == pytest.approx(expected, abs=1e-3)


def test_an_answer_is_cut_at_the_limit_and_ends_nowhere_else(tiny_model: Any) -> None:
    for tokens, _ in sampled(tiny_model, max_new_tokens=8):
        assert len(tokens) == 8 or tokens[-1] in SOME_END
        assert not SOME_END.intersection(tokens[:-1])
    assert [len(tokens) for tokens, _ in sampled(tiny_model, eos=frozenset({END}), max_new_tokens=3)] == [3] * 9


def test_a_longer_limit_only_goes_on_where_a_shorter_one_cut(tiny_model: Any) -> None:
    # The uniform numbers of a row are another row's at another limit, except in the first row.
    short, long = sampled(tiny_model, max_new_tokens=4)[0][0], sampled(tiny_model, max_new_tokens=24)[0][0]
    assert long[:4] == short


def test_the_same_seed_gives_the_same_answers_and_another_gives_others(tiny_model: Any) -> None:
    assert sampled(tiny_model) == sampled(tiny_model)
    different = [one != other for one, other in zip(sampled(tiny_model), sampled(tiny_model, seed=6), strict=True)]
    assert sum(different) >= 7


# ---- the sampler

BATCH = Batch((prompt_of("One?"), prompt_of("What is two, and why?")), samples=3, seed=11)


def sampler(tiny: ModelConfig, adapters: dict[str, Path], **options: Any) -> LocalSampler:
    return Config(**{"max_new_tokens": 12, **options}).build(tiny, adapters, reference=bool(adapters))


def test_two_sources_draw_with_the_same_uniform_numbers(
    tiny: ModelConfig, tiny_adapters: dict[str, Path], tiny_tokenizer: Any
) -> None:
    built = sampler(tiny, tiny_adapters)
    uniform = torch.rand(6, 12, generator=torch.Generator().manual_seed(BATCH.seed)).double().tolist()
    prefixes = [models.chat_ids(tiny_tokenizer, prompt.messages) for prompt in BATCH.prompts]
    texts = {}
    for source in ("base", "one", "two"):
        found = built.sample(BATCH, source)
        with adapters.role(built.model, built.roles.get(source, source)):
            tokens = [naive(built.model, prefixes[row // 3], uniform[row], frozenset({END}), 1.0) for row in range(6)]
        assert [each.n_tokens for each in found] == [len(each) for each in tokens]
        texts[source] = [each.text for each in found]
        assert texts[source] == [tiny_tokenizer.decode(each, skip_special_tokens=True) for each in tokens]
    assert texts["base"] != texts["one"] != texts["two"]


def test_an_adapter_that_changes_nothing_answers_as_the_base(
    tiny: ModelConfig, tiny_folder: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    nothing = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), LoraConfig(task_type="CAUSAL_LM"))
    nothing.save_pretrained(str(tmp_path / "nothing"))
    built = sampler(tiny, {"nothing": tmp_path / "nothing"})
    base, adapted = built.sample(BATCH, "base"), built.sample(BATCH, "nothing")
    assert [each.text for each in base] == [each.text for each in adapted]
    for each in adapted:
        assert each.ref_logprob == pytest.approx(each.logprob, abs=1e-3)


def test_a_response_says_where_it_comes_from_and_how_it_ended(tiny: ModelConfig) -> None:
    found = sampler(tiny, {}).sample(BATCH, "base")
    assert [(each.source, each.index) for each in found] == [("base", 0), ("base", 1), ("base", 2)] * 2
    for each in found:
        assert each.finished is True or each.n_tokens == 12
        assert "<|im_end|>" not in each.text
        assert each.ref_logprob is None


def test_an_answer_that_ends_by_itself_is_finished_and_one_that_is_cut_is_not(tiny: ModelConfig) -> None:
    built = sampler(tiny, {})
    # No token ends an answer but the tokenizer's own end, which this greedy model does not come to; then every one.
    built.config = built.config.model_copy(update={"temperature": 0.0})
    assert {(each.finished, each.n_tokens) for each in built.sample(BATCH, "base")} == {(False, 12)}
    built.model.generation_config.eos_token_id = list(range(300))
    assert {(each.finished, each.n_tokens, each.text) for each in built.sample(BATCH, "base")} == {(True, 1, "")}


def test_the_log_probability_under_the_base_is_that_of_the_base(
    tiny: ModelConfig, tiny_adapters: dict[str, Path], tiny_model: Any, tiny_tokenizer: Any
) -> None:
    built = sampler(tiny, tiny_adapters)
    for each in built.sample(BATCH, "base"):
        assert each.ref_logprob == each.logprob
    prefixes = [models.chat_ids(tiny_tokenizer, prompt.messages) for prompt in BATCH.prompts]
    with adapters.role(built.model, built.roles["one"]):
        rows = decode(built.model, prefixes, built.config, samples=3, seed=BATCH.seed, eos=frozenset({END}))
    for number, (each, (tokens, logprob)) in enumerate(zip(built.sample(BATCH, "one"), rows, strict=True)):
        prefix = prefixes[number // 3]
        expected = full_logprobs(tiny_model, [*prefix, *tokens])[len(prefix) - 1 :].sum()
        assert each.ref_logprob == pytest.approx(expected, abs=1e-3)
        assert each.logprob == logprob
        assert each.logprob != pytest.approx(each.ref_logprob, abs=0.1)


def test_a_source_that_nobody_built_is_an_error(tiny: ModelConfig, tiny_adapters: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="'dpo'"):
        sampler(tiny, tiny_adapters).sample(BATCH, "dpo")
