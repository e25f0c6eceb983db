"""A multilayer perceptron on lagged counts: the plain nonlinear baseline, the Wiener filter with a hidden layer or two.

    counts [B, N, T], standardised, noised in training → the last `lags` bins of every unit [N × lags]
        → linear of the session, GELU → (depth − 1) × (linear, GELU) → linear → behavior [Q, outputs]

Causal: a sample sees the bin it lies in and the bins before it. As the feed-forward decoders of Glaser et al. 2020,
"Machine learning for neural decoding", eNeuro 7(4), arXiv 1708.00909.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.losses import window_mse
from workbench.models.base import Output, SpikeModel, default_bins, sample_bins, scaling, unit_names
from workbench.nn.counts import StandardCounts
from workbench.nn.stitcher import ReadIn
from workbench.session import Session


class MLP(SpikeModel):
    """units and sessions: names ('<session id>/<unit id>'); bin_size in seconds."""

    name = "mlp"
    decodes = True

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], target: str, outputs: int,
                 mean: Sequence[float], scale: Sequence[float], bin_size: float = 0.05, lags: int = 10, dim: int = 256,
                 depth: int = 2, noise: float = 0.3, dropout: float = 0.5):
        super().__init__()
        self.target, self.bin_size, self.lags = target, bin_size, lags
        self.window, self.warmup = 4 * lags * bin_size, (lags - 1) * bin_size
        self.standard = StandardCounts(units, noise)
        self.read_in = ReadIn(units, sessions, dim, lags)
        layer = lambda: nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.hidden = nn.Sequential(*(layer() for _ in range(depth - 1)), nn.GELU(), nn.Dropout(dropout))
        self.readout = nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> MLP:
        """Bins as wide as the target's sampling interval, 20 ms at least; lags cover the last half second."""
        mean, scale = scaling(sessions, target)
        bin_size = settings.pop("bin_size", None) or default_bins(sessions, target)
        lags = settings.pop("lags", None) or max(round(0.5 / bin_size), 1)
        model = cls(units=unit_names(sessions), sessions=[s.id for s in sessions], target=target, outputs=len(mean),
                    mean=mean, scale=scale, bin_size=bin_size, lags=lags, **settings)
        model.standard.measure(sessions, bin_size)
        return model

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times; the first `warmup` seconds see mean rates before the window."""
        counts = self.standard(batch.counts(self.bin_size), batch)
        states = self.hidden(self.read_in(counts, batch))
        window, bins = sample_bins(batch.targets[self.target], self.bin_size, states.shape[1])
        return Output(behavior=self.readout(states[window, bins]) * self.scale + self.mean, latents=states)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Mean squared error of the standardised behaviour, after the warm-up."""
        return {"loss": window_mse(self(batch).behavior, batch.targets[self.target], self.scale, since=self.warmup)}
