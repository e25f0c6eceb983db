""".mat files by a written mapping: the same content in both formats, every part named, nothing guessed."""

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
    scipy.io.savemat(path, CONTENT | {"cell": cell, "data": {"units": units, "trials": trials}})


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
                held = [put(file.require_group("#refs#"), f"r{next(count)}", item).ref for item in value]
                return where.create_dataset(name, data=np.array(held, h5py.ref_dtype)[:, None], dtype=h5py.ref_dtype)
            elif isinstance(value, str):
                data = where.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16))
                data.attrs["MATLAB_class"] = np.bytes_("char")
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
