"""The benchmark's files in their true layout: train with behaviour in pieces and held-out units, test with neither."""

from datetime import UTC, datetime

import h5py
import numpy as np
import pytest
from pynwb import NWBHDF5IO, NWBFile, TimeSeries

from workbench import open_catalog
from workbench.batch import Reader
from workbench.errors import BadRecording, DatasetNotAvailable, ManualDownload
from workbench.sources import nlb
from workbench.sources.simulated import reach_sim

TRIALS = np.array([[0.0, 1.2], [1.7, 2.9], [3.5, 4.5], [4.5, 5.4]])     # gaps of 0.5 and 0.6 s, and none


def maze(path, *, train=True, ids=(1001, 1002, 2001, 2003), jitter=0.0):
    """A file of MC_Maze's layout; the test file as the benchmark publishes it."""
    rng = np.random.default_rng(0)
    file = NWBFile("delayed reaching", "7f1c9a1e-2f7d-4a83-a7d8-1234567890ab", datetime(2009, 9, 28, tzinfo=UTC))
    device = file.create_device("array")
    file.add_electrode_column("label", "label")
    for array in ("M1", "PMd"):
        group = file.create_electrode_group(f"electrode_group_{array}", "Utah", array, device)
        for k in range(2):
            file.add_electrode(location=array, group=group, label=str(k))
    columns = {"split": "which part"}
    if train:
        columns |= {"go_cue_time": "s", "move_onset_time": "s", "maze_id": "maze", "success": "rewarded"}
        file.add_unit_column("heldout", "held out")
    for name, text in columns.items():
        file.add_trial_column(name, text)
    if train:
        file.add_trial_column("target_pos", "of every target", index=True)
    for k, (start, stop) in enumerate(TRIALS):
        more = {"go_cue_time": start + 0.2, "move_onset_time": start + 0.4, "maze_id": k, "success": True,
                "target_pos": rng.normal(size=(1 + k % 3, 2))} if train else {}
        file.add_trial(start_time=start, stop_time=stop, split=("train" if k % 2 else "val") if train else "test",
                       **more)
    for k, unit in enumerate(ids):
        spikes = np.sort(np.concatenate([rng.uniform(a, b, 40) for a, b in TRIALS]))
        more = {"heldout": k % 2 == 1} if train else {}
        file.add_unit(id=unit, spike_times=spikes, obs_intervals=TRIALS, electrodes=[k], **more)
    if train:
        times = np.concatenate([np.arange(round(a * 1000), round(b * 1000)) / 1000 for a, b in TRIALS])
        times[len(times) // 2] += jitter
        behavior = file.create_processing_module("behavior", "behaviour")
        for name, unit in (("hand_pos", "m"), ("hand_vel", "m/s")):
            behavior.add(TimeSeries(name=name, data=1000 * np.stack([times, -times], 1), timestamps=times, unit=unit,
                                    conversion=1e-3))
    with NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


@pytest.fixture
def train(tmp_path):
    return maze(tmp_path / "sub-Jenkins_ses-small_desc-train_behavior+ecephys.nwb")


pytestmark = pytest.mark.filterwarnings("ignore:columns with lists or references")


def test_behaviour_lies_on_a_regular_grid_with_nan_in_the_gaps_between_trials(train):
    session = nlb.read(train)
    velocity = session.get_series("hand_vel")
    assert velocity.rate == 1000 and len(velocity.times) == 5400 and velocity.unit == "m/s"
    inside = np.isfinite(velocity.values).all(1)
    expected = np.zeros(5400, bool)
    for start, stop in TRIALS:
        expected[round(start * 1000):round(stop * 1000)] = True
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_allclose(velocity.values[inside, 0], velocity.times[inside], atol=1e-9)   # nothing was moved


def test_held_out_units_splits_and_observed_time_are_kept(train):
    session = nlb.read(train)
    assert session.id == "Jenkins_ses-small_desc-train"
    assert session.units["heldout"].tolist() == [False, True, False, True]
    assert len(session.select("not heldout").units) == 2
    np.testing.assert_allclose(session.trials.query("split == 'val'")["start"], TRIALS[::2, 0])
    assert session.trials["maze_id"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(session.intervals, [[0, 1.2], [1.7, 2.9], [3.5, 5.4]])


@pytest.mark.parametrize("written", [[b"False", b"True", b"False", b"True"], np.array([0, 1, 0, 1], np.int8),
                                     [np.nan, 1.0, 0.0, 1.0]])
def test_held_out_is_the_same_however_it_is_written(train, written):
    with h5py.File(train, "a") as file:
        about = dict(file["units/heldout"].attrs)
        del file["units/heldout"]
        column = file["units"].create_dataset("heldout", data=written)
        for name, value in about.items():
            column.attrs[name] = value
    assert nlb.read(train).units["heldout"].tolist() == [False, True, False, True]


def test_regions_come_from_the_electrodes_or_where_told_from_the_ids(train):
    assert nlb.read(train).units["region"].tolist() == ["M1", "M1", "PMd", "PMd"]
    assert nlb.read(train, arrays=["PMd", "M1"]).units["region"].tolist() == ["PMd", "PMd", "M1", "M1"]
    with pytest.raises(BadRecording, match=r"unit '2001' belongs to none of the arrays PMd.*leave `arrays` out"):
        nlb.read(train, arrays=["PMd"])


def test_the_test_file_has_spikes_and_nothing_to_score_with(tmp_path):
    session = nlb.read(maze(tmp_path / "sub-Jenkins_ses-small_desc-test_ecephys.nwb", train=False))
    assert session.id == "Jenkins_ses-small_desc-test"
    assert not session.series and not session.units["heldout"].any() and len(session.spike_times) == 640
    assert set(session.trials["split"]) == {"test"}


def test_only_the_series_asked_for_are_read(train):
    assert list(nlb.read(train, series=["hand_vel"]).series) == ["hand_vel"]


def test_behaviour_of_another_clock_is_refused(tmp_path):
    path = maze(tmp_path / "sub-X_desc-train_behavior+ecephys.nwb", jitter=0.0004)
    with pytest.raises(BadRecording, match=r"series 'hand_pos' lies on no regular grid of 0.001 s.*loader nwb"):
        nlb.read(path)


def test_a_window_of_the_grid_holds_only_measured_samples(train):
    batch = Reader([nlb.read(train)], ("hand_vel",)).read(np.array([0]), np.array([1.0]), 1.0)
    times = batch.targets["hand_vel"].times.numpy() + 1.0
    assert len(times) == 500 and ((times < 1.2) | (times >= 1.6999)).all()


# By name

BENCHMARK = ("mc_maze", "mc_maze_large", "mc_maze_medium", "mc_maze_small", "mc_rtt", "area2_bump", "dmfc_rsg")
OTHER = ("falcon_m1", "falcon_m2", "falcon_h1", "falcon_h2", "perich_miller", "tvsd", "tvsd_trials")
BY_HAND = ("sensorium", "crcns_pvc11", "crcns_pvc8", "brainsets")


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_file_that_the_user_has_opens_by_name_with_the_regions_of_the_benchmarks_page(nothing_here):
    folder = nothing_here / "mc_maze_small" / "sub-Jenkins"
    folder.mkdir(parents=True)
    maze(folder / "sub-Jenkins_ses-small_desc-train_behavior+ecephys.nwb")
    session = open_catalog().open("mc_maze_small")
    assert session.units["region"].tolist() == ["PMd", "PMd", "M1", "M1"]
    assert session.get_series("hand_vel").rate == 1000


@pytest.mark.parametrize("name", BENCHMARK + OTHER)
def test_a_dataset_that_is_not_here_says_where_it_was_looked_for_and_how_to_get_it(nothing_here, name):
    text = f"'{name}'.* is not on this computer .*data/{name} and .*prepare {name}"
    with pytest.raises(DatasetNotAvailable, match=text):
        open_catalog().open(name)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_dataset_for_the_hand_gives_its_address_and_steps(nothing_here, name):
    with pytest.raises(ManualDownload, match=f"'{name}'.* is not on this computer .*by hand from https://.*: "):
        open_catalog().open(name)


def test_what_may_not_be_passed_on_has_no_sample():
    for dataset in open_catalog().values():
        assert dataset.redistribution == "allowed" or dataset.sample is None, dataset.id


def test_what_brainsets_prepared_opens_by_name(nothing_here):
    torch_brain = pytest.importorskip("torch_brain.data")
    made = reach_sim(0, seconds=6, units=8)
    folder = nothing_here / "brainsets" / "pei_pandarinath_nlb_2021"
    folder.mkdir(parents=True)
    spikes = torch_brain.IrregularTimeSeries(timestamps=made.spike_times, unit_index=made.spike_units.astype(np.int64),
                                             domain="auto")
    data = torch_brain.Data(spikes=spikes, domain=spikes.domain, session=torch_brain.Data(id="jenkins_maze_train"),
                            units=torch_brain.ArrayDict(id=made.units["id"].to_numpy("U")))
    with h5py.File(folder / "jenkins_maze_train.h5", "w") as file:
        data.to_hdf5(file)
    session = open_catalog().open("brainsets", "jenkins_maze_train")
    assert (session.id, session.dataset) == ("jenkins_maze_train", "brainsets")
    np.testing.assert_array_equal(session.spike_times, made.spike_times)
