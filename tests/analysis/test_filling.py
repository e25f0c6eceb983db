"""Fills: the mask is training's, a copy copies only what is left, and a score is what its definition says."""

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import Session, models
from workbench.analysis.filling import Filler, copies
from workbench.errors import BadRecording, WorkbenchError
from workbench.masking import Controller, draw
from workbench.metrics import bits_per_spike
from workbench.windows import split

SHRUNK = {"neighbours in time": 0.2, "previous bin": 0.1, "other units": 0.3}


def recording(spikes=12_000, n=12, seconds=60.0, regions=("M1", "PMd"), **more):
    """Poisson spikes, half of the units bursting together, so that there is something to copy."""
    rng = np.random.default_rng(1)
    times = rng.uniform(0, seconds, spikes)
    wave = np.sin(2 * np.pi * times / 1.7) > rng.uniform(-1.5, 1, spikes)
    times, units = times[wave], rng.integers(0, n, wave.sum())
    order = np.argsort(times)
    names = np.array(regions)[np.arange(n) % len(regions)]
    table = pd.DataFrame({"id": [f"cell {i}" for i in range(n)], "region": names})
    return Session(**{"id": "test", "spike_times": times[order], "spike_units": units[order].astype(np.int32),
                      "units": table, "intervals": [[0, seconds]], **more})


def small(session, **settings):
    torch.manual_seed(0)
    return models.build("neurobridge", [session], **{"dim": 16, "width": 32, "depth": 1, "heads": 2, "window": 0.5,
                                                     **settings}).eval()


@pytest.mark.parametrize("mode", Controller.RATIOS)
def test_the_mask_is_the_one_that_training_draws_from_the_seed(mode):
    session = recording()
    model = small(session)
    for filler in (Filler(session, model), Filler(session)):
        batch = filler.read([3.0, 20.0], 0.5)
        torch.manual_seed(5)
        trained = model.draw(batch, mode, 0.6)
        before = torch.get_rng_state()
        found = filler.hide(batch, mode, 0.6, seed=5)
        assert torch.equal(found.hidden, trained.hidden) and torch.equal(found.scored, trained.scored)
        assert torch.equal(torch.get_rng_state(), before)
        assert any(not torch.equal(filler.hide(batch, mode, 0.6, seed).hidden, found.hidden) for seed in range(6, 12))


def test_other_models_get_the_masks_of_the_shared_function():
    session = recording()
    filler = Filler(session, models.build("ndt1", [session], dim=16, depth=1, bin_size=0.05))
    batch = filler.read([3.0], 1.0)
    torch.manual_seed(2)
    assert torch.equal(draw("neuron", batch.unit_mask, 20, 0.4).hidden, filler.hide(batch, "neuron", 0.4, 2).hidden)


def test_means_are_those_of_the_training_part():
    session = recording()
    filler = Filler(session)
    assert np.allclose(filler.mean, session.within(split(session)["train"]).rates() * 0.01)
    silent = session.spike_units == 0
    gone = recording(spike_times=session.spike_times[~silent], spike_units=session.spike_units[~silent])
    assert 0 < Filler(gone).mean[0] < 1e-3                              # half a spike, not none


def test_copies_take_the_nearest_that_is_seen_and_never_what_is_hidden():
    counts = torch.tensor([[[1.0, 0, 9, 9, 4, 2], [3, 9, 9, 9, 9, 9]], [[2, 2, 2, 2, 2, 2], [9, 9, 9, 9, 9, 9]]])
    hidden = counts == 9
    found = copies(counts, hidden, torch.tensor([1.0, 0.5]))
    assert found["previous bin"][0, 0].tolist() == [1, 0, 0, 0, 4, 2]
    assert found["neighbours in time"][0, 0].tolist() == [1, 0, 2, 2, 4, 2]
    assert found["previous bin"][0, 1].tolist() == found["neighbours in time"][0, 1].tolist() == [3] * 6
    assert found["neighbours in time"][1, 1].tolist() == [0.5] * 6      # a unit that is hidden throughout: its mean
    assert found["other units"][1, 1].tolist() == [1.0] * 6             # the other fires at twice its mean
    assert found["other units"][0, 1, 2].item() == 0.5                  # nobody is seen there
    other = copies(counts.masked_fill(hidden, 77), hidden, torch.tensor([1.0, 0.5]))
    assert all(torch.equal(found[name], other[name]) for name in found)


