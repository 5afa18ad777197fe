"""The memory plan's formulas, by hand on a small model; `make bench-memory` holds them against measured peaks."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.memory import (
    HEAP,
    LIVE,
    LOGIT,
    PROGRAM,
    TILED_LOGIT,
    Change,
    Sizes,
    Tuned,
    Work,
    activations,
    base,
    cache,
    logits,
    nearest,
    peak,
    sizes_of,
    trained,
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
    outputs=48,
    tied=True,
    names=(
        ("model.embed_tokens.weight", 80),
        ("model.layers.0.mlp.up_proj.weight", 700),
        ("model.layers.1.mlp.up_proj.weight", 220),
        ("lm_head.weight", 80),
    ),
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
    assert logits(SIZES, DPO) == 3 * 2 * 5 * 10 * TILED_LOGIT
    assert logits(SIZES, replace(DPO, kind="ppo")) == 3 * 2 * 5 * 10 * LOGIT
    assert logits(SIZES, replace(DPO, answer=0)) == 0


def test_trls_logits_are_a_tile_of_4096_tokens_and_32768_words_at_most() -> None:
    wide = replace(SIZES, vocabulary=150_000)
    assert logits(wide, DPO) == 3 * 2 * 5 * 32768 * TILED_LOGIT
    assert logits(wide, replace(DPO, batch=32, answer=1024)) == 4096 * 32768 * TILED_LOGIT


@pytest.mark.parametrize(
    ("tuned", "count"),
    [
        (Tuned("lora"), 0),
        (Tuned("full"), 1_000),
        (Tuned("layers", ("model.layers.1",)), 220),
        (Tuned("layers", ("model.layers.?.mlp", "lm_head")), 1_000),
        (Tuned("lm_head"), 80),
    ],
)
def test_trained_weights_are_counted_by_their_names(tuned: Tuned, count: int) -> None:
    assert trained(SIZES, tuned) == count


def test_a_trained_weight_takes_sixteen_bytes_in_the_place_of_its_own() -> None:
    # In bf16 autocast keeps a copy of two bytes, which takes the place of the two that it had.
    full = replace(DPO, quantization="none", rank=0, tuned=Tuned("full"))
    assert peak(SIZES, full, gpu=True).parts["trained"] == 1_000 * 16
    assert peak(SIZES, replace(full, number=4), gpu=True).parts["trained"] == 1_000 * (16 - 4)
    assert peak(SIZES, replace(full, reference=True), gpu=True).parts["trained"] == 1_000 * (16 + 4)
    # A tied head gets weights of its own, and the embeddings stay.
    head = replace(full, tuned=Tuned("lm_head"))
    assert peak(SIZES, head, gpu=True).parts["trained"] == 80 * (16 + 2)
    assert peak(replace(SIZES, tied=False), head, gpu=True).parts["trained"] == 80 * 16


def test_policies_that_answer_in_turn_hold_what_each_of_them_trained() -> None:
    answers = Work(kind="sample", batch=2, each=1, length=5, answer=2, quantization="none", rollout=2)
    several = replace(answers, policies=(Tuned("lora"), Tuned("lm_head"), Tuned("full")))
    alone, together = (peak(SIZES, each, gpu=True).parts["weights"] for each in (answers, several))
    assert together - alone == 2 * (80 + 1_000)


def test_what_is_trained_itself_keeps_its_norms_and_a_head_alone_keeps_nothing_below() -> None:
    layer = 96 + 32 + 128 + 64 + 96
    full = replace(DPO, quantization="none", rank=0, tuned=Tuned("full"))
    assert activations(SIZES, full) == round(HEAP * 30 * layer * 2)
    assert activations(SIZES, replace(full, tuned=Tuned("lm_head"))) == round(HEAP * 30 * layer)


def test_dora_keeps_two_outputs_of_each_layer_and_trains_its_magnitudes() -> None:
    # Two layers have 48 outputs together; LoRA's and the base's are kept, in two bytes.
    dora = replace(DPO, dora=True)
    assert activations(SIZES, dora) - activations(SIZES, DPO) == pytest.approx(HEAP * 30 * 2 * 2 * 48, abs=1)
    assert peak(SIZES, dora, gpu=True).parts["adapters"] == (100 * 4 + 48) * 16


def test_what_trains_the_base_is_not_told_to_quantise_it() -> None:
    full = replace(DPO, batch=1, length=64, answer=64, quantization="none", rank=0, tuned=Tuned("full"))
    least = peak(SIZES, replace(full, checkpointing=True), gpu=True).total
    assert nearest(SIZES, full, least - 1, gpu=True) is None


def test_a_cache_holds_keys_and_values_of_every_layer() -> None:
    assert cache(SIZES, rows=7, length=11, number=2) == 2 * (7 * 11 * 2 * (4 + 4) * 2)


def test_an_adapter_takes_sixteen_bytes_a_weight_and_a_frozen_one_four() -> None:
    assert peak(SIZES, DPO, gpu=True).parts["adapters"] == 100 * 4 * 16
    assert peak(SIZES, replace(DPO, frozen=1), gpu=True).parts["adapters"] == 100 * 4 * 20


@pytest.mark.parametrize(
    ("zero", "offload", "each"),
    [
        # A weight and its gradient take 4 bytes each; two moments and DeepSpeed's copy take 12, over four processes 3.
        (0, False, 16),
        (1, False, 4 + 4 + 3),
        (2, False, 4 + 1 + 3),
        (3, False, 1 + 1 + 3),
        (1, True, 4 + 4),
        (2, True, 4),
        (3, True, 0),
    ],
)
def test_each_stage_of_zero_divides_more_of_what_a_trained_weight_takes(zero: Any, offload: bool, each: int) -> None:
    shared = replace(DPO, zero=zero, world=4, offload=offload)
    assert peak(SIZES, shared, gpu=True).parts["adapters"] == 100 * 4 * each
    # A second adapter is frozen, and whole everywhere.
    assert peak(SIZES, replace(shared, frozen=1), gpu=True).parts["adapters"] == 100 * 4 * (each + 4)
    full = replace(shared, quantization="none", rank=0, tuned=Tuned("full"))
    assert peak(SIZES, full, gpu=True).parts["trained"] == 1_000 * each


def test_what_is_offloaded_on_a_processor_stays_in_its_memory() -> None:
    shared = replace(DPO, zero=2, world=4)
    assert peak(SIZES, replace(shared, offload=True), gpu=False) == peak(SIZES, shared, gpu=False)


def test_the_third_stage_alone_divides_the_base_and_has_a_billion_numbers_of_it_whole() -> None:
    held = 40 * LIVE
    for zero in (0, 1, 2):
        assert base(held, replace(DPO, zero=zero, world=8), gpu=True) == held
    third = replace(DPO, zero=3, world=8)
    # An eighth of 40 GB is 5 GB; a billion numbers of two bytes are 2 GB.
    assert base(held, third, gpu=True) == 7 * LIVE
    assert base(held, replace(third, offload=True), gpu=True) == 2 * LIVE
    # A base below that is whole all the time, and never more than whole.
    assert base(LIVE, third, gpu=True) == LIVE
    # Every process reads all of it before it keeps its part.
    assert peak(SIZES, third, gpu=True).loading == PROGRAM["gpu"] + weights(SIZES, third)


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
    assert found.outputs == 2 * (2 * 32 + 2 * 16 + 2 * 64 + 32)
    assert not found.tied
    assert dict(found.names) == {name: each.numel() for name, each in tiny_model.named_parameters()}
    assert found.file == pytest.approx(found.parameters * 4, rel=0.1)
