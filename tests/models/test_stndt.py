"""STNDT: attention over channels gives weights and no values; two views of a window find each other."""

import math

import pytest
import torch

from tests.models.test_zoo import SESSIONS, read, sampler
from workbench.batch import Reader
from workbench.errors import WorkbenchError
from workbench.models.stndt import STNDT, Mixing


def small(**settings) -> STNDT:
    torch.manual_seed(0)
    return STNDT.for_sessions(SESSIONS, **dict(dim=32, depth=2, bin_size=0.05) | settings).eval()


def test_spatial_attention_is_a_mixture_of_channels():
    mixing = Mixing(32, 20, 2, 16, dropout=0.0).eval()
    torch.nn.init.zeros_(mixing.down.weight), torch.nn.init.zeros_(mixing.down.bias)
    x, channels = torch.randn(3, 20, 32), torch.randn(3, 32, 20)
    weights = mixing.weights(channels)
    assert weights.shape == (3, 32, 32) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 32))
    added = mixing(x, channels) - x
    for channel in (0, 31):
        want = (weights[:, channel, None, :] * x).sum(-1)               # its share of every channel, bin by bin
        torch.testing.assert_close(added[:, :, channel], want, atol=1e-5, rtol=1e-5)


def test_mixing_does_not_care_for_the_order_of_channels():
    mixing = Mixing(32, 20, 2, 16, dropout=0.0)
    channels, order = torch.randn(2, 32, 20), torch.randperm(32)
    torch.testing.assert_close(mixing.weights(channels)[:, order][:, :, order], mixing.weights(channels[:, order]))


def test_later_layers_look_across_the_stream_of_the_layer_before():
    model, seen = small(), []
    for mixing in model.spatial:
        mixing.register_forward_hook(lambda _, given, out: seen.append((given[1], out)))
    model(read(model, [0, 1], [1.0, 4.0]))
    assert torch.equal(seen[1][0], seen[0][1].transpose(1, 2))


def test_the_band_binds_attention_over_bins_and_not_over_channels():
    model = small(ahead=0)
    batch = read(model, [1], [2.0])
    early = batch.drop(batch.spike_bins(0.05) >= 12)
    moved = lambda: (model(batch).log_rates - model(early).log_rates)[..., :12].abs().max()
    assert moved() > 1e-3
    for mixing in model.spatial:
        torch.nn.init.zeros_(mixing.to_qk.weight)                       # channels mix alike, whatever they hold
    assert moved() < 1e-5


def test_a_view_corrupts_a_few_entries_and_shows_no_held_out_unit():
    model = small(held_out=["a/u0"], view_ratio=0.2)
    batch = read(model, [0] * 20, [0.5 * i for i in range(20)])
    counts, held_out = batch.counts(0.05), model.masker.held_out(model.read_out.units, batch)
    one, two = (model.view(counts, held_out, batch.unit_mask) for _ in range(2))
    assert not one[:, 0].any() and not torch.equal(one, two)
    spiking = (counts > 0) & ~held_out
    share = (one != counts)[spiking].float().mean()                     # a half silent, half of the rest drawn anew
    assert 0.08 < share < 0.16


def test_views_of_a_window_find_each_other_better_than_chance():
    model = small()
    batch = sampler(model, batch_size=8).batch(0)
    found = model.loss(batch)
    assert 0 < found["contrast"] < 2 * math.log(15)
    torch.testing.assert_close(found["loss"], found["poisson"] + 0.1 * found["contrast"])
    same = small(view_ratio=1e-6).loss(batch)["contrast"]               # views that hardly differ are found
    other = small(view_ratio=1.0).loss(batch)["contrast"]
    assert same < found["contrast"] < other
    assert set(small(contrast=0.0).loss(batch)) == {"loss"}


def test_impossible_settings_are_refused():
    for settings in (dict(dim=33), dict(window=0.95)):
        with pytest.raises(WorkbenchError, match="2 heads of STNDT do not divide both"):
            small(**settings)
    with pytest.raises(WorkbenchError, match=r"built for windows of 1 s and was given 0\.5 s"):
        small()(Reader(SESSIONS).read([0], [1.0], 0.5))
