"""NWB files in and out: the same session back, foreign layouts read by the rules, bad files told in one sentence."""

import warnings
from datetime import UTC, datetime
from uuid import uuid4

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pynwb import NWBHDF5IO, NWBFile, TimeSeries, validate
from pynwb.base import ImageReferences, Images
from pynwb.behavior import BehavioralTimeSeries, CompassDirection, Position, PupilTracking, SpatialSeries
from pynwb.ecephys import ElectricalSeries
from pynwb.file import Subject
from pynwb.image import GrayscaleImage, ImageSeries, IndexSeries
from pynwb.ophys import DfOverF, Fluorescence, ImageSegmentation, OpticalChannel, RoiResponseSeries

from workbench.errors import BadRecording, CannotWrite, UnknownName
from workbench.session import Session

TRAINS = ([0.1, 0.5, 3.0], [0.2, 0.5, 9.0, 9.5], [])


def lab_file(**changes) -> NWBFile:
    return NWBFile(
        **{
            "session_description": "a day",
            "identifier": "mouse-7_day-1",
            "experiment_description": "running",
            "session_start_time": datetime(2020, 1, 1, tzinfo=UTC),
        }
        | changes
    )


def add_electrodes(nwb: NWBFile, locations=("CA1", "none", "unknown"), group="CA3") -> None:
    shank = nwb.create_electrode_group("shank", description="d", location=group, device=nwb.create_device("probe"))
    for i, location in enumerate(locations):
        nwb.add_electrode(location=location, group=shank, x=float(i), y=2.0, z=0.0, rel_y=20.0 * i)


def add_units(nwb: NWBFile, trains=TRAINS, **columns) -> NWBFile:
    for name in columns:
        if name not in ("electrodes", "obs_intervals", "electrode_group", "amplitudes"):
            nwb.add_unit_column(name, name)
    for i, train in enumerate(trains):
        nwb.add_unit(spike_times=train, id=10 + i, **{name: values[i] for name, values in columns.items()})
    return nwb


@pytest.fixture
def store(tmp_path):
    def store(nwb: NWBFile, name: str = "file.nwb"):
        with NWBHDF5IO(tmp_path / name, "w") as io:
            io.write(nwb)
        return tmp_path / name

    return store


def behaviour(nwb: NWBFile, *items) -> NWBFile:
    module = nwb.create_processing_module("behavior", "moves")
    for item in items:
        module.add(item)
    return nwb


# There and back


def test_a_written_session_reads_back_the_same(make_session, same, tmp_path):
    session = make_session()
    same(session, Session.from_nwb(session.to_nwb(tmp_path / "a.nwb")))


@settings(
    max_examples=5,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), spikes=st.integers(0, 300))
def test_sessions_of_every_size_read_back_the_same(make_session, same, tmp_path, seed, n, spikes):
    session = make_session(seed, n, spikes)
    same(session, Session.from_nwb(session.to_nwb(tmp_path / "a.nwb")))


def test_what_is_written_is_valid_nwb_with_everything_in_its_place(make_session, tmp_path):
    session = make_session()
    path = session.to_nwb(tmp_path / "a.nwb")
    assert not validate(path=path)
    with NWBHDF5IO(path, "r") as io:
        nwb = io.read()
        times = nwb.units["spike_times"][2]
        np.testing.assert_array_equal(times, session.spike_times[session.spike_units == 2])
        assert list(nwb.units["region"].data[:]) == session.units["region"].tolist()
        np.testing.assert_array_equal(nwb.units["obs_intervals"][0], session.intervals)
        assert nwb.trials["go_cue_time"].data[:].tolist() == session.trials["go_cue_time"].tolist()
        assert (
            nwb.processing["behavior"]["hand_vel"].unit == "cm/s" and nwb.processing["behavior"]["hand_vel"].rate == 10
        )
        assert nwb.processing["ophys"]["dF_F"].data.shape == (20, 7)
        assert nwb.stimulus_template["pictures"].data.shape == (2, 4, 5, 3)
        assert (nwb.subject.subject_id, nwb.subject.species) == ("J", "Macaca mulatta")
        assert nwb.units.resolution == 0.001 and "simulated" in nwb.keywords[:]


