"""Where units start: near those that they fire together with, which random vectors take thousands of steps to find."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.batch import Reader, SpikeBatch
from workbench.session import Session
from workbench.windows import sliding


def factors(counts: Tensor, dim: int, most: int = 32) -> Tensor:
    """What units [N] of counts [W, N, T] share, turned at random into [N, dim] of unit variance (see `loadings`)."""
    found = loadings(counts, most)
    found = found @ torch.randn(found.shape[1], dim)
    return found / found.square().mean().sqrt().clamp(min=1e-6)


def loadings(counts: Tensor, most: int) -> Tensor:
    """Loadings of units [N] on the leading factors of √counts [W, N, T], as far as they stand above noise [N, ≤ most];
    no column where there is nothing to share.
    """
    z = counts.sqrt().transpose(0, 1).flatten(1)
    if min(z.shape) < 2:
        return z.new_zeros(len(z), 0)
    z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True).clamp(min=1e-3)
    variance, found = torch.linalg.eigh(z @ z.T / z.shape[1])
    variance, found = variance.flip(0)[:most], found.flip(1)[:, :most]
    found = found * torch.where(found.pow(3).sum(0) < 0, -1.0, 1.0)     # of a sign that the units' order cannot change
    return found * (variance - 1).clamp(min=0).sqrt()                   # independent units have variances of 1


def spread_windows(session: Session, window: float, most: int, step: float | None = None) -> SpikeBatch | None:
    """Windows of `window` s, `most` of those every `step` s (by default a window's length), spread evenly over a
    session; None where it has none so long.
    """
    long = session.intervals[np.diff(session.intervals)[:, 0] >= window - 1e-9]
    if not len(long):
        return None
    starts = sliding(long, window, step or window)
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int))]
    return Reader([session]).read(np.zeros(len(starts), int), starts, window)
