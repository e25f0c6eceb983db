"""Files in torch_brain's layout that its own writer rarely makes, written here with h5py alone."""

import h5py
import numpy as np
import pytest

from workbench import Session
from workbench.errors import BadRecording


def group(file, name, kind, **arrays):
    made = file.create_group(name) if name else file
    made.attrs["object"] = kind
    for key, values in arrays.items():
        made[key] = values
    return made


@pytest.fixture
def made(tmp_path):
    """A path, and the open file at it with a domain of 10 s and three spikes of two units."""
    path = tmp_path / "day.h5"
    with h5py.File(path, "w") as file:
        group(file, "", "Data")
        group(file, "domain", "Interval", start=[0.0], end=[10.0])
        group(file, "spikes", "IrregularTimeSeries", timestamps=[1.0, 2.0, 3.0], unit_index=[0, 1, 0])
        yield path, file


def test_a_series_in_which_nothing_happened_is_empty_and_not_damage(made):
    path, file = made
    group(file, "licks", "IrregularTimeSeries", timestamps=np.empty(0), volume=np.empty(0), spout=np.empty((0, 2)))
    file.close()
    series = Session.open(path).series
    assert series["licks_volume"].values.shape == (0, 1) and series["licks_spout"].values.shape == (0, 2)


def test_units_without_ids_are_numbered_and_too_few_of_them_are_told(made):
    path, file = made
    group(file, "units", "ArrayDict", snr=[1.0, 2.0, 3.0])
    file.close()
    units = Session.open(path).units
    assert units["id"].tolist() == ["0", "1", "2"] and units["region"].unique().tolist() == ["unknown"]
    with h5py.File(path, "a") as file:
        del file["units/snr"]
        file["units/snr"] = [1.0]
    with pytest.raises(BadRecording, match="spikes name unit row 1, but the unit table has 1 rows"):
        Session.open(path)


def test_spikes_of_nobody_are_refused(made):
    path, file = made
    del file["spikes/unit_index"]
    file.close()
    with pytest.raises(BadRecording, match=r"its spikes have no unit_index.*they have timestamps"):
        Session.open(path)


def test_pieces_of_a_regular_series_keep_their_times(made):
    """Samples between the pieces of its domain were never measured."""
    path, file = made
    hand = group(file, "hand", "RegularTimeSeries", pos=np.r_[0.0, 1, 2, np.nan, np.nan, 5, 6][:, None])
    hand.attrs["sampling_rate"] = 10.0
    group(hand, "domain", "Interval", start=[3.0, 3.5], end=[3.3, 3.7])
    file.close()
    series = Session.open(path).series["hand_pos"]
    np.testing.assert_allclose(series.times, [3.0, 3.1, 3.2, 3.5, 3.6])
    assert series.values[:, 0].tolist() == [0, 1, 2, 5, 6]
