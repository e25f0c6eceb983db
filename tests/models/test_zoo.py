"""One test for all: what every registered model promises, whichever paper it comes from.

A model's own claims (permutation, causality, shift, streaming, published sizes) are tested in its own file.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.signal import lfilter

from tests.models.small import SMALL
from workbench import models
from workbench.batch import Reader
from workbench.session import Series, Session
from workbench.windows import RandomWindows

NAMES = [name for name in models.available() if not models.get(name).locked]      # those have tests of their own
TRAINED = [name for name in NAMES if not hasattr(models.get(name), "fit")]


def toy(name: str, units: int, seed: int, seconds: float = 20.0) -> Session:
    """Simulated units of two regions whose rates follow a slow velocity, and the calcium of their spikes."""
    random = np.random.default_rng(seed)
    clock = np.arange(0, seconds, 0.05) + 0.025
    velocity = np.sin(2 * np.pi * clock[:, None] / np.array([3.0, 4.1]))
    rates = 12 * np.exp(0.9 * velocity @ random.normal(size=(2, units)) / 1.4)
    counts = random.poisson(rates * 0.05)
    bins, unit = np.nonzero(counts)
    bins, unit = (np.repeat(a, counts[bins, unit]) for a in (bins, unit))
    times = clock[bins] - 0.025 + random.random(len(bins)) * 0.05
    order = np.argsort(times)
    ids = tuple(f"u{i}" for i in range(units))
    calcium = lfilter([1], [1, -0.7], counts, axis=0)
    return Session(id=name, spike_times=times[order], spike_units=unit[order], simulated=True,
                   units=pd.DataFrame({"id": ids, "region": ["M1", "PMd"] * (units // 2)}), intervals=[[0, seconds]],
                   series={"vel": Series(clock, velocity, "m/s"), "dF/F": Series(clock, calcium, "dF/F", ids)})


SESSIONS = [toy("a", 8, 1), toy("b", 12, 2)]


def build(name: str):
    torch.manual_seed(0)
    given = {"target": "vel"} if models.get(name).decodes else {}
    return models.build(name, SESSIONS, **given, **SMALL[name])


def sampler(model, batch_size: int = 6) -> RandomWindows:
    align = "vel" if model.bin_size and model.decodes else None
    return RandomWindows(SESSIONS, [s.intervals for s in SESSIONS], duration=model.window, batch_size=batch_size,
                         targets=("vel",), also=model.reads, align=align)


def read(model, session: list[int], starts: list[float]):
    return Reader(SESSIONS, ("vel",), also=model.reads).read(session, starts, model.window)


def told(output) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(output).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_promises_in_the_right_shape(name):
    model = build(name).eval()
    batch = read(model, [0, 1, 1], [1.0, 3.0, 8.05])
    with torch.no_grad():
        found = told(model(batch))
    assert all(torch.isfinite(value).all() for value in found.values())
    verbs = models.available()[name]
    assert verbs
    if "decodes" in verbs:
        assert found["behavior"].shape == batch.targets["vel"].values.shape
    if "reconstructs" in verbs:
        assert found["log_rates"].shape == batch.counts(model.bin_size).shape
    if "embeds" in verbs:
        assert found["latents"].ndim >= 2


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter(name):
    model, batches = build(name), sampler(build(name))
    for k in range(12):                                                 # a step may draw one scheme of several
        model.loss(batches.batch(k))["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls(name):
    model = build(name)
    batches = sampler(model)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for k in range(40):
        loss = model.loss(batches.batch(k))["loss"]
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and np.mean(losses[-8:]) < np.mean(losses[:8])


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_in_bf16(name):
    """The loss of float32 but for rounding, gradients in float32 that point the same way."""
    def once(bf16: bool):
        model = build(name)
        batch = sampler(model).batch(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            told = model.loss(batch)
        assert {value.dtype for value in told.values()} == {torch.float32}
        told["loss"].backward()
        return told["loss"].item(), [p.grad for p in model.parameters() if p.grad is not None]
    (loss, grads), (rounded, rough) = once(False), once(True)
    assert rounded == pytest.approx(loss, rel=0.01) and {each.dtype for each in rough} == {torch.float32}
    flat = [torch.cat([each.flatten() for each in one]) for one in (grads, rough)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_comes_back_the_same(name, tmp_path):
    model = build(name).eval()
    model.save_pretrained(tmp_path / "model")
    again = models.load(tmp_path / "model").eval()
    batch = read(model, [1, 0], [2.0, 5.0])
    with torch.no_grad():
        mine, theirs = told(model(batch)), told(again(batch))
    assert type(again) is type(model) and mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_seed_gives_the_same_loss_and_gradient(name):
    def once():
        model = build(name)
        loss = model.loss(sampler(model).batch(0))["loss"]
        loss.backward()
        return loss, [p.grad for p in model.parameters() if p.grad is not None]
    (one, grads), (two, again) = once(), once()
    assert torch.equal(one, two) and all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_window_does_not_feel_its_neighbours_in_the_batch(name):
    """Neither their order nor the padding that they bring."""
    model = build(name).eval()
    session, starts = [0, 1, 0], [1.0, 3.0, 8.05]
    with torch.no_grad():
        alone = [told(model(read(model, [s], [at]))) for s, at in zip(session, starts, strict=True)]
        for order in ([0, 1, 2], [2, 1, 0]):
            batch = read(model, [session[i] for i in order], [starts[i] for i in order])
            together = told(model(batch))
            for row, i in enumerate(order):
                units = len(SESSIONS[session[i]].units)
                for key, want in alone[i].items():
                    if key == "behavior":
                        window = batch.targets["vel"].offsets
                        have = together[key][window[row]:window[row + 1]]
                    elif key == "log_rates":
                        have = together[key][row:row + 1, :units]
                    else:
                        have = together[key][row:row + 1, :want.shape[1]]
                    torch.testing.assert_close(have, want, atol=2e-5, rtol=1e-4)


def test_weights_that_are_views_of_one_array_are_saved(tmp_path):
    """As a GPU keeps a recurrent layer's."""
    model = build("gru")
    flat = torch.cat([p.detach().flatten() for p in model.gru.parameters()])
    pieces = flat.split([p.numel() for p in model.gru.parameters()])
    for parameter, piece in zip(model.gru.parameters(), pieces, strict=True):
        parameter.data = piece.view_as(parameter)
    model.save_pretrained(tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
