"""Co-smoothing scores what is predicted of held-out units from the others, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.small import SMALL
from tests.models.test_zoo import toy
from workbench import models
from workbench.analysis.cosmoothing import _binned, _lagged, cosmooth, draw_held_out, factor_glm, predict, score
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import bits_per_spike
from workbench.models.base import Output
from workbench.session import Session
from workbench.windows import RandomWindows, split

SESSION = toy("a", 20, 1, seconds=60.0)
HELD_OUT = ["u2", "u5", "u11", "u19"]


class Stub(nn.Module):
    """Says what `says(batch)` says, and remembers the batches that it was shown."""

    name, reconstructs, bin_size, window, warmup = "known rates", True, 0.05, 1.0, 0.0

    def __init__(self, says):
        super().__init__()
        self.says, self.shown, self.weight = says, [], nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        self.shown.append(batch)
        return Output(log_rates=self.says(batch))


def clock(batch) -> torch.Tensor:
    """Log of the time of every bin, the same for all units [B, N, T]."""
    at = batch.starts[:, None] + 0.05 * torch.arange(20) + 1
    return at.log()[:, None].expand(-1, 20, -1)


def test_bins_fall_together_whichever_window_holds_them():
    model = Stub(clock)
    found = predict(model, SESSION, [[10.0, 13.0], [20.02, 22.99]], HELD_OUT, step=0.3)
    assert len(found.times) == 60 + 59
    np.testing.assert_allclose(found.times[[0, 59, 60, -1]], [10.0, 12.95, 20.02, 22.92], atol=1e-9)
    np.testing.assert_allclose(found.rates, (found.times + 1)[:, None].repeat(4, 1), rtol=1e-6)
    counts = [((SESSION.spike_times >= t - 1e-6) & (SESSION.spike_times < t + 0.05 - 1e-6)) for t in found.times]
    want = [[(SESSION.spike_units[at] == unit).sum() for unit in (2, 5, 11, 19)] for at in counts]
    np.testing.assert_array_equal(found.counts, want)
    assert found.units.tolist() == [2, 5, 11, 19]


def test_rates_are_averaged_over_windows_after_their_warm_up():
    model = Stub(lambda batch: batch.starts.float()[:, None, None].expand(-1, 20, 20).clamp(min=1e-9).log())
    found = predict(model, SESSION, [[2.0, 4.0]], HELD_OUT, step=0.5)
    want = np.repeat([2.0, 2.25, 2.75, 3.0], 10)                        # windows begin at 2, 2.5 and 3
    np.testing.assert_allclose(found.rates[:, 0], want, rtol=1e-6)
    model.warmup = 0.5
    late = predict(model, SESSION, [[2.0, 4.0]], HELD_OUT, step=0.5)
    np.testing.assert_allclose(late.times[[0, -1]], [2.5, 3.95])
    np.testing.assert_allclose(late.rates[:, 0], np.repeat([2.0, 2.5, 3.0], 10), rtol=1e-6)


def test_the_model_is_not_shown_the_spikes_it_is_scored_on():
    model = Stub(clock)
    predict(model, SESSION, [[10.0, 20.0]], HELD_OUT)
    for batch in model.shown:
        shown = set(batch.units.unique().tolist())
        assert shown == set(range(20)) - {2, 5, 11, 19} and batch.unit_mask.sum(1).tolist() == [20] * len(batch)


def test_true_rates_score_high_and_each_units_mean_scores_nothing():
    intervals = [[0.0, 60.0]]
    counts = predict(Stub(clock), SESSION, intervals, HELD_OUT)
    for share, low, high in ((0.0, -1e-9, 1e-9), (0.9, 0.5, 5.0)):
        rates = share * counts.counts + (1 - share) * counts.counts.mean(0)
        found = score(counts._replace(rates=rates))
        assert low <= found["bits_per_spike"] <= high
    assert found["units"] == 4 and found["bins"] == 1200 and found["spikes"] == counts.counts.sum()
    assert "4 held-out units in bins of 0.05 s" in found["protocol"]


def test_drift_shows_in_the_running_mean_and_over_the_training_mean():
    random, size = np.random.default_rng(0), 0.05
    times = np.sort(np.concatenate([random.uniform(*part) for part in ((0, 300, 1500), (100, 200, 3000))]))
    drifting = replace(SESSION, spike_times=np.repeat(times, 2), spike_units=np.tile([0, 1], len(times)), series={},
                       intervals=[[0, 300]], units=SESSION.units.iloc[:2])
    for test in ([[100.0, 300.0]], [[a, a + 10.0] for a in range(100, 300, 20)]):       # also in pieces, as by trial
        found = predict(Stub(lambda b: torch.zeros(len(b), 2, 20)), drifting, test, ["u1"])
        mean = found._replace(rates=np.broadcast_to(found.counts.mean(0), found.counts.shape))
        told = score(mean, trained_on=drifting.between(0, 100))
        assert told["bits_per_spike"] == pytest.approx(0)
        before = np.searchsorted(times, found.times) - np.searchsorted(times, found.times - 30)
        rest = (len(times) - found.counts.sum()) / (300 - np.diff(test).sum()) * size
        past = (before[:, None] + rest) / (30 / size + 1)
        assert told["running_mean"] == pytest.approx(bits_per_spike(past, found.counts), abs=1e-3) and \
            told["running_mean"] > 0.1
        want = bits_per_spike(mean.rates, found.counts, np.full((1, 1), (times < 100).mean() * len(times) / 100 * size))
        assert told["over_training_mean"] == pytest.approx(want, rel=1e-6) and want > 0.3


def test_a_unit_that_was_silent_in_training_counts_as_half_a_spike_there():
    late = SESSION.spike_times > 40
    quiet = replace(SESSION, spike_times=SESSION.spike_times[late], spike_units=SESSION.spike_units[late])
    found = predict(Stub(clock), quiet, [[40.0, 60.0]], HELD_OUT)
    want = bits_per_spike(found.rates, found.counts, np.full((1, 4), 0.5 / 40 * 0.05))
    assert score(found, trained_on=quiet.between(0, 40))["over_training_mean"] == pytest.approx(want)


def test_bins_of_a_long_stretch_hold_their_own_spikes():
    random = np.random.default_rng(0)
    long = replace(SESSION, spike_times=np.sort(random.uniform(0, 4000, 30_000)), series={}, intervals=[[0, 4000]],
                   units=SESSION.units.iloc[:2], spike_units=random.integers(0, 2, 30_000))
    times, counts = _binned(long, np.array([[0.0, 4000.0]]), 0.005)
    np.testing.assert_array_equal(counts, long.counts(0.005).values)
    assert len(times) == 800_000


def test_time_that_is_no_valid_recording_is_not_scored():
    gap = replace(SESSION, intervals=[[0, 20], [30, 60]])
    whole, valid = (predict(Stub(clock), gap, part, HELD_OUT) for part in ([[10, 40]], [[10, 20], [30, 40]]))
    np.testing.assert_array_equal(whole.times, valid.times)
    assert len(whole.times) == 400


def test_a_trained_model_beats_the_mean_and_loses_where_the_others_say_nothing():
    parts = split(SESSION)
    torch.manual_seed(0)
    model = models.build("ndt1", [SESSION.within(parts["train"])], held_out=HELD_OUT, mask="neuron", **SMALL["ndt1"])
    windows = RandomWindows([SESSION], [parts["train"]], duration=1.0, batch_size=16, align="vel")
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for k in range(60):
        adam.zero_grad()
        model.loss(windows.batch(k))["loss"].backward()
        adam.step()
    found = cosmooth(model, SESSION, parts["test"], HELD_OUT, align="vel")
    assert model.training and found["bits_per_spike"] > 0.05
    times = (SESSION.spike_times + np.where(np.isin(SESSION.spike_units, [2, 5, 11, 19]), 5.0, 0.0)) % 60
    order = np.argsort(times)                                           # held-out units at another time
    shifted = replace(SESSION, spike_times=times[order], spike_units=SESSION.spike_units[order])
    assert cosmooth(model, shifted, parts["test"], HELD_OUT, align="vel")["bits_per_spike"] < 0


def test_factors_predict_held_out_units_and_stay_inside_their_part():
    parts = split(SESSION)
    found = factor_glm(SESSION, parts["train"], parts["test"], HELD_OUT, factors=4, align="vel")
    assert score(found)["bits_per_spike"] > 0.1 and (found.rates > 0).all()
    model = Stub(clock)
    bins = predict(model, SESSION, parts["test"], HELD_OUT, align="vel")
    np.testing.assert_allclose(found.times, bins.times)
    np.testing.assert_array_equal(found.counts, bins.counts)
    silent = SESSION.spike_times < parts["test"][0, 0]                  # the test part decides nothing that is fitted
    quiet = replace(SESSION, spike_times=SESSION.spike_times[silent], spike_units=SESSION.spike_units[silent])
    still = factor_glm(quiet, parts["train"], parts["test"], HELD_OUT, factors=4, align="vel").rates
    np.testing.assert_allclose(still[1:], still[:-1])                   # silence says the same at every bin
    assert not np.allclose(found.rates, still)


def test_a_unit_that_was_silent_in_training_gets_half_a_spike():
    parts = split(SESSION)
    late = (SESSION.spike_units != 5) | (SESSION.spike_times >= parts["test"][0, 0])
    session = replace(SESSION, spike_times=SESSION.spike_times[late], spike_units=SESSION.spike_units[late])
    found = factor_glm(session, parts["train"], parts["test"], HELD_OUT, factors=4)
    np.testing.assert_allclose(found.rates[:, 1], 0.5 / (60 * 0.7 / 0.05), rtol=0.01)


def test_lags_look_to_both_sides():
    rows = np.arange(5.0)[:, None]
    np.testing.assert_array_equal(_lagged(rows, 3)[[0, 2, 4]], [[0, 0, 1], [1, 2, 3], [3, 4, 4]])
    np.testing.assert_array_equal(_lagged(rows, 1), rows)


def test_units_are_drawn_by_seed():
    one, two, other = (draw_held_out(SESSION, 0.25, seed) for seed in (0, 0, 1))
    assert one == two != other and len(one) == 5 and set(one) < set(SESSION.units["id"])


def test_impossible_requests_are_told_in_one_sentence():
    model, part = Stub(clock), [[0.0, 20.0]]
    with pytest.raises(BadRecording, match=r"a share of 0\.01 of 20 units holds out 0"):
        draw_held_out(SESSION, 0.01)
    with pytest.raises(UnknownName, match="no unit 'u99' in session 'a'"):
        predict(model, SESSION, part, ["u99"])
    for held_out in (np.ones(20, bool), np.zeros(20, bool)):
        with pytest.raises(BadRecording, match="of 20 units are held out; hold out some, and leave some"):
            predict(model, SESSION, part, held_out)
    with pytest.raises(BadRecording, match="a: no interval lasts 1 s"):
        predict(model, SESSION, [[0.0, 0.9]], HELD_OUT)
    with pytest.raises(WorkbenchError, match="model 'gru' predicts no firing rates"):
        cosmooth(models.build("gru", [SESSION], target="vel"), SESSION, part, HELD_OUT)


def test_the_classical_way_on_real_reaches(real_data):
    session = Session.from_nwb(real_data / "m1_reach.nwb")
    parts = split(session)
    held_out = draw_held_out(session, 0.07, seed=0)
    found = score(factor_glm(session, parts["valid"], parts["test"], held_out, lags=1, align="hand_vel"))
    assert 0.01 < found["bits_per_spike"] < 0.1 and found["bins"] == 3106
