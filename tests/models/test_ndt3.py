"""NDT3: causality, what stays blank, counts as classes, the published sizes."""

from dataclasses import replace

import pytest
import torch

from tests.models.test_ndt2 import sampled
from tests.models.test_zoo import SESSIONS, read, toy
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import poisson_table
from workbench.models.ndt3 import NDT3


def small(target="vel", **settings) -> NDT3:
    torch.manual_seed(0)
    return NDT3.for_sessions(SESSIONS, target=target, **dict(dim=32, depth=3, heads=2, patch=4, patches=3, window=1.0,
                                                             warmup=0.2) | settings).eval()


@pytest.mark.parametrize("at", [0, 1, 12, 19])
def test_no_bin_hears_of_later_spikes(at):
    """Rates come from earlier bins only, behaviour from its own bin too."""
    model = small()
    batch = read(model, [1], [2.0])
    with torch.no_grad():
        whole, early = model(batch), model(batch.drop(batch.spike_bins(0.05) >= at))
        without = model(batch.drop(batch.spike_bins(0.05) == at))
    torch.testing.assert_close(whole.log_rates[..., :at + 1], early.log_rates[..., :at + 1])
    torch.testing.assert_close(whole.behavior[:at], early.behavior[:at])
    assert (whole.behavior[at] - without.behavior[at]).abs().max() > 1e-4
    if at < 19:
        assert (whole.log_rates[..., at + 1] - without.log_rates[..., at + 1]).abs().max() > 1e-4


def test_no_bin_hears_of_its_own_or_later_covariates():
    model = small()
    batch = read(model, [0, 1], [2.0, 5.0])
    shown = model.covariates(batch)
    changed = shown.clone()
    changed[:, 9] += 1
    with torch.no_grad():
        (logits, found), (other_logits, other) = model.predict(batch, shown), model.predict(batch, changed)
    torch.testing.assert_close(found[:, :10], other[:, :10])
    torch.testing.assert_close(logits[:, :10], other_logits[:, :10])
    assert (found[:, 10] - other[:, 10]).abs().max() > 1e-4


def test_places_are_told_apart():
    """Patches where nothing is seen, and earlier bins by when they were."""
    model = small(depth=1)                                              # deeper ones tell bins by what those have seen
    batch = read(model, [1], [2.0])
    silent = model(batch.drop(torch.ones_like(batch.units, dtype=torch.bool))).log_rates[0, :, 5]
    assert (silent[:4] - silent[4:8]).abs().max() > 1e-4
    at = batch.spike_bins(0.05)
    swapped = replace(batch, times=batch.times + 0.35 * ((at == 3).float() - (at == 10).float()))
    here, there = model(batch).log_rates, model(swapped).log_rates
    assert torch.equal(swapped.counts(0.05)[..., 3], batch.counts(0.05)[..., 10])
    assert (here[..., 19] - there[..., 19]).abs().max() > 1e-4


def test_both_losses_weigh_the_same():
    model = small()
    found = model.loss(read(model, [0, 1], [2.0, 5.0]))
    torch.testing.assert_close(found["loss"].detach(), found["spikes"] + found["behavior"])


def test_behaviour_is_decoded_from_spikes_alone():
    model = small()
    batch = read(model, [0, 1], [2.0, 5.0])
    target = batch.targets["vel"]
    other = replace(batch, targets={"vel": target._replace(values=target.values + 5)})
    assert torch.equal(model(batch).behavior, model(other).behavior)


