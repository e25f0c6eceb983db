"""Patches: `size` neighbouring units in one bin as one token, made of learned rows, one for each count of each unit.

    counts [B, N, T] → patches [B, T, P, size] → table, dim / size numbers a count → side by side → [B, T, P, dim]

As in NDT2 (Ye et al. 2023, NeurIPS) and NDT3 (Ye et al. 2025). A patch is a place in the session's unit table: what a
model learns of it holds for units that keep their order.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.session import Session


class Patches(nn.Module):
    """size: units a patch; most: patches a session may have; max_count: higher counts are taken as this one."""

    def __init__(self, size: int, most: int, max_count: int, dim: int):
        super().__init__()
        if dim % size:
            raise WorkbenchError(f"patches of {size} units do not divide a width of {dim}; choose patch= and dim= so "
                                 "that they do")
        self.size, self.most, self.max_count = size, most, max_count
        self.table = nn.Embedding(max_count + 2, dim // size)           # the last row: no unit here

    def forward(self, batch: SpikeBatch, bin_size: float) -> Tensor:
        """Tokens [B, T, P, dim] of the batch's counts."""
        rows = batch.patches(self.size, bin_size).long().clamp(max=self.max_count)
        return self.table(rows.where(self.units(batch)[:, None], self.max_count + 1)).flatten(-2)

    def units(self, batch: SpikeBatch) -> Tensor:
        """Which places of which patches hold a unit [B, P, size]. WorkbenchError where a session has too many."""
        there = batch.unit_mask
        found = pad(there, (0, -there.shape[1] % self.size)).unflatten(1, (-1, self.size))
        if found.shape[1] > self.most:
            raise WorkbenchError(f"a session of {there.shape[1]} units makes {found.shape[1]} patches of {self.size}, "
                                 f"and the model was built for {self.most}; build it with patches={found.shape[1]}")
        return found


def most_patches(sessions: Sequence[Session], size: int, least: int = 16) -> int:
    """The most patches that one of the sessions makes, and `least` at the least: room for larger sessions to come."""
    return max([least, *(-(-len(s.units) // size) for s in sessions)])


def unpatched(x: Tensor, units: int) -> Tensor:
    """Numbers for every place [B, T, P, size] → for every unit [B, units, T], columns as in `batch.counts`."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)[:, :units]
