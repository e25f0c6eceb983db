"""allensdk itself, in an environment of its own that uv makes: it reads what we read, and fetches what we open.

The first run installs 83 packages (1.1 GB); without uv, or without a network then, these tests are skipped.
"""

import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from tests.sources import allen_layout as layout
from tests.sources.allen_layout import ids, put_movie, put_scenes
from workbench import open_catalog
from workbench.sources import allen

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what a reader leaves out is told
SCRIPT = Path(layout.__file__)
FETCH = Path(allen.__file__).parents[1] / "scripts" / "allensdk_fetch.py"


def of(session, unit) -> np.ndarray:
    row = session.units.index[session.units["id"] == unit][0]
    return session.spike_times[session.spike_units == row]


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
    ours = allen.read(path)

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
    session = open_catalog().open("allen_neuropixels", "session_715093703")
    assert session.units["id"].tolist() == ids(layout.KEPT)
    np.testing.assert_array_equal(session.images[:4], scenes[:4])
    movie = allen.read(root / "session_715093703" / "session_715093703.nwb", images="natural_movie_one")
    np.testing.assert_array_equal(movie.images, frames)

    done = uv(FETCH, *everything)  # all of it is here, and the server is gone
    assert done.returncode == 0, done.stderr[-2000:]
    done = uv(FETCH, tmp_path / "new", "--movie", 1, "--server", address)
    assert done.returncode == 1 and "does not answer; check the network" in done.stderr
    assert not (tmp_path / "new" / "natural_movie_templates" / "natural_movie_1.h5").exists()
