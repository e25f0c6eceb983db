"""Baselines of forecasts: each finds what was put into simulated spikes, and none sees what comes after an origin."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import models
from workbench.analysis import forecast_baselines, forecast_glm
from workbench.analysis.forecast_baselines import Network, Origins, fit, learn, masked_forecast
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import bits_per_spike
from workbench.session import Session
from workbench.windows import split

BIN = 0.05


def session_of(counts: np.ndarray, **more) -> Session:
    """A recording whose counts [T, N] in bins of `BIN` s are these."""
    at, unit = np.nonzero(counts)
    at, unit = (np.repeat(each, counts[at, unit].astype(int)) for each in (at, unit))
    times = (at + np.random.default_rng(0).uniform(0.05, 0.95, len(at))) * BIN
    order = np.argsort(times)
    table = pd.DataFrame({"id": [f"u{i}" for i in range(counts.shape[1])]})
    return Session(id="known", spike_times=times[order], spike_units=unit[order], units=table, simulated=True,
                   intervals=[[0, len(counts) * BIN]], **more)


def origins_of(counts: np.ndarray, at: np.ndarray, past: int = 20, bins: int = 4, session=None) -> Origins:
    """Forecasts from the bins `at`."""
    seen = np.stack([counts[i - past:i].T for i in at]).astype(np.float32)
    return Origins(session or session_of(counts), at * BIN, seen, bins, BIN)


def after(counts: np.ndarray, at: np.ndarray, bins: int = 4) -> np.ndarray:
    return np.stack([counts[i:i + bins].T for i in at])


def driven(bins: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Counts [T, 4] and rates [T, 4]: unit 1 follows unit 0 by two bins, unit 2 its own last bin; 0 and 3 nothing."""
    random = np.random.default_rng(1)
    counts, rates = np.zeros((bins, 4)), np.full((bins, 4), 0.5)
    for t in range(2, bins):
        rates[t, 1], rates[t, 2] = 0.3 * np.exp(0.8 * counts[t - 2, 0]), 0.3 * np.exp(0.6 * min(counts[t - 1, 2], 3))
        counts[t] = random.poisson(rates[t])
    return counts, rates


COUNTS, RATES = driven()
SESSION = session_of(COUNTS)
PARTS = split(SESSION)
TEST = np.arange(3250, 3990)


def fitted(*names: str, session=SESSION, **options) -> dict:
    return fit(names, session, PARTS["train"], PARTS["valid"], **dict(bin_size=BIN, bins=4) | options)


def bits(rates: np.ndarray, unit: int, bin_: int = 0) -> float:
    counts = after(COUNTS, TEST)[:, unit, bin_][:, None]
    return bits_per_spike(rates[:, unit, bin_][:, None], counts, COUNTS[:2800, unit].mean()[None])


def test_a_population_regression_finds_the_unit_that_drives_another_and_its_lag():
    glm, own = fitted("population_glm", "own_glm", at=[1, 2, 3]).values()
    weights = glm.weights.reshape(3, 4, forecast_glm.LAGS, 4)           # [horizon, from, lag counted back, to]
    strongest = lambda row: np.unravel_index(np.abs(weights[row, :, ::-1, 1]).argmax(), (4, forecast_glm.LAGS))
    assert strongest(0) == (0, 1) and strongest(1) == (0, 0)            # two bins back of the first, one of the second
    assert weights[0, 0, -2, 1] == pytest.approx(0.8, abs=0.2)
    assert weights[0, 2, -1, 2] == pytest.approx(0.6, abs=0.2)
    there = origins_of(COUNTS, TEST)
    rates = glm(there)
    truth = after(RATES, TEST)
    assert bits(rates, 1) > 0.75 * bits(truth, 1) > 0.05
    assert abs(bits(own(there), 1)) < 0.03 < 0.75 * bits(truth, 2) < bits(own(there), 2)
    assert abs(bits(rates, 1, 2)) < 0.03                                # three bins ahead nothing is known any more
    assert np.isnan(rates[:, :, 3]).all() and not np.isnan(rates[:, :, :3]).any()


