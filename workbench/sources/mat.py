"""A MATLAB file as a Session, by a written mapping: layouts of laboratories differ, and none is guessed.

    loader: mat, loader_options of the catalog (or arguments of `read`) say where in the file things are:

        spikes: data.units.times       a cell, or a field of a struct array: one list of times a unit
        time_unit: ms                  s, ms, us, or samples with sampling_rate
        regions: data.units.area       optional: one text a unit
        trials: data.trials            optional: a struct of columns, or a matrix [n, 2] of start and stop
        start: t_on                    the columns of `trials` that are start and stop
        stop: t_off
        series: ["hand_vel = kin.v @ kin.t [cm/s]"]    optional: name = values @ times [unit of measure]

A path names struct fields with dots; variables that no path names are not read. Files of version 5 to 7 are read by
scipy, of version 7.3 (HDF5) by h5py; both become the same plain values: cell → list (of more than a row or a column:
list of rows), struct → dict, struct array → dict of lists, char → text. What only MATLAB can read (string, table,
datetime) is told where a path leads to it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.io

from workbench.errors import BadRecording
from workbench.files import existing
from workbench.session import Series, Session

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}                                # how many make a second
SERIES = re.compile(r"\s*(?P<name>[^=]+?)\s*=\s*(?P<values>[\w.]+)\s*@\s*(?P<times>[\w.]+)\s*(?:\[(?P<unit>.*)\])?\s*")


def read(path: str | Path, *, spikes: str, time_unit: str, sampling_rate: float | None = None,
         spike_units: str | None = None, ids: str | None = None, regions: str | None = None, trials: str | None = None,
         start: str = "start", stop: str = "stop", series: list[str] | None = None, id: str | None = None) -> Session:
    """The session in a .mat file, of which every part is named by its path in the file.

    spikes: a cell with one list of times a unit or, with `spike_units`, one list of all times; spike_units: then the
    number of the unit of each. time_unit: of the spikes, of start and stop of trials, and of the times of series; other
    columns of trials stay as they are, those of k values a trial become name_0 to name_k-1. ids, regions: one a unit,
    in the order of the cell or of the numbers of the units. The rest as in the head of this module.

    Trials without a start or a stop, and fields of trials that are no columns, are left out with a warning. Raises
    BadRecording for a file that is not MATLAB's, a path that is not in it (with what is there), and values that are
    not what the mapping says.
    """
    path = existing(path)
    scale = _scale(time_unit, sampling_rate)
    content = _File(path)
    times, rows, names = _spikes(content, spikes, spike_units)
    areas = [""] * len(names) if regions is None else content.texts(regions, len(names))
    units = pd.DataFrame({"id": names if ids is None else content.texts(ids, len(names)),
                          "region": [area or "unknown" for area in areas]})
    order = np.argsort(times, kind="stable")
    return Session(
        id=id or path.stem, spike_times=times[order] / scale, spike_units=rows[order], units=units,
        trials=_trials(content, trials, start, stop, scale), series=_series(content, series or [], scale),
        resolution=1 / scale if time_unit == "samples" else 0.0)


def _scale(time_unit: str, sampling_rate: float | None) -> float:
    """How many of the file's units of time make a second."""
    if time_unit in UNITS:
        return UNITS[time_unit]
    if time_unit != "samples":
        raise BadRecording(f"time_unit is {time_unit!r}; it must be one of {', '.join(UNITS)}, samples")
    if not sampling_rate or sampling_rate <= 0:
        raise BadRecording("time_unit is 'samples', which needs sampling_rate, in Hz")
    return float(sampling_rate)


def _spikes(content: _File, path: str, unit_path: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Times [S] in the file's unit, rows [S], names of the units, counted from 1 where the file has no numbers."""
    value = content.at(path)
    if unit_path:
        times, of = content.vector(path), content.vector(unit_path)
        if len(times) != len(of):
            raise BadRecording(f"{content.file}: {len(times):,} times in {path} and {len(of):,} units in {unit_path}; "
                               "they must be as many")
        numbers, rows = np.unique(of, return_inverse=True)
        return times, rows.astype(np.int32), [_name(n) for n in numbers]
    if isinstance(value, np.ndarray) and "." in path:                   # a struct array of one is a struct
        warnings.warn(f"{content.file}: {path} is one list of times, so it is taken for one unit; if it holds the "
                      "times of all units, name the unit of each in spike_units", stacklevel=3)
        value = [value]
    if not isinstance(value, list):
        raise BadRecording(f"{content.file}: {path} is {_kind(value)}, not a cell with one list of times a unit; if it "
                           "holds the times of all units, name the unit of each in spike_units")
    parts = [_numbers(v, content.file, f"{path}{{{i + 1}}}") for i, v in enumerate(value)]
    rows = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts])
    return np.concatenate([*parts, np.empty(0)]), rows, [str(i + 1) for i in range(len(parts))]


