"""NEDS: spikes to behaviour without a look at behaviour, behaviour to spikes without a look at spikes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.test_zoo import SESSIONS, read, toy
from workbench.batch import Reader, Target
from workbench.errors import BadRecording
from workbench.models.neds import NEDS, SCHEMES
from workbench.session import Series
from workbench.training.adaptation import adapt


def small(sessions=tuple(SESSIONS), **settings) -> NEDS:
    torch.manual_seed(0)
    sizes = dict(dim=32, width=32, depth=2, heads=2, inner=32, window=1.0)
    return NEDS.for_sessions(list(sessions), target="vel", **sizes | settings).eval()


def behaving(batch, change):
    """The batch with other values of the behaviour."""
    times, values, offsets = batch.targets["vel"]
    return replace(batch, targets={"vel": Target(times, change(values), offsets)})


def test_decoding_does_not_see_behaviour():
    model = small()
    batch = read(model, [0, 1, 1], [1.0, 3.0, 8.05])
    one, other = model(batch), model(behaving(batch, lambda v: 5 - 2 * v))
    assert torch.equal(one.behavior, other.behavior) and torch.equal(one.log_rates, other.log_rates)
    silent = model(batch.drop(torch.ones_like(batch.units, dtype=torch.bool)))
    assert not torch.allclose(one.behavior, silent.behavior, atol=1e-3)


def test_encoding_does_not_see_spikes():
    model = small()
    batch = read(model, [0, 1, 1], [1.0, 3.0, 8.05])
    rates = model.encode(batch).log_rates
    assert rates.shape == batch.counts(0.05).shape
    assert torch.equal(rates, model.encode(batch.drop(torch.rand(len(batch.units)) < 0.7)).log_rates)
    assert not torch.allclose(rates, model.encode(behaving(batch, lambda v: 5 - 2 * v)).log_rates, atol=1e-3)
    with pytest.raises(BadRecording, match="a batch without 'vel', from which this NEDS encodes"):
        model.encode(Reader(SESSIONS).read([0], [1.0], 1.0))


def test_rates_follow_from_spikes_alone_where_no_behaviour_is_at_hand():
    model = small()
    batch = read(model, [0, 1], [1.0, 3.0])
    blind = model(Reader(SESSIONS).read([0, 1], [1.0, 3.0], 1.0))
    assert blind.behavior is None and torch.equal(blind.log_rates, model(batch).log_rates)
    decoded = model.encode(behaving(batch, lambda _: model(batch).behavior))
    torch.testing.assert_close(decoded.log_rates, blind.log_rates, atol=1e-5, rtol=1e-5)


def test_every_window_draws_a_scheme_and_each_as_often():
    model = small(ratio=0.4)
    batch = read(model, [0] * 2000, [1.0] * 2000)
    torch.manual_seed(0)
    hidden = model.hidden(batch)
    share = hidden.float().mean(2)
    found = Counter(tuple("all" if s == 1 else "none" if s == 0 else "some" for s in window) for window in
                    share.tolist())
    want = {("all", "none"), ("none", "all"), ("some", "none"), ("none", "some"), ("some", "some")}
    assert set(found) == want and len(SCHEMES) == 5
    assert all(abs(n / 2000 - 0.2) < 0.03 for n in found.values())
    some = (share > 0) & (share < 1)
    assert share[some].mean() == pytest.approx(0.4, abs=0.02)
    both = hidden[some.all(1)]
    assert torch.equal(both[:, 0], both[:, 1]) and not torch.equal(both[0], both[1])


def test_what_a_scheme_hides_does_not_reach_the_predictions(monkeypatch):
    model = small()
    batch = read(model, [0, 1] * 10, [0.75 * i for i in range(20)])
    torch.manual_seed(3)
    hidden = model.hidden(batch)
    spikes = hidden[batch.windows, 0, batch.spike_bins(0.05)]
    window = torch.repeat_interleave(batch.targets["vel"].offsets.diff())
    behaviour = hidden[window, 1, (batch.targets["vel"].times / 0.05 + 1e-4).long()]
    assert spikes.any() and behaviour.any() and not spikes.all() and not behaviour.all()
    changed = behaving(batch.drop(spikes), lambda v: torch.where(behaviour[:, None], 7 - v, v))
    said, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *given: said.append(predict(*given)) or said[-1])
    losses = []
    for told in (batch, changed):
        torch.manual_seed(3)
        losses.append(model.loss(told))
    for one, other in zip(*said, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert all(losses[0][part] != losses[1][part] for part in ("poisson", "mse"))   # still what it is scored on
    torch.manual_seed(3)
    model.loss(behaving(batch, lambda v: torch.where(behaviour[:, None], v, 7 - v)))
    assert not torch.allclose(said[-1].log_rates, said[0].log_rates, atol=1e-3)     # what is shown, is seen


def test_only_what_is_hidden_is_scored(monkeypatch):
    model = small()
    batch = read(model, [0, 1], [1.0, 3.0])
    bins = batch.bins(0.05)
    for shown, silent in ((0, "poisson"), (1, "mse")):
        hidden = torch.ones(2, 2, bins, dtype=torch.bool)
        hidden[:, shown] = False
        monkeypatch.setattr(model, "hidden", lambda _, h=hidden: h.clone())
        found = model.loss(batch)
        assert found[silent] == 0 and all(v != 0 for k, v in found.items() if k != silent)


def test_padding_is_not_scored(monkeypatch):
    model = small()
    batch = read(model, [0, 1], [1.0, 3.0])                             # of 8 and of 12 units
    monkeypatch.setattr(model, "hidden", lambda _: torch.tensor([[[True], [False]]]).repeat(2, 1, 20))
    rates, counts = model.encode(batch).log_rates, batch.counts(0.05)
    want = (rates.exp() - counts * rates)[batch.unit_mask].mean()
    torch.testing.assert_close(model.loss(batch)["poisson"], want.detach())


def test_time_is_told_by_turning_too():
    model = small()
    torch.nn.init.zeros_(model.position.rows)                           # so that nothing else tells bins apart
    batch = read(model, [0], [1.0])
    counts, hidden = batch.counts(0.05), torch.zeros(1, 2, 20, dtype=torch.bool)
    behaviour, order = model.binned(batch)[0], torch.randperm(20)
    there = model.predict(counts, behaviour, hidden, batch).behaviour[:, order]
    here = model.predict(counts[..., order], behaviour[:, order], hidden, batch).behaviour
    assert not torch.allclose(here, there, atol=1e-3)


def test_bins_hold_the_mean_of_their_samples_and_are_hidden_without_any(monkeypatch):
    clock = np.arange(0, 20, 0.0125) + 0.00625                          # four samples a bin
    values = np.stack([clock, np.cos(clock)], 1)
    values[(clock > 2.0) & (clock < 2.3)] = np.nan
    session = replace(SESSIONS[0], series={"vel": Series(clock, values, "m/s")})
    model = small([session], bin_size=0.05)
    batch = Reader([session], ("vel",)).read([0], [1.5], 1.0)
    behaviour, there = model.binned(batch)
    assert there[0].tolist() == [True] * 10 + [False] * 6 + [True] * 4
    found = behaviour[0, :, 0] * model.scale[0] + model.mean[0]
    want = 1.5 + (torch.arange(20) + 0.5) * 0.05
    torch.testing.assert_close(found[there[0]], want[there[0]], atol=1e-4, rtol=1e-4)
    assert model(batch).behavior.shape == (56, 2)
    shown, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *given: shown.append(~given[2][:, 1]) or predict(*given))
    for _ in range(5):                                                  # whichever scheme a loss draws
        model.loss(batch)["loss"].backward()
    model.encode(batch)
    shown = torch.cat(shown)
    assert torch.equal(shown[-1:], there) and shown[:-1].any() and not shown[:, ~there[0]].any()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_sessions_of_as_many_units_share_no_map():
    twins = [SESSIONS[0], toy("twin", 8, 3)]
    model = small(twins).train()
    model.loss(Reader(twins, ("vel",)).read([0] * 8, [1.0 + 2 * i for i in range(8)], 1.0))["loss"].backward()
    for table in (model.read_in.units, model.read_out.units):
        touched = table.weight.grad.any(1)
        assert touched[table.rows([f"a/u{i}" for i in range(8)])].all()
        assert not touched[table.rows([f"twin/u{i}" for i in range(8)])].any()
    for each in (model.map_in.rows, model.map_out.rows, model.session):
        assert each.weight.grad.any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("how", ["identify", "stitcher"])
def test_a_new_session_learns_its_maps_of_behaviour_too(how):
    model, new = small(), toy("new", 6, 5)
    before = model.map_in.rows.weight.clone()
    adapt(model, new, how, steps=4, batch_size=4)
    for table in (model.map_in.rows, model.map_out.rows, model.read_in.units, model.read_out.units):
        assert "new" in table.words or "new/u0" in table.words
    assert torch.equal(model.map_in.rows.weight[:3], before)
    fresh = small()
    with torch.random.fork_rng():
        torch.manual_seed(0)                                            # as `adapt` draws new rows
        fresh.extend([new])
    for mine, drawn in ((model.map_in.rows, fresh.map_in.rows), (model.map_out.rows, fresh.map_out.rows)):
        assert (mine.weight[3] != drawn.weight[3]).all()


def test_hidden_tokens_are_one_whatever_they_held():
    model = small()
    batch = read(model, [0], [1.0])
    counts = batch.counts(0.05)
    hidden = torch.ones(1, 2, 20, dtype=torch.bool)
    found = [model.predict(c, b, hidden, batch).log_rates for c, b in
             ((counts, torch.randn(1, 20, 2)), (counts * 0 + 9, torch.randn(1, 20, 2)))]
    assert torch.equal(*found)
