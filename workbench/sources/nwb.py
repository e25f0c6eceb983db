"""Any NWB 2 file as a Session: the generic reader, one column at a time, and the way back.

    units      → spike_times, spike_units, units (id, region, every scalar column, depth and place of the electrode)
    intervals  → trials; *_presentations → stimuli
    processing, acquisition → series, dF/F among them   (`workbench.sources.nwb_series`)
    obs_intervals, invalid_times → intervals

Spike times are one flat array and an index in the file, and stay flat here. Files that `Session.to_nwb` wrote say so
and are read back field by field (`workbench.sources.nwb_write`). Signals, tables and columns of events that a session
cannot hold are named in a warning; ragged and wide columns of units (waveforms) stay behind without one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
from hdmf.common import DynamicTable, VectorIndex
from pynwb import NWBHDF5IO, NWBFile

from workbench.errors import BadRecording, DatasetNotAvailable, UnknownName
from workbench.files import existing
from workbench.session import Session, overlap, unit_rows
from workbench.sources import nwb_series, nwb_tables, nwb_write

if TYPE_CHECKING:
    from workbench.sources.stream import Stream

REGIONS = ("region", "location", "brain_area", "brain_region", "area", "brain_location", "anatomical_location",
           "ecephys_structure_acronym", "acronym", "structure")
DEPTHS = ("depth", "probe_vertical_position", "rel_y")
IMAGES = ("image", "image_index", "image_id", "picture", "stimulus_index", "frame")
NOWHERE = ("", "unknown", "none", "nan", "n/a", "null", "see electrode locations")     # the last in Allen's files


def write(session: Session, path: str | Path) -> Path:
    """Write the session as a valid NWB file, whole or not at all; `read` gives the same session back."""
    return nwb_write.write(session, path)


def read(source: str | Path | Stream, *, id: str | None = None, series: Iterable[str] | None = None,
         units=None, units_table: str = "units") -> Session:
    """The session in an NWB file that has a units table with spike times, or dF/F.

    source: a path, or a file on a server (`workbench.sources.stream`).
    id: the session's name (None: the file's identifier where people can read it, else the file's name).
    series: only these (None: all but those sampled faster than 5 kHz, which are raw voltages).
    units: only these, as `Session.select` takes them (None: all); the spikes of the others are never read. Where the
        file does not say when it is valid, the session lasts from the first to the last thing that was read.
    units_table: the name of the table of units, where a file has several.

    Raises BadRecording, in one sentence with the path, for a file that is missing, not NWB, has neither units nor dF/F,
    or whose spikes cannot be: unsorted within a unit, not finite, in samples or milliseconds.
    """
    source = existing(source).resolve() if isinstance(source, str | Path) else source
    wanted = None if series is None else list(series)
    with opened(source) as nwb:
        own = nwb_write.header(nwb)
        session = (nwb_write.restore(nwb, own, source, wanted, units) if own else
                   _session(nwb, source, wanted, units, units_table))
    if wanted is not None:
        session = replace(session, series={name: session.get_series(name) for name in wanted}, checked=True)
    return replace(session, id=id, checked=True) if id else session


@contextmanager
def opened(source: Path | Stream) -> Iterator[NWBFile]:
    """The file's structure, its arrays still on disk; BadRecording, with the path, for what goes wrong meanwhile."""
    try:
        with _open(source) as file:
            _check_format(file)
            with NWBHDF5IO(file=file, mode="r") as io:
                yield _quietly(io)
    except BadRecording as error:
        raise BadRecording(f"{source}: {error}") from None
    except (UnknownName, DatasetNotAvailable):
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadRecording(f"{source}: cannot be read as NWB ({type(error).__name__}: {said}); something in it is "
                           "missing or damaged, and the command pynwb-validate says what") from error


