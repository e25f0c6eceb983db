"""Visual Coding - Neuropixels: files of its layout with its traps, its pictures, its names in the catalog."""

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.sources import allen_layout as layout
from tests.sources.allen_layout import ids, put_movie, put_scenes
from workbench import open_catalog
from workbench.errors import BadRecording, UnknownName
from workbench.sources import allen

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what a reader leaves out is told
SCRIPT = Path(layout.__file__)
ELECTRODES = "general/extracellular_ephys/electrodes"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file, written by another process: this one has never heard of the extension's classes."""
    path = tmp_path_factory.mktemp("allen") / "session_715093703.nwb"
    subprocess.run([sys.executable, SCRIPT, "write", path], check=True)
    return path


@pytest.fixture
def file(whole, tmp_path):
    """A copy that a test may change, where allensdk's cache and the public bucket would have it."""
    path = tmp_path / "root" / "session_715093703" / whole.name
    path.parent.mkdir(parents=True)
    return Path(shutil.copy(whole, path))


@pytest.fixture(scope="module")
def session(whole):
    return allen.read(whole)


def of(session, unit) -> np.ndarray:
    row = session.units.index[session.units["id"] == unit][0]
    return session.spike_times[session.spike_units == row]


# Units


def test_only_units_that_pass_every_filter_are_kept_with_exactly_their_spikes(session):
    assert session.units["id"].tolist() == ids(layout.KEPT)
    for unit, row in zip(session.units["id"], layout.KEPT, strict=True):
        np.testing.assert_array_equal(of(session, unit), layout.trains()[row])


def test_a_unit_lies_where_its_peak_channel_does(session):
    assert session.units["region"].tolist() == ["VISp", "LGd", "CA1"]
    assert session.units["probe"].tolist() == ["probeA", "probeA", "probeB"]
    assert session.units["channel"].tolist() == [0, 10, 50]
    assert session.units["depth"].tolist() == [20, 40, 120] and session.units["x"].tolist() == [8000, 8001, 8005]


@pytest.mark.parametrize(
    ("option", "value", "more"),
    [
        ("quality", None, [1]),
        ("max_isi_violations", None, [3]),
        ("max_amplitude_cutoff", None, [4, 5]),
        ("max_amplitude_cutoff", 0.2, [4]),
        ("min_presence_ratio", None, [6]),
        ("valid_channels", False, [7]),
        ("in_brain", False, [8, 9]),
    ],
)
def test_each_filter_is_a_parameter_of_its_own(whole, option, value, more):
    assert allen.read(whole, **{option: value}).units["id"].tolist() == ids(sorted([*layout.KEPT, *more]))


def test_units_outside_the_brain_have_no_region_however_the_file_says_it(whole):
    units = allen.read(whole, in_brain=False).units.set_index("id")
    assert units.loc[ids([8, 9]), "region"].tolist() == ["unknown", "unknown"]


def test_how_many_units_were_kept_of_how_many_and_why_is_told(whole):
    told = r"3 of 11 units kept; .*amplitude_cutoff 2, presence_ratio 1, outside the brain 2, invalid channel 1"
    with pytest.warns(UserWarning, match=told):
        session = allen.read(whole)
    assert "3 of 11 units kept" in session.description


def test_filters_that_nothing_passes_and_unknown_probes_are_told(whole):
    with pytest.raises(BadRecording, match=r"session_715093703\.nwb: no unit passes.*loosen"):
        allen.read(whole, min_presence_ratio=1.1)
    with pytest.raises(UnknownName, match=r"no probe 'probeZ'.*probeA"):
        allen.read(whole, probes=["probeZ"])


def test_channel_numbers_are_found_under_both_names_that_writers_gave_them(file):
    with h5py.File(file, "r+") as f:
        table = f[ELECTRODES]
        table.move("local_index", "probe_channel_number")
        table.attrs["colnames"] = ["probe_channel_number" if c == "local_index" else c for c in table.attrs["colnames"]]
    assert allen.read(file).units["channel"].tolist() == [0, 10, 50]


def test_amplitudes_waveforms_and_the_spikes_of_other_units_are_never_read(file, session, same, touched):
    with h5py.File(file, "r+") as f:
        ends = f["units/spike_times_index"][:].astype(int)
        for row in set(range(len(ends))) - set(layout.KEPT):
            f["units/spike_times"][ends[row - 1] : ends[row]] = np.nan  # read, they would be refused
        assert {"spike_amplitudes", "waveform_mean"} <= set(f["units"])
    touched.clear()
    again = allen.read(file)
    same(session, again)
    assert "spike_times" in touched and not {"spike_amplitudes", "waveform_mean"} & {*touched, *again.units}


# Stimuli


def test_presentations_of_all_stimuli_are_one_table_in_time_order(session):
    shown = session.stimuli
    assert shown["start"].is_monotonic_increasing
    counts = shown["stimulus"].value_counts().to_dict()
    assert counts["natural_scenes"] == 10 and counts["gabors"] == 3 and counts["spontaneous"] == 1


