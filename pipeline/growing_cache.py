"""Keys and values that grow with room to spare, so that a token is written and not all that came before it copied.

transformers' own layer joins old and new at every token: in a rollout of the built-in model that is 6 % of the time at
70 tokens, and more the longer the answers are. Conversations that were read apart, because their lengths differ, are
put together without reading them again. What is left out: layers with a window, and recurrent ones, which stay as
transformers has them.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Tokens that there is room for after the last one when there was no more."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """What a layer has seen; `keys` and `values` are the filled parts of what there is room in."""

    keys: Tensor
    values: Tensor
    rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes (B, heads, T, D) behind what is there. Returns all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        end = before + key_states.shape[-2]
        # Whatever rearranges the rows leaves `keys` elsewhere than where there is room.
        there = self.rooms is not None and self.keys.data_ptr() == self.rooms[0].data_ptr()
        if self.rooms is None or not there or self.rooms[0].shape[-2] < end:
            self.rooms = (_room(key_states, end), _room(value_states, end))
            if before:
                self.rooms[0][..., :before, :] = self.keys
                self.rooms[1][..., :before, :] = self.values
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., before:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.rooms)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """These rows in this order."""
        self.rooms = None  # not to be held until the next token
        super().reorder_cache(beam_idx)

    def join(
        self, opened: "GrowingLayer", parts: Sequence["GrowingLayer"], places: Sequence[Sequence[int]], rows: int
    ) -> None:
        """See the function `join`."""
        read = [*parts, opened] if opened.is_initialized else parts
        self.lazy_initialization(read[0].keys, read[0].values)
        begun = opened.get_seq_length()
        self.keys = _joined([each.keys for each in read], places, rows, begun)
        self.values = _joined([each.values for each in read], places, rows, begun)


def _room(new: Tensor, end: int) -> Tensor:
    batch, heads, _, depth = new.shape
    return new.new_empty(batch, heads, end + ROOM, depth)


def _joined(read: Sequence[Tensor], places: Sequence[Sequence[int]], rows: int, begun: int) -> Tensor:
    """(B, heads, T, D) of parts that end together, the first `begun` of T being those of all; the last of what was read
    is that alone, where there is any."""
    _, heads, _, depth = read[0].shape
    longest = max(each.shape[-2] for each in read)
    # Zeros for padding: where nobody looks, values are multiplied by 0 all the same, and NaN would stay NaN.
    whole = read[0].new_zeros(rows, heads, longest, depth)
    if begun:
        whole[:, :, :begun] = read[-1]
    for part, here in zip(read, places, strict=False):
        rest = part[:, :, begun:]
        whole[here, :, longest - rest.shape[-2] :] = rest
    return whole


def growing_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def grows(cache: DynamicCache) -> bool:
    """Whether all its layers are of the kind that `join` joins."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def join(
    cache: DynamicCache,
    opened: DynamicCache,
    parts: Sequence[DynamicCache],
    places: Sequence[Sequence[int]],
    rows: int,
) -> None:
    """Puts what was read in several passes into an empty cache: what all rows begin with, padding, the rest of each.

    Args:
        cache: a growing one, as the others are, of the same model.
        opened: of one row, what all begin with. It may be empty.
        parts: each has read on from there. Emptied meanwhile, so that no more than a layer is held twice.
        places: for each part, which rows of the whole its rows are.
        rows: of the whole; those that are in no part are what all begin with and nothing more.
    """
    for number, layer in enumerate(cache.layers):
        layer.join(opened.layers[number], [part.layers[number] for part in parts], places, rows)
        for part in parts:
            part.layers[number] = GrowingLayer()
