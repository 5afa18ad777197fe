"""The predictions of data/scale.md, by hand for some of its lines."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import scale
from pipeline.memory import Sizes, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seven() -> Sizes:
    return scale.sizes("7B")


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "data" / "scale.md").read_text() == scale.page(), "make scale writes it"


def test_a_base_of_7b_takes_the_bytes_that_its_shapes_and_the_paper_give(seven: Sizes) -> None:
    # A layer: q, k, v and o of 4096 x 4096, and three matrices of 4096 x 11008. Two embeddings of 32,000 x 4096 and 65
    # norms stay in bf16. NF4 has 4 bits a weight, 8 for each 64 of them and 32 for each 16,384.
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert seven.parameters == linear + 2 * 32_000 * 4096 + 65 * 4096 == 6_738_415_616
    found = scale.cell("SFT", 1, seven)
    assert found is not None
    assert weights(seven, found.work) == linear * 4 // 8 + linear // 64 + linear // 4096 + 2 * (262_144_000 + 266_240)
    # LoRA of rank 16 on every linear layer: what PEFT prints for it.
    assert seven.ends * found.work.rank == 39_976_960


def test_a_token_of_7b_takes_two_operations_a_weight_each_way(seven: Sizes) -> None:
    found = scale.cell("SFT", 1, seven)
    assert found is not None and not found.work.checkpointing and found.work.zero == 0
    # Forward and backward through linear layers and the output layer; attention sees 512 tokens on average and takes
    # 2 x 2 x 4096 for each of them in each of 32 layers, thrice; so does the adapter, at 2 a weight.
    frozen = 2 * 2 * (6_476_005_376 + 32_000 * 4096)
    attention = 3 * 2 * 2 * 4096 * 512 * 32
    adapter = 3 * 2 * 39_976_960
    seconds = 64 * 1024 * (frozen + attention + adapter) / (312e12 * 0.35)
    assert found.seconds["computing"] == pytest.approx(seconds, rel=1e-12)
    assert seconds == pytest.approx(16.5, abs=0.1)
    # 64 passes each way, each of which reads half a byte a weight and writes two.
    assert found.seconds["dequantising"] == pytest.approx(128 * 6_476_005_376 * 2.5 / 2e12, rel=1e-12)


def test_ddp_sends_the_gradient_once_an_update_and_zero_3_the_base_with_every_pass(seven: Sizes) -> None:
    found = scale.cell("DPO", 8, seven)
    assert found is not None and not found.work.checkpointing
    ddp = replace(found.work, zero=0)
    gradient = 4 * 39_976_960
    through = scale.Passes(2, 1)
    assert scale.communicating(seven, ddp, 8, through) == pytest.approx(2 * 7 / 8 * gradient / 200e9)
    divided = 7 / 8 * (gradient * 9 + 8 * 3 * weights(seven, ddp)) / 200e9
    assert scale.communicating(seven, replace(ddp, zero=3), 8, through) == pytest.approx(divided)


def test_a_token_of_few_answers_takes_as_long_as_python_needs_to_start_its_layers(seven: Sizes) -> None:
    found = scale.cell("PPO", 64, seven)
    assert found is not None and found.work.zero == 0
    assert found.seconds["sampling"] == pytest.approx(512 * 32 * 1e-3, rel=0.02)


def test_what_fits_nowhere_says_so(monkeypatch: pytest.MonkeyPatch, seven: Sizes) -> None:
    monkeypatch.setattr(scale, "MEMORY", 4e9)
    assert scale.cell("PPO", 8, seven) is None
