"""A recurrent decoder of binned counts: the honest neural baseline.

    counts [B, T, N], standardised, noised in training → read-in of the session → GRU → linear → behavior [Q, outputs]

Causal: a sample sees the bin it lies in and the bins before it. Cho et al. 2014, arXiv 1406.1078.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.losses import window_mse
from workbench.models.base import Output, SpikeModel, default_bins, sample_bins, scaling, unit_names
from workbench.nn.counts import StandardCounts
from workbench.nn.stitcher import ReadIn
from workbench.session import Session


class GRU(SpikeModel):
    """units and sessions: names ('<session id>/<unit id>'); bin_size, window, warmup in s."""

    name = "gru"
    decodes = True

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], target: str, outputs: int,
                 mean: Sequence[float], scale: Sequence[float], bin_size: float = 0.05, window: float = 3.0,
                 warmup: float = 0.5, dim: int = 256, noise: float = 0.3, dropout: float = 0.3):
        super().__init__()
        if window <= warmup:
            raise WorkbenchError(f"windows of {window:g} s leave nothing after a warm-up of {warmup:g} s; give a "
                                 "longer window= or a shorter warmup=")
        self.target, self.bin_size, self.window, self.warmup = target, bin_size, window, warmup
        self.standard = StandardCounts(units, noise)
        self.read_in = ReadIn(units, sessions, dim)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.readout = nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> GRU:
        """Bins as wide as the target's sampling interval, 20 ms at least; windows of about 3 s."""
        mean, scale = scaling(sessions, target)
        bin_size = settings.pop("bin_size", None) or default_bins(sessions, target)
        window = settings.pop("window", None) or max(round(3.0 / bin_size), 1) * bin_size
        model = cls(units=unit_names(sessions), sessions=[s.id for s in sessions], target=target, outputs=len(mean),
                    mean=mean, scale=scale, bin_size=bin_size, window=window, **settings)
        model.standard.measure(sessions, bin_size)
        return model

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, read out of the bin that holds each, and states [B, T, D]."""
        counts = self.standard(batch.counts(self.bin_size), batch)
        states, _ = self.gru(self.dropout(self.read_in(counts, batch)))
        window, bins = sample_bins(batch.targets[self.target], self.bin_size, states.shape[1])
        found = self.readout(self.dropout(states[window, bins]))
        return Output(behavior=found * self.scale + self.mean, latents=states)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Mean squared error of the standardised behaviour, after the warm-up."""
        return {"loss": window_mse(self(batch).behavior, batch.targets[self.target], self.scale, since=self.warmup)}