def _quietly(io: NWBHDF5IO) -> NWBFile:
    """The file's structure. pynwb warns of versions of the format, about which a reader can do nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return io.read()


def _open(source: Path | Stream) -> AbstractContextManager[h5py.File]:
    if not isinstance(source, Path):
        return source.opened()
    if not h5py.is_hdf5(source):
        raise BadRecording("not an NWB file: it is not HDF5; if it should be, its beginning is damaged")
    return h5py.File(source, "r")


def _check_format(file: h5py.File) -> None:
    if "nwb_version" in file.attrs:
        return
    if file.attrs.get("object") in ("Data", b"Data"):
        raise BadRecording("not NWB but HDF5 in torch_brain's layout; open it with Session.open")
    if "nwb_version" in file:
        raise BadRecording("NWB 1, which nothing reads any more; convert it to NWB 2")
    raise BadRecording("HDF5 but not NWB (it has no attribute nwb_version); read it with the source that knows its "
                       "format")


def _session(nwb: NWBFile, source: Path | Stream, wanted: list[str] | None, chosen, units_table: str) -> Session:
    signals, cells = nwb_series.series(nwb, wanted)
    table = nwb.units if units_table == "units" else _find_table(nwb, units_table)
    if table is not None:
        units, times, rows, observed = units_and_spikes(nwb, table, chosen)
    elif cells is not None:
        units, times, rows, observed = cells, np.empty(0), np.empty(0, np.int32), None
    else:
        raise BadRecording("the file has neither a units table nor dF/F, so there is no session in it; it has "
                           f"{_contents(nwb)}")
    trials, stimuli, invalid = nwb_tables.events(nwb)
    pictures = nwb_series.pictures(nwb)
    if pictures:
        stimuli = _shown(nwb, trials, stimuli, pictures)
    subject = nwb.subject
    session = Session(
        id=_session_id(nwb, source), spike_times=times, spike_units=rows, units=units, intervals=observed,
        series=signals, trials=trials, stimuli=stimuli,
        load_images=partial(load_images, source, pictures) if pictures else None,
        subject=(subject and subject.subject_id) or "", species=(subject and subject.species) or "",
        task=nwb.experiment_description or "", description=nwb.session_description or "",
        citation="; ".join(str(p) for p in nwb.related_publications or ()),
        simulated="simulated" in [str(k).lower() for k in nwb.keywords or ()],
        resolution=_resolution(table))
    session = without(session, invalid) if len(invalid) else session
    return session if chosen is None else session.select(chosen)


def _session_id(nwb: NWBFile, source: Path | Stream) -> str:
    """The identifier, unless it is one for machines (a UUID, a hash) or too long: then the file's name."""
    text = re.sub(r"[^\w.+-]+", "-", str(nwb.identifier or "")).strip("-.")
    machine = re.fullmatch(r"[0-9a-fA-F-]{16,}", text)
    return text if text and not machine and len(text) <= 64 else source.stem


def _contents(nwb: NWBFile) -> str:
    found = [*nwb.acquisition, *nwb.processing, *(nwb.intervals or ())]
    return ", ".join(found[:12]) or "nothing"


def _resolution(table: DynamicTable | None) -> float:
    value = getattr(table, "resolution", None)
    return float(value) if value is not None and value > 0 else 0.0


def _find_table(nwb: NWBFile, name: str) -> DynamicTable:
    found = {item.name: item for item in nwb.objects.values()
             if isinstance(item, DynamicTable) and "spike_times" in item.colnames}
    if name not in found:
        raise BadRecording(f"there is no table {name!r} with spike times; there are {', '.join(found) or 'none'}")
    return found[name]


def units_and_spikes(nwb: NWBFile, table: DynamicTable,
                     chosen) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray | None]:
    """The unit table, sorted spike times [S] and their rows [S], and where the units were observed, if that is said.

    All units are in the table; spikes are only those of the units that `chosen` means, where it is not None.
    """
    if "spike_times" not in table.colnames:
        raise BadRecording(f"the table {table.name!r} has no column spike_times; it has "
                           f"{', '.join(table.colnames) or 'no columns'}")
    ids = nwb_tables.unit_ids(table)
    column = table["spike_times"]
    if not isinstance(column, VectorIndex):
        raise BadRecording("units.spike_times has no index (spike_times_index), so nothing says which spike is whose")
    if len(column.data) != len(ids):
        raise BadRecording(f"units.spike_times_index has {len(column.data)} entries for {len(ids)} units")
    units = _unit_table(nwb, table, ids)
    flat, rows = nwb_tables.spikes(column, None if chosen is None else unit_rows(units, chosen, str(nwb.identifier)))
    bad = np.flatnonzero(~np.isfinite(flat))
    if len(bad):
        raise BadRecording(f"unit {ids[rows[bad[0]]]} has {(rows[bad] == rows[bad[0]]).sum():,} spike times that are "
                           "not finite; remove them")
    back = np.flatnonzero((flat[1:] < flat[:-1]) & (rows[1:] == rows[:-1]))
    if len(back):
        raise BadRecording(f"the spike times of unit {ids[rows[back[0]]]} are not sorted ({flat[back[0] + 1]:.6g} s "
                           f"follows {flat[back[0]]:.6g} s); sort them")
    order = np.argsort(flat, kind="stable")
    observed = _observed(table) if "obs_intervals" in table.colnames else None
    return units, flat[order], rows[order], observed


def _unit_table(nwb: NWBFile, table: DynamicTable, ids: list[str]) -> pd.DataFrame:
    metrics = nwb_tables.scalars(table)
    names = {name.lower(): name for name in reversed(metrics)}
    electrodes = nwb_tables.electrodes(nwb, table)
    texts = (name for name in REGIONS if name in names and (name == "region" or metrics[names[name]].dtype == object))
    said = next((names[name] for name in texts), None)                  # an area in pixels is no region
    region = metrics.pop(said) if said else electrodes.get("location", np.full(len(ids), "", object))
    region = np.array([str(r).strip() for r in region], object)
    for other in (electrodes.get("group_location", region), np.full(len(ids), "unknown", object)):
        nowhere = np.array([r.strip().lower() in NOWHERE for r in region], bool)
        region[nowhere] = other[nowhere]
    if len(ids) and (region == "unknown").all():
        warnings.warn(f"no region is given for the units of {nwb.identifier}: neither a column of the units nor the "
                      "location of an electrode; every region is 'unknown'", stacklevel=2)
    depth = next((name for name in DEPTHS if name in electrodes), None)
    placed = {"depth": electrodes.get(depth), **{name: electrodes.get(name) for name in ("x", "y", "z", "group_name")}}
    placed = {name: values for name, values in placed.items()
              if values is not None and values.any() and name not in metrics}       # all 0: nobody measured it
    return pd.DataFrame({"id": ids, "region": region.astype(str), **metrics, **placed})


