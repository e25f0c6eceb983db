"""NeuroBridge's readout of pictures: what it starts from, what learns in which stage, and what it does not feel."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import workbench
from workbench import models
from workbench.batch import Reader
from workbench.errors import BadRecording, WorkbenchError
from workbench.losses import clip_loss
from workbench.models.neurobridge_pictures import NeuroBridgePictures
from workbench.models.neurobridge_votes import votes
from workbench.session import Series, Session
from workbench.training.loop import optimizer
from workbench.training.recipe import Optim
from workbench.windows import locked

TARGET, SMALL = "vectors", dict(dim=16, width=16, depth=2, heads=2, latents=1, bin_size=0.05, dropout=0.0)
VECTORS = np.random.default_rng(0).normal(size=(40, 6))


def pictures() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (40, 8, 8, 3), np.uint8)


def recording(name: str = "a", units: int = 12, repeats: int = 6, seed: int = 1) -> Session:
    """Units of two regions that answer 40 pictures by their vectors, V1 from 30 ms on, IT from 100 ms on."""
    random = np.random.default_rng(seed)
    image = np.concatenate([random.permutation(40) for _ in range(repeats)])
    start, region = 0.5 * np.arange(len(image)) + 1.0, np.array(["V1", "IT"])[np.arange(units) % 2]
    rates = 6 * np.exp(0.8 * VECTORS[image] @ random.normal(size=(6, units)) / 6 ** 0.5)
    n = random.poisson(rates)
    which, unit = (np.repeat(each, n[np.nonzero(n)]) for each in np.nonzero(n))
    times = start[which] + np.where(region[unit] == "V1", 0.03, 0.1) + 0.1 * random.random(len(which))
    order = np.argsort(times)
    return Session(id=name, spike_times=times[order], spike_units=unit[order], simulated=True,
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(units)], "region": region}),
                   intervals=[[0, start[-1] + 1]], load_images=pictures,
                   stimuli=pd.DataFrame({"start": start, "stop": start + 0.2, "image": image}),
                   series={TARGET: Series(start, VECTORS[image])})


A, B = recording(), recording("b", 8, seed=2)


def build(sessions=(A,), **settings) -> NeuroBridgePictures:
    torch.manual_seed(0)
    return models.build("neurobridge_pictures", list(sessions), target=TARGET,
                        **{"encoder": SMALL, "hidden": 32, "dropout": 0.0} | settings)


def windows(session: Session = A, number: int = 24, sessions=None):
    sessions = sessions or [session]
    starts = locked(session.intervals, session.series[TARGET].times, 0.3)[:number, 0]
    return Reader(sessions, (TARGET,)).read(np.full(len(starts), sessions.index(session)), starts, 0.3)


def two_way(model, session: Session = A) -> float:
    batch = windows(session, 10_000)
    with torch.no_grad():
        found = model.eval()(batch).latents[:, 0].numpy()
    keys = VECTORS - model.mean.numpy()
    near = found @ (keys / np.linalg.norm(keys, axis=1, keepdims=True)).T
    own = near[np.arange(len(near)), session.stimuli["image"].to_numpy()[:len(near)]]
    return float((near < own[:, None]).sum(1).mean() / 39)


def test_it_starts_where_tuning_says_and_the_network_adds_nothing_yet():
    with_, without = build(), build(readout=False)
    batch = windows()
    torch.testing.assert_close(with_.eval().read(batch)[0], without.eval().read(batch)[0])
    assert two_way(without) > 0.9
    assert abs(two_way(build(votes=False)) - 0.5) < 0.2                # which knows nothing before it is trained


def test_votes_are_the_discriminant_of_what_was_simulated():
    random = np.random.default_rng(0)
    tuning, vectors = random.normal(size=(6, 20)), random.normal(size=(300, 6))
    which, noise = np.repeat(np.arange(300), 8), np.diag(random.uniform(0.5, 3, 20))
    noise[:5, :5] += 0.8
    counts = vectors[which] @ tuning + random.multivariate_normal(np.zeros(20), noise, len(which))
    rows = votes(counts, vectors[which] - vectors[which].mean(0))
    true = np.linalg.solve(noise, tuning.T)
    assert np.corrcoef(rows.ravel(), true.ravel())[0, 1] > 0.99
    assert np.isclose(np.linalg.norm((counts - counts.mean(0)) @ rows, axis=1).mean(), 1)


def test_a_unit_that_never_fires_has_no_vote_and_breaks_nothing():
    counts = np.random.default_rng(0).poisson(3.0, (60, 4)).astype(float)
    counts[:, 2] = 0
    rows = votes(counts, np.repeat(np.random.default_rng(1).normal(size=(20, 3)), 3, axis=0))
    assert np.isfinite(rows).all() and not rows[2].any() and rows[1].any()


def test_the_loss_falls_and_gradients_reach_what_may_learn():
    model, batch = build(votes=False), windows(number=80)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model.loss(batch)["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_in_stage_1_the_encoder_stays_to_the_bit_and_in_stage_2_its_first_layers():
    def trained(**settings):
        model = build(**settings)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(6):                                              # what a mask hides is drawn anew
            adam.zero_grad()
            model.train().loss(windows())["loss"].backward()
            adam.step()
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    assert not [name for name in trained() if name.startswith("encoder.")]
    changed = [name for name in trained(freed=1) if name.startswith("encoder.")]
    assert changed and all(name.startswith(("encoder.backbone.blocks.1.", "encoder.backbone.norm")) for name in changed)


def test_the_freed_encoder_and_what_is_good_from_the_start_learn_more_slowly():
    model = build(freed=1)
    groups = optimizer(model, Optim()).param_groups
    slow = {id(p) for group in groups if group["share"] == 0.1 for p in group["params"]}
    assert slow == {id(p) for part in (model.encoder, model.votes) for p in part.parameters() if p.requires_grad}


def test_stage_2_goes_on_from_stage_1_and_keeps_what_it_knew(tmp_path):
    one = build()
    one.save_pretrained(tmp_path / "one")
    two = models.build("neurobridge_pictures", [A], target=TARGET, start=str(tmp_path / "one"), freed=2, alpha=0.5)
    assert two.freed == 2 and two.alpha == 0.5
    torch.testing.assert_close(two.eval().read(windows())[0], one.eval().read(windows())[0], rtol=0, atol=0)
    assert {"contrast", "missed", "masked"} <= two.train().loss(windows()).keys()
    other = replace(A, series={"others": A.series[TARGET]})
    with pytest.raises(WorkbenchError, match="aligned to 'vectors'"):
        models.build("neurobridge_pictures", [other], target="others", start=str(tmp_path / "one"))


def test_saved_it_comes_back_the_same(tmp_path):
    model = build(sessions=(A, B)).eval()
    model.save_pretrained(tmp_path)
    again = models.load(tmp_path).eval()
    batch = windows()
    assert torch.equal(model.embedding(batch), again.embedding(batch))


def test_a_window_does_not_feel_its_neighbours_nor_another_session():
    model, sessions = build(sessions=(A, B)).eval(), [A, B]
    starts = [A.stimuli["start"][0], B.stimuli["start"][3], A.stimuli["start"][5]]
    read = lambda which, at: Reader(sessions, (TARGET,)).read(np.array(which), np.array(at), 0.3)
    torch.nn.init.normal_(model.project[-1].weight)
    together = model.read(read([0, 1, 0], starts))
    alone = [model.read(read([s], [at])) for s, at in zip([0, 1, 0], starts, strict=True)]
    for each, apart in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(each, torch.cat(apart), atol=2e-5, rtol=1e-4)


def test_counts_are_noisy_in_training_alone_and_a_silent_unit_has_none():
    model, batch = build(), windows()
    once, twice = (model.train()._standard(batch)[1] for _ in range(2))
    exact = model.eval()._standard(batch)[1]
    assert torch.equal(exact, model._standard(batch)[1]) and abs((once - exact).mean()) < 0.05
    varies = exact != 0                                                 # some never fire that late
    assert 0.9 < (once - twice)[varies].std() / (2 ** 0.5 * model.noise) < 1.1
    quiet = replace(A, spike_times=A.spike_times[A.spike_units != 4], spike_units=A.spike_units[A.spike_units != 4])
    assert not build(sessions=[quiet]).train()._standard(windows(quiet))[1].view(24, 12, -1)[:, 4].any()


def test_the_network_finds_what_is_not_linear_in_the_counts():
    """A unit that answers to either sign of a number says nothing to votes: as many spikes for both, on average."""
    random = np.random.default_rng(0)
    image = np.concatenate([random.permutation(40) for _ in range(12)])
    sign, start = VECTORS[image, 0] > 0, 0.5 * np.arange(len(image)) + 1.0
    size = np.where(random.random(len(image)) < 0.5, 8, 0)             # two units that fire alike, or in turn
    n = np.stack([size, np.where(sign, size, 8 - size)], axis=1)
    which, unit = (np.repeat(each, n[np.nonzero(n)]) for each in np.nonzero(n))
    times = start[which] + 0.05 + 0.1 * random.random(len(which))
    order = np.argsort(times)
    session = replace(A, id="xor", spike_times=times[order], spike_units=unit[order], units=A.units[:2],
                      intervals=np.array([[0, start[-1] + 1]]), series={TARGET: Series(start, VECTORS[image])},
                      stimuli=pd.DataFrame({"start": start, "stop": start + 0.2, "image": image}))
    model = build(sessions=[session], step=0.3, noise=0.3, contrast=0.0)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(80):
        adam.zero_grad()
        model.train().loss(windows(session, 300))["loss"].backward()
        adam.step()
    batch = windows(session, 10_000)
    said = model.eval().embedding(batch)[300:, 0].detach().numpy()
    assert np.corrcoef(said, np.sign(VECTORS[image[300:len(batch.starts)], 0]))[0, 1] > 0.8


def test_regions_count_in_their_own_time_alone():
    model = build(windows={"V1": [0.03, 0.1]}).eval()
    batch, late, other = windows(), 0.25, 1
    row = int(batch.unit_offsets[3])
    before = model.read(batch)[0]
    moved = batch.add(torch.tensor([3, 3]), torch.tensor([0, other]), torch.tensor([late, 0.05]))
    assert row and torch.equal(model.read(moved)[0], before)          # V1 too late; a unit of IT in V1's time
    seen = model.read(batch.add(torch.tensor([3]), torch.tensor([0]), torch.tensor([0.05])))[0]
    assert not torch.equal(seen[3], before[3]) and torch.equal(seen[:3], before[:3])
    with pytest.raises(WorkbenchError, match="no unit is in V4"):
        build(windows={"V4": [0.06, 0.12]})


def test_presentations_of_one_picture_are_not_held_against_each_other():
    model, starts = build(readout=False).eval(), windows(number=40).starts.numpy()          # every picture once
    read = lambda at: Reader([A], (TARGET,)).read(np.zeros(len(at), int), at, 0.3)
    with torch.no_grad():
        batch = read(np.tile(starts, 2))
        plain = clip_loss(model.read(batch)[0], batch.targets[TARGET].values - model.mean, model.temperature)
        assert model.loss(batch)["contrast"] < plain - 0.1
        once = read(starts)
        plain = clip_loss(model.read(once)[0], once.targets[TARGET].values - model.mean, model.temperature)
        torch.testing.assert_close(model.loss(once)["contrast"], plain)


def test_new_units_vote_as_their_tuning_says_and_others_keep_their_rows():
    model = build()
    kept = model.votes.weight.detach().clone()
    model.extend([B])
    assert torch.equal(model.votes.weight[:len(kept)], kept)
    assert two_way(model, B) > 0.85


def test_bad_settings_and_recordings_are_one_sentence():
    with pytest.raises(WorkbenchError, match="nothing is left"):
        build(votes=False, readout=False)
    with pytest.raises(WorkbenchError, match="no whole number of steps"):
        build(step=0.07)
    with pytest.raises(BadRecording, match="too few to say what its units answer to"):
        build(sessions=[A.between(0, 2.4)])
    with pytest.raises(WorkbenchError, match="give one of pretrained="):
        build(pretrained="somewhere")
    read = lambda: Reader([A], (TARGET,)).read(np.zeros(2, int), np.array([1.0, 1.5]), 1.0)
    with pytest.raises(WorkbenchError, match=r"windows of 0.3 s from a picture's onset and was given 1 s"):
        build().loss(read())
    with pytest.raises(BadRecording, match=r"split.by=picture"):
        build(window=1.0).loss(read())


def test_a_new_session_adapts_in_windows_that_begin_with_a_picture(monkeypatch):
    seen, model = [], build()
    whole = model.loss
    monkeypatch.setattr(model, "loss", lambda batch: (seen.append(batch.starts), whole(batch))[1])
    workbench.adapt(model, B, "finetune", steps=3, batch_size=8)
    onsets = torch.from_numpy(B.stimuli["start"].to_numpy())
    assert torch.isclose(torch.cat(seen)[:, None], onsets, atol=1e-6).any(1).all()
