"""How far to believe a picture: scores know no neighbour in time, and pictures without structure score as chance."""

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.trust import folds, judge, score, trustworthiness

TIMES = np.arange(0, 300, 0.2) + 0.1
ONE = np.zeros(len(TIMES), int)


def walk(seed, columns=1, smooth=100):
    rng = np.random.default_rng(seed)
    return np.apply_along_axis(lambda v: np.convolve(v, np.ones(smooth) / smooth, "same"), 0,
                               rng.normal(size=(len(TIMES), columns)))


@pytest.mark.parametrize("gap", [0.5, 2.0])
def test_points_of_two_folds_are_further_apart_than_the_gap(gap):
    fold = folds(TIMES, ONE, gap)
    assert set(fold) == {-1, 0, 1, 2, 3, 4} and (fold < 0).mean() < 0.3
    kept = np.flatnonzero(fold >= 0)
    other = fold[kept][1:] != fold[kept][:-1]
    assert (np.diff(TIMES[kept])[other] > gap).all()


def test_no_trial_is_cut():
    trial = (TIMES // 3).astype(int)
    fold = folds(TIMES, ONE, 0.2, trial)
    for number in np.unique(trial):
        assert len(set(fold[trial == number]) - {-1}) <= 1


def test_sessions_are_cut_each_on_its_own():
    times = np.concatenate([TIMES, TIMES])
    fold = folds(times, np.repeat([0, 1], len(TIMES)), 0.5)
    assert np.array_equal(fold[:len(TIMES)], fold[len(TIMES):])


def test_slow_walks_that_have_nothing_to_do_with_each_other_tell_nothing():
    """With points drawn at random into folds the nearest neighbour is the moment before, and R² is high."""
    label = pd.Series(walk(1)[:, 0])
    leaked = score(walk(2, 8), label, np.random.default_rng(0).integers(0, 5, len(TIMES)))
    honest = score(walk(2, 8), label, folds(TIMES, ONE, 20.0))
    assert leaked.neighbors > 0.6 and honest.neighbors < 0.2 and honest.linear < 0.2


def test_what_is_there_is_found_in_numbers_and_in_words():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(len(TIMES), 3))
    line = score(x, pd.Series(2 * x[:, 0] + 0.1 * rng.normal(size=len(x))), folds(TIMES, ONE, 0.5))
    assert line.measure == "R²" and line.linear > 0.98 and 0.7 < line.neighbors < line.linear
    ring = score(x[:, :2], pd.Series(np.where(np.hypot(x[:, 0], x[:, 1]) > 1.2, "out", "in")), folds(TIMES, ONE, 0.5))
    assert ring.measure == "balanced accuracy" and ring.neighbors > 0.9 and 0.4 < ring.linear < 0.6


def test_a_rare_class_weighs_as_much_as_a_frequent_one():
    rng = np.random.default_rng(4)
    rare = rng.random(len(TIMES)) < 0.1
    nothing = score(rng.normal(size=(len(TIMES), 2)), pd.Series(np.where(rare, "a", "b")), folds(TIMES, ONE, 0.5))
    assert nothing.chance == 0.5 and abs(nothing.neighbors - 0.5) < 0.12 and abs(nothing.linear - 0.5) < 0.12


def test_labels_unknown_or_too_few_are_no_number_and_no_error():
    x, fold = walk(5, 2), folds(TIMES, ONE, 0.5)
    few = pd.Series(np.where(np.arange(len(TIMES)) < 20, 1.5, np.nan))
    assert np.isnan(score(x, few, fold).linear)
    assert np.isnan(score(x, pd.Series(["same"] * len(TIMES)), fold).neighbors)
    half = pd.Series(np.where(np.arange(len(TIMES)) % 2, x[:, 0], np.nan))
    assert score(x, half, fold).linear > 0.99


def test_trustworthiness_of_the_points_themselves_is_one_and_of_others_chance():
    x = np.random.default_rng(6).normal(size=(800, 2))
    assert trustworthiness(np.c_[x, x], x) > 0.999
    assert trustworthiness(x, np.random.default_rng(7).normal(size=(800, 2))) == pytest.approx(0.5, abs=0.05)


def test_the_table_has_a_row_for_all_for_each_layout_and_for_drift_alone():
    x = walk(8, 6, smooth=5)
    label = pd.Series(x[:, 0] + x[:, 5])
    table = judge(x, {"PCA": x[:, :2]}, label, folds(TIMES, ONE, 1.0))
    assert list(table.index) == ["all 6 dimensions", "PCA, 2 dimensions", "label moved by half the recording"]
    assert table["linear"].iloc[0] > 0.95 and 0.3 < table["linear"].iloc[1] < 0.7 and table["linear"].iloc[2] < 0.05
    assert len(judge(x, {}, label, folds(TIMES, ONE, 1.0), drifts=True)) == 1
