"""Sessions as NWB files that any tool of the field reads, and the same sessions back from them.

    Session → write → units (with obs_intervals), trials, stimulus_presentations, processing/behavior and /ophys,
                      stimulus/templates, subject: what NWB has a place for, in that place
                      scratch: `workbench`, a JSON text of names, order and what else is needed to give the same session
                      back, and the ground truth of a simulation
    file → header, restore → the same Session, field by field
"""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from hdmf.common import DynamicTable, ElementIdentifiers, VectorData, VectorIndex
from pynwb import NWBHDF5IO, NWBFile, ProcessingModule, TimeSeries
from pynwb.core import ScratchData
from pynwb.epoch import TimeIntervals
from pynwb.file import Subject
from pynwb.image import ImageSeries
from pynwb.misc import Units

from workbench.errors import BadRecording, UnknownName
from workbench.files import replacing
from workbench.session import Series, Session, unit_rows
from workbench.sources.columns import Column, columns, file_name, table
from workbench.sources.nwb_tables import spikes

FORMAT = 1
HEADER, PICTURES = "workbench", "pictures"
TEXTS = ("id", "dataset", "subject", "species", "task", "license", "citation", "description")
# Names that NWB's own columns of these tables have.
TAKEN = {"id", "spike_times", "obs_intervals", "electrodes", "electrode_group", "waveform_mean", "waveform_sd",
         "waveforms", "start_time", "stop_time", "tags", "timeseries", "colnames", "columns", "name", "description"}


def write(session: Session, path: str | Path) -> Path:
    """Write the session to `path`, whole or not at all; returns the path. See `workbench.sources.nwb.write`."""
    path = Path(path).expanduser()
    nwb = _file(session)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not end in '.nwb'")       # it will, once it is whole
        with NWBHDF5IO(str(temporary), "w") as io:
            io.write(nwb)
    return path


def _file(session: Session) -> NWBFile:
    known = {"simulated": bool(session.simulated), "resolution": float(session.resolution), "format": FORMAT,
             "session": {name: str(getattr(session, name)) for name in TEXTS}}
    notes = ["Times are seconds on the session's own clock; session_start_time is not known and stands at 1970."]
    notes += [f"License: {session.license}."] * bool(session.license) + [f"Dataset: {session.dataset}."] * bool(
        session.dataset)
    notes += ["SIMULATED: nothing in this file was recorded."] * session.simulated
    nwb = NWBFile(
        session_description=session.description or f"Session {session.id}", identifier=session.id,
        session_id=session.id,
        session_start_time=datetime(1970, 1, 1, tzinfo=UTC), experiment_description=session.task or None,
        notes=" ".join(notes), keywords=["simulated"] if session.simulated else None,
        related_publications=[session.citation] if session.citation else None)
    if session.subject or session.species:
        nwb.subject = Subject(subject_id=session.subject or None, species=session.species or None)
    nwb.units, known["units"], order = _units(session)
    if order is not None:
        nwb.add_scratch(ScratchData(name="spike_units", data=order, description="unit row of every spike, by time"))
    known["intervals"] = session.intervals.tolist()
    nwb.trials, known["trials"] = _events(session, "trials", "trials")
    stimuli, known["stimuli"] = _events(session, "stimuli", "stimulus_presentations")
    nwb.add_time_intervals(stimuli)
    known["series"] = [_series(nwb, name, series) for name, series in session.series.items()]
    known["truth"] = [_truth(nwb, session, name) for name in session.truth]
    images = session.images
    known["images"] = images is not None
    if images is not None:
        nwb.add_stimulus_template(ImageSeries(
            name=PICTURES, data=np.asarray(images), unit="n.a.", format="raw", rate=1.0,
            description="row i is picture i of the stimulus presentations"))
    nwb.add_scratch(ScratchData(name=HEADER, data=json.dumps(known), description="what gives the same session back"))
    return nwb


