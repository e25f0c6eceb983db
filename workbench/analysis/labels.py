"""What the moments of a cloud are called: where they lie, and what went on then.

    Cloud, sessions → labels [P]: time, session, a column of the trials, a column of a series, a speed
    chosen moments → trials · stretches of time [n, 2] → their spikes, laid end to end [R, C]
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.align import row_at
from workbench.analysis.raster import CountPyramid
from workbench.errors import UnknownName
from workbench.session import Session

if TYPE_CHECKING:
    from workbench.analysis.latents import Cloud

FEW = 12                                                                # different numbers that are names: contrasts


def label_names(sessions: Sequence[Session]) -> list[str]:
    """What moments can be coloured by: "time", "session", "trials.<column>", "<series>.<column>", "<series>.speed"."""
    names = ["time", *(["session"] if len(sessions) > 1 else [])]
    for s in sessions:
        names += [f"trials.{name}" for name, values in s.trials.items() if name not in ("start", "stop") and
                  values.nunique() > 1 and (pd.api.types.is_numeric_dtype(values) or _words(values))]
        for name, series in s.series.items():
            columns = series.values.shape[1]
            if columns > 8:                                             # channels of a probe, cells: no behaviour
                continue
            names += [name] if columns == 1 else [f"{name}.{c}" for c in series.columns or range(columns)]
            names += [f"{name}.speed"] * (columns in (2, 3) and "vel" in name.lower())
    return list(dict.fromkeys(names))


def _words(values: pd.Series) -> bool:
    return all(isinstance(value, str) for value in values.dropna())


def labels(cloud: Cloud, sessions: Sequence[Session], name: str) -> pd.Series:
    """What every point is called [P]: numbers, or words where a column holds words or few numbers; NaN where unknown.

    A series is averaged over each point's part of the window, or taken from the nearest sample where none lies in it.
    UnknownName for a name that is not in `label_names`.
    """
    known = label_names(sessions)
    if name not in known:
        raise UnknownName("label to colour by", name, known, where=f"session {sessions[0].id!r}")
    if name == "time":
        return pd.Series(cloud.times, name=name)
    if name == "session":
        return pd.Series(np.array([s.id for s in sessions], object)[cloud.session], name=name)
    found = pd.concat([_labels(s, cloud.times[cloud.session == i], cloud.width, name) for i, s in enumerate(sessions)],
                      ignore_index=True)
    few = min(FEW, sum(len(s.trials) for s in sessions) // 2)           # else every trial would have a name of its own
    if name.startswith("trials.") and pd.api.types.is_numeric_dtype(found) and found.nunique() <= few:
        found = found.map(lambda value: f"{float(value):g}", na_action="ignore").astype(object)
    return found.rename(name)


def _labels(session: Session, times: np.ndarray, width: float, name: str) -> pd.Series:
    group, _, column = name.partition(".")
    if group == "trials" and column in session.trials:
        trial = trial_of(session, times)
        values = session.trials[column]
        values = values.astype(float if pd.api.types.is_numeric_dtype(values) else object)
        return values.take(np.maximum(trial, 0)).where(trial >= 0).reset_index(drop=True)
    whole = name in session.series
    series = session.series.get(name if whole else name.rpartition(".")[0])
    if series is None:
        return pd.Series(np.full(len(times), np.nan))
    columns = [str(c) for c in series.columns or range(series.values.shape[1])]
    last = name.rpartition(".")[2]
    if whole:
        signal = series.values[:, 0]
    elif last in columns:
        signal = series.values[:, columns.index(last)]
    elif last == "speed":
        signal = np.linalg.norm(series.values, axis=1)
    else:
        signal = np.full(len(series.times), np.nan)
    return pd.Series(_averaged(series.times, np.asarray(signal, float), times, width))


def _averaged(clock: np.ndarray, signal: np.ndarray, times: np.ndarray, width: float) -> np.ndarray:
    """The mean of a signal [T] within `width` around each time [P]; the nearest sample where none lies there."""
    if not len(clock):
        return np.full(len(times), np.nan)
    good = np.isfinite(signal)
    sums, counts = (np.append(0.0, np.cumsum(v)) for v in (np.where(good, signal, 0.0), good))
    low, high = np.searchsorted(clock, times - width / 2), np.searchsorted(clock, times + width / 2)
    after = np.clip(np.searchsorted(clock, times), 1, max(len(clock) - 1, 1))
    near = np.clip(after - (times - clock[after - 1] < clock[np.minimum(after, len(clock) - 1)] - times), 0,
                   len(clock) - 1)
    step = np.median(np.diff(clock)) if len(clock) > 1 else width
    lone = np.where(np.abs(clock[near] - times) <= max(step, width), signal[near], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(high > low, (sums[high] - sums[low]) / (counts[high] - counts[low]), lone)


def trials_of(cloud: Cloud, sessions: Sequence[Session]) -> np.ndarray:
    """`trial_of` of every point [P], in its own session."""
    return np.concatenate([trial_of(s, cloud.times[cloud.session == i]) for i, s in enumerate(sessions)])


def trial_of(session: Session, times: np.ndarray) -> np.ndarray:
    """The row of the trial table that each time [P] lies in, the later one where two overlap; −1 for none."""
    start, stop = (session.trials[name].to_numpy(float) for name in ("start", "stop"))
    return row_at(start, stop, times)


def stretches(times: np.ndarray, width: float, gap: float = 0.0) -> np.ndarray:
    """Moments [P] s, each `width` long, as intervals [n, 2]; those less than `gap` apart become one."""
    times = np.sort(times)
    if not len(times):
        return np.empty((0, 2))
    cut = np.flatnonzero(np.diff(times) > width + max(gap, 1e-6))
    first, last = times[np.append(0, cut + 1)], times[np.append(cut, len(times) - 1)]
    return np.stack([first - width / 2, last + width / 2], axis=1)


def spikes_of(session: Session, intervals: np.ndarray, units: np.ndarray,
              columns: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Counts [R, C] of units (rows of the unit table) in intervals [n, 2] laid end to end, about `columns` in all, and
    the first column of each interval [n]."""
    pyramid, total = CountPyramid(session), np.diff(intervals).sum()
    drawn = [pyramid.view(a, b, max(round(columns * (b - a) / total), 1), units).counts for a, b in intervals]
    return np.hstack(drawn), np.cumsum([0, *(counts.shape[1] for counts in drawn[:-1])])


