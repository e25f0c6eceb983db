"""Windows around events hold exactly the spikes that lie in them, and only windows that were wholly recorded count."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.recordings import poisson
from workbench import open_catalog
from workbench.align import ANSWERS, around, binned, counts_in, rates_in, spikes_in
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName


@pytest.fixture(scope="module")
def session():
    random = np.random.default_rng(0)
    start = np.arange(1.0, 58.0, 2.0)
    trials = pd.DataFrame({"start": start, "stop": start + 1.5, "cue": start + random.uniform(0.1, 0.5, len(start)),
                           "result": np.where(np.arange(len(start)) % 3, "R", "F")})
    trials.loc[4, "cue"] = np.nan
    stimuli = pd.DataFrame({"start": start + 0.3, "stop": start + 0.4, "image": np.arange(len(start))})
    return replace(poisson("s", 12, 15.0, 60.0), trials=trials, stimuli=stimuli)


def test_counts_are_those_of_each_window_cut_out_of_the_session(session):
    windows = around(session, "cue", -0.2, 0.5)
    counts = counts_in(session, windows)
    assert counts.shape == (28, 12) and windows.attrs["left_out"] == 1 and 4 not in windows.index
    for row, (start, stop) in enumerate(windows[["start", "stop"]].to_numpy()):
        part = session.between(start, stop)
        np.testing.assert_array_equal(counts[row], np.bincount(part.spike_units, minlength=12))
    np.testing.assert_allclose(rates_in(session, windows), counts / 0.7)


def test_bins_sum_to_the_counts_and_agree_with_a_batch_of_the_same_windows(session):
    windows = around(session, "cue", -0.2, 0.4)
    bins = binned(session, windows, 0.02)
    np.testing.assert_array_equal(bins.sum(axis=2), counts_in(session, windows))
    batch = Reader([session]).read(np.zeros(len(windows), np.int64), windows["start"].to_numpy(copy=True), 0.6)
    assert torch.equal(batch.counts(0.02), torch.from_numpy(bins).float())


def test_spikes_are_told_relative_to_their_event(session):
    windows = around(session, "cue", -0.3, 0.3)
    spikes = spikes_in(session, windows)
    assert spikes.times.min() >= -0.3 and spikes.times.max() < 0.3 and (np.diff(spikes.rows) >= 0).all()
    absolute = spikes.times + windows["event"].to_numpy()[spikes.rows]
    assert np.isin(absolute.round(9), session.spike_times.round(9)).all()


def test_events_that_cause_spikes_at_a_latency_are_found_there_and_nowhere_else(session):
    """Units 0-3 answer every stimulus 50 ms after its onset: in the window of V1, not in that of IT."""
    answers = (session.stimuli["start"].to_numpy()[:, None] + 0.05 + 1e-3 * np.arange(4)).ravel()
    times = np.r_[session.spike_times, answers]
    units = np.r_[session.spike_units, np.tile(np.arange(4, dtype=np.int32), len(session.stimuli))]
    order = np.argsort(times, kind="stable")
    evoked = replace(session, spike_times=times[order], spike_units=units[order])
    for area, extra in (("V1", 1), ("IT", 0)):
        windows = around(session, "start", *ANSWERS[area], table="stimuli")
        assert windows["stop"].iloc[0] - windows["start"].iloc[0] == pytest.approx(np.diff(ANSWERS[area])[0])
        more = counts_in(evoked, windows) - counts_in(session, windows)
        assert (more[:, :4] == extra).all() and (more[:, 4:] == 0).all()


def test_the_simulated_visual_areas_answer_in_their_windows():
    session = open_catalog().open("vision-sim")
    windows = {area: around(session, "start", *ANSWERS[area], table="stimuli") for area in ANSWERS}
    before = around(session, "start", -0.02, 0.03, table="stimuli")
    v1 = session.units["region"].to_numpy() == "V1"
    assert v1.any()
    assert rates_in(session, windows["V1"])[:, v1].mean() > 1.3 * rates_in(session, before)[:, v1].mean()


def test_only_rows_that_a_query_chooses(session):
    windows = around(session, "start", where="result == 'F'")
    assert windows.index.tolist() == list(range(0, 29, 3))
    with pytest.raises(BadRecording, match=r"cannot choose trials by 'outcome == 1'.*start, stop, cue, result"):
        around(session, "start", where="outcome == 1")


def test_no_rows_are_told_as_that_and_not_as_windows_outside_the_recording(session):
    with pytest.raises(BadRecording, match=r"it has no trials for which .result == 'X'. holds"):
        around(session, "start", where="result == 'X'")
    with pytest.raises(BadRecording, match=r"s: it has no stimuli$"):
        around(replace(session, stimuli=session.stimuli[:0]), "start", table="stimuli")


def test_unsorted_and_overlapping_events_have_windows_of_their_own(session):
    turned = replace(session, trials=session.trials[::-1])
    one, two = (counts_in(s, around(s, "start", -0.9, 1.4)) for s in (session, turned))
    np.testing.assert_array_equal(one, two[::-1])
    assert one.sum() > len(session.spike_times)                         # spikes of two windows count in both


def test_windows_in_gaps_or_past_the_end_are_left_out_and_touching_intervals_are_one(session):
    gappy = replace(session, intervals=np.array([[0.0, 3.2], [3.2, 11.2], [20.0, 60.0]]))
    kept = around(gappy, "start", -0.1, 0.5)
    assert kept["event"].tolist() == [1, 3, 5, 7, 9, *range(21, 58, 2)] and kept.attrs["left_out"] == 5
    with pytest.raises(BadRecording, match="none of 29 windows from 50 to 70 s around 'start'"):
        around(gappy, "start", 50, 70)


def test_what_is_not_there_is_one_sentence(session):
    with pytest.raises(UnknownName, match="no column of times 'cu' in the trials of session 's'; did you mean cue"):
        around(session, "cu")
    with pytest.raises(UnknownName, match="no column of times 'result'"):
        around(session, "result")
    with pytest.raises(UnknownName, match="no table of events 'epochs'"):
        around(session, table="epochs")
    with pytest.raises(BadRecording, match="has no length; give start < stop"):
        around(session, "cue", 0.5, 0.1)
    with pytest.raises(BadRecording, match=r"bins of 0\.07 s do not fill windows of 0\.5"):
        binned(session, around(session), 0.07)
