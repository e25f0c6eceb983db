"""The losses of the field, each with its source. No state."""

import torch
from torch import Tensor

from workbench.batch import Target


def window_mse(predicted: Tensor, target: Target, scale: Tensor, *, since: float = 0.0) -> Tensor:
    """Mean squared error in units of `scale` [D]: the mean of each window's samples, then of the windows that have any.

    predicted [Q, D], packed as the target is. Samples before `since` seconds of their window do not count. Windows
    weigh the same however often their session was sampled, and a batch without a sample has a loss of 0.
    """
    counts = (target.times >= since).to(predicted.dtype)
    window = torch.repeat_interleave(target.offsets.diff())
    squared = ((predicted - target.values) / scale).square().mean(1) * counts
    size = counts.new_zeros(len(target.offsets) - 1).index_add(0, window, counts)
    total = squared.new_zeros(len(size)).index_add(0, window, squared)
    return (total / size.clamp(min=1)).sum() / (size > 0).sum().clamp(min=1)


def poisson_nll(log_rates: Tensor, counts: Tensor, where: Tensor | None = None) -> Tensor:
    """Poisson negative log-likelihood, exp(η) − y η, without the term that no model can change; the mean of entries.

    log_rates, counts, and where (true: it counts) of one shape. 0 where nothing counts.
    """
    each = log_rates.exp() - counts * log_rates
    return each.mean() if where is None else mean_where(each, where)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the values where `where` is true, 0 where it never is; values elsewhere may be anything finite."""
    return (values * where).sum() / where.sum().clamp(min=1)
