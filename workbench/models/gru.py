"""A recurrent decoder of binned counts: the honest neural baseline.

    counts [B, T, N], standardised, noised in training → read-in of the session → GRU → linear → behavior [Q, outputs]

Causal: a sample sees the bin it lies in and the bins before it. Cho et al. 2014, arXiv 1406.1078.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName
from workbench.models.base import Output, SpikeModel, sampling_interval, scaling
from workbench.session import Session


class GRU(SpikeModel):
    """sessions: their ids; units: how many each has; rates: mean counts a bin of every unit; bin_size in seconds."""

    name = "gru"
    decodes = True

    def __init__(self, *, sessions: Sequence[str], rates: Sequence[Sequence[float]], target: str, outputs: int,
                 mean: Sequence[float], scale: Sequence[float], bin_size: float = 0.05, window: float = 3.0,
                 warmup: float = 0.5, dim: int = 256, noise: float = 0.3, dropout: float = 0.3):
        super().__init__()
        self.sessions, self.target, self.bin_size, self.noise = list(sessions), target, bin_size, noise
        self.window, self.warmup = window, warmup
        self.rates = nn.ParameterList(nn.Parameter(torch.tensor(r), requires_grad=False) for r in rates)
        self.read_in = nn.ModuleList(nn.Linear(len(r), dim) for r in rates)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.readout = nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> GRU:
        """Bins as wide as the target's sampling interval, 20 ms at least; windows of about 3 s."""
        mean, scale = scaling(sessions, target)
        bin_size = settings.pop("bin_size", None) or max(sampling_interval(sessions, target), 0.02)
        window = settings.pop("window", None) or round(3.0 / bin_size) * bin_size
        return cls(sessions=[s.id for s in sessions], rates=[(s.rates() * bin_size).tolist() for s in sessions],
                   target=target, outputs=len(mean), mean=mean, scale=scale, bin_size=bin_size, window=window,
                   **settings)

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, read out of the bin that holds each, and states [B, T, D]."""
        states, _ = self.gru(self.dropout(self._read_in(batch)))
        target = batch.targets[self.target]
        window = torch.repeat_interleave(target.offsets.diff())
        bins = (target.times / self.bin_size + 1e-4).long().clamp_(max=states.shape[1] - 1)
        found = self.readout(self.dropout(states[window, bins]))
        return Output(behavior=found * self.scale + self.mean, latents=states)

    def _read_in(self, batch: SpikeBatch) -> Tensor:
        counts = batch.counts(self.bin_size).transpose(1, 2)
        x = counts.new_empty(*counts.shape[:2], self.gru.input_size)
        for which in batch.session.unique().tolist():
            name = batch.sessions[which].id
            if name not in self.sessions:
                raise UnknownName("session", name, self.sessions, where="the sessions that this GRU was built for")
            i, at = self.sessions.index(name), batch.session == which
            rate = self.rates[i]
            z = (counts[at, :, :len(rate)] - rate) / rate.clamp(min=1e-2).sqrt()            # unit variance if Poisson
            x[at] = self.read_in[i](z + self.noise * torch.randn_like(z) if self.training else z)
        return x

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Mean squared error of the standardised behaviour, after the warm-up."""
        target = batch.targets[self.target]
        wrong = ((self(batch).behavior - target.values) / self.scale)[target.times >= self.warmup]
        return {"loss": wrong.square().mean()}
