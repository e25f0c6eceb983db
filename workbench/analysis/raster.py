"""Spike counts on the grid of a picture, units x time, at any zoom in constant time.

Times are sorted, so every pixel column is a slice of the spikes, found by binary search:

    few spikes in view   →  exact: each spike counted in its own pixel column
    many                 →  a pyramid of counts [units, bins], each level half as many bins as the one below

A row of the picture is a unit, or a whole number of neighbouring units where there are more units than pixels; a column
of the pyramid is a whole number of bins. Rasterising points on both axes (`datashader.Canvas.points`) would give rows a
fractional number of pixels high, hence bands, and would scan every spike at every redraw. What datashader does better
than anything here is shading: `shade` equalises the histogram of counts with it, so that slow units stay visible beside
fast ones.

Beside the spikes: at most 4 bytes a spike, and none below `exact_spikes`. Of a recording whose spikes are mapped from a
file they are kept in the cache and mapped the next time, so that a hundred million spikes need neither memory nor time.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.cache import derived, mapped_from
from workbench.errors import UnknownName
from workbench.session import Session

_BLOCK = 500_000                                                        # spikes counted at once: fits the cache


class View(NamedTuple):
    """Counts as drawn. `start`, `stop`: edges of the grid in seconds, rounded out to whole bins where it is binned."""

    counts: np.ndarray                                                  # [R, C] spikes, row 0 is the first of the order
    start: float
    stop: float
    exact: bool                                                         # each spike in its own column; else from bins
    units_per_row: int

    @property
    def bin_size(self) -> float:
        """Width of one column, in seconds."""
        return (self.stop - self.start) / max(self.counts.shape[1], 1)

    @property
    def spikes(self) -> int:
        """Spikes in the rows drawn."""
        return int(self.counts.sum())

    @property
    def tells_spikes_apart(self) -> bool:
        """Whether no cell drawn holds two spikes, or cells are too narrow (5 ms) for it to matter."""
        return self.counts.max(initial=0) <= 1 or self.bin_size <= 0.005


class CountPyramid:
    """Counts of a session's spikes for any window and any order of units.

    session: what to count. exact_spikes: views with at most so many spikes are counted exactly.
    """

    def __init__(self, session: Session, exact_spikes: int = 1_000_000):
        self.times, self.units = session.spike_times, session.spike_units
        self.n_units, self.exact_spikes = len(session.units), exact_spikes
        ends = [(session.start, session.stop)]
        if len(self.times):
            ends.append((float(self.times[0]), float(np.nextafter(self.times[-1], np.inf))))
        self.start, self.stop = min(a for a, _ in ends), max(b for _, b in ends)

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Counts [N, bins] uint32, finest first; empty where every view is exact."""
        if len(self.times) <= self.exact_spikes:
            return []
        widths = [max(1, len(self.times) // (2 * self.n_units))]        # two spikes a cell: 4 bytes a spike in all
        while widths[-1] > 1:
            widths.append(-(-widths[-1] // 2))
        ends = [self.n_units * end for end in accumulate(widths, initial=0)]
        split = lambda flat: [flat[a:b].reshape(self.n_units, -1) for a, b in pairwise(ends)]

        def made() -> np.ndarray:
            flat = np.empty(ends[-1], np.uint32)
            self._count_levels(split(flat))
            return flat

        source = mapped_from(self.times)
        known = source is not None and source.is_file()                 # not removed by whoever converted it anew
        return split(made() if not known else derived("pyramids", source, self._key(source), made))

    def _count_levels(self, levels: list[np.ndarray]) -> None:
        bins = levels[0].shape[1]
        edges, step = np.linspace(self.start, self.stop, bins + 1), max(1, bins * _BLOCK // len(self.times))
        for a in range(0, bins, step):
            b = min(a + step, bins)
            levels[0][:, a:b] = self._count(edges[a:b + 1])
        for below, level in pairwise(levels):
            level[:] = below[:, ::2]
            level[:, :below.shape[1] // 2] += below[:, 1::2]

    def _key(self, source: Path) -> str:
        """Of the file, of which part of it these spikes are, of a thousand pieces of them, and of this code."""
        about = source.stat()
        places = np.linspace(0, max(len(self.times) - 512, 0), 1024).astype(int)
        found = hashlib.sha256(Path(__file__).read_bytes())
        found.update(repr((about.st_size, about.st_mtime_ns, len(self.times), self.n_units, self.start,
                           self.stop)).encode())
        for values in (self.times, self.units):
            found.update(np.concatenate([values[i:i + 512] for i in places]).tobytes())
        return found.hexdigest()[:16]

    @property
    def bin_size(self) -> float:
        """Width of the finest bins in seconds; 0 where every view is exact."""
        return (self.stop - self.start) / self.levels[0].shape[1] if self.levels else 0.0

    def view(self, start: float, stop: float, columns: int = 1000, order: np.ndarray | None = None,
             rows: tuple[int, int] | None = None, max_rows: int | None = None) -> View:
        """Counts in [start, stop) seconds on at most `columns` pixel columns.

        order: units from the first row to the last, [n] rows of the unit table (all, in table order).
        rows: the part of `order` in view, (first, last) half-open. max_rows: pixel rows there are.
        """
        start, stop = max(start, self.start), min(stop, self.stop)
        if not start < stop:
            start, stop = self.start, max(self.stop, self.start + 1e-3)
        order = np.arange(self.n_units) if order is None else np.asarray(order)
        first, last = rows or (0, len(order))
        shown = order[max(first, 0):max(last, 0)]
        per_row = max(1, -(-len(shown) // max_rows)) if max_rows else 1
        pixel = (stop - start) / columns
        low, high = np.searchsorted(self.times, [start, stop])
        exact = high - low <= self.exact_spikes or pixel < self.bin_size
        if exact:
            counts = self._count(np.linspace(start, stop, columns + 1))
        else:
            counts, start, stop = self._from_levels(start, stop, pixel)
        drawn = counts[shown]
        if per_row > 1:
            drawn = np.add.reduceat(drawn, np.arange(0, len(shown), per_row), axis=0)
        return View(drawn, start, stop, bool(exact), per_row)

    def _count(self, edges: np.ndarray) -> np.ndarray:
        """Spikes of every unit between neighbouring `edges` [C + 1], half-open: [N, C] uint32."""
        columns = len(edges) - 1
        bounds = np.searchsorted(self.times, edges)
        column = np.repeat(np.arange(columns), np.diff(bounds))
        cell = self.units[bounds[0]:bounds[-1]].astype(np.int64) * columns + column
        return np.bincount(cell, minlength=self.n_units * columns).reshape(self.n_units, columns).astype(np.uint32)

    def _from_levels(self, start: float, stop: float, pixel: float) -> tuple[np.ndarray, float, float]:
        """The finest level whose bins are no narrower than a pixel, and the edges of what it covers."""
        level = int(np.clip(np.ceil(np.log2(pixel / self.bin_size)), 0, len(self.levels) - 1))
        counts, width = self.levels[level], self.bin_size * 2**level
        a = int((start - self.start) / width)
        b = min(int(np.ceil((stop - self.start) / width)), counts.shape[1])
        return counts[:, a:b], self.start + a * width, self.start + b * width


def population_rate(times: np.ndarray, intervals: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Spikes per observed second in each bin between neighbouring `edges` [C + 1]: [C]; NaN where none is observed.

    times: of all units' spikes, sorted. intervals: [K, 2] observed seconds, sorted; spikes outside them do not count.
    """
    cuts = np.union1d(edges, np.clip(intervals, edges[0], edges[-1]))
    middle = (cuts[:-1] + cuts[1:]) / 2
    before = np.searchsorted(intervals[:, 0], middle, "right")          # intervals that begin before it
    seen = middle < np.append(-np.inf, intervals[:, 1])[before]
    column = np.maximum(np.searchsorted(edges, middle) - 1, 0)
    seconds = np.bincount(column, np.diff(cuts) * seen, len(edges) - 1)
    spikes = np.bincount(column, np.diff(np.searchsorted(times, cuts)) * seen, len(edges) - 1)
    enough = seconds > 1e-3 * np.diff(edges)                            # no rate from an edge that rounding moved
    return np.divide(spikes, seconds, out=np.full(len(edges) - 1, np.nan), where=enough)


def shade(counts: np.ndarray, steps: int = 32) -> np.ndarray:
    """Shades of `counts`, uint16: 0 for no spike, else 1 (few) to `steps` - 1 (most), by equalised histogram."""
    from datashader.transfer_functions import eq_hist  # a second to import, which only drawing should cost

    silent = counts == 0
    if silent.all():
        return np.zeros(counts.shape, np.uint16)
    rank, _ = eq_hist(counts, silent)                                   # (0, 1], NaN where silent
    return np.where(silent, 0, np.ceil(np.nan_to_num(rank) * (steps - 1))).astype(np.uint16)


def envelope(times: np.ndarray, values: np.ndarray, start: float, stop: float,
             columns: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """A line [T, D] for a plot `columns` pixels wide: every sample, or the minimum and maximum of each pixel column.

    Returns (times [K], values [K, D]) with K at most 2 `columns` + 2. Columns without a sample are NaN: a gap.
    """
    low, high = np.searchsorted(times, [start, stop])
    low, high = max(low - 1, 0), min(high + 1, len(times))              # so that lines reach the edges of the plot
    times, values = times[low:high], np.asarray(values[low:high], float)
    if len(times) <= 2 * columns:
        gaps = np.flatnonzero(np.diff(times) > 5 * np.median(np.diff(times))) if len(times) > 2 else np.empty(0, int)
        return np.insert(times, gaps + 1, times[gaps]), np.insert(values, gaps + 1, np.nan, axis=0)
    edges = np.linspace(times[0], np.nextafter(times[-1], np.inf), columns + 1)
    bounds = np.searchsorted(times, edges)
    some = np.diff(bounds) > 0
    firsts = bounds[:-1][some]
    out = np.full((columns, 2, values.shape[1]), np.nan)
    out[some, 0] = np.fmin.reduceat(values, firsts, axis=0)
    out[some, 1] = np.fmax.reduceat(values, firsts, axis=0)
    at = edges[:-1, None] + np.diff(edges)[:, None] * np.array([0.25, 0.75])
    return at.reshape(-1), out.reshape(columns * 2, -1)


def resample(times: np.ndarray, values: np.ndarray, start: float, stop: float, columns: int = 1000) -> np.ndarray:
    """Mean of `values` [T, D] in each of `columns` equal parts of [start, stop): [columns, D].

    A part shorter than the time between two samples takes the sample before it; NaN outside the recording, in gaps
    and where no sample is a number.
    """
    edges = np.linspace(start, stop, columns + 1)
    bounds = np.searchsorted(times, edges)
    low, high = max(bounds[0] - 1, 0), bounds[-1]
    times, values, bounds = times[low:high], np.asarray(values[low:high], float), bounds - low
    out = np.full((columns, values.shape[1]), np.nan)
    if not len(times):
        return out
    held = np.maximum(bounds[1:] - 1, 0)
    near = (bounds[1:] > 0) & (edges[1:] - times[held] < 5 * (np.median(np.diff(times)) if len(times) > 1 else np.inf))
    out[near] = values[held[near]]
    some = np.diff(bounds) > 0
    if some.any():
        finite, firsts = np.isfinite(values), bounds[:-1][some]
        sums, number = (np.add.reduceat(each, firsts, axis=0) for each in (np.where(finite, values, 0), finite * 1))
        out[some] = np.divide(sums, number, out=np.full(sums.shape, np.nan), where=number > 0)
    return out


def unit_columns(session: Session) -> dict[str, pd.Series]:
    """What units can be sorted and coloured by: region, rate (spikes/s), and every plain column of the unit table."""
    columns = {"region": session.units["region"].astype(str), "rate": pd.Series(session.rates())}
    for name, values in session.units.items():
        if name not in columns and (pd.api.types.is_numeric_dtype(values) or all(isinstance(v, str) for v in values)):
            columns[str(name)] = values
    return columns


def sort_units(session: Session, by: str = "table order", columns: dict[str, pd.Series] | None = None) -> np.ndarray:
    """Rows of the unit table [N], first row of the raster first; ties keep the order of the table.

    columns: those of `unit_columns`, where they are known already, for rates of a hundred million spikes take a second.
    Names run from A to Z, the numbers in them by value (unit 9 before unit 10), and depth from the surface down; of any
    other number the largest is on top, unknown ones last.
    """
    if by == "table order":
        return np.arange(len(session.units))
    columns = columns or unit_columns(session)
    if by not in columns:
        raise UnknownName("unit column", by, ["table order", *columns], where=f"session {session.id!r}")
    values = columns[by].reset_index(drop=True)
    if not pd.api.types.is_numeric_dtype(values):
        return np.array(sorted(values.index, key=lambda row: natural_order(values[row])), int)
    return values.sort_values(kind="stable", ascending=by in ("depth", "id")).index.to_numpy()


def natural_order(name: str) -> list:
    """What to sort names by so that the numbers in them count: "unit 9" comes before "unit 10"."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(name)))]
