"""Probes of trials: what is there is found, what is not is at chance, and no trial's label helps to name it."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.small import SMALL
from workbench import models
from workbench.analysis import trial_probe
from workbench.analysis.trial_probe import classify, out_of_fold, trial_counts, trial_latents, trial_table, trials_of
from workbench.errors import BadRecording, WorkbenchError
from workbench.models.base import Output
from workbench.session import Session


def choices(trials: int = 40, seed: int = 0) -> Session:
    """Trials of 0.4 s once a second; half of the units fire more where the left contrast is the higher."""
    random = np.random.default_rng(seed)
    left, right = random.choice([0.0, 0.5, 1.0], (2, trials))
    start = np.arange(trials, dtype=float)
    rates = np.where(np.arange(10) < 5, np.sign(left - right)[:, None] * 15 + 20, 20)      # spikes/s [trials, units]
    spikes = random.poisson(rates * 0.4)
    trial, unit = np.nonzero(spikes)
    repeat = spikes[trial, unit]
    times = np.repeat(start[trial], repeat) + random.random(repeat.sum()) * 0.4
    order = np.argsort(times)
    table = pd.DataFrame({"start": start, "stop": start + 0.4, "left": left, "right": right})
    return Session(id="choices", spike_times=times[order], spike_units=np.repeat(unit, repeat)[order], simulated=True,
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(10)]}), trials=table,
                   intervals=np.stack([start, start + 0.4], axis=1))


SESSION = choices()
ASKED = dict(label="left > right", keep="left != right")


@pytest.fixture
def few(monkeypatch):
    """Fewer settings to choose from: what is tested is not the choice."""
    monkeypatch.setattr(trial_probe, "PROBES", {name: each[:2] for name, each in trial_probe.PROBES.items()})


def test_trials_are_told_by_an_expression_or_a_callable_and_equal_contrasts_dropped():
    table = SESSION.trials
    found = trials_of(SESSION, 0.4, **ASKED)
    unequal = (table["left"] != table["right"]).to_numpy()
    np.testing.assert_array_equal(found.starts, table["start"][unequal])
    np.testing.assert_array_equal(found.labels, (table["left"] > table["right"])[unequal])
    called = trials_of(SESSION, 0.4, lambda t: t["left"] > t["right"], lambda t: t["left"] != t["right"])
    np.testing.assert_array_equal(called.labels, found.labels)


def test_trials_whose_window_leaves_the_recording_are_left_out():
    cut = SESSION.between(0.0, 20.2)
    assert trials_of(cut, 0.4, "left > right").starts.max() < 20
    assert trials_of(SESSION, 0.3, "left > right", after=0.1).starts[0] == pytest.approx(0.1)
    with pytest.raises(BadRecording, match=r"0 are kept and have 0\.5 s"):
        trials_of(SESSION, 0.5, "left > right")


def test_what_a_user_gets_wrong_is_told_in_a_sentence():
    with pytest.raises(BadRecording, match="they have the columns start, stop, left, right"):
        trials_of(SESSION, 0.4, "contrast_left > 0")
    with pytest.raises(BadRecording, match="with 1 labels"):
        trials_of(SESSION, 0.4, "left > 5")
    with pytest.raises(BadRecording, match="too few for 5 folds"):
        classify(np.zeros((9, 3)), np.arange(9) < 3)
    model = models.build("neurobridge", [SESSION], **SMALL["neurobridge"] | {"window": 0.4})
    model.forward = lambda batch: Output()
    with pytest.raises(WorkbenchError, match="no model was given"):
        trial_table([], [SESSION], "left > right")
    with pytest.raises(WorkbenchError, match="choose one that embeds"):
        trial_latents(model, SESSION, np.zeros(1))


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_planted_label_is_found_and_shuffled_labels_are_at_chance(shuffled):
    random = np.random.default_rng(0)
    labels = np.repeat([False, True], (60, 30))
    x = random.standard_normal((90, 40))
    x[:, 0] += 4 * labels
    x[:, 1] += 4 * labels
    if shuffled:
        labels = random.permutation(labels)
    table = classify(x, labels, folds=4, repeats=1).set_index("probe")
    for name, least in (("logistic", 0.85), ("k-NN", 0.7)):
        score = table.loc[name]
        assert abs(score["balanced_accuracy"] - 0.5) < 0.15 if shuffled else score["balanced_accuracy"] > least
        assert score["low"] <= score["balanced_accuracy"] <= score["high"] and score["trials"] == 90


def test_no_trial_helps_to_name_itself(few):
    random = np.random.default_rng(1)
    x, labels = random.standard_normal((40, 12)), np.arange(40) % 2 == 0
    rows = random.permutation(40)
    folds = [(np.setdiff1d(rows, test), test) for test in np.split(rows, 4)]
    before = out_of_fold(x, labels, folds)
    for train, test in folds[:2]:
        changed, moved = labels.copy(), x.copy()
        changed[test] = ~changed[test]
        after = out_of_fold(x, changed, [(train, test)])
        moved[test[1:]] *= 100                                          # nor do the other held-out trials' features
        apart = out_of_fold(moved, labels, [(train, test)])
        for name in trial_probe.PROBES:
            np.testing.assert_array_equal(after[name][test], before[name][test])
            assert apart[name][test[0]] == before[name][test[0]]


def test_labels_may_be_words_and_more_than_two():
    random = np.random.default_rng(2)
    labels = np.array(["left", "none", "right"] * 15, object)
    x = np.stack([labels == "left", labels == "right"], axis=1) * 5 + random.standard_normal((45, 2))
    assert classify(x, labels, repeats=1).set_index("probe").loc["logistic", "balanced_accuracy"] > 0.9


def test_features_that_never_vary_name_trials_at_chance():
    table = classify(np.ones((20, 3)), np.arange(20) % 2 == 0, repeats=1)
    assert (table["balanced_accuracy"] == 0.5).all()


def test_counts_of_a_trial_are_those_of_its_window():
    starts = SESSION.trials["start"].to_numpy()
    whole, fine = (trial_counts(SESSION, starts, 0.4, size) for size in (0.4, 0.1))
    assert whole.shape == (40, 10) and fine.shape == (40, 40)
    np.testing.assert_array_equal(fine.reshape(40, 10, 4).sum(2), whole)
    np.testing.assert_array_equal(whole.sum(1), np.bincount(SESSION.spike_times.astype(int), minlength=40))


def test_latents_of_a_trial_are_its_windows_chunks_side_by_side_and_of_no_other_trial():
    model = models.build("neurobridge", [SESSION], **SMALL["neurobridge"] | {"window": 0.4})
    starts = SESSION.trials["start"].to_numpy()
    every, last = trial_latents(model, SESSION, starts), trial_latents(model, SESSION, starts, slice(-1, None))
    assert every.shape == (40, 8 * last.shape[1])
    np.testing.assert_allclose(every[:, -last.shape[1]:], last, atol=1e-6)
    np.testing.assert_allclose(trial_latents(model, SESSION, starts[5:7]), every[5:7], atol=1e-5)
    assert model.training


def test_the_table_sets_pretrained_random_and_counts_side_by_side(few):
    torch.manual_seed(0)
    network = [models.build("neurobridge", [SESSION], **SMALL["neurobridge"] | {"window": 0.4})]
    table = trial_table(network, [SESSION], **ASKED, folds=2, repeats=1)
    assert list(table.columns) == ["session", "features", "seed", "probe", "balanced_accuracy", "spread", "low", "high",
                                   "trials"]
    assert table.groupby("features").size().to_dict() == {
        "pretrained latents": 2, "random latents": 2, "counts, chunk by chunk": 2, "counts, whole window": 2}
    counts = table[(table["features"] == "counts, whole window") & (table["probe"] == "logistic")]
    assert counts["balanced_accuracy"].item() > 0.8