def test_a_frame_is_a_picture_and_a_blank_is_none(session):
    scenes = session.stimuli.query("stimulus == 'natural_scenes'")
    assert scenes["image"].tolist() == [2, 0, -1, 1, 3, 2, -1, 3, 0, 1] and scenes["image"].dtype == np.int64
    movie = session.stimuli.query("stimulus == 'natural_movie_one'")
    assert (movie["image"] == -1).all() and movie["frame"].tolist()[:6] == [0, 1, 2, 3, 4, 0]


def test_the_pictures_of_a_movie_can_be_asked_for_instead(whole):
    shown = allen.read(whole, images="natural_movie_one").stimuli
    assert (shown.query("stimulus == 'natural_scenes'")["image"] == -1).all()
    assert shown.query("stimulus == 'natural_movie_one'")["image"].max() == 4
    with pytest.raises(UnknownName, match=r"no pictures 'natural_movie_three'.*natural_movie_one"):
        allen.read(whole, images="natural_movie_three")


def test_parameters_written_as_text_become_numbers_and_null_is_missing(session):
    of = lambda name: session.stimuli[session.stimuli["stimulus"] == name]
    gratings = of("static_gratings")
    np.testing.assert_array_equal(gratings["orientation"], [30, np.nan, 60])
    np.testing.assert_array_equal(gratings["spatial_frequency"], [0.04, np.nan, 0.32])
    assert of("drifting_gratings")["phase"].tolist() == [5308.98333333] * 2
    assert of("gabors")["size"].tolist() == [20] * 3
    assert of("flashes")["color"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "text, number", [("0.25", 0.25), ("[250.0, 250.0]", 250), ("(2, 2)", 2), ("[1.0, 2.0]", None), ("a", None)]
)
def test_text_is_a_number_only_where_it_says_one(text, number):
    assert allen._number(text) == number


# Invalid times


def test_invalid_times_are_cut_out_where_they_concern_the_spikes(session):
    inside = lambda t: ((session.intervals[:, 0] <= t) & (t < session.intervals[:, 1])).any()
    assert not inside(20.5) and not inside(60.5)  # a probe of ours, all probes
    assert inside(25.5) and inside(40.1) and inside(70.5)  # another probe, long frames, the laser


def test_without_the_probe_its_invalid_times_are_valid(whole):
    session = allen.read(whole, probes=["probeA"])
    assert session.units["id"].tolist() == ids([0, 2])
    assert session.intervals[0, 0] < 20 and session.intervals[0, 1] == 60


def test_presentations_in_invalid_times_are_left_out_and_counted(whole, session):
    shown = session.stimuli
    assert shown.query("stimulus == 'flashes'")["start"].tolist() == [58, 62]
    assert not ((shown["start"] < 40.19) & (shown["stop"] > 40.05)).any()
    with pytest.warns(UserWarning, match=r"6 of 82 presentations touch invalid times"):
        allen.read(whole)


def test_a_file_whose_presentations_are_all_left_out_or_gone_still_opens(file):
    with h5py.File(file, "r+") as f:
        f["intervals/invalid_times/start_time"][3], f["intervals/invalid_times/stop_time"][3] = 0.0, 63.0
    with pytest.warns(UserWarning, match="82 of 82 presentations"):
        session = allen.read(file)
    assert len(session.stimuli) == 0 and session.images is None
    with h5py.File(file, "r+") as f:
        for name in [n for n in f["intervals"] if n.endswith("_presentations")]:
            del f["intervals"][name]
    assert len(allen.read(file).stimuli) == 0


def test_a_presentation_without_an_end_in_invalid_times_is_left_out_too(file):
    with h5py.File(file, "r+") as f:
        f["intervals/flashes_presentations/stop_time"][:] = np.nan
    shown = allen.read(file).stimuli.query("stimulus == 'flashes'")
    assert 60.5 not in shown["start"].tolist() and 62 in shown["start"].tolist()


def test_a_file_without_invalid_times_is_valid_throughout(file):
    with h5py.File(file, "r+") as f:
        del f["intervals/invalid_times"]
    session = allen.read(file)
    assert len(session.intervals) == 1 and len(session.stimuli) == 82


# Behaviour


def test_running_speed_is_read_and_its_end_times_are_no_series(session):
    starts, _, speed = layout.running()
    running = session.get_series("running_speed")
    np.testing.assert_array_equal(running.times, starts)
    np.testing.assert_array_equal(running.values[:, 0], speed)
    assert running.unit == "cm/s" and set(session.series) == {"running_speed", "pupil", "pupil_area", "gaze"}


def test_the_pupil_has_whole_axes_and_gaze_is_x_then_y(whole, session):
    with h5py.File(whole) as f:
        fits, gaze = f["processing/eye_tracking/pupil_ellipse_fits"], f["processing/filtered_gaze_mapping"]
        pupil = session.get_series("pupil")
        np.testing.assert_array_equal(pupil.values[:, 2], 2 * fits["width"][:])
        np.testing.assert_array_equal(pupil.values[:, 0], fits["center_x"][:])
        np.testing.assert_array_equal(pupil.times, f["processing/raw_gaze_mapping/eye_area/timestamps"][:])
        np.testing.assert_array_equal(session.get_series("gaze").values[:, 0], gaze["screen_coordinates/data"][:, 1])
    assert np.isnan(session.get_series("pupil_area").values[30:40]).all()  # blinks stay missing


