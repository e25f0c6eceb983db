""".mat files by a written mapping: the same content in both formats, every part named, nothing guessed."""

import struct
import warnings

import h5py
import numpy as np
import pytest
import scipy.io
import yaml

from workbench import open_catalog
from workbench.errors import BadRecording
from workbench.sources import mat

RNG = np.random.default_rng(0)
TIMES = [np.sort(RNG.uniform(0, 20_000, n)) for n in (50, 1, 300)]      # ms
AREAS = ["V1", "V4", "IT"]
CONTENT = {
    "data": {"units": [{"times": t, "area": a} for t, a in zip(TIMES, AREAS, strict=True)],
             "trials": {"t_on": np.array([1000.0, 5000]), "t_off": np.array([2000.0, 6000]),
                        "pic": ["a.png", "b.png"]}},
    "cell": TIMES,
    "flat": np.concatenate(TIMES), "who": np.repeat([4.0, 7, 9], [50, 1, 300]),
    "on_off": np.array([[1000.0, 2000], [5000, 6000]]),
    "t": np.arange(0.0, 20_000, 50), "vel": RNG.normal(size=(400, 2)),
    "ids": np.array([[2016062601.0, 2016062602, 2016062603]]),
    "by_trial": [[TIMES[0], TIMES[1], TIMES[2]], [TIMES[1], TIMES[2], TIMES[0]]],        # a cell [2, 3]
    "one": {"unit": {"times": TIMES[0], "area": "V4"},
            "trial": {"start": np.array([1000.0]), "stop": np.array([2000.0]), "pic": "a.png"}},
    "aborted": [{"start": np.array([t]), "stop": np.array(stop), "pic": "a.png", "eye": np.zeros(4)}
                for t, stop in ((7000.0, [8000.0]), (1000.0, [2000.0]), (5000.0, []))],
    "wide": {"start": np.array([1000.0, 5000]), "stop": np.array([2000.0, 6000]), "target": np.eye(2) * 3,
             "fs": np.array([30_000.0])},
}
MAPPING = dict(spikes="data.units.times", time_unit="ms", regions="data.units.area", trials="data.trials", start="t_on",
               stop="t_off", series=["hand_vel = vel @ t [cm/s]"])


def v5(path) -> None:
    cell = np.empty((1, 3), object)
    units = np.zeros((1, 3), dtype=[("times", object), ("area", object)])
    for i, (t, a) in enumerate(zip(TIMES, AREAS, strict=True)):
        cell[0, i], units[0, i] = t[:, None], (t[:, None], a)
    pics = np.array([["a.png", "b.png"]], object)
    trials = CONTENT["data"]["trials"] | {"pic": pics}
    by_trial, aborted = np.empty((2, 3), object), np.zeros((1, 3), [(k, object) for k in CONTENT["aborted"][0]])
    for i in range(3):
        by_trial[:, i] = [row[i][:, None] for row in CONTENT["by_trial"]]
        aborted[0, i] = tuple(CONTENT["aborted"][i].values())
    scipy.io.savemat(path, CONTENT | {"cell": cell, "data": {"units": units, "trials": trials}, "by_trial": by_trial,
                                      "aborted": aborted})


def v73(path) -> None:
    """As MATLAB writes it: HDF5, axes reversed, cells as references, text as UTF-16 numbers."""
    with h5py.File(path, "w", userblock_size=512) as file:
        count = iter(range(999))

        def put(where, name, value):
            if isinstance(value, dict):
                group = where.create_group(name)
                group.attrs["MATLAB_class"] = np.bytes_("struct")
                for key, part in value.items():
                    put(group, key, part)
            elif isinstance(value, list) and isinstance(value[0], dict):
                group = where.create_group(name)
                for key in value[0]:
                    put(group, key, [item[key] for item in value])
            elif isinstance(value, list):
                rows = value if isinstance(value[0], list) else [value]
                held = [[put(file.require_group("#refs#"), f"r{next(count)}", item).ref for item in row]
                        for row in rows]
                return where.create_dataset(name, data=np.array(held, h5py.ref_dtype).T, dtype=h5py.ref_dtype)
            elif isinstance(value, str):
                data = where.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16))
                data.attrs["MATLAB_class"] = np.bytes_("char")
                return data
            elif not value.size:                                        # its shape, and a mark
                data = where.create_dataset(name, data=np.zeros(2, np.uint64))
                data.attrs["MATLAB_empty"] = 1
                return data
            else:
                value = value if value.ndim == 2 else value[:, None]
                return where.create_dataset(name, data=value.T)

        for name, value in CONTENT.items():
            put(file, name, value)


