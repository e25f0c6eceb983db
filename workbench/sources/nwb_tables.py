"""Columns of NWB's tables as plain arrays: unit ids, scalar metrics, the electrodes of units, trials and stimuli.

    DynamicTable → scalars → numbers and text, one a row; ragged and wide columns stay behind
    intervals/*  → events  → trials, stimuli, invalid times
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from hdmf.common import DynamicTable, DynamicTableRegion, EnumData, VectorIndex
from pynwb import NWBFile
from pynwb.epoch import TimeIntervals

from workbench.errors import BadRecording
from workbench.sources.columns import stacked

NOT_SCALAR = ("spike_times", "obs_intervals", "electrodes", "electrode_group", "timeseries", "tags", "waveform_mean",
              "waveform_sd", "waveforms", "pixel_mask", "image_mask", "voxel_mask")
WIDEST = 6                                                              # columns of a wide column that are kept apart


def counts(column: VectorIndex, where: str) -> np.ndarray:
    """How many entries of the flat data each row of a ragged column has [n]."""
    ends = np.asarray(column.data[:], np.int64)
    found = np.diff(ends, prepend=0)
    if (found < 0).any() or (len(ends) and ends[-1] != len(column.target.data)):
        raise BadRecording(f"{where} is broken: its index does not fit its {len(column.target.data):,} values")
    return found


def spikes(column: VectorIndex, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Spike times [S] float64, unit after unit, and the row of each [S] int32: of all units, or of the `chosen` rows.

    Nothing of the other units is read: neighbours among the chosen are one slice of the file.
    """
    many = counts(column, "units.spike_times")
    if chosen is None:
        return np.asarray(column.target.data[:], np.float64), np.repeat(np.arange(len(many), dtype=np.int32), many)
    ends = np.cumsum(many)
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1) if len(chosen) else []
    parts = [np.asarray(column.target.data[int(ends[run[0]] - many[run[0]]):int(ends[run[-1]])], np.float64)
             for run in runs]
    return np.concatenate([np.empty(0), *parts]), np.repeat(chosen.astype(np.int32), many[chosen])


def unit_ids(table: DynamicTable) -> list[str]:
    """The text column `unit_name` where it is unique, else the ids, else, with a warning, row numbers."""
    names = scalars(table).get("unit_name")
    ids = [str(i) for i in (names if names is not None and len(set(names)) == len(names) else table.id[:])]
    if len(set(ids)) < len(ids):
        warnings.warn(f"the ids of the table {table.name!r} are not unique; units are named by their row", stacklevel=2)
        return [str(row) for row in range(len(ids))]
    return ids


def scalars(table: DynamicTable) -> dict[str, np.ndarray]:
    """The columns of the table with one number, truth value or text a row, by name; text as object arrays of str."""
    return _split(table)[0]


def _split(table: DynamicTable) -> tuple[dict[str, np.ndarray], list[str]]:
    found, left = {}, []
    for name in table.colnames:
        if name in NOT_SCALAR:
            continue
        values = _values(table[name], f"{table.name}.{name}")
        if values is None or len(values) != len(table.id):
            left.append(name)
        elif values.ndim == 1:
            found[name] = values
        else:
            found.update({f"{name}_{i}": values[:, i] for i in range(values.shape[1])})
    return found, left


def _values(column, where: str) -> np.ndarray | None:
    """One value a row [n], or a few [n, k]; None for what is ragged, wide or refers to something else."""
    if isinstance(column, DynamicTableRegion):
        return None
    if isinstance(column, VectorIndex):
        if isinstance(column.target, (VectorIndex, DynamicTableRegion)) or (counts(column, where) != 1).any():
            return None
        column = column.target
    shape = np.shape(column.data)
    if len(shape) > 2 or (len(shape) == 2 and shape[1] > WIDEST):       # waveforms by any name: never read
        return None
    values = np.asarray(column.data[:])
    if isinstance(column, EnumData):
        values = np.asarray(column.elements.data[:])[values.astype(np.int64)]
    if values.dtype.kind in "SUO":
        if values.ndim != 1 or not all(isinstance(v, (str, bytes)) for v in values):
            return None
        return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values], object)
    return values.astype(values.dtype.newbyteorder("="), copy=False) if values.dtype.kind in "biuf" else None


