"""Behaviour beside the spikes in a folder of ALF files: trials, and wheel, licks and motion energy as series.

    _ibl_trials.table.pqt, _ibl_trials.*.npy → trials, one row a trial, start and stop from intervals
    _ibl_wheel.position, .timestamps         → wheel_position (rad), wheel_velocity (rad/s)
    licks.times                              → licks: one sample of value 1 a lick
    _ibl_<side>Camera.times, <side>Camera.ROIMotionEnergy → <side>_motion_energy (a.u.)

Pose and pupil stay in the folder. Layout: ALF specification (int-brain-lab.github.io/ONE).
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.session import Series

CAMERAS = ("left", "right", "body")


def trials(source) -> pd.DataFrame:
    """The table of trials with start and stop in seconds; attributes of two columns [n, 2] become name_0 and name_1."""
    places = sorted(source.collections("trials"), key=len)
    if len(places) > 1:
        warnings.warn(f"{source.where}: there are trials in {', '.join(places)}; those in {places[0]} are read and the "
                      "others left out", stacklevel=2)
    found = _object(source, "trials")
    columns: dict[str, np.ndarray] = {}
    for name, values in sorted(found.items(), key=lambda item: isinstance(item[1], pd.DataFrame)):      # it has the say
        if isinstance(values, pd.DataFrame):                            # trials.table
            columns |= {str(c): values[c].to_numpy() for c in values}
        elif np.ndim(values) == 2 and np.shape(values)[1] > 1:
            columns |= {f"{name}_{k}": np.asarray(values)[:, k] for k in range(np.shape(values)[1])}
        else:
            columns[name] = np.ravel(values)
    if not {"intervals_0", "intervals_1"} <= set(columns):
        if columns:
            warnings.warn(f"{source.where}: the trials have no intervals (only {', '.join(columns)}), and are left out",
                          stacklevel=2)
        return pd.DataFrame({"start": np.empty(0), "stop": np.empty(0)})
    odd = [f"{name} {len(values):,}" for name, values in columns.items() if len(values) != len(columns["intervals_0"])]
    if odd:
        raise BadRecording(f"{source.where}: trials.intervals has {len(columns['intervals_0']):,} rows, and "
                           f"{', '.join(odd)}; the files are of different revisions: fetch them again")
    start, stop = (columns.pop(name).astype(np.float64) for name in ("intervals_0", "intervals_1"))
    table = pd.DataFrame({"start": start, "stop": stop, **dict(sorted(columns.items()))})
    whole = np.isfinite(start) & np.isfinite(stop)
    if not whole.all():
        warnings.warn(f"{source.where}: {(~whole).sum():,} of {len(table):,} trials have no start or no end and are "
                      "left out", stacklevel=2)
    return table[whole].sort_values("start", kind="stable", ignore_index=True)


def series(source, wheel_rate: float) -> dict[str, Series]:
    """name → series of what the folder has of the wheel, the licks and the cameras."""
    return _wheel(source, wheel_rate) | _licks(source) | _motion_energy(source)


def _object(source, name: str, *attributes: str) -> dict:
    """The object from the uppermost folder that has it."""
    where = source.collections(name)
    return source.load(min(where, key=len), name, attributes or None) if where else {}


def _wheel(source, rate: float) -> dict[str, Series]:
    """Position and velocity on a regular grid. A sample is written when the wheel moves: in between it stands still
    or moves by less than a step of the encoder, so a straight line is what is known."""
    wheel = _object(source, "wheel", "position", "timestamps")
    if not {"position", "timestamps"} <= set(wheel):
        return {}
    if not rate > 0:
        raise BadRecording(f"wheel_rate is {rate}; give the samples per second that the wheel should have")
    position, times = np.ravel(wheel["position"]).astype(np.float64), np.asarray(wheel["timestamps"], np.float64)
    if times.ndim == 2 and times.shape[1] == 2:                         # (sample, time) of the first, ... and the last
        times = np.interp(times[0, 0] + np.arange(len(position)), times[:, 0], times[:, 1])     # counted from 0 or 1
    times = np.ravel(times)
    if len(times) != len(position):
        raise BadRecording(f"{source.where}: {len(position):,} wheel.position and {len(times):,} wheel.timestamps; "
                           "fetch both again")
    times, position = _increasing(times, position)
    if len(times) < 2:
        return {}
    grid = np.arange(np.ceil(times[0] * rate), np.floor(times[-1] * rate) + 1) / rate
    if len(grid) < 2:
        return {}
    smooth = np.interp(grid, times, position)
    return {"wheel_position": Series(grid, smooth[:, None], "rad"),
            "wheel_velocity": Series(grid, np.gradient(smooth, 1 / rate)[:, None], "rad/s")}


def _licks(source) -> dict[str, Series]:
    found = _object(source, "licks", "times")
    if "times" not in found:
        return {}
    times = np.ravel(found["times"]).astype(np.float64)
    times, ones = _increasing(times, np.ones(len(times)))
    return {"licks": Series(times, ones[:, None], "licks")} if len(times) else {}


def _motion_energy(source) -> dict[str, Series]:
    found = {}
    for side in CAMERAS:
        camera = _object(source, f"{side}Camera", "times", "ROIMotionEnergy")
        times, energy = camera.get("times"), camera.get("ROIMotionEnergy")
        if times is None or energy is None:
            continue
        times, energy = np.ravel(times).astype(np.float64), np.ravel(energy).astype(np.float64)
        if len(times) != len(energy):                                   # frames were dropped: which ones is not known
            warnings.warn(f"{source.where}: {side}Camera has {len(times):,} times and {len(energy):,} values of motion "
                          "energy, so nothing says which belongs where; it is left out", stacklevel=2)
            continue
        times, energy = _increasing(times, energy)
        if len(times):
            found[f"{side}_motion_energy"] = Series(times, energy[:, None], "a.u.")
    return found


def _increasing(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by time, without repeats and without samples that have no time or no value."""
    good = np.isfinite(times) & np.isfinite(values)
    times, first = np.unique(times[good], return_index=True)
    return times, values[good][first]
