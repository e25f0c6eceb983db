"""FALCON, few-shot decoding over days: the public files of M1, M2, H1 and H2, each with its own idea of a bin.

Karpowicz et al. 2024, bioRxiv 2024.09.15.613126; DANDI 000941 (M1), 000953 (M2), 000954 (H1), 000950 (H2). Facts of the
layouts are from the dandisets' file listings and from falcon-challenge 1.0.2 (MIT), with whose loader bins agree.

    M1, M2   units, trials; preprocessed_emg (16 muscles) at the ends, finger_vel, finger_pos at the starts of bins
    H1       units; OpenLoopKinematics and its velocity (7 dimensions), bins by offset and step; TrialNum → trials
    H2       no units but counts of 192 channels a bin → spikes spread over it; trials with the sentence (`cue`)
    all      eval_mask (1: scored) as a series

Every series has its samples at the centres of the benchmark's 20 ms bins, so that bins of that width which start half a
step before a sample are those of the evaluator. What DANDI calls subjects are the splits of one subject: calibration
and minival files come as `split` of the trials. Minival files are pieces of the held-in calibration files, there to try
a submission: whoever trains on the latter and scores on the former scores on data that was trained on.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.files import existing
from workbench.session import Series, Session
from workbench.sources import nwb, nwb_tables

BIN = 0.02                                                              # seconds
TASKS = {"finger_vel": "M2", "preprocessed_emg": "M1", "OpenLoopKinematicsVelocity": "H1", "binned_spikes": "H2"}
STARTS = ("M2", "H2")                                                   # their times are bin starts; the others' ends
SIGNALS = ("finger_vel", "finger_pos", "preprocessed_emg")
KINEMATICS = ("OpenLoopKinematics", "OpenLoopKinematicsVelocity")
HAND_KNOB = "motor cortex (hand knob)"                                  # all that H1 and H2 say of their arrays


def read(path: str | Path, *, id: str | None = None) -> Session:
    """The session of one file; `id` is by default the file's name, which has split and day in it.

    Units keep the order of the file, which is the order of channels that the evaluator shows to decoders.

    Raises BadRecording for a file that is none of the four tasks', or lacks a part of its task's layout.
    """
    path = existing(path)
    if not h5py.is_hdf5(path):
        raise BadRecording(f"{path} is not an NWB file of FALCON: it is not HDF5; download it again")
    try:
        with h5py.File(path, "r") as file:
            signals = file.get("acquisition", {})
            task = next((task for name, task in TASKS.items() if name in signals), "")
            if not task:
                raise BadRecording(f"{path} is no file of FALCON's M1, M2, H1 or H2: its acquisition has "
                                   f"{', '.join(signals) or 'nothing'}; read it with the loader nwb")
            series, trials = _kinematics(signals) if task == "H1" else (_series(signals, task), None)
            counts = signals["binned_spikes"]["data"][:] if task == "H2" else None
            observed = task in ("M1", "M2") and "obs_intervals" in file.get("units", {})
    except KeyError as error:
        raise BadRecording(f"{path}: the layout of FALCON {task} is incomplete ({error.args[0]}); download it "
                           "again") from None
    except OSError as error:
        raise BadRecording(f"{path} is damaged or only a part of the file ({error}); download it again") from None
    bins = next(iter(series.values())).times
    session = _sorted(path, task) if counts is None else _binned(path, bins, counts)
    subject, split = _name(path)
    trials = (session.trials if trials is None else trials).assign(split=split)
    session = replace(session, series=series, trials=trials, subject=subject or session.subject,
                      id=id or re.sub(r"^sub-|_behavior\+ecephys$", "", path.stem))
    return session if observed else replace(session, intervals=_recorded(bins))


def _name(path: Path) -> tuple[str, str]:
    """The subject and the split that a file's name tells: sub-MonkeyN-held-in-calib_ses-… → MonkeyN, held_in_calib."""
    found = re.match(r"(?:sub-)?([^-_]+)[-_](?:.*?[-_])?(held[-_](?:in|out)[-_][a-z]+)", path.stem)
    return (found[1], found[2].replace("-", "_")) if found else ("", "")


def _centres(signal: h5py.Group, task: str) -> np.ndarray:
    return signal["timestamps"][:].astype(np.float64) + (BIN / 2 if task in STARTS else -BIN / 2)


