"""What the comparison of tokenizations says is what happens to the spikes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import Session, models
from workbench.analysis.tokens import (
    VIEWS,
    Reading,
    by_bin_size,
    compare,
    intervals_seen,
    pieces,
    reading_of,
    some_windows,
    spikes_of,
    tokens_in,
)
from workbench.batch import Reader
from workbench.errors import BadRecording, WorkbenchError
from workbench.sources.simulated import reach_sim


@pytest.fixture(scope="module")
def recording() -> Session:
    return reach_sim(0, seconds=60, units=21)


def made(times, units, n: int = 3, stop: float = 4.0) -> Session:
    return Session(id="made", spike_times=np.array(times, float), spike_units=np.array(units, np.int32),
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(n)]}), intervals=np.array([[0.0, stop]]))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("k", [1, 8, 40])
def test_every_view_gives_back_every_spike_to_its_unit_and_near_its_time(recording, view, k):
    batch = some_windows(recording, 1.0, 10)
    units, times = spikes_of(batch, view, 0.02, k)
    owners, true = batch.spikes().units.numpy(), batch.times.double().numpy()
    order = np.lexsort([true, owners])
    np.testing.assert_array_equal(units, owners[order])
    apart = np.abs(times - true[order])
    assert apart.max() < (1e-5 if view in ("spikes", "events") else 0.01 + 1e-5)


def test_bins_lose_the_time_within_them_and_single_spikes_nothing(recording):
    table = compare(recording, bin_size=0.05, number=20)
    assert table.loc[["spikes", "events"], ["timing_ms", "order_lost"]].to_numpy().max() < 1e-2
    for view in ("bins", "patches", "neurons"):
        assert 10 < table.loc[view, "timing_ms"] < 15                   # a quarter of a bin: uniform within it
        assert table.loc[view, "order_lost"] > 0.5
    by_size = by_bin_size(recording, [0.01, 0.02, 0.1], number=20)
    for _, part in by_size.groupby("view"):
        assert part["timing_ms"].is_monotonic_increasing and part["order_lost"].is_monotonic_increasing
        assert part["kb_per_s"].is_monotonic_decreasing


def test_tokens_are_counted_as_a_model_would_get_them(recording):
    table = compare(recording, window=2.0, bin_size=0.02, k=8, number=15)
    # 21 units are 3 patches of 8, and 21 tokens in 2 s.
    assert table["tokens_per_s"][["bins", "patches", "neurons"]].round(3).tolist() == [50, 150, 10.5]
    batch = some_windows(recording, 2.0, 15)
    assert table.loc["spikes", "tokens_per_s"] == len(batch.times) / 30
    assert table.loc["bins", "pairs"] == 100 ** 2 and table.loc["bins", "numbers"] == 21
    assert table.loc["bins", "kb_per_s"] == pytest.approx(21 * 50 * 4 / 1e3)


def test_only_views_with_a_token_for_silence_show_silent_units():
    table = compare(made([0.5, 1.5, 1.501], [0, 1, 0]), number=4, bin_size=0.1)
    assert table.loc["bins", "unseen"] == table.loc["neurons", "unseen"] == 0
    assert table.loc["spikes", "unseen"] == pytest.approx(1 - 3 / 12)   # three of twelve units in windows fired
    assert table.loc["bins", "empty"] == pytest.approx(1 - 3 / 120)
    assert table.loc["bins", "order_lost"] == 1 and table.loc["events", "order_lost"] == 0


def test_spikes_of_one_instant_have_no_order_to_lose():
    assert (compare(made([0.5, 0.5, 1.2], [0, 1, 2]), number=4, bin_size=0.1)["order_lost"] == 0).all()


def test_bins_hide_the_refractory_period(recording):
    seen = intervals_seen(recording, int(recording.rates().argmax()), bin_size=0.02)
    short = seen["interval_ms"] < 1.9
    assert seen["spikes"][short].sum() == 0 and seen["bins"][short].sum() > 0
    assert set(seen["interval_ms"][seen["bins"] > 0].round(3)) <= {0, 20, 40, 60, 80, 100}


def test_a_recording_without_spikes_or_shorter_than_a_window_is_told():
    with pytest.raises(BadRecording, match="no spikes in 4 windows of 1 s"):
        compare(made([], []))
    with pytest.raises(BadRecording, match="choose a shorter window"):
        compare(made([0.5], [0]), window=9.0)


# Tokens as the raster draws them.


def uneven(seed: int, units: int = 7) -> Session:
    """Two stretches of valid time, spikes on no edge of a bin, some of them outside valid time."""
    random = np.random.default_rng(seed)
    spikes = 1500
    return Session(id="uneven", spike_times=np.sort(random.uniform(0, 30, spikes)),
                   spike_units=random.integers(0, units, spikes).astype(np.int32),
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(units)]}),
                   intervals=np.array([[0.37, 11.2], [14.013, 29.5]]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VIEWS), st.floats(0, 29), st.floats(0.05, 6), st.sampled_from([1, 3, 8]), st.integers(0, 9))
def test_tokens_hold_exactly_the_spikes_in_view(view, start, length, k, seed):
    session, reading = uneven(seed), Reading(view, bin_size=0.02, k=k, width=0.5)
    tokens = tokens_in(session, reading, start, start + length)
    if view in ("spikes", "events"):
        valid = ((session.spike_times[:, None] >= session.intervals[:, 0])
                 & (session.spike_times[:, None] < session.intervals[:, 1])).any(1)
        inside = valid & (session.spike_times >= start) & (session.spike_times < start + length)
        assert np.allclose(tokens.times, session.spike_times[inside], atol=1e-5)
        assert (tokens.units == session.spike_units[inside]).all()
        return
    assert len(tokens) == tokens.counts.size == len(tokens.starts) * (tokens.rows.max() + 1)
    for a, b, counts in zip(tokens.starts, tokens.stops, tokens.counts, strict=True):
        near = session.spike_units[(session.spike_times >= a) & (session.spike_times < b)]
        assert abs(np.abs(session.spike_times[:, None] - [a, b]).min()) < 1e-5 or (
            np.bincount(tokens.rows[near], minlength=len(counts)) == counts).all()
    seen = pieces(session.intervals, start, start + length)
    covered = pieces(session.intervals, start, start + length, reading.step)
    assert np.isclose(np.diff(covered).sum(), len(tokens.starts) * reading.step)
    for a, b in seen:                                                   # but for what is left at an interval's end
        end = session.intervals[session.intervals[:, 1] >= b][0, 1]
        assert (tokens.starts <= a + 1e-6).any() or end - a < reading.step
        assert (tokens.stops >= b - 1e-6).any() or end - b < reading.step


@pytest.mark.parametrize("view", VIEWS)
def test_tokens_are_those_that_the_views_give_of_the_same_window(recording, view):
    reading, batch = Reading(view, bin_size=0.05, k=8, width=0.5), Reader([recording]).read([0], [7.0], 2.0)
    tokens = tokens_in(recording, reading, 7.0, 9.0)
    given = {"bins": lambda: batch.counts(0.05).sum(1)[0, :, None],
             "patches": lambda: batch.patches(8, 0.05)[0].sum(-1),
             "neurons": lambda: batch.neurons(0.05).unflatten(1, (4, 10)).sum(-1).T}
    if view in given:
        assert np.array_equal(tokens.counts, given[view]())
    else:
        assert np.array_equal(tokens.units, batch.units) and np.allclose(tokens.times, 7 + batch.times, atol=1e-5)


def test_what_every_model_reads_is_known():
    from workbench.models import _MODELS
    readings = {"poyo": ("spikes", 0.125), "possm": ("spikes", 0.05), "spint": ("neurons", 0.0),
                "neurobridge": ("spikes", 0.05), "ndt1": ("bins", 0.0), "mtm": ("bins", 0.0), "gru": ("bins", 0.0),
                "nuclr": ("neurons", 0.0), "neuroformer": ("events", 0.05)}
    session = reach_sim(0, seconds=60, units=21)
    assert all(models.get(name).takes in VIEWS for name in _MODELS if name != "cebra")
    for name, (view, chunk) in readings.items():
        takes = {"target": "hand_vel"} if name in ("poyo", "possm", "spint", "gru") else {}
        model = models.build(name, [session], **takes)
        reading = reading_of(model)
        assert (reading.view, reading.chunk, reading.window) == (view, chunk, model.window), name
        assert len(tokens_in(session, reading, 10.0, 12.0)) > 0
    assert reading_of(models.build("nuclr", [session])).width == 1.0
    assert reading_of(models.build("spint", [session], target="hand_vel")).width == pytest.approx(1.0)
    model.spikes = False
    with pytest.raises(WorkbenchError, match="calcium"):
        reading_of(model)
