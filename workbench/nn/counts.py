"""Spike counts on one scale, for units that fire seldom and units that fire much."""

from collections.abc import Collection, Sequence

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
    def measure(self, sessions: Sequence[Session], bin_size: float, but: Collection[str] = ()) -> None:
        """Take the mean counts a bin of the units of `sessions` from there. but: names of units that keep theirs."""
        means = {f"{s.id}/{unit}": rate * bin_size for s in sessions
                 for unit, rate in zip(s.units["id"], s.rates().tolist(), strict=True)}
        names = sorted(means.keys() - set(but))
        weight = self.rates.weight
        weight[self.rates.rows(names), 0] = weight.new_tensor([means[name] for name in names])

    def forward(self, counts: Tensor, batch: SpikeBatch) -> Tensor:
        """counts [B, N, T] → [B, N, T]; what a window lacks holds noise, which a read-in passes over."""
        rates = unit_weights(batch, self.rates)
        z = (counts - rates) / rates.clamp(min=1e-2).sqrt()
        return z + self.noise * torch.randn_like(z) if self.training and self.noise else z
