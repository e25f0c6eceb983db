"""The simple ways to fill in what a mask hides, each fitted on the training windows under masks of the same kind.

    visible counts of the unit ──→ mean around the hidden bin ──→ shrunk to the mean rate by a weight chosen in training
    visible units → √ of running counts → 20 factors (z-scored principal components) → at lags → Poisson regression

Rates are expected spikes a bin; W windows, U units, T bins. What is hidden never enters a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

STEP = 0.05                                                             # s that a factor's counts are summed over
FACTORS, LAGS, PENALTIES = 20, (0, 2), (0.05, 0.15, 0.4)                # lags to each side; penalties of bins of STEP
WEIGHTS = 2.0 ** np.arange(-2, 14, 2)                                   # bins that the mean weighs
REACHES = (0.5, 1.0, 3.0, 10.0)                                         # bins in which a neighbour's weight falls by e


class Seen(NamedTuple):
    """Some units in the windows of a part: counts [W, U, T], what of them is hidden and scored, and of the time before
    each window their spikes `before` [W, U] and its length `bins` [W].
    """

    counts: np.ndarray
    hidden: np.ndarray
    scored: np.ndarray
    before: np.ndarray
    bins: np.ndarray


def running_mean(train: Seen, test: Seen, mean: np.ndarray) -> np.ndarray:
    """The unit's mean over the time before the window and the window's visible bins [W, U, 1]."""
    def known(part):
        visible = ~part.hidden
        return ((part.before + (part.counts * visible).sum(2))[..., None],
                (part.bins[:, None] + visible.sum(2))[..., None])
    return _shrunk([known(train)], [known(test)], train, mean)


def neighbours(train: Seen, test: Seen, mean: np.ndarray) -> np.ndarray | None:
    """The unit's visible bins of the window, weighted by exp(−distance / reach) [W, U, T]; None where none is left."""
    if test.hidden.all():
        return None
    bins = np.arange(test.hidden.shape[2])
    kernels = [np.exp(-np.abs(bins[:, None] - bins) / reach).astype(np.float32) for reach in REACHES]

    def known(part):
        visible = (~part.hidden).astype(np.float32)
        return [(part.counts * visible @ kernel, visible @ kernel) for kernel in kernels]
    return _shrunk(known(train), known(test), train, mean)


def _shrunk(train: list, test: list, part: Seen, mean: np.ndarray) -> np.ndarray:
    """(spikes + weight × mean) / (bins + weight) of the kind of sums and the weight that fit the training part best."""
    y, scored = part.counts * part.scored, part.scored
    rate = lambda known, weight: (known[0] + weight * mean) / (known[1] + weight)
    fit = {(i, weight): _likelihood(rate(known, weight), y, scored) for i, known in enumerate(train)
           for weight in WEIGHTS}
    best, weight = max(fit, key=fit.get)
    return rate(test[best], weight)


def _likelihood(rates: np.ndarray, y: np.ndarray, scored: np.ndarray) -> float:
    return float((y * np.log(rates) - rates * scored).sum())


def glm(seen: Mapping[str, np.ndarray], learnt: np.ndarray, mean: np.ndarray, bin_size: float, *,
        psth: bool = False) -> np.ndarray:
    """Rates [W, U, T] of hidden units in the test part, by a Poisson regression each on factors of the visible ones.

    seen: "train" and "test" counts [W, n, T] of the visible units; learnt [V, U, T]: those of the hidden ones in
    training. psth: windows start with trials, and the time in them is a feature too. Lags and penalty are those that do
    best on every fifth window after a fit to the others. At the ends of a window its outermost bins stand in.
    """
    width = max(round(STEP / bin_size), 1)
    summed = {name: np.sqrt(_running(counts, width)) for name, counts in seen.items()}
    flat = summed["train"].transpose(0, 2, 1).reshape(-1, summed["train"].shape[1])
    centre, scale = flat.mean(0), np.maximum(flat.std(0), 0.1)          # a nearly silent unit is no factor of its own
    flat = (flat - centre) / scale
    axes = np.linalg.eigh(flat.T @ flat)[1][:, :-FACTORS - 1:-1]
    factors = {name: ((each.transpose(0, 2, 1) - centre) / scale) @ axes for name, each in summed.items()}
    y, held = learnt.transpose(0, 2, 1).astype(np.float32), np.arange(len(learnt)) % 5 == 0
    tried = {}
    for lags in LAGS:
        x = _features(factors["train"], lags, width, psth)
        for penalty, weights in _regressions(x[~held], y[~held], mean, bin_size).items():
            tried[lags, penalty] = _likelihood(_rates(x[held], *weights), y[held], np.ones(1))
    lags, penalty = max(tried, key=tried.get)
    weights = _regressions(_features(factors["train"], lags, width, psth), y, mean, bin_size, (penalty,))[penalty]
    return _rates(_features(factors["test"], lags, width, psth), *weights).transpose(0, 2, 1)


