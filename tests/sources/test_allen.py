"""Visual Coding - Neuropixels: files of its layout, with its traps, and the same answers as allensdk's."""

import json
import shutil
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.sources import allen_layout as layout
from workbench import open_catalog
from workbench.errors import BadRecording, UnknownName
from workbench.session import Session
from workbench.sources import allen

SCRIPT = Path(layout.__file__)
FETCH = Path(allen.__file__).parents[1] / "scripts" / "allensdk_fetch.py"
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
    return quiet(whole)


def quiet(path, **options) -> Session:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return allen.read(path, **options)


def ids(rows) -> list[str]:
    return [str(layout.unit_id(row)) for row in rows]


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
    "option, value, more",
    [
        ("quality", None, [1]),
        ("max_isi_violations", None, [3]),
        ("max_isi_violations", 0.6, [3]),
        ("max_amplitude_cutoff", None, [4, 5]),
        ("max_amplitude_cutoff", 0.2, [4]),
        ("min_presence_ratio", None, [6]),
        ("valid_channels", False, [7]),
        ("in_brain", False, [8, 9]),
        ("probes", ["probeA", "probeB"], []),
    ],
)
def test_each_filter_is_a_parameter_of_its_own(whole, option, value, more):
    assert quiet(whole, **{option: value}).units["id"].tolist() == ids(sorted([*layout.KEPT, *more]))


def test_units_outside_the_brain_have_no_region_however_the_file_says_it(whole):
    units = quiet(whole, in_brain=False).units.set_index("id")
    assert units.loc[ids([8, 9]), "region"].tolist() == ["unknown", "unknown"]


def test_how_many_units_were_kept_of_how_many_and_why_is_told(whole):
    told = r"3 of 11 units kept; .*amplitude_cutoff 2, presence_ratio 1, outside the brain 2, invalid channel 1"
    with pytest.warns(UserWarning, match=told):
        session = allen.read(whole)
    assert "3 of 11 units kept" in session.description


def test_filters_that_nothing_passes_and_unknown_probes_are_told(whole):
    with pytest.raises(BadRecording, match=r"session_715093703\.nwb: no unit passes.*loosen"):
        quiet(whole, min_presence_ratio=1.1)
    with pytest.raises(UnknownName, match=r"no probe 'probeZ'.*probeA"):
        quiet(whole, probes=["probeZ"])


def test_channel_numbers_are_found_under_both_names_that_writers_gave_them(file):
    with h5py.File(file, "r+") as f:
        table = f[ELECTRODES]
        table.move("local_index", "probe_channel_number")
        table.attrs["colnames"] = ["probe_channel_number" if c == "local_index" else c for c in table.attrs["colnames"]]
    assert quiet(file).units["channel"].tolist() == [0, 10, 50]


def test_amplitudes_and_waveforms_are_never_read(file, session, same):
    with h5py.File(file, "r+") as f:
        for name in ("spike_amplitudes", "waveform_mean"):
            f["units"][name][...] = np.nan  # were they read, something would differ
        assert {"spike_amplitudes", "waveform_mean"} <= set(f["units"])
    again = quiet(file)
    same(session, again)
    assert not {"spike_amplitudes", "waveform_mean"} & set(again.units)


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
    shown = quiet(whole, images="natural_movie_one").stimuli
    assert (shown.query("stimulus == 'natural_scenes'")["image"] == -1).all()
    assert shown.query("stimulus == 'natural_movie_one'")["image"].max() == 4
    with pytest.raises(UnknownName, match=r"no pictures 'natural_movie_three'.*natural_movie_one"):
        quiet(whole, images="natural_movie_three")


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
    session = quiet(whole, probes=["probeA"])
    assert session.units["id"].tolist() == ids([0, 2])
    assert session.intervals[0, 0] < 20 and session.intervals[0, 1] == 60


