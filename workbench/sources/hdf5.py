"""Sessions as HDF5 in the layout of torch_brain 0.2 (`torch_brain.data.Data`), with arrays that are mapped, not read.

    Session → write → file → read → Session, its arrays left on disk until they are touched
                        └──→ torch_brain.data.Data.from_hdf5 ... Data.to_hdf5 → file → read → Session

    /domain           Interval            the valid intervals
    /spikes           IrregularTimeSeries timestamps, unit_index (rows of units), timestamp_indices_1s
    /units            ArrayDict           id, region, metrics
    /trials /stimuli  Interval            start, end, the table's columns
    /<series>         RegularTimeSeries   values [T, D]; where samples are not regular, IrregularTimeSeries
    /images /truth    what only some sessions have
    /workbench        what the layout has no place for: names, units of measure, exact times, checksums

A file is written under another name and put in place whole. HDF5's own checksums guard its structure (hence libver
v108); ours, kept in the header, guard every array up to 4 MiB whole and larger ones by a thousand pages, so that
opening a file of any size takes milliseconds.
"""

from __future__ import annotations

import json
import zlib
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from workbench.errors import BadRecording
from workbench.files import existing, replacing
from workbench.session import Series, Session
from workbench.sources.columns import Column, columns, file_name, table
from workbench.sources.mapped import Mapped, checksum, unit_rows
from workbench.sources.torch_brain import is_data, read_foreign

FORMAT = 1
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError)     # h5py's words for it
TEXTS = ("id", "dataset", "subject", "species", "task", "license", "citation", "description")
# Our groups, and the methods and properties of torch_brain's classes: fields of these names would hide them.
RESERVED = frozenset({
    "spikes", "units", "trials", "stimuli", "domain", "session", "subject", "brainset", "device", "images", "truth",
    "workbench", "start", "end", "absolute_start", "file", "keys", "slice", "sort", "split", "load", "save",
    "close", "timekeys", "timestamps", "materialize", "to_dict", "to_hdf5", "from_hdf5", "is_sorted", "is_disjoint",
    "select_by_mask", "select_by_interval", "dilate", "coalesce", "difference", "subdivide", "linspace", "arange",
    "from_list", "from_dataframe", "register_timekey", "sampling_rate", "index_mask", "is_gappy", "to_irregular",
    "from_gappy_timeseries", "timestamp_indices_1s", "set_train_domain", "set_valid_domain", "set_test_domain",
    "get_nested_attribute", "set_nested_attribute", "has_nested_attribute", "delete_nested_attribute"})


def write(session: Session, path: str | Path) -> Path:
    """Write the session to `path`, whole or not at all; returns the path.

    Raises CannotWrite, and BadRecording where a table holds what no file can (lists in cells).
    """
    path = Path(path).expanduser()
    # Aligned arrays can be used where they are mapped; checksums of the structure need the format of HDF5 1.8.
    how = {"libver": ("v108", "latest"), "alignment_threshold": 256, "alignment_interval": 64}
    with replacing(path) as temporary, h5py.File(temporary, "w", **how) as file:
        _write(session, file)
    return path


def _write(session: Session, file: h5py.File) -> None:
    header = {"format": FORMAT, "session": {name: str(getattr(session, name)) for name in TEXTS}, "sums": {},
              "simulated": bool(session.simulated), "resolution": float(session.resolution)}
    _object(file, "Data", absolute_start=0.0, workbench_format=FORMAT)
    _data(file, "session", id=session.id, task=session.task, simulated=bool(session.simulated))
    _data(file, "subject", id=session.subject, species=session.species)
    _data(file, "brainset", id=session.dataset)
    _interval(file, "domain", session.intervals, header)

    times = session.spike_times
    spikes = _object(file.create_group("spikes"), "IrregularTimeSeries", _unicode_keys=[], timekeys=["timestamps"])
    _array(spikes, "timestamps", times, header)
    _array(spikes, "unit_index", np.asarray(session.spike_units, "<i8"), header)
    _index(spikes, times, _reach(session), header)

    found = columns(session.units, f"{session.id}: the unit table")
    header["units"] = _table(file, "units", "ArrayDict", found, header, {"id": "id", "region": "region"})
    for name in ("trials", "stimuli"):
        found = columns(getattr(session, name), f"{session.id}: the table {name!r}")
        header[name] = _table(file, name, "Interval", found, header, {"start": "start", "stop": "end"})
    own = _data(file, "workbench")
    header["series"] = [_series(file, own, name, series, header) for name, series in session.series.items()]
    truth = _data(file, "truth")
    header["truth"] = [_truth(truth, name, value, f"{session.id}: truth {name!r}", header)
                       for name, value in session.truth.items()]
    images = session.images
    header["images"] = images is not None
    if images is not None:
        group = _object(file.create_group("images"), "ArrayDict", _unicode_keys=[])
        _array(group, "pictures", np.asarray(images), header)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    own.create_dataset("header", data=text)
    own.attrs["sum"] = zlib.crc32(text)


