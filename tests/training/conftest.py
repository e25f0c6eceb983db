"""A simulated recording of half a minute and a recipe that trains on it in a second."""

import subprocess
import sys

import pytest

from workbench.sources.simulated import reach_sim
from workbench.training.recipe import Recipe

TINY = {"dim": 16, "window": 1.0, "warmup": 0.2}


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    """The path of a small simulated session."""
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    reach_sim(seconds=40, units=12).save(path)
    return path


@pytest.fixture(scope="session")
def tiny(recording) -> Recipe:
    """A GRU of 16 units for 40 steps: dropout, noise and an average of the weights, so that every state counts."""
    return Recipe(name="tiny", model={"name": "gru", **TINY}, data=str(recording), target="hand_vel", threads=1,
                  optim={"ema": 0.9, "warmup": 5}, batch={"size": 4},
                  budget={"steps": 40, "eval_every": 10, "checkpoint_every": 5})


@pytest.fixture
def python():
    """Run code in a fresh interpreter and return what it printed."""
    def run(code: str, *args: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return run
