"""One recording as flat, sorted arrays: the one shape that every source ends in and every model starts from.

    spikes   spike_times [S] seconds, sorted · spike_units [S] rows of `units`
    units    one row a unit: id, region, and whatever quality metrics the source has
    series   name → Series(times [T], values [T, D], unit of measure): behaviour, or dF/F with one column a cell
    tables   trials, stimuli: one row an event, with start and stop
    valid    intervals [n, 2]: where the recording is to be trusted

Times are float64 seconds on the session's own clock. Numpy and pandas only, so that looking at a recording never
waits for torch. Files: `workbench.sources.nwb` and `workbench.sources.hdf5`, reached through the methods here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.errors import BadRecording, UnknownName
from workbench.validity import check, intervals_of, numbers, series_of, warn


class Series(NamedTuple):
    """A signal beside the spikes. times [T] seconds, increasing; values [T, D]; unit of measure; column names.

    Columns named as the units' ids (dF/F, one column a cell) are selected with the units.
    """

    times: np.ndarray
    values: np.ndarray
    unit: str = ""
    columns: tuple[str, ...] = ()

    @property
    def interval(self) -> float:
        """Median time between two samples, in seconds, to the nanosecond."""
        return round(float(np.median(np.diff(self.times))), 9) if len(self.times) > 1 else float("nan")

    @property
    def rate(self) -> float | None:
        """Samples per second where every sample lies on a regular grid, to a millionth of its step; else None."""
        n = len(self.times)
        if n < 2 or not self.times[-1] > self.times[0]:
            return None
        measured = (n - 1) / float(self.times[-1] - self.times[0])
        for rate in (float(f"{measured:.9g}"), measured):               # 19.99999999998 was meant as 20
            if (np.abs((self.times - self.times[0]) * rate - np.arange(n)) < 1e-6).all():
                return rate
        return None


def _no_events() -> pd.DataFrame:
    return pd.DataFrame({"start": np.empty(0), "stop": np.empty(0)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """One recording. Frozen: every method that changes something returns a new session.

    Raises BadRecording, in one sentence, for spikes that are unsorted, not finite, of unknown units, or whose times
    cannot be seconds. `checked` spares that scan to whoever knows that the arrays come from a valid session.
    """

    id: str
    spike_times: np.ndarray                                             # [S] float64 seconds, sorted
    spike_units: np.ndarray                                             # [S] int32 rows of `units`
    units: pd.DataFrame                                                 # id, region, quality metrics
    intervals: np.ndarray | None = None                                 # [n, 2] seconds; None: first to last sample
    series: Mapping[str, Series] = field(default_factory=dict)
    trials: pd.DataFrame = field(default_factory=_no_events)            # start, stop, the source's columns
    stimuli: pd.DataFrame = field(default_factory=_no_events)           # the same; `image` indexes `images`
    load_images: Callable[[], np.ndarray] | None = None                 # → [n, height, width(, 3)] uint8
    dataset: str = ""
    subject: str = ""
    species: str = ""
    task: str = ""
    license: str = ""
    citation: str = ""
    description: str = ""
    simulated: bool = False                                             # shown wherever the session is shown
    resolution: float = 0.0                                             # spike times know nothing finer, s; 0: unknown
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)       # a simulation's ground truth
    checked: InitVar[bool] = False

    def __post_init__(self, checked: bool):
        def put(name, value):
            object.__setattr__(self, name, value)

        for name in ("units", "trials", "stimuli"):
            if not isinstance(getattr(self, name), pd.DataFrame):
                raise BadRecording(f"{self.id}: {name} must be a pandas DataFrame, one row each, not a "
                                   f"{type(getattr(self, name)).__name__}")
        put("spike_times", numbers(self, "spike_times", np.float64))
        put("spike_units", numbers(self, "spike_units", np.int32))
        put("units", self.units.reset_index(drop=True) if checked else _unit_table(self.units))
        put("trials", self.trials.reset_index(drop=True))
        put("stimuli", self.stimuli.reset_index(drop=True))
        put("series", dict(self.series) if checked else {n: Series(*series_of(self, n)) for n in self.series})
        if not checked:
            check(self)
        if self.intervals is None:
            put("intervals", _extent(self))
        put("intervals", intervals_of(self))
        if not checked:
            warn(self)

    def __repr__(self) -> str:
        regions = self.units["region"].nunique()
        series = ", ".join(f"{n} [{s.values.shape[1]}]" for n, s in self.series.items()) or "no series"
        return (f"Session {self.id!r}{' (simulated)' if self.simulated else ''}: {len(self.units):,} units in "
                f"{regions} region{'s' * (regions != 1)}, {len(self.spike_times):,} spikes, {self.duration:,.1f} s; "
                f"{series}; {len(self.trials):,} trials")

    @property
    def start(self) -> float:
        return float(self.intervals[0, 0]) if len(self.intervals) else 0.0

    @property
    def stop(self) -> float:
        return float(self.intervals[-1, 1]) if len(self.intervals) else 0.0

    @property
    def duration(self) -> float:
        """Seconds of valid recording."""
        return float((self.intervals[:, 1] - self.intervals[:, 0]).sum())

    @property
    def images(self) -> np.ndarray | None:
        """The stimulus pictures [n, height, width(, 3)], read when asked for; None where there are none."""
        return self.load_images() if self.load_images else None

    def rates(self) -> np.ndarray:
        """Mean firing rate of every unit over the valid recording, spikes/s [N]."""
        valid, step, spikes = self.spike_units[inside(self.spike_times, self.intervals)], 10_000_000, 0
        for first in range(0, max(len(valid), 1), step):                # a copy of 8 bytes a spike would be made
            spikes = spikes + np.bincount(valid[first:first + step], minlength=len(self.units))
        return spikes / max(self.duration, 1e-9)

    def counts(self, bin_size: float) -> Series:
        """Spikes of every unit in bins of `bin_size` seconds; see `workbench.binning.counts`."""
        from workbench.binning import counts
        return counts(self, bin_size)

    def get_series(self, name: str) -> Series:
        """The series of that name, or the events or pictures that one such as "trials.go_cue_time" or "pictures:tiny"
        stands for (see `workbench.conditions`); UnknownName lists those that are there.
        """
        if name not in self.series and name.startswith("pictures:"):
            from workbench.images.embedding import of_session
            return of_session(self, name.removeprefix("pictures:"))
        if name not in self.series and name.startswith(("trials.", "stimuli.")):
            from workbench.conditions import events
            return events(self, name)
        if name not in self.series:
            raise UnknownName("series", name, self.series, where=f"session {self.id!r}")
        return self.series[name]

    def between(self, start: float, stop: float) -> Session:
        """The part of the session in [start, stop), on the same clock."""
        return self.within(np.array([[start, stop]]))

    def within(self, intervals: np.ndarray) -> Session:
        """The part of the session inside `intervals` [n, 2], sorted and disjoint. All units stay, spiking or not.

        Trials and stimuli stay only where they lie wholly inside one interval.
        """
        intervals = np.asarray(intervals, np.float64).reshape(-1, 2)
        valid = overlap(self.intervals, intervals)
        if not len(valid):
            raise BadRecording(f"{self.id}: no valid recording inside {intervals.round(3).tolist()} s; it is valid "
                               f"from {self.start:.3f} to {self.stop:.3f} s")
        keep = inside(self.spike_times, intervals)
        cut = {}
        for name, s in self.series.items():
            rows = inside(s.times, intervals)
            cut[name] = s._replace(times=s.times[rows], values=s.values[rows])
        return replace(self, spike_times=self.spike_times[keep], spike_units=self.spike_units[keep], intervals=valid,
                       series=cut, trials=_wholly_inside(self.trials, intervals),
                       stimuli=_wholly_inside(self.stimuli, intervals), checked=True)

    def select(self, units) -> Session:
        """The session with only some units, in table order: a boolean mask, row numbers, ids, or a query of `units`.

        `truth` stays whole, in the order of the units that the recording was made with.

        >>> session.select("region == 'M1' and firing_rate > 1")
        """
        rows = unit_rows(self.units, units, self.id)
        new = np.full(len(self.units), -1, np.int32)
        new[rows] = np.arange(len(rows), dtype=np.int32)
        keep = new[self.spike_units] >= 0
        ids = tuple(self.units["id"])
        cut = {name: s._replace(values=s.values[:, rows], columns=tuple(ids[row] for row in rows))
               if ids and tuple(s.columns) == ids else s for name, s in self.series.items()}
        return replace(self, spike_times=self.spike_times[keep], spike_units=new[self.spike_units[keep]],
                       units=self.units.iloc[rows], series=cut, checked=True)

    def at_rates(self, rates: np.ndarray, own: np.ndarray | None = None, most: float = 4.0) -> Session:
        """The session as if its units fired at mean `rates` [N] spikes/s, for a model that knows them from another day.

        The same neuron on the same electrode gives several times more or fewer spikes on another day, for no reason
        that has to do with behaviour; a model takes that for activity. Here a unit that fires too much loses spikes in
        turn, of one that fires too little every spike is taken several times, `most` at most, and what is missing
        then is filled with evenly spaced spikes, which say nothing. Nothing is drawn at random, and no label is used.
        own: the units' mean rates here [N], such as those of a part before the held-out time; None: of all of it.

        >>> monday.at_rates(friday.rates())
        """
        own, rates = (np.asarray(r, np.float64) for r in (self.rates() if own is None else own, rates))
        for name, given in (("rates", rates), ("own", own)):
            if given.shape != (len(self.units),) or not (np.isfinite(given) & (given >= 0)).all():
                raise BadRecording(f"{self.id}: {name} are to be one finite number a unit, 0 or more, for "
                                   f"{len(self.units)} units, not {given.size} of shape {given.shape}")
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.minimum(np.where(own > 0, rates / own, 0), most)  # copies of a spike, on average
        times, units, number = self.spike_times[:], self.spike_units[:], np.empty(len(self.spike_units), np.int64)
        size = np.bincount(units, minlength=len(self.units))
        number[np.argsort(units, kind="stable")] = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        upto = lambda n: np.floor(n * each[units] + 0.5 + 1e-9)         # copies of the unit's first n spikes
        copies = (upto(number + 1) - upto(number)).astype(np.int64)
        missing = np.round((rates - each * own).clip(0) * self.duration).astype(np.int64)
        passed = np.concatenate([(np.arange(n) + 0.5) / n * self.duration for n in missing]) if missing.any() else \
            np.empty(0)
        ends = np.cumsum(np.diff(self.intervals)[:, 0])                 # valid time that has passed → the clock
        row = np.minimum(np.searchsorted(ends, passed, side="right"), len(ends) - 1)
        times = np.concatenate([np.repeat(times, copies), self.intervals[row, 1] - (ends[row] - passed)])
        units = np.concatenate([np.repeat(units, copies), np.repeat(np.arange(len(missing), dtype=np.int32), missing)])
        order = np.argsort(times, kind="stable")
        return replace(self, spike_times=times[order], spike_units=units[order], checked=True)

    # Files. Imported where used: a session in memory needs neither pynwb nor h5py.

    @staticmethod
    def from_nwb(path: str | Path, **options) -> Session:
        """Read any NWB file that has a units table (or dF/F); see `workbench.sources.nwb.read`."""
        from workbench.sources import nwb
        return nwb.read(path, **options)

    def to_nwb(self, path: str | Path) -> Path:
        """Write the session as a valid NWB file."""
        from workbench.sources import nwb
        return nwb.write(self, path)

    @staticmethod
    def open(path: str | Path) -> Session:
        """Open a file written by `save` or by torch_brain; the arrays stay on disk until they are touched."""
        from workbench.sources import hdf5
        return hdf5.read(path)

    def save(self, path: str | Path) -> Path:
        """Write the session as HDF5 in torch_brain's layout, in one atomic step."""
        from workbench.sources import hdf5
        return hdf5.write(self, path)

    def to_pynapple(self):
        """The session as pynapple objects: dict of `units` (TsGroup), every series (TsdFrame), trials (IntervalSet)."""
        from workbench.sources import pynapple
        return pynapple.convert(self)


