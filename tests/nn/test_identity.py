"""Units known by their activity: in any order and number, without labels, never out of date, and not by heart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.small import SMALL
from tests.models.test_zoo import toy
from workbench import models
from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.models.base import unit_names
from workbench.nn.identity import LAGS, Identity, statistics
from workbench.nn.stitcher import unit_weights
from workbench.session import Session

SESSIONS = [toy("a", 8, 1), toy("b", 12, 2)]


def identity(sessions=SESSIONS, dim=16, **settings) -> Identity:
    torch.manual_seed(0)
    settings = dict(bin_size=0.05, reference_windows=6, reference_bins=40) | settings
    units = Identity(unit_names(sessions), dim, **settings)
    for session in sessions:
        units.measure(session, session.intervals)
    return units.eval()


def read(sessions=SESSIONS, index=(1, 0, 1)) -> SpikeBatch:
    return Reader(sessions).read(np.array(index), np.arange(len(index)) + 1.0, 1.0)


def vectors(units: Identity, batch: SpikeBatch) -> torch.Tensor:
    return units(units.unit_rows(batch))


def shuffled(session: Session, order: np.ndarray, name: str) -> Session:
    return replace(session, id=name, units=session.units.iloc[order],
                   spike_units=np.argsort(order)[session.spike_units])


@pytest.mark.parametrize("reference", ["windows", "statistics"])
@torch.no_grad()
def test_permuting_units_permutes_vectors(reference):
    session, order = SESSIONS[1], np.random.default_rng(0).permutation(12)
    other, units = shuffled(session, order, "other"), identity(reference=reference)
    here = vectors(units, read([session], [0]))
    units.measure(other, other.intervals)
    torch.testing.assert_close(vectors(units, read([other], [0])), here[order], atol=1e-5, rtol=0)
    apart = torch.pdist(here)
    assert apart.min() > 1e-2                                           # and no two are alike


@torch.no_grad()
def test_it_stands_where_a_vocabulary_of_units_stands():
    """Rows by name, vectors in the order of the batch's units, whatever the order that the model knows them in."""
    units, batch = identity(), read()
    found = vectors(units, batch)
    assert found.shape == (32, 16) and torch.equal(found[:12], found[20:])
    assert torch.equal(unit_weights(batch, units)[1, :8], found[12:20])
    some = batch.keep_units(torch.arange(32) % 3 == 0)
    torch.testing.assert_close(vectors(units, some), found[::3], atol=1e-6, rtol=0)
    turned = replace(SESSIONS[0], units=SESSIONS[0].units.iloc[::-1])   # the same ids in another order
    torch.testing.assert_close(vectors(units, read([turned], [0])), found[12:20].flip(0), atol=1e-6, rtol=0)


def test_a_model_with_rows_learns_with_identities_in_their_place():
    torch.manual_seed(0)
    model = models.build("possm", SESSIONS, target="vel", **SMALL["possm"]).eval()
    model.units, session = identity(dim=16), SESSIONS[1]
    batch = Reader(SESSIONS, ("vel",)).read([0, 1], [1.0, 3.0], model.window)
    model.loss(batch)["loss"].backward()
    assert all(p.grad.any() for p in model.units.parameters() if p.requires_grad)
    other = shuffled(session, np.random.default_rng(0).permutation(12), "other")
    model.extend([other])                                               # its session's row, and names of its units
    model.units.measure(other, other.intervals)
    with torch.no_grad():
        model.sessions.weight[3] = model.sessions.weight[2]
        here, there = (model(Reader([s], ("vel",)).read([0], [3.0], model.window)).behavior for s in (session, other))
    torch.testing.assert_close(there, here, atol=1e-5, rtol=0)


def test_a_session_met_later_leaves_what_is_known_as_it_was():
    units, new = identity(), toy("new", 6, 7)
    learned = {name: p.clone() for name, p in units.named_parameters() if p.requires_grad}
    with torch.no_grad():
        before = vectors(units, read())
        units.measure(replace(new, series={}), new.intervals)           # no labels
        torch.testing.assert_close(vectors(units, read()), before, atol=0, rtol=0)
        assert vectors(units, read([new], [0])).shape == (6, 16)
    assert all(torch.equal(p, learned[name]) for name, p in units.named_parameters() if name in learned)
    vectors(units, read([new], [0])).sum().backward()
    assert units.weight.grad is None and not units.weight.requires_grad
    again = Identity(units.words, 16, bin_size=0.05, reference_windows=6, reference_bins=40).eval()
    again.load_state_dict(units.state_dict())                           # what was measured is saved with the weights
    assert torch.equal(vectors(again, read([new], [0])), vectors(units, read([new], [0])))