@pytest.fixture(params=[v5, v73], ids=["v5", "v7.3"])
def file(request, tmp_path):
    request.param(tmp_path / "day1.mat")
    return tmp_path / "day1.mat"


def assert_right(session) -> None:
    assert len(session.units) == 3
    for row, times in enumerate(TIMES):
        np.testing.assert_array_equal(session.spike_times[session.spike_units == row], times / 1000)


def test_both_formats_give_the_session_that_the_mapping_says(file):
    session = mat.read(file, **MAPPING)
    assert_right(session)
    assert list(session.units["id"]) == ["1", "2", "3"] and list(session.units["region"]) == AREAS
    assert session.trials.to_dict("list") == {"start": [1, 5], "stop": [2, 6], "pic": ["a.png", "b.png"]}
    hand = session.series["hand_vel"]
    np.testing.assert_array_equal(hand.values, CONTENT["vel"])
    assert (hand.rate, hand.unit) == (20, "cm/s")


def test_cells_and_flat_lists_are_named_by_the_mapping_too(file):
    assert_right(mat.read(file, spikes="cell", time_unit="ms", trials="on_off"))
    flat = mat.read(file, spikes="flat", spike_units="who", time_unit="ms", trials="on_off")
    assert_right(flat)
    assert list(flat.units["id"]) == ["4", "7", "9"] and list(flat.trials["stop"]) == [2, 6]
    assert_right(mat.read(file, spikes="cell", time_unit="samples", sampling_rate=1000))


@pytest.mark.parametrize(("mapping", "words"), [
    ({"spikes": "flat"}, "name the unit of each in spike_units"),
    ({"spikes": "data.cells"}, "data has no 'cells'; it has"),
    ({"spikes": "data.units"}, "a struct with (times, area|area, times)"),
    ({"spikes": "cell", "time_unit": "minutes"}, "one of s, ms, us, samples"),
    ({"spikes": "cell", "time_unit": "samples"}, "needs sampling_rate"),
    ({"spikes": "cell", "time_unit": "us", "trials": "data.trials"}, "no field 'start'"),
    ({"spikes": "cell", "trials": "t"}, "a struct of columns, or a matrix"),
    ({"spikes": "cell", "regions": "on_off"}, "each of the 3 units"),
    ({"spikes": "cell", "series": ["vel"]}, "name = values @ times"),
    ({"spikes": "flat", "spike_units": "t"}, "351 times in flat and 400 units in t"),
    ({"spikes": "by_trial"}, r"by_trial\{1\} is a cell of 3, not one list of numbers"),
    ({"spikes": "cell", "trials": "wide", "stop": "fs"}, "2 starts and 1 stops in wide"),
    ({"spikes": "cell", "trials": "data.trials", "start": "t_off", "stop": "t_on"}, "stops before it starts"),
])
def test_a_mapping_that_the_file_does_not_bear_out_is_told_in_one_sentence(file, mapping, words):
    with pytest.raises(BadRecording, match=words) as told:
        mat.read(file, **{"time_unit": "ms"} | mapping)
    assert "\n" not in str(told.value)


def test_a_lab_names_its_mapping_once_in_its_catalog(file, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    entry = {"id": "ours", "title": "Ours", "loader": "mat", "loader_options": MAPPING,
             "access": {"method": "local", "path": "*.mat"}}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump({"schema_version": 1, "datasets": [entry]}))
    assert_right(open_catalog(tmp_path / "ours.yaml").open("ours", "day1"))


def test_what_is_no_mat_file_is_told(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"not a mat file at all" * 20)
    with pytest.raises(BadRecording, match="cannot be read as a MATLAB file"):
        mat.read(tmp_path / "a.mat", spikes="x", time_unit="s")