def _object(group: h5py.Group, kind: str, **attributes) -> h5py.Group:
    for name, value in {"object": kind, **attributes}.items():
        group.attrs[name] = np.array(value, "S") if isinstance(value, list) else value
    return group


def _data(file: h5py.Group, name: str, **attributes) -> h5py.Group:
    return _object(file.create_group(name), "Data", absolute_start=0.0, **attributes)


def _array(group: h5py.Group, name: str, values: np.ndarray, header: dict) -> None:
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    data = group.create_dataset(name, data=values)
    header["sums"][data.name] = checksum(values)


def _interval(group: h5py.Group, name: str, rows: np.ndarray, header: dict) -> None:
    interval = _object(group.create_group(name), "Interval", _unicode_keys=[], timekeys=["start", "end"])
    _array(interval, "start", rows[:, 0], header)
    _array(interval, "end", rows[:, 1], header)


def _index(group: h5py.Group, times: np.ndarray, domain: np.ndarray, header: dict) -> None:
    """The row of the first sample of every second, by which torch_brain finds a window without reading the rest."""
    seconds = np.arange(domain[0, 0], domain[-1, 1] + 1.0, 1.0)
    _array(group, "timestamp_indices_1s", np.searchsorted(times, seconds), header)
    _interval(group, "domain", domain, header)


def _reach(session: Session) -> np.ndarray:
    """The valid intervals, as far as the first and last spike: torch_brain finds no spike outside this domain."""
    times, domain = session.spike_times, session.intervals.copy()
    if len(times):
        first, last = times[0], np.nextafter(times[-1], np.inf)
        domain = domain if len(domain) else np.array([[first, last]])
        domain[0, 0], domain[-1, 1] = min(domain[0, 0], first), max(domain[-1, 1], last)
    return domain if len(domain) else np.zeros((1, 2))


def _series(file: h5py.File, own: h5py.Group, name: str, series: Series, header: dict) -> dict:
    group = file_name(name, RESERVED | set(file))
    times, rate = series.times, series.rate
    if rate:
        regular = _object(file.create_group(group), "RegularTimeSeries", sampling_rate=rate)
        _interval(regular, "domain", np.array([[times[0], times[0] + len(times) / rate]]), header)
        # The rate gives the times to a rounding error; these are exact, and mapped rather than computed.
        exact = _object(own.create_group(group), "ArrayDict", _unicode_keys=[])
        _array(exact, "times", times, header)
    else:
        irregular = _object(file.create_group(group), "IrregularTimeSeries", _unicode_keys=[], timekeys=["timestamps"])
        _array(irregular, "timestamps", times, header)
        _index(irregular, times, _runs(series), header)
    _array(file[group], "values", series.values, header)
    times_at = f"/workbench/{group}/times" if rate else f"/{group}/timestamps"
    return {"name": name, "group": group, "times": times_at, "unit": str(series.unit),
            "columns": [str(c) for c in series.columns]}


def _runs(series: Series) -> np.ndarray:
    """Where the series has samples [n, 2]: it is cut where two samples are further apart than 1.5 usual intervals."""
    times = series.times
    if len(times) < 2:
        return np.array([[times[0], np.nextafter(times[0], np.inf)]]) if len(times) else np.zeros((1, 2))
    cuts = np.flatnonzero(np.diff(times) > 1.5 * series.interval)
    return np.stack([times[np.r_[0, cuts + 1]], times[np.r_[cuts, len(times) - 1]] + series.interval], axis=1)


def _table(file: h5py.File, name: str, kind: str, found: list[Column], header: dict, fixed: dict[str, str]) -> list:
    group, described, unicode_keys, timekeys = file.create_group(name), [], [], ["start", "end"]
    taken = RESERVED | set(fixed.values())
    bounds = {c.name: c.values for c in found if c.name in ("start", "stop")}
    for column in found:
        field = fixed.get(column.name) or file_name(column.name, taken)
        taken |= {field}
        values, escaped = _bytes(column.values) if column.text else (column.values, False)
        _array(group, field, values, header)
        described.append({"name": column.name, "field": field, "escaped": escaped, "missing": column.missing})
        if column.text:
            unicode_keys.append(field)
        elif kind == "Interval" and column.name not in fixed and _is_moment(column, **bounds):
            timekeys.append(field)
    _object(group, kind, _unicode_keys=unicode_keys, **({"timekeys": timekeys} if kind == "Interval" else {}))
    return described


def _is_moment(column: Column, start: np.ndarray, stop: np.ndarray) -> bool:
    """Whether the column holds moments inside its rows, as NWB's `*_time` columns do; durations are not moments."""
    values = column.values
    seen = np.isfinite(values) if values.dtype.kind == "f" and column.name.endswith("_time") else np.zeros(0, bool)
    return bool(seen.any() and ((values >= start) & (values <= stop))[seen].all())


