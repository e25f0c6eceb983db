"""Gains of forecasts, summed over groups of units and bins: contributions in bits per spike, with intervals.

    Gains [W, N, H] × groups (region, stimulus, phase, lag, crossed) → sums [W, G] → differences → bootstrap over
    trials, and over trainings where there are several: what one makes of a modality that says nothing is its own luck

`recovery` puts contributions beside the drives that a simulation knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr, t

from workbench.align import row_at
from workbench.errors import UnknownName, WorkbenchError
from workbench.selection import within
from workbench.session import Session, unit_rows


@dataclass(frozen=True, eq=False)
class Gains:
    """How well a forecast explains every bin, shown one set of modalities or another: bits above the unit's mean there.

    origins [W] s, where horizons begin; blocks [W], the trial that each begins in; spikes [W, N, H]; shown [W, N, H],
    gains with everything; without, shuffled: modality → [W, N, H].
    """

    session: Session
    bin_size: float
    origins: np.ndarray
    blocks: np.ndarray
    spikes: np.ndarray
    shown: np.ndarray
    without: Mapping[str, np.ndarray]
    shuffled: Mapping[str, np.ndarray]

    @property
    def times(self) -> np.ndarray:
        """The middle of every bin [W, H], s on the session's clock."""
        return self.origins[:, None] + (np.arange(self.spikes.shape[2]) + 0.5) * self.bin_size

    def of(self, units) -> Gains:
        """Of some units only, as `Session.select` takes them."""
        rows = unit_rows(self.session.units, units, self.session.id)
        some = lambda gains: {name: each[:, rows] for name, each in gains.items()}
        return replace(self, session=self.session.select(rows), spikes=self.spikes[:, rows], shown=self.shown[:, rows],
                       without=some(self.without), shuffled=some(self.shuffled))


def contributions(gains: Gains | Sequence[Gains], by: str | Sequence[str] = "region",
                  phases: Mapping[str, tuple[str, float, float] | np.ndarray] | None = None) -> pd.DataFrame:
    """A row for every modality and group: bits, without, contribution, interval, and with shuffles shuffled,
    over_shuffled and over_shuffled_interval, in bits per spike of the group; and its spikes.

    by: one or several, crossed, of a column of the units' table; "lag", s from the origin to a bin's end;
    "phase", the stretches `phases` (name → column of trials, from, until: s since that event, or sorted stretches
    [n, 2] s on the session's clock), which may overlap;
    "stimuli.<column>" and "trials.<column>", what the table says of the row that a bin lies in. () for all as one.

    bits: of the model with everything, above each unit's mean over all these bins. contribution: bits less those
    without the modality. interval: 95 %, a bootstrap over trials (windows where there are none), both sides of the
    difference drawn together. gains of several models, trained with other seeds: means over them, and intervals of what
    a training is worth on average (three or more; of two they are very wide). Groups without a spike are left out.
    UnknownName for a grouping that is not there; WorkbenchError for gains of other windows or modalities.
    """
    several = [gains] if isinstance(gains, Gains) else list(gains)
    names, gains = (by,) if isinstance(by, str) else tuple(by), _first(several)
    groups = [_groups(gains, name, phases) for name in names]
    cells = [(labels, *_masks(gains, masks)) for labels, masks in _crossed(groups)]
    spikes = _summed(gains.spikes, cells)
    cells, spikes = [c for c, any_ in zip(cells, spikes.any(0), strict=True) if any_], spikes[:, spikes.any(0)]
    total, rows = spikes.sum(0), []
    shown = np.stack([_summed(each.shown, cells) for each in several])                      # [trainings, W, G]
    intervals = _resampled(spikes, gains.blocks)
    for name in gains.without:
        columns = {"bits": shown.sum(1).mean(0) / total}
        for kind, difference in (("without", "contribution"), ("shuffled", "over_shuffled")):
            if name in getattr(gains, kind):
                other = np.stack([_summed(getattr(each, kind)[name], cells) for each in several])
                columns |= {kind: other.sum(1).mean(0) / total, difference: (shown - other).sum(1).mean(0) / total,
                            "interval" if kind == "without" else f"{difference}_interval":
                            intervals(shown - other).tolist()}
        rows += [{"modality": name} | dict(zip(names, labels, strict=True))
                 | {key: values[i] for key, values in columns.items()} | {"spikes": int(total[i])}
                 for i, (labels, *_) in enumerate(cells)]
    return pd.DataFrame(rows)


