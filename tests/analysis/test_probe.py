"""Probes find what is linear in a frozen model, from no more labels than they are given, and from no test label."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.models.small import SMALL
from tests.models.test_models import tuned
from workbench import models
from workbench.analysis import probe
from workbench.analysis.decoding import decode
from workbench.analysis.label_curve import label_curve, labelled, lagged_counts
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.models.base import Output
from workbench.session import Series, Session, inside
from workbench.windows import split

SESSION = tuned(seconds=60)
PARTS = split(SESSION)


class Chunks(nn.Module):
    """Bins of 10 ms, and latents of chunks of 50 ms that follow the target linearly; or whatever `says` says."""

    name, decodes = "chunks", False
    window, warmup, bin_size, chunk, reads = 1.0, 0.0, 0.01, 0.05, ()

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.noise = noise
        self.mix = nn.Parameter(torch.randn(2, 6))
        self._hub_mixin_config = {"noise": noise}

    def forward(self, batch):
        values = batch.targets["vel"].values.view(len(batch), -1, 2)
        return Output(latents=values @ self.mix + 3 + self.noise * torch.randn(len(batch), values.shape[1], 6))


def read(model, part, **options):
    return probe.read(model, SESSION, PARTS[part], "vel", **options)


def test_latents_of_chunks_are_read_where_bins_are_finer():
    found = probe.fit(Chunks(), [SESSION], [PARTS["train"]], [PARTS["valid"]], "vel")
    assert found.source == "latents"
    decoded = decode(found, SESSION, PARTS["test"], "vel")
    np.testing.assert_allclose(decoded.averaged, decoded.true, atol=0.05)


def test_every_sample_is_read_once_with_the_latents_of_its_own_chunk():
    model = Chunks()
    series = SESSION.get_series("vel")
    for step in (None, 0.3, 1.0):
        found = read(model, "test", step=step)
        np.testing.assert_array_equal(found.times, series.times[inside(series.times, PARTS["test"])])
        np.testing.assert_allclose(found.x, found.y @ model.mix.detach().numpy() + 3, atol=1e-5)


def test_what_windows_say_of_a_sample_is_averaged():
    model = Chunks()
    model.forward = lambda batch: Output(latents=batch.starts.float()[:, None, None].expand(-1, 20, 1))
    found = probe.read(model, SESSION, np.array([[2.0, 4.0]]), "vel", step=0.5)
    np.testing.assert_allclose(found.x[:, 0], np.repeat([2.0, 2.25, 2.75, 3.0], 10))
    model.warmup = 0.5
    late = probe.read(model, SESSION, np.array([[2.0, 4.0]]), "vel", step=0.5)
    np.testing.assert_allclose(late.times[[0, -1]], [2.525, 3.975])
    np.testing.assert_allclose(late.x[:, 0], np.repeat([2.0, 2.5, 3.0], 10))


def test_a_source_that_the_model_has_not_is_refused_in_a_sentence():
    parts = [PARTS["train"]], [PARTS["valid"]]
    with pytest.raises(WorkbenchError, match="says no rates bin by bin"):
        probe.fit(Chunks(), [SESSION], *parts, "vel", source="rates")
    with pytest.raises(WorkbenchError, match="no model was given"):
        label_curve([], SESSION, PARTS, "vel")
    with pytest.raises(UnknownName, match="latents"):
        probe.fit(Chunks(), [SESSION], *parts, "vel", source="latent")


def test_the_source_of_a_model_that_says_both_can_be_chosen():
    model = models.build("neurobridge", [SESSION], **SMALL["neurobridge"])
    parts = [PARTS["train"]], [PARTS["valid"]]
    assert probe.fit(model, [SESSION], *parts, "vel").source == "rates"
    found = probe.fit(model, [SESSION], *parts, "vel", source="latents")
    assert found.maps[SESSION.id].shape == (SMALL["neurobridge"]["latents"] * SMALL["neurobridge"]["width"] + 1, 2)


def planted(random, n, shuffled=False):
    x = random.standard_normal((n, 8)).astype(np.float32)
    y = x[:, :2] + 0.1 * random.standard_normal((n, 2))
    return probe.Samples(np.arange(n), x, random.permutation(y) if shuffled else y)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_planted_relation_is_found_and_shuffled_labels_are_at_chance(shuffled):
    random = np.random.default_rng(0)
    train, valid, test = (planted(random, n, shuffled) for n in (600, 200, 400))
    for both in (False, True):
        weight = probe.linear(train, valid, both)
        near = probe.nearest(train, valid, test.x, both)
        for said, least in ((test.x @ weight[:-1] + weight[-1], 0.97), (near, 0.6)):
            score = probe.r2(test.y, said).mean()
            assert (abs(score) < 0.1) if shuffled else (score > least)


def test_the_penalty_is_that_of_the_validation_part():
    random = np.random.default_rng(0)
    train, valid = planted(random, 30), planted(random, 500)
    noise = valid._replace(y=random.permutation(valid.y))
    assert np.abs(probe.linear(train, noise)[:-1]).max() < 0.05 < 0.5 < np.abs(probe.linear(train, valid)[:-1]).max()
    few, many = (probe.nearest(train, part, train.x) for part in (valid, noise))
    assert few.std() > many.std()


def test_scale_of_the_features_changes_nothing():
    random = np.random.default_rng(1)
    train, valid, test = (planted(random, n) for n in (60, 200, 100))
    times = lambda samples: samples._replace(x=samples.x * 1000)
    one, two = probe.linear(train, valid), probe.linear(times(train), times(valid))
    np.testing.assert_allclose(test.x @ one[:-1] + one[-1], 1000 * test.x @ two[:-1] + two[-1], atol=1e-4)


def test_test_labels_change_no_prediction():
    series = SESSION.get_series("vel")
    values = series.values.copy()
    late = series.times >= PARTS["test"][0, 0]
    values[late] = np.random.default_rng(0).permutation(values[late])
    changed = replace(SESSION, series={"vel": series._replace(values=values)})
    said = []
    for session in (SESSION, changed):
        samples = {name: lagged_counts(session, part, "vel", 0.05, range(-4, 1)) for name, part in PARTS.items()}
        weight = probe.linear(samples["train"], samples["valid"], True)
        said.append((samples["test"].x @ weight[:-1] + weight[-1],
                     probe.nearest(samples["train"], samples["valid"], samples["test"].x, True)))
    for one, two in zip(*said, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("draw", ["first", "last", 0, 1, 7])
def test_labels_of_n_seconds_last_n_seconds(draw):
    part = np.array([[0.0, 10.0], [12.0, 13.0], [20.0, 40.0]])
    found = labelled(part, 12.0, draw)
    assert np.diff(found).sum() == pytest.approx(12.0) and (np.diff(found.ravel()) > 0).all()
    middles = found.mean(1)
    assert all(((part[:, 0] < m) & (m < part[:, 1])).any() for m in middles)
    gaps = [part[i + 1, 0] - part[i, 1] for i in range(2)]
    assert all(any(np.isclose(b - a, gap) for gap in gaps) for a, b in zip(found[:-1, 1], found[1:, 0], strict=True))
    if draw == "first":
        np.testing.assert_allclose(found, [[0, 10], [12, 13], [20, 21]])
    if draw == "last":
        np.testing.assert_allclose(found, [[28, 40]])


def test_draws_of_labels_differ_by_seed_and_are_the_same_for_one():
    part = np.array([[0.0, 100.0]])
    np.testing.assert_array_equal(labelled(part, 5.0, 3), labelled(part, 5.0, 3))
    assert len({labelled(part, 5.0, seed)[0, 0] for seed in range(5)}) == 5
    with pytest.raises(BadRecording, match=r"ask for fewer"):
        labelled(part, 101.0)
    with pytest.raises(UnknownName, match="whole number"):
        labelled(part, 5.0, "middle")


def test_lagged_counts_are_those_of_the_bins_around_and_see_nothing_outside():
    spikes = np.array([0.01, 0.06, 0.07, 0.16, 0.21])
    clock = np.arange(6) * 0.05 + 0.025
    session = Session(id="s", spike_times=spikes, spike_units=[0, 0, 1, 1, 0], units=pd.DataFrame({"id": ["a", "b"]}),
                      intervals=[[0, 0.3]], series={"x": Series(clock, np.r_[0.0, 1, np.nan, 3, 4, 5][:, None])})
    found = lagged_counts(session, np.array([[0.0, 0.2]]), "x", 0.05, [-1, 0, 1])
    np.testing.assert_allclose(found.times, clock[[0, 1, 3]])           # the gap in the series is left out
    np.testing.assert_array_equal(found.x, [[1, 0, 1, 0, 1, 1], [1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 1]])


def test_lagged_counts_pass_over_gaps_in_the_recording_and_in_the_behaviour():
    session = tuned(seconds=60)
    gap = replace(session, intervals=[[0, 20], [30, 60]])
    pieces = lagged_counts(session, np.array([[0.0, 20], [30, 60]]), "vel", 0.05, [-1, 0])
    whole = lagged_counts(gap, np.array([[0.0, 60.0]]), "vel", 0.05, [-1, 0])
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one, other)
    vel = session.series["vel"]
    lost = replace(session, series={"vel": vel._replace(values=np.where(vel.times[:, None] < 21, np.nan, vel.values))})
    assert (lagged_counts(lost, np.array([[0.0, 20], [30, 60]]), "vel", 0.05, [0]).times > 30).all()


def test_a_probe_of_rates_knows_units_by_name():
    torch.manual_seed(0)
    model = models.build("ndt1", [SESSION], **SMALL["ndt1"]).eval()
    found = probe.fit(model, [SESSION], [PARTS["train"]], [PARTS["valid"]], "vel", "rates")
    order = np.random.default_rng(0).permutation(len(SESSION.units))
    mixed = replace(SESSION, units=SESSION.units.iloc[order].reset_index(drop=True),
                    spike_units=np.argsort(order)[SESSION.spike_units])
    one, other = (decode(found, each, PARTS["test"], "vel").averaged for each in (SESSION, mixed))
    np.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(WorkbenchError, match="10 of the units whose rates the probe was fitted to, such as 'u10'"):
        decode(found, SESSION.select(range(10)), PARTS["test"], "vel")


def test_a_twin_has_other_weights_the_same_settings_and_is_the_same_for_a_seed():
    model = models.build("neurobridge", [SESSION], **SMALL["neurobridge"])
    before = torch.get_rng_state()
    one, again, other = (probe.untrained(model, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    weight = lambda m: m.backbone.state_dict()[next(iter(m.backbone.state_dict()))]
    latents = lambda m: read(m, "valid").x
    np.testing.assert_array_equal(latents(one), latents(again))
    assert not np.allclose(latents(one), latents(other)) and not np.allclose(latents(one), latents(model.eval()))
    assert one._hub_mixin_config == model._hub_mixin_config and weight(one).shape == weight(model).shape


def test_a_label_curve_sets_pretrained_random_and_counts_side_by_side():
    torch.manual_seed(0)
    pretrained = [Chunks(noise=1.0) for _ in range(2)]
    with torch.no_grad():
        for model in pretrained:
            model.mix *= 20
    table = label_curve(pretrained, SESSION, PARTS, "vel", seconds=(5, None), draws=("last", 0))
    wide = table[table["probe"] == "ridge"].groupby(["features", "labels"])["r2"].mean().unstack()
    assert list(wide.columns) == [5.0, pytest.approx(np.diff(PARTS["train"]).sum() + np.diff(PARTS["valid"]).sum())]
    assert set(wide.index) == {"pretrained latents", "random latents", "counts, own bin", "counts, last 10 bins",
                               "counts, 20 bins around"}
    assert (wide.loc["pretrained latents"] > wide.loc["random latents"]).all()
    rows = table[(table["features"] == "pretrained latents") & (table["probe"] == "k-NN")]
    assert rows.groupby("labels")["draw"].apply(list).tolist() == [["last", 0] * 2, ["all"] * 2]
    assert set(rows["seed"]) == {0, 1} and table["r2"].notna().all()


def test_a_label_curve_fits_to_the_labels_it_counts(monkeypatch):
    fitted = []
    honest = probe.linear
    monkeypatch.setattr("workbench.analysis.probe.linear",
                        lambda train, *rest: fitted.append(len(train.x)) or honest(train, *rest))
    label_curve([Chunks()], SESSION, PARTS, "vel", seconds=(5, 20), draws=("first", 1))
    assert fitted == pytest.approx([100, 100, 400, 400] * 5, abs=1)
