"""Several processes as one run: they read the same batch, take a share of its windows each, and step alike.

    batch k → windows rank, rank + size, … → loss → gradients, averaged over all ranks → the same step on every rank

`torch.distributed.run` starts the processes and says in the environment which is which. Rank 0 alone writes, evaluates
and scores; it also says when to stop. Batch k is what one process alone would have read, whatever the number of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError


class RankLost(Exception):
    """Another process of the run died; all are started again from the newest checkpoint."""


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:                                       # of torch.distributed, by whatever name
        raise RankLost(str(error).splitlines()[0]) from error


@dataclass(frozen=True)
class Ranks:
    """Which process this is (`rank`) of how many (`size`); `agent`: the process that started them and ends them."""

    rank: int = 0
    size: int = 1
    agent: int | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: SpikeBatch) -> SpikeBatch:
        """This rank's windows of a batch."""
        if self.size == 1:
            return batch
        if len(batch) % self.size:
            raise WorkbenchError(f"{self.size} processes cannot share batches of {len(batch)} windows evenly; choose a "
                                 "batch.size that the number of processes divides")
        return batch.take(torch.arange(self.rank, len(batch), self.size, device=batch.device))

    def average_gradients_(self, model: nn.Module) -> None:
        """The mean over ranks of every gradient, in one message; one that a rank lacks is zero there."""
        if self.size == 1:
            return
        weights = [p for p in model.parameters() if p.requires_grad]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in weights])
        with _together():
            distributed.all_reduce(flat)
        for p, mean in zip(weights, (flat / self.size).split([p.numel() for p in weights]), strict=True):
            p.grad = mean.view_as(p)

    def average(self, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The mean of every number over ranks."""
        if self.size == 1:
            return {name: value.item() for name, value in values.items()}
        numbers = torch.stack([value.detach().float() for value in values.values()])
        with _together():
            distributed.all_reduce(numbers)
        return dict(zip(values, (numbers / self.size).tolist(), strict=True))

    def agree(self, value: Any) -> Any:
        """What rank 0 says, on every rank; plain data."""
        if self.size == 1:
            return value
        said = [value]
        with _together():
            distributed.broadcast_object_list(said)
        return said[0]

    def gather(self, value: Any) -> list[Any]:
        """What every rank says, on rank 0; elsewhere nothing."""
        if self.size == 1:
            return [value]
        said = [None] * self.size if self.first else None
        with _together():
            distributed.gather_object(value, said)
        return said or []


ALONE = Ranks()


def started_together() -> bool:
    """Whether torch.distributed.run started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def attempt() -> int:
    """How often the processes were started again because one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def join() -> Ranks:
    """Meet the other processes; `leave` once nothing is to be shared any more."""
    # The store outlives an attempt, and a process that read in it where another one listened before would wait for
    # that one for ever: every attempt has names of its own.
    store, rank, size = next(distributed.rendezvous("env://"))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=rank, world_size=size,
                                   store=distributed.PrefixStore(f"attempt {attempt()}", store))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Ranks(rank, size, agent=os.getppid())


def leave() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
