"""MtM: what each scheme hides, how often it is drawn, what the prompt tells, and regions that are not there."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.models.test_zoo import SESSIONS, read, toy
from workbench import models
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import poisson_nll
from workbench.models.mtm import SCHEMES, MtM

ALONE = replace(toy("alone", 8, 3), units=SESSIONS[0].units.assign(region="M1"))
LOST = replace(toy("lost", 8, 4), units=SESSIONS[0].units.assign(region=["M1", "unknown"] * 4))


def small(sessions=tuple(SESSIONS), **settings) -> MtM:
    torch.manual_seed(0)
    sizes = dict(dim=32, width=32, depth=2, heads=2, inner=32, bin_size=0.05, window=1.0)
    return MtM.for_sessions(list(sessions), **sizes | settings).eval()


def drawn(model: MtM, batch, scheme: str):
    """A mask of that scheme, and the seed that draws it."""
    for seed in range(200):
        torch.manual_seed(seed)
        name, mask = model.mask(batch)
        if name == scheme:
            return mask, seed
    raise AssertionError(f"{scheme} is never drawn")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_scheme_hides_does_not_reach_the_predictions_it_is_scored_on(scheme, monkeypatch):
    model = small(schemes=SCHEMES)
    batch = read(model, [0, 1, 1], [1.0, 3.0, 8.05])
    mask, seed = drawn(model, batch, scheme)
    said, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *given: said.append(predict(*given)) or said[-1])
    losses = []
    for told in (batch, mask.of_spikes(batch)):
        torch.manual_seed(seed)
        losses.append(model.loss(told)["loss"])
    assert torch.equal(said[0].log_rates, said[1].log_rates)
    scored = poisson_nll(said[0].log_rates, batch.counts(0.05), where=mask.scored)
    assert losses[0] == scored != losses[1]                             # the hidden counts are the target all the same
    seen = ~mask.hidden & batch.unit_mask[..., None]
    silent = predict(batch.counts(0.05).masked_fill(seen, 0).masked_fill(mask.hidden, 0), batch, scheme)
    assert not torch.allclose(silent.log_rates[mask.scored], said[0].log_rates[mask.scored], atol=1e-4)


def test_each_scheme_hides_and_scores_its_own_part():
    model = small(schemes=SCHEMES)
    batch = read(model, [0, 1, 1, 0], [1.0, 3.0, 8.05, 12.0])
    there = batch.unit_mask
    first = (torch.arange(there.shape[1]) % 2 == 0).expand_as(there) & there        # units of M1; the others are of PMd
    masks = {scheme: drawn(model, batch, scheme)[0] for scheme in SCHEMES}
    for scheme in ("neuron", "intra_region", "inter_region"):           # whole units
        assert torch.equal(masks[scheme].hidden.any(2), masks[scheme].hidden.all(2))
    for scheme, share in (("causal", 0.6), ("temporal", 0.3)):          # whole bins
        hidden = masks[scheme].hidden
        assert all(torch.equal(h[u].any(0), h[u].all(0)) for h, u in zip(hidden, there, strict=True))
        assert hidden[:, 0].float().mean() == pytest.approx(share, abs=0.12)
    for window, units in enumerate(there):
        regions = [first[window], units & ~first[window]]
        assert any(torch.equal(masks["inter_region"].hidden[window].any(1), region) for region in regions)
        hidden, scored = (m[window].any(1) for m in masks["intra_region"])
        assert any((hidden & ~scored)[other].all() and not scored[other].any() and torch.equal(hidden & region, scored)
                   for region, other in (regions, regions[::-1]))


@pytest.mark.parametrize("schemes", [SCHEMES[:4], SCHEMES, ("temporal",)])
def test_a_batch_draws_one_scheme_and_each_as_often(schemes):
    model = small(schemes=schemes, depth=1)
    batch = read(model, [0, 1], [1.0, 3.0])
    torch.manual_seed(0)
    found = Counter(model.mask(batch)[0] for _ in range(400))
    assert set(found) == set(schemes)
    assert all(abs(n / 400 - 1 / len(schemes)) < 0.08 for n in found.values())


def test_only_the_causal_scheme_keeps_the_future_out():
    model = small()
    batch = read(model, [0, 1], [1.0, 4.0])
    counts = batch.counts(0.05)
    for at in (0, 7, 19):
        later = counts.clone()
        later[:, :8, at] += 3                                           # of units that both windows have
        moved = {scheme: (model.predict(counts, batch, scheme).log_rates
                          - model.predict(later, batch, scheme).log_rates).abs().amax((0, 1)) > 1e-6
                 for scheme in ("causal", "neuron")}
        assert not moved["causal"][:at].any() and moved["causal"][at:].all()
        assert moved["neuron"].all()


def test_the_prompt_tells_the_model_what_is_asked():
    model = small()
    batch = read(model, [0], [1.0])
    rates = {scheme: model(batch, scheme).log_rates for scheme in model.schemes}
    assert torch.equal(model(batch).log_rates, rates["neuron"])
    assert not any(torch.allclose(rates["neuron"], rates[s], atol=1e-3) for s in model.schemes[1:])
    with pytest.raises(UnknownName, match="no scheme 'temporal' in what this MtM was trained with"):
        model(batch, "temporal")


def test_sessions_of_as_many_units_share_no_map():
    twins = [SESSIONS[0], toy("twin", 8, 3)]
    model = small(twins).train()
    model.loss(Reader(twins).read([0, 0], [1.0, 5.0], 1.0))["loss"].backward()
    for table in (model.read_in.units, model.read_out.units):
        touched = table.weight.grad.any(1)
        assert touched[table.rows([f"a/u{i}" for i in range(8)])].any()
        assert not touched[table.rows([f"twin/u{i}" for i in range(8)])].any()


def test_windows_without_two_known_regions_pass_region_schemes_by():
    sessions = [SESSIONS[1], ALONE, LOST]
    with pytest.warns(UserWarning, match="alone, lost: no units in two known regions, so MtM learns nothing there by "
                                         "intra_region and inter_region"):
        model = small(sessions)
    batch = Reader(sessions).read([0, 1, 2], [1.0, 3.0, 8.0], 1.0)
    for scheme in ("intra_region", "inter_region"):
        hidden, scored = drawn(model, batch, scheme)[0]
        assert hidden[0].any() and not hidden[1:].any() and not scored[1:].any()
    poor = Reader(sessions).read([1, 2], [3.0, 8.0], 1.0)
    assert {model.mask(poor)[0] for _ in range(50)} == {"neuron", "causal"}


def test_windows_without_units_are_answered():
    model = small()
    batch = read(model, [0, 1], [1.0, 3.0])
    for keep in (torch.arange(20) >= 8, torch.zeros(20, dtype=torch.bool)):
        poor = batch.keep_units(keep)
        assert model(poor).log_rates.shape == poor.counts(0.05).shape
        assert all(model.loss(poor)["loss"].isfinite() for _ in range(8))       # whichever scheme is drawn


def test_sessions_without_two_regions_leave_the_region_schemes_out():
    with pytest.warns(UserWarning, match="alone: no units in two known regions"):
        model = small([ALONE])
    assert model.schemes == ("neuron", "causal") and len(model.prompt) == 2
    with pytest.raises(WorkbenchError, match="MtM would learn by inter_region alone, and no session has units in two"):
        small([ALONE], schemes=["inter_region"])
    model = small(schemes=["inter_region"])
    batch = read(model, [0], [1.0])
    with pytest.raises(WorkbenchError, match="no window of the batch has units in two known regions"):
        model.loss(batch.keep_units(torch.arange(8) == 3))


def test_regions_of_new_sessions_are_learned_and_kept(tmp_path):
    new = replace(toy("new", 6, 5), units=toy("new", 6, 5).units.assign(region=["AIP", "M1", "unknown"] * 2))
    model = small()
    assert model.regions.all == ["M1", "PMd"]
    model.extend([new])
    assert model.regions.all == ["AIP", "M1", "PMd"]
    numbers = model.regions.numbers(Reader([new]).read([0], [1.0], 1.0))[0]
    assert numbers.tolist() == [0, 1, -1, 0, 1, -1]
    model.save_pretrained(tmp_path)
    again = models.load(tmp_path).eval()
    assert again.regions.names == model.regions.names
    batch = Reader([new]).read([0], [1.0], 1.0)
    assert torch.equal(model(batch).log_rates, again(batch).log_rates)


def test_impossible_settings_are_refused():
    with pytest.raises(UnknownName, match="no scheme 'region' in MtM; did you mean"):
        small(schemes=["region"])
    with pytest.raises(WorkbenchError, match="without a scheme has nothing to learn from"):
        small(schemes=[])
    with pytest.raises(UnknownName, match="no setting 'regions' in model 'mtm'"):
        models.build("mtm", SESSIONS, regions={})
