"""The Neural Latents Benchmark's files: the generic NWB reader, and what is particular to the benchmark.

Pei et al. 2021, arXiv 2109.04463; MC_Maze and its scaled sets, MC_RTT, Area2_Bump and DMFC_RSG on DANDI (CC-BY-4.0).

    train file → spikes, units with `heldout`, trials with `split` (train, val), behaviour at 1 kHz on a regular grid
    test file  → spikes and units only: no behaviour, no held-out units, trials without conditions

The recordings were cut into trials, so that behaviour has gaps; on the grid they are NaN, which windows and scores
leave out. The time of a split: `session.trials.query("split == 'val'")[["start", "stop"]].to_numpy()`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.session import Series, Session
from workbench.sources import nwb

TRUE = ("true", "1", "1.0")                                            # however a file writes it; "False" is text too
OFF_GRID = 0.25                                                         # of a step: further off is another clock


def read(path: str | Path, *, id: str | None = None, series: Sequence[str] | None = None,
         arrays: Sequence[str] | None = None) -> Session:
    """The session of one file of the benchmark; `id` is by default the file's name without what all have in common.

    series: only these (None: all), as in `workbench.sources.nwb.read`.
    arrays: the regions of units 1000 to 1999, 2000 to 2999, ..., where ids say it better than the electrodes do.

    `units.heldout` is there in every file: false throughout in test files, whose held-out units nobody publishes.
    Raises BadRecording for what the generic reader refuses, and for behaviour that lies on no regular grid.
    """
    path = Path(path)
    name = id or re.sub(r"^sub-|_(behavior\+)?ecephys$", "", path.stem)
    session = nwb.read(path, id=name, series=series)
    units = session.units
    held = units["heldout"].astype(str).str.lower().isin(TRUE) if "heldout" in units else False
    units = units.assign(heldout=held)
    if arrays is not None:
        units = units.assign(region=_by_id(units["id"], arrays, path))
    gridded = {name: _on_grid(name, signal, path) for name, signal in session.series.items()}
    return replace(session, units=units, series=gridded)


def _by_id(ids: pd.Series, arrays: Sequence[str], path: Path) -> list[str]:
    number = pd.to_numeric(ids, errors="coerce").to_numpy(float) // 1000
    known = (number >= 1) & (number <= len(arrays))
    if not known.all():
        raise BadRecording(f"{path}: unit {ids[~known].iloc[0]!r} belongs to none of the arrays {', '.join(arrays)}, "
                           f"which are those of units 1000 to {len(arrays)}999; leave `arrays` out")
    return [arrays[int(n) - 1] for n in number]


def _on_grid(name: str, signal: Series, path: Path) -> Series:
    """The series with a sample at every step from the first to the last, NaN where nobody measured."""
    if len(signal.times) < 2 or signal.rate:
        return signal
    step = signal.interval
    place = (signal.times - signal.times[0]) / step
    at = np.rint(place).astype(np.int64)
    if np.abs(place - at).max() > OFF_GRID or (np.diff(at) < 1).any():
        worst = int(np.abs(place - at).argmax())
        raise BadRecording(f"{path}: series {name!r} lies on no regular grid of {step:g} s (its sample at "
                           f"{signal.times[worst]:.6g} s is off it); read the file with the loader nwb, which keeps "
                           "its times as they are")
    values = np.full((at[-1] + 1, signal.values.shape[1]), np.nan,
                     np.result_type(signal.values.dtype, np.float32))
    values[at] = signal.values
    return signal._replace(times=signal.times[0] + np.arange(len(values)) * step, values=values)