def _recorded(centres: np.ndarray) -> np.ndarray:
    """Where there are bins [n, 2]; bins that touch are one interval."""
    breaks = np.flatnonzero(np.diff(centres) > 1.05 * BIN)
    first, last = centres[np.append(0, breaks + 1)], centres[np.append(breaks, len(centres) - 1)]
    return np.stack([first - BIN / 2, last + BIN / 2], axis=1)


def _series(signals: h5py.Group, task: str) -> dict[str, Series]:
    """The behaviour, its parts as columns in the order of the file, and the mask."""
    found = {}
    for name in SIGNALS:
        if name in signals:
            parts = {part: item for part, item in signals[name].items() if isinstance(item, h5py.Group)}
            if not parts or len({len(part["data"]) for part in parts.values()}) > 1:
                raise KeyError(f"{name} has no parts of one length")
            first = next(iter(parts.values()))
            found[name] = Series(_centres(first, task), np.stack([p["data"][:] for p in parts.values()], axis=1),
                                 _text(first["data"].attrs.get("unit", "")), tuple(parts))
    bins = next(iter(found.values())).times if found else _centres(signals["binned_spikes"], task)
    return found | {"eval_mask": _mask(signals, bins)}


def _mask(signals: h5py.Group, bins: np.ndarray) -> Series:
    """Which bins are scored. Its values belong to bins by their place, as the evaluator reads them, not by a clock."""
    scored = signals["eval_mask"]["data"][:].astype(np.uint8).reshape(-1, 1)
    if len(scored) != len(bins):
        raise KeyError(f"eval_mask has {len(scored)} values for {len(bins)} bins")
    return Series(bins, scored)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _kinematics(signals: h5py.Group) -> tuple[dict[str, Series], pd.DataFrame]:
    """H1's kinematics, mask and trials.

    Its `offset` is the time of the first bin's end, not to be added to the values, and its `rate` the step in seconds.
    """
    clock = signals["OpenLoopKinematics"]
    start, step = float(clock["data"].attrs["offset"]), float(clock["starting_time"].attrs["rate"])
    if not abs(step - BIN) < 1e-6:
        raise KeyError(f"a step of {BIN} s between bins; there it is {step:g}")
    times = start + np.arange(len(clock["data"])) * step - BIN / 2
    columns = tuple(part.strip() for part in _text(clock.attrs.get("description", "")).split(","))
    found = {}
    for name in KINEMATICS:
        values = signals[name]["data"][:]
        found[name] = Series(times, values, "", columns if len(columns) == values.shape[1] else ())
    found["eval_mask"] = _mask(signals, times)
    number = signals["TrialNum/data"][:].ravel()
    numbered = np.isfinite(number)                                      # a bin without a number is of no trial
    first = np.flatnonzero(numbered & (number != np.append(np.nan, number[:-1])))
    last = np.flatnonzero(numbered & (number != np.append(number[1:], np.nan)))
    return found, pd.DataFrame({"start": times[first] - BIN / 2, "stop": times[last] + BIN / 2,
                                "trial_num": number[first]})


def _sorted(path: Path, task: str) -> Session:
    """Units and trials as the generic reader finds them, without signals."""
    with warnings.catch_warnings():
        if task == "H1":                                                # no electrodes; epochs that repeat TrialNum
            warnings.filterwarnings("ignore", "no region is given|columns with lists or references")
        session = nwb.read(path, series=[])
    return session if task != "H1" else replace(session, units=session.units.assign(region=HAND_KNOB))


def _binned(path: Path, centres: np.ndarray, counts: np.ndarray) -> Session:
    """H2: the spikes of a bin are spread evenly over it, since nothing finer is known of them (`resolution`)."""
    with nwb.opened(path) as file:
        trials = nwb_tables.events(file)[0]
        about = {"subject": (file.subject and file.subject.subject_id) or "",
                 "species": (file.subject and file.subject.species) or "",
                 "task": file.experiment_description or "", "description": file.session_description or ""}
    bins, units = np.nonzero(counts)
    many = counts[bins, units].astype(np.int64)
    nth = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    times = np.repeat(centres[bins] - BIN / 2, many) + BIN * (nth + 0.5) / np.repeat(many, many)
    order = np.argsort(times, kind="stable")
    return Session(id=path.stem, spike_times=times[order], spike_units=np.repeat(units, many)[order], resolution=BIN,
                   units=pd.DataFrame({"id": [str(i) for i in range(counts.shape[1])], "region": HAND_KNOB}),
                   trials=trials, **about)
