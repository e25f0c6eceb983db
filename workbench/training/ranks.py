"""Several processes as one run: they read the same batch, take a share of its windows each, and step alike.

    batch k → a share of its windows, of about as many spikes as the others' → loss → gradients, averaged over all ranks
        → the same step on every rank

`torch.distributed.run` starts the processes and says in the environment which is which. Rank 0 alone writes, evaluates
and scores; it also says when to stop. Batch k is what one process alone would have read, whatever the number of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import distributed, nn

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.nn.vocabulary import Vocabulary

LARGE = 1 << 16                                                         # numbers of a table: 256 kB of gradient


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
        """This rank's windows of a batch, in their order: as many as every other rank's, of about as many spikes."""
        if self.size == 1:
            return batch
        if len(batch) % self.size:
            raise WorkbenchError(f"{self.size} processes cannot share batches of {len(batch)} windows evenly; choose a "
                                 "batch.size that the number of processes divides")
        # Dealt out from the fullest on, there and back, so that no rank always has the fuller of two.
        deal = batch.offsets.diff().argsort(descending=True, stable=True).view(-1, self.size)
        deal[1::2] = deal[1::2].flip(1)
        return batch.take(deal[:, self.rank].sort().values)

    def average_gradients_(self, model: nn.Module) -> None:
        """The mean over ranks of every gradient; one that a rank lacks is zero there.

        One message, of the rows alone that some rank touched where a table is large. Gradients stay dense: the
        optimizer moves the other rows as ever.
        """
        if self.size == 1:
            return
        weights = [p for p in model.parameters() if p.requires_grad]
        for p in weights:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        touched = self._touched(tables(model))
        parts = [p.grad[touched[p]] if p in touched else p.grad for p in weights]
        flat = torch.cat([part.flatten() for part in parts])
        with _together():
            distributed.all_reduce(flat)
        for p, part, mean in zip(weights, parts, (flat / self.size).split([part.numel() for part in parts]),
                                 strict=True):
            if p in touched:
                p.grad[touched[p]] = mean.view_as(part)                 # zero on every rank elsewhere
            else:
                p.grad = mean.view_as(p)

    def _touched(self, large: list[nn.Parameter]) -> dict[nn.Parameter, torch.Tensor]:
        """The rows of large tables that have a gradient on some rank, of those tables where they are few."""
        if not large:
            return {}
        some = torch.cat([p.grad.flatten(1).any(1) for p in large]).to(torch.uint8)
        with _together():
            distributed.all_reduce(some, distributed.ReduceOp.MAX)
        rows = {p: one.nonzero()[:, 0] for p, one in zip(large, some.split([len(p) for p in large]), strict=True)}
        return {p: one for p, one in rows.items() if 2 * len(one) < len(p)}

    def average(self, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The mean of every number over the ranks that have it: a mode or a task may be in one rank's share alone."""
        own = {name: value.item() for name, value in values.items()}
        if self.size == 1:
            return own
        said: list[dict[str, float]] = [{}] * self.size
        with _together():
            distributed.all_gather_object(said, own)
        names = dict.fromkeys(name for each in said for name in each)
        return {name: fmean(each[name] for each in said if name in each) for name in names}

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


def tables(model: nn.Module) -> list[nn.Parameter]:
    """The learned tables, of units and sessions say, that are large enough for a message about their rows to pay."""
    found = [m.weight for m in model.modules() if isinstance(m, Vocabulary | nn.Embedding)]
    return [p for p in dict.fromkeys(found) if p.requires_grad and p.ndim > 1 and p.numel() >= LARGE]


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