def _trials(content: _File, path: str | None, start: str, stop: str, scale: float) -> pd.DataFrame:
    if path is None:
        return pd.DataFrame({"start": np.empty(0), "stop": np.empty(0)})
    value = content.at(path)
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 2:
        columns = {"start": value[:, 0].astype(np.float64), "stop": value[:, 1].astype(np.float64)}
    elif isinstance(value, dict):
        for name in (start, stop):
            if name not in value:
                raise BadRecording(f"{content.file}: {path} has no field {name!r}, which the mapping says is the start "
                                   f"or stop of trials; it has {', '.join(value)}")
        columns = {"start": content.vector(f"{path}.{start}"), "stop": content.vector(f"{path}.{stop}")}
        more = {name: _columns(name, v, len(columns["start"])) for name, v in value.items()
                if name not in (start, stop, *columns)}
        lost = [name for name, parts in more.items() if not parts]
        if lost:
            warnings.warn(f"{content.file}: {', '.join(lost)} in {path} have not one value for each of the "
                          f"{len(columns['start'])} trials, and are left out", stacklevel=3)
        columns |= {name: part for parts in more.values() for name, part in parts.items()}
    else:
        raise BadRecording(f"{content.file}: {path} is {_kind(value)}; trials are a struct of columns, or a matrix "
                           "[n, 2] of start and stop")
    if len(columns["start"]) != len(columns["stop"]):
        raise BadRecording(f"{content.file}: {len(columns['start'])} starts and {len(columns['stop'])} stops in {path}")
    table = pd.DataFrame(columns)
    table = table.assign(start=table["start"] / scale, stop=table["stop"] / scale)
    whole = np.isfinite(table["start"]) & np.isfinite(table["stop"])
    if not whole.all():
        warnings.warn(f"{content.file}: {(~whole).sum():,} of {len(table):,} trials in {path} have no start or no stop "
                      "and are left out", stacklevel=3)
    if (table["stop"] < table["start"]).any():
        raise BadRecording(f"{content.file}: a trial in {path} stops before it starts; check which is start and which "
                           "is stop, and that stop is a time and not a duration")
    return table[whole].sort_values("start", kind="stable", ignore_index=True)


def _columns(name: str, value: Any, n: int) -> dict[str, list | np.ndarray]:
    """A field of trials as one column, or as one for each of its k values a trial; nothing if it has no such shape."""
    if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == n and value.shape[1] > 1:
        return {f"{name}_{k}": value[:, k] for k in range(value.shape[1])}
    column = _column(value, n)
    return {} if column is None else {name: column}


def _column(value: Any, n: int) -> list | np.ndarray | None:
    """One value for each of n; an empty one is NaN. None for what has no such shape."""
    if isinstance(value, str):
        return [value] if n == 1 else None
    if isinstance(value, np.ndarray):
        return value.ravel() if value.size == n else None
    if not isinstance(value, list) or len(value) != n:
        return None
    flat = [v if isinstance(v, str) else None if not isinstance(v, np.ndarray) or v.size > 1
            else v.ravel()[0] if v.size else np.nan for v in value]
    return None if any(v is None for v in flat) else flat


def _series(content: _File, wanted: list[str], scale: float) -> dict[str, Series]:
    found = {}
    for text in wanted:
        said = SERIES.fullmatch(text)
        if not said:
            raise BadRecording(f"the mapping of a series is 'name = values @ times [unit]', not {text!r}")
        times, values = content.vector(said["times"]) / scale, content.at(said["values"])
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or values.ndim != 2:
            raise BadRecording(f"{content.file}: {said['values']} is {_kind(values)}, not numbers [T, D]")
        values = values.T if 1 in values.shape and len(values) != len(times) else values        # a MATLAB row
        found[said["name"]] = Series(times, values, said["unit"] or "")
    return found