def _first(several: Sequence[Gains]) -> Gains:
    """The first of gains that can be compared."""
    if not several:
        raise WorkbenchError("no gains to compare; give those of one model or more")
    first = several[0]
    for other in several[1:]:
        if not (np.array_equal(first.origins, other.origins) and np.array_equal(first.spikes, other.spikes)):
            raise WorkbenchError("gains of other windows or units; measure every model on the same intervals of the "
                                 "same session")
        if (set(first.without), set(first.shuffled)) != (set(other.without), set(other.shuffled)):
            raise WorkbenchError(f"gains of other modalities: {', '.join(first.without)} and "
                                 f"{', '.join(other.without)}; measure every model with the same modalities= and "
                                 "shuffles=")
    return first


def recovery(tables: Sequence[pd.DataFrame], truths: Sequence[Mapping[str, np.ndarray]],
             modalities: Mapping[str, str], *, of: str = "contribution") -> dict:
    """Whether contributions by region find the drives that simulations know; one table and one truth a recording.

    truths: `session.truth`, whose drive [regions, M] is in bits per spike, 0 for what drives nothing. modalities: a
    simulation's name for a drive → the table's. of: "contribution" or "over_shuffled".

    {"table", a row a recording, region and modality: true, measured, low, high; "right", the share of regions whose
    strongest drive is measured as the strongest; "nulls", how many drives are 0, and "null_contains_zero", the share of
    their intervals that contain 0; "spearman", modality → rank correlation over regions of what is true and measured,
    both means over recordings, and "all", the same over regions and modalities}
    """
    interval, rows = "interval" if of == "contribution" else f"{of}_interval", []
    for recording, (table, truth) in enumerate(zip(tables, truths, strict=True)):
        found = table.set_index(["modality", "region"])
        for region, drives in zip(truth["drive_names"], truth["drive"], strict=True):
            for name, drive in zip(truth["drive_modalities"], drives, strict=True):
                low, high = found.at[(modalities[name], region), interval]
                rows.append({"recording": recording, "region": region, "modality": name, "true": float(drive),
                             "measured": found.at[(modalities[name], region), of], "low": low, "high": high})
    rows = pd.DataFrame(rows)
    true, measured = (rows.pivot(index=["recording", "region"], columns="modality", values=each).to_numpy()
                      for each in ("true", "measured"))
    clear = (true == true.max(1, keepdims=True)).sum(1) == 1            # no strongest where two are the same
    nulls = rows[rows["true"] == 0]
    mean = rows.groupby(["modality", "region"])[["true", "measured"]].mean()
    rank = lambda each: float(spearmanr(each["true"], each["measured"]).statistic)
    right = pd.Series(true.argmax(1) == measured.argmax(1))[clear]
    return {"table": rows, "right": float(right.mean()), "nulls": len(nulls),
            "null_contains_zero": float(((nulls["low"] <= 0) & (nulls["high"] >= 0)).mean()),
            "spearman": {name: rank(each) for name, each in mean.groupby(level="modality")} | {"all": rank(mean)}}


def since(event: str, start: float, stop: float, step: float) -> dict[float, tuple[str, float, float]]:
    """Stretches of `step` s one after the other from `start` to `stop` s after an event, named by their middles."""
    edges = start + step * np.arange(round((stop - start) / step))
    return {round(float(a + step / 2), 6): (event, float(a), float(a + step)) for a in edges}


def events_of(session: Session) -> list[str]:
    """The columns of the trials that are times of events: numbers that lie in their trials, where there are any."""
    trials = session.trials.select_dtypes("number")
    inside = lambda each: each.between(trials["start"] - 1e-6, trials["stop"] + 1e-6) | each.isna()
    return [name for name in trials if name != "stop" and inside(trials[name]).all() and trials[name].notna().any()]


