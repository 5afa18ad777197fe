"""Conversations and their answers as one micro-batch: as padded rows, or as a tree.

Rows have their padding on the right, where a causal model's real tokens cannot see it: so no attention mask is needed,
and positions count from 0. In a tree no token is padding, and what conversations have in common at their beginning (the
template, a system prompt, the whole prompt of several answers) is computed once. Which models can compute one is for
`ppo_roles.py` to say. What is left out: a token that nobody reads from, such as an answer's last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithms.short_attention import LONGEST, Tree
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
    rows = [[*prefix, *answer] for prefix, answer in zip(prefixes, answers, strict=True)]
    return _packed(rows, [range(len(row) - 1, len(row)) for row in rows], [], device, tree)


def _packed(
    rows: list[list[int]], reads: Sequence[range], targets: list[int], device: torch.device, tree: bool
) -> Packed:
    width = max(map(len, rows))
    target_N = torch.tensor(targets, dtype=torch.long, device=device)
    if tree and width <= LONGEST:
        return _tree(rows, reads, target_N, device)
    ids_BT, _ = padded(rows, device)
    read_N = torch.tensor([row * width + column for row, read in enumerate(reads) for column in read], device=device)
    return Packed(ids_BT, read_N, target_N)


def _tree(rows: list[list[int]], reads: Sequence[range], target_N: Tensor, device: torch.device) -> Packed:
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