class _File:
    """The variables of a .mat file of any version as plain values, each read when a path leads into it."""

    def __init__(self, path: Path):
        self.file, self.hdf5 = path, h5py.is_hdf5(path)
        self.read: dict[str, Any] = {}
        self.names = self._told(self._names)

    def _names(self) -> list[str]:
        if not self.hdf5:
            return [name for name, *_ in scipy.io.whosmat(self.file) if not name.startswith("__")]
        with h5py.File(self.file, "r") as file:
            return [name for name in file if not name.startswith("#")]

    def _variable(self, name: str) -> Any:
        if not self.hdf5:
            # mat_dtype: MATLAB packs doubles that are small whole numbers as bytes, which would wrap at 256.
            return _from_v5(scipy.io.loadmat(self.file, mat_dtype=True, variable_names=[name])[name])
        with h5py.File(self.file, "r") as file:
            return _from_hdf5(file, file[name])

    def _told(self, read: Callable, *args) -> Any:
        try:
            return read(*args)
        except Exception as error:
            said = [*str(error).strip().splitlines(), type(error).__name__][0]
            raise BadRecording(f"{self.file} cannot be read as a MATLAB file ({said}); it is damaged, or not one"
                               ) from error

    def at(self, path: str) -> Any:
        """The value at `a.b.c`."""
        first = path.split(".")[0]
        if first in self.names and first not in self.read:
            self.read[first] = self._told(self._variable, first)
        value: Any = dict.fromkeys(self.names) | self.read
        for i, name in enumerate(path.split(".")):
            if not isinstance(value, dict) or name not in value:
                where = ".".join(path.split(".")[:i])
                there = f"has {', '.join(value) or 'nothing'}" if isinstance(value, dict) else f"is {_kind(value)}"
                raise BadRecording(f"{self.file}: there is no {path!r}: {where or 'the file'} has no {name!r}; it "
                                   f"{there}")
            value = value[name]
        return value

    def vector(self, path: str) -> np.ndarray:
        """The numbers at the path as one list [n]; of a struct array, one of each element."""
        value = self.at(path)
        if isinstance(value, list):
            column = _column(value, len(value))
            value = value if column is None else np.asarray(column)
        return _numbers(value, self.file, path)

    def texts(self, path: str, n: int) -> list[str]:
        """One text a unit [n]; numbers become text."""
        value = self.at(path)
        value = _column(value, n)
        if value is None or len(value) != n:
            raise BadRecording(f"{self.file}: {path} is {_kind(self.at(path))}, not one text or number for each of the "
                               f"{n} units")
        return [v.strip() if isinstance(v, str) else _name(v) for v in value]


def _name(number: float) -> str:
    """4.0 → '4', and 20160626.0 → '20160626'; nothing for NaN."""
    return "" if np.isnan(number) else str(int(number)) if float(number).is_integer() else f"{number:g}"


def _numbers(value: Any, file: Path, path: str) -> np.ndarray:
    if (not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf"
            or value.size not in (0, max(value.shape, default=1))):
        raise BadRecording(f"{file}: {path} is {_kind(value)}, not one list of numbers")
    return value.ravel().astype(np.float64)


class _Object(NamedTuple):
    """A value of a class whose content only MATLAB knows."""

    kind: str


def _kind(value: Any) -> str:
    if isinstance(value, _Object):
        return f"a {value.kind} of MATLAB, which nothing else reads (save it as char, cell, struct or double)"
    if isinstance(value, dict):
        return f"a struct with {', '.join(value)}"
    if isinstance(value, list):
        return f"a cell of {len(value)}"
    return f"the text {value!r:.40}" if isinstance(value, str) else f"{value.dtype} values {value.shape}"


def _from_v5(value: Any) -> Any:
    if isinstance(value, scipy.io.matlab.MatlabOpaque):
        return _Object(bytes(value["s2"].ravel()[0]).decode())
    if isinstance(value, np.ndarray) and value.dtype.names:
        fields = {name: value[name] for name in value.dtype.names}      # object arrays, as cells are
        return {name: _from_v5(of.ravel()[0] if value.size == 1 else of) for name, of in fields.items()}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return _cell(value, _from_v5)
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return "" if not value.size else str(value.ravel()[0]) if value.size == 1 else [str(v) for v in value.ravel()]
    return value if isinstance(value, np.ndarray) else np.asarray(value)


def _from_hdf5(file: h5py.File, node: h5py.Group | h5py.Dataset) -> Any:
    if isinstance(node, h5py.Group):
        return {name: _from_hdf5(file, node[name]) for name in node}
    kind = np.bytes_(node.attrs.get("MATLAB_class", b"")).decode()                  # other programs write it as text
    if "MATLAB_object_decode" in node.attrs:
        return _Object(kind)
    if node.attrs.get("MATLAB_empty", 0):
        return "" if kind == "char" else [] if kind == "cell" else np.empty((0, 0))
    if node.dtype == h5py.ref_dtype:
        return _cell(node[()].T, lambda ref: _from_hdf5(file, file[ref]))       # axes are reversed
    values = node[()].T
    if kind == "char":
        rows = ["".join(map(chr, row)) for row in np.atleast_2d(values)]
        return rows[0] if len(rows) == 1 else rows
    return values


def _cell(items: np.ndarray, plain: Callable) -> list:
    """A list of what is in a row or a column; of more, a list of rows."""
    if items.size in (0, max(items.shape, default=1)):
        return [plain(item) for item in items.ravel()]
    return [_cell(row, plain) for row in items]
