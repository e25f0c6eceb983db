"""How well a model tells what units will do after an origin, bin by bin, beside what simple means tell of these bins.

    test part → origins → window: history | horizon ─┬→ model.forecast, from what lies before the origin → rates
                                                     └→ baselines, from the same past → rates [W, N, H]
    gain over the mean rate in training, origin by origin → bits per spike at every bin of the horizon, with intervals
    by a bootstrap over blocks of 20 s, alone and paired with every baseline

    mean   each unit's mean rate in training, 0 bits by definition; the other baselines are in `forecast_baselines`

A forecaster knows the past: a window may open before the test part, as long as it is valid recording, and only the bins
that are scored have to lie in the test part. Rates drift, so that a score over a mean is read beside `running_mean`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter1d

from workbench.align import _wholly_valid
from workbench.analysis.cosmoothing import _whole_bins
from workbench.analysis.forecast_baselines import BASELINES, Baseline, Origins, fit, learn
from workbench.analysis.forecast_glm import history
from workbench.analysis.masked import BLOCK, _blocks, bootstrap
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import SILENT, psth_r2, spike_train_distances, weighted_r2
from workbench.session import Session
from workbench.windows import sliding

HORIZONS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)     # s: of a table, and of the regressions that are fitted one by one
SHORTEST, LONGEST = 1.0, 3.0                        # s of the past that baselines are given, as the model's history has
SMOOTHING = 0.05                                    # s, standard deviation of the Gaussian before R² of rates


def evaluate(model, session: Session, train: np.ndarray, valid: np.ndarray, test: np.ndarray, *, samples: int = 8,
             stride: float | None = None, feedback: Sequence[str] = ("sampled", "true"),
             given: Sequence[str] | None = None,
             baselines: Iterable[str] | Mapping[str, Baseline | None] = BASELINES,
             horizons: Sequence[float] | None = None, align: str = "start", by: str | None = None, seed: int = 0,
             batch_size: int = 32) -> dict:
    """{"model", "baselines", "windows", "spikes", "blocks", "bin_size", "horizon", "protocol"}.

    "model": feedback → {"curve", "r2", "psth_r2", "calibration"}, and "statistics" of what was sampled. "true" is shown
    the true bins before each one: beyond the first it is no forecast. "baselines": name → None or the same, with what
    it told of its penalties, and "difference": feedback → a curve of the model's bits less the baseline's, paired.

    A curve has lists horizon_ms (the end of each bin, after the origin), bits per spike, low and high, of 95 %.
    r2: of rates and counts smoothed over `SMOOTHING` s in the horizon, all units as one (`weighted_r2`). psth_r2: where
    `by` names a column of conditions, by the bins since the last event `align` of the trials, of what was predicted and
    what was counted in the scored bins; None without. calibration, statistics: see `calibration` and
    `spike_train_distances`. A baseline that tells only some bins has a curve of these, and None for the three scores.

    train, valid, test: intervals [n, 2], sorted; see `windows.split`. stride: s between origins, half the horizon by
    default. given: conditions that the model is shown, None for all. baselines: names, or baselines that are fitted
    already (`forecast_baselines.fit`, `masked_forecast`). horizons: s, of the direct regressions, `HORIZONS` by
    default.

    WorkbenchError for a model without `forecast`; BadRecording for a test part without room for a horizon, or with
    too little valid recording around it; UnknownName for a baseline or a column that is not there.
    """
    if not hasattr(model, "forecast"):
        raise WorkbenchError(f"model {model.name!r} forecasts no counts in bins; choose one that does, or give one "
                             "that reconstructs as a baseline (masked_forecast)")
    if by is not None:
        for column in (align, by):
            if column not in session.trials:
                raise UnknownName("column", column, session.trials, where=f"the trials of session {session.id!r}")
    size, bins = model.bin_size, round(model.horizon / model.bin_size)
    stride = max(round((stride or model.horizon / 2) / size), 1) * size
    origins, counts = _origins(model, session, test, stride)
    if not isinstance(baselines, Mapping):
        at = [each for each in _bins(HORIZONS if horizons is None else horizons, size) if each <= bins]
        fitted = [name for name in baselines if name != "mean"]
        baselines = fit(fitted, session, train, valid, bin_size=size, bins=bins, at=at, samples=samples, seed=seed)
    mean, blocks, spikes = learn(session, train, valid, size, bins).mean, _blocks(test, origins.times), counts.sum(1)
    conditions = None if by is None else _conditions(session, origins, align, by)
    told, gains = {}, {}

    def tell(rates):
        gain = _gain(rates, counts, mean)
        return gain, {"curve": _curve(gain, spikes, blocks, size)} | _beside(rates, counts, size, conditions)

    for each in feedback:
        rates, drawn = _forecast(model, session, origins.times, samples, each, given, seed, batch_size)
        gains[each], told[each] = tell(rates)
        if len(drawn):
            told[each]["statistics"] = spike_train_distances(drawn.reshape(-1, *drawn.shape[2:]).transpose(0, 2, 1),
                                                             counts.transpose(0, 2, 1), size)
    beside = {}
    for name, baseline in ({"mean": lambda _: np.broadcast_to(mean[:, None], counts.shape)} | dict(baselines)).items():
        if baseline is None:
            beside[name] = None
            continue
        gain, found = tell(baseline(origins))
        beside[name] = found | dict(getattr(baseline, "told", {})) | {"difference": {
            each: _curve(own - gain, spikes, blocks, size) for each, own in gains.items()}}
    return {"model": told, "baselines": beside, "windows": len(origins.times), "spikes": int(counts.sum()),
            "blocks": int(blocks.max()) + 1, "bin_size": size, "horizon": model.horizon,
            "protocol": f"bits per spike, above each unit's mean rate in training, of every bin of {size:g} s in "
                        f"{len(origins.times)} forecasts of {model.horizon:g} s from origins {stride:g} s apart, of "
                        "which all scored bins lie in the test part and the history may lie before it; regressions and "
                        "networks learn on the training part, with penalty and length of training chosen on the "
                        f"validation part; 95 % intervals over {blocks.max() + 1} blocks of {BLOCK:g} s"}


def table(found: Mapping, horizons: Sequence[float] = HORIZONS) -> pd.DataFrame:
    """One row a forecaster and horizon (s, those of them that end a bin): bits and interval, and of baselines how far
    the model is above them, with its first feedback. found: what `evaluate` says.
    """
    ends, first, nan, rows = set(_bins(horizons, found["bin_size"])), next(iter(found["model"])), float("nan"), []
    named = {f"model, {feedback}": each for feedback, each in found["model"].items()}
    for name, each in (named | {name: each for name, each in found["baselines"].items() if each}).items():
        curve, paired = each["curve"], each.get("difference", {}).get(first)
        for i, end in enumerate(curve["horizon_ms"]):
            if round(end / 1000 / found["bin_size"]) in ends:
                values = ("bits", "low", "high")
                rows.append({"forecaster": name, "horizon_ms": end} | {value: curve[value][i] for value in values}
                            | {f"difference_{value}": paired[value][i] if paired else nan for value in values})
    return pd.DataFrame(rows).rename(columns={"difference_bits": "difference"})


def calibration(rates: np.ndarray, counts: np.ndarray, groups: int = 10) -> dict:
    """{"predicted", "counted", "error"}: mean rate and mean count, spikes a bin, of entries in `groups` equal parts by
    their rate, and the mean of how far the two are apart (the expected calibration error, Naeini et al. 2015, AAAI).
    """
    order = np.argsort(rates, axis=None, kind="stable")
    parts = [part for part in np.array_split(order, groups) if len(part)]
    predicted, counted = (np.array([values.ravel()[part].mean() for part in parts]) for values in (rates, counts))
    error = np.average(np.abs(predicted - counted), weights=[len(part) for part in parts])
    return {"predicted": predicted.tolist(), "counted": counted.tolist(), "error": float(error)}


def _bins(horizons: Iterable[float], size: float) -> list[int]:
    """Those of the horizons, in s, that end a bin, as numbers of bins."""
    return [round(each / size) for each in horizons if round(each / size) and abs(each / size % 1 - 0.5) > 0.5 - 1e-6]


def _origins(model, session: Session, test: np.ndarray, stride: float) -> tuple[Origins, np.ndarray]:
    """The origins, and the counts [W, N, H] after them."""
    size, bins = model.bin_size, round(model.horizon / model.bin_size)
    starts = sliding(_whole_bins(session, test, size, None, model.horizon), model.horizon, stride)
    before = max(model.history, round(SHORTEST / size) * size, history(size) * size)
    after = model.window - model.history
    starts = starts[_wholly_valid(session, pd.DataFrame({"start": starts - before, "stop": starts + after}))]
    if not len(starts):
        raise BadRecording(f"{session.id}: no forecast of {model.horizon:g} s in the test part has {before:g} s of "
                           f"valid recording before its origin and {after:g} s after it; give a longer test part, or a "
                           "model of shorter history")
    past = max(round(min(before, LONGEST) / size), history(size))
    batch = Reader([session]).read(np.zeros(len(starts), int), starts - past * size, (past + bins) * size)
    counts = batch.counts(size).numpy()
    return Origins(session, starts, counts[:, :, :past], bins, size), counts[:, :, past:]


@torch.no_grad()
def _forecast(model, session: Session, times: np.ndarray, samples: int, feedback: str, given: Sequence[str] | None,
              seed: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates [W, N, H], and what was sampled [K, W, N, H]."""
    reader, device, training = Reader([session], also=model.reads), next(model.parameters()).device, model.training
    model.eval()
    rates, drawn = [], []
    for k, at in enumerate(np.array_split(times, -(-len(times) // batch_size))):
        batch = reader.read(np.zeros(len(at), int), at - model.history, model.window).to(device)
        found = model.forecast(batch, samples=samples, feedback=feedback, given=given, seed=seed + k)
        rates.append(found.rates.double().cpu().numpy())
        drawn.append(found.counts.cpu().numpy().astype(np.int16))
    model.train(training)
    return np.concatenate(rates), np.concatenate(drawn, axis=1)


def _gain(rates: np.ndarray, counts: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Log-likelihood above the mean rate in training, in bits, of all units at each bin [W, H]; NaN without a rate."""
    rates, mean = np.maximum(rates, SILENT), mean[:, None]
    return (counts * np.log(rates / mean) - rates + mean).sum(1) / np.log(2)


def _curve(gain: np.ndarray, spikes: np.ndarray, blocks: np.ndarray, size: float) -> dict[str, list]:
    """Bits per spike with intervals at every bin of the horizon that is told, from gains and spikes [W, H]."""
    there = np.flatnonzero(~np.isnan(gain).any(0))
    ends = [bootstrap(gain[:, h], spikes[:, h], blocks) for h in there]
    return {"horizon_ms": [round(float((h + 1) * size * 1000), 6) for h in there],
            "bits": [float(gain[:, h].sum() / (spikes[:, h].sum() or np.nan)) for h in there],
            "low": [low for low, _ in ends], "high": [high for _, high in ends]}


def _beside(rates: np.ndarray, counts: np.ndarray, size: float, conditions: tuple | None) -> dict:
    """The scores that are no likelihood, None of them where only some bins are told."""
    if np.isnan(rates).any():
        return {"r2": None, "psth_r2": None, "calibration": None}
    smooth = lambda values: gaussian_filter1d(values.astype(float), SMOOTHING / size, axis=2, mode="nearest") \
        .transpose(0, 2, 1).reshape(-1, values.shape[1])
    return {"r2": weighted_r2(smooth(counts), smooth(rates)),
            "psth_r2": None if conditions is None else _psth_r2(rates, counts, *conditions),
            "calibration": calibration(rates, counts)}


def _conditions(session: Session, origins: Origins, align: str, by: str) -> tuple[np.ndarray, np.ndarray]:
    """The condition [W, H] of the trial that each bin follows and the bins since its event [W, H]; −1 where that is
    longer ago than a horizon.
    """
    trials = session.trials.dropna(subset=[align, by]).sort_values(align)
    if not len(trials):
        raise BadRecording(f"{session.id}: no trial has both {align!r} and {by!r}; choose other columns")
    events, (condition, _) = trials[align].to_numpy(float), pd.factorize(trials[by])
    middle = origins.times[:, None] + (np.arange(origins.bins) + 0.5) * origins.bin_size
    last = np.searchsorted(events, middle, side="right") - 1
    since = np.floor((middle - events[np.maximum(last, 0)]) / origins.bin_size).astype(int)
    there = (last >= 0) & (since < origins.bins)
    return np.where(there, condition[last], -1), np.where(there, since, -1)


def _psth_r2(rates: np.ndarray, counts: np.ndarray, condition: np.ndarray, since: np.ndarray) -> float:
    there, bins = condition >= 0, rates.shape[2]
    if not there.any():
        return float("nan")
    cell = condition[there] * bins + since[there]
    shape = condition.max() + 1, bins, rates.shape[1]
    number = np.bincount(cell, minlength=shape[0] * bins).astype(float)[:, None]
    number[number == 0] = np.nan                                        # a bin that no trial of this condition has
    means = []
    for values in (counts, rates):
        total = np.zeros((shape[0] * bins, shape[2]))
        np.add.at(total, cell, values.transpose(0, 2, 1)[there])
        means.append((total / number).reshape(shape))
    return psth_r2(*means, np.arange(shape[0]))
