"""Allen Brain Observatory, Visual Coding - Neuropixels: a session file of either stimulus set as a Session.

    units, electrodes → quality filters → units: id, region, probe, depth, CCF place, metrics → spikes of the kept ones
    *_presentations   → stimuli: the stimulus, its parameters as numbers, the frame that was shown
    running, eye      → series running_speed, and pupil, pupil_area, gaze where the eye was tracked
    invalid_times     → cut out of the valid intervals; presentations that they touch are left out
    template folders  → images (`workbench.sources.allen_templates`)

Data: Allen Institute for Brain Science, under its terms of use; Siegle et al. 2021, doi:10.1038/s41586-020-03171-x. The
layout (NWB 2.2.2 with ndx-aibs-ecephys 0.2.0), the numbers of the filters and the meaning of the tags of invalid_times
are those of allensdk 2.16.2, which reads the same files; `workbench/scripts/allensdk_fetch.py` fetches them with it.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pynwb
from pynwb import NWBFile
from pynwb.epoch import TimeIntervals

from workbench.errors import BadRecording, UnknownName
from workbench.files import existing
from workbench.session import Series, Session
from workbench.sources import allen_templates, nwb, nwb_series, nwb_tables
from workbench.sources.allen_templates import TEMPLATES
from workbench.sources.columns import stacked

NULL = ("", "null", "none", "nan", "n/a")


def read(path: str | Path, *, quality: str | None = "good", max_isi_violations: float | None = 0.5,
         max_amplitude_cutoff: float | None = 0.1, min_presence_ratio: float | None = 0.95, in_brain: bool = True,
         valid_channels: bool = True, probes: list[str] | None = None, images: str | None = None,
         templates: str | Path | None = None) -> Session:
    """The session in `session_<id>.nwb`, with the units that pass every filter; the defaults are allensdk's.

    quality: 'good' or 'noise'. in_brain: only units whose peak channel lies in a structure. valid_channels: only those
    whose peak channel has valid data. probes: only these, such as ['probeA']. A filter is off when it is None or False.
    images: which pictures `stimuli.image` counts: 'natural_scenes', 'natural_movie_one' or 'natural_movie_three' (None:
    the first of them that was shown); it is -1 where no such picture was on the screen, as in the blanks.
    templates: the folder with natural_scene_templates and natural_movie_templates (None: the file's, or one above it).

    Warns how many units were kept, of how many, and why; of presentations left out; of templates that are not there.
    Raises BadRecording for a file that is not of this layout, or has no unit that passes; UnknownName for a probe or
    pictures that the session has not.
    """
    path = existing(path).resolve()
    with nwb.opened(path) as file:
        places = _peak_channels(file)
        keep, why = _filter(file, places, {
            "quality": quality, "isi_violations": max_isi_violations, "amplitude_cutoff": max_amplitude_cutoff,
            "presence_ratio": min_presence_ratio, "in_brain": in_brain, "valid_channels": valid_channels,
            "probes": probes})
        warnings.warn(f"{path.name}: {why}", stacklevel=2)
        units, times, rows, _ = nwb.units_and_spikes(file, file.units, keep)
        kept_probes = places.loc[keep, ["probe", "probe_id"]].astype(str).to_numpy().ravel()
        cut, spoiled = _invalid_times(file, set(kept_probes))
        stimuli, images = _stimuli(file, spoiled, images, path.name)
        subject = file.subject
        session = Session(
            id=str(file.identifier), spike_times=times, spike_units=(np.cumsum(keep) - 1)[rows].astype(np.int32),
            units=_placed(units, places)[keep], stimuli=stimuli, series=_series(file),
            load_images=allen_templates.loader(path, images, stimuli, templates), task=file.stimulus_notes or "",
            subject=(subject and subject.subject_id) or "", species=(subject and subject.species) or "",
            description=f"{file.session_description or ''} ({why})".strip())
        return nwb.without(session, cut) if len(cut) else session


def beside(path: Path) -> list[Path]:
    """The template folders that `read` finds by itself: a copy converted before they came has no pictures."""
    return allen_templates.folders(path)


# Units


def _peak_channels(file: NWBFile) -> pd.DataFrame:
    """Of every unit: probe, probe_id, channel on the probe, valid, region ('' outside the brain)."""
    for name, table, needed in (("units", file.units, ("peak_channel_id",)),
                                ("electrodes", file.electrodes, ("location", "valid_data", "group_name"))):
        missing = [c for c in needed if table is None or c not in table.colnames]
        if missing:
            raise _not_allen(file, name if table is None else f"{name}/{missing[0]}")
    electrodes = pd.DataFrame(nwb_tables.scalars(file.electrodes), index=file.electrodes.id[:])
    peak = electrodes.reindex(file.units["peak_channel_id"].data[:])
    region = peak["location"].fillna("").astype(str).str.strip()
    number = next((peak[name] for name in ("probe_channel_number", "local_index") if name in peak), None)
    return pd.DataFrame({
        "region": region.mask(region.str.lower().isin(NULL), ""), "probe": peak["group_name"].fillna(""),
        "probe_id": peak.get("probe_id", pd.Series(-1, peak.index)).fillna(-1).astype(np.int64),
        "valid": peak["valid_data"].eq(True), "channel": number}).reset_index(drop=True)


def _filter(file: NWBFile, places: pd.DataFrame, wanted: dict) -> tuple[np.ndarray, str]:
    """Which units pass every filter that is on [N], and what is to be said about it."""
    metrics = nwb_tables.scalars(file.units)
    passed = {}
    for name, test in (("quality", np.equal), ("isi_violations", np.less_equal), ("amplitude_cutoff", np.less_equal),
                       ("presence_ratio", np.greater_equal)):
        if wanted[name] is not None:
            if name not in metrics:
                raise _not_allen(file, f"units/{name}")
            passed[name] = np.asarray(test(metrics[name], wanted[name]), bool)      # NaN passes no filter
    if wanted["in_brain"]:
        passed["outside the brain"] = (places["region"] != "").to_numpy()
    if wanted["valid_channels"]:
        passed["invalid channel"] = places["valid"].to_numpy()
    if wanted["probes"] is not None:
        for probe in wanted["probes"]:
            if probe not in set(places["probe"]):
                raise UnknownName("probe", probe, sorted(set(places["probe"])), where=f"session {file.identifier}")
        passed["other probe"] = places["probe"].isin(wanted["probes"]).to_numpy()
    keep = np.logical_and.reduce([np.ones(len(places), bool), *passed.values()])
    failed = ", ".join(f"{name} {(~good).sum():,}" for name, good in passed.items() if not good.all())
    why = f"{keep.sum():,} of {len(keep):,} units kept" + (f"; fail, some in several ways: {failed}" if failed else "")
    if not keep.any():
        raise BadRecording(f"no unit passes the filters ({why}); loosen them, None switches one off")
    return keep, why


def _placed(units: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """The generic unit table with what the peak channel says of the place."""
    units = units.drop(columns="group_name", errors="ignore")
    units["region"] = places["region"].replace("", "unknown").to_numpy(object)
    units.insert(2, "probe", places["probe"].to_numpy(object))
    if places["channel"].notna().any():
        units.insert(3, "channel", places["channel"].to_numpy())
    return units


def _not_allen(file: NWBFile, missing: str) -> BadRecording:
    version = file.read_io._file.attrs.get("nwb_version", "unknown")
    return BadRecording(f"not a session file of Visual Coding Neuropixels: it has no {missing} (NWB {version}, read by "
                        f"pynwb {pynwb.__version__}); probe files hold LFP only, and other NWB files are read with "
                        "Session.from_nwb")


# Stimuli


def _stimuli(file: NWBFile, spoiled: np.ndarray, images: str | None, name: str) -> tuple[pd.DataFrame, str | None]:
    """Presentations in the order of their start, but those in `spoiled` [n, 2]; which pictures `image` counts."""
    tables = {key.removesuffix("_presentations"): _presentations(rows) for key, rows in (file.intervals or {}).items()
              if key.endswith("_presentations") and isinstance(rows, TimeIntervals)}
    tables = {key: rows.assign(stimulus=key) for key, rows in tables.items()}
    known = [key for key, (_, shown) in TEMPLATES.items() if any(stimulus in tables for stimulus in shown)]
    if images is not None and images not in known:
        raise UnknownName("pictures", images, known, where=f"session {file.identifier}")
    images = images or next(iter(known), None)
    if not tables:
        return stacked({}), images
    whole = pd.concat(tables.values(), ignore_index=True).sort_values("start", kind="stable", ignore_index=True)
    frame = whole.pop("frame") if "frame" in whole else pd.Series(-1, whole.index)
    whole["frame"] = frame.fillna(-1).astype(np.int64)
    whole["image"] = whole["frame"].where(whole["stimulus"].isin(TEMPLATES[images][1] if images else ()), -1)
    first = ["start", "stop", "stimulus", "frame", "image"]
    whole = whole[[*first, *(c for c in whole if c not in first and not whole[c].isna().all())]]
    touched = np.zeros(len(whole), bool)
    for start, stop in spoiled:
        touched |= ((whole["start"] < stop) & ~(whole["stop"] <= start)).to_numpy()     # one without an end touches
    if touched.any():
        warnings.warn(f"{name}: {touched.sum():,} of {len(whole):,} presentations touch invalid times and are left out",
                      stacklevel=3)
    return whole[~touched].reset_index(drop=True), images


def _presentations(table: TimeIntervals) -> pd.DataFrame:
    """One stimulus: start, stop, parameters. References to time series are never resolved: they take seconds."""
    rows = pd.DataFrame(nwb_tables.scalars(table)).rename(columns={"start_time": "start", "stop_time": "stop"})
    rows = rows.drop(columns="stimulus_name", errors="ignore")          # what the table is called
    for name in rows:
        numbers = [_number(v) for v in rows[name]] if rows[name].dtype.kind not in "biuf" else [None]
        if None not in numbers:
            rows[name] = np.array(numbers, np.float64)
    return rows


def _number(text: str) -> float | None:
    """The number that a parameter's text says: '0.25' or '[250.0, 250.0]', NaN for 'null' or 'N/A', else None."""
    if text.strip().lower() in NULL:
        return float("nan")
    try:
        numbers = {float(part) for part in re.sub(r"[\[\]()]", "", text).split(",")}
    except ValueError:
        return None
    return numbers.pop() if len(numbers) == 1 else None


def _invalid_times(file: NWBFile, probes: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where the spikes of these probes (names and ids) are not to be trusted, and where presentations are not [n, 2].

    A row's tags are scope, its id, label: 'EcephysSession' or 'EcephysProbe'; 'all_probes', a probe's name, 'stimulus'
    (frames that lasted too long: the spikes are good) or 'optotagging' (neither is concerned).
    """
    table = file.invalid_times
    if table is None:
        return np.empty((0, 2)), np.empty((0, 2))
    cut, spoiled = [], []
    for row in range(len(table.id)):
        tags = {t.decode() if isinstance(t, bytes) else str(t) for t in table["tags"][row]} \
            if "tags" in table.colnames else set()
        interval = [float(table["start_time"][row]), float(table["stop_time"][row])]
        if not interval[1] > interval[0] or "optotagging" in tags or ("EcephysProbe" in tags and not tags & probes):
            continue
        spoiled.append(interval)
        if "stimulus" not in tags:
            cut.append(interval)
    return np.array(cut).reshape(-1, 2), np.array(spoiled).reshape(-1, 2)


# Behaviour


def _series(file: NWBFile) -> dict[str, Series]:
    """Running speed; the pupil's ellipse and area, and the gaze. What the file has not is absent.

    In many sessions the eye was not tracked. Its fits are in half axes and carry no times of their own; the gaze is
    stored as y, x.
    """
    module = lambda name: file.processing[name].data_interfaces if name in file.processing else {}
    found = {}
    if "running_speed" in module("running"):
        found |= nwb_series.series(file, ["running_speed"])[0]
    raw = module("raw_gaze_mapping")
    if "eye_area" not in raw:
        return found
    times = np.asarray(raw["eye_area"].timestamps[:], np.float64)
    fits = module("eye_tracking").get("pupil_ellipse_fits")
    if fits is not None:
        ellipse = nwb_tables.scalars(fits)
        pupil = np.stack([ellipse["center_x"], ellipse["center_y"], 2 * ellipse["width"], 2 * ellipse["height"]], 1)
        found |= _eye("pupil", times, pupil, "pixels", ("x", "y", "width", "height"))
    best = raw | module("filtered_gaze_mapping")                        # filtered: blinks are NaN
    if "pupil_area" in best:
        area = best["pupil_area"]
        found |= _eye("pupil_area", times, area.data[:][:, None], area.unit, ())
    if "screen_coordinates" in best:
        found |= _eye("gaze", times, best["screen_coordinates"].data[:][:, ::-1], "cm", ("x", "y"))
    return found


def _eye(name: str, times: np.ndarray, values: np.ndarray, unit: str, columns: tuple[str, ...]) -> dict[str, Series]:
    """The series by its name; nothing, with a warning, where its samples have no times: the spikes are good."""
    try:
        if len(times) != len(values):
            raise ValueError(f"{len(values):,} samples for {len(times):,} times of raw_gaze_mapping/eye_area")
        return {name: Series(*nwb_series.increasing(name, times, values), unit, columns)}
    except ValueError as error:
        warnings.warn(f"left out the series {name} ({error})", stacklevel=2)
        return {}
