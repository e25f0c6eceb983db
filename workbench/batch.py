"""Windows of recordings as one ragged batch: the only thing that models are given.

    spikes   times [S] float32 seconds from each window's start · units [S] columns of the window's unit list
             offsets [B + 1]: window b owns spikes offsets[b] to offsets[b + 1], in time order
    units    window_units [U] rows of the session's unit table, packed by unit_offsets [B + 1]
    windows  session [B] rows of `sessions`; starts [B] float64 seconds on the session's clock; one duration
    targets  name → Target(times [Q], values [Q, D], offsets [B + 1]), packed in the same way

Nothing is padded until a model asks. The ways to make tokens of spikes are views: `spikes` (POYO), `events`
(Neuroformer), `counts` (NDT1), `patches` (NDT2), `neurons` (SPINT, NuCLR).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.errors import BadRecording, UnknownName
from workbench.session import Series, Session


class UnitList(NamedTuple):
    """What a model needs to know of a session: its id, and the id of every unit in table order."""

    id: str
    units: tuple[str, ...]


class Target(NamedTuple):
    """A series inside the windows: times [Q] from each window's start, values [Q, D], offsets [B + 1]."""

    times: Tensor
    values: Tensor
    offsets: Tensor


class Spikes(NamedTuple):
    """One token a spike, packed: times [S], units [S] rows of the packed unit list, windows [S], offsets [B + 1]."""

    times: Tensor
    units: Tensor
    windows: Tensor
    offsets: Tensor


class Events(NamedTuple):
    """Spikes as a marked sequence: units [S], dt [S] seconds since the spike before (or the start), offsets [B + 1]."""

    units: Tensor
    dt: Tensor
    offsets: Tensor


class Targets(dict):
    """Targets by name; UnknownName, in a sentence, for one that the windows were read without."""

    def __missing__(self, name: str):
        raise UnknownName("series", name, self, where="this batch",
                          hint="name it where windows are read: targets= of Reader or RandomWindows")