def test_a_prefix_is_shown_and_not_scored():
    model = small(prefix=1.0).train()
    torch.nn.init.zeros_(model.covariate.weight)                        # so that values matter to the score alone
    batch, shown, scored = read(model, [0, 1], [2.0, 5.0]), [], []
    model.covariate.register_forward_pre_hook(lambda _, given: shown.append(given[0][:, 1:, 0, 0] != 0))
    for seed in range(40):                                              # prefixes of all lengths
        torch.manual_seed(seed)
        target = batch.targets["vel"]
        values = target.values.clone().requires_grad_()
        model.loss(replace(batch, targets={"vel": target._replace(values=values)}))["loss"].backward()
        scored.append(values.grad.ne(0).any(1).view(2, 20))
    scored = torch.cat(scored)
    assert torch.equal(torch.cat(shown), ~scored[:, :-1])
    assert scored[:, -1].all() and 0.3 < scored[:, 10].float().mean() < 0.8 and scored[:, 0].float().mean() < 0.25
    model.prefix = 0.0
    model.loss(batch)
    assert not shown[-1].any()


def test_covariates_are_the_mean_of_a_bins_samples():
    model = small(bin_size=0.1)
    batch = read(model, [1], [3.0])
    values = (batch.targets["vel"].values - model.mean) / model.scale
    torch.testing.assert_close(model.covariates(batch)[0], values.unflatten(0, (10, 2)).mean(1))


def test_rates_are_the_mean_of_the_count_distribution():
    model = small(max_count=6)
    torch.nn.init.zeros_(model.count_logits.weight)
    rates = model(read(model, [1], [2.0])).log_rates.exp()
    torch.testing.assert_close(rates, torch.full_like(rates, 3.0))      # of 0, 1, … 6, all as likely


def test_every_count_teaches():
    table = poisson_table(small().count_logits.out_features // 4)
    assert table.shape == (21, 21)
    torch.testing.assert_close(table.sum(1), torch.ones(21, dtype=table.dtype))


def test_padding_is_not_scored():
    model = small(patch=16, patches=1)
    for session, units in ((0, 8), (1, 12)):
        model.zero_grad()
        model.loss(read(model, [session], [1.0]))["loss"].backward()
        taught = model.count_logits.weight.grad.unflatten(0, (16, 21)).ne(0).flatten(1).any(1)
        assert taught[:units].all() and not taught[units:].any()


def test_without_a_target_it_forecasts_spikes():
    model = small(target=None, bin_size=0.05)
    batch = Reader(SESSIONS).read([0, 1], [1.0, 4.0], 1.0)
    found = model(batch)
    assert not model.decodes and found.behavior is None and found.log_rates.shape == (2, 12, 20)
    assert set(model.loss(batch)) == {"loss"}


@pytest.mark.parametrize("interval", [0.033, 0.08])
def test_windows_hold_whole_bins_whatever_the_targets_rate(interval):
    model, sessions = sampled(NDT3, interval)
    assert model.bin_size == interval and abs(model.window - 2) < interval
    batch = Reader(sessions, ("vel",)).read([0], [1.0], model.window)
    assert model.loss(batch)["loss"].isfinite()


def test_the_largest_session_has_room():
    sessions = [toy("big", 70, 3)]
    model = NDT3.for_sessions(sessions, dim=32, depth=1, heads=2, bin_size=0.05, patch=4)
    assert model.patches.most == 18
    assert model(Reader(sessions).read([0], [1.0], 2.0)).log_rates.shape == (1, 70, 40)


@pytest.mark.parametrize(("size", "millions"), [("45M", 45), ("350M", 354)])
def test_published_sizes(size, millions):
    with torch.device("meta"):
        model = NDT3.for_sessions([], size=size)
    backbone = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    settings = NDT3.SIZES[size]
    assert backbone == 7 * settings["depth"] * settings["dim"] ** 2     # attention 4, SwiGLU 3
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_impossible_settings_are_refused():
    with pytest.raises(UnknownName, match="no size '45m' in the published sizes of NDT3"):
        small(size="45m")
    with pytest.raises(WorkbenchError, match="3 heads do not divide a width of 32"):
        small(heads=3)
    with pytest.raises(WorkbenchError, match="leave nothing after a warm-up"):
        small(warmup=1.0)