def electrodes(nwb: NWBFile, table: DynamicTable) -> dict[str, np.ndarray]:
    """What the first electrode of every unit says: location, group_location, group_name [n] text, depth, x, y, z.

    Warns of units that list electrodes of several locations: a file that lists all of a probe says nothing of them.
    """
    n = len(table.id)
    where, rows = _first_electrodes(nwb, table)
    if where is None:
        if "electrode_group" not in table.colnames:
            return {}
        groups = [table["electrode_group"].data[row] for row in range(n)]
        return {"group_name": np.array([g.name for g in groups], object),
                "group_location": np.array([str(g.location or "unknown") for g in groups], object)}
    known = (rows >= 0) & (rows < len(where.id))
    found = {}
    for name, values in scalars(where).items():
        text = values.dtype == object
        if text or (values.dtype.kind in "iuf" and np.isfinite(values).any()):
            found[name] = np.full(n, "" if text else np.nan, object if text else np.float64)
            found[name][known] = values[rows[known]]
    places = {name: str(group.location or "unknown") for name, group in nwb.electrode_groups.items()}
    if "group_name" in found:
        found["group_location"] = np.array([places.get(name, "unknown") for name in found["group_name"]], object)
    return found


def _first_electrodes(nwb: NWBFile, table: DynamicTable) -> tuple[DynamicTable | None, np.ndarray]:
    n = len(table.id)
    if "electrodes" in table.colnames:
        column = table["electrodes"]
        if not isinstance(column, VectorIndex):
            return column.table, np.asarray(column.data[:], np.int64)
        rows, many = np.full(n, -1, np.int64), counts(column, f"{table.name}.electrodes")
        flat = np.asarray(column.target.data[:], np.int64)
        rows[many > 0] = flat[(np.cumsum(many) - many)[many > 0]]
        _tell_of_several(column.target.table, flat, np.repeat(np.arange(n), many))
        return column.target.table, rows
    peak = scalars(table).get("peak_channel_id")
    if peak is not None and nwb.electrodes is not None:
        at = {int(electrode): row for row, electrode in enumerate(nwb.electrodes.id[:])}
        return nwb.electrodes, np.array([at.get(int(channel), -1) for channel in peak], np.int64)
    return None, np.empty(0, np.int64)


def _tell_of_several(where: DynamicTable, rows: np.ndarray, units: np.ndarray) -> None:
    locations = scalars(where).get("location")
    known = (rows >= 0) & (rows < len(where.id))
    if locations is None or not known.any():
        return
    place = np.unique(locations.astype(str), return_inverse=True)[1][rows[known]]
    several = (np.bincount(np.unique(np.stack([units[known], place]), axis=1)[0]) > 1).sum()
    if several:
        warnings.warn(f"{several:,} units list electrodes of several locations; each is placed at the first it lists",
                      stacklevel=2)


def events(nwb: NWBFile) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """trials, stimuli and invalid times [n, 2].

    `trials` is the table of that name or, without one, every other table of intervals, told apart by a column `table`;
    epochs count only where there is nothing else. Tables named `*_presentations` are stimuli. What does not count is
    named in a warning.
    """
    named = {name: rows for name, rows in (nwb.intervals or {}).items() if isinstance(rows, TimeIntervals)}
    named |= {rows.name: rows for rows in (nwb.trials, nwb.epochs, nwb.invalid_times) if rows is not None}
    invalid = named.pop("invalid_times", None)
    shown = {name: named.pop(name) for name in [*named] if name.endswith("_presentations")}
    counted = ["trials"] if "trials" in named else [n for n in named if n != "epochs"] or ["epochs"]
    beside = [name for name, rows in named.items() if name not in counted and len(rows.id)]
    if beside:
        warnings.warn(f"tables of intervals that are no trials are left out: {', '.join(beside)}", stacklevel=2)
    named = {name: rows for name, rows in named.items() if name in counted}
    left: list[str] = []
    tables = [stacked({name: _events(rows, left) for name, rows in found.items()}) for found in (named, shown)]
    if left:
        warnings.warn(f"columns with lists or references in their cells are left out: {', '.join(left)}", stacklevel=2)
    never = np.empty((0, 2)) if invalid is None else _events(invalid, [])[["start", "stop"]].to_numpy()
    return *tables, never[np.isfinite(never).all(axis=1) & (never[:, 1] > never[:, 0])]


def _events(table: TimeIntervals, left: list[str]) -> pd.DataFrame:
    if not {"start_time", "stop_time"} <= set(table.colnames):
        raise BadRecording(f"the table {table.name!r} lacks start_time or stop_time; it has "
                           f"{', '.join(table.colnames) or 'no columns'}")
    found, behind = _split(table)
    left += [f"{table.name}.{name}" for name in behind]
    rows = {"start": found.pop("start_time").astype(np.float64), "stop": found.pop("stop_time").astype(np.float64)}
    rows |= {name + "_" * (name in rows): values for name, values in found.items()}
    back = rows["stop"] < rows["start"]
    if back.any():
        warnings.warn(f"{back.sum():,} of {len(back):,} rows of the table {table.name!r} stop before they start and "
                      "are left out; stop_time must be a time in seconds, no duration", stacklevel=3)
    return pd.DataFrame(rows)[~back].infer_objects().sort_values("start", kind="stable", ignore_index=True)
