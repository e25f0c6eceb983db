"""The simulated reaching recording has the statistics it claims, and its truth is the truth."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from workbench import Session
from workbench.errors import BadRecording
from workbench.sources.simulated import DEAD, _plan, bits_told, many_spikes, reach_sim


@pytest.fixture(scope="module")
def recording() -> Session:
    return reach_sim(0, seconds=300)


def counts(session: Session, bin_size: float) -> np.ndarray:
    """Spike counts [T, N]."""
    bins = round(session.duration / bin_size)
    edges = np.arange(bins + 1) * bin_size
    n = len(session.units)
    rows = np.searchsorted(edges, session.spike_times, side="right") - 1
    return np.bincount(rows * n + session.spike_units, minlength=bins * n).reshape(bins, n)


def velocity(session: Session, bin_size: float) -> np.ndarray:
    """Mean intended velocity [T, 2] in each bin, cm/s, from the truth."""
    per_bin = round(bin_size / 0.01)
    return session.truth["latents"][:, :2].reshape(-1, per_bin, 2).mean(axis=1)


def test_no_unit_fires_within_its_refractory_period(recording):
    for unit in range(len(recording.units)):
        gaps = np.diff(recording.spike_times[recording.spike_units == unit])
        assert gaps.min() >= DEAD - 1e-9


def test_units_are_less_likely_to_fire_just_after_the_refractory_period(recording):
    fastest = recording.rates().argmax()
    gaps = np.diff(recording.spike_times[recording.spike_units == fastest])
    assert (gaps < 0.005).sum() < 0.6 * ((gaps > 0.010) & (gaps < 0.013)).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rates_are_lognormal_as_in_motor_cortex(seed):
    rates = reach_sim(0, seconds=120, seed=seed).rates()
    assert 3.5 < np.median(rates) < 9
    assert (rates > 25).any() and (rates < 1).any() and rates.max() < 100
    assert 0.8 < np.log(rates).std() < 1.5


def test_spikes_follow_the_true_rates(recording):
    expected = recording.truth["rates"].sum(axis=1) * 0.05
    seen = counts(recording, 0.05).sum(axis=0)
    assert np.all(np.abs(seen - expected) < 5 * np.sqrt(expected) + 0.02 * expected)
    np.testing.assert_allclose(recording.truth["mean_rate"] * recording.duration, expected, rtol=1e-3)


def test_the_same_arguments_give_the_same_session_and_others_another():
    a, b, c = (reach_sim(1, seconds=20, units=20, seed=s) for s in (3, 3, 4))
    assert np.array_equal(a.spike_times, b.spike_times) and np.array_equal(a.spike_units, b.spike_units)
    assert a.units.equals(b.units) and a.trials.equals(b.trials)
    assert all(np.array_equal(a.truth[k], b.truth[k]) for k in a.truth)
    assert np.array_equal(a.series["hand_vel"].values, b.series["hand_vel"].values)
    assert not np.array_equal(a.spike_times[:50], c.spike_times[:50])


@pytest.mark.parametrize("seed", range(4))
def test_half_to_four_fifths_of_the_units_are_kept_from_one_session_to_the_next(seed):
    days = [reach_sim(k, seconds=10, units=60, seed=seed) for k in range(5)]
    assert not days[0].truth["kept"].any()
    for before, after in pairwise(days):
        shared = set(before.units["id"]) & set(after.units["id"])
        assert 0.5 <= len(shared) / 60 <= 0.8
        assert set(after.units["id"][after.truth["kept"]]) == shared
        region = dict(zip(before.units["id"], before.units["region"], strict=True))
        assert all(region[i] == r for i, r in zip(after.units["id"], after.units["region"], strict=True) if i in shared)


def test_a_unit_that_left_never_comes_back():
    days = [set(reach_sim(k, seconds=10, units=40).units["id"]) for k in range(6)]
    for i in range(len(days)):
        for j in range(i + 2, len(days)):
            assert days[i] & days[j] <= days[i + 1]


def test_tuning_of_a_kept_unit_drifts_a_little():
    one, two = reach_sim(0, seconds=10), reach_sim(1, seconds=10)
    shared = sorted(set(one.truth["unit"]) & set(two.truth["unit"]))
    at = [[list(s.truth["unit"]).index(u) for u in shared] for s in (one, two)]
    turn = two.truth["preferred_direction"][at[1]] - one.truth["preferred_direction"][at[0]]
    turn = np.angle(np.exp(1j * turn))
    assert 0.05 < turn.std() < 0.25 and np.abs(turn).max() < 0.8
    assert np.corrcoef(np.log(one.truth["gain"][at[0]]), np.log(two.truth["gain"][at[1]]))[0, 1] > 0.9


def test_preferred_directions_can_be_regressed_from_the_spikes(recording):
    n = counts(recording, 0.05)
    v = velocity(recording, 0.05)
    truth = recording.truth
    found = np.empty(len(recording.units))
    for i in range(len(found)):
        lead = round(truth["lag"][i] / 0.05)
        design = np.c_[np.ones(len(v) - lead), v[lead:], np.hypot(*v[lead:].T)]
        found[i] = np.arctan2(*np.linalg.lstsq(design, n[:len(n) - lead, i], rcond=None)[0][2:0:-1])
    clear = truth["gain"] * np.sqrt(truth["mean_rate"]) > 1
    error = np.abs(np.angle(np.exp(1j * (found - truth["preferred_direction"]))))
    assert clear.sum() > 20 and np.median(error[clear]) < np.deg2rad(15)


def test_both_regions_lead_the_hand_and_pmd_leads_m1(recording):
    n, v, truth = counts(recording, 0.02), velocity(recording, 0.02), recording.truth
    shifts = np.arange(-20, 31)                                         # bins of 20 ms; positive: the unit leads
    best = {}
    for region in ("M1", "PMd"):
        rows = np.flatnonzero(recording.units["region"] == region)
        curves = []
        for i in rows:
            along = v @ [np.cos(truth["preferred_direction"][i]), np.sin(truth["preferred_direction"][i])]
            curves.append([np.corrcoef(n[60:-60, i], np.roll(along, -s)[60:-60])[0, 1] for s in shifts])
        best[region] = shifts[np.nanmean(curves, axis=0).argmax()] * 0.02
    assert 0.02 <= best["M1"] <= 0.14
    assert best["PMd"] >= best["M1"] + 0.05


def test_pmd_tells_the_target_before_the_movement_and_m1_hardly(recording):
    trials = recording.trials[recording.trials["go_cue_time"] - recording.trials["target_on_time"] > 0.3]
    direction = trials["target_direction"].to_numpy()
    away = np.c_[np.cos(direction), np.sin(direction)]
    tuned = []
    for i in range(len(recording.units)):
        times = recording.spike_times[recording.spike_units == i]
        planned = np.diff(np.searchsorted(times, trials[["target_on_time", "go_cue_time"]].to_numpy()))[:, 0]
        rate = planned / (trials["go_cue_time"] - trials["target_on_time"]).to_numpy()
        tuned.append(np.hypot(*np.linalg.lstsq(np.c_[np.ones(len(away)), away], rate, rcond=None)[0][1:])
                     / max(rate.mean(), 0.5))
    premotor = (recording.units["region"] == "PMd").to_numpy()
    tuned = np.array(tuned)[recording.rates() > 2]
    premotor = premotor[recording.rates() > 2]
    assert np.median(tuned[premotor]) > 1.5 * np.median(tuned[~premotor])


def test_units_vary_together_beyond_what_movement_explains_and_the_true_rates_explain_it(recording):
    n, latents = counts(recording, 0.5), recording.truth["latents"]
    busy = recording.rates() > 5
    expected = recording.truth["rates"].T.reshape(len(n), 10, -1).sum(axis=1) * 0.05
    movement = np.c_[latents[:, :4], np.hypot(*latents[:, :2].T)].reshape(len(n), 50, -1)
    movement = np.c_[np.ones(len(n)), movement[:, :25].mean(axis=1), movement[:, 25:].mean(axis=1)]
    after_movement = n - movement @ np.linalg.lstsq(movement, n, rcond=None)[0]

    def shared(residual):
        correlations = np.corrcoef(residual[:, busy].T)
        return np.sqrt((correlations[np.triu_indices(busy.sum(), 1)] ** 2).mean())

    by_chance = 1 / np.sqrt(len(n))
    assert shared(after_movement) > 2 * by_chance
    assert shared(n - expected) < 1.15 * by_chance


def test_hand_velocity_is_the_derivative_of_hand_position(recording):
    position, speed = recording.series["hand_pos"], recording.series["hand_vel"]
    assert position.unit == "cm" and speed.unit == "cm/s" and abs(position.interval - 0.01) < 1e-9
    moved = np.cumsum(speed.values, axis=0)[-1] * 0.01
    np.testing.assert_allclose(moved, position.values[-1] - position.values[0], atol=0.5)
    assert np.abs(position.values).max() < 20


def test_the_hand_is_still_before_the_move_and_on_target_after_successful_trials(recording):
    hand, trials = recording.series["hand_pos"], recording.trials
    speed = np.hypot(*recording.truth["latents"][:, :2].T)
    before = np.searchsorted(hand.times, trials["move_onset_time"] - 0.02)
    assert np.all(speed[before] < 1)
    end = np.searchsorted(hand.times, trials["stop"]) - 1
    missed = np.hypot(*(hand.values[end] - trials[["target_x", "target_y"]].to_numpy()).T)
    assert np.median(missed[trials["success"]]) < 1.0
    assert np.quantile(missed[trials["success"]], 0.95) < np.quantile(missed[~trials["success"]], 0.6)
    assert (trials["start"].to_numpy()[1:] >= trials["stop"].to_numpy()[:-1]).all()


def test_velocity_can_be_decoded_linearly_with_room_left_above(recording):
    n, v = counts(recording, 0.05).astype(float), recording.series["hand_vel"].values[4::5]
    lags = np.concatenate([np.roll(n, k, axis=0) for k in range(10)], axis=1)[10:]
    v = v[10:10 + len(lags)]
    cut = int(0.8 * len(lags))
    mean, std = lags[:cut].mean(axis=0), lags[:cut].std(axis=0) + 1e-6
    x = (lags - mean) / std
    weights = np.linalg.solve(x[:cut].T @ x[:cut] + 3000 * np.eye(x.shape[1]), x[:cut].T @ (v[:cut] - v[:cut].mean(0)))
    error = v[cut:] - v[:cut].mean(0) - x[cut:] @ weights
    r2 = 1 - (error ** 2).sum(axis=0) / ((v[cut:] - v[cut:].mean(0)) ** 2).sum(axis=0)
    assert 0.6 < r2.mean() < 0.85


def test_simulated_is_said_in_the_session_and_survives_saving(tmp_path):
    made = reach_sim(2, seconds=10, units=12)
    assert made.simulated and "simulated" in made.description and "simulated" in repr(made)
    read = Session.open(made.save(tmp_path / "sim.h5"))
    assert read.simulated and "simulated" in read.description and "simulated" in repr(read)
    assert set(read.truth) == set(made.truth)
    for name, values in made.truth.items():
        assert np.array_equal(read.truth[name], values), name


def test_impossible_sizes_are_refused_in_one_sentence():
    for bad in ({"session": -1}, {"units": 1}, {"seconds": 1}):
        with pytest.raises(BadRecording, match="needs session >= 0"):
            reach_sim(**bad)


def test_a_session_is_the_one_it_always_was():
    made = reach_sim(1, seconds=20, units=20)
    spikes = hashlib.sha256(made.spike_times.tobytes() + made.spike_units.tobytes()).hexdigest()
    assert spikes.startswith("99d6e591c9c48e8a")


def test_the_plan_can_be_told_from_the_trials(recording):
    plan = np.zeros((len(recording.truth["latents"]), 2))
    for trial in recording.trials.itertuples():
        _plan(plan, trial.target_on_time, trial.move_onset_time, np.array([trial.reach_x, trial.reach_y]))
    np.testing.assert_allclose(plan, recording.truth["latents"][:, 2:4], atol=1e-6)
    assert np.abs(plan).max() > 0.5


def test_drives_split_the_units_evenly_and_a_unit_stays_in_its_region():
    drives = {"A": (1, 0), "B": (0, 1), "C": (1, 1)}
    days = [reach_sim(k, seconds=5, units=32, drives=drives).units for k in range(3)]
    for units in days:
        assert units["region"].value_counts().to_dict() == {"A": 11, "B": 11, "C": 10}
    for before, after in pairwise(days):
        both = before.merge(after, on="id")
        assert len(both) >= 16 and (both["region_x"] == both["region_y"]).all()


def test_drives_change_the_units_and_nothing_else_of_a_session():
    one, other = reach_sim(seconds=10, units=20), reach_sim(seconds=10, units=20, drives={"A": (0, 2), "B": (1, 0)})
    assert one.trials.equals(other.trials)
    assert np.array_equal(one.series["hand_vel"].values, other.series["hand_vel"].values)
    assert np.array_equal(one.truth["latents"], other.truth["latents"])


def test_drive_is_exactly_zero_where_its_strength_is_and_grows_with_it():
    told = np.array([reach_sim(seconds=20, units=20, drives={"A": (x, 0), "B": (0, x), "C": (0, 0)}).truth["drive"]
                     for x in (0.25, 0.5, 1, 2)])                       # [strengths, regions, 2]
    assert (told[:, [0, 1, 2, 2], [1, 0, 0, 1]] == 0).all()
    assert (told[0, [0, 1], [0, 1]] > 0).all() and (np.diff(told[:, [0, 1], [0, 1]], axis=0) > 0).all()
    made = reach_sim(seconds=5, units=4, drives={"A": (1, 0), "B": (0, 1)})
    assert list(made.truth["drive_names"]) == ["A", "B"]
    assert list(made.truth["drive_modalities"]) == ["movement", "plan"]


@pytest.mark.parametrize(("column", "without"), [(0, (0, 1)), (1, (1, 0))])
def test_drive_is_what_the_rates_of_the_same_session_without_it_lack(column, without):
    whole = reach_sim(seconds=60, units=30, drives={"A": (1, 1)}).truth
    rates, lacking = whole["rates"], reach_sim(seconds=60, units=30, drives={"A": without}).truth["rates"]
    lacking = lacking * rates.mean(axis=1, keepdims=True) / lacking.mean(axis=1, keepdims=True)
    expected = (rates * np.log2(rates / lacking)).sum() / rates.sum()   # in bins of 50 ms, so a little less
    assert 0.95 * expected < whole["drive"][0, column] < 1.1 * expected


def test_bits_told_are_a_poisson_likelihood_ratio_at_equal_means():
    rates, without = np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[4.0, 4.0], [0.5, 0.5]])
    np.testing.assert_allclose(bits_told(rates, without), [np.log2(1 / 2) + 3 * np.log2(3 / 2), 0])


def test_a_driven_region_is_tuned_to_what_drives_it_and_to_nothing_else():
    made = reach_sim(seconds=200, units=60, delay=(0.5, 0.9), drives={"moved": (1.5, 0), "planned": (0, 1.5)})
    trials = made.trials
    aim, stop = trials[["reach_x", "reach_y"]].to_numpy(), trials["go_cue_time"].to_numpy() - 0.05
    windows = {"plan": (stop - 0.3, stop), "movement": (trials["move_onset_time"] + 0.08, trials["stop"] - 0.35)}
    assert len(aim) > 60
    tuned = {}
    for name, (begin, end) in windows.items():
        design = np.c_[np.ones(len(aim)), aim]
        for region in ("moved", "planned"):
            explained = []
            for unit in np.flatnonzero((made.units["region"] == region) & (made.units["firing_rate"] > 3)):
                times = made.spike_times[made.spike_units == unit]
                rate = (np.searchsorted(times, end) - np.searchsorted(times, begin)) / (end - begin)
                error = rate - design @ np.linalg.lstsq(design, rate, rcond=None)[0]
                explained.append(1 - (error ** 2).sum() / ((rate - rate.mean()) ** 2).sum())
            tuned[name, region] = np.median(explained)
    by_chance = 2 / (len(aim) - 1)
    assert tuned["plan", "planned"] > 4 * by_chance and tuned["plan", "moved"] < 2 * by_chance
    assert tuned["movement", "moved"] > 4 * by_chance and tuned["movement", "planned"] < 2 * by_chance


def test_how_much_a_unit_fires_does_not_depend_on_what_drives_it():
    still, driven = (reach_sim(seconds=30, units=60, drives={"A": (x, x)}).truth["mean_rate"] for x in (0, 1))
    assert 0.85 < np.median(driven / still) <= 1 and (driven / still).min() > 0.5
    drives = {"A": (0, 0), "B": (2, 0), "C": (0, 2)}
    rates = np.log(reach_sim(seconds=20, units=180, drives=drives).truth["mean_rate"]).reshape(3, 60)
    assert np.ptp(np.median(rates, axis=1)) < 3 * 1.15 * np.sqrt(np.pi / 2 / 60)


def test_drives_survive_saving(tmp_path):
    made = reach_sim(seconds=5, units=6, drives={"A": (1, 0), "B": (0, 1)})
    read = Session.open(made.save(tmp_path / "driven.h5"))
    assert list(read.truth["drive_names"]) == ["A", "B"] and np.array_equal(read.truth["drive"], made.truth["drive"])
    assert np.array_equal(read.trials["reach_x"], made.trials["reach_x"])


@pytest.mark.parametrize("bad", [{}, {"A": (1, -0.5)}, {"A": (1,)}, {"A": (1, 0), "B": (1, 0, 0)}, {"A": 1},
                                 {"A": ("much", 1)}, {"A": (float("nan"), 1)}, {1: (1, 0)}, ["A"],
                                 {name: (1, 1) for name in "ABCDEFGHI"}])
def test_drives_that_are_not_two_strengths_a_region_are_refused_in_one_sentence(bad):
    with pytest.raises(BadRecording, match=r"drives names 1 to 8 .* two numbers >= 0, movement and plan, as in"):
        reach_sim(seconds=5, units=8, drives=bad)


def test_many_spikes_gives_about_that_many_refractory_spikes_without_tuning():
    made = many_spikes(100_000, units=50, seconds=300)
    assert abs(len(made.spike_times) - 100_000) < 5_000
    assert made.simulated and made.units["region"].nunique() == 4 and not made.series
    assert min(np.diff(made.spike_times[made.spike_units == u]).min() for u in range(50)) >= DEAD - 1e-9