def test_a_penalty_is_the_best_of_validation_and_lies_inside_its_grid():
    glm = fitted("population_glm", at=[1])["population_glm"]
    grid, (penalty,) = glm.told["grid"], glm.told["penalties"]
    assert grid == sorted(grid) and grid[0] < penalty < grid[-1]
    learning = learn(SESSION, PARTS["train"], PARTS["valid"], BIN, 4, [1])
    (x, y), (seen, met) = (forecast_glm._examples(SESSION, part, learning) for part in learning[:2])

    def score(alpha):
        (weights, bias), = forecast_glm._all(x, y, learning.mean, BIN, [alpha]).values()
        rates = np.minimum(np.exp(seen @ weights[0] + bias[0]), learning.cap)
        return (met[:, 0] * np.log(rates) - rates).sum()
    assert score(penalty) == max(score(each) for each in grid)
    narrow = fitted("own_glm", at=[1])["own_glm"]
    assert narrow.told["grid"][0] < narrow.told["penalties"][0] < narrow.told["grid"][-1]


def test_a_silent_unit_counts_as_half_a_spike():
    counts = COUNTS.copy()
    counts[:, 3] = 0
    glm, running = fitted("population_glm", "running_mean", session=session_of(counts), at=[1]).values()
    there = origins_of(counts, TEST[:5])
    np.testing.assert_allclose(glm(there)[:, 3, 0], 0.5 / 2800, rtol=1e-5)
    assert (running(there)[:, 3] > 0).all()


def test_the_regression_run_on_starts_as_the_direct_one_and_then_feeds_on_its_own_rates():
    direct, free = fitted("population_glm", "population_glm_free", at=[1, 2]).values()
    there = origins_of(COUNTS, TEST[:6])
    rates = free(there)
    np.testing.assert_allclose(rates[:, :, 0], direct(there)[:, :, 0])
    past = np.concatenate([there.past[:, :, 1:], rates[:, :, :1]], axis=2)
    np.testing.assert_allclose(rates[:, :, 1], direct(there._replace(past=past))[:, :, 0], rtol=1e-5)
    assert len(free.told["penalties"]) == 1


def test_a_running_mean_of_constant_rates_says_these_rates_and_follows_a_change():
    random = np.random.default_rng(2)
    rates = np.full((4000, 3), [0.2, 1.0, 3.0])
    rates[3000:, 1] = 4.0
    counts = random.poisson(rates)
    running = fitted("running_mean", session=session_of(counts))["running_mean"]
    there = origins_of(counts, np.array([2950, 3900]))
    np.testing.assert_allclose(running(there)[0], np.repeat([[0.2], [1.0], [3.0]], 4, axis=1), rtol=0.2)
    np.testing.assert_allclose(running(there)[1, 1], 4.0, rtol=0.1)
    expected = (counts[3300:3900].sum(0) + counts[:2800].mean(0)) / 601
    np.testing.assert_allclose(running(there)[1, :, 0], expected, rtol=1e-6)


def test_a_psth_is_the_mean_by_time_since_the_trial_started():
    shape = np.array([0.2, 2.0, 4.0, 1.0, 0.5])
    bins = np.arange(4000)
    counts = np.random.default_rng(3).poisson(np.stack([shape[bins % 5], np.full(4000, 1.0)], axis=1))
    starts = bins[10::5] * BIN                                          # the first trials of the recording are missing
    trials = pd.DataFrame({"start": starts, "stop": starts + 5 * BIN})
    session = session_of(counts, trials=trials)
    psth = fitted("psth", session=session)["psth"]
    rates = psth(origins_of(counts, np.array([3000, 3003]), session=session))
    np.testing.assert_allclose(rates[0, 0], shape[:4], rtol=0.2)
    np.testing.assert_allclose(rates[1, 0], shape[[3, 4, 0, 1]], rtol=0.2)
    np.testing.assert_allclose(psth(origins_of(counts, np.array([5]), past=5, session=session))[0, 0],
                               counts[:2800, 0].mean(), rtol=1e-6)
    assert fitted("psth")["psth"] is None
    unknown = replace(session, trials=session.trials.assign(stop=np.nan))
    assert fitted("psth", session=unknown)["psth"] is None


