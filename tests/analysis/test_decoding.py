"""Held-out scores: every sample once, windows inside, causal without later spikes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from tests.models.test_models import tuned
from workbench.analysis.decoding import decode, score
from workbench.metrics import r2
from workbench.models.base import Output
from workbench.session import Series


class Oracle(torch.nn.Module):
    """Answers with the truth, plus how far into its window a sample lies."""

    window, warmup = 1.0, 0.0

    def __init__(self, drift=0.0):
        super().__init__()
        self.drift = drift

    def forward(self, batch):
        target = batch.targets["vel"]
        return Output(behavior=target.values + self.drift * target.times[:, None])


def test_a_perfect_model_scores_one_at_every_sample():
    found = score(Oracle(), [tuned()], [np.array([[40.0, 60.0]])], "vel")
    assert found["r2"] == pytest.approx(1) and found["r2_causal"] == pytest.approx(1)
    assert found["samples"] == 400 and "averaged over overlapping windows" in found["protocol"]


def test_averages_are_over_windows_and_causal_is_the_windows_end():
    found = decode(Oracle(drift=1.0), tuned(), np.array([[40.0, 50.0]]), "vel")
    middle = (found.times > 41.5) & (found.times < 48.5)
    np.testing.assert_allclose((found.averaged - found.true)[middle], 0.5, atol=0.01)
    np.testing.assert_allclose((found.causal - found.true)[middle], 0.975, atol=1e-3)
    assert np.isnan(found.causal[found.times < 40.9]).all()             # no window reaches back before held-out time


def test_intervals_as_short_as_a_window_are_scored_whatever_the_phase_of_the_samples():
    trials = np.array([[40.0 + 1.2 * i, 41.0 + 1.2 * i] for i in range(10)])
    found = score(Oracle(), [tuned(lag=0.007)], [trials], "vel")
    assert found["r2"] == pytest.approx(1) and found["samples"] >= 190 and found["samples_causal"] >= 10


def test_gaps_in_the_behaviour_are_passed_over_and_shift_nothing():
    session = tuned()
    vel = session.series["vel"]
    values = vel.values.copy()
    values[::3], values[900:940, 1] = np.nan, np.nan
    gaps = replace(session, series={"vel": vel._replace(values=values)})
    found = decode(Oracle(), gaps, np.array([[40.0, 60.0]]), "vel")
    there = np.isfinite(values).all(1) & (vel.times >= 40)
    np.testing.assert_array_equal(found.times, vel.times[there])
    np.testing.assert_allclose(found.averaged, found.true, atol=1e-6)
    told = score(Oracle(), [gaps], [np.array([[40.0, 60.0]])], "vel")
    assert told["r2"] == pytest.approx(1) == told["r2_causal"] and told["samples"] == there.sum()


@pytest.mark.parametrize("gaps", [2.5, (0.5, 1.5, 4.0)])
def test_a_series_that_is_sampled_seldom_is_scored_at_every_sample(gaps):
    session = tuned(seconds=60)
    times = np.cumsum(np.resize(gaps, 40)) + 0.01
    times = times[times < 58]
    slow = replace(session, series={"vel": Series(times, np.random.default_rng(0).normal(size=(len(times), 2)))})
    found = decode(Oracle(), slow, [[0, 60]], "vel")
    np.testing.assert_allclose(found.averaged, found.true, atol=1e-6)
    assert np.isfinite(found.causal[times > 1]).all()
    told = score(Oracle(), [slow], [[[0, 60]]], "vel")
    assert told["r2"] == pytest.approx(1) and told["samples"] == len(times)


def test_time_that_is_no_valid_recording_is_not_scored():
    gap = replace(tuned(seconds=60), intervals=[[0, 20], [30, 60]])
    whole, valid = (decode(Oracle(1.0), gap, part, "vel") for part in ([[10, 40]], [[10, 20], [30, 40]]))
    assert np.array_equal(whole.times, valid.times) and np.array_equal(whole.averaged, valid.averaged)
    assert not ((whole.times > 20) & (whole.times < 30)).any()


def test_scores_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    true, predicted = random.normal(size=(50, 3)), random.normal(size=(50, 3))
    np.testing.assert_allclose(r2(true, predicted), r2_score(true, predicted, multioutput="raw_values"))
    assert np.isnan(r2(np.ones((5, 1)), np.zeros((5, 1)))).all()