def _groups(gains: Gains, name: str, phases) -> dict[object, np.ndarray]:
    """label → which units [N], or which bins [W, H]."""
    session, times = gains.session, gains.times
    place, _, column = name.partition(".")
    if name == "lag":
        lags = np.arange(times.shape[1])
        return {round((lag + 1) * gains.bin_size, 9): np.broadcast_to(lags == lag, times.shape) for lag in lags}
    if name == "phase":
        if not phases:
            raise WorkbenchError("no phases to group by; give phases={name: (column of trials, from, until)}, both in "
                                 "seconds since that event")
        return {label: within(times, stretch) if isinstance(stretch, np.ndarray) else _stretch(session, times, *stretch)
                for label, stretch in phases.items()}
    if place in ("stimuli", "trials"):
        table = getattr(session, place)
        if column not in table:
            raise UnknownName("column", column, table.columns, where=f"the {place} of session {session.id!r}")
        row = row_at(*(table[name].to_numpy(float) for name in ("start", "stop")), times)
        return {label: (row >= 0) & (table[column].to_numpy() == label)[row] for label in
                table.sort_values("start")[column].dropna().unique()}
    if name not in session.units:
        raise UnknownName("grouping", name, [*session.units, "lag", "phase", "stimuli.<column>", "trials.<column>"])
    return {label: (session.units[name] == label).to_numpy() for label in session.units[name].dropna().unique()}


def _stretch(session: Session, times: np.ndarray, event: str, start: float, stop: float) -> np.ndarray:
    """Which bins lie from `start` to `stop` s after an event of the trials."""
    if event not in session.trials:
        raise UnknownName("event", event, session.trials.columns, where=f"the trials of session {session.id!r}")
    events = np.sort(session.trials[event].dropna().to_numpy(float))
    return np.searchsorted(events, times - start, side="right") > np.searchsorted(events, times - stop, side="right")


def _crossed(groups: Sequence[Mapping]) -> Iterator[tuple[tuple, list[np.ndarray]]]:
    for cell in product(*(each.items() for each in groups)):
        yield tuple(label for label, _ in cell), [mask for _, mask in cell]


def _masks(gains: Gains, masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Units [N] and bins [W, H] that are in all the groups."""
    units, bins = np.ones(gains.spikes.shape[1], bool), np.ones(gains.times.shape, bool)
    for mask in masks:
        units, bins = (units & mask, bins) if mask.ndim == 1 else (units, bins & mask)
    return units, bins


def _summed(values: np.ndarray, cells: Sequence[tuple]) -> np.ndarray:
    """Values [W, N, H] summed over the units and bins of every cell [W, G]."""
    of_units, sums = {}, []
    for _, units, bins in cells:
        if (key := units.tobytes()) not in of_units:                    # many cells share their units
            of_units[key] = values[:, units].sum(1, dtype=np.float64)
        sums.append((of_units[key] * bins).sum(1))
    return np.stack(sums, axis=1) if sums else np.zeros((len(values), 0))


def _resampled(spikes: np.ndarray, blocks: np.ndarray, drawn: int = 4000) -> Callable[[np.ndarray], np.ndarray]:
    """gain [trainings, W, G] → 95 % intervals [G, 2] of Σ gain / Σ spikes [W, G]: those of `masked.bootstrap`, many at
    once. To what trials tell is added what trainings differ by, from Student's t, because so few say little of that.
    """
    k, total = int(blocks.max()) + 1, spikes.sum(0)
    if k < 2:
        return lambda gain: np.full((gain.shape[2], 2), np.nan)
    per_block = np.zeros((k, len(blocks)))
    per_block[blocks, np.arange(len(blocks))] = 1
    times = np.random.default_rng(0).multinomial(k, np.full(k, 1 / k), drawn) @ per_block
    there = times @ spikes
    tail = norm.cdf(t.ppf(0.025, k - 1) * np.sqrt(k / (k - 1)))

    def intervals(gain: np.ndarray) -> np.ndarray:
        found, luck, n = times @ gain.mean(0), np.zeros((drawn, gain.shape[2])), len(gain)
        if n > 1:
            spread = gain.sum(1).std(0, ddof=1) / np.sqrt(n) / total
            luck = np.random.default_rng(1).standard_t(n - 1, (drawn, 1)) * spread
        group = zip(found.T, there.T, luck.T, strict=True)              # a draw may hold no spike
        return np.array([np.quantile(bits[spikes > 0] / spikes[spikes > 0] + more[spikes > 0], [tail, 1 - tail])
                         for bits, spikes, more in group]).reshape(-1, 2)

    return intervals