def test_presentations_in_invalid_times_are_left_out_and_counted(whole, session):
    shown = session.stimuli
    assert shown.query("stimulus == 'flashes'")["start"].tolist() == [58, 62]
    assert not ((shown["start"] < 40.2) & (shown["stop"] > 40.05)).any()
    with pytest.warns(UserWarning, match=r"6 of 82 presentations touch invalid times"):
        allen.read(whole)


def test_a_file_without_invalid_times_is_valid_throughout(file):
    with h5py.File(file, "r+") as f:
        del f["intervals/invalid_times"]
    session = quiet(file)
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
    assert set(quiet(file).series) == left


# Pictures


def put_scenes(root: Path, n: int = 4, shape=(6, 8)) -> np.ndarray:
    folder = root / "natural_scene_templates"
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 255, (n, *shape), np.uint8)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"natural_scene_{i}.tiff")
    return pictures


def put_movie(root: Path, frames: int = 5) -> np.ndarray:
    folder = root / "natural_movie_templates"
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(1).integers(0, 255, (frames, 4, 8), np.uint8)
    with open(folder / "natural_movie_1.h5", "wb") as f:
        np.save(f, pictures)
    return pictures


def test_natural_scenes_are_found_beside_the_sessions_folder(file):
    scenes = put_scenes(file.parents[1])
    np.testing.assert_array_equal(quiet(file).images, scenes)


def test_a_movie_is_a_numpy_array_under_the_name_h5(file, tmp_path):
    frames = put_movie(tmp_path / "elsewhere")
    session = quiet(file, images="natural_movie_one", templates=tmp_path / "elsewhere")
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
    session = quiet(file)
    (file.parents[1] / "natural_scene_templates" / "natural_scene_2.tiff").write_bytes(b"<html>not found</html>")
    with pytest.raises(BadRecording, match=r"natural_scene_2\.tiff cannot be read as a picture.*fetch it again"):
        _ = session.images
    put_movie(file.parents[1], frames=3)
    with pytest.raises(BadRecording, match=r"\(3, 4, 8\), and the session shows 5"):
        _ = quiet(file, images="natural_movie_one").images
    (file.parents[1] / "natural_movie_templates" / "natural_movie_1.h5").write_bytes(b"\x89HDF\r\n\x1a\n" * 9)
    with pytest.raises(BadRecording, match="is not the numpy array"):
        _ = quiet(file, images="natural_movie_one").images


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = open_catalog().open("allen_neuropixels", "session_715093703")
        np.testing.assert_array_equal(first.spike_times, session.spike_times)
        assert first.images is None and "Siegle" in first.citation and "terms" in first.license
        scenes = put_scenes(root)
        np.testing.assert_array_equal(open_catalog().open("allen_neuropixels").images, scenes)


# allensdk itself, in its own environment


@pytest.fixture(scope="module")
def uv():
    """Runs a script in the environment that its head asks for."""
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed, and allensdk needs an environment of its own")

    def run(script: Path, *args) -> subprocess.CompletedProcess:
        command = [found, "run", "--no-project", "--script", script, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True)

    made = run(SCRIPT)
    if "IndexError" not in made.stderr:  # the script asks for an argument once it runs
        pytest.skip(f"allensdk's environment cannot be made here: {made.stderr.strip()[-300:]}")
    return run


