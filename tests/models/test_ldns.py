"""LDNS: two stages that do not feel each other, a causal encoder, a denoiser that sees all, and an exact sampler."""

import pytest
import torch

from tests.models.small import SMALL
from tests.test_batch import SESSIONS, read
from workbench import models
from workbench.errors import WorkbenchError
from workbench.models.base import parameters
from workbench.models.ldns import LDNS
from workbench.nn.recurrence import filtered


def small(**settings) -> LDNS:
    torch.manual_seed(0)
    return models.build("ldns", SESSIONS, **SMALL["ldns"] | settings)


def test_the_denoiser_is_about_as_large_as_the_published_one():
    model = LDNS(units=[], sessions=[])
    assert parameters(model.denoiser) == pytest.approx(2.7e6, rel=0.1)


def test_the_autoencoder_does_not_feel_the_diffusion():
    one, other = small(), small()
    with torch.no_grad():
        for weight in other.denoiser.parameters():
            weight.mul_(2.0).add_(0.1)
    losses = []
    for model in (one, other):
        torch.manual_seed(1)
        losses.append(model.loss(read([0, 1], [1.0, 3.0])))
        losses[-1]["loss"].backward()
    assert losses[0]["diffusion"] != losses[1]["diffusion"] and losses[0]["nll"] == losses[1]["nll"]
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for (name, a), b in pairs if not name.startswith("denoiser"))


def test_a_later_spike_changes_no_earlier_rate():
    model, batch = small(bin_size=0.05).eval(), read([1], [2.0])
    cut = batch.drop(batch.times >= 0.5)
    with torch.no_grad():
        change = (model(batch).log_rates - model(cut).log_rates).abs().amax((0, 1))
    assert change[:10].max() < 1e-5 and change[10:].min() > 1e-5


def test_rates_of_hidden_units_come_from_the_others():
    model, batch = small().eval(), read([1], [2.0])
    silent = batch.drop(batch.units == 3)
    fewer = silent.drop(silent.units == 5)
    with torch.no_grad():
        assert (model(silent).log_rates - model(fewer).log_rates)[:, 3].abs().max() > 1e-6


def test_the_denoiser_looks_both_ways_in_time():
    model = small()
    x, step = torch.randn(1, 30, 4), torch.tensor([7])
    other = x.clone()
    other[:, 15] += 1.0
    with torch.no_grad():
        spectra = model.denoiser.spectra(30)
        change = (model.denoiser(x, step, spectra=spectra) - model.denoiser(other, step, spectra=spectra)).abs()
        later = model.denoiser(x, step + 20, spectra=spectra)
        assert (later - model.denoiser(x, step, spectra=spectra)).abs().max() > 1e-4        # and it is told the step
    assert change.amax((0, 2)).min() > 1e-6


def test_a_two_sided_filter_is_the_sum_of_one_and_one_turned_around():
    block, x = small().denoiser.blocks[0], torch.randn(2, 20, 16)
    with torch.no_grad():
        want = block.ahead(x) + block.back(x.flip(1)).flip(1)
        torch.testing.assert_close(filtered(x, block.spectrum(20)), want, atol=1e-4, rtol=1e-4)


def test_sampling_with_the_exact_denoiser_of_a_gaussian_gives_that_gaussian(monkeypatch):
    model = small(steps=200).eval()
    mean, std = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.3, 1.0, 0.7, 0.1])

    def exact(x, step, spectra):
        kept = model.kept[step][:, None, None]
        return (1 - kept).sqrt() * (x - kept.sqrt() * mean) / (kept * std ** 2 + 1 - kept)
    monkeypatch.setattr(model.denoiser, "forward", exact)
    model.standard.running_mean.fill_(3.0)
    model.standard.running_var.fill_(4.0)
    torch.manual_seed(0)
    latents = model.generate(read([0] * 300, [1.0] * 300)).latents.flatten(0, 1)
    torch.testing.assert_close(latents.mean(0), 3 + 2 * mean, atol=0.1, rtol=0)
    torch.testing.assert_close(latents.std(0), 2 * std, atol=0.05, rtol=0.05)


def test_dreams_are_random_ignore_the_spikes_and_fit_the_sessions():
    model, batch = small(steps=5).eval(), read([1, 2], [1.0, 2.0])
    torch.manual_seed(3)
    one = model.generate(batch)
    torch.manual_seed(3)
    same = model.generate(batch.drop(torch.ones_like(batch.times, dtype=torch.bool)))
    assert one.log_rates.shape == batch.counts(0.1).shape and torch.equal(one.log_rates, same.log_rates)
    assert not torch.equal(one.log_rates, model.generate(batch).log_rates)


def test_the_moments_of_the_latents_are_learned_for_generation():
    model = small(drop=0.3)
    batch = read([0, 1, 1], [1.0, 3.0, 6.0])
    model.standard.momentum = 0.3                                       # as after many more steps
    for _ in range(30):
        with torch.no_grad():
            model.loss(batch)
    latents = model.eval()(batch).latents.flatten(0, 1)
    torch.testing.assert_close(model.standard.running_mean, latents.mean(0), atol=0.02, rtol=0.05)
    torch.testing.assert_close(model.standard.running_var, latents.var(0), atol=0.02, rtol=0.05)


def test_windows_without_units_are_answered():
    model, batch = small(), read([0, 1], [1.0, 3.0])
    nobody = batch.keep_units(torch.zeros(len(batch.window_units), dtype=torch.bool))
    loss = model.loss(nobody)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("settings", [dict(drop=1.0), dict(denoiser_dim=15)])
def test_what_cannot_be_is_refused(settings):
    with pytest.raises(WorkbenchError, match="give a drop= below 1 and an even denoiser_dim="):
        small(**settings)


def test_rates_far_below_one_keep_a_finite_logarithm_and_gradient():
    model, batch = small(), read([0], [1.0])
    with torch.no_grad():
        model.read_out.units.weight[:, -1] = -200.0
    log_rates = model(batch).log_rates
    log_rates.sum().backward()
    assert log_rates.max() < -190 and torch.isfinite(model.to_latents.weight.grad).all()
