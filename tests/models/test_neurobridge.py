"""NeuroBridge: what is hidden leaves no trace, in any mode; identities, decoders, sizes and new sessions."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.models.small import SMALL
from tests.models.test_zoo import SESSIONS, toy
from workbench import models
from workbench.analysis import cosmoothing
from workbench.analysis.masked import evaluate
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.masking import Mask
from workbench.models.neurobridge import MODES, NeuroBridge, factors
from workbench.nn.grid import Factorised, OwnActivity
from workbench.nn.rotary import rotate_
from workbench.nn.solve import Equations
from workbench.windows import RandomWindows

ONE_REGION = replace(toy("alone", 8, 3), units=SESSIONS[0].units.assign(region="M1"))


def small(sessions=SESSIONS, **settings) -> NeuroBridge:
    torch.manual_seed(0)
    return models.build("neurobridge", sessions, **{**SMALL["neurobridge"], **settings}).eval()


def windows(sessions=SESSIONS, starts=(1.0, 3.0, 8.05), which=(0, 1, 1)):
    return Reader(sessions, ("vel",)).read(list(which), list(starts), 1.0)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [{}, {"bin_size": 0.01, "chunk": 0.05}, {"decoder": "queries"}])
def test_what_a_mask_hides_changes_nothing_that_is_said(mode, settings):
    model, batch = small(**settings), windows()
    for seed in range(3):
        torch.manual_seed(seed)
        mask = model.draw(batch, mode)
        entries = mask.hidden.nonzero()[torch.randperm(int(mask.hidden.sum()))[:200]]
        times = (entries[:, 2] + torch.rand(len(entries))) * (1.0 / mask.hidden.shape[2])
        more = batch.add(entries[:, 0], entries[:, 1], times.clamp(max=1 - 1e-6))
        assert len(mask.of_spikes(batch).times) < len(batch.times)
        one, other, none = model.reconstruct(batch, mask), model.reconstruct(more, mask), model.reconstruct(
            mask.of_spikes(batch), mask)
        for changed in (other, none):
            assert torch.equal(one.log_rates, changed.log_rates) and torch.equal(one.latents, changed.latents)
        assert not torch.equal(model(batch).latents, one.latents)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"bin_size": 0.01, "chunk": 0.05}])
def test_hidden_units_are_to_the_encoder_as_if_they_had_never_been_recorded(settings):
    model, batch = small(**settings), windows()
    mask = model.draw(batch, "neuron")
    fewer = batch.keep_units(~mask.hidden[..., 0][batch.unit_mask])
    torch.testing.assert_close(model.encode(batch, mask), model.encode(fewer), atol=1e-5, rtol=1e-5)
    silent = mask.of_spikes(batch)                                      # silence of units that are there says something
    assert not torch.allclose(model.encode(fewer), model.encode(silent), atol=1e-4)
    alone = small(sums=False, **settings)                               # unless only spikes are looked at
    torch.testing.assert_close(alone.encode(fewer), alone.encode(silent), atol=1e-5, rtol=1e-5)


def test_modes_are_drawn_by_their_chances():
    model, batch = small(modes={"neuron": 3, "causal": 1}), windows()
    drawn = [list(model.loss(batch))[1] for _ in range(60)]
    assert set(drawn) == {"neuron", "causal"} and 30 <= drawn.count("neuron") <= 58


def test_only_hidden_entries_are_scored(monkeypatch):
    model, batch = small(modes={"neuron": 1}), windows()
    mask = model.draw(batch, "neuron")
    monkeypatch.setattr(model.controller, "draw", lambda *_, **__: ("neuron", mask))
    loss = model.loss(batch)["loss"]
    log_rates, counts = model.reconstruct(batch, mask).log_rates, batch.counts(0.05)
    by_hand = (log_rates.exp() - counts * log_rates)[mask.hidden].mean()
    torch.testing.assert_close(loss, by_hand)


def test_runs_leave_a_part_of_every_chunk_and_hide_half_to_three_quarters():
    model, batch = small(bin_size=0.01, chunk=0.05), windows()
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        mask = model.draw(batch, "temporal")
        chunks = mask.hidden[:, 0].unflatten(1, (20, 10))               # of 50 ms, on a grid of 5 ms
        long = chunks.sum(2)
        assert long.min() >= 5 and long.max() <= 8                      # 25 to 40 ms
        assert (chunks[..., 1:] & ~chunks[..., :-1]).sum(2).max() <= 1  # one run
        shares.append(long.float().mean() / 10)
        scored = mask.grid(100).scored[:, 0]
        assert torch.equal(scored, mask.hidden[:, 0].unflatten(1, (100, 2)).all(2))
    assert min(shares) >= 0.5 and max(shares) < 0.76 and max(shares) - min(shares) > 0.1


def test_whole_bins_are_hidden_where_a_chunk_is_one_bin():
    model, batch = small(), windows()
    mask = model.draw(batch, "temporal")
    assert mask.hidden.shape[2] == 20 and 0 < mask.hidden[:, 0].float().mean() < 1


@torch.no_grad()
@pytest.mark.parametrize("timed", [True, False])
def test_queries_at_chunks_attend_as_a_plain_attention_over_their_spikes(timed):
    model, batch = small(latents=3, bin_size=0.01 if timed else 0.05, chunk=0.05), windows()
    compress, rows = model.compress, model.units.unit_rows(batch)
    own, fast = compress.attention, compress(batch, model.units.weight, rows)
    spikes, at = batch.spikes(), batch.spike_bins(0.05)
    for window, chunk in ((0, 0), (1, 7), (2, 19)):
        mine = (spikes.windows == window) & (at == chunk)
        x = torch.cat([model.units.weight[rows[spikes.units[mine]]], compress.blank])
        times = torch.cat([(spikes.times[mine] - chunk * 0.05) * timed, torch.zeros(1)])
        kv = rotate_(own.to_kv(own.norm_context(x)).unflatten(-1, (2 * own.heads, -1)), compress.rotary(times)[:, None])
        q = own.to_q(own.norm(compress.queries)).unflatten(-1, (own.heads, -1))
        q = rotate_(q, compress.rotary((torch.arange(3) + 0.5) * 0.05 / 3)[:, None])
        k, v = kv.transpose(0, 1).chunk(2)
        found = scaled_dot_product_attention(q.transpose(0, 1), k, v).transpose(0, 1).flatten(1)
        latents = compress.queries + own.to_out(found) + compress.many * (mine.sum() + 1.0).log()
        torch.testing.assert_close(fast[window, chunk], latents + compress.ffn(latents), atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("clock", [False, True])
def test_chunks_know_their_time_in_the_window_by_a_clock_alone(clock):
    """The same spikes in the middle of a silent window, and three chunks later."""
    model, batch = small(clock=clock), windows()
    some = batch.drop((batch.times < 0.4) | (batch.times >= 0.45))
    later = replace(some, times=some.times + 0.15)
    one, two = (model.encode(each).unflatten(1, (20, -1)) for each in (some, later))
    assert torch.allclose(one[:, 8], two[:, 11], atol=0.05) is not clock
    if clock:
        with pytest.raises(WorkbenchError, match=r"time in windows of 1 s and was given 0\.5 s"):
            model(Reader(SESSIONS).read([0], [1.0], 0.5))


@torch.no_grad()
def test_more_spikes_of_the_same_are_told_from_fewer():
    model, batch = small(), windows()
    one = batch.drop(torch.arange(len(batch.times)) != 5)
    two = one.add(one.windows, one.units, one.times)
    assert not torch.allclose(model.encode(one), model.encode(two), atol=1e-4)


@torch.no_grad()
def test_where_a_spike_lies_in_a_chunk_matters_unless_the_grid_is_as_coarse():
    for settings, matters in (({"bin_size": 0.01, "chunk": 0.05}, True), ({}, False)):
        model, batch = small(**settings), windows()
        later = replace(batch, times=batch.spike_bins(0.05) * 0.05 + 0.049)
        assert torch.allclose(model.encode(batch), model.encode(later), atol=1e-4) is not matters


@torch.no_grad()
def test_permuting_the_units_permutes_the_rates():
    session = SESSIONS[0]
    order = torch.randperm(len(session.units), generator=torch.Generator().manual_seed(1)).numpy()
    back = order.argsort()
    other = replace(session, units=session.units.iloc[order].reset_index(drop=True),
                    spike_units=back[session.spike_units], series={})
    model = small()
    one, two = (model(Reader([s]).read([0], [2.0], 1.0)).log_rates for s in (session, other))
    torch.testing.assert_close(one[:, order], two, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_asking_for_some_entries_gives_what_the_whole_grid_holds(monkeypatch):
    model, batch = small(decoder="queries"), windows()
    latents, units = model.encode(batch), model.decoder.known(model.unit_vectors(batch))
    turn, bins, near = model.asked(batch)
    grid = model.decoder(latents, units, turn, bins, near)
    unit, at = torch.tensor([[0, 3], [5, 1], [2, 2]]), torch.tensor([[4, 19], [0, 7], [7, 7]])
    rows = torch.arange(3)[:, None]
    found = model.decoder.ask(latents, units[rows, unit], turn, bins[at], near[:, at].transpose(0, 1))
    torch.testing.assert_close(found, grid[rows, unit, at])
    monkeypatch.setattr("workbench.nn.grid.PIECE", 100)
    torch.testing.assert_close(model.decoder(latents, units, turn, bins, near), grid)


@torch.no_grad()
def test_silence_is_answered():
    model, batch = small(), windows()
    silent = batch.drop(torch.ones(len(batch.times), dtype=torch.bool))
    for mode in MODES:
        found = model.reconstruct(silent, model.draw(silent, mode))
        assert found.log_rates.isfinite().all() and found.latents.isfinite().all()


def test_a_prompt_tells_the_mode_and_without_one_no_mode_matters():
    batch = windows()
    mask = small().draw(batch, "neuron")
    for prompt in (True, False):
        model = small(prompt=prompt)
        said = [model.reconstruct(batch, mask, mode).log_rates for mode in ("neuron", "causal")]
        assert torch.equal(*said) is not prompt


@torch.no_grad()
@pytest.mark.parametrize("mode", ["temporal", "causal"])
def test_latents_hidden_after_compression_tell_nothing_either(mode):
    model, batch = small(after=True, bin_size=0.01, chunk=0.05, modes={"temporal": 1, "causal": 1}), windows()
    mask = model.draw(batch, mode)
    assert (mask.grid(20).hidden == mask.grid(20).scored).all()         # whole chunks
    one, other = model.reconstruct(batch, mask), model.reconstruct(mask.of_spikes(batch), mask)
    torch.testing.assert_close((one.log_rates, one.latents), (other.log_rates, other.latents), atol=1e-5, rtol=1e-5)
    with pytest.raises(WorkbenchError, match="only modes of time"):
        small(after=True)


@torch.no_grad()
def test_new_sessions_add_rows_and_change_none():
    model, new = small(), toy("new", 6, 5)
    batch = windows()
    before = model(batch).log_rates
    model.extend([new])
    assert torch.equal(model(batch).log_rates, before)
    there = Reader([new]).read([0], [2.0], 1.0)
    assert model(there).log_rates.shape == (1, 6, 20)
    rows = model.rates.rows([f"new/u{i}" for i in range(6)])
    torch.testing.assert_close(model.rates.weight[rows, 0].exp().double(), torch.from_numpy(new.rates() * 0.05),
                               rtol=1e-4, atol=1e-6)
    assert model.regions.numbers(there).tolist() == [[0, 1] * 3]


@torch.no_grad()
def test_vectors_of_units_are_solved_for_by_what_they_fired():
    torch.manual_seed(0)
    decoder, units = Factorised(32, 48, 2, 0.0), torch.nn.functional.layer_norm(torch.randn(20, 32), (32,))
    own, everyone = OwnActivity(32, 0.05), torch.ones(20, dtype=torch.bool)
    times = torch.nn.functional.layer_norm(torch.randn(3000, 6) @ torch.randn(6, 48), (48,))
    ratios = 0.5 * torch.randn(3000, 20, 4)
    of_times = lambda vectors: (decoder.direction(decoder.unit_norm(vectors)) @ times.T * 48 ** -0.5).T     # log
    of_own = lambda vectors: torch.einsum("mnk,nk->mn", ratios, own.weigh(own.norm(vectors)))
    for seen in (False, True):                                          # what is near in time hidden too, or not
        rates = lambda vectors, seen=seen: of_times(vectors) + seen * of_own(vectors)
        counts, equations = torch.poisson((rates(units) - 1).exp()), Equations(decoder, own, 20)
        for rows in torch.arange(3000).split(1000):                     # gathered in pieces
            equations.add(times[rows], counts[rows], everyone, ratios[rows] if seen else None)
        found = equations.solve()
        torch.testing.assert_close(found.var(1, correction=0), torch.ones(20), rtol=1e-3, atol=0)
        said, true = (each - each.mean(0) for each in (rates(found), rates(units)))
        assert torch.nn.functional.cosine_similarity(said, true, dim=0).min() > 0.9
        assert (said.std(0) / true.std(0)).sub(1).abs().max() < 0.4     # one step, from the means


@torch.no_grad()
def test_bursts_do_not_blow_up_how_much_a_units_own_counts_are_made_of():
    torch.manual_seed(0)
    decoder, own, ratios = Factorised(32, 48, 2, 0.0), OwnActivity(32, 0.05), torch.zeros(2000, 1, 4)
    ratios[:100] = 2.5                                                  # ten times what it fires on average
    own.weigh.weight.copy_(torch.randn(4, 32) * 0.3)
    equations = Equations(decoder, own, 1)
    counts = torch.poisson(torch.where(ratios[..., 0] > 0, 2.0, 0.2))
    equations.add(torch.zeros(2000, 48), counts, torch.ones(1, dtype=torch.bool), ratios)
    said = (ratios[0] @ own.weigh(own.norm(equations.solve()))[..., None]).item()
    assert 0.5 * np.log(10) < said < 1.5 * np.log(10)


def test_units_of_a_new_session_are_recognised_by_a_trained_network(monkeypatch):
    sessions = [toy(f"s{i}", 12, 10 + i, 60.0) for i in range(3)]
    new, model = toy("new", 12, 20, 60.0), small(sessions, modes={"neuron": 1}).train()
    batches = RandomWindows(sessions, [s.intervals for s in sessions], duration=1.0, batch_size=16, seed=0)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(200):
        adam.zero_grad()
        model.loss(batches.batch(step))["loss"].backward()
        adam.step()
    model.eval()
    known = model.units.weight.detach().clone()
    train, test = np.array([[0.0, 40.0]]), np.array([[40.0, 60.0]])
    score = lambda met: evaluate(met, new, train, test, "neuron", fills=False)["bits"]
    met = copy.deepcopy(model)
    met.extend([new.within(train)])
    assert torch.equal(met.units.weight[:len(known)], known) and not met.training
    monkeypatch.setattr(NeuroBridge, "recognise", lambda *_: None)
    model.extend([new.within(train)])
    assert score(met) > score(model) + 0.05


@pytest.mark.parametrize("settings", [dict(decoder="queries"), dict(after=True, modes={"temporal": 1, "causal": 1})])
def test_a_network_that_cannot_recognise_units_meets_them_all_the_same(settings):
    model, new = small(**settings), toy("new", 6, 5)
    model.extend([new])
    assert model(Reader([new]).read([0], [2.0], 1.0)).log_rates.isfinite().all()


@torch.no_grad()
def test_a_unit_that_is_alone_or_silent_can_be_met():
    model, new = small(), toy("new", 6, 5)
    for session in (replace(new.select([0]), id="alone"), replace(new.select([0]), id="silent", spike_times=[],
                                                                  spike_units=[])):
        model.extend([session])
        assert model(Reader([session]).read([0], [2.0], 1.0)).log_rates.isfinite().all()


@torch.no_grad()
def test_inferred_units_are_met_without_a_gradient():
    model, new = small(identity="inferred", reference_bins=40), toy("new", 6, 5)
    weights = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.extend([new])
    there = Reader([new]).read([0], [2.0], 1.0)
    assert model(there).log_rates.isfinite().all()
    kept = {name: p for name, p in model.named_parameters() if name in weights and not name.startswith("rates")}
    assert all(torch.equal(p, weights[name]) for name, p in kept.items())
    order = torch.tensor([3, 1, 5, 0, 2, 4]).numpy()
    other = replace(new, id="other", units=new.units.iloc[order].reset_index(drop=True),
                    spike_units=order.argsort()[new.spike_units])
    model.extend([other])
    again = model(Reader([other]).read([0], [2.0], 1.0)).log_rates
    torch.testing.assert_close(model(there).log_rates[:, order], again, atol=1e-4, rtol=1e-4)


def test_units_that_share_a_factor_start_near_each_other():
    torch.manual_seed(0)
    drive = 0.8 * torch.randn(2, 400).repeat_interleave(5, 0)           # two groups of five, and five on their own
    rates = (torch.cat([drive, torch.zeros(5, 400)]) + 1).exp()
    vectors = torch.nn.functional.normalize(factors(torch.poisson(rates).view(15, 20, 20).transpose(0, 1), 64), dim=1)
    like = vectors @ vectors.T
    assert like[:5, :5].min() > 0.8 and like[5:10, 5:10].min() > 0.8 and like[:5, 5:10].abs().max() < 0.5
    assert not factors(torch.ones(1, 4, 1), 8).any()                    # one bin: nobody knows


def test_sessions_of_one_region_do_without_region_modes_and_say_so():
    with pytest.warns(UserWarning, match="alone: no units in two known regions, so NeuroBridge learns nothing there"):
        model = small([ONE_REGION])
    assert model.modes == ("temporal", "neuron", "causal")
    with pytest.warns(UserWarning):
        both = small([ONE_REGION, SESSIONS[0]])
    assert set(both.modes) == set(MODES)
    batch = Reader([ONE_REGION, SESSIONS[0]]).read([0, 1], [1.0, 1.0], 1.0)
    mask = both.draw(batch, "inter_region")
    assert not mask.hidden[0].any() and mask.hidden[1].any()


@pytest.mark.parametrize(("size", "million"), [("2m", 2), ("10m", 10), ("30m", 30), ("100m", 100)])
def test_sizes_are_what_they_are_called(size, million):
    with torch.device("meta"):
        model = NeuroBridge(units=["a/u0"], regions={}, **NeuroBridge.SIZES[size])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(million, rel=0.2)


def test_impossible_settings_are_refused_in_a_sentence():
    with pytest.raises(UnknownName, match="no mode 'neurons' in the modes that can be drawn; did you mean neuron"):
        small(modes={"neurons": 1.0})
    with pytest.raises(UnknownName, match="no mode 'neurons' in the modes that can be drawn; did you mean neuron"):
        small().draw(windows(), "neurons")
    with pytest.raises(WorkbenchError, match="give at least one mode"):
        small(modes={})
    with pytest.raises(UnknownName, match="no identity 'idencoder' in NeuroBridge"):
        small(identity="idencoder")
    with pytest.raises(UnknownName, match="no decoder 'query'"):
        small(decoder="query")
    with pytest.raises(WorkbenchError, match=r"chunks of 0\.07 s are no whole number of 0\.05 s"):
        small(chunk=0.07)
    with pytest.raises(UnknownName, match="no size '3m' in the sizes of NeuroBridge"):
        models.build("neurobridge", SESSIONS, size="3m")


def test_a_mask_has_no_grid_that_does_not_divide_it():
    hidden = torch.zeros(1, 2, 10, dtype=torch.bool)
    with pytest.raises(WorkbenchError, match="a mask of 10 bins has no grid of 4"):
        Mask(hidden, hidden).grid(4)


def test_co_smoothing_takes_held_out_units_for_hidden_and_not_for_silent():
    model, session = small(), SESSIONS[0]
    found = cosmoothing.predict(model, session, session.intervals, ["u1", "u4"])
    batch = Reader([session]).read([0], [session.start], 1.0)
    hidden = torch.zeros(1, 8, 20, dtype=torch.bool)
    hidden[:, [1, 4]] = True
    with torch.no_grad():
        said = model.reconstruct(batch, Mask(hidden, hidden)).log_rates.exp()[0, [1, 4], :5]    # in no other window
    torch.testing.assert_close(torch.from_numpy(found.rates[:5].T), said.double(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_each_modes_prompt_is_still_its_own_in_a_model_that_was_saved(tmp_path):
    """Settings are written with sorted names, so that modes come back in another order."""
    model, batch = small(modes={"temporal": 1.0, "neuron": 1.0, "causal": 1.0}, prompt=True), windows()
    model.prompt.normal_()
    model.save_pretrained(tmp_path)
    again, mask = models.load(tmp_path), model.draw(batch, "neuron")
    said = {mode: model.reconstruct(batch, mask, mode).log_rates for mode in model.modes}
    assert set(again.modes) == set(model.modes) and not torch.equal(said["temporal"], said["neuron"])
    for mode, log_rates in said.items():
        assert torch.equal(again.reconstruct(batch, mask, mode).log_rates, log_rates)