def told(session: Session, cloud: Cloud, own: np.ndarray, trial: np.ndarray, label: pd.Series, rows: np.ndarray) -> str:
    """A choice of points in words, as HTML: how many, in which trials, and what they are called beside all others.

    rows: of the cloud [n]; own: those that lie in `session`, and trial: the trial of each of these; label: of all.
    """
    trials = np.unique(trial[trial >= 0])
    listed = ", ".join(map(str, trials[:12])) + (", …" if len(trials) > 12 else "")
    said = [f"<b>{len(rows):,} of {len(cloud.times):,} points</b>",
            *([f"{len(own):,} of them in {escape(session.id)}"] if len(own) < len(rows) else []),
            f"{len(trials):,} of {len(session.trials):,} trials{': ' + listed if len(trials) else ''}"]
    here, everywhere = label.iloc[rows].dropna(), label.dropna()
    if len(here) and pd.api.types.is_numeric_dtype(here):
        said.append(f"{escape(label.name)}: median {here.median():.3g} (of all {everywhere.median():.3g})")
    elif len(here):
        part, whole = here.value_counts(normalize=True)[:4], everywhere.value_counts(normalize=True)
        said.append(f"{escape(label.name)}: " + ", ".join(
            f"{escape(str(name))} {100 * share:.0f} % (of all {100 * whole[name]:.0f} %)"
            for name, share in part.items()))
    return " · ".join(said)
