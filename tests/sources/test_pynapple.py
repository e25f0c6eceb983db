"""What a session holds that pynapple cannot, and that nothing is lost without a word."""

import numpy as np
import pandas as pd
import pytest

from workbench import Session
from workbench.errors import BadRecording
from workbench.session import Series

pytest.importorskip("pynapple", reason='pynapple is not installed (pip install "spike-workbench[pynapple]")')


def made(**more) -> Session:
    units = pd.DataFrame({"id": ["a", "b", "c"], "rate": [2.0, 1.0, 0.0]})
    return Session(id="s", spike_times=[1.0, 2.0, 3.0], spike_units=[0, 1, 0], units=units, intervals=[[0, 10]], **more)


def test_a_silent_unit_stays_and_a_column_called_rate_is_kept_beside_pynapples_own():
    units = made().to_pynapple()["units"]
    assert [len(units[row]) for row in range(3)] == [2, 1, 0]
    assert list(units["rate_"]) == [2, 1, 0] and list(units["rate"]) == pytest.approx([0.2, 0.1, 0])


def test_trials_without_a_stop_or_a_length_are_left_out_and_unsorted_ones_sorted():
    trials = pd.DataFrame({"start": [7.0, 1.0, 4.0, np.nan], "stop": [9.0, 3.0, np.nan, 5.0], "n": [2, 1, 3, 4]})
    found = made(trials=trials).to_pynapple()["trials"]
    assert found.start.tolist() == [1, 7] and found.end.tolist() == [3, 9] and list(found["n"]) == [1, 2]


def test_an_empty_series_and_a_session_without_units_or_trials_convert():
    found = made(series={"x": Series(np.empty(0), np.empty((0, 2)))}).select([]).to_pynapple()
    assert len(found["units"]) == 0 and found["x"].shape == (0, 2) and len(found["trials"]) == 0


def test_a_series_named_as_a_table_would_hide_it_and_is_refused():
    session = made(series={"units": Series(np.array([1.0, 2.0]), np.zeros((2, 1)))})
    with pytest.raises(BadRecording, match=r"s: series 'units' has the name of a table.*rename"):
        session.to_pynapple()
