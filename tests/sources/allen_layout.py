# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["allensdk==2.16.2", "hdmf<5"]
# ///
"""A small file in the layout of a Visual Coding - Neuropixels session, written with pynwb alone, new or old.

    python allen_layout.py write FILE             under the pynwb of the tests
    uv run allen_layout.py write FILE             under allensdk's, in the versions of the format that it can read
    uv run allen_layout.py read FILE FOLDER       what allensdk reads in it, as arrays and tables in FOLDER

The extension's three classes are made from their specification, as written in the cached namespace of real files.
"""

import json
import sys
import tempfile
import warnings
from datetime import datetime, timezone
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

SESSION, LAST = 715093703, 100.0
CHANNELS = [  # probe, location, valid; ids count down, since nothing promises that they count up
    ("probeA", "VISp", True),
    ("probeA", "LGd", True),
    ("probeA", "VISp", False),
    ("probeA", "", True),
    ("probeB", "None", True),
    ("probeB", "CA1", True),
]
UNITS = [  # channel, quality, isi_violations, amplitude_cutoff, presence_ratio, spikes
    (0, "good", 0.1, 0.01, 0.99, 400),
    (0, "noise", 0.1, 0.01, 0.99, 50),
    (1, "good", 0.5, 0.1, 0.95, 300),  # on every border: kept
    (1, "good", 0.6, 0.01, 0.99, 50),
    (0, "good", 0.1, 0.2, 0.99, 50),
    (0, "good", 0.1, np.nan, 0.99, 50),
    (0, "good", 0.1, 0.01, 0.5, 50),
    (2, "good", 0.1, 0.01, 0.99, 50),
    (3, "good", 0.1, 0.01, 0.99, 50),
    (4, "good", 0.1, 0.01, 0.99, 50),
    (5, "good", 0.1, 0.01, 0.99, 200),
]
KEPT = (0, 2, 10)
# fmt: off
METRICS = (
    "d_prime", "l_ratio", "isolation_distance", "nn_hit_rate", "nn_miss_rate", "silhouette_score", "max_drift",
    "cumulative_drift", "waveform_duration", "waveform_halfwidth", "PT_ratio", "amplitude", "spread", "recovery_slope",
    "repolarization_slope", "velocity_above", "velocity_below", "snr", "firing_rate",
)
# fmt: on
INVALID = [
    (20.0, 21.0, ["EcephysProbe", "1001", "probeB"]),
    (25.0, 26.0, ["EcephysProbe", "1002", "probeC"]),
    (40.05, 40.19, ["EcephysSession", str(SESSION), "stimulus"]),
    (60.0, 61.0, ["EcephysSession", str(SESSION), "all_probes"]),
    (70.0, 71.0, ["EcephysSession", str(SESSION), "optotagging"]),
]


def unit_id(row: int) -> int:
    return 950_907_000 - 3 * row


def ids(rows) -> list[str]:
    """What a session calls these units."""
    return [str(unit_id(row)) for row in rows]


def channel_id(row: int) -> int:
    return 849_705_000 + 2 * (len(CHANNELS) - row)


def trains() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.sort(rng.uniform(0.2, LAST, n)) for *_, n in UNITS]


def presentations() -> dict[str, dict[str, list]]:
    """Stimulus → columns; parameters that are numbers are text in some of them, as in the real files."""
    scenes = [2.0, 0.0, -1.0, 1.0, 3.0, 2.0, -1.0, 3.0, 0.0, 1.0]
    movie = [float(i % 5) for i in range(60)]
    size = "[250.0, 250.0]"
    return {
        "spontaneous": {"start_time": [0.5], "stop_time": [5.0]},
        "gabors": {
            "start_time": [6.0, 6.25, 6.5], "stop_time": [6.25, 6.5, 6.75], "x_position": [0.0, 40.0, -40.0],
            "y_position": [30.0, -30.0, 0.0], "orientation": ["0.0", "45.0", "90.0"], "contrast": [0.8] * 3,
            "size": ["[20.0, 20.0]"] * 3},
        "natural_scenes": {
            "start_time": [10 + 0.25 * i for i in range(10)],
            "stop_time": [10.25 + 0.25 * i for i in range(10)],
            "frame": scenes,
        },
        "natural_movie_one": {
            "start_time": [39 + i / 30 for i in range(60)],
            "stop_time": [39 + (i + 1) / 30 for i in range(60)],
            "frame": movie,
        },
        "static_gratings": {
            "start_time": [50.0, 50.25, 50.5], "stop_time": [50.25, 50.5, 50.75], "contrast": [0.8] * 3,
            "orientation": ["30.0", "null", "60.0"], "spatial_frequency": ["0.04", "null", "0.32"],
            "phase": ["0.25", "null", "0.75"], "size": [size] * 3},
        "drifting_gratings": {
            "start_time": [52.0, 55.0], "stop_time": [54.0, 57.0], "orientation": ["45.0", "N/A"],
            "temporal_frequency": [8.0, 2.0], "phase": ["[5308.98333333, 5308.98333333]"] * 2, "size": [size] * 2,
            "contrast": [0.8] * 2},
        "flashes": {
            "start_time": [58.0, 60.5, 62.0], "stop_time": [58.25, 60.75, 62.25], "color": ["1.0", "-1.0", "1.0"]},
    }


