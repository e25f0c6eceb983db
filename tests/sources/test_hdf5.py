"""HDF5 in torch_brain's layout: the same session back, both ways with torch_brain, mapped, and never half a file."""

import json
import os
import time
import tracemalloc

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import BadRecording
from workbench.session import Series, Session


def mapped(values: np.ndarray) -> bool:
    """Whether the array is a view of a file."""
    while values is not None and not isinstance(values, np.memmap):
        values = getattr(values, "base", None)
    return values is not None


def test_a_saved_session_opens_the_same(make_session, same, tmp_path):
    session = make_session()
    same(session, Session.open(session.save(tmp_path / "a.h5")))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), units=st.integers(1, 30), spikes=st.integers(0, 400))
def test_sessions_of_every_size_open_the_same(make_session, same, tmp_path, seed, units, spikes):
    session = make_session(seed, units, spikes)
    same(session, Session.open(session.save(tmp_path / "a.h5")))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(
        st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), min_size=3, max_size=3
    ),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
)
def test_any_text_survives(make_session, same, tmp_path, text, name):
    units = pd.DataFrame({"id": ["a", "b", "c"], "region": "M1"})
    if name not in units:
        units[name] = pd.Series(text, dtype="str")
    session = make_session(
        units=units, spike_units=np.arange(3000) % 3, series={name: Series(np.arange(3.0), np.eye(3))}
    )
    same(session, Session.open(session.save(tmp_path / "a.h5")))


def test_a_session_without_anything_opens_the_same(same, tmp_path):
    session = Session(id="none", spike_times=[], spike_units=[], units=pd.DataFrame({"id": []}))
    opened = Session.open(session.save(tmp_path / "a.h5"))
    assert opened.duration == 0 and len(opened.units) == 0 and opened.images is None


def test_arrays_of_an_opened_session_are_read_only_maps(make_session, tmp_path):
    session = Session.open(make_session().save(tmp_path / "a.h5"))
    part = session.between(5, 15)
    for arrays in (session, part):
        for values in (
            arrays.spike_times,
            arrays.spike_units,
            arrays.series["hand_vel"].values,
            arrays.series["hand_vel"].times,
            arrays.series["pupil"].values,
        ):
            assert mapped(values) and not values.flags.writeable
    assert session.spike_units.dtype == np.int32


def test_ten_million_spikes_open_in_milliseconds_and_little_memory(tmp_path):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(3e-4, 10_000_000))
    session = Session(
        id="many",
        spike_times=times,
        spike_units=rng.integers(0, 500, len(times), dtype=np.int32),
        units=pd.DataFrame({"id": range(500)}),
        checked=True,
    )
    path = session.save(tmp_path / "many.h5")
    Session.open(path)
    took = []
    tracemalloc.start()
    for _ in range(3):
        start = time.perf_counter()
        opened = Session.open(path)
        part = opened.between(1000, 1001)
        took.append(time.perf_counter() - start)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(took) < 0.25 and peak < 20e6  # reading it whole takes 160e6 bytes
    np.testing.assert_array_equal(part.spike_times, times[(times >= 1000) & (times < 1001)])


def test_saving_over_the_file_that_a_session_is_mapped_from_keeps_both(make_session, same, tmp_path):
    session = make_session()
    opened = Session.open(session.save(tmp_path / "a.h5"))
    opened.select([0, 1]).save(tmp_path / "a.h5")
    same(session, Session.open(session.save(tmp_path / "b.h5")))
    np.testing.assert_array_equal(opened.spike_times, session.spike_times)
    assert len(Session.open(tmp_path / "a.h5").units) == 2


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(make_session, same, tmp_path):
    session = make_session()
    path = session.save(tmp_path / "a.h5")
    trials = pd.DataFrame({"start": [2.0], "stop": [3.0], "targets": [[1, 2]]})
    with pytest.raises(BadRecording, match="has a list in its column 'targets'"):
        make_session(trials=trials).save(path)
    assert os.listdir(tmp_path) == ["a.h5"]
    same(session, Session.open(path))


# Damage


def test_a_truncated_file_is_told_in_one_sentence(make_session, tmp_path):
    path = make_session().save(tmp_path / "a.h5")
    whole = path.read_bytes()
    for keep in (0, 7, 100, 4096, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(BadRecording, match=r"damaged.*restore it from a copy"):
            Session.open(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), length=st.integers(8, 300), seed=st.integers(0, 1000))
def test_overwritten_bytes_never_give_another_session(make_session, same, tmp_path, where, length, seed):
    session = make_session()
    path = session.save(tmp_path / "a.h5")
    raw = bytearray(path.read_bytes())
    at = int(where * (len(raw) - length))
    raw[at : at + length] = np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()
    path.write_bytes(raw)
    try:
        opened = Session.open(path)
        same(session, opened)  # bytes that nothing uses
    except BadRecording as error:
        assert str(path) in str(error) and "damaged" in str(error)