def test_names_of_units_that_are_long_numbers_stay_whole(file):
    units = mat.read(file, spikes="cell", time_unit="ms", ids="ids").units
    assert list(units["id"]) == ["2016062601", "2016062602", "2016062603"]


def test_a_struct_array_of_one_unit_or_one_trial_is_a_struct_and_read_as_one(file):
    with pytest.warns(UserWarning, match="taken for one unit"):
        session = mat.read(file, spikes="one.unit.times", time_unit="ms", regions="one.unit.area", trials="one.trial")
    np.testing.assert_array_equal(session.spike_times, TIMES[0] / 1000)
    assert list(session.units["region"]) == ["V4"]
    assert session.trials.to_dict("list") == {"start": [1], "stop": [2], "pic": ["a.png"]}


def test_a_trial_without_a_stop_and_fields_that_are_no_columns_are_left_out_and_told(file):
    with pytest.warns(UserWarning) as told:
        trials = mat.read(file, spikes="cell", time_unit="ms", trials="aborted").trials
    said = " ".join(str(w.message) for w in told)
    assert "1 of 3 trials in aborted" in said and "eye in aborted have not one value" in said
    assert trials.to_dict("list") == {"start": [1, 7], "stop": [2, 8], "pic": ["a.png"] * 2}


def test_a_field_of_trials_with_several_values_becomes_several_columns(file):
    with pytest.warns(UserWarning, match="fs in wide"):
        trials = mat.read(file, spikes="cell", time_unit="ms", trials="wide").trials
    assert list(trials["target_0"]) == [3, 0] and list(trials["target_1"]) == [0, 3] and "fs" not in trials


def test_doubles_that_matlab_packed_as_bytes_are_doubles(tmp_path):
    """Whole numbers below 256 are stored in one byte each, whatever their class; their differences would wrap."""
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    def variable(name: bytes, values: list[int]) -> bytes:
        return element(14, element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", len(values), 1))
                       + element(1, name) + element(2, bytes(values)))

    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    (tmp_path / "a.mat").write_bytes(head + variable(b"t", [1, 2, 3]) + variable(b"x", [200, 7, 9])
                                     + variable(b"who", [1, 1, 1]))
    series = mat.read(tmp_path / "a.mat", spikes="t", spike_units="who", time_unit="ms", series=["x = x @ t"]).series
    assert np.diff(series["x"].values[:, 0]).tolist() == [-193, 2]


def test_only_variables_that_the_mapping_names_are_read_and_what_only_matlab_reads_is_told(tmp_path):
    v73(tmp_path / "a.mat")
    with h5py.File(tmp_path / "a.mat", "r+") as file:
        raw = file.create_dataset("raw", shape=(10**6, 10**5), dtype="f8", chunks=(1, 10**5))     # 800 GB
        raw.attrs["MATLAB_class"] = np.bytes_("double")
        file["cell"].attrs["MATLAB_class"] = "cell"                     # text, as programs other than MATLAB write it
        names = file.create_dataset("names", data=np.arange(3, dtype=np.uint32)[:, None])
        names.attrs["MATLAB_class"], names.attrs["MATLAB_object_decode"] = np.bytes_("string"), np.int32(3)
    assert_right(mat.read(tmp_path / "a.mat", spikes="cell", time_unit="ms"))
    with pytest.raises(BadRecording, match="names is a string of MATLAB, which nothing else reads"):
        mat.read(tmp_path / "a.mat", spikes="cell", time_unit="ms", regions="names")
    with pytest.raises(BadRecording, match=r"file has no 'nmes'; it has .*raw"):
        mat.read(tmp_path / "a.mat", spikes="nmes", time_unit="ms")


def test_an_empty_region_is_unknown(tmp_path):
    areas = np.array([["V1", "", "IT"]], object)
    cell = np.empty((1, 3), object)
    cell[0] = TIMES
    scipy.io.savemat(tmp_path / "a.mat", {"cell": cell, "areas": areas})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        units = mat.read(tmp_path / "a.mat", spikes="cell", time_unit="ms", regions="areas").units
    assert list(units["region"]) == ["V1", "unknown", "IT"]
