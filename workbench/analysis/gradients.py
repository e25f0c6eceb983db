"""Integrated gradients: how a forecast's log-likelihood divides among the conditions, moment by moment.

    baseline, all zeros ──┐
                          ├ α from 0 to 1 → log-likelihood of the spikes → its gradient, averaged over α
    conditions [B, T, D] ─┘       × (conditions − baseline) → attributions [B, T, D], bits; their sum is the difference

Sundararajan, Taly & Yan 2017, arXiv 1703.01365, by captum (BSD-3), an extra: pip install 'spike-workbench[captum]'.
Conditions are standardised, so that zeros are their mean; an event keeps its time, and says nothing. What is explained
is the log-likelihood of the spikes and not their expected number: in a sum over units that prefer opposite directions
what a modality says of each would cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.masked import bootstrap
from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError


class Integrated(NamedTuple):
    """attributions: condition → [B, T, D] bits; difference [B] bits, between the conditions and zeros; spikes [B].

    error: of completeness, what the attributions' sum misses of the difference, as a share of it, over the batch.
    """

    attributions: Mapping[str, Tensor]
    difference: Tensor
    spikes: Tensor
    error: float


def integrated_gradients(model, batch: SpikeBatch, *, target: tuple | None = None, steps: int = 50) -> Integrated:
    """Attributions of the teacher-forced forecast of a batch of windows.

    target: (units, bins), rows of the forecast [N, H] as indices or slices; by default all of it. steps: points of the
    integral. WorkbenchError for a model without conditions, or where captum is not installed.
    """
    if find_spec("captum") is None:
        raise WorkbenchError("integrated gradients need the package captum, which is not installed; run: "
                             "pip install 'spike-workbench[captum]' (ablation needs nothing)")
    from captum.attr import IntegratedGradients  # which loads matplotlib

    tokens, first = {name: each.detach() for name, each in model.tokens(batch).items()}, \
        round(model.history / model.bin_size)
    if not tokens:
        raise WorkbenchError(f"model {model.name!r} forecasts from no conditions, so there is nothing to attribute to; "
                             "choose one that was built with conditions=")
    units, bins = target or (slice(None), slice(None))
    part = lambda values: values[:, units][:, :, bins]
    counts = part(batch.counts(model.bin_size)[..., first:first + round(model.horizon / model.bin_size)])

    def bits(*values: Tensor) -> Tensor:
        log_rates = part(model(batch, tokens=dict(zip(tokens, values, strict=True))).log_rates)
        return (counts * log_rates - log_rates.exp()).sum((1, 2)) / np.log(2)

    inputs, training = tuple(tokens.values()), model.training
    baselines = tuple(map(torch.zeros_like, inputs))
    model.eval()
    try:                                                                # a GPU's own recurrence has no gradient in eval
        with torch.backends.cudnn.flags(enabled=False):                 # one step at a time: the batch is what it is
            found = IntegratedGradients(bits).attribute(inputs, baselines, n_steps=steps,
                                                        internal_batch_size=len(batch))
        with torch.no_grad():
            difference = bits(*inputs) - bits(*baselines)
    finally:
        model.train(training)
    found = {name: each.detach() for name, each in zip(tokens, found, strict=True)}
    missed = sum(each.sum((1, 2)) for each in found.values()) - difference
    error = float(missed.abs().sum() / difference.abs().sum().clamp(min=1e-12))
    return Integrated(found, difference, counts.sum((1, 2)), error)


def ledger(found: Integrated, modalities: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """A row a modality: bits per spike, their 95 % interval over windows, and the share of all that is attributed.

    modalities: name → its conditions; by default each condition. Shares are of the sum of absolute values.
    """
    wanted = modalities or {name: (name,) for name in found.attributions}
    sums = {name: sum(found.attributions[each].sum((1, 2)).double().cpu().numpy() for each in names)
            for name, names in wanted.items()}
    spikes = found.spikes.double().cpu().numpy()
    total = sum(abs(each.sum()) for each in sums.values()) or np.nan
    return pd.DataFrame([{"modality": name, "bits": each.sum() / (spikes.sum() or np.nan),
                          "interval": bootstrap(each, spikes, np.arange(len(each))), "share": abs(each.sum()) / total}
                         for name, each in sums.items()])