def inside(times: np.ndarray, intervals: np.ndarray) -> np.ndarray | slice:
    """Which of the sorted `times` [T] lie in [start, stop) of any of the sorted, disjoint `intervals` [n, 2].

    A slice where there is one interval, so that nothing is copied and memory-mapped arrays stay on disk.
    """
    edges = np.searchsorted(times, intervals)
    if len(edges) == 1:
        return slice(int(edges[0, 0]), int(edges[0, 1]))
    if not len(edges):
        return slice(0, 0)
    return np.concatenate([np.arange(a, b) for a, b in edges])


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The intervals [n, 2] that lie both in `a` and in `b` (each sorted and disjoint)."""
    if not len(a) or not len(b):
        return np.empty((0, 2))
    first = np.searchsorted(b[:, 1], a[:, 0], side="right")             # the first of b that ends after a starts
    count = np.maximum(np.searchsorted(b[:, 0], a[:, 1], side="left") - first, 0)
    of_a = np.repeat(np.arange(len(a)), count)
    of_b = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    both = np.stack([np.maximum(a[of_a, 0], b[of_b, 0]), np.minimum(a[of_a, 1], b[of_b, 1])], axis=1)
    return both[both[:, 0] < both[:, 1]]


def joined(intervals: np.ndarray) -> np.ndarray:
    """The same time as sorted, disjoint intervals [n, 2], of intervals sorted by their starts: what overlaps or touches
    becomes one."""
    if not len(intervals):
        return intervals
    reach = np.maximum.accumulate(intervals[:, 1])
    first = np.append(True, intervals[1:, 0] > reach[:-1])
    last = np.append(np.flatnonzero(first)[1:] - 1, len(intervals) - 1)
    return np.stack([intervals[first, 0], reach[last]], axis=1)


def _wholly_inside(table: pd.DataFrame, intervals: np.ndarray) -> pd.DataFrame:
    at = np.searchsorted(intervals[:, 0], table["start"].to_numpy(), side="right") - 1
    keep = (at >= 0) & (table["stop"].to_numpy() <= intervals[np.maximum(at, 0), 1])
    return table[keep].reset_index(drop=True)


def _unit_table(units: pd.DataFrame) -> pd.DataFrame:
    units = units.reset_index(drop=True)
    if "id" in units:
        units = units.assign(id=units["id"].astype(str))
    known = units["region"].fillna("unknown").astype(str) if "region" in units else "unknown"
    return units.assign(region=known)


def _extent(session: Session) -> np.ndarray:
    """From the first to the last thing recorded; the last sample counts for one sampling interval."""
    ends = [(t[0], np.nextafter(t[-1], np.inf)) for t in [session.spike_times] if len(t)]
    ends += [(s.times[0], s.times[-1] + (s.interval if len(s.times) > 1 else 0)) for s in session.series.values()
             if len(s.times)]
    return np.array([[min(a for a, _ in ends), max(b for _, b in ends)]]) if ends else np.empty((0, 2))


def unit_rows(table: pd.DataFrame, units, where: str) -> np.ndarray:
    """The rows of a unit table, in its order, that `units` means (see `Session.select`). `where` is named in errors."""
    if isinstance(units, str):
        try:
            return np.flatnonzero(table.eval(units).to_numpy(bool))
        except Exception as error:
            raise BadRecording(f"{where}: cannot select units by {units!r} ({error}); the unit table has columns "
                               f"{', '.join(table.columns)}") from None
    units = np.asarray(units)
    if units.dtype == bool:
        if len(units) != len(table):
            raise BadRecording(f"{where}: a unit mask of {len(units)} for {len(table)} units; give one truth value a "
                               "unit")
        return np.flatnonzero(units)
    if units.dtype.kind in "iu":
        if len(units) and (units.min() < 0 or units.max() >= len(table)):
            raise BadRecording(f"{where}: unit rows run from 0 to {len(table) - 1}, not {units.min()} to "
                               f"{units.max()}")
        return np.unique(units)
    at = {str(u): i for i, u in enumerate(table["id"])}
    for u in units:
        if str(u) not in at:
            raise UnknownName("unit", u, at, where=f"session {where!r}")
    return np.unique(np.array([at[str(u)] for u in units], np.intp))
