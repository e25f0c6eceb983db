"""SPINT, a decoder of a set of units: who a unit is, is read off its own unlabelled activity, never looked up.

Le et al. 2025, "SPINT: Spatial Permutation-Invariant Neural Transformer for Consistent Intracortical Motor Decoding",
arXiv 2507.08402. No public code was at hand: written from the paper's description.

    reference windows of a unit → identity [D]                                                      (nn/identity.py)
    its counts of the last L bins → linear [D], + identity → MLP → one token a unit [N, D], in no order
    one query an output → cross-attention to the tokens → MLP → linear → behavior at the last bin

Training removes units at random, at a rate drawn anew each step. A new session needs `identify`: a forward pass over
some of its activity, without labels or gradients.

Departs from the paper, beside what nn/identity.py says. Identity is added behind the first linear map, not to the
window itself, whose few bins would bound it; a token is what the unit's activity makes of it, less what it is without;
both learn sooner. Every bin with a whole history teaches, not the window's last alone; at most half of the units are
removed (theirs: up to all). A missing unit is masked out of the attention (theirs is padded with −1). `standardise`
gives activity, as the reference, in standard deviations of the unit's reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.losses import window_mse
from workbench.models.base import Output, SpikeModel, default_bins, sample_bins, scaling, unit_names
from workbench.nn.identity import Identity
from workbench.nn.transformer import Attention
from workbench.session import Session


class SPINT(SpikeModel):
    """units and sessions are names ('<session id>/<unit id>'). bin_size, history and window in seconds: a prediction
    sees `history`, and a window holds more of them the longer it is. channel_dropout: the largest share of units that
    a training step leaves out.
    """

    name = "spint"
    decodes = True
    takes = "neurons"

    def __init__(self, *, sessions: Sequence[str], units: Sequence[str], target: str, outputs: int,
                 mean: Sequence[float], scale: Sequence[float], bin_size: float = 0.02, history: float = 1.0,
                 window: float = 2.0, reference: str = "windows", reference_windows: int = 8,
                 reference_bins: int = 200, reference_drawn: int | None = None, standardise: bool = True,
                 dim: int = 128, heads: int = 8, dropout: float = 0.1, channel_dropout: float = 0.5):
        super().__init__()
        if window < history:
            raise WorkbenchError(f"windows of {window:g} s hold no history of {history:g} s; give a longer window= or "
                                 "a shorter history=")
        self.sessions, self.target, self.bin_size, self.window = list(sessions), target, bin_size, window
        self.lags = round(history / bin_size)
        self.warmup = (self.lags - 1) * bin_size
        self.standardise, self.channel_dropout = standardise, channel_dropout
        self.identity = Identity(units, dim, bin_size=bin_size, reference=reference, standardise=standardise,
                                 reference_windows=reference_windows, reference_bins=reference_bins,
                                 reference_drawn=reference_drawn)
        self.read_in, self.tokens = nn.Linear(self.lags, dim, bias=False), nn.Linear(dim, dim)
        nn.init.normal_(self.tokens.weight, std=2 * dim ** -0.5)        # large tokens and queries, so that attention
        self.queries = nn.Parameter(torch.randn(outputs, dim) * 0.3)    # chooses from the start: it learns sooner
        self.attention = Attention(dim, heads, dropout=dropout)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout),
                                 nn.Linear(dim, dim))
        self.readout = nn.Linear(dim, 1)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> SPINT:
        """Bins as wide as the target's sampling interval, 20 ms at least; windows of about 2 s, 1 s of it history."""
        mean, scale = scaling(sessions, target)
        bin_size = settings.pop("bin_size", None) or default_bins(sessions, target)
        second = max(round(1.0 / bin_size), 1) * bin_size
        history = settings.pop("history", None) or second
        model = cls(sessions=[s.id for s in sessions], units=unit_names(sessions), target=target,
                    outputs=len(mean), mean=mean, scale=scale, bin_size=bin_size, history=history,
                    window=settings.pop("window", None) or 2 * history, **settings)
        for session in sessions:
            model.identify(session, session.intervals)
        return model

    def identify(self, session: Session, intervals: np.ndarray) -> None:
        """Learn who the units of a session are from their activity in `intervals` [n, 2], without labels or gradients.

        A session that the model knows is seen anew. BadRecording where the intervals are too short.
        """
        self.identity.measure(session, intervals)
        self.sessions = list(dict.fromkeys([*self.sessions, session.id]))
        self._hub_mixin_config |= {"sessions": self.sessions, "units": list(self.identity.words)}

    def extend(self, sessions: Sequence[Session]) -> None:
        for session in sessions:
            if session.id not in self.sessions:
                self.identify(session, session.intervals)

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, each from the `history` that ends with its bin."""
        window, bins = sample_bins(batch.targets[self.target], self.bin_size, batch.bins(self.bin_size))
        return Output(behavior=self.decode(batch)[window, bins] * self.scale + self.mean)

    def decode(self, batch: SpikeBatch, first: int = 0) -> Tensor:
        """Standardised behaviour of every bin from the `first` on [B, T − first, outputs].

        Before the window every unit counts as firing at its mean.
        """
        rows = self.identity.unit_rows(batch)
        identity, level = self.identity(rows), self.identity.level(rows)
        activity = batch.neurons(self.bin_size)
        if self.standardise:
            activity = (activity - level[:, :1]) / level[:, 1:]
        activity = pad(activity, (self.lags - 1, 0)).unfold(1, self.lags, 1)[:, first:]             # [U, T, L]
        identity, there = identity[:, None], batch.unit_mask
        tokens = self.tokens(gelu(self.read_in(activity) + identity) - gelu(identity))
        units = tokens.new_zeros(*there.shape, *tokens.shape[1:]).index_put(there.nonzero(as_tuple=True), tokens)
        units = units.transpose(1, 2).flatten(0, 1)                                                 # [B × T, N, D]
        queries = self.queries.expand(len(units), -1, -1)
        seen = there | ~there.any(1, keepdim=True)                      # a window without units sees padding, zeros
        mask = seen.repeat_interleave(tokens.shape[1], dim=0)[:, None, None]
        found = queries + self.attention(queries, units, mask=mask)
        found = found + self.mlp(found)
        return self.readout(found)[..., 0].unflatten(0, (len(there), -1))

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Mean squared error of the standardised behaviour, where all of the history is there."""
        if self.training and self.channel_dropout:
            batch = self._fewer_units(batch)
        target, first = batch.targets[self.target], self.lags - 1
        window, bins = sample_bins(target, self.bin_size, batch.bins(self.bin_size))
        found = self.decode(batch, first)[window, (bins - first).clamp(min=0)]
        return {"loss": window_mse(found * self.scale + self.mean, target, self.scale, since=self.warmup)}

    def _fewer_units(self, batch: SpikeBatch) -> SpikeBatch:
        """The batch without a random share of its units, one share a step; at least one stays in every window."""
        share = self.channel_dropout * torch.rand(1, device=batch.device)
        lot = torch.rand(len(batch.window_units), device=batch.device)
        window = torch.repeat_interleave(batch.unit_offsets.diff())
        highest = lot.new_zeros(len(batch)).scatter_reduce(0, window, lot, "amax")
        return batch.keep_units(lot >= torch.minimum(share, highest[window]))
