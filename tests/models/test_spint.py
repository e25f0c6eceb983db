"""SPINT: a set of units in no order, known by their activity; a new session without labels or gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_models import trained, tuned
from tests.models.test_zoo import SESSIONS, toy
from workbench import models
from workbench.analysis.decoding import score
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError


def build(sessions, **settings):
    torch.manual_seed(0)
    return models.build("spint", sessions, target="vel", **SMALL["spint"] | settings).eval()


def read(session, starts, model):
    return Reader([session], ("vel",)).read([0] * len(starts), starts, model.window)


def shuffled(session, order, name=None):
    """The session with its units in another order, and as another session where a name is given."""
    return replace(session, id=name or session.id, units=session.units.iloc[order],
                   spike_units=np.argsort(order)[session.spike_units])


@pytest.mark.parametrize("reference", ["statistics", "windows"])
@torch.no_grad()
def test_the_order_of_the_units_does_not_matter(reference):
    session, order = SESSIONS[1], np.random.default_rng(0).permutation(12)
    model, other = build([session], reference=reference), shuffled(session, order)
    here = model(read(session, [1.0, 8.0], model)).behavior
    model.identify(other, other.intervals)
    there = model(read(other, [1.0, 8.0], model)).behavior
    torch.testing.assert_close(there, here, atol=1e-5, rtol=0)
    assert here.std() > 1e-3                                            # and it does depend on the spikes


def test_a_new_session_is_decoded_without_labels_or_gradients_and_in_any_order():
    session = tuned(seconds=60.0)
    model, (parts,) = trained("spint", [session], steps=120)
    order = np.random.default_rng(1).permutation(20)
    new, before = shuffled(session, order, "new day"), {k: v.clone() for k, v in model.named_parameters()}
    unlabelled = replace(new, series={})
    with pytest.raises(UnknownName, match=r"no session 'new day'.*model\.identify\(session, intervals\)"):
        model(read(new, [30.0], model))
    model.identify(unlabelled, parts["train"])
    assert all(torch.equal(before[k], v[:len(before[k])]) for k, v in model.named_parameters())     # rows may be new
    known, met = (score(model, [s], [parts["test"]], "vel", causal=False)["r2"] for s in (session, new))
    assert met > 0.5 and abs(known - met) < 0.01


@torch.no_grad()
def test_who_a_unit_is_decides_what_its_spikes_mean():
    """The same spikes under the references of other units say something else."""
    session = SESSIONS[0]
    model = build([session])
    here = model(read(session, [1.0], model)).behavior
    model.identity.weight[1:, 2:] = model.identity.weight[1:, 2:].flip(0)
    assert (model(read(session, [1.0], model)).behavior - here).abs().max() > 1e-4


@torch.no_grad()
def test_a_missing_unit_is_left_out_and_no_unit_at_all_is_answered():
    model = build(SESSIONS)
    batch = read(SESSIONS[0], [1.0], model)
    silent = batch.drop(batch.units == 3).keep_units(torch.arange(8) != 3)
    assert torch.isfinite(model(silent).behavior).all()
    assert not torch.allclose(model(silent).behavior, model(batch.drop(batch.units == 3)).behavior, atol=1e-6)
    nobody = batch.keep_units(torch.zeros(8, dtype=torch.bool))
    assert torch.isfinite(model(nobody).behavior).all()
    beside = Reader(SESSIONS, ("vel",)).read([0, 1], [1.0, 2.0], model.window)
    beside = beside.keep_units(torch.arange(20) >= 8)                   # one window of nobody, one of twelve
    assert torch.isfinite(model(beside).behavior).all()


def test_a_step_leaves_out_units_and_never_all_of_a_window():
    torch.manual_seed(0)
    model = build(SESSIONS, channel_dropout=1.0)
    batch = Reader(SESSIONS, ("vel",)).read([0, 1, 1], [1.0, 3.0, 8.0], model.window)
    sizes = torch.stack([model._fewer_units(batch).unit_offsets.diff() for _ in range(200)])
    assert (sizes >= 1).all() and (sizes == torch.tensor([8, 12, 12])).any(0).all()
    assert sizes.float().mean(0) == pytest.approx([4.5, 6.5, 6.5], abs=0.8)     # shares are even from none to all


@torch.no_grad()
def test_a_prediction_sees_its_history_and_nothing_after_it():
    model = build(SESSIONS)
    batch = read(SESSIONS[1], [4.0], model)
    times = batch.targets["vel"].times
    cut = batch.drop(batch.times > 1.2)
    assert torch.equal(model(batch).behavior[times < 1.2], model(cut).behavior[times < 1.2])
    old = batch.drop(batch.times < 0.5)                                 # 1 s of history
    assert torch.equal(model(batch).behavior[times > 1.5], model(old).behavior[times > 1.5])
    assert not torch.equal(model(batch).behavior[times < 1.4], model(old).behavior[times < 1.4])


def test_sessions_met_later_are_saved_with_the_model(tmp_path):
    model, new = build(SESSIONS[:1]), toy("new", 6, seed=7)
    model.identify(new, new.intervals)
    model.save_pretrained(tmp_path / "model")
    again, batch = models.load(tmp_path / "model").eval(), read(new, [2.0], model)
    assert again.sessions == ["a", "new"]
    assert torch.equal(again(batch).behavior, model(batch).behavior)
    other = build(SESSIONS[:1])
    other.extend([*SESSIONS[:1], new])                                  # a session given whole is identified by it all
    assert other.sessions == ["a", "new"] and torch.equal(other(batch).behavior, model(batch).behavior)


def test_what_cannot_be_identified_is_refused_in_one_sentence():
    model = build(SESSIONS[:1])
    with pytest.raises(BadRecording, match=r"a: units are known by 2 s on end \(40 bins\).*lasts 1\.5 s; give a small"):
        model.identify(SESSIONS[0], np.array([[0.0, 1.5]]))
    other = replace(SESSIONS[0], units=SESSIONS[0].units.assign(id=[f"u{i}" for i in range(5, 13)]))
    with pytest.raises(BadRecording, match=r"a: 5 of 8 units are new to this model \(u8 is one\); let model\.identify"):
        model(read(other, [1.0], model))
    with pytest.raises(UnknownName, match=r"no reference 'statistic' in the references .*; did you mean stat"):
        build(SESSIONS, reference="statistic")
    with pytest.raises(WorkbenchError, match=r"windows of 0\.5 s hold no history of 1 s"):
        build(SESSIONS, window=0.5)
