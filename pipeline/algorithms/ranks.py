"""The processes that share one training run, through torch.distributed where it was started; else this one alone."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import LostRankError
from pipeline.models import device

T = TypeVar("T")


class Ranks:
    """Which of how many processes this is, and the ways in which they talk."""

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

    def first(self, item: T) -> T:
        """What the first process gives, for all."""
        return self.gather([item])[0]

    def wait(self) -> None:
        """Go on when all are here."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def together(step: str, rank: int, world: int, timeout_s: float) -> Iterator[None]:
    """Inside, the processes of a step are a group; one alone is none.

    Raises:
        LostRankError: another process ended, or said nothing for `timeout_s` seconds.
    """
    if world == 1:
        yield
        return
    where = device()
    if where.type == "cuda":
        torch.cuda.set_device(where)
    try:
        dist.init_process_group(
            # Small things, such as PPO's scores, are exchanged from the machine's memory.
            "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout_s),
        )
        yield
    except RuntimeError as error:
        if not _lost(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise LostRankError(
            f"{step}: process {rank} of {world} ends: another one ended, or did not answer for {timeout_s:g} s "
            f"(launch.timeout_s). If no other one says why, look at the network between the hosts. [{first}]"
        ) from error
    dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    # gloo has no class of errors of its own.
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl"))
