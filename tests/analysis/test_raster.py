"""The count pyramid against brute force: what is drawn is what was recorded, at any zoom and in any order."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import Session
from workbench.analysis.raster import CountPyramid, envelope, population_rate, resample, shade, sort_units
from workbench.cache import mapped_from


def recording(spikes=5_000, units=7, duration=100.0, seed=0):
    rng = np.random.default_rng(seed)
    return Session(id="test", spike_times=np.sort(rng.uniform(2.0, duration, spikes)),
                   spike_units=(rng.beta(1, 3, spikes) * units).astype(np.int32),
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(units)]}), intervals=[[0.0, duration]])


def brute(session, edges):
    rows = np.arange(len(session.units) + 1) - 0.5
    inside = session.spike_times < edges[-1]                            # np.histogram2d closes its last bin
    return np.histogram2d(session.spike_units[inside], session.spike_times[inside], [rows, edges])[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4_000), st.integers(1, 9), st.integers(0, 99))
def test_every_level_conserves_the_count_of_every_unit(spikes, units, seed):
    session = recording(spikes, units, seed=seed)
    pyramid = CountPyramid(session, exact_spikes=0)
    assert pyramid.levels
    for level in pyramid.levels:
        assert (level.sum(axis=1) == np.bincount(session.spike_units, minlength=units)).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 99), st.floats(0.01, 100), st.integers(1, 300), st.integers(0, 9))
def test_an_exact_view_equals_histogram2d(start, width, columns, seed):
    session = recording(seed=seed)
    view = CountPyramid(session).view(start, start + width, columns)
    assert view.exact
    assert (view.counts == brute(session, np.linspace(start, min(start + width, 100.0), columns + 1))).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 99), st.floats(0.01, 100), st.integers(1, 300), st.integers(0, 9))
def test_a_binned_view_counts_exactly_what_lies_in_its_bins(start, width, columns, seed):
    session = recording(seed=seed)
    view = CountPyramid(session, exact_spikes=0).view(start, start + width, columns)
    assert view.start <= start + 1e-9 and view.stop >= min(start + width, 100.0) - 1e-9
    assert view.counts.shape[1] <= columns + 2
    edges = np.linspace(view.start, view.stop, view.counts.shape[1] + 1)
    away = np.abs(session.spike_times[:, None] - edges).min() > 1e-9    # rounding may move a spike that sits on an edge
    if away:
        assert (view.counts == brute(session, edges)).all()


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(7)), st.integers(1, 9), st.tuples(st.integers(0, 6), st.integers(1, 7)))
def test_rows_follow_the_order_and_share_a_pixel_by_adding_up(order, max_rows, rows):
    first, last = rows[0], max(rows[0] + 1, rows[1])
    session = recording()
    whole = CountPyramid(session).view(10, 60, 50).counts
    view = CountPyramid(session).view(10, 60, 50, order=order, rows=(first, last), max_rows=max_rows)
    shown = whole[order[first:last]]
    assert len(view.counts) <= max_rows
    assert (view.counts.sum(0) == shown.sum(0)).all()
    k = view.units_per_row
    assert all((row == shown[i * k:(i + 1) * k].sum(0)).all() for i, row in enumerate(view.counts))


def test_a_recording_without_spikes_gives_an_empty_grid():
    empty = Session(id="empty", spike_times=[], spike_units=[], units=pd.DataFrame({"id": ["a"]}), intervals=[[0, 5]])
    view = CountPyramid(empty).view(0, 5, 10)
    assert view.counts.shape == (1, 10) and view.spikes == 0
    assert (shade(view.counts) == 0).all()


def test_a_window_outside_the_recording_shows_all_of_it():
    view = CountPyramid(recording()).view(500, 600, 10)
    assert (view.start, view.stop, view.spikes) == (0.0, 100.0, 5_000)


def test_spikes_outside_the_valid_intervals_are_still_counted():
    session = Session(id="late", spike_times=[1.0, 9.0], spike_units=[0, 0], units=pd.DataFrame({"id": ["a"]}),
                      intervals=[[2, 5]])
    assert CountPyramid(session).view(0, 20, 10).spikes == 2


def test_only_spikes_that_can_be_told_apart_are_called_so():
    session = Session(id="pair", spike_times=[1.0, 1.2, 3.0], spike_units=[0, 0, 1],
                      units=pd.DataFrame({"id": ["a", "b"]}), intervals=[[0, 4]])
    pyramid = CountPyramid(session)
    assert pyramid.view(0, 4, 40).tells_spikes_apart
    assert not pyramid.view(0, 4, 4).tells_spikes_apart                 # the first two share a cell of a second
    assert pyramid.view(1, 1.4, 100).bin_size <= 0.005 and pyramid.view(1, 1.4, 100).tells_spikes_apart


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=12, unique=True), st.integers(1, 40), st.integers(0, 9))
def test_the_population_rate_divides_by_observed_seconds(bounds, bins, seed):
    intervals = np.sort(bounds)[: len(bounds) // 2 * 2].reshape(-1, 2)
    times, edges = recording(seed=seed).spike_times, np.linspace(0, 100, bins + 1)
    rates = population_rate(times, intervals, edges)
    for rate, left, right in zip(rates, edges, edges[1:], strict=False):
        parts = np.clip(intervals, left, right)
        seconds = np.diff(parts).sum()
        spikes = sum(((times >= a) & (times < b)).sum() for a, b in parts)
        if seconds > 0.01 * (right - left):
            assert rate == pytest.approx(spikes / seconds)
        elif seconds == 0:
            assert np.isnan(rate)


def test_a_gap_does_not_dilute_the_rate_beside_it():
    times = np.arange(0, 20, 0.01)                                      # 100 spikes/s, then nothing is recorded
    rates = population_rate(times, np.array([[0.0, 20.0]]), np.linspace(0, 60, 8))
    assert rates[:3] == pytest.approx([100, 100, 100], rel=0.01) and np.isnan(rates[3:]).all()
    assert np.isnan(population_rate(times, np.empty((0, 2)), np.linspace(0, 60, 8))).all()


def test_numbers_in_names_are_sorted_by_value():
    units = pd.DataFrame({"id": ["unit 10", "unit 9", "probe 2", "unit 100"], "shank": ["10", "9", "100", "1"]})
    session = Session(id="names", spike_times=[], spike_units=[], units=units, intervals=[[0, 1]])
    assert sort_units(session, "id").tolist() == [2, 1, 0, 3]
    assert sort_units(session, "shank").tolist() == [3, 1, 0, 2]
    assert sort_units(session, "region").tolist() == [0, 1, 2, 3]       # all alike: the order of the table


def test_no_spike_is_white_and_more_spikes_are_never_lighter():
    counts = np.array([[0, 1, 1, 5], [2, 0, 40, 1]], np.uint32)
    shades = shade(counts, steps=16)
    assert (shades[counts == 0] == 0).all() and (shades[counts > 0] > 0).all() and shades.max() == 15
    flat = np.argsort(counts, axis=None, kind="stable")
    assert (np.diff(shades.ravel()[flat].astype(int)) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(1, 60), st.integers(0, 9))
def test_an_envelope_keeps_every_minimum_and_maximum(samples, columns, seed):
    values = np.random.default_rng(seed).normal(size=(samples, 2))
    t, v = envelope(np.arange(samples) * 0.1, values, -1.0, 1e3, columns)
    assert len(t) == len(v) <= 2 * columns + 2
    assert (np.diff(t) >= 0).all()
    if samples:
        assert (np.nanmin(v, 0) == values.min(0)).all() and (np.nanmax(v, 0) == values.max(0)).all()


@pytest.mark.parametrize("columns", [20, 1_000])
def test_a_gap_in_a_series_is_not_drawn_over(columns):
    times = np.concatenate([np.arange(0, 10, 0.1), np.arange(50, 60, 0.1)])
    t, v = envelope(times, np.ones((len(times), 1)), 0, 60, columns)
    assert np.isnan(v[(t > 9.8) & (t < 51)]).any()


def test_samples_that_are_no_numbers_leave_the_mean_of_the_others():
    times, values = np.arange(0, 10, 0.01), np.random.default_rng(0).normal(size=(1000, 2))
    values[::7, 0] = np.nan
    values[:100, 1] = np.nan
    found = resample(times, values, 0.0, 10.0, 20)
    want = np.nanmean(values[:, 0].reshape(20, 50), axis=1)
    np.testing.assert_allclose(found[:, 0], want)
    assert np.isnan(found[:2, 1]).all() and np.isfinite(found[2:, 1]).all()


def test_ten_million_spikes_are_ready_in_seconds_and_redrawn_at_once():
    session = recording(10_000_000, units=300, duration=3_600.0)
    begun = time.perf_counter()
    pyramid = CountPyramid(session)
    assert sum(level.nbytes for level in pyramid.levels) <= 4.1 * len(session.spike_times)
    assert time.perf_counter() - begun < 5                              # 0.2 s on an idle core
    begun = time.perf_counter()
    for start, width in [(0, 3600), (1000, 900), (2000, 60), (2000, 1)]:
        assert pyramid.view(start, start + width).counts.any()
    assert time.perf_counter() - begun < 2                              # 0.05 s on an idle core


# The pyramid of a file, kept.


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The folder of pyramids, and the path of a saved recording that has one."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyramids", recording(20_000).save(tmp_path / "mine.h5")


def levels(session: Session) -> list:
    return CountPyramid(session, exact_spikes=1000).levels


def alike(a: list, b: list) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_pyramid_of_a_file_is_mapped_the_second_time(saved, monkeypatch):
    folder, path = saved
    first = levels(Session.open(path))
    assert alike(first, levels(recording(20_000))) and mapped_from(first[0])
    monkeypatch.setattr(CountPyramid, "_count_levels", lambda *_: pytest.fail("counted again"))
    assert alike(levels(Session.open(path)), first)
    assert len(list(folder.iterdir())) == 1


def test_a_recording_in_memory_has_its_pyramid_in_memory(saved):
    folder, _ = saved
    found = levels(recording(20_000))
    assert mapped_from(found[0]) is None and not folder.exists()


def test_another_recording_in_the_same_place_never_has_the_old_pyramid(saved):
    folder, path = saved
    levels(Session.open(path))
    other = recording(20_000, seed=5)
    other.save(path)
    assert alike(levels(Session.open(path)), levels(other)) and len(list(folder.iterdir())) == 1
    part = Session.open(path).between(20, 80)
    assert alike(levels(part), levels(other.between(20, 80)))


def test_a_damaged_pyramid_is_made_anew_and_a_cache_that_cannot_be_written_costs_time_only(saved, monkeypatch):
    folder, path = saved
    first = levels(Session.open(path))
    [kept] = folder.iterdir()
    whole, damaged = kept.read_bytes(), None
    for damaged in (whole[:len(whole) // 2], b"", b"nothing of the kind"):
        kept.unlink()                                                   # a map of it is still open
        kept.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged and made anew"):
            assert alike(levels(Session.open(path)), first)
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_CACHE", str(folder.parent / "file"))
    with pytest.warns(UserWarning, match="is computed anew each time"):
        assert alike(levels(Session.open(path)), first)