def test_a_written_session_is_read_by_the_generic_rules_too(make_session, tmp_path):
    session = make_session()
    path = session.to_nwb(tmp_path / "a.nwb")
    with h5py.File(path, "r+") as file:
        del file["scratch"]
    again = Session.from_nwb(path)
    np.testing.assert_array_equal(again.spike_times, session.spike_times)
    assert again.units["id"].tolist() == session.units["id"].tolist()
    assert again.units["region"].tolist() == session.units["region"].tolist()
    assert set(again.series) == {"hand_vel", "pupil", "licks", "dF_F", "spikes"} and again.simulated
    assert again.intervals.tolist() == [[1.5, 30.0], [31.25, 53.0]] and again.resolution == 0.001
    assert again.stimuli["image"].tolist() == [1, 0] and again.images.shape == (2, 4, 5, 3)


def test_a_session_without_units_or_text_reads_back_the_same(same, tmp_path):
    session = Session(id="none", spike_times=[], spike_units=[], units=pd.DataFrame({"id": pd.Series([], dtype="str")}))
    again = Session.from_nwb(session.to_nwb(tmp_path / "a.nwb"))
    assert again.id == "none" and len(again.units) == 0 and again.duration == 0 and not again.simulated


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(make_session, same, tmp_path, monkeypatch):
    session = make_session()
    path = session.to_nwb(tmp_path / "a.nwb")

    def full_disk(self, nwb):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(CannotWrite, match="No space left"):
        patched.setattr(NWBHDF5IO, "write", full_disk)
        session.select([0]).to_nwb(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nwb"]
    same(session, Session.from_nwb(path))


# Foreign layouts


def test_spikes_of_all_units_become_one_sorted_list(store):
    session = Session.from_nwb(store(add_units(lab_file(), region=["CA1", "CA1", "V1"])))
    assert session.spike_times.tolist() == [0.1, 0.2, 0.5, 0.5, 3.0, 9.0, 9.5]
    assert session.spike_units.tolist() == [0, 1, 0, 1, 0, 1, 1] and session.spike_units.dtype == np.int32
    assert session.units["id"].tolist() == ["10", "11", "12"] and session.units["region"].tolist() == [
        "CA1",
        "CA1",
        "V1",
    ]
    assert (session.id, session.task, session.description) == ("mouse-7_day-1", "running", "a day")


@pytest.mark.parametrize("column", ["region", "location", "brain_area", "brain_region", "area", "Location"])
def test_the_region_comes_from_a_column_of_the_units(store, column):
    session = Session.from_nwb(store(add_units(lab_file(), **{column: ["V1", "LM", "AL"]}, snr=[1.0, 2.0, 3.0])))
    assert session.units["region"].tolist() == ["V1", "LM", "AL"] and session.units["snr"].tolist() == [1, 2, 3]


def test_units_that_list_electrodes_of_several_places_are_told_of(store):
    nwb = lab_file()
    add_electrodes(nwb, ("CA1", "CA1", "DG"))
    path = store(add_units(nwb, electrodes=[[0, 1], [2, 1, 0], []]))
    with pytest.warns(UserWarning, match="^1 units list electrodes of several locations; each is placed at the first"):
        session = Session.from_nwb(path)
    assert session.units["region"].tolist() == ["CA1", "DG", "unknown"]


def test_an_area_in_numbers_is_a_metric_and_no_region(store):
    nwb = lab_file()
    add_electrodes(nwb)
    units = Session.from_nwb(store(add_units(nwb, electrodes=[[0], [1], [2]], area=[12.5, 8.0, 9.0]))).units
    assert units["region"].tolist() == ["CA1", "CA3", "CA3"] and units["area"].tolist() == [12.5, 8, 9]


def test_places_in_text_of_fixed_length_are_text(store):
    nwb = lab_file()
    add_electrodes(nwb)
    path = store(add_units(nwb, electrodes=[[0], [1], [2]]))
    with h5py.File(path, "r+") as file:
        group = file["general/extracellular_ephys"]
        group["shank"].attrs["location"] = np.bytes_("CA3")
        about = dict(group["electrodes/location"].attrs)
        del group["electrodes/location"]
        group["electrodes"].create_dataset("location", data=np.array([b"CA1", b"none", b""])).attrs.update(about)
        del file["identifier"]
        file["identifier"] = np.bytes_("mouse-8")
    session = Session.from_nwb(path)
    assert session.id == "mouse-8" and session.units["region"].tolist() == ["CA1", "CA3", "CA3"]


def test_the_region_comes_from_the_electrode_and_then_from_its_group(store):
    nwb = lab_file()
    add_electrodes(nwb)
    session = Session.from_nwb(store(add_units(nwb, electrodes=[[0], [1], [2]])))
    assert session.units["region"].tolist() == ["CA1", "CA3", "CA3"]
    assert session.units["x"].tolist() == [0, 1, 2] and session.units["depth"].tolist() == [0, 20, 40]
    assert "z" not in session.units  # all zero: nobody measured it


@pytest.mark.parametrize("group", ["See electrode locations", "None", " "])
def test_a_group_that_names_no_place_is_no_region(store, group):
    nwb = lab_file()
    add_electrodes(nwb, group=group)
    session = Session.from_nwb(store(add_units(nwb, electrodes=[[0], [1], [2]])))
    assert session.units["region"].tolist() == ["CA1", "unknown", "unknown"]


def test_the_region_comes_from_the_group_of_a_unit_without_electrodes(store):
    nwb = lab_file()
    group = nwb.create_electrode_group("tetrode", description="d", location="SUB", device=nwb.create_device("drive"))
    assert Session.from_nwb(store(add_units(nwb, electrode_group=[group] * 3))).units["region"].tolist() == ["SUB"] * 3


def test_units_without_any_place_are_unknown_and_that_is_said(store):
    with pytest.warns(UserWarning, match="every region is 'unknown'"):
        session = Session.from_nwb(store(add_units(lab_file())))
    assert session.units["region"].tolist() == ["unknown"] * 3


def test_scalar_columns_are_metrics_and_ragged_ones_stay_behind(store):
    nwb = lab_file()
    nwb.add_unit_column("amplitudes", "a spike", index=True)
    nwb = add_units(
        nwb,
        region=["a"] * 3,
        amplitudes=[[1.0], [2.0, 3.0], []],
        quality=["good", "mua", "good"],
        heldout=[True, False, True],
        unit_name=["n1", "n2", "n3"],
    )
    units = Session.from_nwb(store(nwb)).units
    assert units["id"].tolist() == ["n1", "n2", "n3"] and units["quality"].tolist() == ["good", "mua", "good"]
    assert units["heldout"].dtype == bool and "amplitudes" not in units and "spike_times" not in units


def test_waveforms_by_any_name_are_never_read(store, touched):
    nwb = add_units(lab_file(), region=["a"] * 3, mean_wave=[np.ones(82)] * 3, spread=[np.ones(2)] * 3)
    path = store(nwb)
    touched.clear()
    assert {"spread_0", "spread_1"} < set(Session.from_nwb(path).units)
    assert "spike_times" in touched and "spread" in touched and "mean_wave" not in touched


def test_the_session_is_valid_where_the_units_were_observed(store):
    nwb = add_units(
        lab_file(),
        region=["a"] * 3,
        obs_intervals=[[[0.0, 4.0], [8.0, 10.0]], [[0.0, 4.0], [9.0, 10.0]], [[1.0, 4.0], [8.0, 10.0]]],
    )
    assert Session.from_nwb(store(nwb)).intervals.tolist() == [[1, 4], [9, 10]]


def test_units_observed_at_different_times_leave_the_session_valid_where_any_was(store):
    nwb = add_units(lab_file(), region=["a"] * 3, obs_intervals=[[[0.0, 5.0]], [[4.0, 10.0]], [[8.0, 10.0]]])
    with pytest.warns(UserWarning, match="observed at different times"):
        assert Session.from_nwb(store(nwb)).intervals.tolist() == [[0, 10]]


def test_invalid_times_are_cut_out(store):
    nwb = add_units(lab_file(), region=["a"] * 3, obs_intervals=[[[0.0, 10.0]]] * 3)
    nwb.add_invalid_time_interval(start_time=2.0, stop_time=3.0)
    assert Session.from_nwb(store(nwb)).intervals.tolist() == [[0, 2], [3, 10]]


def test_trials_keep_their_columns_and_lists_are_named_in_a_warning(store):
    nwb = add_units(lab_file(), region=["a"] * 3)
    nwb.add_trial_column("result", "r")
    nwb.add_trial_column("target_pos", "x, y")
    nwb.add_trial_column("targets", "of all", index=True)
    for i in (1, 0):
        nwb.add_trial(
            start_time=i * 3.0, stop_time=i * 3.0 + 2, result="RF"[i], target_pos=[i, -i], targets=list(range(i + 1))
        )
    with pytest.warns(UserWarning, match=r"left out: trials\.targets"):
        trials = Session.from_nwb(store(nwb)).trials
    assert trials[["start", "stop"]].to_numpy().tolist() == [[0, 2], [3, 5]] and trials["result"].tolist() == ["R", "F"]
    assert trials["target_pos_1"].tolist() == [0, -1]


def test_trials_that_stop_before_they_start_are_left_out_and_counted(store):
    nwb = add_units(lab_file())
    for start, stop in ((0.0, 1.0), (2.0, 1.0), (3.0, 4.0)):
        nwb.add_trial(start_time=start, stop_time=stop)
    with pytest.warns(UserWarning, match=r"1 of 3 rows of the table 'trials' stop before they start.*no duration"):
        assert Session.from_nwb(store(nwb)).trials["start"].tolist() == [0.0, 3.0]


def test_tables_of_intervals_beside_the_trials_are_named_in_a_warning(store):
    nwb = add_units(lab_file(), region=["a"] * 3)
    nwb.add_trial(start_time=0.0, stop_time=np.nan)                     # one that was broken off
    nwb.create_time_intervals(name="licks", description="d").add_row(start_time=0.1, stop_time=0.2)
    nwb.create_time_intervals(name="rewards", description="d")          # none was given
    nwb.add_epoch(start_time=0.0, stop_time=1.0, tags=["day"])
    with pytest.warns(UserWarning, match=r"that are no trials are left out: epochs, licks$"):
        trials = Session.from_nwb(store(nwb)).trials
    assert trials["start"].tolist() == [0] and trials["stop"].isna().all()


def test_without_trials_every_table_of_intervals_is_kept(store):
    nwb = add_units(lab_file(), region=["a"] * 3)
    for name, starts in (("encoding", [0.0, 6.0]), ("recall", [3.0])):
        table = nwb.create_time_intervals(name=name, description="d")
        table.add_column(f"{name}_score", "s")
        for start in starts:
            table.add_row(start_time=start, stop_time=start + 1, **{f"{name}_score": start})
    trials = Session.from_nwb(store(nwb)).trials
    assert trials["table"].tolist() == ["encoding", "recall", "encoding"] and trials["start"].tolist() == [0, 3, 6]
    assert trials["recall_score"].isna().tolist() == [True, False, True]


def test_signals_are_found_wherever_they_lie_and_scaled(store):
    ramp = np.arange(20.0)
    nwb = behaviour(
        add_units(lab_file(), region=["a"] * 3),
        Position(
            spatial_series=SpatialSeries(
                name="hand_pos",
                data=np.stack([ramp, -ramp], 1),
                rate=10.0,
                starting_time=1.0,
                reference_frame="f",
                conversion=0.01,
                unit="m",
            )
        ),
        PupilTracking(name="PupilTracking", time_series=TimeSeries(name="TimeSeries", data=ramp, unit="px", rate=5.0)),
        CompassDirection(
            spatial_series=SpatialSeries(name="heading", data=ramp, timestamps=ramp / 3, reference_frame="f")
        ),
        BehavioralTimeSeries(
            time_series=[TimeSeries(name="speed", data=ramp.astype(np.int16), unit="cm/s", rate=4.0, offset=2.0)]
        ),
    )
    nwb.add_acquisition(TimeSeries(name="lick", data=ramp > 3, unit="n.a.", rate=10.0))
    nwb.add_acquisition(TimeSeries(name="sync", data=ramp, unit="V", rate=30_000.0))
    nwb.add_acquisition(
        ImageSeries(name="video", external_file=["a.avi"], format="external", rate=30.0, num_samples=20)
    )
    path = store(nwb)
    with pytest.warns(UserWarning, match=r"left out the series sync \(30,000 samples/s"):
        session = Session.from_nwb(path)
    assert set(session.series) == {"hand_pos", "PupilTracking", "heading", "speed", "lick"}
    hand = session.series["hand_pos"]
    np.testing.assert_allclose(hand.values[3], [0.03, -0.03])
    assert hand.times[0] == 1.0 and hand.rate == 10.0 and hand.unit == "m"
    assert session.series["speed"].values[:, 0].tolist() == (ramp + 2).tolist()
    assert session.series["heading"].times.tolist() == (ramp / 3).tolist() and session.series["lick"].values.shape == (
        20,
        1,
    )
    assert list(Session.from_nwb(path, series=["sync"]).series) == ["sync"]
    with pytest.raises(UnknownName, match=r"no series 'hand_vel' in mouse-7_day-1; did you mean hand_pos"):
        Session.from_nwb(path, series=["hand_vel"])


def test_a_raw_voltage_with_timestamps_is_left_out_as_one_with_a_rate_is(store, touched):
    times = np.arange(3000) / 30_000
    nwb = add_units(lab_file(), region=["a"] * 3)
    nwb.add_acquisition(TimeSeries(name="sync", data=times, unit="V", timestamps=times))
    nwb.add_acquisition(TimeSeries(name="slow", data=times, unit="V", timestamps=times * 100))
    nwb.add_acquisition(TimeSeries(name="pulses", data=[1.0, 2.0, 3.0], unit="V", timestamps=[0.1, 0.10001, 9.0]))
    path = store(nwb)
    touched.clear()
    with pytest.warns(UserWarning, match=r"left out the series sync \(30,000 samples/s"):
        assert set(Session.from_nwb(path).series) == {"slow", "pulses"}
    assert touched.count("data") == 2                                   # each that is wanted once, the voltage never


def test_signals_of_one_name_are_told_apart_by_where_they_lie(store):
    def eye(module):
        return BehavioralTimeSeries(
            name=module, time_series=[TimeSeries(name="x", data=np.arange(5.0), unit="px", rate=1.0)]
        )

    nwb = behaviour(add_units(lab_file(), region=["a"] * 3), eye("left"), eye("right"))
    nwb.add_acquisition(TimeSeries(name="y", data=np.arange(5.0), unit="px", rate=1.0))
    assert set(Session.from_nwb(store(nwb)).series) == {"left_x", "right_x", "y"}


def test_clocks_that_stutter_lose_the_repeated_samples_and_it_is_said(store):
    times = np.array([0.0, 0.1, 0.1, 0.2, 0.15, 0.3, np.nan, -1.5e9, 0.4])
    speed = TimeSeries(name="speed", data=np.arange(9.0), unit="cm/s", timestamps=times)
    with pytest.warns(UserWarning, match="'speed': 4 of 9 samples are dropped"):
        session = Session.from_nwb(store(behaviour(add_units(lab_file(), region=["a"] * 3), speed)))
    assert session.series["speed"].times.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert session.series["speed"].values[:, 0].tolist() == [0, 1, 3, 5, 8]


def test_a_conversion_that_is_no_number_leaves_the_values_as_stored_and_it_is_said(store):
    speed = TimeSeries(name="speed", data=np.arange(9.0), unit="cm/s", rate=1.0, conversion=np.nan)
    with pytest.warns(UserWarning, match="'speed': its conversion is no number.* not in cm/s"):
        session = Session.from_nwb(store(behaviour(add_units(lab_file(), region=["a"] * 3), speed)))
    assert session.series["speed"].values[:, 0].tolist() == list(range(9))


def test_gaps_between_samples_stay_gaps(store):
    times = np.r_[np.arange(50) * 0.01, 5 + np.arange(50) * 0.01]
    speed = TimeSeries(name="speed", data=np.arange(100.0), unit="cm/s", timestamps=times)
    series = Session.from_nwb(store(behaviour(add_units(lab_file(), region=["a"] * 3), speed))).series["speed"]
    assert series.times.tolist() == times.tolist() and series.rate is None


def add_calcium(nwb: NWBFile, data: np.ndarray) -> NWBFile:
    channel = OpticalChannel(name="c", description="d", emission_lambda=520.0)
    plane = nwb.create_imaging_plane(
        name="plane",
        optical_channel=channel,
        description="d",
        device=nwb.create_device("scope"),
        excitation_lambda=920.0,
        indicator="GCaMP6s",
        location="VISp",
        imaging_rate=10.0,
    )
    module = nwb.create_processing_module("ophys", "calcium")
    module.add(ImageSegmentation(name="masks"))
    cells = module["masks"].create_plane_segmentation(name="cells", description="d", imaging_plane=plane)
    for i in range(3):
        cells.add_roi(id=100 + i, pixel_mask=[(4 * i, 2, 1.0), (4 * i + 2, 4, 1.0)])
    rois = cells.create_roi_table_region(region=[2, 0], description="two")
    module.add(
        DfOverF(roi_response_series=RoiResponseSeries(name="traces", data=data, rois=rois, unit="n.a.", rate=10.0))
    )
    return nwb


@pytest.mark.filterwarnings("ignore:The linked table")
def test_calcium_without_spikes_is_a_session_whose_units_are_the_cells(store):
    data = np.arange(40.0).reshape(20, 2)
    session = Session.from_nwb(store(add_calcium(lab_file(), data)))
    assert session.units["id"].tolist() == ["102", "100"] and session.units["region"].tolist() == ["VISp", "VISp"]
    assert session.units["x"].tolist() == [9, 1] and session.units["y"].tolist() == [3, 3]
    traces = session.series["dF/F"]
    assert (traces.unit, traces.columns) == ("dF/F", ("102", "100")) and len(session.spike_times) == 0
    np.testing.assert_array_equal(session.select(["100"]).series["dF/F"].values, data[:, 1:])


@pytest.mark.filterwarnings("ignore:The linked table")
def test_calcium_stored_cells_by_frames_is_turned_round(store):
    data = np.arange(40.0).reshape(20, 2)
    path = store(add_calcium(lab_file(), data.T.copy()))
    with pytest.warns(UserWarning, match="turned round"):
        np.testing.assert_array_equal(Session.from_nwb(path).series["dF/F"].values, data)


@pytest.mark.filterwarnings("ignore:The linked table")
def test_the_units_are_the_cells_of_dff_even_where_raw_fluorescence_comes_first(store):
    data = np.arange(40.0).reshape(20, 2)
    nwb = add_calcium(lab_file(), data)
    module = nwb.processing["ophys"]
    rois = module["masks"]["cells"].create_roi_table_region(region=[0, 1, 2], description="all")
    raw = RoiResponseSeries(name="raw", data=np.zeros((20, 3)), rois=rois, unit="n.a.", rate=10.0)
    module.add(Fluorescence(name="A", roi_response_series=raw))
    session = Session.from_nwb(store(nwb))
    assert session.units["id"].tolist() == ["102", "100"] and set(session.series) == {"dF/F", "raw"}
    np.testing.assert_array_equal(session.select(["100"]).series["dF/F"].values, data[:, 1:])


@pytest.mark.filterwarnings("ignore:The linked table")
def test_cells_of_a_second_plane_are_no_units_and_that_is_said(store):
    nwb = add_calcium(lab_file(), np.zeros((20, 2)))
    module = nwb.processing["ophys"]
    second = module["masks"].create_plane_segmentation(
        name="deep", description="d", imaging_plane=nwb.imaging_planes["plane"]
    )
    second.add_roi(id=7, pixel_mask=[(1, 1, 1.0)])
    rois = second.create_roi_table_region(region=[0], description="one")
    traces = RoiResponseSeries(name="z", data=np.zeros((20, 1)), rois=rois, unit="n.a.", rate=10.0)
    module["DfOverF"].add_roi_response_series(traces)
    with pytest.warns(UserWarning, match="cells of 'dF/F_traces'; .* series without units: dF/F_z"):
        session = Session.from_nwb(store(nwb))
    assert session.units["id"].tolist() == ["102", "100"] and session.series["dF/F_z"].columns == ("7",)


def shown_one_to_three(many: int) -> NWBFile:
    """Trials that say 1, 2, 3 of so many pictures."""
    nwb = add_units(lab_file(), region=["a"] * 3)
    nwb.add_stimulus_template(
        ImageSeries(name="scenes", data=np.zeros((many, 4, 5), np.uint8), unit="n.a.", format="raw", rate=1.0)
    )
    nwb.add_trial_column("image", "a number")
    for i in range(3):
        nwb.add_trial(start_time=float(i), stop_time=i + 0.5, image=i + 1)
    return nwb


def test_pictures_counted_from_one_are_not_taken_for_the_next_ones(store):
    with pytest.warns(UserWarning, match=r"'scenes' has 3, counted from 0, and image \(up to 3\) counts otherwise"):
        session = Session.from_nwb(store(shown_one_to_three(3)))
    assert "image" not in session.stimuli and session.trials["image"].tolist() == [1, 2, 3]


def test_pictures_that_begin_at_one_are_read_from_zero_and_that_is_told(store):
    """With the last one never shown they may count from 1; nothing in the file says so."""
    with pytest.warns(UserWarning, match=r"image never names picture 0 of 4 and begins at 1"):
        assert Session.from_nwb(store(shown_one_to_three(4))).stimuli["image"].tolist() == [1, 2, 3]


def test_pictures_are_read_when_asked_for_and_trials_say_which(store):
    pictures = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    nwb = add_units(lab_file(), region=["a"] * 3)
    nwb.add_stimulus_template(ImageSeries(name="scenes", data=pictures, unit="n.a.", format="raw", rate=1.0))
    nwb.add_trial_column("image", "row of scenes")
    for i in range(4):
        nwb.add_trial(start_time=float(i), stop_time=i + 0.5, image=(i + 1) % 3)
    path = store(nwb)
    session = Session.from_nwb(path)
    assert session.stimuli["image"].tolist() == [1, 2, 0, 1] and list(session.stimuli) == ["start", "stop", "image"]
    np.testing.assert_array_equal(session.images, pictures)
    path.unlink()
    with pytest.raises(BadRecording, match="there is no file"):
        _ = session.images


def test_pictures_of_an_index_series_come_in_their_stated_order(store):
    items = [GrayscaleImage(name=f"image_{i}", data=np.full((2, 3), i)) for i in (10, 2, 1)]
    nwb = add_units(lab_file(), region=["a"] * 3)
    images = Images(name="scenes", images=items, order_of_images=ImageReferences(name="order_of_images", data=items))
    nwb.add_stimulus_template(images)
    nwb.add_stimulus(
        IndexSeries(
            name="shown",
            data=np.array([1, 0, 2], np.uint32),
            indexed_images=images,
            unit="N/A",
            timestamps=[0.0, 1.0, 2.0],
        )
    )
    session = Session.from_nwb(store(nwb))
    assert session.images[:, 0, 0].tolist() == [10, 2, 1]
    assert session.stimuli.to_numpy().tolist() == [[0, 1, 1], [1, 2, 0], [2, 3, 2]]


def test_pictures_without_an_order_are_counted_not_spelled(store):
    nwb = add_units(lab_file(), region=["a"] * 3)
    nwb.add_stimulus_template(
        Images(name="s", images=[GrayscaleImage(name=f"image_{i}", data=np.full((2, 3), i)) for i in (10, 2, 1)])
    )
    assert Session.from_nwb(store(nwb)).images[:, 0, 0].tolist() == [1, 2, 10]


def test_presentations_are_stimuli_and_not_trials(store):
    nwb = add_units(lab_file(), region=["a"] * 3)
    for name in ("gratings", "flashes"):
        table = nwb.create_time_intervals(name=f"{name}_presentations", description="d")
        table.add_row(start_time=float(len(name)), stop_time=9.0)
    session = Session.from_nwb(store(nwb))
    assert len(session.trials) == 0
    assert session.stimuli["table"].tolist() == ["flashes_presentations", "gratings_presentations"]


def test_a_machines_identifier_gives_way_to_the_files_name(store):
    nwb = add_units(lab_file(identifier=str(uuid4())), region=["a"] * 3)
    assert Session.from_nwb(store(nwb, "sub-7_ses-2.nwb")).id == "sub-7_ses-2"
    assert Session.from_nwb(store(add_units(lab_file(identifier="a b/c"), region=["a"] * 3))).id == "a-b-c"


def test_the_subject_and_the_papers_come_along(store):
    nwb = add_units(lab_file(related_publications=["doi:10.1/x"]), region=["a"] * 3)
    nwb.subject = Subject(subject_id="7", species="Mus musculus")
    session = Session.from_nwb(store(nwb), id="other")
    assert (session.id, session.subject, session.species, session.citation) == (
        "other",
        "7",
        "Mus musculus",
        "doi:10.1/x",
    )


def test_raw_voltages_are_not_series(store):
    nwb = lab_file()
    add_electrodes(nwb)
    nwb.add_acquisition(
        ElectricalSeries(
            name="raw",
            data=np.zeros((9, 3)),
            rate=1000.0,
            electrodes=nwb.create_electrode_table_region([0, 1, 2], "all"),
        )
    )
    assert not Session.from_nwb(store(add_units(nwb, electrodes=[[0], [1], [2]]))).series


# Bad files


def refused(path, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadRecording, match=said) as caught:
            Session.from_nwb(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_nwb_are_told_apart(make_session, tmp_path):
    refused(tmp_path / "no.nwb", "there is no file")
    refused(tmp_path / "no" / "no.nwb", "the folder .* does not exist")
    (tmp_path / "text.nwb").write_text("hello")
    refused(tmp_path / "text.nwb", "not HDF5")
    with h5py.File(tmp_path / "plain.nwb", "w") as file:
        file["x"] = np.arange(3)
    refused(tmp_path / "plain.nwb", "HDF5 but not NWB")
    refused(make_session().save(tmp_path / "a.h5"), "Session.open")


def test_a_file_without_units_and_dff_says_what_it_has(store):
    refused(
        store(behaviour(lab_file(), TimeSeries(name="x", data=[1.0], unit="m", rate=1.0))),
        "neither a units table nor dF/F.*it has behavior",
    )


def test_units_without_spike_times_say_which_columns_there_are(store):
    nwb = lab_file()
    nwb.add_unit_column("quality", "q")
    nwb.add_unit(quality="good")
    refused(store(nwb), "no column spike_times; it has quality")


def test_an_unknown_units_table_is_answered_with_those_there_are(store):
    path = store(add_units(lab_file(), region=["a"] * 3))
    with pytest.raises(BadRecording, match="there is no table 'multiunit' with spike times; there are units"):
        Session.from_nwb(path, units_table="multiunit")


def test_spikes_that_cannot_be_name_their_unit(store):
    refused(
        store(add_units(lab_file(), [[0.1, 0.2], [0.5, 0.3]])),
        "unit 11 are not sorted .0.3 s follows 0.5 s.; sort them",
    )
    refused(store(add_units(lab_file(), [[0.1, 0.2], [0.5, np.nan]])), "unit 11 has 1 spike times that are not finite")


@pytest.mark.parametrize("factor", [1000.0, 30_000.0])
def test_samples_and_milliseconds_are_refused_with_the_files_name(store, factor):
    rng = np.random.default_rng(0)
    trains = [np.cumsum(0.003 + rng.exponential(0.1, 3000)) * factor for _ in range(3)]
    refused(store(add_units(lab_file(), trains)), "probably samples or milliseconds")


@pytest.mark.parametrize("broken", ["units/spike_times", "units/spike_times_index", "units/region"])
def test_a_missing_column_is_told_in_one_sentence(store, broken):
    path = store(add_units(lab_file(), region=["a"] * 3))
    with h5py.File(path, "r+") as file:
        del file[broken]
    refused(path, "missing|no index|no column|cannot be read")


def test_an_index_that_does_not_fit_is_told_in_one_sentence(store):
    path = store(add_units(lab_file(), region=["a"] * 3))
    with h5py.File(path, "r+") as file:
        file["units/spike_times_index"][:] = [3, 2, 7]
    refused(path, "index does not fit its 7 values")


def test_a_truncated_file_is_told_in_one_sentence(make_session, tmp_path):
    path = make_session().to_nwb(tmp_path / "a.nwb")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "cannot be read|not HDF5|damaged")


# Real recordings

FACTS = {  # units, seconds, regions, series, trials
    "m1_reach.nwb": (171, 777, 1, {"hand_pos": 2, "hand_vel": 2}, 0),
    "jango_20160626.nwb": (96, 600, 1, {"emg": 14, "force": 2}, 150),
    "hc_linear_track.nwb": (31, None, 1, {"position": 2}, 0),
    "human_mtl.nwb": (35, None, 2, {"events": 1, "experiment_ids": 1}, 450),
    "steinmetz/steinmetz_01.nwb": (734, 114 * 0.4, 8, {}, 114),
    "v4/v4_210325.nwb": (50, None, 1, {}, 4840),
    "zf_20151104-f1.nwb": (114, 4245 / 2.1, 1, {"dF/F": 114}, 0),
}


@pytest.mark.filterwarnings("ignore:series .* samples are dropped")
@pytest.mark.parametrize("name", FACTS)
def test_a_real_recording_holds_what_its_description_says(real_data, same, tmp_path, name):
    if not (real_data / name).exists():
        pytest.skip(f"no {name} in {real_data}")
    session = Session.from_nwb(real_data / name)
    units, seconds, regions, series, trials = FACTS[name]
    assert (len(session.units), session.units["region"].nunique(), len(session.trials)) == (units, regions, trials)
    assert {key: s.values.shape[1] for key, s in session.series.items()} == series
    assert seconds is None or session.duration == pytest.approx(seconds, abs=1)
    assert session.species and session.subject and session.id
    same(session, Session.from_nwb(session.to_nwb(tmp_path / "again.nwb")))


@pytest.mark.filterwarnings("ignore")
def test_every_real_recording_opens(real_data):
    files = sorted(real_data.rglob("*.nwb"))
    assert files
    for path in files:
        session = Session.from_nwb(path)
        assert len(session.units) and session.duration > 0, path
        assert (np.diff(session.spike_times) >= 0).all(), path


def test_only_the_trials_of_steinmetz_are_valid(real_data):
    session = Session.from_nwb(real_data / "steinmetz/steinmetz_01.nwb")
    np.testing.assert_allclose(np.diff(session.intervals)[:, 0], 0.4, atol=1e-6)
    assert len(session.intervals) == len(session.trials)


def test_the_pictures_of_v4_belong_to_its_presentations(real_data):
    session = Session.from_nwb(real_data / "v4/v4_210325.nwb")
    assert session.images.shape == (640, 64, 64, 3) and session.images.dtype == np.uint8
    assert sorted(session.stimuli["image"].unique()) == list(range(640)) and len(session.stimuli) == 4840


@pytest.mark.filterwarnings("ignore:series .* samples are dropped")
def test_the_three_tasks_of_the_human_recording_are_kept_apart(real_data):
    trials = Session.from_nwb(real_data / "human_mtl.nwb").trials
    assert trials["table"].value_counts().to_dict() == {
        "encoding_table": 90,
        "recognition_table": 180,
        "timediscrimination_table": 180,
    }
    assert trials["start"].is_monotonic_increasing and trials["Clip_name"].notna().sum() == 90
