"""Spike counts on a regular grid of bins, over a whole session at once.

    spike_times, spike_units, intervals → counts(session, bin_size) → Series: bin centres [T], counts [T, N]

Sorted times make every bin a slice of the spikes: the borders of the bins are looked up in the spikes, not the spikes
in the bins. Bins start at the start of every valid interval, and are those whose centre lies in it (pynapple's rule,
and equal to its `TsGroup.count` for bins of whole nanoseconds), so that the last may reach past its end.
"""

from __future__ import annotations

import numpy as np

from workbench.errors import BadRecording
from workbench.session import Series, Session

DECIMALS = 9                                                            # borders are whole nanoseconds, so that
                                                                        # 3 x 0.1 is 0.3
CELLS = 100_000                                                         # bins x units counted at once: fits the cache


def counts(session: Session, bin_size: float) -> Series:
    """Spikes in bins of `bin_size` seconds: times [T] of the bins' centres, values [T, N] int32, columns the unit ids.

    A spike on a border belongs to the bin that starts there. Raises BadRecording for a bin size that cannot be, or that
    no valid interval has room for.
    """
    if not bin_size >= 10.0 ** -DECIMALS:
        raise BadRecording(f"{session.id}: bins of {bin_size:g} s cannot be; give their length in seconds")
    starts = [_starts(start, stop, bin_size) for start, stop in session.intervals]
    total = sum(map(len, starts))
    if not total:
        longest = float(np.diff(session.intervals).max(initial=0))
        raise BadRecording(f"{session.id}: no valid interval has room for a bin of {bin_size:g} s (the longest lasts "
                           f"{longest:.3f} s); give shorter bins")
    values, done = np.empty((total, len(session.units)), np.int32), 0
    for lefts, (_, stop) in zip(starts, session.intervals, strict=True):
        if len(lefts):
            _count(session, np.append(lefts, round(lefts[-1] + bin_size, DECIMALS)), stop, values[done:])
            done += len(lefts)
    return Series(np.concatenate(starts) + bin_size / 2, values, "spikes", tuple(session.units["id"]))


def _starts(start: float, stop: float, bin_size: float) -> np.ndarray:
    """Where the bins of one interval start [T]."""
    lefts = np.round(start + bin_size * np.arange(int((stop - start) / bin_size) + 2), DECIMALS)
    lefts[0] = start
    return lefts[lefts + bin_size / 2 <= stop]


def _count(session: Session, edges: np.ndarray, stop: float, out: np.ndarray) -> None:
    """Fill the first rows of `out` [>= T, N] with the counts between the `edges` [T + 1], up to `stop`."""
    n, bins, end = len(session.units), len(edges) - 1, int(np.searchsorted(session.spike_times, stop))
    step = max(1, CELLS // max(n, 1))
    blocks = [*range(0, bins, step), bins]
    borders = np.minimum(np.searchsorted(session.spike_times, edges[blocks]), end)
    for first, last, a, b in zip(blocks[:-1], blocks[1:], borders[:-1], borders[1:], strict=True):
        per_bin = np.diff(np.searchsorted(session.spike_times[a:b], edges[first:last + 1]))
        cells = np.repeat(n * np.arange(last - first), per_bin)
        cells += session.spike_units[a:b]
        out[first:last] = np.bincount(cells, minlength=n * (last - first)).reshape(last - first, n)
