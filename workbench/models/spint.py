"""SPINT, a decoder of a set of units: who a unit is, is read off its own unlabelled activity, never looked up.

Le et al. 2025, "SPINT: Spatial Permutation-Invariant Neural Transformer for Consistent Intracortical Motor Decoding",
arXiv 2507.08402. No public code was at hand: written from the paper's description.

    reference windows of a unit [M, R] → MLP → mean over windows → MLP → identity [D]
    its counts of the last L bins → linear [D], + identity → MLP → one token a unit [N, D], in no order
    one query an output → cross-attention to the tokens → MLP → linear → behavior at the last bin

Training removes units at random, at a rate drawn anew each step. A new session needs `identify`: a forward pass over
some of its activity, without labels or gradients.

Departs from the paper. Identity is added behind the first linear map, not to the window itself, whose few bins would
bound it; a token is what the unit's activity makes of it, less what it is without; both learn sooner. Every bin with a
whole history teaches, not the window's last alone; at most half of the units are removed (theirs: up to all). A missing
unit is masked out of the attention (theirs is padded with −1). Reference windows are cut evenly from the recording
(theirs are trials, stretched to one length). `standardise` gives counts in standard deviations of the unit's reference,
and norms the identity: without it nothing is learnt from one day in the same time. Reference "windows" are counts, as
published: told apart soonest, by heart where sessions are few. "statistics", how a unit fires and goes with the others,
are slower to learn and say more of units never met.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.losses import window_mse
from workbench.models.base import Output, SpikeModel, default_bins, sample_bins, scaling
from workbench.nn.transformer import Attention
from workbench.session import Session
from workbench.windows import sliding

LAGS = 8                                                                # bins, of the statistics


class SPINT(SpikeModel):
    """sessions: their ids; units: how many each has. bin_size, history and window in seconds: a prediction sees
    `history`, and a window holds more of them the longer it is. channel_dropout: the largest share of units that a
    training step leaves out.
    """

    name = "spint"
    decodes = True

    def __init__(self, *, sessions: Sequence[str], units: Sequence[int], target: str, outputs: int,
                 mean: Sequence[float], scale: Sequence[float], bin_size: float = 0.02, history: float = 1.0,
                 window: float = 2.0, reference: str = "windows", reference_windows: int = 8,
                 reference_bins: int = 200, standardise: bool = True, dim: int = 128, heads: int = 8,
                 dropout: float = 0.1, channel_dropout: float = 0.5):
        super().__init__()
        if window < history:
            raise WorkbenchError(f"windows of {window:g} s hold no history of {history:g} s; give a longer window= or "
                                 "a shorter history=")
        if reference not in SUMMARIES:
            raise UnknownName("reference", reference, SUMMARIES, where="the references of SPINT")
        self.sessions, self.target, self.bin_size, self.window = list(sessions), target, bin_size, window
        self.lags = round(history / bin_size)
        self.warmup = (self.lags - 1) * bin_size
        self.summary, self.reference_windows, self.reference_bins = reference, reference_windows, reference_bins
        self.standardise, self.channel_dropout = standardise, channel_dropout
        wide = SUMMARIES[reference](torch.zeros(1, 1, reference_bins)).shape[2]
        self.reference = nn.ParameterList(_kept(torch.zeros(n, reference_windows, wide)) for n in units)
        self.level = nn.ParameterList(_kept(torch.tensor([[0.0, 1.0]]).repeat(n, 1)) for n in units)   # mean, deviation

        norm = nn.LayerNorm if standardise else lambda *_: nn.Identity()
        self.per_window = nn.Sequential(norm(wide), nn.Linear(wide, dim), nn.GELU(), nn.Linear(dim, dim))
        self.per_unit = nn.Sequential(norm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), norm(dim))
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
        model = cls(sessions=[s.id for s in sessions], units=[len(s.units) for s in sessions], target=target,
                    outputs=len(mean), mean=mean, scale=scale, bin_size=bin_size, history=history,
                    window=settings.pop("window", None) or 2 * history, **settings)
        for session in sessions:
            model.identify(session, session.intervals)
        return model

    @torch.no_grad()
    def identify(self, session: Session, intervals: np.ndarray) -> None:
        """Learn who the units of a session are from their activity in `intervals` [n, 2], without labels or gradients.

        A session that the model knows is seen anew. BadRecording where the intervals are too short.
        """
        span, longest = self.reference_bins * self.bin_size, float(np.diff(intervals).max(initial=0))
        if longest < span - 1e-9:
            raise BadRecording(f"{session.id}: units are known by {span:g} s on end ({self.reference_bins} bins), and "
                               f"the longest interval lasts {longest:g} s; give a smaller reference_bins=")
        starts = sliding(intervals, span, span / 4)
        starts = starts[np.linspace(0, len(starts) - 1, self.reference_windows).round().astype(int)]
        batch = Reader([session]).read(np.zeros(len(starts), int), starts, span)
        counts = batch.counts(self.bin_size).transpose(0, 1)                                        # [N, M, T]
        mean, deviation = counts.mean((1, 2)), counts.std((1, 2)).clamp(min=0.05)
        if self.summary == "windows" and self.standardise:
            counts = (counts - mean[:, None, None]) / deviation[:, None, None]
        found = SUMMARIES[self.summary](counts), torch.stack([mean, deviation], dim=1)
        if session.id not in self.sessions:
            self.sessions.append(session.id)
            self.reference.append(_kept(torch.empty(0)))
            self.level.append(_kept(torch.empty(0)))
        at = self.sessions.index(session.id)
        self.reference[at], self.level[at] = (_kept(f.to(self.mean.device)) for f in found)
        self._hub_mixin_config |= {"sessions": self.sessions, "units": [len(r) for r in self.reference]}

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, each from the `history` that ends with its bin."""
        window, bins = sample_bins(batch.targets[self.target], self.bin_size, batch.bins(self.bin_size))
        return Output(behavior=self.decode(batch)[window, bins] * self.scale + self.mean)

    def decode(self, batch: SpikeBatch, first: int = 0) -> Tensor:
        """Standardised behaviour of every bin from the `first` on [B, T − first, outputs].

        Before the window every unit counts as firing at its mean.
        """
        identity, level = self._known(batch)
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

    def _known(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """Identity [U, L] and level [U, 2] of every entry of `batch.window_units`; worked out once a session."""
        present, session = batch.session.unique(return_inverse=True)
        rows = [self._row(*batch.sessions[i]) for i in present.tolist()]
        base = torch.tensor([0, *(len(self.level[i]) for i in rows)], device=batch.device).cumsum(0)[session]
        units = torch.repeat_interleave(base, batch.unit_offsets.diff()) + batch.window_units
        reference, level = (torch.cat([part[i] for i in rows]) for part in (self.reference, self.level))
        return self.per_unit(self.per_window(reference).mean(1))[units], level[units]

    def _row(self, session: str, units: tuple[str, ...]) -> int:
        if session not in self.sessions:
            raise UnknownName("session", session, self.sessions, where="the sessions that this model knows",
                              hint="model.identify(session, intervals) makes it known, without labels")
        row = self.sessions.index(session)
        if len(units) != len(self.level[row]):
            raise BadRecording(f"{session}: {len(units)} units, and the model knows {len(self.level[row])}; let "
                               "model.identify(session, intervals) see this session again")
        return row


def statistics(counts: Tensor) -> Tensor:
    """How units fire and go with each other: [N, M, T] counts of M windows → [N, M, 3 × LAGS + 3].

    Log rate, log Fano factor, correlation with itself 1 to LAGS bins ago, and with the sum of all other units −LAGS to
    LAGS bins away. Correlations are times √T: of noise, each has a standard deviation of 1.
    """
    bins = counts.shape[2]
    mean, variance = counts.mean(2), counts.var(2, unbiased=False)
    z = (counts - mean[..., None]) / variance.sqrt().clamp(min=1e-3)[..., None]
    others = z.sum(0) - z
    others = others / others.square().mean(2, keepdim=True).sqrt().clamp(min=1e-3)
    shifted = lambda x, back, ahead: pad(x, (back, ahead)).unfold(2, bins, 1)                       # [N, M, lags, T]
    own = torch.einsum("nmt,nmlt->nml", z, shifted(z, LAGS, 0)[:, :, :LAGS])
    cross = torch.einsum("nmt,nmlt->nml", z, shifted(others, LAGS, LAGS))
    rate = torch.stack([(mean + 0.01).log(), (variance / mean.clamp(min=1e-3) + 0.01).log()], dim=2)
    return torch.cat([rate, torch.cat([own, cross], dim=2) / bins ** 0.5], dim=2)


SUMMARIES = {"statistics": statistics, "windows": lambda counts: counts}


def _kept(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)        # saved with the weights, never learned