def _once(make: Callable) -> Callable:
    """Made when first asked for and kept with the batch: a step asks for the same several times."""
    @wraps(make)
    def kept(batch: SpikeBatch, *what):
        if (name := (make.__name__, *what)) not in batch._made:
            with torch.inference_mode(False):                           # whose tensors no gradient could use later
                batch._made[name] = make(batch, *what)
        return batch._made[name]

    return kept


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikeBatch:
    """B windows of one duration, of any sessions. See the module's first lines for the layout.

    A batch never changes, so what its properties say is worked out once and shared: it is not to be changed in place.
    """

    times: Tensor
    units: Tensor
    offsets: Tensor
    session: Tensor
    window_units: Tensor
    unit_offsets: Tensor
    duration: float
    sessions: tuple[UnitList, ...]
    starts: Tensor
    targets: Mapping[str, Target] = field(default_factory=dict)
    _made: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "targets", Targets(self.targets))

    def __len__(self) -> int:
        return len(self.session)

    @property
    def device(self) -> torch.device:
        return self.times.device

    @property
    @_once
    def windows(self) -> Tensor:
        """The window of every spike [S]."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.device), self.offsets.diff())

    @property
    @_once
    def unit_mask(self) -> Tensor:
        """Which columns of the padded views hold a unit [B, N]."""
        sizes = self.unit_offsets.diff()
        return torch.arange(int(sizes.max()), device=self.device) < sizes[:, None]

    @property
    @_once
    def alike(self) -> bool:
        """Whether all windows hold the same units."""
        first, rest = self.window_units[:int(self.unit_offsets[1])], self.unit_offsets.diff()
        return bool(len(first) and (rest == len(first)).all() and (self.session == self.session[0]).all() and
                    (self.window_units.view(len(self), -1) == first).all())

    @property
    @_once
    def present(self) -> tuple[list[UnitList], Tensor]:
        """The sessions of the windows, and for each of `window_units` its place in their lists, end to end [U]."""
        number, which = self.session.unique(return_inverse=True)
        lists = [self.sessions[i] for i in number.tolist()]
        before = torch.tensor([0, *(len(each.units) for each in lists)], device=self.device).cumsum(0)[which]
        return lists, torch.repeat_interleave(before, self.unit_offsets.diff()) + self.window_units

    # Views

    def spikes(self) -> Spikes:
        """One token a spike; `units` indexes `window_units`, so that what belongs to a unit is computed once."""
        windows = self.windows
        return Spikes(self.times, self.unit_offsets[windows] + self.units, windows, self.offsets)

    def events(self) -> Events:
        """The spikes of every window as (unit, time since the spike before)."""
        before = torch.cat([self.times.new_zeros(1), self.times[:-1]]) if len(self.times) else self.times
        first = self.offsets[:-1][self.offsets.diff() > 0]
        before = before.index_fill(0, first, 0.0)
        return Events(self.units, self.times - before, self.offsets)

    def counts(self, bin_size: float) -> Tensor:
        """Spikes per bin [B, N, T] float32, N the most units of any window; `unit_mask` tells padding from silence."""
        return self._counts(bin_size).clone()                           # which who asked may change

    @_once
    def _counts(self, bin_size: float) -> Tensor:
        bins, n = self.bins(bin_size), int(self.unit_offsets.diff().max())
        cell = (self.windows * n + self.units) * bins + self.spike_bins(bin_size)
        return torch.bincount(cell, minlength=len(self) * n * bins).view(len(self), n, bins).float()

    def neurons(self, bin_size: float) -> Tensor:
        """One token a unit: its binned activity over the window, packed [U, T] in the order of `window_units`."""
        bins = self.bins(bin_size)
        cell = self.spikes().units * bins + self.spike_bins(bin_size)
        return torch.bincount(cell, minlength=len(self.window_units) * bins).view(-1, bins).float()

    def patches(self, k: int, bin_size: float) -> Tensor:
        """Counts of k neighbouring units in one bin [B, T, P, k], the last patch filled with silence."""
        counts = self.counts(bin_size)
        fill = -counts.shape[1] % k
        return torch.nn.functional.pad(counts, (0, 0, 0, fill)).unflatten(1, (-1, k)).permute(0, 3, 1, 2)

    def bins(self, bin_size: float) -> int:
        """How many bins of `bin_size` seconds a window has. BadRecording where they do not fill it."""
        bins = round(self.duration / bin_size) if bin_size > 0 else 0
        if bins < 1 or abs(bins * bin_size - self.duration) > 1e-6 * max(self.duration, 1):
            raise BadRecording(f"windows of {self.duration:g} s are no whole number of {bin_size:g} s bins; choose a "
                               "bin size that divides them")
        return bins

    def spike_bins(self, bin_size: float) -> Tensor:
        """The bin of every spike [S]; one on an edge belongs to the later bin."""
        bins = self.bins(bin_size)
        # float32 may have put it a hair before the edge.
        hair = max(1e-5, 1.2e-7 * self.duration / bin_size)
        return (self.times.double() / bin_size + hair).floor().long().clamp_(0, bins - 1)

    # Changes

    def drop(self, mask: Tensor) -> SpikeBatch:
        """The batch without the spikes where `mask` [S] is true: what is hidden leaves no trace."""
        keep = ~mask
        kept = torch.cat([keep.new_zeros(1, dtype=torch.long), keep.long().cumsum(0)])
        return replace(self, times=self.times[keep], units=self.units[keep], offsets=kept[self.offsets])

    def keep_units(self, keep: Tensor) -> SpikeBatch:
        """The batch with only the units where `keep` [U] is true, as if the others had never been recorded."""
        kept = torch.cat([keep.new_zeros(1, dtype=torch.long), keep.long().cumsum(0)])
        tokens = self.spikes()
        batch = self.drop(~keep[tokens.units])
        unit_offsets = kept[self.unit_offsets]
        units = (kept[:-1][tokens.units] - unit_offsets[tokens.windows])[keep[tokens.units]]
        return replace(batch, units=units, window_units=self.window_units[keep], unit_offsets=unit_offsets)

    def take(self, which: Tensor) -> SpikeBatch:
        """The windows `which` [n], in that order, as a batch of their own."""
        spikes, offsets = _taken(self.offsets, which)
        units, unit_offsets = _taken(self.unit_offsets, which)
        targets = {}
        for name, target in self.targets.items():
            rows, rest = _taken(target.offsets, which)
            targets[name] = Target(target.times[rows], target.values[rows], rest)
        return replace(self, times=self.times[spikes], units=self.units[spikes], offsets=offsets, targets=targets,
                       session=self.session[which], starts=self.starts[which], window_units=self.window_units[units],
                       unit_offsets=unit_offsets)

    def add(self, windows: Tensor, units: Tensor, times: Tensor) -> SpikeBatch:
        """The batch with more spikes: the window of each, its unit's column, and seconds from the window's start."""
        windows, times = torch.cat([self.windows, windows]), torch.cat([self.times, times.to(self.times)])
        order = (windows * 2 * self.duration + times.double()).argsort(stable=True)
        offsets = torch.bincount(windows, minlength=len(self)).cumsum(0)
        return replace(self, times=times[order], units=torch.cat([self.units, units])[order],
                       offsets=torch.cat([offsets.new_zeros(1), offsets]))

    def between(self, start: float, stop: float) -> SpikeBatch:
        """The part of every window from `start` to `stop` seconds, as windows of their own. Spikes only, no targets."""
        batch = self.drop((self.times < start) | (self.times >= stop))
        return replace(batch, times=batch.times - start, starts=self.starts + start, duration=stop - start, targets={})

    def jitter(self, shift: Tensor) -> SpikeBatch:
        """The batch with every spike moved by `shift` [S] seconds, kept inside its window and in time order."""
        times = (self.times + shift).clamp(0, np.nextafter(np.float32(self.duration), np.float32(0)))
        order = (self.windows * 2 * self.duration + times.double()).argsort(stable=True)
        return replace(self, times=times[order], units=self.units[order])

    def to(self, device: str | torch.device) -> SpikeBatch:
        """The batch on another device."""
        move = lambda value: value.to(device, non_blocking=True)
        tensors = {name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, targets={k: Target(*map(move, v)) for k, v in self.targets.items()})


def _taken(offsets: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that the windows `which` own, one window after the other, and their offsets."""
    sizes = offsets.diff()[which]
    new = torch.cat([offsets.new_zeros(1), sizes.cumsum(0)])
    rows = torch.arange(int(new[-1]), device=offsets.device)
    return rows + torch.repeat_interleave(offsets[:-1][which] - new[:-1], sizes), new


