"""The memory plan's formulas, by hand on a small model; `make bench-memory` holds them against measured peaks."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.memory import (
    HEAP,
    LOGIT,
    PROGRAM,
    Change,
    Sizes,
    Work,
    activations,
    cache,
    logits,
    nearest,
    peak,
    sizes_of,
    weights,
)

SIZES = Sizes(
    parameters=1_000,
    linear=640,
    ends=100,
    layers=2,
    hidden=8,
    attention=8,
    keys=4,
    intermediate=16,
    vocabulary=10,
    file=4_000,
)
DPO = Work(kind="train", batch=3, each=2, length=5, answer=5, rank=4)


def test_a_base_has_the_bits_a_weight_that_the_paper_counts() -> None:
    # 360 numbers stay in two bytes; 640 have 4 bits, and 8 bits for each 64 with 32 for each 256 of those.
    assert weights(SIZES, DPO) == round(360 * 2 + 640 * (0.5 + 1 / 64 + 4 / 16384))
    assert weights(SIZES, replace(DPO, double=False)) == 360 * 2 + 640 // 2 + 40
    assert weights(SIZES, replace(DPO, quantization="int8")) == 360 * 2 + 640
    assert weights(SIZES, replace(DPO, quantization="none")) == 2_000


def test_training_keeps_what_each_layer_needs_on_the_way_back_for_every_token() -> None:
    # A token in a layer: 6 x 8 x 2 + 16 x 2 of adapters' inputs, 8 x 8 of norms, 4 x 8 x 2 of attention, 3 x 16 x 2.
    layer = 96 + 32 + 64 + 64 + 96
    assert activations(SIZES, DPO) == round(HEAP * 30 * layer * 2)
    assert activations(SIZES, replace(DPO, kind="ppo")) == round(HEAP * 30 * (layer - 48) * 2)
    assert activations(SIZES, replace(DPO, kind="read")) == round(HEAP * 30 * layer)
    again = replace(DPO, checkpointing=True)
    assert activations(SIZES, again) == round(HEAP * 30 * (layer + 2 * 8 * 2))


def test_the_vocabulary_counts_for_the_tokens_whose_logits_are_computed() -> None:
    assert logits(SIZES, DPO) == 3 * 2 * 5 * 10 * LOGIT
    assert logits(SIZES, replace(DPO, answer=0)) == 0


def test_a_cache_holds_keys_and_values_of_every_layer() -> None:
    assert cache(SIZES, rows=7, length=11, number=2) == 2 * (7 * 11 * 2 * (4 + 4) * 2)


def test_an_adapter_takes_sixteen_bytes_a_weight_and_a_frozen_one_four() -> None:
    assert peak(SIZES, DPO, gpu=True).parts["adapters"] == 100 * 4 * 16
    assert peak(SIZES, replace(DPO, frozen=1), gpu=True).parts["adapters"] == 100 * 4 * 20


def test_loading_maps_the_file_on_a_processor_and_dequantises_what_is_only_read() -> None:
    held = weights(SIZES, DPO)
    assert peak(SIZES, DPO, gpu=False).loading == PROGRAM["train"] + 4_000 + held
    assert peak(SIZES, replace(DPO, kind="read", rank=0), gpu=False).loading == PROGRAM["infer"] + 4_000 + held + 2_000
    assert peak(SIZES, DPO, gpu=True).loading == 0


def test_the_nearest_setting_that_fits_changes_the_batch_before_the_length_before_the_rest() -> None:
    big = replace(DPO, batch=8, length=256, answer=256, quantization="none")

    def needed(**changes: Any) -> int:
        return peak(SIZES, replace(big, **changes), gpu=True).total

    assert nearest(SIZES, big, needed(), gpu=True) == ()
    assert nearest(SIZES, big, needed(batch=4), gpu=True) == (Change("batch", 4),)
    short = {"batch": 1, "length": 128, "answer": 128}
    assert nearest(SIZES, big, needed(**short), gpu=True) == (Change("batch", 1), Change("max_length", 128))
    last = {"batch": 1, "length": 64, "answer": 64, "checkpointing": True, "quantization": "nf4"}
    assert nearest(SIZES, big, needed(**last), gpu=True) == (
        Change("batch", 1),
        Change("max_length", 64),
        Change("gradient_checkpointing", True),
        Change("quantization", "nf4"),
    )
    assert nearest(SIZES, big, needed(**last) - 1, gpu=True) is None
    assert nearest(SIZES, replace(big, least=4), needed(batch=2), gpu=True) != (Change("batch", 2),)


def test_sizes_are_counted_without_weights(tiny: Any, tiny_model: Any) -> None:
    found = sizes_of(tiny)
    assert found.parameters == sum(each.numel() for each in tiny_model.parameters())
    # Two layers: q and o are 32 x 32, k and v 16 x 32, and gate, up and down 64 x 32.
    assert found.linear == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert found.ends == 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert (found.layers, found.hidden, found.attention, found.keys, found.intermediate) == (2, 32, 32, 16, 64)
    assert found.vocabulary == 300
    assert found.file == pytest.approx(found.parameters * 4, rel=0.1)
