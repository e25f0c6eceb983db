"""Quality metrics say of made spikes what was made, prefer what the source says, and never guess what they cannot."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.errors import BadRecording, UnknownName
from workbench.quality import CRITERIA, metrics, passing
from workbench.session import Series, Session


def made(trains, intervals=((0.0, 1000.0),), **columns) -> Session:
    times, units = np.concatenate(trains), np.repeat(np.arange(len(trains)), [len(t) for t in trains])
    order = np.argsort(times, kind="stable")
    return Session(id="s", spike_times=times[order], spike_units=units[order], intervals=np.array(intervals),
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(len(trains))]} | columns))


def poisson(rate, seconds=1000.0, seed=0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))


def test_rate_presence_and_violations_are_those_that_were_made():
    regular = np.arange(0.05, 1000, 0.1)
    half = regular[regular < 500]
    double = np.sort(np.r_[regular, regular[:100] + 0.001])             # 100 spikes 1 ms after another
    found = metrics(made([regular, half, double, np.empty(0)]))
    assert found["firing_rate"].tolist() == pytest.approx([10, 5, 10.1, 0])
    assert found["presence_ratio"].tolist() == pytest.approx([1, 0.5, 1, 0])
    n = len(double)
    assert found["isi_violations"].tolist()[:3] == pytest.approx([0, 0, 100 / (2 * n * 0.0015) / (n / 1000)])
    assert np.isnan(found["isi_violations"][3]) and found.attrs["computed"] == [
        "firing_rate", "isi_violations", "presence_ratio"]


def test_spikes_without_a_refractory_period_violate_as_often_as_chance():
    """At chance n * (n / T) * 1.5 ms of n intervals are short, whatever the rate: one half by Hill's measure."""
    found = metrics(made([poisson(20.0), poisson(8.0, seed=1)]))
    assert found["isi_violations"].tolist() == pytest.approx([0.5, 0.5], abs=0.08)


def test_only_valid_time_counts():
    """A gap in the recording is no absence of the unit."""
    regular = np.arange(0.05, 1000, 0.1)
    gap = regular[(regular < 100) | (regular > 900)]
    found = metrics(made([gap, regular], intervals=[(0.0, 100.0), (900.0, 1000.0)]))
    assert found["presence_ratio"].tolist() == [1, 1]
    assert found["firing_rate"].tolist() == pytest.approx([10, 10])


def test_what_the_source_says_is_taken_and_what_needs_waveforms_is_not_guessed():
    trains = [poisson(5.0), poisson(5.0, seed=1)]
    plain = metrics(made(trains))
    assert not {"snr", "amplitude_cutoff"} & set(plain)
    found = metrics(made(trains, SNR=[2.5, 3.5], presence_ratio=[0.1, 0.2]))
    assert found["snr"].tolist() == [2.5, 3.5] and found["presence_ratio"].tolist() == [0.1, 0.2]
    assert "presence_ratio" not in found.attrs["computed"] and "firing_rate" in found.attrs["computed"]


def test_passing_keeps_the_units_that_pass_all_and_tells_how_many_of_how_many():
    session = made([poisson(r, seed=i) for i, r in enumerate((0.05, 5, 8, 9))], region=["V1", "V1", "LM", "V1"],
                   snr=[3.0, 1.0, 3.0, 3.0])
    kept, report = passing(session, ["firing_rate > 0.1", "snr > 2", "region == 'V1'"])
    assert kept.units["id"].tolist() == ["u3"] and set(kept.spike_units) == {0}
    assert report.to_numpy().tolist() == [[3, 3, 4], [3, 2, 4], [3, 1, 4]]
    assert "isi_violations" in kept.units and kept.units["snr"].tolist() == [3.0]
    again, _ = passing(session, "firing_rate > 0.1")
    assert len(again.units) == 3


def test_default_criteria_leave_out_only_what_is_not_known_and_say_so():
    regular = [np.arange(0.05 + 0.01 * i, 1000, 0.1) for i in range(3)]
    kept, report = passing(made(regular))
    assert len(kept.units) == 3 and report.index.tolist() == list(CRITERIA)
    assert np.isnan(report.loc["amplitude_cutoff <= 0.1", "passed"])
    kept, report = passing(made(regular, amplitude_cutoff=[0.05, 0.4, np.nan]))
    assert kept.units["id"].tolist() == ["u0"] and report.loc["amplitude_cutoff <= 0.1", "passed"] == 1


def test_criteria_that_cannot_be_are_one_sentence():
    session = made([poisson(5.0), poisson(6.0)])
    with pytest.raises(UnknownName, match=r"no metric 'snr' in session 's'.*needs waveforms"):
        passing(session, ["snr > 2"])
    with pytest.raises(UnknownName, match=r"no metric 'snr' in session 's'.*needs waveforms"):
        passing(session, ["(snr>2)"])
    with pytest.raises(BadRecording, match=r"'quality > ' cannot choose units"):
        passing(session, ["quality > "])
    with pytest.raises(BadRecording, match="not true or false for every unit"):
        passing(session, ["firing_rate + 1"])
    with pytest.raises(BadRecording, match=r"none of 2 units passes firing_rate > 100; loosen .*: 0 pass"):
        passing(session, ["firing_rate > 100"])


def test_metrics_follow_the_units_when_units_are_selected():
    session = made([poisson(r, seed=i) for i, r in enumerate((3, 5, 8))])
    whole = metrics(session).iloc[[0, 2]].reset_index(drop=True)
    pd.testing.assert_frame_equal(metrics(session.select([0, 2])), whole)


def test_times_coarser_than_a_refractory_period_say_nothing_of_violations():
    """FALCON's bins of 20 ms, spread evenly: how often two spikes are near is how they were laid."""
    coarse = replace(made([poisson(20.0), poisson(8.0, seed=1)]), resolution=0.02)
    assert metrics(coarse).attrs["computed"] == ["firing_rate", "presence_ratio"]
    assert np.isnan(passing(coarse)[1]["passed"]["isi_violations <= 0.5"])
    with pytest.raises(UnknownName, match=r"spike times are known to 0.02 s only"):
        passing(coarse, ["isi_violations <= 0.1"])


def test_cells_known_by_their_traces_are_not_judged_by_spikes_that_nobody_looked_for():
    cells = replace(made([np.empty(0)] * 2), series={"dF/F": Series(np.arange(9.0), np.ones((9, 2)), "", ("u0", "u1"))})
    kept, report = passing(cells)
    assert len(kept.units) == 2 and report["passed"].isna().all() and list(metrics(cells)) == ["id"]
    with pytest.raises(UnknownName, match="there are no spikes to compute it from"):
        passing(cells, ["firing_rate > 0.1"])


def test_a_recording_without_spikes_or_units_has_metrics_too():
    assert metrics(made([np.empty(0), np.empty(0)]))["presence_ratio"].tolist() == [0, 0]
    assert len(metrics(replace(made([np.empty(0)])).select([]))) == 0


def test_real_units_have_sensible_metrics(real_data):
    for path in sorted(real_data.glob("*.nwb"), key=lambda p: p.stat().st_size)[:2]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = Session.from_nwb(path)
        found = metrics(session)
        assert len(found) == len(session.units) and found["presence_ratio"].between(0, 1).all()
        np.testing.assert_allclose(found["firing_rate"], session.units.get("firing_rate", session.rates()))
