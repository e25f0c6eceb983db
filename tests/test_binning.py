"""Counts on a grid are pynapple's, spike for spike, and no spike is lost or counted twice."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.recordings import poisson
from workbench import binning
from workbench.errors import BadRecording
from workbench.session import Session


def spikes_at(times, units, intervals, n=3) -> Session:
    table = pd.DataFrame({"id": [f"u{i}" for i in range(n)]})
    return Session(id="s", spike_times=times, spike_units=units, units=table, intervals=np.array(intervals, float))


def pynapples(session: Session, bin_size: float):
    nap = pytest.importorskip("pynapple")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ep = nap.IntervalSet(session.intervals[:, 0], session.intervals[:, 1])
        trains = {i: nap.Ts(session.spike_times[session.spike_units == i]) for i in range(len(session.units))}
        return nap.TsGroup(trains, time_support=ep).count(bin_size, ep)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), bin_size=st.sampled_from([0.001, 0.02, 0.025, 0.1, 0.7]), grid=st.booleans(),
       gap=st.floats(0.001, 2).map(lambda x: round(x, 3)), length=st.floats(0.8, 9).map(lambda x: round(x, 4)))
def test_counts_and_bins_are_pynapples(seed, bin_size, grid, gap, length):
    """Spikes on a grid of 1 ms lie on the borders of bins, where it matters to whom they belong."""
    random = np.random.default_rng(seed)
    times = np.sort(random.uniform(1, 13, 400))
    times = times.round(3) if grid else times
    intervals = [[1.25, 1.25 + length], [1.25 + length + gap, 20.0]]
    times = times[~np.isin(times, np.ravel(intervals))]                 # pynapple's intervals include their end
    session = spikes_at(times, random.integers(0, 3, len(times)), intervals)
    ours, theirs = session.counts(bin_size), pynapples(session, bin_size)
    np.testing.assert_array_equal(ours.values, theirs.values)
    np.testing.assert_array_equal(ours.times, theirs.times())


def test_blocks_of_bins_join_without_a_seam(monkeypatch):
    session = poisson("many", 30, 20.0, 40.0)
    whole = session.counts(0.02).values
    for cells in (1, 31, 1000):
        monkeypatch.setattr(binning, "CELLS", cells)
        np.testing.assert_array_equal(session.counts(0.02).values, whole)
    assert whole.sum() == len(session.spike_times) and whole.shape == (2000, 30)


def test_counts_are_those_of_a_histogram_of_every_unit():
    session = poisson("many", 5, 20.0, 40.0)
    counts = session.counts(0.25)
    for i in range(5):
        expected, _ = np.histogram(session.spike_times[session.spike_units == i], np.arange(161) * 0.25)
        np.testing.assert_array_equal(counts.values[:, i], expected)
    assert counts.columns == tuple(session.units["id"]) and counts.times[0] == 0.125


def test_a_spike_on_a_border_opens_the_next_bin():
    session = spikes_at([0.0, 0.3, 0.6], [0, 0, 0], [[0, 0.9]])         # 3 x 0.1 is 0.30000000000000004
    assert session.counts(0.1).values[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0]


def test_nothing_outside_the_valid_intervals_is_counted():
    session = spikes_at([0.5, 1.5, 2.5, 3.5], [0, 1, 2, 0], [[1, 2], [3, 4]])
    counts = session.counts(0.5)
    assert counts.times.tolist() == [1.25, 1.75, 3.25, 3.75] and counts.values.sum(axis=0).tolist() == [1, 1, 0]


def test_selected_units_are_columns_of_the_whole():
    session = poisson("many", 6, 20.0, 10.0)
    np.testing.assert_array_equal(session.select([1, 4]).counts(0.02).values, session.counts(0.02).values[:, [1, 4]])


@pytest.mark.parametrize("bin_size", [0.0, -1.0, float("nan"), 100.0])
def test_bins_that_cannot_be_are_told_in_one_sentence(bin_size):
    with pytest.raises(BadRecording, match=r"s: .*(give their length in seconds|give shorter bins)"):
        spikes_at([0.5], [0], [[0, 1]]).counts(bin_size)


def test_a_session_without_units_or_spikes_has_empty_counts():
    empty = spikes_at([0.5], [0], [[0, 1]]).select([2])
    assert empty.counts(0.1).values.sum() == 0
    assert spikes_at([], [], [[0, 1]], n=0).counts(0.1).values.shape == (10, 0)