@pytest.mark.parametrize("name", [n for n in forecast_baselines.BASELINES if n != "psth"])
def test_nothing_after_an_origin_changes_a_baseline(name, monkeypatch):
    quick(monkeypatch, steps=3, seconds=0.5)
    baseline = fitted(name, at=[1])[name]
    at = np.array([3300])
    other = COUNTS.copy()
    other[3300:] = 9
    np.testing.assert_array_equal(baseline(origins_of(COUNTS, at)), baseline(origins_of(other, at)))
    other = COUNTS.copy()
    other[3290:3300] += 1
    assert not np.allclose(baseline(origins_of(COUNTS, at)), baseline(origins_of(other, at)), equal_nan=True)


def quick(monkeypatch, steps: int, seconds: float) -> None:
    """Train the network for less."""
    for name, value in {"STEPS": steps, "EVERY": max(steps // 3, 1), "SECONDS": seconds}.items():
        monkeypatch.setattr(forecast_baselines, name, value)


def test_a_network_learns_what_drives_and_its_rollouts_average_to_the_truth(monkeypatch):
    quick(monkeypatch, steps=150, seconds=0.5)
    sampled, mean = fitted("gru", "gru_mean", samples=16).values()
    there = origins_of(COUNTS, TEST[::4])
    for net in (sampled, mean):
        rates = net(there)
        assert np.corrcoef(rates[:, 1, 0], after(RATES, TEST[::4])[:, 1, 0])[0, 1] > 0.5
        assert (rates > 0).all() and rates.shape == (185, 4, 4)
    np.testing.assert_allclose(sampled(there)[:, :, 0], mean(there)[:, :, 0], rtol=1e-5)    # nothing is fed back yet
    np.testing.assert_array_equal(sampled(there), sampled(there))
    np.testing.assert_allclose(sampled(there).mean((0, 2)), COUNTS.mean(0), rtol=0.25)


def test_a_network_is_told_the_state_of_its_past():
    torch.manual_seed(0)
    net = Network(np.ones(3)).eval()
    counts = torch.rand(2, 9, 3)
    whole, _ = net(counts)
    _, state = net(counts[:, :5])
    torch.testing.assert_close(net(counts[:, 5:], state)[0], whole[:, 5:])


@pytest.mark.parametrize("name, settings", [("ndt1", {}), ("mtm", {"schemes": ["temporal", "causal"]}),
                                            ("neurobridge", {"dim": 16, "width": 32, "depth": 1, "latents": 2,
                                                             "modes": {"temporal": 1.0, "causal": 1.0}})])
def test_a_masked_model_tells_the_time_after_the_origin_from_the_time_before(name, settings):
    torch.manual_seed(0)
    model = models.build(name, [SESSION], bin_size=BIN, window=1.0, heads=2, **settings)
    baseline, at = masked_forecast(model), np.array([3300, 3310])
    there = origins_of(COUNTS, at, bins=16)
    rates = baseline(there)
    assert not np.isnan(rates[:, :, :10]).any() and np.isnan(rates[:, :, 10:]).all()        # half the window is shown
    later, sooner = COUNTS.copy(), COUNTS.copy()
    later[3310:], sooner[3295:3300] = 0, 5
    np.testing.assert_allclose(baseline(origins_of(later, at, bins=16))[1], rates[1])
    assert not np.allclose(baseline(origins_of(sooner, at, bins=16))[0, :, :10], rates[0, :, :10])


def test_impossible_requests_are_told_in_one_sentence():
    with pytest.raises(UnknownName, match=r"no baseline 'population'.*did you mean population_glm"):
        fitted("population")
    with pytest.raises(BadRecording, match=r"known: no interval to learn from lasts 20\.5 s"):
        fitted("population_glm", bins=500, at=[400])
    with pytest.raises(WorkbenchError, match="'poyo' predicts no firing rates"):
        masked_forecast(models.get("poyo"))
    fine = models.build("ndt1", [SESSION], dim=8, depth=1, bin_size=0.02)
    with pytest.raises(WorkbenchError, match=r"tells bins of 0\.02 s, which cannot be set beside"):
        masked_forecast(fine)(origins_of(COUNTS, np.array([3300])))
