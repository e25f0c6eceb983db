"""Ridge regression from lagged spike counts: the Wiener filter that every decoder has to beat.

    counts of the last `lags` bins of every unit [lags × N], standardised → linear → behavior [Q, outputs]

Closed form, one map a session. The penalty is the one that does best on the validation part; the map is then fitted
to both parts. A sample sees the bin it lies in and the bins before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn import linear_model
from torch import Tensor, nn

from workbench.batch import Reader, SpikeBatch
from workbench.errors import UnknownName
from workbench.metrics import r2
from workbench.models.base import Output, SpikeModel, sampling_interval
from workbench.session import Session
from workbench.windows import aligned, sliding


class Ridge(SpikeModel):
    """sessions: their ids; units: how many each has; bin_size in seconds."""

    name = "ridge"
    decodes = True
    PENALTIES = tuple(10.0 ** np.arange(-1, 6))

    def __init__(self, *, sessions: Sequence[str], units: Sequence[int], target: str, outputs: int,
                 bin_size: float = 0.05, lags: int = 10):
        super().__init__()
        self.sessions, self.target, self.bin_size, self.lags = list(sessions), target, bin_size, lags
        self.window, self.warmup = 2 * lags * bin_size, (lags - 1) * bin_size
        weight = lambda n: nn.Parameter(torch.zeros(n * lags + 1, outputs), requires_grad=False)
        self.maps = nn.ParameterList(weight(n) for n in units)          # last row: the bias

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> Ridge:
        """Bins as wide as the target's sampling interval, 20 ms at least; lags cover the last half second."""
        bin_size = settings.pop("bin_size", None) or max(sampling_interval(sessions, target), 0.02)
        lags = settings.pop("lags", None) or max(round(0.5 / bin_size), 1)
        return cls(sessions=[s.id for s in sessions], units=[len(s.units) for s in sessions], target=target,
                   outputs=sessions[0].get_series(target).values.shape[1], bin_size=bin_size, lags=lags, **settings)

    def fit(self, sessions: Sequence[Session], train: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> dict:
        """Fit every session's map to its intervals [n, 2]; returns the penalty chosen for each session."""
        chosen = {}
        for session, *parts in zip(sessions, train, valid, strict=True):
            (x, y), (x_valid, y_valid) = (self._samples(session, part) for part in parts)
            scores = [np.nanmean(r2(y_valid, _ridge(x, y, p).predict(x_valid))) for p in self.PENALTIES]
            chosen[session.id] = float(self.PENALTIES[int(np.argmax(scores))])
            both = _ridge(np.concatenate([x, x_valid]), np.concatenate([y, y_valid]), chosen[session.id])
            weight = np.concatenate([both.coef_.T, both.intercept_[None]])
            with torch.no_grad():
                self.maps[self.sessions.index(session.id)].copy_(torch.from_numpy(weight))
        return chosen

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs]; the first `warmup` seconds of a window see silence before it."""
        target = batch.targets[self.target]
        behavior = target.times.new_empty(len(target.times), self.maps[0].shape[1])
        x, window = self._features(batch)
        for which in batch.session.unique().tolist():
            name = batch.sessions[which].id
            if name not in self.sessions:
                raise UnknownName("session", name, self.sessions, where="the sessions that this ridge was fitted to")
            weight, at = self.maps[self.sessions.index(name)], batch.session[window] == which
            n = (len(weight) - 1) // self.lags
            behavior[at] = x[at, :n].flatten(1) @ weight[:-1] + weight[-1]
        return Output(behavior=behavior)

    def _features(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """Lagged counts [Q, N, lags] at every sample of the target, and its window [Q]."""
        target, counts = batch.targets[self.target], batch.counts(self.bin_size)
        lagged = nn.functional.pad(counts, (self.lags - 1, 0)).unfold(2, self.lags, 1)      # [B, N, T, lags]
        window = torch.repeat_interleave(target.offsets.diff())
        bins = (target.times / self.bin_size + 1e-4).long().clamp_(max=counts.shape[2] - 1)
        return lagged[window, :, bins], window

    def _samples(self, session: Session, intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reader, step = Reader([session], (self.target,)), self.window - self.warmup
        intervals = aligned(intervals, reader.targets[self.target][0][0], session.get_series(self.target).interval)
        x, y = [], []
        for start in sliding(intervals, self.window, step):
            batch = reader.read(np.zeros(1, int), np.array([start]), self.window)
            seen = batch.targets[self.target].times >= self.warmup - 1e-6
            x.append(self._features(batch)[0][seen].flatten(1).numpy())
            y.append(batch.targets[self.target].values[seen].numpy())
        return np.concatenate(x), np.concatenate(y)


def _ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> linear_model.Ridge:
    return linear_model.Ridge(alpha=penalty).fit(x, y)
