"""Scores of forecasts: the truth wins by what a hand computation says; only what lies in the test part is scored."""

import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from workbench import models
from workbench.analysis import forecasting
from workbench.analysis.forecasting import calibration, evaluate, table
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import bits_per_spike
from workbench.session import Session
from workbench.windows import split

BIN, SECONDS, TRIAL = 0.05, 400.0, 0.5


def recording() -> tuple[Session, np.ndarray]:
    """Poisson units and their expected counts [T, 6]: the rate follows the trial, of two conditions, in turn."""
    random = np.random.default_rng(0)
    bins, of_trial = round(SECONDS / BIN), round(TRIAL / BIN)
    shape = np.exp(random.normal(0, 0.7, (2, of_trial, 6)))
    condition = random.integers(0, 2, bins // of_trial)
    rates = shape[condition].reshape(bins, 6)
    counts = random.poisson(rates)
    at, unit = np.nonzero(counts)
    at, unit = (np.repeat(each, counts[at, unit]) for each in (at, unit))
    times = (at + random.uniform(0.05, 0.95, len(at))) * BIN
    order, starts = np.argsort(times), np.arange(bins // of_trial) * TRIAL
    trials = pd.DataFrame({"start": starts, "stop": starts + TRIAL, "side": np.array(["left", "right"])[condition]})
    table = pd.DataFrame({"id": [f"u{i}" for i in range(6)]})
    return Session(id="known", spike_times=times[order], spike_units=unit[order], units=table, trials=trials,
                   intervals=[[0, SECONDS]], simulated=True), rates


SESSION, RATES = recording()
PARTS = split(SESSION)
COUNTS = SESSION.counts(BIN).values


class Forecast(NamedTuple):
    rates: torch.Tensor
    counts: torch.Tensor


class Says(nn.Module):
    """A forecaster that says `rates` [T, N] of the whole session, and remembers what it was asked."""

    name, bin_size, reads = "says", BIN, ()

    def __init__(self, rates, history: float = 1.0, horizon: float = 0.5, ahead: float = 0.0):
        super().__init__()
        self.rates, self.history, self.horizon = torch.from_numpy(rates), history, horizon
        self.window, self.asked, self.weight = history + horizon + ahead, [], nn.Parameter(torch.zeros(1))

    def forecast(self, batch, *, samples, feedback, given, seed):
        self.asked.append((batch, feedback, given, seed))
        first = ((batch.starts + self.history) / BIN).round().long()[:, None] + torch.arange(round(self.horizon / BIN))
        rates = self.rates[first].transpose(1, 2)
        drawn = rates.expand(samples if feedback == "sampled" else 0, *rates.shape)
        return Forecast(rates, torch.poisson(drawn, torch.Generator().manual_seed(seed)))


def scored(model=None, session=SESSION, **options) -> dict:
    return evaluate(model or Says(RATES), session, PARTS["train"], PARTS["valid"], PARTS["test"],
                    **dict(baselines=("running_mean",)) | options)


def test_bits_are_those_of_the_field_and_the_mean_has_none():
    found = scored(stride=0.5)                                          # every bin of the test part once
    first = round(PARTS["test"][0, 0] / BIN)
    counts, rates = (values[first:].reshape(-1, 10, 6) for values in (COUNTS, RATES))
    mean = COUNTS[:round(PARTS["train"][0, 1] / BIN)].mean(0)
    curve = found["model"]["true"]["curve"]
    assert curve["horizon_ms"] == [50.0 * (h + 1) for h in range(10)]
    np.testing.assert_allclose(curve["bits"], [bits_per_spike(rates[:, h], counts[:, h], mean) for h in range(10)],
                               rtol=1e-6)
    assert found["spikes"] == counts.sum() and found["windows"] == len(counts) == 160
    np.testing.assert_array_equal(found["baselines"]["mean"]["curve"]["bits"], 0)
    says_mean = scored(Says(np.broadcast_to(mean, RATES.shape).copy()))["model"]["sampled"]
    np.testing.assert_allclose(says_mean["curve"]["bits"], 0, atol=1e-6)
    assert found["blocks"] == 4 and "4 blocks of 20 s" in found["protocol"]


def test_differences_are_paired_and_lie_in_their_intervals():
    found = scored()
    model, beside = found["model"]["sampled"]["curve"], found["baselines"]["running_mean"]
    difference = beside["difference"]["sampled"]
    np.testing.assert_allclose(difference["bits"], np.subtract(model["bits"], beside["curve"]["bits"]), atol=1e-9)
    for curve in (model, beside["curve"], difference):
        assert (np.array(curve["low"]) <= curve["bits"]).all() and (np.array(curve["high"]) >= curve["bits"]).all()
    assert np.mean(np.array(difference["low"]) > 0) > 0.8               # the truth knows the trial
    assert np.abs(beside["curve"]["bits"]).mean() < 0.1 * np.mean(model["bits"])     # rates do not drift here
    widths = [np.subtract(each["high"], each["low"]).mean() for each in (difference, model)]
    assert widths[0] < 2 * widths[1]


def test_only_the_test_part_is_scored_but_a_window_may_open_before_it():
    model = Says(RATES, history=3.0, ahead=0.25)
    scored(model, stride=1.0, batch_size=7)
    origins = np.concatenate([batch.starts.numpy() for batch, feedback, *_ in model.asked if feedback == "true"]) + 3
    start, stop = PARTS["test"][0]
    assert origins[0] == pytest.approx(start)                           # three seconds of its window lie before
    assert origins[-1] + 0.5 <= stop + 1e-9 and origins[-1] + 0.75 <= stop + 1e-9
    np.testing.assert_allclose(np.diff(origins), 1.0)
    assert all(len(batch) <= 7 and batch.duration == model.window for batch, *_ in model.asked)
    # Where the recording was not valid before the test part, the first origins have no past.
    gap = replace(SESSION, intervals=[[0, start], [start + 1e-3, SECONDS]])
    late = Says(RATES, history=3.0)
    scored(late, session=gap)
    assert late.asked[0][0].starts[0] >= start


def test_what_a_model_is_asked_is_what_was_wanted():
    model = Says(RATES)
    assert set(scored(model, feedback=("mean",), given=("hand_vel",), seed=5, batch_size=100)["model"]) == {"mean"}
    assert {(feedback, given) for _, feedback, given, _ in model.asked} == {("mean", ("hand_vel",))}
    assert [seed for *_, seed in model.asked] == list(range(5, 5 + len(model.asked)))       # no batch draws as another


def test_the_true_rates_have_the_best_r2_and_are_calibrated():
    truth = scored(by="side")
    wrong = scored(Says(2 * RATES), by="side")["model"]["sampled"]
    own = truth["model"]["sampled"]
    assert own["psth_r2"] > 0.9 > wrong["psth_r2"] and own["r2"] > 0.25 > truth["baselines"]["running_mean"]["r2"]
    assert own["calibration"]["error"] < 0.06
    assert wrong["calibration"]["error"] == pytest.approx(RATES[-1600:].mean(), rel=0.1)
    assert scored()["model"]["true"]["psth_r2"] is None
    statistics = own["statistics"]
    assert statistics["population_count_kl"] < 0.02 and statistics["correlation_rmse"] < 0.1
    assert wrong["statistics"]["population_count_kl"] > 10 * statistics["population_count_kl"]
    assert "statistics" not in truth["model"]["true"]                   # nothing is sampled there


def test_conditions_are_those_of_the_trial_that_a_bin_follows():
    origins, _ = forecasting._origins(Says(RATES), SESSION, PARTS["test"], 0.25)
    condition, since = forecasting._conditions(SESSION, origins, "start", "side")
    bins = (origins.times / BIN).round().astype(int)[:, None] + np.arange(10)
    np.testing.assert_array_equal(since, bins % 10)
    sides = pd.factorize(SESSION.trials["side"])[0]
    np.testing.assert_array_equal(condition, sides[bins // 10])
    later = replace(SESSION, trials=SESSION.trials.iloc[:-20])
    assert (forecasting._conditions(later, origins, "start", "side")[0][-1] == -1).all()


def test_calibration_by_hand():
    found = calibration(np.array([0.1, 0.1, 0.4, 0.4]), np.array([0, 1, 0, 0]), groups=2)
    assert found["predicted"] == pytest.approx([0.1, 0.4]) and found["counted"] == [0.5, 0]
    assert found["error"] == pytest.approx(0.4)


def test_direct_regressions_have_a_curve_of_their_horizons_and_serve_again():
    fitted = forecasting.fit(["population_glm", "psth"], SESSION, PARTS["train"], PARTS["valid"], bin_size=BIN, bins=10,
                             at=[1, 4])
    found = scored(baselines=fitted)
    glm = found["baselines"]["population_glm"]
    assert glm["curve"]["horizon_ms"] == glm["difference"]["true"]["horizon_ms"] == [50, 200]
    assert len(glm["penalties"]) == 2 and glm["r2"] is None
    by_name = scored(baselines=("population_glm",), horizons=(0.05, 0.2))["baselines"]["population_glm"]
    np.testing.assert_allclose(by_name["curve"]["bits"], glm["curve"]["bits"])
    psth = found["baselines"]["psth"]["curve"]["bits"]
    assert 0.02 < np.mean(psth) < np.mean(found["model"]["true"]["curve"]["bits"])
    json.dumps(found)                                                   # plain numbers and lists throughout
    bare = replace(SESSION, trials=SESSION.trials.iloc[:0])
    assert scored(session=bare, baselines=("psth",))["baselines"]["psth"] is None


def test_a_table_has_the_horizons_that_exist():
    found = scored()
    rows = table(found)
    assert rows["horizon_ms"].unique().tolist() == [50, 100, 200, 300, 500]
    assert rows["forecaster"].unique().tolist() == ["model, sampled", "model, true", "mean", "running_mean"]
    running = rows[rows["forecaster"] == "running_mean"]
    np.testing.assert_allclose(running["difference"], np.array(found["baselines"]["running_mean"]["difference"]
                                                               ["sampled"]["bits"])[[0, 1, 3, 5, 9]])
    assert rows[rows["forecaster"] == "model, true"]["difference"].isna().all()
    assert forecasting._bins((0.05, 0.1, 0.2, 0.3), 0.02) == [5, 10, 15]        # 50 ms end no bin of 20 ms


def test_the_real_model_fits_in():
    torch.manual_seed(0)
    model = models.build("neurohorizon", [SESSION.within(PARTS["train"])], bin_size=BIN, history=1.0, recent=0.5,
                         horizon=0.5, dim=16, width=32, depth=1, heads=2, latents=2, reference_windows=2)
    found = scored(model, stride=2.0, samples=2)
    assert found["windows"] == 41 and len(found["model"]["sampled"]["curve"]["bits"]) == 10
    first = [each["curve"]["bits"][0] for each in found["model"].values()]
    assert first[0] == pytest.approx(first[1], rel=1e-4)                # nothing has been fed back yet


def test_impossible_requests_are_told_in_one_sentence():
    with pytest.raises(WorkbenchError, match="model 'ndt1' forecasts no counts in bins; choose one that does"):
        scored(models.get("ndt1"))
    with pytest.raises(BadRecording, match=r"known: no interval lasts 100 s; give longer ones"):
        scored(Says(RATES, horizon=100.0))
    with pytest.raises(BadRecording, match=r"known: no forecast of 0\.5 s in the test part has 399 s of"):
        scored(Says(RATES, history=399.0), session=replace(SESSION, intervals=[[2.0, SECONDS]]))
    with pytest.raises(UnknownName, match="no column 'colour' in the trials of session 'known'"):
        scored(by="colour")
    with pytest.raises(UnknownName, match="no baseline 'glm'"):
        scored(baselines=("glm",))


def test_regressions_look_back_as_far_as_coarse_bins_need():
    model = models.build("neurohorizon", [SESSION], bin_size=0.5, chunk=0.5, history=2.0, recent=2.0, horizon=1.0,
                         dim=16, width=16, latents=1, depth=1, heads=2)
    found = scored(model, baselines=("own_glm",), samples=1)
    assert np.isfinite(found["baselines"]["own_glm"]["curve"]["bits"]).all()
