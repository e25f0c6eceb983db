"""A batch holds exactly what the windows hold, and every view of it counts the same spikes."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName
from workbench.session import Series, Session


def recording(name: str, units: int, spikes: int, seed: int = 0, seconds: float = 10.0) -> Session:
    random = np.random.default_rng(seed)
    clock = np.arange(0, seconds, 0.02)
    return Session(id=name, spike_times=np.sort(random.random(spikes)) * seconds,
                   spike_units=random.integers(0, units, spikes), intervals=[[0, seconds]],
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(units)]}),
                   series={"vel": Series(clock, random.normal(size=(len(clock), 2)), "m/s")})


SESSIONS = [recording("a", 5, 400, 1), recording("b", 12, 900, 2), recording("quiet", 3, 0, 3)]


def read(index, starts, duration=1.0):
    return Reader(SESSIONS, ("vel",)).read(index, starts, duration)


# Anywhere, also before and after a recording; on samples of the behaviour; on spikes.
STARTS = st.floats(-2, 12) | st.sampled_from([*SESSIONS[0].series["vel"].times, *SESSIONS[1].spike_times])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), STARTS), min_size=1, max_size=6))
def test_a_batch_holds_the_spikes_and_samples_of_each_window(windows):
    index, starts = (np.array(column) for column in zip(*windows, strict=True))
    batch = read(index, starts)
    for b, (s, start) in enumerate(windows):
        session, at = SESSIONS[s], slice(*batch.offsets[b:b + 2].tolist())
        inside = (session.spike_times >= start) & (session.spike_times < start + 1)
        np.testing.assert_array_equal(batch.times[at], np.float32(session.spike_times[inside] - start))
        np.testing.assert_array_equal(batch.units[at], session.spike_units[inside])
        target, at = batch.targets["vel"], slice(*batch.targets["vel"].offsets[b:b + 2].tolist())
        vel = session.series["vel"]
        inside = (vel.times >= start) & (vel.times < start + 1)
        np.testing.assert_array_equal(target.times[at], np.float32(vel.times[inside] - start))
        np.testing.assert_array_equal(target.values[at], np.float32(vel.values[inside]))


def test_windows_late_in_a_long_recording_keep_their_digits():
    late = 40_000 + np.arange(0, 10, 1e-3)                              # float32 knows 4 ms there
    session = Session(id="late", spike_times=late, spike_units=np.zeros(len(late), int), intervals=[[40_000, 40_010]],
                      units=pd.DataFrame({"id": ["u"]}))
    times = Reader([session]).read([0, 0], [40_001.0, 40_007.0], 1.0).times
    np.testing.assert_allclose(times, np.tile(np.arange(0, 1, 1e-3), 2), atol=1e-7)


def test_every_view_counts_the_same_spikes():
    batch = read([0, 1, 2, 1], [0.5, 3.25, 1.0, 8.9])
    counts = batch.counts(0.05)
    assert counts.shape == (4, 12, 20)
    assert batch.unit_mask.sum(1).tolist() == [5, 12, 3, 12]
    assert counts.sum((1, 2)).tolist() == batch.offsets.diff().tolist()
    assert torch.equal(batch.neurons(0.05), torch.cat([c[m] for c, m in zip(counts, batch.unit_mask, strict=True)]))
    patches = batch.patches(5, 0.05)
    assert patches.shape == (4, 20, 3, 5)
    assert torch.equal(patches.flatten(2)[:, :, :12].transpose(1, 2), counts)
    spikes = batch.spikes()
    assert torch.equal(torch.bincount(spikes.units, minlength=20 + 12), batch.neurons(0.05).sum(1).long())


def test_what_is_worked_out_once_is_of_this_batch_alone_and_can_be_learned_from():
    batch = read([0, 1], [1.0, 2.0])
    with torch.inference_mode():
        counts, mask = batch.counts(0.05), batch.unit_mask
    assert batch.unit_mask is mask and not mask.is_inference()
    fewer = batch.drop(batch.units == 2)
    assert torch.equal(fewer.counts(0.05)[:, :2], counts[:, :2]) and not fewer.counts(0.05)[:, 2].any()
    assert batch.keep_units(batch.window_units != 2).unit_mask.sum(1).tolist() == [4, 11]
    before = counts.clone()
    batch.counts(0.05)[:] = 7
    assert torch.equal(batch.counts(0.05), before)
    weight = torch.ones(1, requires_grad=True)
    (batch.counts(0.05) * weight * batch.unit_mask[..., None]).sum().backward()
    assert weight.grad == len(batch.times)


def test_units_and_sessions_of_the_windows_are_told_as_they_are():
    mixed = read([1, 0, 1], [1.0, 2.0, 4.0])
    lists, at = mixed.present
    assert [each.id for each in lists] == ["a", "b"] and at.tolist() == [*range(5, 17), *range(5), *range(5, 17)]
    assert not mixed.alike and read([1, 1], [1.0, 4.0]).alike and not read([0, 1], [1.0, 4.0]).alike
    kept = mixed.keep_units(mixed.window_units % 2 == 0)
    assert kept.present[1].tolist() == [5, 7, 9, 11, 13, 15, 0, 2, 4, 5, 7, 9, 11, 13, 15]
    two = read([1, 1], [1.0, 4.0])
    assert not two.keep_units(torch.arange(24) != 3).alike
    assert not two.keep_units((torch.arange(24) != 3) & (torch.arange(24) != 16)).alike
    assert two.keep_units(two.window_units != 3).alike


def test_events_add_up_to_spike_times():
    batch = read([2, 1, 0, 1], [0.0, 3.0, 5.0, 2.0])
    events = batch.events()
    for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        torch.testing.assert_close(events.dt[a:b].cumsum(0), batch.times[a:b], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("duration", "bin_size"), [(1.0, 0.05), (10.0, 0.02), (3.0, 0.005), (1.0, 0.001)])
def test_spikes_on_a_bin_edge_belong_to_the_later_bin(duration, bin_size):
    times = np.arange(round(duration / bin_size)) * bin_size
    session = Session(id="edges", spike_times=times + 7, spike_units=np.zeros(len(times), int), intervals=[[0, 20]],
                      units=pd.DataFrame({"id": ["u"]}))
    assert (Reader([session]).read([0], [7.0], duration).counts(bin_size) == 1).all()


def test_hidden_spikes_leave_no_trace():
    batch = read([0, 1], [1.0, 2.0])
    hide = torch.arange(len(batch.times)) % 3 == 0
    seen = batch.drop(hide)
    assert torch.equal(seen.times, batch.times[~hide])
    assert seen.offsets[-1] == (~hide).sum()
    assert torch.equal(seen.counts(0.1) + batch.drop(~hide).counts(0.1), batch.counts(0.1))


def test_units_left_out_look_never_recorded():
    batch = read([0, 1], [1.0, 2.0])
    keep = torch.tensor([i % 2 == 0 for i in range(17)])
    fewer = batch.keep_units(keep)
    assert fewer.unit_offsets.tolist() == [0, 3, 9]                     # rows 0, 2, 4 of 'a'; every second of 'b'
    assert torch.equal(fewer.neurons(0.1), batch.neurons(0.1)[keep])
    assert fewer.window_units.tolist() == [0, 2, 4, 1, 3, 5, 7, 9, 11]


def test_gaps_in_the_behaviour_are_left_out():
    session = recording("gaps", 3, 100)
    values = session.series["vel"].values.copy()
    values[100:200, 0] = np.nan
    session.series["vel"] = session.series["vel"]._replace(values=values)
    target = Reader([session], ("vel",)).read([0], [0.0], 10.0).targets["vel"]
    assert len(target.times) == 400 and torch.isfinite(target.values).all()


def test_bad_requests_are_refused_in_one_sentence():
    with pytest.raises(BadRecording, match="an empty batch: 0 windows"):
        read([], [])
    with pytest.raises(BadRecording, match=r"0 windows|longer than 0 s"):
        read([0], [1.0], duration=0.0)
    with pytest.raises(BadRecording, match=r"no whole number of 0\.3 s bins"):
        read([0], [1.0]).counts(0.3)
    with pytest.raises(BadRecording, match=r"no whole number of 0 s bins; choose a bin size"):
        read([0], [1.0]).counts(0.0)
    with pytest.raises(UnknownName, match=r"no series 'speed' in session 'a'; there are vel"):
        Reader(SESSIONS, ("speed",))


def test_spikes_that_are_dropped_and_added_again_are_where_they_were():
    batch = read([0, 1, 2], [0.5, 3.25, 1.0])
    gone = torch.arange(len(batch.times)) % 3 == 0
    again = batch.drop(gone).add(batch.windows[gone], batch.units[gone], batch.times[gone])
    assert torch.equal(again.times, batch.times) and torch.equal(again.units, batch.units)
    assert torch.equal(again.offsets, batch.offsets)


def test_a_part_of_every_window_is_the_window_that_begins_there():
    part, direct = read([0, 1, 2], [0.5, 3.25, 1.0], 2.0).between(0.5, 1.5), read([0, 1, 2], [1.0, 3.75, 1.5])
    torch.testing.assert_close(part.times, direct.times, atol=1e-6, rtol=0)
    assert torch.equal(part.units, direct.units) and torch.equal(part.offsets, direct.offsets)
    assert torch.equal(part.starts, direct.starts) and part.duration == direct.duration


def test_series_of_units_may_be_as_wide_as_each_session_and_others_may_be_missing():
    from dataclasses import replace
    clock = np.arange(0, 10, 0.1)
    wide = [replace(s, series={**s.series, "dF/F": Series(clock, np.full((100, len(s.units)), i + 1.0), "dF/F",
                                                          tuple(s.units["id"]))}) for i, s in enumerate(SESSIONS[:2])]
    sessions = [*wide, SESSIONS[2]]
    traces = Reader(sessions, ("vel",), also=("dF/F",)).read([0, 1, 2], [0.5, 3.25, 1.0], 1.0).targets["dF/F"]
    assert traces.offsets.tolist() == [0, 10, 20, 20] and traces.values.shape == (20, 12)
    assert traces.values[:10].sum(1).tolist() == [5.0] * 10 and traces.values[10:].sum(1).tolist() == [24.0] * 10
    with pytest.raises(UnknownName, match="no series 'dF/F' in session 'quiet'"):
        Reader(sessions, ("dF/F",))
    with pytest.raises(BadRecording, match=r"'dF/F' has \[5, 12\] columns"):
        nameless = [replace(s, series={"dF/F": s.series["dF/F"]._replace(columns=())}) for s in wide]
        Reader(nameless, ("dF/F",))
