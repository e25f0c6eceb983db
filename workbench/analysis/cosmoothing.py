"""Co-smoothing: how well the spikes of held-out units follow from all the others', on held-out time.

    held-out intervals → windows that slide over them, the held-out units' spikes dropped → model → log_rates
        → rates of the held-out units, averaged over the windows that hold a bin → bits per spike

Scored as in the Neural Latents Benchmark (Pei et al. 2021, arXiv 2109.04463): above each unit's own mean over the very
bins that are scored. `factor_glm` is the classical way, and the one to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import FactorAnalysis
from sklearn.linear_model import PoissonRegressor

from workbench.align import spikes_before
from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, WorkbenchError
from workbench.masking import Mask
from workbench.metrics import bits_per_spike
from workbench.models.base import Output
from workbench.session import Session, inside, overlap, unit_rows
from workbench.windows import aligned, sliding

MEMORY = 30.0                                       # s, of the running mean


class Predicted(NamedTuple):
    """Held-out units bin by bin: starts of bins [T] in s, expected spikes a bin and spikes [T, H], units' rows [H].

    before: what each unit's mean over the 30 s of recording before a bin says of it [T, H].
    """

    times: np.ndarray
    rates: np.ndarray
    counts: np.ndarray
    units: np.ndarray
    bin_size: float
    before: np.ndarray


def draw_held_out(session: Session, share: float = 0.25, seed: int = 0) -> list[str]:
    """Ids of `share` of the session's units, drawn from `seed`."""
    number = round(share * len(session.units))
    if not 0 < number < len(session.units):
        raise BadRecording(f"{session.id}: a share of {share:g} of {len(session.units)} units holds out {number}; give "
                           "one that leaves units on both sides")
    rows = np.random.default_rng(seed).permutation(len(session.units))[:number]
    return session.units["id"].iloc[np.sort(rows)].tolist()


def cosmooth(model, session: Session, intervals: np.ndarray, held_out, *, trained_on: Session | None = None,
             align: str | None = None, step: float | None = None, batch_size: int = 64) -> dict:
    """The score of any model that reconstructs; see `predict` for the arguments and `score` for what comes back."""
    return score(predict(model, session, intervals, held_out, align=align, step=step, batch_size=batch_size),
                 trained_on)


def score(predicted: Predicted, trained_on: Session | None = None) -> dict:
    """{"bits_per_spike", "running_mean", "units", "bins", "spikes", "bin_size", "protocol"}.

    "running_mean": what each unit's own mean over the 30 s of recording before a bin would score; it sees what a
    co-smoothing model may not. trained_on: the part of the session that was trained on; adds "over_training_mean", bits
    per spike above the mean rates there (half a spike for a unit that was silent), which a recording whose rates drift
    makes the higher the more it drifts.
    """
    counts, size = predicted.counts, predicted.bin_size
    found = {"bits_per_spike": bits_per_spike(predicted.rates, counts),
             "running_mean": bits_per_spike(predicted.before, counts)}
    if trained_on is not None:
        mean = np.maximum(trained_on.rates()[predicted.units], 0.5 / trained_on.duration)
        found["over_training_mean"] = bits_per_spike(predicted.rates, counts, mean * size)
    return found | {"units": counts.shape[1], "bins": counts.shape[0], "spikes": int(counts.sum()), "bin_size": size,
                    "protocol": f"bits per spike of {counts.shape[1]} held-out units in bins of {size:g} s of held-out "
                                "time, above each unit's mean over these bins"}


