"""Sessions from HDF5 files that torch_brain wrote (`torch_brain.data.Data.to_hdf5`, or temporaldata's before it).

    /spikes → spikes · /units → units · /domain → intervals · /trials, else every other Interval → trials
    every other time series → one series a field: group `hand` with fields `pos` and `vel` → hand_pos, hand_vel

Facts of the format are from torch_brain 0.2.1: every group names its class in the attribute `object`; text is ASCII
bytes, its fields listed in `_unicode_keys`; a regular series with gaps has samples outside its domain that nobody
measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.session import Series, Session
from workbench.sources.columns import Column, stacked, table
from workbench.sources.mapped import Mapped, unit_rows


def is_data(group: h5py.Group) -> bool:
    return _kind(group) == "Data"


def read_foreign(path: Path, file: h5py.File) -> Session:
    """The session in an open file of torch_brain's.

    BadRecording where it holds neither spikes nor a series, or spikes of which nothing says whose they are.
    """
    whole, series = Mapped(path, file), {}
    for name, group in _groups(file, ("RegularTimeSeries", "IrregularTimeSeries")):
        if name != "spikes":
            series.update(_series(name, group, whole))
    if "spikes" not in file and not series:
        raise BadRecording(f"{path} holds neither the group 'spikes' nor a time series; it has "
                           f"{', '.join(file) or 'nothing'}")

    spikes = file.get("spikes", {})
    if spikes and "unit_index" not in spikes:
        raise BadRecording(f"{path}: its spikes have no unit_index, so nothing says which spike is whose; they have "
                           f"{', '.join(spikes)}")
    rows = unit_rows(whole["/spikes/unit_index"]) if spikes else np.empty(0, np.int32)
    units = table(_columns(file["units"])) if "units" in file else pd.DataFrame()
    if "id" not in units:
        number = len(units) if len(units.columns) else int(rows.max(initial=-1)) + 1
        units.insert(0, "id", [str(row) for row in range(number)])
    intervals = {name: _interval(group) for name, group in _groups(file, ("Interval",))
                 if not name.endswith("domain") and name != "stimuli"}
    trials = intervals.get("trials")
    other = {name: rows for name, rows in intervals.items() if len(rows)}

    def said(group: str, name: str) -> str:
        found = file[group].attrs.get(name, "") if group in file else ""
        return found.decode() if isinstance(found, bytes) else str(found)

    return Session(
        id=said("session", "id") or path.stem, task=said("session", "task"), subject=said("subject", "id"),
        species=said("subject", "species"), dataset=said("brainset", "id"),
        description=said("brainset", "description"), units=units, series=series,
        spike_times=whole["/spikes/timestamps"] if spikes else np.empty(0), spike_units=rows,
        intervals=_domain(file["domain"]) if "domain" in file else None,
        trials=stacked(other) if trials is None else trials,
        stimuli=_interval(file["stimuli"]) if "stimuli" in file else stacked({}))


def _kind(item: h5py.HLObject) -> str:
    kind = item.attrs.get("object", "") if isinstance(item, h5py.Group) else ""
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _groups(group: h5py.Group, kinds: tuple[str, ...], prefix: str = "") -> Iterator[tuple[str, h5py.Group]]:
    for name, item in group.items():
        if _kind(item) in kinds:
            yield prefix + name, item
        elif is_data(item):
            yield from _groups(item, kinds, f"{prefix}{name}_")


def _series(name: str, group: h5py.Group, whole: Mapped) -> Iterator[tuple[str, Series]]:
    skip = {"domain", "timestamps", "timestamp_indices_1s"}
    fields = [f for f, item in group.items() if f not in skip and item.dtype.kind in "biuf" and item.ndim]
    keep: np.ndarray | slice = slice(None)
    if _kind(group) == "IrregularTimeSeries":
        times = whole[f"{group.name}/timestamps"]
    else:
        domain, rate = _domain(group["domain"]), float(group.attrs["sampling_rate"])
        length = len(group[fields[0]]) if fields else 0
        times = domain[0, 0] + np.arange(length) / rate
        if len(domain) > 1:
            edges = np.rint((domain - domain[0, 0]) * rate).astype(int)
            keep = np.concatenate([np.arange(a, min(b, length)) for a, b in edges])
    for field in fields:
        values = whole[f"{group.name}/{field}"]
        values = values.reshape(len(values), int(np.prod(values.shape[1:])))[keep]      # -1 fails where there are none
        yield name if fields == ["values"] else f"{name}_{field}", Series(times[keep], values)


def _columns(group: h5py.Group) -> list[Column]:
    found = []
    for name, item in sorted(group.items(), key=lambda pair: pair[0] != "id"):
        values = item[()]
        if values.dtype.kind in "SO":
            text = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.tolist()]
            values = np.array(text, object)
        if values.ndim == 1 and values.dtype.kind in "biufO":
            found.append(Column(name, values, []))
        elif values.ndim == 2 and values.dtype.kind in "biuf":
            found += [Column(f"{name}_{i}", values[:, i], []) for i in range(values.shape[1])]
    return found


def _interval(group: h5py.Group) -> pd.DataFrame:
    rows = table(_columns(group)).rename(columns={"end": "stop"})
    return rows[["start", "stop", *(c for c in rows if c not in ("start", "stop"))]]


def _domain(group: h5py.Group) -> np.ndarray:
    return np.stack([group["start"][:], group["end"][:]], axis=1).astype(np.float64)