class Reader:
    """Cuts windows out of sessions: times, units and targets as flat arrays, one copy a window.

    Nothing is read before a window asks for it, so that sessions may stay on disk. Samples of a target that
    are not finite (gaps in the behaviour) are left out. Every session has to have the `targets`; of series named in
    `also` each gives what it has. A series with one column a unit (dF/F) is as wide as the largest session of a
    batch, filled with zeros.
    """

    def __init__(self, sessions: Sequence, targets: Sequence[str] = (), also: Sequence[str] = ()):
        self.lists = tuple(UnitList(s.id, tuple(s.units["id"])) for s in sessions)
        self.spikes = [(np.asarray(s.spike_times), np.asarray(s.spike_units)) for s in sessions]
        self.columns = [np.arange(len(s.units)) for s in sessions]
        series = {name: [s.get_series(name) if name in targets else _if_there(s, name) for s in sessions]
                  for name in (*targets, *also)}
        for name, each in series.items():
            own = [_per_unit(s, one) for s, one in zip(sessions, each, strict=True)]
            widths = {s.values.shape[1] for s in each if s is not _NOTHING}
            if len(widths) > 1 and not all(own):
                raise BadRecording(f"series {name!r} has {sorted(widths)} columns in different sessions; choose "
                                   "sessions that agree, or another series")
        self.targets = {name: [(np.asarray(s.times), np.asarray(s.values)) for s in each]
                        for name, each in series.items()}

    def read(self, session: np.ndarray, starts: np.ndarray, duration: float) -> SpikeBatch:
        """The windows [starts[b], starts[b] + duration) of sessions[session[b]], as a batch."""
        session, starts = np.asarray(session, np.int64), np.asarray(starts, np.float64)
        if not len(starts) or not duration > 0:
            raise BadRecording(f"an empty batch: {len(starts)} windows of {duration:g} s; ask for at least one window "
                               "that lasts longer than 0 s")
        times, units, offsets = _cut(self.spikes, session, starts, duration, np.int64)
        columns = [self.columns[s] for s in session]
        return SpikeBatch(times=times, units=units, offsets=offsets, session=torch.from_numpy(session),
                          window_units=torch.from_numpy(np.concatenate(columns)),
                          unit_offsets=torch.from_numpy(_offsets([len(c) for c in columns])), duration=float(duration),
                          sessions=self.lists, starts=torch.from_numpy(starts),
                          targets={name: _finite(*_cut(series, session, starts, duration))
                                   for name, series in self.targets.items()})


_NOTHING = Series(np.empty(0), np.empty((0, 0)))


def _if_there(session: Session, name: str) -> Series:
    try:
        return session.get_series(name)
    except UnknownName:
        return _NOTHING


def _per_unit(session: Session, series: Series) -> bool:
    """Whether a series has one column a unit, in the order of the unit table."""
    return series is _NOTHING or series.columns == tuple(session.units["id"])


def _cut(sources: list[tuple[np.ndarray, np.ndarray]], session: np.ndarray, starts: np.ndarray,
         duration: float, dtype: type = np.float32) -> tuple[Tensor, Tensor, Tensor]:
    """What the windows hold of (times [T], values [T, …]), one source a session: times from starts, values, offsets.

    Runs are copied, not gathered row by row: windows are contiguous, and concatenation converts as it copies. Each
    window is found by itself, so that windows of many sessions cost what windows of one do.
    """
    times, values, sizes = [], [], []
    for row, edges in zip(session.tolist(), np.stack([starts, starts + duration], 1), strict=True):
        clock, what = sources[row]
        first, last = clock.searchsorted(edges).tolist()
        times.append(clock[first:last])
        values.append(what[first:last])
        sizes.append(last - first)
    widths = [v.shape[1] for v in values if v.ndim == 2]
    if len(set(widths)) > 1:
        values = [np.pad(v, ((0, 0), (0, max(widths) - v.shape[1]))) for v in values]
    times = np.concatenate(times)
    times -= np.repeat(starts, sizes)                                   # before they lose digits as float32
    return torch.from_numpy(times.astype(np.float32)), torch.from_numpy(np.concatenate(values, dtype=dtype)), \
        torch.from_numpy(_offsets(sizes))


def _finite(times: Tensor, values: Tensor, offsets: Tensor) -> Target:
    if torch.isfinite(values.sum()):                                    # one pass says it of nearly every batch
        return Target(times, values, offsets)
    good = torch.isfinite(values).all(1)
    kept = torch.cat([offsets.new_zeros(1), good.long().cumsum(0)])
    return Target(times[good], values[good], kept[offsets])


def _offsets(sizes) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
