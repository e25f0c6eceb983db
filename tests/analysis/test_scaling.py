"""A fitted curve has the exponent of the law that made its points, and is as sure of it as its seeds agree."""

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.scaling import CannotFit, fit


def runs(a, b, c, *, noise=0.0, seeds=3, sizes=8, seed=0):
    x = np.repeat(np.geomspace(1e4, 1e7, sizes), seeds)
    y = a * x ** -b + c + noise * np.random.default_rng(seed).standard_normal(len(x))
    return pd.DataFrame({"parameters": x, "loss": y})


@pytest.mark.parametrize(("a", "b", "c"), [(5.0, 0.3, 0.2), (-8.0, 0.5, 0.07), (200.0, 0.8, 0.0), (1.0, 0.076, -1.0)])
def test_without_noise_the_law_is_found_exactly(a, b, c):
    found = fit(runs(a, b, c), "parameters", "loss", draws=2)
    assert found.best == pytest.approx([a, b, c], rel=1e-3, abs=1e-4)
    assert np.ptp(found.draws, axis=0) == pytest.approx(0, abs=1e-3)
    assert found([1e5]) == pytest.approx(a * 1e5 ** -b + c)


def test_intervals_hold_the_true_exponent_about_as_often_as_they_say():
    held = []
    for seed in range(20):
        low, high = fit(runs(5.0, 0.3, 0.2, noise=0.004, seeds=6, seed=seed), "parameters", "loss",
                        draws=60).table(0.9).loc["b", ["low", "high"]]
        held.append(low < 0.3 < high)
    assert 0.65 <= np.mean(held) <= 1                                   # the t of few seeds has longer tails


def test_seeds_that_disagree_widen_the_band_and_one_seed_has_none():
    x = np.geomspace(1e4, 1e7, 5)
    calm, wild = (np.ptp(fit(runs(5, 0.3, 0.2, noise=noise), "parameters", "loss", draws=50).band(x), axis=0).mean()
                  for noise in (0.001, 0.01))
    assert 0 < 3 * calm < wild
    assert np.ptp(fit(runs(5, 0.3, 0.2, noise=0.01, seeds=1), "parameters", "loss", draws=3).draws, axis=0).max() == 0


def test_runs_without_a_score_are_left_out_and_too_few_sizes_refused():
    table = runs(5.0, 0.3, 0.2)
    table.loc[0, "loss"] = np.nan
    assert fit(table, "parameters", "loss", draws=1).best[1] == pytest.approx(0.3, rel=1e-3)
    with pytest.raises(CannotFit, match="no column 'size' of numbers; there are parameters, loss"):
        fit(table, "size", "loss")
    with pytest.raises(CannotFit, match="four sizes"):
        fit(runs(5.0, 0.3, 0.2, sizes=3), "parameters", "loss")