@torch.no_grad()
def predict(model, session: Session, intervals: np.ndarray, held_out, *, align: str | None = None,
            step: float | None = None, batch_size: int = 64) -> Predicted:
    """Rates of the units `held_out` (ids, or as in `Session.select`) inside `intervals` [n, 2], without their spikes.

    align: a series on whose samples bins are centred, as a recording of coarse timing wants. step: seconds between
    windows, a quarter of one by default; a bin's rate is the mean over all windows that hold it after their warm-up.
    """
    if not model.reconstructs:
        raise WorkbenchError(f"model {model.name!r} predicts no firing rates, so it cannot be co-smoothed; choose one "
                             "that reconstructs")
    size, rows = model.bin_size, _some_of(session, held_out)
    intervals = _whole_bins(session, intervals, size, align, model.window)
    step = max(round((step or model.window / 4) / size), 1) * size
    starts = sliding(intervals, model.window, step)
    times, counts = _binned(session, intervals, size)
    hidden = torch.zeros(len(session.units), dtype=torch.bool).index_fill(0, torch.from_numpy(rows), True)
    total, number = np.zeros((len(times), len(rows))), np.zeros(len(times))
    reader, training = Reader([session]), model.training
    model.eval()
    for at in np.array_split(starts, -(-len(starts) // batch_size)):
        batch = reader.read(np.zeros(len(at), int), at, model.window)
        rates = _without(model, batch, hidden).log_rates[:, rows].exp().double().cpu().numpy()
        first = np.searchsorted(times, at - size / 2)
        late = np.arange(rates.shape[2]) * size >= model.warmup - 1e-6
        where = (first[:, None] + np.arange(rates.shape[2]))[:, late]
        np.add.at(total, where, rates.transpose(0, 2, 1)[:, late])
        np.add.at(number, where, 1)
    model.train(training)
    there = number > 0
    return Predicted(times[there], total[there] / number[there, None], counts[there][:, rows], rows, size,
                     _before(session, intervals, times[there], size)[:, rows])


def _without(model, batch: SpikeBatch, hidden: torch.Tensor) -> Output:
    """What a model says without the spikes of the hidden [N] units; one that knows masks is told which they are."""
    device = next(model.parameters()).device
    if not hasattr(model, "reconstruct"):
        return model(batch.drop(hidden[batch.units]).to(device))
    hidden = hidden[:, None].expand(len(batch), -1, batch.bins(model.bin_size))
    return model.reconstruct(batch.to(device), Mask(hidden, hidden).to(device), "neuron")


def factor_glm(session: Session, train: np.ndarray, test: np.ndarray, held_out, *, bin_size: float = 0.05,
               factors: int = 20, lags: int = 5, penalty: float = 0.1, align: str | None = None) -> Predicted:
    """The classical way: factor analysis of the other units, and a Poisson regression a held-out unit on the factors.

    train, test: intervals [n, 2]. Factors come from square roots of counts (nearly normal, of nearly equal noise), and
    a regression sees those of `lags` bins around its own; at the ends of an interval the outermost stand in.
    """
    rows = _some_of(session, held_out)
    others = np.setdiff1d(np.arange(len(session.units)), rows)
    parts = {name: _whole_bins(session, part, bin_size, align, bin_size)
             for name, part in (("train", train), ("test", test))}
    times, counts = _binned(session, parts["test"], bin_size)
    pieces = {name: [_binned(session, one[None], bin_size)[1] for one in part] for name, part in parts.items()}
    seen = {name: [np.sqrt(piece[:, others]) for piece in part] for name, part in pieces.items()}
    analysis = FactorAnalysis(min(factors, len(others)), random_state=0).fit(np.concatenate(seen["train"]))
    features = {name: np.concatenate([_lagged(analysis.transform(piece), lags) for piece in part])
                for name, part in seen.items()}
    fitted = np.concatenate(pieces["train"])[:, rows]
    glm = PoissonRegressor(alpha=penalty, solver="newton-cholesky")
    rates = [glm.fit(features["train"], y).predict(features["test"]) if y.any() else np.full(len(times), 0.5 / len(y))
             for y in fitted.T]                                         # silent in training: half a spike there
    return Predicted(times, np.stack(rates, axis=1), counts[:, rows], rows, bin_size,
                     _before(session, parts["test"], times, bin_size)[:, rows])


def _some_of(session: Session, held_out: Sequence) -> np.ndarray:
    rows = unit_rows(session.units, held_out, session.id)
    if not 0 < len(rows) < len(session.units):
        raise BadRecording(f"{session.id}: {len(rows)} of {len(session.units)} units are held out; hold out some, and "
                           "leave some to predict them from")
    return rows


def _whole_bins(session: Session, intervals: np.ndarray, bin_size: float, align: str | None,
                shortest: float) -> np.ndarray:
    """The valid part of the intervals [n, 2], each as many whole bins as it holds; without those that are shorter than
    `shortest` seconds.
    """
    intervals = overlap(session.intervals, np.asarray(intervals, float).reshape(-1, 2))
    if align:
        series = session.get_series(align)
        intervals = aligned(intervals, series.times, series.interval, shortest)
    bins = np.floor(np.diff(intervals)[:, 0] / bin_size + 1e-6)
    intervals[:, 1] = intervals[:, 0] + bins * bin_size
    kept = intervals[bins * bin_size >= shortest - 1e-6]
    if not len(kept):
        raise BadRecording(f"{session.id}: no interval lasts {shortest:g} s; give longer ones")
    return kept


def _binned(session: Session, intervals: np.ndarray, bin_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Starts of all bins [T] and the spikes of every unit in them [T, N]."""
    times, counts = [], []
    for start, stop in intervals:
        bins = round((stop - start) / bin_size)
        times.append(start + bin_size * np.arange(bins))
        first, last = session.spike_times.searchsorted([start, stop])
        # In double precision: as float32 seconds from the start of a long stretch, spikes slip into other bins.
        at = ((session.spike_times[first:last] - start) / bin_size + 1e-6).astype(np.int64).clip(0, bins - 1)
        cell = at * len(session.units) + session.spike_units[first:last]
        found = np.bincount(cell, minlength=bins * len(session.units)).astype(np.float32)
        counts.append(found.reshape(bins, -1))
    return np.concatenate(times), np.concatenate(counts)


def _before(session: Session, intervals: np.ndarray, times: np.ndarray, bin_size: float) -> np.ndarray:
    """What each unit's mean over the 30 s of recording before each time says of a bin there [T, N]: its mean outside
    the intervals, half a spike where it was silent, weighs as one bin more.
    """
    spikes, seconds = spikes_before(session, times, MEMORY)
    whole, within = (np.bincount(units, minlength=len(session.units)) for units in (
        session.spike_units, session.spike_units[inside(session.spike_times, intervals)]))
    length = session.duration - np.diff(intervals).sum()
    start = np.maximum(whole - within, 0.5) / length if length > bin_size else 0.5 / session.duration
    return (spikes + start * bin_size) / (seconds / bin_size + 1)[:, None]


def _lagged(values: np.ndarray, lags: int) -> np.ndarray:
    """Values [T, D] of the `lags` rows around each row [T, D × lags]."""
    padded = np.pad(values, (((lags - 1) // 2, lags // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, lags, axis=0).reshape(len(values), -1)