def test_gradients_reach_the_whole_encoder_and_stop_at_the_reference():
    units = identity().train()
    (vectors(units, read()) * torch.randn(32, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in units.parameters() if p.requires_grad)


def _step(units):
    adam = torch.optim.AdamW([p for p in units.parameters() if p.requires_grad])
    with torch.enable_grad():
        vectors(units, read()).square().mul(torch.arange(16.0)).sum().backward()
    adam.step()


def _load(units):
    units.load_state_dict({name: value * 1.1 for name, value in units.state_dict().items()})


def _data(units):
    units.per_unit[1].weight.data.mul_(1.1)                             # which torch's own version counter misses


def _replaced(units):
    units.per_window[1].weight = nn.Parameter(units.per_window[1].weight.detach() * 1.1)


def _rounded(units):
    units.bfloat16().float()


def _measured(units):
    for session in SESSIONS:
        units.measure(session, np.array([[3.0, 9.0]]))


def _reference(units):
    units.weight.data[:, 2:].neg_()


@pytest.mark.parametrize("change", [_step, _load, _data, _replaced, _rounded, _measured, _reference])
def test_what_is_kept_in_evaluation_is_never_out_of_date(change):
    units, batch = identity(), read()
    with torch.no_grad():
        before = vectors(units, batch)
        change(units)
        found = vectors(units, batch)
    fresh = vectors(units, batch).detach()                              # with gradients nothing is kept
    torch.testing.assert_close(found, fresh, atol=0, rtol=0)
    assert (found - before).abs().max() > 1e-4


@torch.no_grad()
def test_vectors_are_worked_out_once_while_nothing_changes():
    units, batch, calls = identity(), read(), []
    units.per_unit.register_forward_hook(lambda *_: calls.append(1))
    first = vectors(units, batch)
    vectors(units, batch).zero_()                                       # what is given out is the caller's own
    with torch.inference_mode():
        assert torch.equal(vectors(units, batch), first) and len(calls) == 1
    vectors(units, read(index=[1]))                                     # other units
    assert len(calls) == 2
    with torch.autocast("cpu", torch.bfloat16):
        vectors(units, batch)
    assert torch.equal(vectors(units, batch), first) and len(calls) == 4
    units.train()
    vectors(units, batch)
    vectors(units, batch)
    assert len(calls) == 6


def test_a_training_step_draws_its_own_windows_and_evaluation_sees_all():
    units = identity(reference_drawn=2)
    plain, batch = identity(), read()
    assert torch.equal(vectors(units, batch), vectors(plain, batch))
    seen = []
    units.per_window.register_forward_hook(lambda module, windows, _: seen.append(windows[0]))
    units.train()
    assert not torch.equal(vectors(units, batch), vectors(units, batch))
    for _ in range(40):
        vectors(units, batch)
    kept = units.weight[1:, 2:].unflatten(1, (6, -1))
    drawn = torch.stack(seen)                                           # [42, 20, 2, W]
    assert drawn.shape[1:3] == (20, 2)
    which = (drawn[:, :, :, None] == kept[:, None]).all(-1)             # [42, 20, 2, 6]: each one of the unit's own
    assert (which.sum(-1) == 1).all() and (which.sum((0, 2)) > 0).all() and (which.sum(2) <= 1).all()
    assert torch.equal(vectors(plain.train(), batch), vectors(plain, batch))


def rhythms() -> Session:
    """Thirty units at one rate, each with a slow rhythm of its own: known by it at any time, and by heart at one."""
    random, clock = np.random.default_rng(0), np.arange(0, 80, 0.05)
    hertz = np.geomspace(0.3, 5, 30)
    phase = np.cumsum(random.normal(0, 0.1, (len(clock), 30)), axis=0)
    counts = random.poisson(1.5 * (1 + np.sin(2 * np.pi * clock[:, None] * hertz + phase)))
    bins, units = np.nonzero(counts)
    times, owner = (np.repeat(x, counts[bins, units]) for x in (clock[bins] + 0.025, units))
    return replace(toy("r", 30, 0, seconds=80.0), spike_times=times, spike_units=owner, series={})


def recognised(**settings) -> float:
    """How often a unit, learnt from the first half, is told by its vector from the second half."""
    session = rhythms()
    units = identity([session], reference_bins=80, reference_windows=32, **settings)
    units.measure(session, np.array([[0.0, 40.0]]))
    batch, read_out, labels = read([session], [0]), nn.Linear(16, 30), torch.arange(30)
    adam = torch.optim.Adam([*(p for p in units.parameters() if p.requires_grad), *read_out.parameters()], lr=3e-3)
    for _ in range(120):
        adam.zero_grad()
        nn.functional.cross_entropy(read_out(vectors(units.train(), batch)), labels).backward()
        adam.step()
    units.measure(session, np.array([[40.0, 80.0]]))
    with torch.no_grad():
        return (read_out(vectors(units.eval(), batch)).argmax(1) == labels).float().mean().item()


def test_windows_drawn_anew_keep_units_from_being_learnt_by_heart():
    by_heart, drawn = recognised(), recognised(reference_drawn=8)
    assert drawn > 0.4 and drawn > by_heart + 0.1


@torch.no_grad()
def test_standard_deviations_hide_how_much_a_unit_fires_and_its_level_says_it():
    session, units = SESSIONS[0], identity(reference_bins=400, reference_windows=1)
    rows = units.unit_rows(read([session], [0]))
    level, kept = units.level(rows), units.weight[rows, 2:]
    assert level[:, 0].numpy() / 0.05 == pytest.approx(session.rates(), rel=1e-4)     # one window: all 20 s
    torch.testing.assert_close(kept.mean(1), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(kept.std(1), torch.ones(8), atol=1e-4, rtol=0)
    plain = identity(reference_bins=400, reference_windows=1, standardise=False)
    torch.testing.assert_close(plain.weight[rows, 2:].mean(1), level[:, 0])


def test_what_cannot_be_known_is_refused_in_one_sentence():
    units = identity(SESSIONS[:1])
    with pytest.raises(UnknownName, match=r"no session 'b' in the sessions that this model knows; there are a; "
                                          r"model\.identify\(session, intervals\) makes it known"):
        units.unit_rows(read())
    units.extend(unit_names(SESSIONS))                                  # a name alone does not make a unit known
    with pytest.raises(UnknownName, match="no session 'b'"):
        units.unit_rows(read())
    units.measure(SESSIONS[1], SESSIONS[1].intervals)
    assert len(units.unit_rows(read())) == 32
    other = replace(SESSIONS[0], units=SESSIONS[0].units.assign(id=[f"u{i}" for i in range(7, 15)]))
    with pytest.raises(BadRecording, match=r"a: 7 of 8 units are new to this model \(u8 is one\); let model\.identify"):
        units.unit_rows(read([other], [0]))
    with pytest.raises(BadRecording, match=r"a: units are known by 2 s on end \(40 bins\).*lasts 1\.5 s; give a small"):
        units.measure(SESSIONS[0], np.array([[0.0, 1.5]]))
    with pytest.raises(UnknownName, match="no reference 'window' in the references that tell units apart; did you"):
        identity(reference="window")
    with pytest.raises(WorkbenchError, match="a step cannot draw 7 of 6 reference windows; give a reference_drawn="):
        identity(reference_drawn=7)
    with pytest.raises(WorkbenchError, match="cannot draw 0 of 6"):
        identity(reference_drawn=0)


def test_statistics_tell_rate_rhythm_and_company():
    random = np.random.default_rng(0)
    slow, fast = random.poisson(0.5, (8, 400)), random.poisson(5.0, (8, 400))
    rhythm = np.tile([4, 0], (8, 200))
    follower = np.roll(fast, 2, axis=1)
    found = statistics(torch.tensor(np.stack([slow, fast, rhythm, follower]), dtype=torch.float32)).mean(1)
    rate, fano, own, cross = found[:, 0], found[:, 1], found[:, 2:2 + LAGS], found[:, 2 + LAGS:]
    assert rate.exp() == pytest.approx([0.51, 5.01, 2.01, 5.01], rel=0.05)
    assert fano[:2].exp() == pytest.approx([1.01, 1.01], abs=0.1)
    assert (own[2] * (-1) ** torch.arange(LAGS)).abs().min() > 15      # 400 bins: correlations times 20
    assert own[:2].abs().max() < 2
    best = cross.abs()[1].argmax() - LAGS, cross.abs()[3].argmax() - LAGS
    assert best == (2, -2)                                              # the fast leads its follower by two bins