@pytest.mark.parametrize("gone", ["raw_gaze_mapping filtered_gaze_mapping eye_tracking", "raw_gaze_mapping", "running"])
def test_what_was_not_recorded_is_absent_and_never_zero(file, gone):
    with h5py.File(file, "r+") as f:
        for module in gone.split():
            del f["processing"][module]
    left = {"pupil", "pupil_area", "gaze"} if gone == "running" else {"running_speed"}
    assert set(allen.read(file).series) == left


def test_an_eye_whose_times_are_lost_costs_its_series_and_no_spikes(file, session):
    with h5py.File(file, "r+") as f:
        f["processing/raw_gaze_mapping/eye_area/timestamps"][...] = np.nan
    with pytest.warns(UserWarning, match=r"left out the series pupil \(2,940 of 2,940 times do not increase"):
        again = allen.read(file)
    assert set(again.series) == {"running_speed"} and len(again.spike_times) == len(session.spike_times)
    with h5py.File(file, "r+") as f:
        raw = f["processing/raw_gaze_mapping/eye_area"]
        del raw["timestamps"], raw["data"]
        raw["data"] = np.zeros(2000)
        raw["timestamps"] = np.arange(2000) / 30
    with pytest.warns(UserWarning, match=r"series gaze \(2,940 samples for 2,000 times"):
        assert set(allen.read(file).series) == {"running_speed"}


# Pictures


def test_natural_scenes_are_found_beside_the_sessions_folder(file):
    scenes = put_scenes(file.parents[1])
    np.testing.assert_array_equal(allen.read(file).images, scenes)


def test_a_movie_is_a_numpy_array_under_the_name_h5(file, tmp_path):
    frames = put_movie(tmp_path / "elsewhere")
    session = allen.read(file, images="natural_movie_one", templates=tmp_path / "elsewhere")
    np.testing.assert_array_equal(session.images, frames)


def test_pictures_that_are_not_there_are_told_with_the_way_to_get_them(file):
    with pytest.warns(UserWarning, match=r"without the pictures of natural_scenes.*allensdk_fetch"):
        session = allen.read(file)
    assert session.images is None and session.stimuli["image"].max() == 3
    put_scenes(file.parents[1], n=3)  # one is still missing
    with pytest.warns(UserWarning, match="not all of .*natural_scene_3"):
        assert allen.read(file).images is None


def test_damaged_pictures_are_told_by_name(file):
    put_scenes(file.parents[1])
    session = allen.read(file)
    (file.parents[1] / "natural_scene_templates" / "natural_scene_2.tiff").write_bytes(b"<html>not found</html>")
    with pytest.raises(BadRecording, match=r"natural_scene_2\.tiff cannot be read as a picture.*fetch it again"):
        _ = session.images
    put_movie(file.parents[1], frames=3)
    with pytest.raises(BadRecording, match=r"\(3, 4, 8\), and the session shows 5"):
        _ = allen.read(file, images="natural_movie_one").images
    (file.parents[1] / "natural_movie_templates" / "natural_movie_1.h5").write_bytes(b"\x89HDF\r\n\x1a\n" * 9)
    with pytest.raises(BadRecording, match="is not the numpy array"):
        _ = allen.read(file, images="natural_movie_one").images


# Files that are something else


def test_a_file_of_lfp_or_of_another_layout_is_told_what_it_lacks(file, make_session, tmp_path):
    with h5py.File(file, "r+") as f:
        del f["units"]
    with pytest.raises(BadRecording, match=r"it has no units \(NWB 2\..*, read by pynwb 4.*LFP"):
        allen.read(file)
    other = make_session().to_nwb(tmp_path / "other.nwb")
    with pytest.raises(BadRecording, match=r"other\.nwb: not a session file of Visual Coding.*units/peak_channel_id"):
        allen.read(other)


def test_half_a_file_is_told(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BadRecording, match=r"session_715093703\.nwb"):
        allen.read(file)


# The catalog


def test_both_stimulus_sets_are_in_the_catalog_with_every_session_and_no_sample():
    catalog = open_catalog()
    for name, n in (("allen_neuropixels", 32), ("allen_functional_connectivity", 26)):
        assert len(catalog.sessions(name)) == n == catalog[name].n_sessions
        assert catalog[name].loader == "allen" and catalog[name].sample is None
    assert not set(catalog.sessions("allen_neuropixels")) & set(catalog.sessions("allen_functional_connectivity"))


def test_a_session_opens_by_name_and_again_when_its_pictures_have_come(file, session, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    root = file.parents[1].rename(tmp_path / "allen_neuropixels")
    first = open_catalog().open("allen_neuropixels", "session_715093703")
    np.testing.assert_array_equal(first.spike_times, session.spike_times)
    assert first.images is None and "Siegle" in first.citation and "terms" in first.license
    scenes = put_scenes(root)
    np.testing.assert_array_equal(open_catalog().open("allen_neuropixels").images, scenes)
