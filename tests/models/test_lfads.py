"""LFADS: what the bound is made of, what is hidden, what is drawn; and that it finds the rates behind spikes."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch.distributions import MultivariateNormal, kl_divergence

from tests.models.small import SMALL
from tests.models.test_zoo import SESSIONS
from workbench import metrics, models
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.session import Session
from workbench.windows import RandomWindows


def build(**settings):
    torch.manual_seed(0)
    return models.build("lfads", SESSIONS, **SMALL["lfads"] | settings)


def windows(session=(0, 1, 1), starts=(1.0, 3.0, 8.0), duration=1.0):
    return Reader(SESSIONS).read(list(session), list(starts), duration)


def test_the_divergence_of_inputs_is_that_of_two_gaussians_over_all_bins():
    """Averaged over draws it is the divergence of the joint distributions, one diagonal, one an AR(1) process."""
    model, bins = build(), 4
    mean, logvar = torch.randn(bins, 2) * 0.3, torch.randn(bins, 2) - 2
    with torch.no_grad():
        model.log_time.copy_(torch.tensor([3.0, 5.0]).log())
        drawn = mean + torch.randn(10_000, bins, 2) * (logvar / 2).exp()
        found = model._input_divergence(drawn, mean.expand_as(drawn), logvar.expand_as(drawn)).mean()
    lag = (torch.arange(bins)[:, None] - torch.arange(bins)).abs()
    want = sum(kl_divergence(MultivariateNormal(mean[:, d], torch.diag(logvar[:, d].exp())),
                             MultivariateNormal(torch.zeros(bins), 0.1 * torch.exp(-lag / time)))
               for d, time in enumerate((3.0, 5.0)))
    torch.testing.assert_close(found, want, rtol=0.02, atol=0.02)


def test_what_is_scored_is_not_seen():
    model, batch = build(drop=0.4), windows()
    counts, there = batch.counts(model.bin_size), batch.unit_mask
    seen, scored = model.masker(counts, model.masker.held_out(model.read_out.units, batch), there)
    assert not seen[scored].any() and not scored[~there].any()
    assert torch.equal(seen[~scored], counts[~scored])
    assert scored[there].float().mean().item() == pytest.approx(0.4, abs=0.08)


def test_the_bound_is_ramped_in_training_and_whole_otherwise():
    model, batch = build(ramp=2, penalty=0.0), windows()
    first, second, third, fourth = (model.loss(batch) for _ in range(4))
    torch.testing.assert_close(first["loss"], first["nll"])
    torch.testing.assert_close(second["loss"], second["nll"] + second["kl"] / 2)
    for found in (third, fourth, build(penalty=0.0).eval().loss(batch)):
        torch.testing.assert_close(found["loss"], found["nll"] + found["kl"])
        assert found["kl"] > 0
    again = build(ramp=2)
    again.load_state_dict(model.state_dict())
    assert again.loss(batch)["loss"] > again.eval().loss(batch)["nll"]             # a resumed run is as far as it was


def test_recurrent_weights_are_penalised():
    batch = windows()
    plain, dear = (build(penalty=penalty).eval() for penalty in (0.0, 10.0))
    losses = []
    for model in (plain, dear):
        torch.manual_seed(1)
        losses.append(model.loss(batch)["loss"])
    size = [cell.weight_hh.square().mean() for cell in (plain.generator, plain.controller)]
    torch.testing.assert_close(losses[1] - losses[0], 10 * sum(size) / 2)


def test_posteriors_are_drawn_from_in_training_only():
    model, batch = build(), windows()
    assert not torch.equal(model(batch).latents, model(batch).latents)
    model.eval()
    assert torch.equal(model(batch).latents, model(batch).latents)


def test_held_out_units_are_never_seen_and_always_scored():
    model, batch = build(held_out=["a/u3"]).eval(), windows()
    at = (batch.session[batch.windows] == 0) & (batch.units == 3)
    assert at.any()
    with torch.no_grad():
        full, less = model(batch).log_rates, model(batch.drop(at)).log_rates
    assert torch.equal(full, less)
    counts, there = batch.counts(model.bin_size), batch.unit_mask
    _, scored = model.masker(counts, model.masker.held_out(model.read_out.units, batch), there)
    assert scored[0, 3].all() and not scored[1, 3].all()
    with pytest.raises(UnknownName, match="u99"):
        build(held_out=["u99"])
    with pytest.raises(WorkbenchError, match="nothing to learn"):
        build(drop=0.0)
    with pytest.raises(WorkbenchError, match="a share of 1 leaves nothing to infer from"):
        build(drop=1.0)


def test_windows_without_units_are_answered():
    model, batch = build(), windows()
    nobody = batch.keep_units(torch.zeros(len(batch.window_units), dtype=torch.bool))
    loss = model.loss(nobody)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_early_bins_know_of_later_spikes_and_windows_may_last_longer():
    model = build().eval()
    batch = windows(duration=2.0)
    late = batch.times > 1.5
    with torch.no_grad():
        full, less = model(batch).log_rates, model(batch.drop(late)).log_rates
    assert full.shape[2] == 20 and not torch.allclose(full[:, :8, 0], less[:, :8, 0], atol=1e-6)


def test_what_it_dreams_needs_no_spikes_and_differs_each_time():
    model, batch = build(), windows()
    torch.manual_seed(3)
    one = model.generate(batch).log_rates
    torch.manual_seed(3)
    assert torch.equal(one, model.generate(batch.drop(torch.ones_like(batch.times, dtype=torch.bool))).log_rates)
    assert one.shape == batch.counts(model.bin_size).shape and torch.isfinite(one).all()
    assert not torch.equal(one, model.generate(batch).log_rates) and not one.requires_grad


def test_dreamt_inputs_last_as_long_as_the_prior_says():
    """A generator that hands its input on shows the process: its variance, and what is left of it a bin later."""
    model, batch = build(inputs=1), windows([0] * 400, [1.0] * 400)
    handed = []
    model.generator.register_forward_pre_hook(lambda _, given: handed.append(given[0]))
    model.generate(batch)
    process = torch.stack(handed, 1)[..., 0]
    assert process.var().item() == pytest.approx(0.1, rel=0.15)
    left = np.corrcoef(process[:, :-1].ravel(), process[:, 1:].ravel())[0, 1]
    assert left == pytest.approx(np.exp(-1 / 10), abs=0.03)


@pytest.mark.slow
def test_it_finds_the_rates_behind_spikes_better_than_smoothing():
    """30 units driven by one rotation whose phase is new in every trial, 0.3 spikes a bin."""
    random = np.random.default_rng(0)
    phase = np.repeat(random.uniform(0, 2 * np.pi, 150), 50) + np.tile(np.arange(50), 150) * 2 * np.pi / 25
    preferred = random.uniform(0, 2 * np.pi, 30)
    rates = 0.3 * np.exp(1.2 * np.cos(phase[:, None] - preferred)) / np.i0(1.2)
    counts = random.poisson(rates)
    bins, unit = (np.repeat(each, counts[np.nonzero(counts)]) for each in np.nonzero(counts))
    session = Session(id="turns", spike_times=bins * 0.02 + 0.01, spike_units=unit, simulated=True,
                      units=pd.DataFrame({"id": [f"u{i}" for i in range(30)]}), intervals=[[0, 150.0]])
    torch.manual_seed(0)
    model = models.build("lfads", [session], encoder=32, initial=16, controller=32, inputs=1, generator=48, factors=8,
                         ramp=300)
    batches = RandomWindows([session], [np.array([[t, t + 1.0] for t in range(120)])], duration=1.0, batch_size=16)
    adam = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0)
    for k in range(250):
        loss = model.loss(batches.batch(k))["loss"]
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    test = Reader([session]).read([0] * 30, np.arange(120.0, 150.0), 1.0)
    with torch.no_grad():
        found = model.eval()(test).log_rates.exp().transpose(1, 2).numpy()
    true, seen = (each.reshape(150, 50, 30)[120:] for each in (rates, counts.astype(float)))
    fit = lambda x: metrics.r2(true.reshape(-1, 30), x.reshape(-1, 30)).mean()
    smooth = max(fit(gaussian_filter1d(seen, width, axis=1)) for width in (1.5, 2.5, 3.5, 5.0))
    assert fit(found) > 0.8 and smooth < 0.4
