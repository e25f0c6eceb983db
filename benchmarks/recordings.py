"""Simulated recordings of plain Poisson units for timing: only their sizes matter."""

import numpy as np
import pandas as pd

from workbench.session import Series, Session


def poisson(name: str, units: int, rate: float, seconds: float, seed: int = 0, behavior_rate: float = 100.0) -> Session:
    """A session of `units` Poisson units that fire at `rate` spikes/s on average (lognormal), and a hand velocity."""
    random = np.random.default_rng(seed)
    rates = random.lognormal(0, 0.8, units)
    rates *= rate * units / rates.sum()
    spikes = random.poisson(rates * seconds)
    order = np.argsort(times := random.random(spikes.sum()) * seconds)
    clock = np.arange(0, seconds, 1 / behavior_rate)
    return Session(id=name, spike_times=times[order], spike_units=np.repeat(np.arange(units), spikes)[order],
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(units)]}), intervals=np.array([[0, seconds]]),
                   series={"hand_vel": Series(clock, random.normal(size=(len(clock), 2)), "m/s")}, simulated=True,
                   description="simulated Poisson units for timing")