def _vectors(found: list[Column], fixed: dict[str, str]) -> tuple[list[VectorData], list[dict]]:
    vectors, described = [], []
    taken = TAKEN | set(fixed.values())
    for column in found:
        name = fixed.get(column.name) or file_name(column.name, taken)
        taken.add(name)
        data = column.values
        if column.text:
            data = data.tolist() or np.empty(0, "S1")                   # hdmf asks of an empty list of what it is empty
        vectors.append(VectorData(name=name, description=column.name, data=data))
        described.append({"name": column.name, "field": name, "text": column.text, "missing": column.missing,
                          "dtype": None if column.text else column.values.dtype.str})
    return vectors, described


def _units(session: Session) -> tuple[Units, list[dict], np.ndarray | None]:
    """The units table, its columns' names, and the unit of every spike where the units table cannot order them."""
    n, times, rows = len(session.units), session.spike_times, session.spike_units
    found = columns(session.units, f"{session.id}: the unit table")
    vectors, described = _vectors(found, {"id": "unit_name", "region": "region"})
    ends = np.cumsum(np.bincount(rows, minlength=n)).astype(np.uint64)
    by_unit = times[np.argsort(rows, kind="stable")]
    spikes = VectorData(name="spike_times", description="spike times in seconds", data=by_unit)
    vectors += [spikes, VectorIndex(name="spike_times_index", data=ends, target=spikes)]
    if n and len(session.intervals):
        valid = VectorData(name="obs_intervals", description="where the recording is valid, in seconds",
                           data=np.tile(session.intervals, (n, 1)))
        ends = np.arange(1, n + 1, dtype=np.uint64) * len(session.intervals)
        vectors += [valid, VectorIndex(name="obs_intervals_index", data=ends, target=valid)]
    resolution = {"resolution": float(session.resolution)} if session.resolution > 0 else {}
    units = Units(name="units", description="one row a unit", id=ElementIdentifiers(name="id", data=np.arange(n)),
                  columns=vectors, colnames=[v.name for v in vectors if not isinstance(v, VectorIndex)], **resolution)
    # Spikes of several units at the same instant come back in the order of units; any other order is kept apart.
    ties = (times[1:] == times[:-1]) & (rows[1:] < rows[:-1])
    return units, described, np.array(rows) if ties.any() else None


def _events(session: Session, name: str, stored: str) -> tuple[TimeIntervals, list[dict]]:
    found = columns(getattr(session, name), f"{session.id}: the table {name!r}")
    vectors, described = _vectors(found, {"start": "start_time", "stop": "stop_time"})
    ids = ElementIdentifiers(name="id", data=np.arange(len(getattr(session, name))))
    return TimeIntervals(name=stored, description=f"{name} of the session", columns=vectors, id=ids,
                         colnames=[v.name for v in vectors]), described


def _series(nwb: NWBFile, name: str, series: Series) -> dict:
    module = "ophys" if series.unit == "dF/F" else "behavior"
    if module not in nwb.processing:
        what = "fluorescence of cells, one column a cell" if module == "ophys" else "signals beside the spikes"
        nwb.add_processing_module(ProcessingModule(name=module, description=what))
    stored = file_name(name, set(nwb.processing[module].data_interfaces))
    start, rate = (float(series.times[0]) if len(series.times) else 0.0), series.rate
    exact = rate and np.array_equal(start + np.arange(len(series.times)) / rate, series.times)
    when = {"starting_time": start, "rate": float(rate)} if exact else {"timestamps": series.times}
    nwb.processing[module].add(TimeSeries(
        name=stored, data=np.asarray(series.values), unit=series.unit or "n.a.", **when,
        description=f"{name}; columns: {', '.join(map(str, series.columns)) or 'not named'}"))
    return {"name": name, "module": module, "field": stored, "unit": str(series.unit),
            "columns": [str(c) for c in series.columns], "dtype": np.asarray(series.values).dtype.str}


