"""Ridge regression from lagged spike counts: the Wiener filter that every decoder has to beat.

    counts of the last `lags` bins of every unit [N × lags] → linear → behavior [Q, outputs]

Closed form, one map a session. The penalty is the one that does best on the validation part; the map is then fitted
to both parts. A sample sees the bin it lies in and the bins before it; fitting takes the mean of a bin's samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import linalg
from torch import Tensor, nn

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, WorkbenchError
from workbench.metrics import r2
from workbench.models.base import Output, SpikeModel, columns, default_bins, known_session, sample_bins
from workbench.session import Session
from workbench.windows import aligned, sliding


class Ridge(SpikeModel):
    """sessions: their ids; units: the ids of each one's, by which spikes find their weights; bin_size in seconds."""

    name = "ridge"
    decodes = True
    PENALTIES = tuple(10.0 ** np.arange(-1, 6))

    def __init__(self, *, sessions: Sequence[str], units: Sequence[Sequence[str]], target: str, outputs: int,
                 bin_size: float = 0.05, lags: int = 10):
        super().__init__()
        self.sessions, self.target, self.bin_size, self.lags = list(sessions), target, bin_size, lags
        self.units = [{unit: row for row, unit in enumerate(ids)} for ids in units]
        self.window, self.warmup = 2 * lags * bin_size, (lags - 1) * bin_size
        self.maps = nn.ParameterList(nn.Parameter(torch.zeros(len(u) * lags + 1, outputs)) for u in units)  # last: bias

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> Ridge:
        """Bins as wide as the target's sampling interval, 20 ms at least; lags cover the last half second."""
        bin_size = settings.pop("bin_size", None) or default_bins(sessions, target)
        lags = settings.pop("lags", None) or max(round(0.5 / bin_size), 1)
        return cls(sessions=[s.id for s in sessions], units=[list(s.units["id"]) for s in sessions], target=target,
                   outputs=columns(sessions, target), bin_size=bin_size, lags=lags, **settings)

    def fit(self, sessions: Sequence[Session], train: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> dict:
        """Fit every session's map to its intervals [n, 2]; returns the penalty chosen for each session."""
        chosen = {}
        for session, *parts in zip(sessions, train, valid, strict=True):
            (x, y), (x_valid, y_valid) = (self._samples(session, part) for part in parts)
            maps = solve(x, y, self.PENALTIES)
            scores = [np.nan_to_num(np.nanmean(r2(y_valid, x_valid @ w[:-1] + w[-1])), nan=-np.inf) for w in maps]
            chosen[session.id] = float(self.PENALTIES[int(np.argmax(scores))])
            both = solve(np.concatenate([x, x_valid]), np.concatenate([y, y_valid]), [chosen[session.id]])[0]
            with torch.no_grad():
                self.maps[known_session(session.id, self.sessions)].copy_(torch.from_numpy(both))
        return chosen

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs]; the first `warmup` seconds of a window see silence before it, as of units that are
        not there.
        """
        target, lagged = batch.targets[self.target], self._lagged(batch)
        window, bins = sample_bins(target, self.bin_size, lagged.shape[2])
        behavior = target.times.new_empty(len(target.times), self.maps[0].shape[1])
        for which in batch.session.unique().tolist():
            row = known_session(batch.sessions[which].id, self.sessions)
            weight, at = self.maps[row], batch.session[window] == which
            behavior[at] = lagged[window[at], :len(self.units[row]), bins[at]].flatten(1) @ weight[:-1] + weight[-1]
        return Output(behavior=behavior)

    def _lagged(self, batch: SpikeBatch) -> Tensor:
        """The counts of the last `lags` bins at every bin [B, N, T, lags] of the units known, in the map's order."""
        spikes, bins, column = batch.spikes(), batch.bins(self.bin_size), self._columns(batch)
        number = max(len(self._known(batch, which)) for which in batch.session.unique().tolist())
        cell = (spikes.windows * number + column[spikes.units]) * bins + batch.spike_bins(self.bin_size)
        counts = torch.bincount(cell[column[spikes.units] >= 0], minlength=len(batch) * number * bins)
        counts = counts.view(len(batch), number, bins).float()
        return nn.functional.pad(counts, (self.lags - 1, 0)).unfold(2, self.lags, 1)

    def _columns(self, batch: SpikeBatch) -> Tensor:
        """Which of the units that are known of its session each unit of the batch is [U], −1 for none of them."""
        window, found = torch.repeat_interleave(batch.unit_offsets.diff()), torch.full_like(batch.window_units, -1)
        for which in batch.session.unique().tolist():
            session, known = batch.sessions[which], self._known(batch, which)
            rows = torch.tensor([known.get(unit, -1) for unit in session.units], dtype=torch.long, device=found.device)
            if known and not (rows >= 0).any():
                raise WorkbenchError(f"none of the {len(known)} units that ridge was fitted to is in {session.id!r}; "
                                     "fit it to this session")
            mine = batch.session[window] == which
            found[mine] = rows[batch.window_units[mine]]
        return found

    def _known(self, batch: SpikeBatch, which: int) -> dict[str, int]:
        return self.units[known_session(batch.sessions[which].id, self.sessions)]

    def _samples(self, session: Session, intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lagged counts [M, N × lags] and mean behaviour [M, outputs] of every bin with samples, after the warm-up."""
        reader, step = Reader([session], (self.target,)), self.window - self.warmup
        intervals = aligned(intervals, reader.targets[self.target][0][0], session.get_series(self.target).interval,
                            self.window)
        starts = sliding(intervals, self.window, step)
        x, y = [], []
        for at in np.array_split(starts, -(-len(starts) // 32)):
            batch = reader.read(np.zeros(len(at), int), at, self.window)
            target, lagged = batch.targets[self.target], self._lagged(batch)
            window, bins = sample_bins(target, self.bin_size, lagged.shape[2])
            cell = window * lagged.shape[2] + bins
            number = torch.bincount(cell, minlength=lagged.shape[0] * lagged.shape[2])
            total = torch.zeros(len(number), target.values.shape[1]).index_add(0, cell, target.values)
            number.view(-1, lagged.shape[2])[:, :self.lags - 1] = 0
            there = number.nonzero()[:, 0]
            x.append(lagged.permute(0, 2, 1, 3).flatten(0, 1)[there].flatten(1).numpy())
            y.append((total[there] / number[there, None]).numpy())
        x, y = np.concatenate(x), np.concatenate(y)
        if not x.size:
            raise BadRecording(f"{session.id}: nothing to fit ridge to: {x.shape[1]} counts a bin, {len(x)} bins with "
                               f"a sample of {self.target!r}; choose a session with units and behaviour")
        return x, y


def solve(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    """Ridge maps [features + 1, outputs], last row the bias, one a penalty; by features or samples, the fewer.

    One product serves every penalty: it is most of the work.
    """
    centre, level = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    x, y = x - centre, y - level
    wide = x.shape[1] > x.shape[0]
    product, right = (x @ x.T, y) if wide else (x.T @ x, x.T @ y)
    maps = []
    for penalty in penalties:
        solved = linalg.solve(product + penalty * np.eye(len(product)), right, assume_a="pos")
        weight = x.T @ solved if wide else solved
        maps.append(np.concatenate([weight, level[None] - centre[None] @ weight]).astype(np.float32))
    return maps
