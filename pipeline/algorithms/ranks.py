"""The processes that share one training run, through torch.distributed where it was started; else this one alone."""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """Which of how many processes this is, and the two ways in which they talk."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world = dist.get_world_size() if joined else 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; every process gets the same bits."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """The maximum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def gather(self, items: list[T]) -> list[T]:
        """Everybody's items, by rank."""
        if self.world == 1:
            return items
        found: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(found, items)
        return [item for each in found for item in each]
