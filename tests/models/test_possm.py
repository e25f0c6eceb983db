"""POSSM: live decoding equals decoding at once, no chunk sees a later one, and the published sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_batch import SESSIONS, read, recording
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.models.possm import POSSM
from workbench.nn.recurrence import CORES


def small(core: str = "gru", sessions=tuple(SESSIONS), **settings) -> POSSM:
    torch.manual_seed(0)
    model = POSSM.for_sessions(list(sessions), target="vel", **dict(
        core=core, dim=16, width=32, head_dim=16, depth=2, t_min=0.01, window=1.0, warmup=0.2) | settings).eval()
    with torch.no_grad():                                               # so that nothing is too small to be seen
        for table in (model.units.weight, model.sessions.weight, model.blank, model.query):
            table.normal_()
    return model


@pytest.mark.parametrize(("size", "published"), [
    ("s4d-single", 0.41e6), ("gru-single", 0.47e6), ("mamba-single", 0.68e6),
    ("s4d-pretrained", 4.56e6), ("gru-pretrained", 7.96e6), ("mamba-pretrained", 8.96e6)])
def test_sizes_are_within_three_percent_of_the_published_ones(size, published):
    model = POSSM(units=[], sessions=[], target="vel", outputs=2, mean=[0, 0], scale=[1, 1], **POSSM.SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("session", [0, 1, 2])                          # the last one is silent
def test_decoding_live_equals_decoding_at_once(core, session):
    model, start, seconds = small(core), 2.0, 3.0
    batch = read([session], [start], seconds)                           # samples at 0, 20 and 40 ms; 10 and 30 ms
    with torch.no_grad():
        want = model(batch).behavior
    streams = [model.stream(SESSIONS[session], at=at) for at in ([0.0, 0.02, 0.04], [0.01, 0.03])]
    seen = []
    for chunk in range(60):
        inside = (batch.times >= chunk * 0.05) & (batch.times < (chunk + 1) * 0.05)
        times = (batch.times[inside] - chunk * 0.05).clamp(0, 0.05)
        each = [stream.step(times, batch.units[inside]) for stream in streams]
        seen.append(each[chunk % 2])
    torch.testing.assert_close(torch.cat(seen), want, atol=1e-5, rtol=1e-5)
    assert want.std(0).min() > 1e-3


def test_a_stream_remembers_as_much_after_an_hour_as_at_its_start():
    stream = small("s4d").stream(SESSIONS[0])
    size = lambda x: x.numel() if torch.is_tensor(x) else sum(map(size, x))
    before = size(stream.state) + stream.recent.size
    for _ in range(30):
        stream.step(torch.tensor([0.01, 0.02]), torch.tensor([0, 3]))
    assert size(stream.state) + stream.recent.size == before


def test_a_stream_stays_as_it_was_while_its_model_is_trained_further():
    model, spikes = small(dropout=0.5).train(), (torch.tensor([0.01, 0.02]), torch.tensor([0, 3]))
    one, other = model.stream(SESSIONS[0]), model.stream(SESSIONS[0])
    assert model.training
    want = [one.step(*spikes) for _ in range(3)]
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    assert torch.equal(torch.stack([other.step(*spikes) for _ in range(3)]), torch.stack(want))
    assert not torch.allclose(model.stream(SESSIONS[0]).step(*spikes), want[0], atol=1e-2)


@pytest.mark.parametrize("core", CORES)
def test_a_later_spike_changes_no_earlier_prediction(core):
    model, batch = small(core), read([1], [2.0])
    cut = batch.drop(batch.times >= 0.5)
    with torch.no_grad():
        change = (model(batch).behavior - model(cut).behavior).abs().amax(1)
    times = batch.targets["vel"].times
    assert change[times < 0.499].max() < 1e-5 and change[times > 0.501].min() > 1e-5


def test_a_spike_in_the_past_is_remembered_beyond_the_last_states():
    model, batch = small(), read([1], [2.0])
    cut = batch.drop(batch.times < 0.3)
    times = batch.targets["vel"].times
    late = (times > 0.3 + 4 * 0.05) & (times < 0.7)
    with torch.no_grad():
        assert (model(batch).behavior - model(cut).behavior)[late].abs().min() > 1e-7


def test_time_inside_a_chunk_matters_and_shifting_by_whole_chunks_does_not():
    session = recording("a", 5, 400, 1)
    model, reader = small(sessions=[session]), Reader([session], ("vel",))
    batch = reader.read([0], [2.0], 1.0)
    with torch.no_grad():
        want = model(batch).behavior
        inside = replace(batch, times=(batch.times / 0.05).floor() * 0.05 + 0.01)
        assert (model(inside).behavior - want).abs().max() > 1e-3
        # The window of silence in front: the state of silence is not that of a start, the answer of a far past is.
        later = replace(batch, times=batch.times + 1.0, duration=2.0, targets={
            "vel": batch.targets["vel"]._replace(times=batch.targets["vel"].times + 1.0)})
        x, y = model.encode(batch), model.encode(later)
    torch.testing.assert_close(y[:, 20:], x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y[:, :19], y[:, :1].expand(-1, 19, -1))      # every empty chunk is the blank token


def test_permuting_units_with_their_spikes_changes_nothing():
    session = recording("a", 6, 500)
    order = np.random.default_rng(0).permutation(6)
    shuffled = replace(session, units=session.units.iloc[order], spike_units=np.argsort(order)[session.spike_units])
    model = small(sessions=[session])
    here, there = (model(Reader([s], ("vel",)).read([0, 0], [1.0, 5.0], 1.0)).behavior for s in (session, shuffled))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)


def test_the_loss_ignores_the_warm_up():
    model, batch = small(), read([0, 1], [1.0, 2.0])
    vel = batch.targets["vel"]
    wrong = torch.where(vel.times[:, None] < model.warmup, vel.values + 100, vel.values)
    early = replace(batch, targets={"vel": vel._replace(values=wrong)})
    assert torch.equal(model.loss(batch)["loss"], model.loss(early)["loss"])


def test_what_cannot_be_is_refused():
    with pytest.raises(UnknownName, match="no core 'lstm' in the recurrent cores of POSSM"):
        small("lstm")
    with pytest.raises(WorkbenchError, match=r"windows of 0\.2 s leave nothing after a warm-up of 0\.2 s"):
        small(window=0.2)
    with pytest.raises(UnknownName, match="no size '1M' in the published sizes of POSSM"):
        small(size="1M")
    stream = small().stream(SESSIONS[0])
    for wrong in (12.3, -0.01, torch.nan):
        with pytest.raises(WorkbenchError, match=r"give times from the start of their chunk, 0 to 0\.05 s"):
            stream.step(torch.tensor([0.01, wrong]), torch.tensor([0, 1]))
    with pytest.raises(UnknownName, match="no unit 'new/u0'"):
        small().stream(recording("new", 3, 10))
