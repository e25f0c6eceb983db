"""Poisson regressions of what units do after an origin on what they did in the last 0.5 s before it.

    past [W, N, P] → spikes in 10 lags of about 50 ms [W, N × 10] ─┬→ a regression a unit and horizon: direct
                                                                   └→ the one for the first bin, run on: free

As in Truccolo et al. 2005 (J Neurophysiol 93, 1074), with a ridge penalty in place of a choice of order. One penalty
for all units of a horizon, chosen on validation; the grid grows until its best lies inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench.analysis.masked_fills import _regressions
from workbench.errors import BadRecording
from workbench.metrics import SILENT
from workbench.session import Session

if TYPE_CHECKING:
    from workbench.analysis.forecast_baselines import Learning, Origins

LAGS, LAG = 10, 0.05                                # that many lags, of about so many s each
PENALTIES, FACTOR = (1.0, 10 ** 0.5, 10.0), 10 ** 0.5         # of bins of 50 ms; a grid grows by that factor
LEAST, MOST = 1e-6, 1e5                             # penalties beyond which no grid grows
ROWS = 20_000                                       # origins at most that a regression learns from, spread evenly


@dataclass(frozen=True)
class DirectGLM:
    """weights [A, F, N] and bias [A, N] of the log rate at each of the horizons `at`, on `features` of the past; told:
    the penalties that were chosen, and their grid.
    """

    weights: np.ndarray
    bias: np.ndarray
    cap: np.ndarray
    at: np.ndarray
    told: Mapping = field(default_factory=dict)

    def __call__(self, origins: Origins) -> np.ndarray:
        rates = np.full((*origins.past.shape[:2], origins.bins), np.nan)
        x = features(origins.past, origins.bin_size)
        for row, bin_ in enumerate(self.at):
            rates[:, :, bin_ - 1] = self.rates(x, row)
        return rates

    def rates(self, x: np.ndarray, row: int = 0) -> np.ndarray:
        return np.minimum(np.exp(np.minimum(x @ self.weights[row] + self.bias[row], 20)), self.cap)


@dataclass(frozen=True)
class FreeGLM:
    """The regression for the first bin run on: each bin's rates are the next one's newest counts."""

    direct: DirectGLM

    @property
    def told(self) -> dict:
        return {name: each[:1] if name == "penalties" else each for name, each in self.direct.told.items()}

    def __call__(self, origins: Origins) -> np.ndarray:
        past, rates = origins.past.astype(np.float32), []
        for _ in range(origins.bins):
            rates.append(self.direct.rates(features(past, origins.bin_size)))
            past = np.concatenate([past[:, :, 1:], rates[-1][:, :, None].astype(np.float32)], axis=2)
        return np.stack(rates, axis=2)


def history(bin_size: float) -> int:
    """Bins that a regression looks back."""
    return LAGS * max(round(LAG / bin_size), 1)


def features(past: np.ndarray, bin_size: float) -> np.ndarray:
    """Spikes in the last `LAGS` stretches of the past [..., N, P] before an origin: [..., N × LAGS]."""
    seen = past[..., past.shape[-1] - history(bin_size):]
    lags = seen.reshape(*seen.shape[:-1], LAGS, -1).sum(-1, dtype=np.float32)
    return lags.reshape(*lags.shape[:-2], -1)


def direct(session: Session, learning: Learning, own: bool = False) -> DirectGLM:
    """One regression a unit and horizon; the penalty of a horizon is the one that serves all units best on `valid`."""
    (x, y), (seen, met) = (_examples(session, part, learning) for part in (learning.train, learning.valid))
    units, level, silent = len(learning.mean), learning.mean, ~y.any((0, 1))
    found, scores, wanted = {}, {}, list(PENALTIES)
    while wanted:
        for penalty, (weights, bias) in (_own if own else _all)(x, y, level, learning.bin_size, wanted).items():
            weights[:, :, silent], bias[:, silent] = 0, np.log(level[silent])
            found[penalty] = DirectGLM(weights, bias, learning.cap, learning.at)
            rates = np.stack([found[penalty].rates(seen, row) for row in range(len(learning.at))], axis=1)
            scores[penalty] = (met * np.log(np.maximum(rates, SILENT)) - rates).sum((0, 2))
        grid = sorted(scores)
        best = np.argmax([scores[penalty] for penalty in grid], axis=0)
        wanted = [grid[0] / FACTOR] * bool((best == 0).any() and grid[0] > LEAST)
        wanted += [grid[-1] * FACTOR] * bool((best == len(grid) - 1).any() and grid[-1] < MOST)
    rows = [(found[grid[i]], row) for row, i in enumerate(best)]
    return DirectGLM(np.stack([each.weights[row] for each, row in rows]),
                     np.stack([each.bias[row] for each, row in rows]).reshape(-1, units), learning.cap, learning.at,
                     {"penalties": [grid[i] for i in best], "grid": grid})


def _examples(session: Session, pieces: list[np.ndarray], learning: Learning) -> tuple[np.ndarray, np.ndarray]:
    """Features [M, F] of origins that have room for history and horizon, and counts [M, A, N] at the horizons."""
    back, ahead = history(learning.bin_size), learning.at.max()
    room = [max(len(piece) - back - ahead + 1, 0) for piece in pieces]
    if not sum(room):
        raise BadRecording(f"{session.id}: no interval to learn from lasts {(back + ahead) * learning.bin_size:g} s, a "
                           "regression's history and the longest horizon; give a split of longer parts, or shorter "
                           "horizons")
    step, x, y = -(-sum(room) // ROWS), [], []
    for piece, number in zip(pieces, room, strict=True):
        rows = np.arange(0, number, step)
        if number:
            x.append(features(np.lib.stride_tricks.sliding_window_view(piece, back, axis=0)[rows], learning.bin_size))
            y.append(piece[rows[:, None] + back + learning.at - 1].astype(np.float32))
    return np.concatenate(x), np.concatenate(y)


def _all(x: np.ndarray, y: np.ndarray, level: np.ndarray, bin_size: float, penalties: list[float]) -> dict:
    """By penalty weights [A, F, N] and biases [A, N], of counts y [M, A, N] on x [M, F]: all horizons in one go."""
    shape, mean = y.shape[1:], np.tile(level, y.shape[1])[:, None]
    found = _regressions(x[None], y.reshape(1, len(y), -1), mean, bin_size, penalties)
    return {penalty: (w.reshape(-1, *shape).transpose(1, 0, 2).copy(), b.reshape(shape).copy())
            for penalty, (w, b) in found.items()}


def _own(x: np.ndarray, y: np.ndarray, level: np.ndarray, bin_size: float, penalties: list[float]) -> dict:
    """The same, with weights of 0 on all units but each one's own."""
    _, ahead, units = y.shape
    found = {penalty: (np.zeros((ahead, units, LAGS, units), np.float32), np.zeros((ahead, units), np.float32))
             for penalty in penalties}
    for n in range(units):
        each = _all(x[:, n * LAGS:(n + 1) * LAGS], y[:, :, n:n + 1], level[n:n + 1], bin_size, penalties)
        for penalty, (w, b) in each.items():
            found[penalty][0][:, n, :, n], found[penalty][1][:, n] = w[:, :, 0], b[:, 0]
    return {penalty: (w.reshape(ahead, -1, units), b) for penalty, (w, b) in found.items()}
