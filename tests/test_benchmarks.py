"""Benchmarks are run by hand and seldom: that they still can be is tested here, on a tiny size."""

from importlib import import_module

import pytest

from benchmarks import grid
from benchmarks.__main__ import ALL


@pytest.mark.parametrize("case", grid.CASES)
def test_every_case_of_the_grid_can_be_called(case, monkeypatch):
    monkeypatch.setattr(grid, "UNITS", 20)
    grid.CASES[case]()()


@pytest.mark.parametrize("name", ALL)
def test_every_benchmark_that_is_named_can_be_imported(name):
    assert callable(import_module(f"benchmarks.{name}").main)