@pytest.mark.slow
def test_allensdk_and_our_reader_agree_on_units_spikes_stimuli_and_running(uv, tmp_path):
    path = tmp_path / "session_715093703.nwb"
    for command in (("write", path), ("read", path, tmp_path)):
        done = uv(SCRIPT, *command)
        assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "versions.json").read_text())["allensdk"] == "2.16.2"
    ours = quiet(path)

    units = pd.read_csv(tmp_path / "units.csv", index_col="unit_id")
    mine = ours.units.set_index(ours.units["id"].astype(int))
    assert set(units.index) == set(mine.index)
    mine = mine.loc[units.index]
    assert mine["region"].tolist() == units["structure_acronym"].tolist()
    assert mine["probe"].tolist() == units["probe_description"].tolist()
    for own, theirs in (("depth", "probe_vertical_position"), ("channel", "probe_channel_number"), ("snr", "snr"),
                        ("x", "anterior_posterior_ccf_coordinate"), ("firing_rate", "firing_rate")):
        np.testing.assert_allclose(mine[own], units[theirs], rtol=1e-12)
    spikes = np.load(tmp_path / "spikes.npz")
    assert set(spikes) == set(ours.units["id"])
    for unit in spikes:
        np.testing.assert_array_equal(of(ours, unit), spikes[unit])

    theirs = pd.read_csv(tmp_path / "stimuli.csv", na_values=["null"])
    spoiled = (theirs["start_time"] < 61) & (theirs["stop_time"] > 60)  # allensdk leaves out only long frames
    theirs = theirs[(theirs["stimulus_name"] != "invalid_presentation") & ~spoiled].reset_index(drop=True)
    assert len(theirs) == len(ours.stimuli) == 76
    assert theirs["stimulus_name"].tolist() == ours.stimuli["stimulus"].tolist()
    for own, name in (("start", "start_time"), ("stop", "stop_time"), *((c, c) for c in (
            "orientation", "spatial_frequency", "temporal_frequency", "contrast", "x_position", "y_position",
            "color"))):
        np.testing.assert_array_equal(ours.stimuli[own].astype(float), theirs[name].astype(float), err_msg=own)
    np.testing.assert_array_equal(ours.stimuli["frame"], theirs["frame"].fillna(-1))

    running = pd.read_csv(tmp_path / "running.csv")
    np.testing.assert_allclose(ours.series["running_speed"].times, running["start_time"], rtol=1e-14)
    np.testing.assert_allclose(ours.series["running_speed"].values[:, 0], running["velocity"], rtol=1e-14)
    pupil = pd.read_csv(tmp_path / "pupil.csv")
    columns = ["pupil_center_x", "pupil_center_y", "pupil_width", "pupil_height"]
    np.testing.assert_allclose(ours.series["pupil"].times, pupil["Time (s)"], rtol=1e-14)
    np.testing.assert_allclose(ours.series["pupil"].values, pupil[columns], rtol=1e-14)
    gaze = pd.read_csv(tmp_path / "gaze.csv")[["filtered_screen_coordinates_x_cm", "filtered_screen_coordinates_y_cm"]]
    np.testing.assert_allclose(ours.series["gaze"].values, gaze, rtol=1e-14)


