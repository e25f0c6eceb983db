"""The scores of the field, each with its source. No state.

    behaviour   r2 · weighted_r2 · accuracy · balanced_accuracy
    rates       bits_per_spike · unit_bits_per_spike · co_smoothing_bits · forward_bits · psth_r2
    baseline    running_mean: a score over each unit's mean is no score where rates drift
    spikes      spike_train_distances, of generated from real ones

Rates are expected spikes per bin. Units are the last axis, as in nlb_tools and `Session.counts`; a model's log_rates
[B, N, T] become rates by exp and a transpose.
"""

import numpy as np
from scipy.special import rel_entr

from workbench.errors import WorkbenchError

SILENT = 1e-9                                       # spikes per bin, in place of a rate of 0, as in nlb_tools


def r2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Coefficient of determination of every column [D]: 1 − squared error / variance around the column's own mean.

    true, predicted [T, D]. 1 is perfect, 0 as good as the mean of `true`; NaN for a column that does not vary.
    """
    error, spread = _squares(true, predicted)
    return 1 - error / np.where(spread > 0, spread, np.nan)


def weighted_r2(true: np.ndarray, predicted: np.ndarray) -> float:
    """R² of all columns as one, each weighted by its variance. FALCON's (Karpowicz et al. 2024), a session at a time.

    true, predicted [T, D]; NaN where nothing varies. `r2(…).mean()` is the other mean, every column alike.
    """
    error, spread = _squares(true, predicted)
    return float(1 - error.sum() / (spread.sum() or np.nan))


def _squares(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    _one_each(true, predicted)
    varies = (true != true[:1]).any(0)                                  # 0.1 a thousand times has a mean beside 0.1
    return ((true - predicted) ** 2).sum(0), np.where(varies, ((true - true.mean(0)) ** 2).sum(0), 0.0)


def _one_each(true: np.ndarray, predicted: np.ndarray) -> None:
    if true.shape != predicted.shape:                                   # numpy would make a table of all by all
        raise WorkbenchError(f"predictions of shape {predicted.shape} for true values of shape {true.shape}; give one "
                             "prediction a value")


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """The share of trials [M] whose class is right."""
    true, predicted = np.asarray(true), np.asarray(predicted)
    _one_each(true, predicted)
    return float(np.mean(true == predicted))


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the classes in `true` of the share of its trials that are right: always the same answer is chance.

    true, predicted [M]. Brodersen et al. 2010, ICPR.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    _one_each(true, predicted)
    right = true == predicted
    return float(np.mean([right[true == each].mean() for each in np.unique(true)]))


def bits_per_spike(rates: np.ndarray, counts: np.ndarray, null: np.ndarray | None = None) -> float:
    """How much better than `null` the rates explain the spikes, in bits a spike: Poisson log-likelihood, all units.

    rates, counts [..., N]; entries whose count is NaN are left out. null: rates of a shape that broadcasts, such as
    the training part's mean [N] or a `running_mean` [T, N]; by default each unit's mean over these very counts, as in
    the Neural Latents Benchmark (Pei et al. 2021, arXiv 2109.04463). NaN without a spike.
    """
    gain, spikes = _gain(rates, counts, null)
    return float(gain.sum() / (spikes.sum() or np.nan))


def unit_bits_per_spike(rates: np.ndarray, counts: np.ndarray, null: np.ndarray | None = None) -> np.ndarray:
    """The same of every unit by itself [N], NaN for units without a spike.

    Its `np.nanmean` is the score of MtM (Zhang et al. 2024, arXiv 2407.14668) and NEDS (Zhang et al. 2025, arXiv
    2504.08201): there a rare unit weighs as much as a busy one, so that it does not compare with `bits_per_spike`.
    """
    gain, spikes = _gain(rates, counts, null)
    return gain / np.where(spikes > 0, spikes, np.nan)


def co_smoothing_bits(rates: np.ndarray, counts: np.ndarray, held_out: np.ndarray,
                      null: np.ndarray | None = None) -> float:
    """`bits_per_spike` of the units held_out [N], whose spikes the model was not shown. rates, counts [..., N]."""
    null = null if null is None else np.broadcast_to(null, np.shape(counts))[..., held_out]
    return bits_per_spike(np.asarray(rates)[..., held_out], np.asarray(counts)[..., held_out], null)


def forward_bits(rates: np.ndarray, counts: np.ndarray, bins: int, null: np.ndarray | None = None) -> float:
    """`bits_per_spike` of the last `bins` bins of every trial, which the model was not shown. [trials, T, N]."""
    null = null if null is None else np.broadcast_to(null, np.shape(counts))[:, -bins:]
    return bits_per_spike(np.asarray(rates)[:, -bins:], np.asarray(counts)[:, -bins:], null)


def _gain(rates: np.ndarray, counts: np.ndarray, null: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood over the null in bits [N], and spikes [N]."""
    rates, counts = np.asarray(rates, np.float64), np.asarray(counts, np.float64)
    if rates.shape != counts.shape:
        raise WorkbenchError(f"rates of shape {rates.shape} for counts of shape {counts.shape}; give one rate a count, "
                             "units last")
    there = ~np.isnan(counts)
    if not (rates[there] >= 0).all():
        raise WorkbenchError("rates below 0 or NaN have no likelihood; give expected spikes per bin, not their "
                             "logarithm")
    counts, trials = np.where(there, counts, 0), tuple(range(counts.ndim - 1))
    if null is None:
        null = counts.sum(trials) / np.maximum(there.sum(trials), 1)
    rates, null = (np.where(there, np.maximum(r, SILENT), 1.0) for r in (rates, null))
    return (counts * np.log(rates / null) - rates + null).sum(trials) / np.log(2), counts.sum(trials)


