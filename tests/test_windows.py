"""Splits never leak, and batch k is a function of (seed, k)."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_batch import recording
from workbench.errors import BadRecording, UnknownName
from workbench.session import Session, overlap
from workbench.windows import RandomWindows, aligned, locked, sliding, split


def test_the_last_share_is_held_out_and_validation_comes_before_it():
    parts = split(recording("a", 4, 100, seconds=100.0))
    assert {name: part.round(9).tolist() for name, part in parts.items()} == {
        "train": [[0, 70]], "valid": [[70, 80]], "test": [[80, 100]]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(0, 3)), min_size=5, max_size=30), st.floats(0.05, 0.3))
def test_no_trial_and_no_time_lies_in_two_parts(trials, test):
    lengths, gaps = (np.array(column) for column in zip(*trials, strict=True))
    stop = np.cumsum(lengths + gaps)
    session = recording("a", 4, 100, seconds=float(stop[-1] + 100))
    table = pd.DataFrame({"start": stop - lengths, "stop": stop})
    session = replace(session, trials=table)
    parts = split(session, test=test)
    for start, end in table.to_numpy():
        touched = [name for name, part in parts.items() if any(a < end and start < b for a, b in part)]
        assert len(touched) <= 1
    spans = np.sort(np.concatenate(list(parts.values())), axis=0)
    assert (spans[1:, 0] >= spans[:-1, 1]).all() and np.diff(spans).sum() == pytest.approx(session.duration)


def test_overlapping_trials_are_kept_whole_and_trials_as_long_as_a_part_are_cut():
    session = recording("a", 4, 100, seconds=100.0)
    overlapping = pd.DataFrame({"start": [60.0, 68.0], "stop": [69.0, 75.0]})
    assert split(replace(session, trials=overlapping))["train"].tolist() == [[0, 60]]
    whole = pd.DataFrame({"start": [0.0], "stop": [100.0]})
    assert split(replace(session, trials=whole))["test"].round(9).tolist() == [[80, 100]]
    with pytest.raises(BadRecording, match=r"no recording is left for the valid part.*give other shares"):
        split(replace(session, trials=pd.DataFrame({"start": [65.0, 72.0], "stop": [73.0, 81.0]})), valid=0.1)


def test_impossible_splits_are_refused():
    with pytest.raises(BadRecording, match="leaves nothing to train on"):
        split(recording("a", 4, 100), test=0.6, valid=0.5)


@pytest.mark.parametrize("by", ["time", "trial"])
def test_less_training_time_is_a_part_of_more_and_moves_no_other_part(by):
    session = recording("a", 4, 100, seconds=100.0)
    trials = pd.DataFrame({"start": np.arange(90.0), "stop": np.arange(90.0) + 0.8})
    session = replace(session, trials=trials, intervals=np.array([[0.0, 30.0], [40.0, 100.0]]))
    whole = split(session, by=by)
    length = lambda part: float(np.diff(part).sum())
    before = whole
    for share in (0.7, 0.4, 0.1):
        parts = split(session, by=by, train=share)
        assert length(parts["train"]) == pytest.approx(share * length(whole["train"]), abs=3)
        assert length(overlap(parts["train"], before["train"])) == pytest.approx(length(parts["train"]))
        assert all(np.array_equal(parts[name], whole[name]) for name in ("valid", "test"))
        before = parts
    if by == "time":                                                    # what is nearest to the held-out time stays
        assert before["train"][-1, 1] == whole["train"][-1, 1]
    with pytest.raises(BadRecording, match="give a share above 0"):
        split(session, by=by, train=0.0)


def windows(seed=0):
    sessions = [recording("a", 5, 400, 1), recording("b", 7, 300, 2)]
    return RandomWindows(sessions, [np.array([[0, 3], [5, 9]]), np.array([[1, 2.5]])], duration=1.0, batch_size=64,
                         seed=seed, targets=("vel",))


def test_a_batch_depends_on_seed_and_number_alone():
    first, again = windows(), windows()
    again.batch(3), again.batch(0)
    assert torch.equal(first.batch(7).times, again.batch(7).times)
    assert not torch.equal(first.batch(7).starts, first.batch(8).starts)
    assert not torch.equal(first.batch(7).starts, windows(seed=1).batch(7).starts)


def test_dropped_spikes_are_a_random_share_below_the_largest_and_the_same_every_time():
    session, part = recording("a", 5, 20_000, 1), [np.array([[0, 10]])]
    whole = RandomWindows([session], part, duration=1.0, batch_size=64, targets=("vel",))
    fewer = RandomWindows([session], part, duration=1.0, batch_size=64, targets=("vel",), drop_spikes=0.5)
    kept = fewer.batch(2).offsets.diff() / whole.batch(2).offsets.diff()
    assert torch.equal(fewer.batch(2).starts, whole.batch(2).starts)
    assert 0.45 < kept.min() < 0.6 and 0.9 < kept.max() <= 1 and 0.7 < kept.mean() < 0.8
    assert torch.equal(fewer.batch(2).times, fewer.batch(2).times)


def test_windows_stay_inside_their_intervals():
    allowed = [[(0, 3), (5, 9)], [(1, 2.5)]]
    seen = set()
    for k in range(20):
        batch = windows().batch(k)
        for s, start in zip(batch.session.tolist(), batch.starts.tolist(), strict=True):
            assert any(a <= start and start + 1 <= b + 1e-9 for a, b in allowed[s])
            seen.add((s, int(start)))
    assert {0, 1} == {s for s, _ in seen}


def test_sliding_windows_cover_each_interval_to_its_end():
    starts = sliding(np.array([[0, 2.25], [3, 4]]), 1.0, 0.5)
    assert starts.tolist() == [0, 0.5, 1.0, 1.25, 3]
    with pytest.raises(BadRecording, match=r"no interval is as long as a window of 5 s \(the longest lasts 2.250 s\)"):
        sliding(np.array([[0, 2.25]]), 5.0, 0.5)


def test_too_long_training_windows_are_refused():
    with pytest.raises(BadRecording, match="no training interval is as long as a window of 20 s"):
        RandomWindows([recording("a", 4, 100)], [np.array([[0, 10]])], duration=20.0, batch_size=4)


def test_aligned_intervals_start_half_a_sample_before_one():
    times = 0.33 + 0.05 * np.arange(100)
    start, stop = aligned(np.array([[1.0, 3.0]]), times, 0.05, 1.0)[0]
    assert stop == 3.0 and start >= 1.0
    assert (start + 0.025 - 0.33) / 0.05 == pytest.approx(round((start + 0.025 - 0.33) / 0.05))


def test_an_interval_too_short_to_align_stays_as_it_is():
    times = 0.337 + 0.05 * np.arange(100)
    assert aligned(np.array([[1.0, 1.4]]), times, 0.05, 0.4).tolist() == [[1.0, 1.4]]


def test_training_windows_hold_samples_of_the_target_and_do_not_pile_up_before_a_gap():
    session = recording("a", 5, 400, 1, seconds=100.0)
    vel = session.series["vel"]
    values = vel.values.copy()
    values[(vel.times > 20) & (vel.times < 80)] = np.nan
    session.series["vel"] = vel._replace(values=values)
    for align in (None, "vel"):
        windows = RandomWindows([session], [np.array([[0, 100]])], duration=1.0, batch_size=500, targets=("vel",),
                                align=align)
        batch = windows.batch(0)
        assert (batch.targets["vel"].offsets.diff() > 0).all()
        assert np.histogram(batch.starts, [0, 10, 20, 80, 90, 100])[0][[0, 1, 3, 4]].min() > 80


def test_windows_of_binned_models_are_aligned_with_the_samples():
    session = recording("a", 5, 400, 1)
    found = RandomWindows([session], [np.array([[0.5, 9]])], duration=1.0, batch_size=32, targets=("vel",), align="vel")
    phase = (found.batch(0).starts.numpy() + 0.01) / 0.02
    np.testing.assert_allclose(phase, phase.round(), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.2, 2), st.floats(-0.5, 1)), min_size=10, max_size=40), st.integers(0, 5))
def test_trials_drawn_at_random_share_no_time_between_parts(trials, seed):
    lengths, gaps = (np.array(column) for column in zip(*trials, strict=True))
    start = np.cumsum(np.maximum(lengths + gaps, 0.05))                 # some overlap their neighbours
    session = recording("a", 4, 100, seconds=float(start[-1] + 10))
    session = replace(session, trials=pd.DataFrame({"start": start, "stop": start + lengths}))
    try:
        parts = split(session, 0.3, 0.2, by="trial", seed=seed)
    except BadRecording as error:
        assert "too few" in str(error)
        return
    again = split(session, 0.3, 0.2, by="trial", seed=seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    spans = np.concatenate(list(parts.values()))
    spans = spans[np.argsort(spans[:, 0])]
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    for a, b in zip(start, start + lengths, strict=True):
        assert sum(any(x < b and a < y for x, y in part) for part in parts.values()) == 1


def test_another_seed_draws_other_trials():
    session = recording("a", 4, 100, seconds=100.0)
    session = replace(session, trials=pd.DataFrame({"start": np.arange(90.0), "stop": np.arange(90.0) + 0.8}))
    one, two = (split(session, by="trial", seed=seed)["test"] for seed in (0, 1))
    assert len(one) == len(two) == 18 and not np.array_equal(one, two)


def several(**options):
    sessions = [replace(recording(name, 5, 2000, i, seconds), dataset=name[:3])
                for i, (name, seconds) in enumerate([("big1", 400.0), ("big2", 500.0), ("sma1", 100.0)])]
    return RandomWindows(sessions, [s.intervals for s in sessions], duration=1.0, batch_size=4000, **options)


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.1), (0.5, 0.25), (0.0, 0.5)])
def test_datasets_are_drawn_by_their_time_to_the_power_asked_for(power, share):
    session = several(power=power).batch(0).session
    assert (session == 2).float().mean() == pytest.approx(share, abs=0.03)
    assert (session == 1).sum() / (session < 2).sum() == pytest.approx(5 / 9, abs=0.03)     # by time within a dataset


def test_a_curriculum_opens_datasets_by_step():
    windows = several(opens={"sma": 10})
    assert (windows.batch(9).session < 2).all() and (windows.batch(10).session == 2).any()
    with pytest.raises(UnknownName, match=r"no dataset 'smal' in the recordings to train on; did you mean sma"):
        several(opens={"smal": 3})
    with pytest.raises(BadRecording, match="every dataset opens later than the first batch"):
        several(opens={"sma": 3, "big": 1})


def test_dropped_units_leave_with_their_spikes_and_jitter_stays_in_window_and_order():
    whole, fewer = several().batch(1), several(drop_units=0.5).batch(1)
    kept = fewer.unit_offsets.diff() / whole.unit_offsets.diff()
    assert torch.equal(whole.starts, fewer.starts) and kept.mean() == pytest.approx(0.75, abs=0.02)
    assert len(fewer.times) / len(whole.times) == pytest.approx(0.75, abs=0.03)
    moved = several(jitter=1e-3).batch(1)
    assert torch.equal(moved.offsets, whole.offsets)
    assert moved.times.min() >= 0 and moved.times.max() < 1
    same = moved.windows[1:] == moved.windows[:-1]
    assert (moved.times.diff()[same] >= 0).all()
    sort = lambda b: torch.stack([b.windows.double(), b.units.double(), b.times.double()]).T[
        np.lexsort((b.times, b.units, b.windows))]
    far = (sort(moved) - sort(whole)).abs().max(0).values
    assert far[:2].max() == 0 and 5e-4 < far[2] <= 2e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_any_batch_in_the_middle_of_a_run_is_what_an_uninterrupted_run_saw(k):
    options = dict(power=0.5, opens={"sma": 50}, drop_units=0.3, drop_spikes=0.2, jitter=1e-3, targets=("vel",))
    went_on, resumed = several(**options), several(**options)
    went_on.batch(max(k - 1, 0))
    a, b = went_on.batch(k), resumed.batch(k)
    assert torch.equal(a.times, b.times) and torch.equal(a.units, b.units) and torch.equal(a.starts, b.starts)


def shown(name: str, order: list[int]) -> Session:
    """A session that shows pictures, each of its own grey, for 0.2 s every half second; picture −1 is a grey screen."""
    start = 1.0 + 0.5 * np.arange(len(order))
    return Session(id=name, spike_times=start + 0.1, spike_units=np.zeros(len(order), int), simulated=True,
                   units=pd.DataFrame({"id": ["u"]}), intervals=[[0, start[-1] + 2]],
                   load_images=lambda: np.repeat(np.arange(100, dtype=np.uint8), 12).reshape(100, 2, 2, 3),
                   stimuli=pd.DataFrame({"start": start, "stop": start + 0.2, "image": order}))


def test_all_presentations_of_a_picture_are_in_one_part_in_every_session():
    sessions = [shown("a", [*range(100), -1, *range(100)]), shown("b", list(range(99, -1, -1)))]
    where: dict[int, set[str]] = {}
    for session in sessions:
        parts = split(session, by="picture", seed=3)
        covered = np.concatenate(list(parts.values()))
        assert (np.diff(covered[np.argsort(covered[:, 0])].ravel()) >= 0).all()             # no two share any time
        for name, part in parts.items():
            for row in locked(part, session.stimuli["start"].to_numpy(), 0.3):
                at = np.searchsorted(session.stimuli["start"], row[0] - 1e-9)
                where.setdefault(session.stimuli["image"][at], set()).add(name)
    assert where.keys() == {*range(100)} and all(len(names) == 1 for names in where.values())   # no grey screen
    shares = {name: sum(names == {name} for names in where.values()) for name in ("train", "valid", "test")}
    assert 8 <= shares["test"] <= 32 and 2 <= shares["valid"] <= 20
    other = split(sessions[0], by="picture", seed=4)
    assert other["test"].shape != split(sessions[0], by="picture", seed=3)["test"].shape or \
        (other["test"] != split(sessions[0], by="picture", seed=3)["test"]).any()


def test_less_of_the_training_pictures_is_a_part_of_more():
    session = shown("a", list(range(100)))
    starts = lambda share: {tuple(row) for row in split(session, by="picture", train=share)["train"]}
    assert starts(0.3) < starts(0.6) < starts(1.0)


def test_a_session_without_pictures_cannot_be_split_by_them():
    with pytest.raises(BadRecording, match="do not say which picture was shown"):
        split(replace(shown("a", [0, 1]), stimuli=pd.DataFrame({"start": [1.0], "stop": [1.2]})), by="picture")
    with pytest.raises(BadRecording, match="pictures are too few"):
        split(shown("a", [5]), by="picture")


def test_locked_windows_begin_at_the_events_and_stay_inside():
    windows = locked(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([-0.1, 0.0, 0.7, 0.8, 1.5, 2.0]), 0.3)
    assert windows.tolist() == [[0.0, 0.3], [0.7, 1.0], [2.0, 2.3]]
    assert locked(np.empty((0, 2)), np.array([1.0]), 0.3).shape == (0, 2)


def test_a_session_without_valid_time_cannot_be_split():
    empty = Session(id="e", spike_times=[], spike_units=[], units=pd.DataFrame({"id": ["a"]}))
    for by in ("time", "trial", "picture"):
        with pytest.raises(BadRecording, match="e has no valid time to split: 0 spikes"):
            split(empty, by=by)
