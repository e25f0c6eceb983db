"""Whether arrays can be one recording: every way in which they cannot, told in one sentence.

`Session` asks here while it is made: first for arrays of the right type and shape, then for sorted times, known units,
and times that can be seconds. Everything raises BadRecording with the session's id, what was wrong, where, what to do.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import BadRecording

if TYPE_CHECKING:
    from workbench.session import Session

LONGEST = 48 * 3600                                                     # s, of any one recording
SLOWEST = 0.05                                                          # spikes/s of the busiest of several units


def numbers(session: Session, name: str, dtype: type) -> np.ndarray:
    """The field as one array of numbers; a memory-mapped array of that type is not copied."""
    try:
        given = np.asarray(getattr(session, name))
        with np.errstate(invalid="ignore"):
            found = given.astype(dtype, copy=False)
    except (TypeError, ValueError, OverflowError):
        raise BadRecording(f"{session.id}: {name} must be one flat list of numbers; where there is one list a unit, "
                           "concatenate them and sort by time") from None
    if np.dtype(dtype).kind == "i" and given.dtype != dtype and not np.array_equal(given, found):
        raise BadRecording(f"{session.id}: {name} must be whole numbers, rows of the unit table counted from 0")
    return found


def series_of(session: Session, name: str) -> tuple[np.ndarray, np.ndarray, str, tuple[str, ...]]:
    """times [T], values [T, D], unit of measure and column names of the series."""
    times, values, unit, columns = (*session.series[name], "", ())[:4]
    try:
        times, values = np.asarray(times, np.float64), np.asarray(values)
    except (TypeError, ValueError):
        raise BadRecording(f"{session.id}: series {name!r} is not made of plain numbers; give times [T] and values "
                           "[T, D]") from None
    if values.ndim != 2 or times.shape != values.shape[:1] or values.dtype.kind not in "biuf":
        raise BadRecording(f"{session.id}: series {name!r} has times {times.shape} and {values.dtype} values "
                           f"{values.shape}; give numbers, times [T] and values [T, D]")
    if len(columns) not in (0, values.shape[1]):
        raise BadRecording(f"{session.id}: series {name!r} has {values.shape[1]} columns and {len(columns)} column "
                           "names; give one name a column, or none")
    return times, values, unit, tuple(columns)


def intervals_of(session: Session) -> np.ndarray:
    """The valid intervals [n, 2], sorted and disjoint."""
    try:
        intervals = np.asarray(session.intervals, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise BadRecording(f"{session.id}: intervals must be [start, stop] rows in seconds") from None
    if not (np.isfinite(intervals).all() and (np.diff(intervals) >= 0).all()):
        raise BadRecording(f"{session.id}: an interval ends before it starts or is not finite; give [start, stop] rows "
                           "in seconds")
    early = np.flatnonzero(intervals[1:, 0] < intervals[:-1, 1])
    if len(early):
        raise BadRecording(f"{session.id}: interval {early[0] + 1} starts before interval {early[0]} ends; give sorted "
                           "intervals that do not overlap")
    return intervals


def check(session: Session) -> None:
    """Units with unique ids, sorted finite spikes of known units, increasing series, tables with start and stop."""
    name, ids = session.id, session.units.get("id")
    if ids is None:
        raise BadRecording(f"{name}: the unit table has no column 'id'; give every unit an id unique in the session")
    if ids.duplicated().any():
        raise BadRecording(f"{name}: two units share the id {ids[ids.duplicated()].iloc[0]!r}; ids must be unique in a "
                           "session")
    _check_spikes(session)
    for key, series in session.series.items():
        if not (np.isfinite(series.times).all() and (series.times[1:] > series.times[:-1]).all()):
            raise BadRecording(f"{name}: the times of series {key!r} do not increase; sort them and drop repeats")
        _check_span(f"{name}: the times of series {key!r}", series.times, session.spike_times)
    for key in ("trials", "stimuli"):
        table = getattr(session, key)
        if not {"start", "stop"} <= set(table.columns):
            raise BadRecording(f"{name}: the table {key!r} needs the columns 'start' and 'stop', in seconds")
        try:
            start, stop = (table[side].to_numpy(np.float64, na_value=np.nan) for side in ("start", "stop"))
        except (TypeError, ValueError):
            raise BadRecording(f"{name}: start and stop of {key} must be numbers, in seconds") from None
        _check_span(f"{name}: the start times of {key}", start, session.spike_times)
        back = np.flatnonzero(stop < start)
        if len(back):
            raise BadRecording(f"{name}: {len(back):,} of {len(table):,} rows of {key} stop before they start (row "
                               f"{back[0]} at {stop[back[0]]:.6g} s, having started at {start[back[0]]:.6g} s); stop "
                               "is a time in seconds, no duration")


def warn(session: Session) -> None:
    """Tell of clocks that never meet, which is no error: a part of a recording may have no spikes, or no trials."""
    valid = session.intervals
    starts = {"spikes": session.spike_times, "trials": np.sort(session.trials["start"].to_numpy(np.float64)),
              "stimuli": np.sort(session.stimuli["start"].to_numpy(np.float64))}
    for what, start in starts.items():
        if len(valid) and len(start) and not np.diff(np.searchsorted(start, valid)).any():
            warnings.warn(f"{session.id}: none of {len(start):,} {what} begins in the valid recording, "
                          f"{valid[0, 0]:.6g} to {valid[-1, 1]:.6g} s; they may be on another clock, or in "
                          "milliseconds", stacklevel=4)


def _check_span(what: str, times: np.ndarray, spikes: np.ndarray) -> None:
    times = times[np.isfinite(times)]
    span = float(np.ptp(times)) if len(times) else 0.0
    other = float(spikes[-1] - spikes[0]) if len(spikes) >= 100 else 0.0
    if span > LONGEST or (other > 0 and span > 500 * other):            # a thousand, give or take
        beside = "over 48 hours" if span > LONGEST else f"where spikes span {other:,.1f} s"
        raise BadRecording(f"{what} span {span:,.0f} 's', {beside}, so they are probably samples or milliseconds; "
                           "divide them by the sampling rate, or by 1000, to have seconds")


def _check_spikes(session: Session) -> None:
    name, times, rows, n = session.id, session.spike_times, session.spike_units, len(session.units)
    if times.ndim != 1 or times.shape != rows.shape:
        raise BadRecording(f"{name}: spike_times {times.shape} and spike_units {rows.shape} must be two lists of the "
                           "same length")
    if not len(times):
        return
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise BadRecording(f"{name}: {len(bad):,} of {len(times):,} spike times are not finite (the first at spike "
                           f"{bad[0]:,}, of unit row {rows[bad[0]]}); remove them")
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        i = int(back[0]) + 1
        raise BadRecording(f"{name}: spike times are not sorted ({times[i]:.6g} s follows {times[i - 1]:.6g} s at "
                           f"spike {i:,}); sort them, and the unit of each with them, by time")
    if rows.min() < 0 or rows.max() >= n:
        raise BadRecording(f"{name}: spikes name unit row {rows.min() if rows.min() < 0 else rows.max()}, but the unit "
                           f"table has {n} rows, counted from 0")
    _check_seconds(session)


def _check_seconds(session: Session) -> None:
    """Samples and milliseconds make whole numbers, sessions of days, or units that fire far too slowly."""
    times, rows = session.spike_times, session.spike_units
    span = float(times[-1] - times[0])
    sample = times[:10_000]
    counts = np.bincount(rows, minlength=len(session.units))
    busy = [unit for unit in np.argsort(-counts)[:5] if counts[unit] >= 200]
    gap = min((float(np.diff(times[rows == unit]).min()) for unit in busy), default=0.0)
    if span > LONGEST:
        sign = f"they span {span:,.0f} 's', over 48 hours"
    elif len(times) >= 100 and span > 0 and (sample == np.floor(sample)).all():
        sign = "all of them are whole numbers"
    elif gap >= 0.5:
        sign = f"no unit fires twice within {gap:.3g} 's'"
    elif len(times) >= 100 and (longest := _longest(session)) and span > 500 * longest:      # a thousand, give or take
        sign = f"they span {span:,.0f} 's' where all else spans {longest:,.1f} s"
    elif len(busy) == 5 and counts.max() < SLOWEST * span:
        sign = f"the busiest of {len(counts)} units fires {counts.max() / span:.2g} times a 'second'"
    else:
        return
    raise BadRecording(f"{session.id}: the spike times are probably samples or milliseconds, not seconds ({sign}); "
                       "divide them by the sampling rate, or by 1000")


def _longest(session: Session) -> float:
    """The longest time that a series, the trials or the valid intervals span."""
    spans = [float(np.ptp(s.times)) for s in session.series.values() if len(s.times)]
    if session.intervals is not None:
        spans += [float(np.ptp(intervals_of(session)))] if len(session.intervals) else []
    starts = session.trials["start"].to_numpy(np.float64, na_value=np.nan) if "start" in session.trials else np.empty(0)
    starts = starts[np.isfinite(starts)]
    return max([*spans, float(np.ptp(starts)) if len(starts) > 1 else 0.0], default=0.0)