def _truth(nwb: NWBFile, session: Session, name: str) -> dict:
    value = np.asarray(session.truth[name])
    text = value.dtype.kind in "UO"
    if value.dtype.kind not in "biufUO" or (text and not all(isinstance(v, str) for v in value.flat)):
        raise BadRecording(f"{session.id}: truth {name!r} is neither numbers nor text; give an array of one of them")
    stored = file_name(f"truth_{name}", set(nwb.scratch) | {HEADER, "spike_units"})
    data = [str(v) for v in value.flat] if text else value.reshape(-1)
    nwb.add_scratch(ScratchData(name=stored, data=data, description=f"ground truth of the simulation: {name}"))
    return {"name": name, "field": stored, "shape": value.shape, "dtype": None if text else value.dtype.str}


def header(nwb: NWBFile) -> dict | None:
    """What `write` noted in the file; None for files that others wrote."""
    note = (nwb.scratch or {}).get(HEADER)
    if note is None:
        return None
    known = json.loads(_decoded(note.data[()] if hasattr(note.data, "shape") else note.data))
    if known["format"] > FORMAT:
        raise BadRecording(f"the file was written by a newer version of the workbench (format {known['format']}, known "
                           f"up to {FORMAT}); update the workbench")
    return known


def restore(nwb: NWBFile, known: dict, source, wanted: list[str] | None = None, units=None) -> Session:
    """The session that `write` wrote to the open file at `source`, or only the `wanted` series and some `units`."""
    from workbench.sources.nwb import load_images

    whole = _table(nwb.units, known["units"])
    chosen = None if units is None else unit_rows(whole, units, known["session"]["id"])
    flat, rows = spikes(nwb.units["spike_times"], chosen)
    order = np.argsort(flat, kind="stable")
    kept = None if units is not None else nwb.scratch.get("spike_units")
    names = [s["name"] for s in known["series"]]
    for name in wanted or ():
        if name not in names:
            raise UnknownName("series", name, names, where=f"session {known['session']['id']!r}")
    series = [s for s in known["series"] if wanted is None or s["name"] in wanted]
    session = Session(
        **known["session"], simulated=known["simulated"], resolution=known["resolution"],
        spike_times=flat[order], spike_units=rows[order] if kept is None else np.asarray(kept.data[:]),
        units=whole, intervals=np.array(known["intervals"], np.float64).reshape(-1, 2),
        trials=_table(nwb.trials, known["trials"]),
        stimuli=_table(nwb.intervals["stimulus_presentations"], known["stimuli"]),
        series={s["name"]: _restored(nwb.processing[s["module"]][s["field"]], s) for s in series},
        truth={t["name"]: _untruth(nwb.scratch[t["field"]].data, t) for t in known["truth"]},
        load_images=partial(load_images, source, PICTURES) if known["images"] else None)
    return session if chosen is None else session.select(chosen)


def _decoded(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _table(stored: DynamicTable, described: list[dict]) -> pd.DataFrame:
    def values(d: dict) -> np.ndarray:
        data = stored[d["field"]].data[:]
        return np.array([_decoded(v) for v in data], object) if d["text"] else np.asarray(data).astype(d["dtype"])

    return table(Column(d["name"], values(d), d["missing"]) for d in described)


def _restored(signal: TimeSeries, described: dict) -> Series:
    values = np.asarray(signal.data[:]).astype(described["dtype"], copy=False)
    times = signal.timestamps[:] if signal.timestamps is not None else (
        signal.starting_time + np.arange(len(values)) / signal.rate)
    return Series(np.asarray(times, np.float64), values, described["unit"], tuple(described["columns"]))


def _untruth(data, described: dict) -> np.ndarray:
    values = np.atleast_1d(data[()] if hasattr(data, "shape") else np.array(data))      # hdmf unwraps arrays of one
    if described["dtype"] is None:
        values = np.array([_decoded(v) for v in values.tolist()], str)
    return values.astype(described["dtype"] or str).reshape(described["shape"])
