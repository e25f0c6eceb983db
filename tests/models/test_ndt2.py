"""NDT2: what a masked autoencoder may see, patches, context."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.test_zoo import SESSIONS, read, toy
from workbench import models
from workbench.batch import Reader
from workbench.errors import WorkbenchError
from workbench.losses import poisson_nll
from workbench.models.ndt2 import NDT2, draw_visible
from workbench.session import Series


def small(target="vel", **settings) -> NDT2:
    torch.manual_seed(0)
    return NDT2.for_sessions(SESSIONS, target=target, **dict(dim=32, depth=2, decoder_depth=2, heads=2, inner=32,
                                                             patch=4, patches=3) | settings).eval()


def without(batch, bin_: int, patch: int, size: int = 4):
    """The batch without the spikes of one token."""
    return batch.drop((batch.spike_bins(0.05) == bin_) & (batch.units // size == patch))


def sampled(model, interval: float):
    """A small model of a target sampled at that interval, and its sessions."""
    clock = np.arange(0, 20, interval) + interval / 2
    velocity = np.stack([np.sin(clock), np.cos(clock)], 1)
    sessions = [replace(SESSIONS[0], series={"vel": Series(clock, velocity, "m/s")})]
    return model.for_sessions(sessions, target="vel", dim=32, depth=1, heads=2, patch=4), sessions


def reconstructed(model, batch, visible):
    x, there = model.tokens(batch)
    return model.reconstruct(batch, x, there, model.encode(batch, x, visible & there.flatten(1)))


def test_what_is_masked_leaves_no_trace():
    model, batch = small(), read(small(), [0, 1], [1.0, 4.0])
    visible = torch.ones(2, 20, 3, dtype=torch.bool)
    visible[:, 7, 1] = visible[:, 8:12, 0] = False
    visible = visible.flatten(1)
    whole = reconstructed(model, batch, visible)
    assert torch.equal(whole, reconstructed(model, without(batch, 7, 1), visible))
    assert torch.equal(whole, reconstructed(model, without(batch, 9, 0), visible))
    assert not torch.equal(whole, reconstructed(model, without(batch, 7, 0), visible))


def test_the_encoder_takes_in_only_what_is_left():
    model, batch = small(ratio=0.75), read(small(), [0, 1], [1.0, 4.0])     # 40 and 60 tokens
    lengths = []
    model.encoder.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    model.loss(batch)
    assert lengths == [15 + 1]                                          # and the context token
    there = torch.arange(60) < torch.tensor([[40], [60]])
    visible = draw_visible(there, 0.75)
    assert visible.sum(1).tolist() == [10, 15] and not (visible & ~there).any()


def test_what_is_taken_out_is_scored_and_so_are_units_that_were_lost(monkeypatch):
    model, batch = small(silent=0.9), read(small(), [0, 1], [1.0, 4.0])
    scored, visible, shown, encode = [], [], [], model.encode
    spy = lambda rates, counts, where: scored.append((counts, where)) or poisson_nll(rates, counts, where)
    monkeypatch.setattr("workbench.models.ndt2.poisson_nll", spy)
    monkeypatch.setattr(model, "encode", lambda given, x, seen: visible.append(seen) or encode(given, x, seen))
    model.patches.register_forward_pre_hook(lambda _, given: shown.append(given[0].counts(0.05)))
    torch.manual_seed(2)
    found = model.loss(batch)
    (counts, where), whole = scored[0], batch.counts(0.05)
    hidden = ~visible[0].view(2, 20, 3, 1) & model.patches.units(batch)[:, None]
    assert torch.equal(counts, batch.patches(4, 0.05)) and torch.equal(where, hidden)
    kept = shown[0].any(2) | ~whole.any(2)
    assert torch.equal(shown[0], whole * kept[..., None]) and kept[batch.unit_mask].any() and not kept.all()
    torch.testing.assert_close(found["loss"], found["poisson"] + 20 * found["behavior"])


def test_places_are_told_apart_where_nothing_is_seen():
    model, batch = small(), read(small(), [1], [4.0])
    batch = batch.drop(torch.ones_like(batch.units, dtype=torch.bool))
    one = torch.arange(60)[None] == 0
    rates, behavior = reconstructed(model, batch, one)[0, ..., 0], model(batch).behavior
    for same, other in ((rates[3, 1], rates[9, 1]), (rates[3, 1], rates[3, 2]), (behavior[3], behavior[9])):
        assert (same - other).abs().max() > 1e-4


def test_no_count_speaks_for_itself():
    model, batch = small(), read(small(), [1], [4.0])
    with torch.no_grad():
        whole, less = model(batch), model(without(batch, 6, 1))
    changed = (whole.log_rates != less.log_rates)[0]
    assert not changed[4:8, 6].any() and changed[:4, 6].all() and changed[4:8, 5].all()
    assert not torch.equal(whole.behavior, less.behavior)


def test_windows_without_units_are_answered():
    model = small()
    poor = read(model, [0, 1], [1.0, 4.0]).keep_units(torch.arange(20) >= 8)
    found = model(poor)
    assert found.latents.isfinite().all() and found.behavior.isfinite().all() and model.loss(poor)["loss"].isfinite()


def test_context_sees_itself_and_is_seen():
    model, batch = small(), read(small(), [0, 0], [1.0, 4.0])
    out = []
    model.encoder.register_forward_hook(lambda *call: out.append(call[2]))
    with torch.no_grad():
        for _ in range(2):
            x, there = model.tokens(batch)
            model.encode(batch, x, there.flatten(1))
            model.sessions.weight[model.sessions.row["a"]] += torch.randn(32)
    before, after = out
    torch.testing.assert_close(before[0, -1], before[1, -1])            # whatever the spikes are
    assert not torch.allclose(before[0, 0], before[1, 0], atol=1e-2)
    assert not torch.allclose(before[:, :-1], after[:, :-1], atol=1e-2)


def test_padding_is_no_silence_and_is_not_scored():
    model = small(patch=16, patches=1)                                  # 8 and 12 units: half or a quarter is padding
    for session, units in ((0, 8), (1, 12)):
        model.zero_grad()
        batch = read(model, [session], [1.0])
        rows = []
        handle = model.patches.table.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(given[0]))
        model.loss(batch)["loss"].backward()
        handle.remove()
        taught = model.log_rates.bias.grad != 0
        assert taught[:units].all() and not taught[units:].any()
        assert (rows[0][..., units:] == 21).all() and (rows[0][..., :units] < 21).all()


def test_causal_models_see_no_later_spikes():
    model = small(causal=True)
    batch = read(model, [1], [2.0])
    with torch.no_grad():
        whole, early = model(batch), model(batch.drop(batch.spike_bins(0.05) >= 12))
    torch.testing.assert_close(whole.behavior[:12], early.behavior[:12])
    torch.testing.assert_close(whole.log_rates[..., :12], early.log_rates[..., :12])
    torch.testing.assert_close(whole.latents[:, :12], early.latents[:, :12])
    assert not torch.allclose(whole.behavior[12:], early.behavior[12:], atol=1e-3)


def test_without_a_target_it_learns_from_spikes_alone():
    model = small(target=None, bin_size=0.05)
    batch = Reader(SESSIONS).read([0, 1], [1.0, 4.0], 1.0)
    found = model(batch)
    assert not model.decodes and found.behavior is None and found.log_rates.shape == (2, 12, 20)
    assert set(model.loss(batch)) == {"loss"}


def test_a_new_session_brings_one_row():
    model = NDT2.for_sessions(SESSIONS[:1], target="vel", dim=32, depth=1, heads=2, patch=4, patches=3)
    size = models.base.parameters(model)
    model.extend(SESSIONS[1:])
    assert models.base.parameters(model) == size + 32
    assert torch.isfinite(model.loss(read(model, [1], [2.0]))["loss"])


@pytest.mark.parametrize("interval", [0.033, 0.08])
def test_windows_hold_whole_bins_whatever_the_targets_rate(interval):
    model, sessions = sampled(NDT2, interval)
    assert model.bin_size == interval and abs(model.window - 1) < interval
    batch = Reader(sessions, ("vel",)).read([0], [1.0], model.window)
    assert model.loss(batch)["loss"].isfinite()


def test_the_largest_session_has_room():
    for sessions, patches in (([toy("big", 70, 3)], 18), (SESSIONS, 16)):
        model = NDT2.for_sessions(sessions, dim=32, depth=1, heads=2, bin_size=0.05, patch=4)
        assert len(model.patch_codes) == patches
        assert model.eval()(Reader(sessions).read([0], [1.0], 1.0)).log_rates.shape[1] == len(sessions[0].units)


def test_impossible_settings_are_refused():
    with pytest.raises(WorkbenchError, match="patches of 5 units do not divide a width of 32"):
        small(patch=5)
    with pytest.raises(WorkbenchError, match="12 units makes 3 patches of 4, and the model was built for 2; build it"):
        small(patches=2)(read(small(), [1], [2.0]))
    with pytest.raises(WorkbenchError, match="a window of 40 bins is longer than the 20 bins"):
        small()(Reader(SESSIONS).read([0], [1.0], 2.0))
    with pytest.raises(WorkbenchError, match="give a ratio between 0 and 1"):
        small(ratio=1.0)
