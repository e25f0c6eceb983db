"""Scores against nlb_tools where it is installed, scikit-learn, scipy and hand computation; and what they must feel.

nlb_tools 0.0.4 asks for pandas 1.3 and cannot stand beside ours, but its scoring needs none of it:
`pip install --no-deps nlb_tools` is enough for the tests that compare with it.
"""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from workbench import metrics
from workbench.errors import WorkbenchError

RANDOM = np.random.default_rng(0)
RATES = RANDOM.gamma(2.0, 0.3, size=(30, 20, 7))
COUNTS = RANDOM.poisson(RATES)
ROUGH = RATES * RANDOM.uniform(0.5, 1.5, RATES.shape)


@pytest.fixture
def nlb():
    return pytest.importorskip("nlb_tools.evaluation", reason="nlb_tools is not installed")


def log_likelihood(rates, counts):
    """An independent one: scipy's."""
    return stats.poisson.logpmf(counts, np.broadcast_to(rates, counts.shape))


# Behaviour

def test_r2_is_scikit_learns_both_ways():
    true = RANDOM.normal(size=(50, 3)) * [1, 5, 0.1]
    predicted = true + RANDOM.normal(size=(50, 3))
    each = sklearn_metrics.r2_score(true, predicted, multioutput="raw_values")
    np.testing.assert_allclose(metrics.r2(true, predicted), each)
    weighted = sklearn_metrics.r2_score(true, predicted, multioutput="variance_weighted")
    assert metrics.weighted_r2(true, predicted) == pytest.approx(weighted)
    assert metrics.weighted_r2(true, predicted) > metrics.r2(true, predicted).mean()    # the small column is the worst


def test_a_column_that_stands_still_has_no_r2_but_does_not_spoil_the_others():
    true, predicted = np.array([[0.0, 1], [1, 1], [2, 1]]), np.array([[0.0, 1], [1, 1], [1, 1]])
    np.testing.assert_allclose(metrics.r2(true, predicted), [0.5, np.nan])
    assert metrics.weighted_r2(true, predicted) == 0.5
    assert np.isnan(metrics.weighted_r2(true[:, 1:], predicted[:, 1:]))
    still = np.full((1000, 1), 0.1)                                     # whose mean is beside it, as floats go
    assert still.mean() != 0.1 and np.isnan(metrics.r2(still, still + 1)).all()


