"""Conversations and their answers as one micro-batch: as padded rows, or as a tree.

Rows have their padding on the right, where a causal model's real tokens cannot see it: so no attention mask is needed,
and positions count from 0. In a tree no token is padding, and what conversations have in common at their beginning (the
template, a system prompt, the whole prompt of several answers) is computed once; whether a model can compute one is
tried. What is left out: a token that nobody reads from, such as an answer's last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithms.short_attention import LONGEST, NAME, Tree
from pipeline.decoding import padded


@dataclass(frozen=True)
class Packed:
    """A micro-batch, on the device, and which of its states are read."""

    ids_BT: Tensor
    read_N: Tensor
    """The places of these states, row after row of the micro-batch as it is computed."""
    target_N: Tensor
    """The tokens that are chosen from them; empty if none are."""
    options: dict[str, Any] = field(default_factory=dict)
    """What a model has to be told besides the tokens."""


def pack(
    prefixes: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device, *, tree: bool = False
) -> Packed:
    """The states from which the tokens of answers are chosen; no conversation and no answer is empty."""
    both = list(zip(prefixes, answers, strict=True))
    reads = [range(len(prefix) - 1, len(prefix) + len(answer) - 1) for prefix, answer in both]
    targets = [token for answer in answers for token in answer]
    return _packed([[*prefix, *answer[:-1]] for prefix, answer in both], reads, targets, device, tree)


def pack_ends(
    prefixes: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device, *, tree: bool = False
) -> Packed:
    """The states of the answers' last tokens, where a reward model has its score."""
    return pack_rows([[*prefix, *answer] for prefix, answer in zip(prefixes, answers, strict=True)], device, tree=tree)


def pack_rows(rows: Sequence[Sequence[int]], device: torch.device, *, tree: bool = False) -> Packed:
    """The states of the rows' last tokens."""
    return _packed(rows, [range(len(row) - 1, len(row)) for row in rows], [], device, tree)


def states_of(body: Any, packed: Packed) -> Tensor:
    """The last hidden states that are read of a micro-batch, (N, H).

    Args:
        body: a causal model without its head.
    """
    output = body(input_ids=packed.ids_BT, use_cache=False, **packed.options)
    states_NH: Tensor = output.last_hidden_state.flatten(0, 1)[packed.read_N]
    return states_NH


def takes_trees(model: Any, body: Any) -> bool:
    """Whether a model can compute micro-batches that are trees, in the mode (training or not) and role that it is in.

    Its numbers say: those of rows, and none that another row could have changed.

    Args:
        model: of transformers, after `use_short_attention`.
        body: it without its head.
    """
    if getattr(model.config, "_attn_implementation", None) != NAME:
        return False
    prefixes, device = [[3, 4, 5, 6], [3, 4, 7]], model.device

    def states(first: list[int], tree: bool) -> Tensor:
        return states_of(body, pack(prefixes, [first, [8, 9, 10]], device, tree=tree)).float()

    with torch.no_grad():
        rows_NH = states([11, 12], tree=False)
        try:
            tree_NH, other_NH = states([11, 12], tree=True), states([13, 12], tree=True)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):
            return False
    rounding = max(1e-3, 8 * torch.finfo(model.dtype).eps)
    apart = float((tree_NH - rows_NH).norm() / rows_NH.norm())
    return apart <= rounding and torch.equal(tree_NH[2:], other_NH[2:])


def _packed(
    rows: Sequence[Sequence[int]], reads: Sequence[range], targets: list[int], device: torch.device, tree: bool
) -> Packed:
    width = max(map(len, rows))
    target_N = torch.tensor(targets, dtype=torch.long, device=device)
    if tree and width <= LONGEST:
        return _tree(rows, reads, target_N, device)
    ids_BT, _ = padded(rows, device)
    read_N = torch.tensor([row * width + column for row, read in enumerate(reads) for column in read], device=device)
    return Packed(ids_BT, read_N, target_N)


def _tree(rows: Sequence[Sequence[int]], reads: Sequence[range], target_N: Tensor, device: torch.device) -> Packed:
    # A token's place is that of (the place of the token before it, itself).
    nodes: dict[tuple[int, int], int] = {}
    paths = []
    for row in rows:
        path = [-1]
        for token in row:
            path.append(nodes.setdefault((path[-1], token), len(nodes)))
        paths.append(path[1:])
    depths: list[int] = []
    for before, _ in nodes:
        depths.append(0 if before < 0 else depths[before] + 1)
    places = [path[column] for path, read in zip(paths, reads, strict=True) for column in read]
    return Packed(
        ids_BT=torch.tensor([[token for _, token in nodes]], device=device),
        read_N=torch.tensor(places, device=device),
        target_N=target_N,
        options={
            "position_ids": torch.tensor([depths], device=device),
            # Of four dimensions, so that no mask is made, and of whole numbers, which no other attention takes for one.
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.long, device=device),
            "tree": Tree.of(paths, device),
        },
    )
