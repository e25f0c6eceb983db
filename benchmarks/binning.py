"""Spike counts of a whole session in 20 ms bins, against pynapple's `TsGroup.count`, and equal to it spike for spike.

One hour, 200 units at 8 spikes/s. pynapple's objects are made beforehand and are not timed.
"""

import warnings

import numpy as np

from benchmarks.clock import tell
from benchmarks.recordings import poisson


def main(seconds: float = 3600.0, units: int = 200, bin_size: float = 0.02) -> dict[str, float]:
    """Print times and ratios; returns the ratios."""
    session = poisson("binning", units, 8.0, seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = session.to_pynapple()["units"]
    theirs, ours = group.count(bin_size), session.counts(bin_size)
    assert np.array_equal(theirs.values, ours.values), "the counts differ from pynapple's"
    assert np.array_equal(theirs.times(), ours.times), "the bins differ from pynapple's"
    return tell(f"{len(session.spike_times):,} spikes of {units} units in {len(ours.times):,} bins of {bin_size:g} s", {
        "pynapple TsGroup.count": lambda: group.count(bin_size),
        "Session.counts": lambda: session.counts(bin_size)}, repeats=5)


if __name__ == "__main__":
    main()
