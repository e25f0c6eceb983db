"""Masked models learn from what they do not see, and from nothing else. Held for every model that uses the masker."""

import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_zoo import SESSIONS, read, toy
from workbench import models
from workbench.errors import UnknownName, WorkbenchError

HELD_OUT = ["a/u1", "a/u6", "b/u0"]
MASKED = ("ndt1", "stndt")


def build(name: str, **settings):
    torch.manual_seed(0)
    return models.build(name, SESSIONS, **SMALL[name] | settings).eval()


def masked(model, batch, counts=None, seed: int = 3):
    torch.manual_seed(seed)
    counts = batch.counts(model.bin_size) if counts is None else counts
    return model.masker(counts, model.masker.held_out(model.read_out.units, batch), batch.unit_mask)


@pytest.mark.parametrize("name", MASKED)
def test_only_what_is_hidden_is_scored(name):
    model = build(name, held_out=HELD_OUT, silent=0.6, **({"contrast": 0.0} if name == "stndt" else {}))
    batch = read(model, [0, 1], [1.0, 4.0])
    counts = batch.counts(model.bin_size)
    seen, scored = masked(model, batch)
    assert 0 < scored.sum() < batch.unit_mask.sum() * counts.shape[2]
    assert torch.equal(seen[~scored], counts[~scored]) and not scored[~batch.unit_mask].any()
    log_rates = model.predict(seen, batch).log_rates
    torch.manual_seed(3)
    want = (log_rates.exp() - counts * log_rates)[scored].mean()
    torch.testing.assert_close(model.loss(batch)["loss"], want)


@pytest.mark.parametrize("mode", ["time", "shared_time", "neuron", "entry"])
@pytest.mark.parametrize("name", MASKED)
def test_what_is_hidden_does_not_leak(name, mode):
    model = build(name, mask=mode, ratio=0.4, held_out=HELD_OUT)
    batch = read(model, [0, 1, 1], [1.0, 4.0, 9.0])
    counts = batch.counts(model.bin_size)
    seen, scored = masked(model, batch)
    other, again = masked(model, batch, torch.where(scored, counts + 5, counts))
    assert torch.equal(scored, again) and scored.any() and not torch.equal(counts, counts * ~scored)
    assert torch.equal(model.predict(seen, batch).log_rates, model.predict(other, batch).log_rates)


@pytest.mark.parametrize("name", MASKED)
def test_held_out_units_are_never_seen_and_always_scored(name):
    model = build(name, held_out=HELD_OUT)
    batch = read(model, [0, 1], [1.0, 4.0])
    held_out = model.masker.held_out(model.read_out.units, batch)[..., 0]
    assert held_out.nonzero().tolist() == [[0, 1], [0, 6], [1, 0]]
    seen, scored = masked(model, batch)
    assert not seen[held_out].any() and scored[held_out].all()
    without = batch.drop(held_out[batch.windows, batch.units])
    assert len(without.times) < len(batch.times)
    assert torch.equal(model(batch).log_rates, model(without).log_rates)
    never = build(name)                                                 # the same weights, and nobody held out
    assert not torch.equal(never(batch).log_rates, never(without).log_rates)


@pytest.mark.parametrize("name", MASKED)
def test_random_counts_know_nothing_of_held_out_units(name):
    """Their range is that of the counts that a model may see."""
    model = build(name, held_out=HELD_OUT, ratio=0.4, silent=0.3, random=0.7)
    batch = read(model, [0, 1], [1.0, 4.0])
    counts = batch.counts(model.bin_size)
    held_out = model.masker.held_out(model.read_out.units, batch)
    more = torch.where(held_out, counts + 9, counts)
    seen = masked(model, batch, counts)[0]
    assert torch.equal(seen, masked(model, batch, more)[0]) and not seen[held_out.expand_as(seen)].any()
    if name == "stndt":
        views = []
        for given in (counts, more):
            torch.manual_seed(3)
            views.append(model.view(given, held_out, batch.unit_mask))
        assert torch.equal(*views) and not torch.equal(views[0], counts)


@pytest.mark.parametrize("name", MASKED)
def test_a_saved_model_still_knows_whom_it_held_out(name, tmp_path):
    model = build(name, held_out=["u1"])                                # in both sessions
    model.save_pretrained(tmp_path)
    again = models.load(tmp_path)
    assert torch.equal(again.masker.rows, model.masker.rows)
    assert [model.read_out.units.words[i - 1] for i in model.masker.rows] == ["a/u1", "b/u1"]


@pytest.mark.parametrize("name", MASKED)
def test_new_sessions_start_at_their_mean_rates_and_leave_the_others_alone(name):
    model = build(name, held_out=HELD_OUT)
    batch = read(model, [0, 1], [1.0, 4.0])
    before, new = model(batch).log_rates, toy("c", 4, 5)
    model.extend([SESSIONS[0], new])
    assert torch.equal(model(batch).log_rates, before)
    bias = model.read_out.units.weight[model.read_out.units.rows(["c/u0", "c/u3"]), -1]
    torch.testing.assert_close(bias.exp() / model.bin_size, torch.tensor(new.rates()[[0, 3]]).float())


@pytest.mark.parametrize("name", MASKED)
def test_windows_without_units_are_answered(name):
    model = build(name)
    batch = read(model, [0, 1], [1.0, 4.0])
    for keep in (torch.arange(20) >= 8, torch.zeros(20, dtype=torch.bool)):     # the first has none, both have none
        poor = batch.keep_units(keep)
        assert model(poor).log_rates.shape == poor.counts(0.05).shape and model.loss(poor)["loss"].isfinite()


def test_wide_spans_come_as_often_as_asked():
    model = build("ndt1", span=4, expand=0.5, ratio=0.1)
    batch = read(model, [0, 1, 1, 0], [1.0, 4.0, 8.0, 12.0])
    counts, nobody = batch.counts(0.05), model.masker.held_out(model.read_out.units, batch)
    alone = []
    torch.manual_seed(0)
    for _ in range(200):
        hidden = model.masker(counts, nobody, batch.unit_mask)[1][:, 0]
        inner = hidden[:, 1:-1] & ~hidden[:, :-2] & ~hidden[:, 2:]      # hidden bins between seen ones
        alone.append(bool(inner.any()) or not hidden.any())
    assert 0.45 < sum(alone) / len(alone) < 0.85                        # single bins: the half, and one span in four


def test_impossible_requests_are_told_in_one_sentence():
    with pytest.raises(UnknownName, match="no unit 'u77' in the sessions to train on"):
        build("ndt1", held_out=["u77"])
    with pytest.raises(WorkbenchError, match="has nothing to learn from; give a ratio above 0, or held_out="):
        build("ndt1", ratio=0)
    assert build("ndt1", ratio=0, held_out=HELD_OUT).loss(read(build("ndt1"), [0], [1.0]))["loss"] > 0
    with pytest.raises(WorkbenchError, match="3 heads do not divide a width of 32; choose heads that do"):
        build("ndt1", heads=3)
    for mask in ("times", "intra_region"):
        with pytest.raises(UnknownName, match=f"no mask '{mask}' in the masks of a model that knows no regions"):
            build("ndt1", mask=mask)