def running_mean(counts: np.ndarray, bins: int, start: np.ndarray, ahead: int = 1) -> np.ndarray:
    """Each unit's mean over the last `bins` bins that are known `ahead` bins before [T, N]: the baseline under drift.

    counts [T, N] of one stretch of time: bins are taken to follow one another. start [N]: rates to begin with, which
    weigh as one bin more and keep silent units above 0.
    """
    counts = np.asarray(counts, np.float64)
    total = np.concatenate([np.zeros((1, counts.shape[1])), counts.cumsum(0)])
    stop = np.maximum(np.arange(len(counts)) - ahead + 1, 0)
    first = np.maximum(stop - bins, 0)
    return (total[stop] - total[first] + start) / (stop - first + 1)[:, None]


def psth_r2(psth: np.ndarray, rates: np.ndarray, conditions: np.ndarray) -> float:
    """R² of trial-averaged rates to the true PSTHs over all conditions and bins, the mean of units.

    psth [conditions, T, N], NaN in bins that do not count; rates [trials, T, N]; conditions [trials] rows of psth. Of
    the Neural Latents Benchmark, without its jitter of trials. Conditions without a trial are left out, and so are
    units whose PSTH does not vary.
    """
    psth, rates, conditions = np.asarray(psth), np.asarray(rates), np.asarray(conditions)
    met = np.unique(conditions)
    found = np.stack([rates[conditions == each].mean(0) for each in met])
    there = ~np.isnan(psth[met, :, 0])
    return float(np.nanmean(r2(psth[met][there], found[there])))


def spike_train_distances(drawn: np.ndarray, true: np.ndarray, bin_size: float) -> dict[str, float]:
    """How far generated spikes are from real ones: counts [trials, T, N], as many trials of each as one likes.

    population_count_kl  KL(drawn ‖ true), nats, of the distributions of all units' spikes in a bin
    correlation_rmse     over pairs of units, of the correlation of their counts
    isi_mean_rmse, isi_sd_rmse   s, over units, of the mean and standard deviation of the intervals between spikes

    As in LDNS (Kapoor et al. 2024, arXiv 2407.08751), whose correlation_rmse also averages the zeros of the other
    half of the matrix, and so is 0.71 of this one. Units or pairs without a value on either side are left out.
    """
    drawn, true = np.asarray(drawn).astype(np.int64), np.asarray(true).astype(np.int64)
    if drawn.shape[2] != true.shape[2]:
        raise WorkbenchError(f"{drawn.shape[2]} units in the drawn spikes and {true.shape[2]} in the true ones; give "
                             "counts [trials, T, N] of the same units")
    most = int(max(drawn.sum(2).max(), true.sum(2).max()))
    pairs = np.tril_indices(true.shape[2], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = [np.atleast_2d(np.corrcoef(c.reshape(-1, c.shape[2]).T))[pairs] for c in (drawn, true)]
    intervals = [_intervals(counts, bin_size) for counts in (drawn, true)]
    return {"population_count_kl": float(rel_entr(*(_density(c.sum(2), most) for c in (drawn, true))).sum()),
            "correlation_rmse": _rmse(*correlations),
            "isi_mean_rmse": _rmse(*(mean for mean, _ in intervals)),
            "isi_sd_rmse": _rmse(*(sd for _, sd in intervals))}


def _rmse(a: np.ndarray, b: np.ndarray) -> float:
    squared = (a - b) ** 2
    return float(np.sqrt(np.nanmean(squared))) if np.isfinite(squared).any() else float("nan")


def _density(values: np.ndarray, most: int) -> np.ndarray:
    """Probabilities of 0 to `most`, smoothed by a Gaussian as wide as Scott's rule has it, a tenth at least."""
    number, at = np.bincount(values.ravel(), minlength=most + 1), np.arange(most + 1)
    width = max(values.std(ddof=1) * values.size ** -0.2, 0.1)
    density = np.exp(-((at[:, None] - at) / width) ** 2 / 2) @ number
    return density / density.sum()


def _intervals(counts: np.ndarray, bin_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every unit's intervals [N], s; the spikes of a bin are spread evenly inside it."""
    by_unit = counts.transpose(2, 0, 1)
    unit, trial, bin_ = np.nonzero(by_unit)
    number = by_unit[unit, trial, bin_]
    place = np.arange(number.sum()) - np.repeat(number.cumsum() - number, number)
    unit, trial, bin_, number = (np.repeat(each, number) for each in (unit, trial, bin_, number))
    times = (bin_ + (place + 1) / (number + 1)) * bin_size
    same = (np.diff(unit) == 0) & (np.diff(trial) == 0)
    interval, unit = np.diff(times)[same], unit[1:][same]
    units = counts.shape[2]
    size = np.bincount(unit, minlength=units).astype(float)
    size[size == 0] = np.nan
    mean = np.bincount(unit, interval, units) / size
    return mean, np.sqrt(np.bincount(unit, (interval - mean[unit]) ** 2, units) / size)