def _bytes(text: np.ndarray) -> tuple[np.ndarray, bool]:
    """Text as the fixed-length ASCII that torch_brain reads; other letters are written as Python escapes."""
    escaped = not all(t.isascii() and t.isprintable() and "\\" not in t for t in text.flat)
    return np.array([t.encode("unicode_escape") if escaped else t.encode() for t in text.flat], "S"), escaped


def _text(raw: np.ndarray, escaped: bool) -> np.ndarray:
    return np.array([t.decode("unicode_escape" if escaped else "ascii") for t in raw.tolist()], object)


def _truth(group: h5py.Group, name: str, value, where: str, header: dict) -> dict:
    value = np.asarray(value)
    text = value.dtype.kind in "UO"
    if value.dtype.kind not in "biufcUO" or (text and not all(isinstance(v, str) for v in value.flat)):
        raise BadRecording(f"{where} is neither numbers nor text; give an array of one of them")
    inner = file_name(name, RESERVED | set(group))
    stored, escaped = _bytes(value) if text else (value.reshape(-1), False)
    array = _object(group.create_group(inner), "ArrayDict", _unicode_keys=["values"] if text else [])
    _array(array, "values", stored, header)
    return {"name": name, "field": inner, "shape": value.shape, "text": text, "escaped": escaped}


def read(path: str | Path) -> Session:
    """Open a file written by `write` or by torch_brain. Arrays are read-only maps of the file, read when touched.

    Raises BadRecording for a file that is missing, of another kind, or damaged.
    """
    path = existing(path).resolve()
    again = "restore it from a copy, or save the session anew"
    if not h5py.is_hdf5(path):
        raise BadRecording(f"{path} is not an HDF5 file, or its first bytes are damaged; {again}")
    try:
        with h5py.File(path, "r") as file:
            if "workbench_format" in file.attrs:
                return _read(path, file)
            if "nwb_version" in file.attrs:
                raise BadRecording(f"{path} is an NWB file; open it with Session.from_nwb")
            if not is_data(file):
                raise BadRecording(f"{path} is HDF5, but neither saved by Session.save nor by torch_brain (its root "
                                   "has no attribute object = 'Data'); read it with the source that knows its format")
            return read_foreign(path, file)
    except BadRecording:
        raise
    except DAMAGE as error:
        said = str(error).strip("'\" ").splitlines()[0] if str(error) else type(error).__name__
        raise BadRecording(f"{path} is damaged ({said}); {again}") from error


def _read(path: Path, file: h5py.File) -> Session:
    if file.attrs["workbench_format"] > FORMAT:
        raise BadRecording(f"{path} was saved by a newer version of the workbench (format "
                           f"{file.attrs['workbench_format']}, known up to {FORMAT}); update the workbench")
    text = file["workbench/header"][:]
    if zlib.crc32(text) != file["workbench"].attrs["sum"]:
        raise ValueError("its header does not match its checksum")
    header = json.loads(text.tobytes())
    whole = Mapped(path, file)
    for name, expected in header["sums"].items():
        if not name.startswith("/images/"):                             # checked when they are asked for
            whole.verify(name, expected)

    series = {s["name"]: Series(whole[s["times"]], whole[f"/{s['group']}/values"], s["unit"], tuple(s["columns"]))
              for s in header["series"]}
    tables = {name: table(_columns(file[name], header[name])) for name in ("units", "trials", "stimuli")}
    return Session(
        **header["session"], simulated=header["simulated"], resolution=header["resolution"],
        spike_times=whole["/spikes/timestamps"], spike_units=unit_rows(whole["/spikes/unit_index"]),
        intervals=np.stack([file["domain/start"][:], file["domain/end"][:]], axis=1), series=series, **tables,
        truth={t["name"]: _untruth(whole, t) for t in header["truth"]},
        load_images=partial(_load_images, path) if header["images"] else None, checked=True)


def _columns(group: h5py.Group, described: list[dict]) -> list[Column]:
    def values(field: str, escaped: bool) -> np.ndarray:
        found = group[field][:]
        return _text(found, escaped) if found.dtype.kind == "S" else found

    return [Column(d["name"], values(d["field"], d["escaped"]), d["missing"]) for d in described]


def _untruth(whole: Mapped, described: dict) -> np.ndarray:
    values = whole[f"/truth/{described['field']}/values"]
    values = _text(values, described["escaped"]).astype(str) if described["text"] else values
    return values.reshape(described["shape"])


def _load_images(path: Path) -> np.ndarray:
    try:
        with h5py.File(existing(path), "r") as file:
            header, whole = json.loads(file["workbench/header"][:].tobytes()), Mapped(path, file)
            whole.verify("/images/pictures", header["sums"]["/images/pictures"])
            return whole["/images/pictures"]
    except BadRecording:
        raise
    except DAMAGE as error:
        raise BadRecording(f"{path} is damaged ({error}); save the session anew") from None