def running() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts and stops of the samples [T] in seconds, at a little less than 60 Hz; speed [T] in cm/s."""
    edges = np.linspace(1.0, LAST - 1, 5801) + 0.001 * np.sin(np.arange(5801))
    return edges[:-1], edges[1:], np.random.default_rng(2).normal(10, 5, 5800)


def write(path: Path) -> None:
    import pynwb
    from pynwb import NWBHDF5IO, NWBFile, TimeSeries
    from pynwb.core import DynamicTable
    from pynwb.epoch import TimeIntervals

    Probe, Group, Specimen = _extension(pynwb)
    rng = np.random.default_rng(0)
    nwb = NWBFile(
        session_description="Data and metadata for an Ecephys session",
        identifier=str(SESSION),
        session_id=str(SESSION),
        session_start_time=datetime(2019, 1, 19, tzinfo=timezone.utc),  # noqa: UP017 (Python 3.10)
        stimulus_notes="brain_observatory_1.1",
        institution="Allen Institute for Brain Science",
    )
    nwb.subject = Specimen(
        subject_id="699733573", species="Mus musculus", sex="M", age="P118D", strain="C57BL/6J", age_in_days=118.0,
        genotype="Sst-IRES-Cre/wt;Ai32(RCL-ChR2(H134R)_EYFP)/wt", specimen_name="Sst-IRES-Cre;Ai32-386129")
    groups = {}
    for i, name in enumerate(("probeA", "probeB")):
        device = Probe(name=name, description="Neuropixels 1.0", sampling_rate=30000.0, probe_id=1000 + i)
        nwb.add_device(device)
        groups[name] = Group(
            name=name, description="Ecephys Electrode Group", location="See electrode locations", device=device,
            probe_id=1000 + i, has_lfp_data=True, lfp_sampling_rate=1250.0)
        nwb.add_electrode_group(groups[name])
    for name in ("probe_id", "local_index", "valid_data", "probe_vertical_position", "probe_horizontal_position"):
        nwb.add_electrode_column(name, name)
    for row, (probe, location, valid) in enumerate(CHANNELS):
        nwb.add_electrode(
            id=channel_id(row), group=groups[probe], location=location or "-", x=8000.0 + row, y=2000.0 + row,
            z=7000.0 + row, imp=float("nan"), filtering="AP band: 500 Hz high-pass; LFP band: 1000 Hz low-pass",
            probe_id=int(groups[probe].probe_id), local_index=10 * row, valid_data=valid,
            probe_vertical_position=20 * (row + 1), probe_horizontal_position=43)

    spikes = trains()
    own = ("peak_channel_id", "local_index", "cluster_id", "quality", "isi_violations", "amplitude_cutoff")
    for name in (*own, "presence_ratio", *METRICS):
        nwb.add_unit_column(name, name)
    for row, (channel, quality, isi, cutoff, presence, _) in enumerate(UNITS):
        nwb.add_unit(
            id=unit_id(row), spike_times=spikes[row], peak_channel_id=channel_id(channel), local_index=row,
            cluster_id=row + 7, quality=quality, isi_violations=isi, amplitude_cutoff=cutoff, presence_ratio=presence,
            **dict(zip(METRICS, rng.normal(size=len(METRICS)).tolist())))  # noqa: B905
    ends = np.cumsum([len(s) for s in spikes]).tolist()
    shapes = list(range(3, 3 * len(UNITS) + 1, 3))
    nwb.units.add_column("spike_amplitudes", "V", data=rng.normal(1e-4, 1e-5, ends[-1]), index=ends)
    nwb.units.add_column("waveform_mean", "V", data=rng.normal(size=(shapes[-1], 82)), index=shapes)

    clock = TimeSeries(
        name="timestamps", data=np.arange(LAST * 60), timestamps=np.arange(LAST * 60) / 60, unit="s", description="-"
    )
    nwb.create_processing_module("stimulus", "stimulus times").add(clock)
    for name, columns in presentations().items():
        table = TimeIntervals(name=f"{name}_presentations", description="Presentation times and stimuli details")
        rows = len(columns["start_time"])
        columns = columns | {
            "stimulus_name": [name] * rows,
            "stimulus_block": [1.0] * rows,
            "stimulus_index": [0] * rows,
        }
        for column in columns:
            if column not in ("start_time", "stop_time"):
                table.add_column(column, column)
        for row in range(rows):
            table.add_interval(
                tags=["stimulus_time_interval"],
                timeseries=[clock],
                **{column: values[row] for column, values in columns.items()},
            )
        nwb.add_time_intervals(table)
    for start, stop, tags in INVALID:
        nwb.add_invalid_time_interval(start_time=start, stop_time=stop, tags=tags)

    starts, stops, speed = running()
    module = nwb.create_processing_module("running", "running speed")
    for name, data, times, unit in (
        ("running_speed", speed, starts, "cm/s"),
        ("running_speed_end_times", np.full(len(stops), np.nan), stops, "cm/s"),
        ("running_wheel_rotation", speed / 100, starts, "radians"),
    ):
        module.add(TimeSeries(name=name, data=data, timestamps=times, unit=unit))
    nwb.add_acquisition(
        TimeSeries(name="raw_running_wheel_rotation", data=speed / 90, timestamps=starts, unit="radians")
    )

    seen = np.arange(1.0, LAST - 1, 1 / 30)
    fits = nwb.create_processing_module("eye_tracking", "Eye tracking processing module")
    for name in ("pupil_ellipse_fits", "cr_ellipse_fits", "eye_ellipse_fits"):
        columns = ("center_x", "center_y", "width", "height", "phi")
        ellipse = pd.DataFrame(rng.uniform(1, 100, (len(seen), 5)), columns=columns)
        fits.add(DynamicTable.from_dataframe(name=name, df=ellipse))
    for kind in ("raw", "filtered"):
        module = nwb.create_processing_module(f"{kind}_gaze_mapping", f"Gaze mapping processing module {kind} outputs")
        for name, width, unit in (
            ("eye_area", 0, "Pixels ^ 2"),
            ("pupil_area", 0, "Pixels ^ 2"),
            ("screen_coordinates", 2, "Centimeters"),
            ("screen_coordinates_spherical", 2, "Degrees"),
        ):
            data = rng.normal(5, 1, (len(seen), width) if width else len(seen))
            if kind == "filtered":
                data[30:40] = np.nan  # a blink
            module.add(TimeSeries(name=name, data=data, timestamps=seen, unit=unit))
    with NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    with h5py.File(path, "r+") as file:  # pynwb refuses to write ''
        file["general/extracellular_ephys/electrodes/location"][:] = [location for _, location, _ in CHANNELS]


def _extension(pynwb):
    """Classes of ndx-aibs-ecephys 0.2.0: a probe, its group of electrodes, the mouse."""
    from pynwb.spec import NWBAttributeSpec, NWBGroupSpec, NWBNamespaceBuilder

    name = "ndx-aibs-ecephys"
    attributes = lambda **kinds: [NWBAttributeSpec(name=n, doc=n, dtype=kind) for n, kind in kinds.items()]
    builder = NWBNamespaceBuilder("Allen Institute Ecephys Extension", name, version="0.2.0", author="-", contact="-")
    for own, parent, fields in (
        ("EcephysProbe", "Device", attributes(sampling_rate="float64", probe_id="int")),
        (
            "EcephysElectrodeGroup",
            "ElectrodeGroup",
            attributes(has_lfp_data="bool", probe_id="int", lfp_sampling_rate="float64"),
        ),
        ("EcephysSpecimen", "Subject", attributes(specimen_name="text", age_in_days="float", strain="text")),
    ):
        builder.include_type(parent, namespace="core")
        builder.add_spec(
            f"{name}.extension.yaml",
            NWBGroupSpec(neurodata_type_def=own, neurodata_type_inc=parent, doc=own, attributes=fields),
        )
    with tempfile.TemporaryDirectory() as folder:
        builder.export(f"{name}.namespace.yaml", outdir=folder)
        pynwb.load_namespaces(str(Path(folder, f"{name}.namespace.yaml")))
    return [pynwb.get_class(own, name) for own in ("EcephysProbe", "EcephysElectrodeGroup", "EcephysSpecimen")]


def put_scenes(root: Path, n: int = 4) -> np.ndarray:
    """Natural scenes [n, height, width], one TIFF each."""
    from PIL import Image

    folder = root / "natural_scene_templates"
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 255, (n, 6, 8), np.uint8)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"natural_scene_{i}.tiff")
    return pictures


def put_movie(root: Path, frames: int = 5) -> np.ndarray:
    """The frames of natural movie one: a numpy array under the name .h5."""
    folder = root / "natural_movie_templates"
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(1).integers(0, 255, (frames, 4, 8), np.uint8)
    with open(folder / "natural_movie_1.h5", "wb") as f:
        np.save(f, pictures)
    return pictures


def read(path: Path, folder: Path) -> None:
    """Units, spike times, stimuli, running speed and pupil as allensdk gives them, with its filters as they come."""
    import allensdk
    from allensdk.brain_observatory.ecephys.ecephys_session import EcephysSession

    session = EcephysSession.from_nwb_path(str(path))
    session.stimulus_presentations.to_csv(folder / "stimuli.csv")
    session._units.to_csv(folder / "units.csv")  # `units` wants columns that only the whole project has
    session.running_speed.to_csv(folder / "running.csv")
    session.get_pupil_data().to_csv(folder / "pupil.csv")
    session.get_screen_gaze_data(include_filtered_data=True).to_csv(folder / "gaze.csv")
    np.savez(folder / "spikes.npz", **{str(unit): times for unit, times in session.spike_times.items()})
    (folder / "versions.json").write_text(json.dumps({"allensdk": allensdk.__version__, "numpy": np.__version__}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"write": write, "read": read}[sys.argv[1]](*map(Path, sys.argv[2:]))