def _running(counts: np.ndarray, width: int) -> np.ndarray:
    """Sums over `width` bins around each [W, n, T]; at the ends of what there is, scaled up."""
    at, total = np.arange(counts.shape[2]), np.pad(counts.cumsum(2), ((0, 0), (0, 0), (1, 0)))
    first, last = np.maximum(at - (width - 1) // 2, 0), np.minimum(at + width // 2 + 1, len(at))
    return (total[..., last] - total[..., first]) * (width / (last - first)).astype(np.float32)


def _features(factors: np.ndarray, lags: int, width: int, psth: bool) -> np.ndarray:
    """[W, T, F]: the factors at `lags` steps to both sides, their mean in the window, the step of the window."""
    at = np.arange(factors.shape[1])
    parts = [factors[:, np.clip(at + lag * width, 0, at[-1])] for lag in range(-lags, lags + 1)]
    parts.append(np.broadcast_to(factors.mean(1, keepdims=True), factors.shape))
    if psth:
        step = np.eye(at[-1] // width + 1)[at // width]
        step = (step - step.mean(0)) * len(step[0]) ** 0.5             # of unit variance, as penalised as a factor
        parts.append(np.broadcast_to(step, (len(factors), *step.shape)))
    return np.concatenate(parts, axis=2, dtype=np.float32)


def _rates(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(x @ weights + bias, 5))


def _regressions(x: np.ndarray, y: np.ndarray, mean: np.ndarray, bin_size: float, penalties=PENALTIES,
                 steps: int = 12) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Weights [F, U] and biases [U] by penalty, of Poisson regressions of y [W, T, U] on x [W, T, F], a unit each.

    Each step is Newton's with the curvature that a constant rate would have: diagonal in the eigenbasis of x, and so
    the same few products for all units. A unit whose loss would rise stays where it is, and its next step is shorter.
    """
    x, y = x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2])
    centre = x.mean(0)
    spread, axes = np.linalg.eigh((x - centre).T @ (x - centre) / len(x))
    z, level, found = (x - centre) @ axes, mean[:, 0].astype(np.float32), {}
    zy, ybar = z.T @ y / len(z), y.mean(0)
    for penalty in penalties:
        alpha = penalty * bin_size / STEP
        def loss(w, b, alpha=alpha):
            rates = _rates(z, w, b)
            # The mean of y · (z w + b) by the two sums that do not change.
            return rates.mean(0) - (zy * w).sum(0) - ybar * b + alpha / 2 * (w ** 2).sum(0), rates
        w, b, step = np.zeros((z.shape[1], y.shape[1]), np.float32), np.log(level), np.ones_like(level)
        now, rates = loss(w, b)
        curvature = level * spread[:, None].clip(0) + alpha
        for _ in range(steps):
            w_new = w - step * (z.T @ rates / len(z) - zy + alpha * w) / curvature
            b_new = b - step * (rates.mean(0) - ybar) / level
            new, rates_new = loss(w_new, b_new)
            better = new <= now
            w, b, now = np.where(better, w_new, w), np.where(better, b_new, b), np.where(better, new, now)
            rates, step = np.where(better, rates_new, rates), step * np.where(better, 1.3, 0.4).astype(np.float32)
        found[penalty] = axes @ w, b - centre @ axes @ w
    return found