@pytest.mark.parametrize("mode", Controller.RATIOS)
def test_what_is_hidden_changes_nothing_that_is_filled_in(mode):
    session = recording()
    model = small(session)
    filler = Filler(session, model)
    batch = filler.read([3.0], 0.5)
    mask = filler.hide(batch, mode, 0.5, seed=1)
    filled = filler.predict(batch, mask)
    _, units, at = mask.hidden.nonzero(as_tuple=True)
    more = batch.add(torch.zeros_like(units), units, (at + 0.5) * 0.5 / mask.hidden.shape[2])
    assert len(more.times) > len(batch.times) > len(mask.of_spikes(batch).times)
    for changed in (more, mask.of_spikes(batch)):
        assert torch.allclose(filler.predict(changed, mask), filled, atol=1e-6)
        found, same = (filler.simple(which, mask, SHRUNK) for which in (changed, batch))
        assert all(torch.equal(found[name], same[name]) for name in same)
    _, units, at = (~mask.hidden).nonzero(as_tuple=True)
    if len(units):                                                      # and what is left does change it
        seen = batch.add(torch.zeros_like(units), units, (at + 0.5) * 0.5 / mask.hidden.shape[2])
        assert not torch.allclose(filler.predict(seen, mask), filled, atol=1e-3)


def test_bits_are_the_gains_of_the_scored_entries_over_their_spikes():
    session = recording()
    filler = Filler(session)
    batch = filler.read([3.0, 9.0], 1.0)
    mask = filler.hide(batch, "temporal", 0.5, seed=0)
    counts = batch.counts(0.01)
    scored = mask.grid(100).scored
    rates = filler.simple(batch, mask, SHRUNK)
    bits, spikes = filler.bits(batch, mask, rates)
    assert spikes == counts[scored].sum() and bits["mean rate"] == 0
    for name, each in rates.items():
        assert bits[name] == pytest.approx(filler.gain(each, counts)[scored].sum().item() / spikes, abs=1e-5)
    last = lambda x: x.transpose(1, 2).numpy()
    everything = bits_per_spike(last(rates["previous bin"]), last(counts), filler.mean.numpy())
    assert bits["previous bin"] != pytest.approx(everything, abs=1e-4)


def test_shrinkage_makes_copies_worth_something():
    filler = Filler(recording())
    trust = filler.shrinkage(1.0, lambda batch: filler.hide(batch, "neuron", 0.4, 0))
    batch = filler.read(filler.held_out(1.0), 1.0)
    mask = filler.hide(batch, "neuron", 0.4, 3)
    shrunk, raw = (filler.bits(batch, mask, filler.simple(batch, mask, by))[0]["other units"]
                   for by in (trust, dict.fromkeys(trust, 1.0)))
    assert 0 < trust["other units"] < 0.95 and shrunk > 0.01 and raw < shrunk
    assert trust["neighbours in time"] == trust["previous bin"] == 0    # a unit hidden throughout has no neighbours


def test_a_box_hides_its_units_and_its_time_alone():
    filler = Filler(recording())
    mask = filler.box(filler.read([3.0], 0.5), 0.1, 0.2, np.array([2, 7]))
    units, bins = mask.hidden[0].nonzero(as_tuple=True)
    assert set(units.tolist()) == {2, 7} and (bins.min(), bins.max()) == (10, 19)
    with pytest.raises(WorkbenchError, match="draw a larger one"):
        filler.box(filler.read([3.0], 0.5), 0.101, 0.102, np.array([2]))


def test_windows_lie_inside_intervals_on_whole_bins_and_are_whole_chunks():
    session = recording(intervals=[[0.003, 20], [30, 30.4], [40, 60]])
    filler = Filler(session)
    assert filler.whole_chunks(0.52) == 0.5 and filler.whole_chunks(99) == 5 and filler.whole_chunks(0) == 0.05
    for asked in (-5, 7.1234, 19.9, 30.1, 35.0, 59.99, 1e9):
        start = filler.nearest(asked, 0.5)
        inside = session.intervals[(session.intervals[:, 0] <= start) & (session.intervals[:, 1] >= start + 0.5 - 1e-9)]
        assert len(inside) == 1
        steps = (start - inside[0, 0]) / 0.01
        assert abs(steps - round(steps)) < 1e-6
    held_out = split(session)["test"]
    starts = filler.held_out(0.5)
    assert len(starts) and (starts >= held_out[0, 0] - 1e-9).all() and (starts + 0.5 <= held_out[-1, 1] + 1e-9).all()
    assert filler.part_of(starts[0], 0.5) == "test" and filler.part_of(1.0, 0.5) == "train"
    assert filler.part_of(split(session)["valid"][0, 0] - 0.2, 0.5) == ""
    assert len(filler.held_out(0.5, 3)) == 3


def test_what_cannot_fill_in_is_refused_in_a_sentence():
    session = recording()
    with pytest.raises(WorkbenchError, match="'ridge' predicts no firing rates"):
        Filler(session, models.get("ridge").__new__(models.get("ridge")))
    with pytest.raises(BadRecording, match="0 units"):
        Filler(recording(spike_times=[], spike_units=[], units=pd.DataFrame({"id": []})))
