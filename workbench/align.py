"""Windows around events: trials lined up on a cue or a movement, answers in fixed windows after stimulus onset.

    trials or stimuli + a column of times → around → windows: one row an event, start and stop in seconds
    windows → counts_in [E, N] · rates_in [E, N] spikes/s · binned [E, N, T] · spikes_in, times relative to the event

`windows["start"]` are also starts for `workbench.batch.Reader.read`, where all windows are equally long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.errors import BadRecording, UnknownName
from workbench.session import Session, inside

# Seconds after stimulus onset in which a visual area answers first, by its latency.
ANSWERS = {"V1": (0.030, 0.080), "V4": (0.060, 0.120), "IT": (0.080, 0.200)}


class Aligned(NamedTuple):
    """Spikes of windows, window after window: times [S] seconds from the event, units [S], rows [S] of the windows."""

    times: np.ndarray
    units: np.ndarray
    rows: np.ndarray


def around(session: Session, column: str = "start", start: float = 0.0, stop: float = 0.5, *, table: str = "trials",
           where: str | None = None) -> pd.DataFrame:
    """Windows [event + start, event + stop) around the times in a column of `trials` or `stimuli`.

    where: only the rows for which this query of the table holds, as in "result == 'R'".

    Returns a DataFrame with the columns event, start, stop, in seconds, its index the rows of the table. Left out, and
    counted in the attribute `left_out`, are rows whose event is missing (NaN) and windows that are not wholly valid
    recording. Raises BadRecording where there are no rows or no window is left, UnknownName for a table or a column
    that is not there.
    """
    if table not in ("trials", "stimuli"):
        raise UnknownName("table of events", table, ("trials", "stimuli"), where=f"session {session.id!r}")
    if not stop > start:
        raise BadRecording(f"{session.id}: a window from {start:g} to {stop:g} s has no length; give start < stop")
    events = getattr(session, table)
    if column not in events or events[column].dtype.kind not in "iuf":
        times = [name for name in events if events[name].dtype.kind in "iuf"]
        raise UnknownName("column of times", column, times, where=f"the {table} of session {session.id!r}")
    if where is not None:
        try:
            events = events.query(where)
        except Exception as error:
            raise BadRecording(f"{session.id}: cannot choose {table} by {where!r} ({error}); the columns are "
                               f"{', '.join(events.columns)}") from None
    if not len(events):
        raise BadRecording(f"{session.id}: it has no {table}" + (f" for which {where!r} holds" if where else ""))
    event = events[column].astype(np.float64)
    windows = pd.DataFrame({"event": event, "start": event + start, "stop": event + stop})
    kept = windows[_wholly_valid(session, windows)]
    if not len(kept):
        raise BadRecording(f"{session.id}: none of {len(windows)} windows from {start:g} to {stop:g} s around "
                           f"{column!r} of the {table} lies wholly in the valid recording ({session.start:.3f} to "
                           f"{session.stop:.3f} s); choose another column, or shorter windows")
    kept.attrs["left_out"] = len(windows) - len(kept)
    return kept


def counts_in(session: Session, windows: pd.DataFrame) -> np.ndarray:
    """Spikes of every unit in every window [E, N] int64."""
    spikes, n = spikes_in(session, windows), len(session.units)
    return np.bincount(spikes.rows * n + spikes.units, minlength=len(windows) * n).reshape(len(windows), n)


def rates_in(session: Session, windows: pd.DataFrame) -> np.ndarray:
    """Firing rate of every unit in every window [E, N], spikes/s.

    >>> rates_in(session, around(session, "start", *ANSWERS["V1"], table="stimuli"))
    """
    return counts_in(session, windows) / (windows["stop"] - windows["start"]).to_numpy()[:, None]


def binned(session: Session, windows: pd.DataFrame, bin_size: float) -> np.ndarray:
    """Spikes in bins of `bin_size` seconds from each window's start [E, N, T] int64.

    BadRecording for windows that are not equally long, or no whole number of bins.
    """
    shortest, longest = (windows["stop"] - windows["start"]).agg(["min", "max"])
    bins = round(longest / bin_size) if bin_size > 0 else 0
    if bins < 1 or bins * bin_size - shortest > 1e-6 or longest - bins * bin_size > 1e-6:
        raise BadRecording(f"{session.id}: bins of {bin_size:g} s do not fill windows of {shortest:g} to {longest:g} "
                           "s; choose a bin size that divides windows of one length")
    spikes, n = spikes_in(session, windows), len(session.units)
    since = spikes.times + (windows["event"] - windows["start"]).to_numpy()[spikes.rows]
    bin_ = np.clip(((since + 1e-9) / bin_size).astype(np.int64), 0, bins - 1)       # a nanosecond: 0.3 is 3 x 0.1
    cells = (spikes.rows * n + spikes.units) * bins + bin_
    return np.bincount(cells, minlength=len(windows) * n * bins).reshape(len(windows), n, bins)


def spikes_in(session: Session, windows: pd.DataFrame) -> Aligned:
    """The spikes of every window, times relative to its event: what a raster lined up on an event shows."""
    first, last = (np.searchsorted(session.spike_times, windows[edge].to_numpy()) for edge in ("start", "stop"))
    many = last - first
    rows = np.repeat(np.arange(len(windows)), many)
    at = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many) + first[rows]
    return Aligned(session.spike_times[at] - windows["event"].to_numpy()[rows], session.spike_units[at], rows)


def _wholly_valid(session: Session, windows: pd.DataFrame) -> np.ndarray:
    """Which windows [E] lie inside one valid interval, to the nanosecond; touching intervals are one."""
    if not len(session.intervals):
        return np.zeros(len(windows), bool)
    starts, stops = session.intervals.T
    apart = np.flatnonzero(starts[1:] > stops[:-1] + 1e-9)
    starts, stops = starts[np.r_[0, apart + 1]], stops[np.r_[apart, len(stops) - 1]]
    start, stop = windows["start"].to_numpy(), windows["stop"].to_numpy()
    inside = np.searchsorted(starts, start + 1e-9, side="right") - 1    # NaN sorts last, and is in none
    return np.isfinite(start) & (inside >= 0) & (stop <= stops[inside] + 1e-9)


def spikes_before(session: Session, times: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Spikes of every unit [W, N] in the last `seconds` of valid recording before each time [W], and how long that is
    [W]: less near the start of the session.
    """
    lengths = np.diff(session.intervals)[:, 0]
    passed = np.stack([lengths.cumsum() - lengths, lengths.cumsum()], axis=1).ravel()
    clock = lambda times: np.interp(times, session.intervals.ravel(), passed)       # seconds of valid recording
    there, far = inside(session.spike_times, session.intervals), passed[-1] + seconds
    spikes = np.sort(session.spike_units[there] * far + clock(session.spike_times[there]))
    unit, stop = np.arange(len(session.units)) * far, clock(times)[:, None]
    start = np.maximum(stop - seconds, 0)
    return np.searchsorted(spikes, unit + stop) - np.searchsorted(spikes, unit + start), (stop - start)[:, 0]


def row_at(start: np.ndarray, stop: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The row of [start, stop) that each time lies in, the one that started last where several do; −1 for none."""
    order = np.argsort(start, kind="stable")
    start, stop, times = start[order], stop[order], np.asarray(times)
    reach = np.append(np.fmax.accumulate(stop), -np.inf)                # of row −1 nothing
    at = np.searchsorted(start[:np.isfinite(start).sum()], times, side="right") - 1
    while (over := ~(times < np.append(stop, np.inf)[at]) & (times < reach[at])).any():
        at = np.where(over, at - 1, at)                                 # one that began before still lasts
    there = (at >= 0) & (times < np.append(stop, -np.inf)[at])
    return np.where(there, np.append(order, -1)[at], -1)
