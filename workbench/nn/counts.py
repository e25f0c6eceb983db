"""Spike counts on one scale, for units that fire seldom and units that fire much."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.nn.stitcher import unit_weights
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session


class StandardCounts(nn.Module):
    """Counts minus their unit's mean, over its square root: unit variance where spikes are Poisson.

    units: names; noise: standard deviation of what is added in training. The means are set by `measure`.
    """

    def __init__(self, units: Sequence[str], noise: float = 0.0):
        super().__init__()
        self.rates, self.noise = Vocabulary("unit", units, 1, std=0.0), noise       # mean counts a bin
        self.rates.weight.requires_grad_(False)

    @torch.no_grad()
    def measure(self, sessions: Sequence[Session], bin_size: float) -> None:
        """Take the mean counts a bin of the units of `sessions` from there."""
        for session in sessions:
            rows = self.rates.rows([f"{session.id}/{unit}" for unit in session.units["id"]])
            self.rates.weight[rows, 0] = torch.from_numpy(session.rates() * bin_size).to(self.rates.weight)

    def forward(self, counts: Tensor, batch: SpikeBatch) -> Tensor:
        """counts [B, N, T] → [B, N, T]; what a window lacks holds noise, which a read-in passes over."""
        rates = unit_weights(batch, self.rates)
        z = (counts - rates) / rates.clamp(min=1e-2).sqrt()
        return z + self.noise * torch.randn_like(z) if self.training and self.noise else z
