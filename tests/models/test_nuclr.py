"""NuCLR: neurons in no order, known by their activity alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_zoo import SESSIONS, toy
from workbench import models
from workbench.batch import Reader
from workbench.errors import WorkbenchError
from workbench.losses import decoupled_contrast
from workbench.models.nuclr import NuCLR
from workbench.windows import RandomWindows


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("nuclr", SESSIONS, **SMALL["nuclr"]).eval()


def read(session, starts, duration=2.0):
    return Reader([session]).read([0] * len(starts), starts, duration)


@torch.no_grad()
def test_permuting_neurons_permutes_their_vectors_and_leaves_the_loss(model):
    session, order = SESSIONS[1], np.random.default_rng(0).permutation(12)
    shuffled = session.select(np.arange(12))
    object.__setattr__(shuffled, "spike_units", np.argsort(order)[session.spike_units].astype(np.int32))
    here, there = (read(s, [1.0, 8.0]) for s in (session, shuffled))
    torch.testing.assert_close(model(there).latents, model(here).latents[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.loss(there)["loss"], model.loss(here)["loss"])


@torch.no_grad()
def test_a_neuron_is_known_by_its_company(model):
    """Its vector changes with what the others do, and not with those that are silent."""
    batch = read(SESSIONS[0], [1.0])
    other = model(batch.drop((batch.units == 3) & (batch.times > 1.0))).latents
    assert (other[0, 0] - model(batch).latents[0, 0]).abs().max() > 1e-4
    silent = batch.drop(batch.units == 3)
    keep = torch.arange(8) != 3
    torch.testing.assert_close(model(silent).latents[:, keep], model(silent.keep_units(keep)).latents, atol=1e-5,
                               rtol=1e-4)
    assert not model(silent).latents[0, 3].any()


@torch.no_grad()
def test_a_window_without_spikes_has_no_vectors_and_no_loss(model):
    batch = read(SESSIONS[0], [1.0])
    empty = batch.drop(torch.ones_like(batch.units, dtype=torch.bool))
    assert not model(empty).latents.any() and model.loss(empty)["loss"] == 0


def test_training_recognises_neurons_in_time_never_seen():
    session = toy("c", 12, seed=5, seconds=60.0)
    thinned = np.random.default_rng(0).random(len(session.spike_times)) < np.linspace(0.1, 1, 12)[session.spike_units]
    session = replace(session, spike_times=session.spike_times[thinned], spike_units=session.spike_units[thinned])
    torch.manual_seed(0)
    model = models.build("nuclr", [session], **SMALL["nuclr"] | dict(patch=0.5, view=4.0))
    windows = RandomWindows([session], [np.array([[0.0, 40.0]])], duration=model.window, batch_size=8)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    unseen = read(session, [40.0, 46.0, 52.0], model.window)
    before = model.eval().loss(unseen)["loss"].item()
    model.train()
    for k in range(40):
        adam.zero_grad()
        model.loss(windows.batch(k))["loss"].backward()
        adam.step()
    assert model.eval().loss(unseen)["loss"] < before - 0.4


def test_the_loss_is_its_formula_over_every_window_and_unit():
    torch.manual_seed(0)
    one, two = (torch.nn.functional.normalize(torch.randn(2, 4, 3), dim=-1) for _ in range(2))
    there = torch.tensor([[True, True, True, False], [True, False, False, True]])
    each = []
    for b in range(2):
        units = there[b].nonzero()[:, 0].tolist()
        for i in units:
            others = [j for j in units if j != i]
            repel = [torch.tensor([view[b, i] @ w[b, j] / 0.2 for j in others for w in (one, two)]).exp().mean().log()
                     for view in (one, two)]
            each.append((1 - one[b, i] @ two[b, i]) / 0.2 + sum(repel) / 2)
    torch.testing.assert_close(decoupled_contrast(one, two, there, 0.2), torch.stack(each).mean())
    assert decoupled_contrast(one, two, torch.arange(4).expand(2, 4) < 1, 0.2) == 0


def test_windows_and_views_that_do_not_fit_are_refused():
    with pytest.raises(WorkbenchError, match=r"views of 1 s do not hold a whole number of patches of 0\.3 s"):
        NuCLR(view=1.0, patch=0.3, bin_size=0.05)
    with pytest.raises(WorkbenchError, match=r"built for windows of 2 s, two views, and was given 3 s"):
        models.build("nuclr", SESSIONS, **SMALL["nuclr"])(read(SESSIONS[0], [1.0], 3.0))