def _observed(table: DynamicTable) -> np.ndarray | None:
    """Where all units were observed; where that is less than half of where any was, the latter, with a warning."""
    column = table["obs_intervals"]
    rows = np.asarray(column.target.data[:], np.float64).reshape(-1, 2)
    parts = [p for p in np.split(rows, np.cumsum(nwb_tables.counts(column, "units.obs_intervals"))[:-1]) if len(p)]
    if not parts:
        return None
    if not np.isfinite(rows).all() or (rows[:, 1] < rows[:, 0]).any():
        raise BadRecording("units.obs_intervals has an interval that is not finite or ends before it starts; mend it")
    if all(np.array_equal(p, parts[0]) for p in parts[1:]):
        return _union(parts[0])
    # +1 where a unit's observation starts, -1 where it stops: the sum is how many units are observed from there on.
    parts = [_union(p) for p in parts]
    edges = np.concatenate([np.concatenate([p[:, 0], p[:, 1]]) for p in parts])
    steps = np.concatenate([np.repeat([1, -1], len(p)) for p in parts])
    at, where = np.unique(edges, return_inverse=True)
    observed = np.cumsum(np.bincount(where, weights=steps))[:-1]
    bounds = np.stack([at[:-1], at[1:]], axis=1)
    every, some = _union(bounds[observed == len(parts)]), _union(bounds[observed > 0])
    if np.diff(every).sum() >= 0.5 * np.diff(some).sum():
        return every
    warnings.warn("the units were observed at different times (obs_intervals); the session is valid where any of them "
                  "was, so a silent unit may not have been recorded at all", stacklevel=2)
    return some


def _union(rows: np.ndarray) -> np.ndarray:
    """Sorted disjoint intervals [n, 2]; those that overlap or touch become one."""
    if not len(rows):
        return rows
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    reach = np.maximum.accumulate(rows[:, 1])
    first = np.r_[True, rows[1:, 0] > reach[:-1]]
    return np.stack([rows[first, 0], reach[np.r_[np.flatnonzero(first)[1:] - 1, len(rows) - 1]]], axis=1)


def without(session: Session, invalid: np.ndarray) -> Session:
    """The session with `invalid` [n, 2] cut out of its valid intervals, unless that leaves less than half of it."""
    invalid = _union(invalid)
    between = np.stack([np.r_[-np.inf, invalid[:, 1]], np.r_[invalid[:, 0], np.inf]], axis=1)
    valid = overlap(session.intervals, between)
    if np.diff(valid).sum() < 0.5 * session.duration:
        warnings.warn(f"{session.id}: more than half of the recording lies in invalid_times; it is kept, since they "
                      "often concern one probe of several", stacklevel=2)
        return session
    return replace(session, intervals=valid, checked=True)


def _shown(nwb: NWBFile, trials: pd.DataFrame, stimuli: pd.DataFrame, pictures: str) -> pd.DataFrame:
    """The stimuli with `image`: from an IndexSeries, else a column of the presentations, else one of the trials."""
    indexed = nwb_series.index_series(nwb, pictures)
    if indexed is not None:
        return indexed
    many, beyond = nwb_series.how_many(nwb.stimulus_template[pictures]), []
    for table in (stimuli, trials):
        column = next((name for name in IMAGES if name in table), None)
        if column and table[column].dtype.kind in "iuf":
            image = np.nan_to_num(table[column].to_numpy(np.float64), nan=-1.0)
            if image.max(initial=-1) >= many:                           # it counts from 1, or something else
                beyond.append(f"{column} (up to {image.max():g})")
            elif (image == np.floor(image)).all():
                if many > 1 and image[image >= 0].min(initial=many) == 1:
                    warnings.warn(f"{column} never names picture 0 of {many} and begins at 1: it is taken to count "
                                  "from 0; if it counts from 1, every picture is its neighbour", stacklevel=2)
                rows = table if table is stimuli else table[["start", "stop"]]
                return rows.assign(image=image.astype(np.int64)).reset_index(drop=True)
    if beyond:
        warnings.warn(f"nothing says when which picture was shown: {pictures!r} has {many}, counted from 0, and "
                      f"{' and '.join(beyond)} counts otherwise", stacklevel=2)
    return stimuli


def load_images(source: Path | Stream, name: str) -> np.ndarray:
    """The stimulus pictures [n, height, width(, 3)] of the template `name` in the file, opened for this alone."""
    if isinstance(source, Path):
        existing(source)
    with _open(source) as file, NWBHDF5IO(file=file, mode="r") as io:
        return nwb_series.picture_data(_quietly(io).stimulus_template[name], source)