class Warehouse(BaseHTTPRequestHandler):
    """As much of the institute's server as the fetching of files asks: where a file is, and the file."""

    def __init__(self, root: Path, cut: set[str], *args):
        self.root, self.cut = root, cut
        super().__init__(*args)

    def do_GET(self):
        asked = unquote(self.path)
        if "query.json" in asked:
            rows = [{"id": 1, "download_link": "files/session.nwb", "path": "session.nwb"}]
            if "EcephysNwb" not in asked:
                rows = [{"id": i, "download_link": f"files/{name}", "path": f"/external/{name}"}
                        for i, name in enumerate(["natural_movie_1.npy", *(f"{n}.tiff" for n in range(118))])]
            body = json.dumps({"success": True, "msg": rows, "num_rows": len(rows), "total_rows": len(rows)}).encode()
        else:
            body = (self.root / Path(asked).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if Path(asked).name in self.cut:
            self.cut.remove(Path(asked).name)
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def project_tables(root: Path) -> None:
    """The four tables of the project and the metrics of the session, as allensdk keeps them."""
    root.mkdir(parents=True)
    write = lambda name, index, **columns: pd.DataFrame(columns).rename_axis(index).to_csv(root / name)
    session = layout.SESSION
    frame = lambda index, **columns: pd.DataFrame(columns, index=pd.Index(index, name="id"))
    frame([session], session_type=["brain_observatory_1.1"], genotype=["wt"], specimen_id=[1], published_at=["2019"],
          age_in_days=[118.0], sex=["M"], has_nwb=[True], isi_experiment_id=[1],
          date_of_acquisition=["2019"]).to_csv(root / "sessions.csv")
    frame([1000, 1001], ecephys_session_id=[session] * 2, name=["probeA", "probeB"], phase=["3a"] * 2,
          sampling_rate=[30000.0] * 2, lfp_sampling_rate=[1250.0] * 2, has_lfp_data=[True] * 2,
          lfp_temporal_subsampling_factor=[2.0] * 2, air_channel_index=[1] * 2,
          surface_channel_index=[1] * 2).to_csv(root / "probes.csv")
    n = len(layout.CHANNELS)
    frame([layout.channel_id(i) for i in range(n)],
          ecephys_probe_id=[1000 + (probe == "probeB") for probe, _, _ in layout.CHANNELS],
          local_index=range(n), probe_horizontal_position=[43] * n, probe_vertical_position=range(n),
          anterior_posterior_ccf_coordinate=[1.0] * n, dorsal_ventral_ccf_coordinate=[1.0] * n,
          left_right_ccf_coordinate=[1.0] * n, ecephys_structure_id=[385.0] * n,
          ecephys_structure_acronym=["VISp"] * n).to_csv(root / "channels.csv")
    units = [layout.unit_id(i) for i in range(len(layout.UNITS))]
    frame(units, ecephys_channel_id=[layout.channel_id(u[0]) for u in layout.UNITS],
          quality=[u[1] for u in layout.UNITS], isi_violations=[u[2] for u in layout.UNITS],
          amplitude_cutoff=[u[3] for u in layout.UNITS], presence_ratio=[u[4] for u in layout.UNITS],
          local_index=range(len(units))).to_csv(root / "units.csv")
    (root / f"session_{session}").mkdir()
    write(f"session_{session}/session_{session}_analysis_metrics.csv", "ecephys_unit_id", pref_ori_sg=[0.0])


@pytest.mark.slow
def test_the_fetch_script_fills_a_folder_that_opens_by_name_and_survives_a_cut_download(uv, tmp_path, monkeypatch):
    served, root = tmp_path / "served", tmp_path / "data" / "allen_neuropixels"
    served.mkdir()
    done = uv(SCRIPT, "write", served / "session.nwb")
    assert done.returncode == 0, done.stderr[-2000:]
    project_tables(root)
    frames = put_movie(served)
    (served / "natural_movie_templates" / "natural_movie_1.h5").rename(served / "natural_movie_1.npy")
    scenes = put_scenes(served, n=118)
    for i in range(118):
        (served / "natural_scene_templates" / f"natural_scene_{i}.tiff").rename(served / f"{i}.tiff")

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Warehouse, served, {"session.nwb", "7.tiff"}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    everything = [root, "--session", layout.SESSION, "--scenes", "--movie", 1, "--server", address]
    done = uv(FETCH, *everything)
    assert done.returncode == 0, done.stderr[-2000:]
    server.shutdown()
    server.server_close()
    assert not list(root.rglob("*.part"))
    assert (root / "session_715093703" / "session_715093703.nwb").read_bytes() == (served / "session.nwb").read_bytes()

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_DATA", str(root.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = open_catalog().open("allen_neuropixels", "session_715093703")
    assert session.units["id"].tolist() == ids(layout.KEPT)
    np.testing.assert_array_equal(session.images[:4], scenes[:4])
    movie = quiet(root / "session_715093703" / "session_715093703.nwb", images="natural_movie_one")
    np.testing.assert_array_equal(movie.images, frames)

    began = time.monotonic()
    done = uv(FETCH, *everything)  # all of it is here: nobody is asked
    assert done.returncode == 0 and time.monotonic() - began < 120
    done = uv(FETCH, tmp_path / "new", "--movie", 1, "--server", address)
    assert done.returncode == 1 and "does not answer; check the network" in done.stderr
    assert not (tmp_path / "new" / "natural_movie_templates" / "natural_movie_1.h5").exists()