def test_a_missing_group_is_told_in_one_sentence(make_session, tmp_path):
    for group in ("spikes", "units", "trials", "workbench", "domain", "hand_vel", "units/id", "spikes/unit_index"):
        path = make_session().save(tmp_path / "a.h5")
        with h5py.File(path, "r+") as file:
            del file[group]
        with pytest.raises(BadRecording, match="is damaged"):
            Session.open(path)


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(BadRecording, match=r"there is no file .*cell\.h5; check the path"):
        Session.open(tmp_path / "cell.h5")
    (tmp_path / "call.h5").write_text("no")
    with pytest.raises(BadRecording, match=r"did you mean call\.h5"):
        Session.open(tmp_path / "cell.h5")
    with pytest.raises(BadRecording, match="not an HDF5 file"):
        Session.open(tmp_path / "call.h5")
    with pytest.raises(BadRecording, match="is a folder"):
        Session.open(tmp_path)
    for attribute, value, said in (("nwb_version", "2.8.0", "Session.from_nwb"), ("made_by", "x", "neither saved by")):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.attrs[attribute] = value
        with pytest.raises(BadRecording, match=said):
            Session.open(tmp_path / "x.h5")


def test_a_file_of_a_newer_format_asks_for_a_newer_workbench(make_session, tmp_path):
    path = make_session().save(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["workbench_format"] = 99
    with pytest.raises(BadRecording, match="update the workbench"):
        Session.open(path)


# torch_brain, both ways


@pytest.fixture
def torch_brain():
    return pytest.importorskip(
        "torch_brain.data", reason="torch_brain is not installed (pip install torch_brain==0.2.1)"
    )


@pytest.mark.parametrize("lazy", [True, False])
def test_torch_brain_opens_what_we_save(torch_brain, make_session, tmp_path, lazy):
    session = make_session()
    with h5py.File(session.save(tmp_path / "a.h5"), "r") as file:
        data = torch_brain.Data.from_hdf5(file, lazy=lazy)
        np.testing.assert_array_equal(data.spikes.timestamps, session.spike_times)
        np.testing.assert_array_equal(data.spikes.unit_index, session.spike_units)
        assert data.spikes.unit_index.dtype == np.int64
        assert data.units.id.tolist() == session.units["id"].tolist()
        np.testing.assert_array_equal(data.units.snr, session.units["snr"])
        np.testing.assert_array_equal(np.stack([data.domain.start, data.domain.end], 1), session.intervals)
        np.testing.assert_array_equal(data.trials.start, session.trials["start"])
        np.testing.assert_array_equal(data.trials.end, session.trials["stop"])
        assert data.trials.result.tolist() == session.trials["result"].tolist()
        np.testing.assert_array_equal(data.hand_vel.values, session.series["hand_vel"].values)
        assert data.hand_vel.sampling_rate == 10
        np.testing.assert_allclose(data.hand_vel.timestamps, session.series["hand_vel"].times, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(data.pupil.timestamps, session.series["pupil"].times)
        np.testing.assert_array_equal(data.images.pictures, session.images)
        assert (data.session.id, data.subject.species, bool(data.session.simulated)) == (
            session.id,
            session.species,
            True,
        )


@pytest.mark.parametrize("lazy", [True, False])
def test_a_window_in_torch_brain_is_our_window(torch_brain, make_session, tmp_path, lazy):
    session = make_session()
    with h5py.File(session.save(tmp_path / "a.h5"), "r") as file:
        for start, stop in ((5.0, 15.0), (1.5, 60.0), (20.0, 21.5), (31.5, 52.99)):
            data = torch_brain.Data.from_hdf5(file, lazy=lazy).slice(start, stop, reset_origin=False)
            ours = session.between(start, stop)
            np.testing.assert_array_equal(data.spikes.timestamps, ours.spike_times)
            np.testing.assert_array_equal(data.spikes.unit_index, ours.spike_units)
            np.testing.assert_array_equal(data.pupil.values, ours.series["pupil"].values)
            np.testing.assert_array_equal(data.hand_vel.values, ours.series["hand_vel"].values)
            np.testing.assert_array_equal(np.stack([data.domain.start, data.domain.end], 1), ours.intervals)
        moved = torch_brain.Data.from_hdf5(file, lazy=lazy).slice(7.0, 12.0)
        assert moved.trials.go_cue_time.tolist() == [1.0] and moved.trials.reaction.tolist() == [0.25]


def test_torch_brain_finds_spikes_outside_the_valid_intervals(torch_brain, make_session, tmp_path):
    session = make_session(intervals=[[10.0, 20.0]])
    with h5py.File(session.save(tmp_path / "a.h5"), "r") as file:
        data = torch_brain.Data.from_hdf5(file)
        assert len(data.spikes.slice(2.0, 60.0).timestamps) == len(session.spike_times)


def theirs(torch_brain) -> object:
    """A recording as torch_brain's own pipelines lay it out: several fields a group, no series names of ours."""
    rng = np.random.default_rng(3)
    times = np.sort(rng.uniform(0, 30, 2000))
    domain = torch_brain.Interval(0.0, 30.0)
    gaps = torch_brain.RegularTimeSeries.from_gappy_timeseries(
        np.r_[np.arange(100), np.arange(200, 300)] / 10.0, sampling_rate=10.0, pos=rng.normal(size=(200, 2))
    )
    return torch_brain.Data(
        domain=domain,
        session=torch_brain.SessionDescription(id="day1", recording_date=pd.Timestamp("2020-01-02").to_pydatetime()),
        subject=torch_brain.SubjectDescription(id="jenkins", species="Macaca mulatta"),
        spikes=torch_brain.IrregularTimeSeries(timestamps=times, unit_index=rng.integers(0, 4, 2000), domain=domain),
        units=torch_brain.ArrayDict(id=np.array(["a", "b", "c", "d"]), unit_number=np.arange(4), snr=rng.random(4)),
        hand=torch_brain.RegularTimeSeries(
            pos=rng.normal(size=(300, 2)), vel=rng.normal(size=(300, 2)), sampling_rate=10.0
        ),
        cursor=torch_brain.IrregularTimeSeries(
            timestamps=np.sort(rng.uniform(0, 30, 50)), pos=rng.normal(size=50), domain=domain
        ),
        eye=gaps,
        trials=torch_brain.Interval(
            start=np.array([0.0, 10.0]), end=np.array([9.0, 19.0]), result=np.array(["R", "F"])
        ),
        train_domain=torch_brain.Interval(0.0, 20.0),
    )


def test_what_torch_brain_writes_opens_in_ours(torch_brain, tmp_path):
    data = theirs(torch_brain)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        data.to_hdf5(file)
    session = Session.open(tmp_path / "theirs.h5")
    np.testing.assert_array_equal(session.spike_times, data.spikes.timestamps)
    np.testing.assert_array_equal(session.spike_units, data.spikes.unit_index)
    assert mapped(session.spike_times) and mapped(session.spike_units) and session.spike_units.dtype == np.int32
    assert session.units["id"].tolist() == ["a", "b", "c", "d"] and session.units["unit_number"].tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert set(session.series) == {"hand_pos", "hand_vel", "cursor_pos", "eye_pos"}
    np.testing.assert_array_equal(session.series["hand_vel"].values, data.hand.vel)
    np.testing.assert_array_equal(session.series["hand_vel"].times, data.hand.timestamps)
    np.testing.assert_array_equal(session.series["cursor_pos"].values[:, 0], data.cursor.pos)
    assert session.series["eye_pos"].values.shape == (200, 2) and np.isfinite(session.series["eye_pos"].values).all()
    np.testing.assert_allclose(session.series["eye_pos"].times, np.r_[np.arange(100), np.arange(200, 300)] / 10.0)
    assert session.trials[["start", "stop"]].to_numpy().tolist() == [[0, 9], [10, 19]]
    assert session.trials["result"].tolist() == ["R", "F"] and session.intervals.tolist() == [[0, 30]]
    assert (session.id, session.subject, session.species) == ("day1", "jenkins", "Macaca mulatta")


def test_torch_brains_file_saved_by_us_opens_in_torch_brain(torch_brain, same, tmp_path):
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        theirs(torch_brain).to_hdf5(file)
    session = Session.open(tmp_path / "theirs.h5")
    same(session, Session.open(session.save(tmp_path / "ours.h5")))
    with h5py.File(tmp_path / "ours.h5", "r") as file:
        again = torch_brain.Data.from_hdf5(file, lazy=False)
        np.testing.assert_array_equal(again.spikes.timestamps, session.spike_times)
        np.testing.assert_array_equal(again.hand_pos.values, session.series["hand_pos"].values)


def test_bad_spikes_in_torch_brains_file_are_refused(torch_brain, tmp_path):
    for values, said in ((np.array([0.0, np.nan, 2.0]), "not finite"), (np.array([0.0, 3.0, 2.0]), "not sorted")):
        with h5py.File(tmp_path / "theirs.h5", "w") as file:
            theirs(torch_brain).to_hdf5(file)
            del file["spikes/timestamps"], file["spikes/unit_index"]
            file["spikes/timestamps"], file["spikes/unit_index"] = values, np.zeros(3, np.int64)
        with pytest.raises(BadRecording, match=said):
            Session.open(tmp_path / "theirs.h5")


def test_every_array_is_contiguous_and_has_its_checksum(make_session, tmp_path):
    with h5py.File(make_session().save(tmp_path / "a.h5"), "r") as file:
        header = json.loads(file["workbench/header"][:].tobytes())
        arrays = []
        file.visititems(lambda name, item: arrays.append("/" + name) if isinstance(item, h5py.Dataset) else None)
        assert set(header["sums"]) == set(arrays) - {"/workbench/header"}
        assert all(file[name].chunks is None for name in arrays)


@pytest.mark.filterwarnings("ignore:series .* samples are dropped")
def test_real_recordings_open_the_same_after_saving(real_data, same, tmp_path):
    for name in (
        "m1_reach.nwb",
        "human_mtl.nwb",
        "steinmetz/steinmetz_01.nwb",
        "v4/v4_210325.nwb",
        "zf_20151104-f1.nwb",
    ):
        session = Session.from_nwb(real_data / name)
        same(session, Session.open(session.save(tmp_path / "a.h5")))
