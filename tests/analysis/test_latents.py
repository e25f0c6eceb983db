"""Clouds of latents: a point lies where its spikes are, is called what went on there, and is computed once."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.small import SMALL
from workbench import Series, Session, models
from workbench.analysis import latents
from workbench.analysis.labels import label_names, labels, spikes_of, stretches, told, trial_of, trials_of
from workbench.analysis.latents import moments, unit_vectors
from workbench.errors import UnknownName, WorkbenchError
from workbench.models.base import Output, SpikeModel


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


def recording(seconds=30.0, n=6, spikes=4000, seed=1, **more):
    rng = np.random.default_rng(seed)
    times = np.arange(0, seconds, 0.02)
    units = pd.DataFrame({"id": [f"u{i}" for i in range(n)], "region": np.where(np.arange(n) % 2, "M1", "PMd")})
    starts = np.arange(1.0, seconds - 2, 3.0)
    trials = pd.DataFrame({"start": starts, "stop": starts + 2, "side": np.where(np.arange(len(starts)) % 2, "l", "r"),
                           "contrast": np.arange(len(starts)) % 3 / 2, "delay": rng.random(20)[:len(starts)]})
    return Session(**{"id": "one", "spike_times": np.sort(rng.uniform(0, seconds, spikes)), "units": units,
                      "spike_units": rng.integers(0, n, spikes).astype(np.int32), "intervals": [[0, seconds]],
                      "series": {"hand_vel": Series(times, rng.normal(size=(len(times), 2)), "m/s", ("x", "y")),
                                 "pupil": Series(times, np.sin(times)[:, None])}, "trials": trials, **more})


class Counts(SpikeModel):
    """Its latents are the counts themselves, so that everything about them is known."""

    name = "counts"
    embeds = True

    def __init__(self, window: float = 1.0, warmup: float = 0.0):
        super().__init__()
        self.bin_size, self.window, self.warmup, self.asked = 0.05, window, warmup, 0
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        self.asked += 1
        return Output(latents=self.gain * batch.counts(self.bin_size).transpose(1, 2))


def counted(session, cloud):
    """Spikes of every unit around every point, counted by hand."""
    return np.array([[((session.spike_units == u) & (session.spike_times >= t - 0.025)
                       & (session.spike_times < t + 0.025)).sum() for u in range(len(session.units))]
                     for t in cloud.times])


def test_a_point_lies_where_its_spikes_are_and_no_moment_is_there_twice():
    session = recording(intervals=[[0, 7.3], [11.02, 14.02], [20, 20.5]])
    cloud = moments(Counts(), [session])
    assert (cloud.values == counted(session, cloud)).mean() > 0.999         # but for spikes on an edge
    assert np.diff(cloud.times).min() > 0.025
    inside = ((cloud.times > 0) & (cloud.times < 7.3)) | ((cloud.times > 11.02) & (cloud.times < 14.02))
    assert inside.all() and len(cloud.times) == cloud.total == 146 + 60      # the third is shorter than a window


def test_the_warm_up_of_a_window_gives_no_points():
    cloud = moments(Counts(warmup=0.4), [recording()])
    assert cloud.times[0] == pytest.approx(0.425)
    assert np.allclose(np.diff(cloud.times), 0.05, atol=1e-6)               # the next window goes on where it ends


def test_of_many_points_every_kth_is_taken():
    session = recording()
    cloud, whole = moments(Counts(), [session], most=100), moments(Counts(), [session])
    assert len(cloud.times) == 100 and cloud.total == 600 and cloud.every == 6
    assert np.allclose(np.diff(cloud.times), 0.3)
    assert np.array_equal(cloud.values, whole.values[::6])


def test_sessions_lie_one_after_the_other():
    a, b = recording(), recording(seconds=10.0, seed=2, id="two")
    cloud = moments(Counts(), [a, b])
    assert np.bincount(cloud.session).tolist() == [600, 200]
    assert np.array_equal(cloud.values[cloud.session == 1], moments(Counts(), [b]).values)


def test_a_cloud_is_computed_once_for_the_same_weights_and_recording():
    session, model = recording(), Counts()
    first = moments(model, [session])
    asked = model.asked
    again = moments(model, [session])
    assert model.asked == asked and np.array_equal(first.values, again.values) and first.key == again.key
    moments(model, [recording(seed=3)])
    assert model.asked > asked
    reads = Counts()
    reads.reads = ("hand_vel", "trials.start")                          # what a model reads beside spikes counts, too
    keys = {latents.fingerprint(reads, [each]) for each in (session, replace(
        session, series={**session.series, "hand_vel": session.series["hand_vel"]._replace(
            times=session.series["hand_vel"].times + 0.5)}), replace(
        session, trials=session.trials.assign(start=session.trials["start"] + 0.5)))}
    assert len(keys) == 3
    torch.nn.init.constant_(model.gain, 2.0)
    assert np.array_equal(moments(model, [session]).values, 2 * first.values)
    (latents.cache_folder("latents") / f"{first.key}.npz").write_bytes(b"damaged")
    torch.nn.init.constant_(model.gain, 1.0)
    assert np.array_equal(moments(model, [session]).values, first.values)


def test_progress_goes_to_the_end_and_training_mode_comes_back():
    said, model = [], Counts().train()
    moments(model, [recording()], progress=lambda done, of: said.append((done, of)))
    assert said == sorted(said) and said[-1] == (30, 30) and model.training


def test_several_latents_of_one_time_are_one_point(monkeypatch):
    session = recording()
    model = models.build("poyo", [session], target="hand_vel", **SMALL["poyo"])
    wide = moments(model, [session])
    assert wide.values.shape == (240, 4 * 32) and wide.width == 0.125
    monkeypatch.setattr(latents, "WIDE", 100)
    mean = moments(model, [session], most=10_000)
    assert np.allclose(mean.values, wide.values.reshape(240, 4, 32).mean(1), atol=1e-5)


@pytest.mark.parametrize("name", ["ndt1", "stndt", "mtm", "ndt2", "possm", "gru", "mlp", "neds", "lfads", "ldns",
                                  "neurobridge"])
def test_every_model_that_embeds_gives_a_cloud(name):
    session, model = recording(), models.get(name)
    settings = {**SMALL[name], **({"target": "hand_vel"} if model.decodes or name == "neds" else {})}
    cloud = moments(models.build(name, [session], **settings), [session])
    assert len(cloud.times) == cloud.total > 100 and cloud.values.shape[1] > 1
    assert 0 < cloud.times[0] < cloud.times[-1] < 30


def test_a_model_without_latents_of_moments_is_refused_in_a_sentence():
    session = recording()
    with pytest.raises(WorkbenchError, match="Ridge gives no latents"):
        moments(models.build("ridge", [session], target="hand_vel"), [session])
    with pytest.raises(WorkbenchError, match="one vector a unit"):
        moments(models.build("nuclr", [session], **SMALL["nuclr"]), [session])


def test_latents_that_are_no_numbers_are_refused():
    model = Counts()
    torch.nn.init.constant_(model.gain, np.nan)
    with pytest.raises(WorkbenchError, match="no numbers"):
        moments(model, [recording()])


def test_vectors_of_units_are_the_models_rows_in_the_order_of_the_table():
    session = recording()
    model = models.build("mtm", [session], **SMALL["mtm"])
    name, vectors = unit_vectors(model, session.select([3, 1]))
    table = model.get_submodule(name)
    assert np.array_equal(vectors, table.weight[[table.row["one/u1"], table.row["one/u3"]]].detach())
    with pytest.raises(UnknownName, match="never seen"):
        unit_vectors(model, recording(id="two"))
    with pytest.raises(WorkbenchError, match="no vector of its own"):
        unit_vectors(Counts(), session)


# What points are called.

def test_points_are_called_by_what_went_on_there():
    session = recording()
    cloud = moments(Counts(), [session])
    assert label_names([session]) == ["time", "trials.side", "trials.contrast", "trials.delay", "hand_vel.x",
                                      "hand_vel.y", "hand_vel.speed", "pupil"]
    trial = trial_of(session, cloud.times)
    for row, start in enumerate(session.trials["start"]):
        assert np.array_equal(trial == row, (cloud.times >= start) & (cloud.times < start + 2))
    side = labels(cloud, [session], "trials.side")
    assert side[trial < 0].isna().all() and (side[trial >= 0] == np.where(trial[trial >= 0] % 2, "l", "r")).all()
    contrast = labels(cloud, [session], "trials.contrast")              # few numbers are names
    assert set(contrast.dropna()) == {"0", "0.5", "1"}
    assert pd.api.types.is_numeric_dtype(labels(cloud, [session], "trials.delay"))
    clock, velocity = session.series["hand_vel"].times, session.series["hand_vel"].values
    speed = labels(cloud, [session], "hand_vel.speed")
    for i in (0, 17, 599):
        near = (clock >= cloud.times[i] - 0.025) & (clock < cloud.times[i] + 0.025)
        assert speed[i] == pytest.approx(np.linalg.norm(velocity[near], axis=1).mean())


def test_gaps_in_a_series_are_unknown_and_slow_series_are_held():
    slow = Series(np.arange(0.0, 10, 0.4), np.arange(25.0)[:, None])
    holes = Series(np.arange(0, 30, 0.02), np.where(np.arange(1500) < 500, np.nan, 1.0)[:, None])
    session = recording(series={"slow": slow, "holes": holes})
    cloud = moments(Counts(), [session])
    value = labels(cloud, [session], "slow")
    assert np.abs(value[cloud.times < 9.5] - cloud.times[cloud.times < 9.5] / 0.4).max() <= 0.51
    assert value[cloud.times > 10.5].isna().all()
    assert labels(cloud, [session], "holes")[cloud.times < 9.9].isna().all()


def test_a_label_that_only_one_session_has_is_unknown_in_the_other():
    a, b = recording(), recording(id="two", series={}, trials=pd.DataFrame({"start": [], "stop": []}))
    cloud = moments(Counts(), [a, b])
    assert labels(cloud, [a, b], "pupil")[cloud.session == 1].isna().all()
    assert set(labels(cloud, [a, b], "session")) == {"one", "two"}
    assert (trials_of(cloud, [a, b])[cloud.session == 1] == -1).all()


def test_an_unknown_label_is_answered_with_the_near_ones():
    session = recording()
    with pytest.raises(UnknownName, match=r"trials\.side"):
        labels(moments(Counts(), [session]), [session], "trials.sides")


def test_of_overlapping_trials_in_any_order_the_later_counts():
    session = recording(trials=pd.DataFrame({"start": [5.0, 1.0], "stop": [8.0, 6.0]}))
    assert trial_of(session, np.array([0.5, 1.0, 5.5, 6.5, 8.0])).tolist() == [-1, 1, 0, 0, -1]
    nested = recording(trials=pd.DataFrame({"start": [0.0, 2, 2.2, 5, 20], "stop": [10.0, 3, 2.5, 5.5, 21]}))
    times = np.array([1.0, 2.1, 2.3, 2.7, 4.0, 5.2, 7.0, 10.0, 20.5, 25.0])
    assert trial_of(nested, times).tolist() == [0, 1, 2, 1, 0, 3, 0, -1, 4, -1]
    assert trial_of(replace(nested, trials=nested.trials[:0]), times).tolist() == [-1] * 10


def test_chosen_moments_become_stretches_and_their_spikes_are_all_there():
    session = recording()
    times = np.array([1.125, 1.025, 1.075, 3.025])
    pieces = stretches(times, 0.05)
    assert np.allclose(pieces, [[1.0, 1.15], [3.0, 3.05]])
    counts, cuts = spikes_of(session, pieces, np.array([2, 0]), columns=100)
    for row, unit in enumerate((2, 0)):
        own = session.spike_times[session.spike_units == unit]
        assert counts[row].sum() == sum(((own >= a) & (own < b)).sum() for a, b in pieces)
    assert cuts.tolist() == [0, 75] and counts.shape == (2, 100)
    assert stretches(np.empty(0), 0.05).shape == (0, 2)


def test_a_choice_is_told_in_words():
    session = recording()
    cloud = moments(Counts(), [session])
    trial, side = trials_of(cloud, [session]), labels(cloud, [session], "trials.side")
    rows = np.flatnonzero(trial == 4)
    said = told(session, cloud, rows, trial[rows], side, rows)
    assert "40 of 600 points" in said and "1 of 9 trials: 4" in said and "r 100 % (of all 56 %)" in said
