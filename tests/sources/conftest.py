"""What tests of file formats share: a session with everything in it, and what it means that two are the same."""

import h5py
import numpy as np
import pandas as pd
import pytest

from workbench.session import Series, Session

TEXTS = ("id", "dataset", "subject", "species", "task", "license", "citation", "description", "simulated", "resolution")


def assert_same(one: Session, other: Session) -> None:
    """Every field equal, to the last bit and type."""
    for name in TEXTS:
        assert getattr(one, name) == getattr(other, name), name
    for name in ("spike_times", "spike_units", "intervals"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    for name in ("units", "trials", "stimuli"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert list(one.series) == list(other.series)
    for name, series in one.series.items():
        twin = other.series[name]
        np.testing.assert_array_equal(series.times, twin.times, strict=True)
        np.testing.assert_array_equal(series.values, twin.values, strict=True)
        assert (series.unit, series.columns) == (twin.unit, twin.columns), name
    assert list(one.truth) == list(other.truth)
    for name, value in one.truth.items():
        np.testing.assert_array_equal(value, other.truth[name], strict=True)
    assert (one.images is None) == (other.images is None)
    if one.images is not None:
        np.testing.assert_array_equal(one.images, other.images, strict=True)


def full_session(seed: int = 0, n: int = 7, spikes: int = 3000, **changes) -> Session:
    """A session that uses every field, with what breaks file formats: ties, gaps, odd names, other alphabets."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(2, 52, spikes)).round(3)  # ties, in no order of units
    steps = np.arange(500) / 10 + 2.0
    gappy = np.concatenate([np.arange(100) * 0.013, 20 + np.arange(50) * 0.013]) + 3.1
    table = pd.DataFrame(
        {
            "id": [f"unit {i}" for i in range(n)],
            "region": [("M1", "PMd", "área 5")[i % 3] for i in range(n)],
            "snr": rng.normal(size=n),
            "spikes": rng.integers(0, 9, n).astype(np.int32),
            "good": rng.random(n) > 0.5,
            "unit_name": np.arange(n),
            "waveform/peak": rng.normal(size=n).astype(np.float32),
            "note": [None if i == 1 else "naïve \\ 'x'" for i in range(n)],
        }
    )
    trials = pd.DataFrame(
        {
            "start": np.arange(0.0, 50, 5) + 2,
            "stop": np.arange(0.0, 50, 5) + 6,
            "go_cue_time": np.arange(0.0, 50, 5) + 3,
            "result": list("RRFRRARRFR"),
            "target": np.arange(10),
            "reaction": np.where(np.arange(10) == 3, np.nan, 0.25),
            "end": np.arange(10) * 2,
            "id": np.arange(10) + 100,
            "tags": ["a"] * 10,
        }
    )
    whole = {
        "id": "monkey-1_day-2",
        "spike_times": times,
        "spike_units": rng.integers(0, n, spikes),
        "units": table,
        "intervals": np.array([[1.5, 20.0], [20.0, 30.0], [31.25, 53.0]]),
        "trials": trials,
        "stimuli": pd.DataFrame({"start": [5.0, 7.0], "stop": [5.5, 7.5], "image": [1, 0]}),
        "series": {
            "hand_vel": Series(steps, rng.normal(size=(500, 2)), "cm/s", ("x", "y")),
            "pupil": Series(gappy, rng.normal(size=(150, 1)).astype(np.float32), "mm"),
            "licks": Series(np.arange(600) * 0.1, rng.integers(0, 2, (600, 1)).astype(np.uint8)),
            "dF/F": Series(steps[:20], rng.normal(size=(20, n)), "dF/F", tuple(table["id"])),
            "spikes": Series(steps[:1], rng.normal(size=(1, 3)), "a.u."),
        },
        "load_images": lambda: np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3),
        "dataset": "reach",
        "subject": "J",
        "species": "Macaca mulatta",
        "task": "Reaching, späte Ziele",
        "license": "CC-BY-4.0",
        "citation": "Someone 2020",
        "description": "all of it",
        "simulated": True,
        "resolution": 0.001,
        "truth": {
            "tuning": rng.normal(size=(n, 2)),
            "names": np.array(["a", "ß"]),
            "kept": rng.random(n) > 0.5,
            "gain": np.float64(2.5),
        },
    }
    return Session(**whole | changes)


@pytest.fixture
def same():
    return assert_same


@pytest.fixture
def make_session():
    return full_session


@pytest.fixture
def touched(monkeypatch) -> list[str]:
    """The names of the HDF5 datasets that were read, in part or whole, once for each time."""
    names = []

    def noted(original):
        def read(self, *args, **options):
            names.append(self.name.rpartition("/")[2])
            return original(self, *args, **options)

        return read

    for way in ("__getitem__", "__array__"):
        monkeypatch.setattr(h5py.Dataset, way, noted(getattr(h5py.Dataset, way)))
    return names
