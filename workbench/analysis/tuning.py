"""Which direction of movement each unit prefers: cosine tuning (Georgopoulos et al. 1982).

    spikes near a movement sample → rate by direction of the velocity → baseline + depth · cos(direction - preferred)

A description, not a decoder: every number comes from the same time that it describes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.session import Session, inside


def direction_tuning(session: Session, series: str = "hand_vel", *, directions: int = 8, lead: float = 0.1,
                     slowest: float = 0.25) -> pd.DataFrame:
    """Cosine tuning of every unit to the direction of a 2-D velocity.

    lead: seconds by which spikes precede the movement. slowest: the slower part of samples is left out, as a fraction.
    Returns one row a unit: `preferred` (radians, counter-clockwise from the first axis), `depth` (spikes/s), `r2` of
    the cosine over the directions, and `rate_0` … the mean rate moving in each direction (spikes/s). Raises UnknownName
    for a series that is not there, BadRecording for one without two columns or without movement.
    """
    s = session.get_series(series)
    if s.values.shape[1] != 2:
        raise BadRecording(f"{session.id}: series {series!r} has {s.values.shape[1]} columns; direction needs two")
    rows = inside(s.times, session.intervals)
    times, velocity = s.times[rows], s.values[rows]
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    moving = np.isfinite(speed) & (speed > 0)
    if not moving.any():
        raise BadRecording(f"{session.id}: series {series!r} never moves, so no direction can be told")
    moving &= speed >= np.quantile(speed[moving], slowest)
    angle = np.where(moving, np.arctan2(velocity[:, 1], velocity[:, 0]), 0.0)
    sector = np.where(moving, np.round(angle / (2 * np.pi) * directions).astype(int) % directions, directions)
    # A sample stands for the time that is nearest to it, half an interval on either side at most.
    gaps = np.minimum(np.diff(times, prepend=-np.inf, append=np.inf), s.interval)
    lasts = (gaps[:-1] + gaps[1:]) / 2
    seconds = np.bincount(sector, lasts, minlength=directions + 1)[:directions]

    when = session.spike_times + lead
    near = np.searchsorted((times[:-1] + times[1:]) / 2, when)
    known = np.abs(times[near] - when) <= s.interval / 2
    cell = session.spike_units[known].astype(np.int64) * (directions + 1) + sector[near[known]]
    n = len(session.units)
    counts = np.bincount(cell, minlength=n * (directions + 1)).reshape(n, directions + 1)[:, :directions]
    rates = counts / np.maximum(seconds, 1e-9)

    seen = seconds > 0
    middles = 2 * np.pi * np.arange(directions) / directions
    design = np.stack([np.ones(directions), np.cos(middles), np.sin(middles)], axis=1)[seen]
    weights = np.linalg.lstsq(design, rates[:, seen].T, rcond=None)[0]                      # [3, N]
    left = ((rates[:, seen].T - design @ weights) ** 2).sum(0)
    total = rates[:, seen].var(axis=1) * seen.sum()
    r2 = np.where(total > 0, 1 - left / np.maximum(total, 1e-12), 0.0)
    table = pd.DataFrame({"preferred": np.arctan2(weights[2], weights[1]), "depth": np.hypot(weights[1], weights[2]),
                          "r2": r2}, index=session.units["id"])
    return table.assign(**{f"rate_{i}": rates[:, i] for i in range(directions)})