def test_accuracies_are_scikit_learns_and_balance_matters():
    true, predicted = np.array([0] * 8 + [1, 2]), np.array([0] * 9 + [2])
    assert metrics.accuracy(true, predicted) == sklearn_metrics.accuracy_score(true, predicted) == 0.9
    want = sklearn_metrics.balanced_accuracy_score(true, predicted)
    assert metrics.balanced_accuracy(true, predicted) == pytest.approx(want) == pytest.approx(2 / 3)
    assert metrics.balanced_accuracy(true, np.zeros(10)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("score", [metrics.r2, metrics.weighted_r2, metrics.accuracy, metrics.balanced_accuracy])
def test_every_value_wants_its_own_prediction(score):
    true = np.arange(10.0)
    for predicted in (true[:, None], true[:1]):
        with pytest.raises(WorkbenchError, match=r"for true values of shape \(10,\); give one prediction a value"):
            score(true, predicted)


# Rates

def test_bits_per_spike_is_scipys_likelihood_over_the_mean_rate():
    null = COUNTS.mean((0, 1))
    want = (log_likelihood(ROUGH, COUNTS) - log_likelihood(null, COUNTS)).sum() / COUNTS.sum() / np.log(2)
    assert metrics.bits_per_spike(ROUGH, COUNTS) == pytest.approx(want, rel=1e-9)


def test_bits_per_spike_is_nlb_tools(nlb):
    counts, rates = COUNTS.astype(float), ROUGH.copy()
    assert metrics.bits_per_spike(rates, counts) == pytest.approx(nlb.bits_per_spike(rates, counts), rel=1e-9)
    counts[3:5, 2:9, 1:3], rates[0, :4] = np.nan, 0
    assert metrics.bits_per_spike(rates, counts) == pytest.approx(nlb.bits_per_spike(rates.copy(), counts), rel=1e-9)


def test_truth_is_better_than_the_mean_and_the_mean_is_worth_nothing():
    mean = np.broadcast_to(COUNTS.mean((0, 1)), COUNTS.shape)
    assert metrics.bits_per_spike(mean, COUNTS) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(metrics.unit_bits_per_spike(mean, COUNTS), 0, atol=1e-12)
    assert metrics.bits_per_spike(RATES, COUNTS) > metrics.bits_per_spike(ROUGH, COUNTS) > 0


def test_a_better_null_leaves_less_to_gain_and_gains_add_up():
    training = COUNTS.mean((0, 1)) * 1.2
    over_own, over_training = (metrics.bits_per_spike(RATES, COUNTS, null) for null in (None, training))
    mean = np.broadcast_to(COUNTS.mean((0, 1)), COUNTS.shape)
    assert over_training > over_own
    assert over_training - over_own == pytest.approx(metrics.bits_per_spike(mean, COUNTS, training))


def test_missing_counts_and_their_rates_are_not_felt():
    counts, rates = COUNTS.astype(float), ROUGH.copy()
    counts[10:] = rates[10:] = np.nan
    assert metrics.bits_per_spike(rates, counts) == pytest.approx(metrics.bits_per_spike(ROUGH[:10], COUNTS[:10]))


def test_one_units_bits_are_those_of_that_unit_alone():
    counts = COUNTS * (np.arange(7) != 2)
    each = metrics.unit_bits_per_spike(ROUGH, counts)
    for unit in (0, 1, 3):
        assert each[unit] == pytest.approx(metrics.bits_per_spike(ROUGH[..., [unit]], counts[..., [unit]]))
    assert np.isnan(each[2]) and np.isfinite(np.delete(each, 2)).all()
    assert np.isnan(metrics.bits_per_spike(ROUGH, counts * 0))


def test_co_smoothing_and_forward_prediction_score_only_what_was_hidden():
    held_out, rates = np.arange(7) >= 5, ROUGH.copy()
    rates[:, :15, :5] = 50                              # nonsense where nothing is scored
    assert metrics.co_smoothing_bits(rates, COUNTS, held_out) == pytest.approx(
        metrics.bits_per_spike(ROUGH[..., 5:], COUNTS[..., 5:]))
    assert metrics.forward_bits(rates, COUNTS, 5) == pytest.approx(
        metrics.bits_per_spike(ROUGH[:, 15:], COUNTS[:, 15:]))


def test_a_given_null_is_cut_like_the_rates():
    null, held_out = COUNTS.mean((0, 1)) + 0.1, np.arange(7) % 2 == 0
    gain = log_likelihood(ROUGH, COUNTS) - log_likelihood(null, COUNTS)
    assert metrics.co_smoothing_bits(ROUGH, COUNTS, held_out, null) == pytest.approx(
        gain[..., held_out].sum() / COUNTS[..., held_out].sum() / np.log(2))
    assert metrics.forward_bits(ROUGH, COUNTS, 4, null) == pytest.approx(
        gain[:, -4:].sum() / COUNTS[:, -4:].sum() / np.log(2))


@pytest.mark.parametrize("rates, says", [(np.log(RATES), "logarithm"), (RATES[:, :5], "units last")])
def test_what_are_no_rates_is_refused(rates, says):
    with pytest.raises(WorkbenchError, match=says):
        metrics.bits_per_spike(rates, COUNTS)


def test_running_mean_by_hand():
    counts, start, bins = COUNTS[0], COUNTS.mean((0, 1)), 6
    for ahead in (1, 3):
        found = metrics.running_mean(counts, bins, start, ahead)
        for t in range(len(counts)):
            known = counts[max(t - ahead + 1 - bins, 0):max(t - ahead + 1, 0)]
            np.testing.assert_allclose(found[t], (known.sum(0) + start) / (len(known) + 1))


def test_running_mean_sees_no_future_and_beats_the_mean_under_drift():
    rates = np.linspace(0.2, 3, 2000)[:, None] * np.ones(3)
    counts = RANDOM.poisson(rates)
    found = metrics.running_mean(counts, 100, counts[:50].mean(0))
    assert metrics.bits_per_spike(found, counts) > 0.1
    counts[1000:] = 0
    np.testing.assert_array_equal(metrics.running_mean(counts, 100, counts[:50].mean(0))[:1001], found[:1001])


def test_psth_r2_by_hand():
    conditions = np.arange(30) % 3
    psth = np.stack([RATES[conditions == c].mean(0) for c in range(3)]) + RANDOM.normal(0, 0.05, (3, 20, 7))
    found = np.stack([ROUGH[conditions == c].mean(0) for c in range(3)])
    want = sklearn_metrics.r2_score(psth.reshape(-1, 7), found.reshape(-1, 7))
    assert metrics.psth_r2(psth, ROUGH, conditions) == pytest.approx(want)


def test_psth_r2_is_nlb_tools(nlb):
    conditions = RANDOM.integers(3, size=30)
    psth = np.stack([RATES[conditions == c].mean(0) for c in range(3)] + [np.ones((20, 7))])    # the last: no trial
    psth[1, 15:] = np.nan
    trials = [np.flatnonzero(conditions == c) for c in range(4)]
    assert metrics.psth_r2(psth, ROUGH, conditions) == pytest.approx(nlb.eval_psth(psth, ROUGH, trials))


# Spikes

def test_real_trains_are_at_no_distance_from_themselves_and_worse_ones_further():
    same = metrics.spike_train_distances(COUNTS, COUNTS, 0.02)
    assert all(value == pytest.approx(0, abs=1e-9) for value in same.values())
    again, slower = RANDOM.poisson(RATES), RANDOM.poisson(RATES / 2)
    near, far = (metrics.spike_train_distances(counts, COUNTS, 0.02) for counts in (again, slower))
    for name in ("population_count_kl", "isi_mean_rmse", "isi_sd_rmse"):
        assert 0 < near[name] < far[name] / 3


def test_correlations_between_units_are_felt():
    shared = RANDOM.poisson(1.0, (40, 30, 1)) + RANDOM.poisson(1.0, (40, 30, 4))
    alone = RANDOM.poisson(2.0, (40, 30, 4))
    assert metrics.spike_train_distances(alone, shared, 0.02)["correlation_rmse"] == pytest.approx(0.5, abs=0.06)
    pairs = np.tril_indices(4, -1)
    c, d = (np.corrcoef(x.reshape(-1, 4).T)[pairs] for x in (alone, shared))
    want = sklearn_metrics.root_mean_squared_error(c, d)
    assert metrics.spike_train_distances(alone, shared, 0.02)["correlation_rmse"] == pytest.approx(want)


def test_population_counts_are_compared_as_scipys_kernel_density():
    other = RANDOM.poisson(RATES * 1.3)
    most = np.arange(max(COUNTS.sum(2).max(), other.sum(2).max()) + 1)
    p, q = (stats.gaussian_kde(c.sum(2).ravel())(most) for c in (other, COUNTS))
    found = metrics.spike_train_distances(other, COUNTS, 0.02)["population_count_kl"]
    assert found == pytest.approx(stats.entropy(p, q), rel=1e-6)


def test_intervals_by_hand():
    """0.1 s bins. Unit 0: spikes at 0.05, 0.25 | 0.15; unit 1: two in one bin, at a third and two thirds of it."""
    counts = np.zeros((2, 3, 3), int)
    counts[0, 0, 0] = counts[0, 2, 0] = counts[1, 1, 0] = 1
    counts[1, 2, 1] = 2
    mean, sd = metrics._intervals(counts, 0.1)
    np.testing.assert_allclose(mean, [0.2, 0.1 / 3, np.nan])
    np.testing.assert_allclose(sd, [0, 0, np.nan], atol=1e-12)


def test_spread_of_intervals_is_scipys():
    counts = (RANDOM.random((1, 4000, 1)) < 0.1).astype(int)
    times = np.flatnonzero(counts[0, :, 0]) * 0.005 + 0.0025
    mean, sd = metrics._intervals(counts, 0.005)
    np.testing.assert_allclose([mean[0], sd[0]], [np.diff(times).mean(), np.diff(times).std()])


def test_one_unit_has_no_correlations_but_distances():
    found = metrics.spike_train_distances(COUNTS[::2, :, :1], COUNTS[1::2, :, :1], 0.02)
    assert np.isnan(found.pop("correlation_rmse")) and all(np.isfinite(value) for value in found.values())


def test_silence_and_units_that_differ():
    quiet = np.zeros_like(COUNTS)
    found = metrics.spike_train_distances(quiet, COUNTS, 0.02)
    assert found["population_count_kl"] > 1 and np.isnan(found["isi_mean_rmse"]) and np.isnan(found["correlation_rmse"])
    with pytest.raises(WorkbenchError, match="same units"):
        metrics.spike_train_distances(COUNTS[..., :3], COUNTS, 0.02)
