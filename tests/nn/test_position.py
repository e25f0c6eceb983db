"""Positional codes: the paper's waves, and one sentence where a window has more bins than rows."""

import math

import pytest
import torch

from workbench.errors import UnknownName, WorkbenchError
from workbench.nn.position import Position, sinusoid


def test_sinusoids_are_those_of_the_paper():
    rows = sinusoid(50, 8)
    for at in (0, 1, 49):
        for pair in range(4):
            angle = at / 10000 ** (2 * pair / 8)
            assert rows[at, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-5)
            assert rows[at, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-5)
    assert sinusoid(5, 7).shape == (5, 7)


def test_shorter_windows_take_the_first_rows():
    learned = Position("learned", 6, 4)
    x = torch.zeros(2, 3, 4)
    assert torch.equal(learned(x)[0], learned.rows[:3]) and learned.rows.requires_grad


def test_bad_requests_are_refused():
    with pytest.raises(WorkbenchError, match="a window of 7 bins is longer than the 6 bins"):
        Position("sinusoidal", 6, 4)(torch.zeros(1, 7, 4))
    with pytest.raises(UnknownName, match="no position 'sinusoid' in the positional codes; did you mean sinusoidal"):
        Position("sinusoid", 6, 4)
