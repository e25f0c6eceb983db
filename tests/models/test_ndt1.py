"""NDT1: the band of context, two ways in, and what units mean to it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.test_zoo import SESSIONS, read
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.models.ndt1 import NDT1


def small(sessions=tuple(SESSIONS), **settings) -> NDT1:
    torch.manual_seed(0)
    return NDT1.for_sessions(list(sessions), **dict(dim=32, depth=1, bin_size=0.05) | settings).eval()


@pytest.mark.parametrize(("ahead", "back"), [(1, 3), (0, None), (0, 0), (None, 2), (None, None)])
def test_a_bin_sees_its_band_of_context_and_nothing_else(ahead, back):
    model = small(ahead=ahead, back=back)
    batch = read(model, [0], [1.0])
    counts = batch.counts(0.05)
    bins = counts.shape[2]
    for at in (0, 1, 9, bins - 1):                                      # also where the band hangs over an edge
        changed = counts.clone()
        changed[:, :, at] += 3
        moved = (model.predict(counts, batch).log_rates != model.predict(changed, batch).log_rates).any(1)[0]
        first = 0 if ahead is None else max(at - ahead, 0)
        last = bins if back is None else min(at + back + 1, bins)
        assert moved.nonzero()[:, 0].tolist() == list(range(first, last))


def test_deep_models_without_a_look_ahead_are_causal():
    model = small(depth=3, ahead=0, back=None)
    batch = read(model, [1], [2.0])
    early = batch.times < 0.6 - 1e-4
    here, there = model(batch).log_rates, model(batch.drop(~early)).log_rates
    torch.testing.assert_close(here[..., :12], there[..., :12], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(here[..., 12:], there[..., 12:], atol=1e-3)


def test_the_lookup_sees_counts_as_classes():
    model = small(embedding="counts", max_count=6, lookup=3)
    batch = read(model, [0, 1], [1.0, 5.0])
    counts = batch.counts(0.05).clamp(max=5)
    rates = lambda c: model.predict(c, batch).log_rates
    many = counts.clone()
    many[0, 2, 4] = 6
    more = many.clone()
    more[0, 2, 4] = 60                                                  # above the highest there is a row for
    assert torch.equal(rates(many), rates(more)) and not torch.equal(rates(many), rates(counts))
    assert model.lookup.weight.shape == (7, 3) and len(model.read_in) == 3


def test_permuting_units_permutes_predictions():
    session = SESSIONS[1]
    order = np.random.default_rng(0).permutation(12)
    shuffled = replace(session, units=session.units.iloc[order], spike_units=np.argsort(order)[session.spike_units])
    model = small()
    here, there = (model(Reader([s]).read([0, 0], [1.0, 5.0], 1.0)).log_rates for s in (session, shuffled))
    torch.testing.assert_close(here[:, order], there, atol=1e-5, rtol=1e-5)


def test_rates_start_at_each_units_mean():
    model = small()
    model.read_out.units.weight.data[:, :-1] = 0
    rates = model(read(model, [0], [1.0])).log_rates.exp() / 0.05
    torch.testing.assert_close(rates[0, :, 0], torch.tensor(SESSIONS[0].rates()).float())


def test_a_mask_by_neuron_hides_neurons_over_the_whole_window():
    model = small(mask="neuron", ratio=0.5, silent=1.0)
    batch = read(model, [0, 1, 1], [1.0, 4.0, 9.0])
    torch.manual_seed(1)
    _, scored = model.masker(batch.counts(0.05), model.masker.held_out(model.read_out.units, batch), batch.unit_mask)
    assert torch.equal(scored.all(2), scored.any(2)) and 0.2 < scored.any(2)[batch.unit_mask].float().mean() < 0.8


def test_impossible_settings_are_refused():
    with pytest.raises(UnknownName, match="no embedding 'count' in NDT1's ways in; did you mean counts"):
        small(embedding="count")
    with pytest.raises(WorkbenchError, match="a window of 40 bins is longer than the 20 bins"):
        small()(Reader(SESSIONS).read([0], [1.0], 2.0))
