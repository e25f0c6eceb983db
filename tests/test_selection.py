"""What one dashboard chooses reaches the others as text: nothing is lost but milliseconds, and nonsense is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import Session
from workbench.errors import UnknownName, WorkbenchError
from workbench.selection import MOST, parsed, parsed_units, within, written, written_units

steps = st.lists(st.integers(2, 5000), max_size=300).map(lambda gaps: np.cumsum(gaps)[:len(gaps) // 2 * 2] / 1000 - 3)


@given(steps)
def test_stretches_come_back_and_too_many_are_joined_at_the_smallest_gaps(edges):
    stretches = edges.reshape(-1, 2)
    back = parsed(written(stretches))
    assert len(back) == min(len(stretches), MOST)
    if len(stretches) <= MOST:
        np.testing.assert_allclose(back, stretches, atol=1e-9)
    else:
        left = np.sort(stretches[1:, 0] - stretches[:-1, 1])[-(MOST - 1):]
        np.testing.assert_allclose(np.sort(back[1:, 0] - back[:-1, 1]), left, atol=1e-9)
    assert within(stretches.mean(1), back).all()


def test_what_touches_is_one_and_time_inside_is_told():
    np.testing.assert_allclose(parsed("5:6,1:2,1.5:3,3:4"), [[1, 4], [5, 6]])
    assert within(np.array([0.9, 1, 3.9, 4, 5.5, 7]), parsed("1:4,5:6")).tolist() == [False, True, True, False, True,
                                                                                       False]
    assert parsed("").shape == (0, 2) and not within(np.array([1.0]), parsed("")).any()


@pytest.mark.parametrize("text", ["soon", "1", "2:1", "1:1", "1:2:3", "1:nan", "1:inf"])
def test_nonsense_gets_a_sentence(text):
    with pytest.raises(WorkbenchError, match="from:until"):
        parsed(text)


def test_what_is_shorter_than_a_millisecond_is_not_lost():
    assert len(parsed(written(np.array([[1.0001, 1.0003], [2.0, 2.0001]])))) == 2


def test_units_whose_names_hold_commas_come_back():
    session = Session(id="s", spike_times=[0.5], spike_units=[0], units=pd.DataFrame({"id": ["a,1", "50%", "%2C"]}),
                      intervals=[[0, 1]])
    assert parsed_units(session, written_units(session, [0, 1, 2])).tolist() == [0, 1, 2]


def test_units_are_named_and_unknown_ones_refused():
    session = Session(id="s", spike_times=[0.5], spike_units=[0], units=pd.DataFrame({"id": ["a1", "b2", "c3"]}),
                      intervals=[[0, 1]])
    assert parsed_units(session, written_units(session, [2, 0])).tolist() == [0, 2]
    assert parsed_units(session, "").tolist() == []
    with pytest.raises(UnknownName, match="b2"):
        parsed_units(session, "b3")
