"""A cache with room holds what transformers' own holds, and copies it only when the room is full."""

import torch
from transformers import AutoConfig, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pipeline.growing_cache import ROOM, GrowingLayer, growing_cache, grows, join

PROMPT = 5


def test_it_holds_the_same_as_a_layer_that_joins_with_rows_that_leave_and_repeat() -> None:
    random = torch.Generator().manual_seed(0)
    plain, growing = DynamicLayer(), GrowingLayer()
    rows, steps = 3, [PROMPT, *[1] * (2 * ROOM)]
    for number, tokens in enumerate(steps):
        new = [torch.randn(rows, 2, tokens, 4, generator=random) for _ in range(2)]
        for found, expected in zip(growing.update(*new), plain.update(*new), strict=True):
            assert torch.equal(found, expected)
        if number in (0, 20, ROOM + 1):
            order = torch.tensor([2, 0]) if number == 20 else torch.tensor([*range(rows), 0])
            rows = len(order)
            for layer in (plain, growing):
                layer.reorder_cache(order)
    assert growing.get_seq_length() == sum(steps)


def test_rows_may_be_rearranged_by_whatever_a_layer_has_for_it() -> None:
    random = torch.Generator().manual_seed(1)
    plain, growing = DynamicLayer(), GrowingLayer()
    for change in (
        lambda layer: layer.batch_select_indices(torch.tensor([1, 0])),
        lambda layer: layer.batch_repeat_interleave(1),
        lambda layer: layer.crop(-2),
        lambda layer: layer.reset(),
        lambda layer: None,
    ):
        new = [torch.randn(2, 2, 3, 4, generator=random) for _ in range(2)]
        for found, expected in zip(growing.update(*new), plain.update(*new), strict=True):
            assert torch.equal(found, expected)
        for layer in (plain, growing):
            change(layer)


def test_between_two_growths_a_token_moves_nothing() -> None:
    layer = GrowingLayer()
    places = []
    for tokens in (PROMPT, *[1] * (ROOM + 1)):
        new = torch.zeros(1, 1, tokens, 1)
        places.append(layer.update(new, new)[0].data_ptr())
    assert places[: ROOM + 1] == [places[0]] * (ROOM + 1)
    assert places[-1] != places[0]


def test_layers_that_forget_stay_as_they_are() -> None:
    config = AutoConfig.for_model("gemma2", num_hidden_layers=2)
    assert [type(each) for each in growing_cache(config).layers] == [DynamicSlidingWindowLayer, GrowingLayer]
    assert not grows(growing_cache(config))


def caches(count: int) -> list[DynamicCache]:
    return [growing_cache(AutoConfig.for_model("llama", num_hidden_layers=2)) for _ in range(count)]


def fill(cache: DynamicCache, rows: int, tokens: int, value: float) -> None:
    for number in range(2):
        keys = torch.full((rows, 1, tokens, 1), value + number)
        cache.update(keys, -keys, number)


def test_what_was_read_apart_ends_together_and_has_zeros_before_it() -> None:
    opened, short, long, whole = caches(4)
    fill(short, 2, 1, 1.0)
    fill(long, 1, 3, 7.0)
    assert grows(whole)
    join(whole, opened, [long, short], [[1], [0, 2]], 4)
    for number, layer in enumerate(whole.layers):
        few, many = 1.0 + number, 7.0 + number
        expected = torch.tensor([[0, 0, few], [many, many, many], [0, 0, few], [0, 0, 0]])
        assert torch.equal(layer.keys[:, 0, :, 0], expected)
        assert torch.equal(layer.values[:, 0, :, 0], -expected)
    assert whole.get_seq_length() == 3
    # Held once.
    assert short.get_seq_length() == long.get_seq_length() == 0


def test_what_all_begin_with_stands_before_the_padding() -> None:
    opened, part, whole = caches(3)
    fill(opened, 1, 2, 5.0)
    fill(part, 1, 2, 5.0)
    fill(part, 1, 1, 1.0)
    join(whole, opened, [part], [[1]], 2)
    assert whole.layers[0].keys[:, 0, :, 0].tolist() == [[5, 5, 0], [5, 5, 1]]
    assert whole.layers[1].values[:, 0, :, 0].tolist() == [[-6, -6, 0], [-6, -6, -2]]


def test_rows_that_are_nothing_but_what_all_begin_with() -> None:
    opened, whole = caches(2)
    fill(opened, 1, 2, 5.0)
    join(whole, opened, [], [], 3)
    assert whole.layers[0].keys[:, 0, :, 0].tolist() == [[5, 5]] * 3
