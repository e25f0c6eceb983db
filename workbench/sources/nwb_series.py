"""Signals and pictures of an NWB file: behaviour and dF/F as series, cells of calcium recordings, stimulus pictures.

    processing/*, acquisition → every TimeSeries of numbers that is not a raw recording of neurons or a video → series
    DfOverF, else Fluorescence → the series, dF/F by name, one column a cell, and the cells with regions and places
    stimulus/templates        → the name of the pictures, read only when they are asked for
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from hdmf.common import DynamicTable, VectorIndex
from pynwb import NWBFile, TimeSeries
from pynwb.base import Images
from pynwb.ecephys import ElectricalSeries
from pynwb.icephys import PatchClampSeries
from pynwb.image import ImageSeries, IndexSeries
from pynwb.misc import AnnotationSeries, DecompositionSeries, IntervalSeries
from pynwb.ophys import DfOverF, RoiResponseSeries

from workbench.errors import BadRecording, UnknownName
from workbench.session import Series
from workbench.sources.nwb_tables import counts, scalars
from workbench.validity import LONGEST

OTHER = (ElectricalSeries, PatchClampSeries, DecompositionSeries, ImageSeries, IndexSeries, IntervalSeries,
         AnnotationSeries)
FASTEST = 5000.0                                                        # samples/s; above, a signal is a raw voltage


def series(nwb: NWBFile, wanted: list[str] | None) -> tuple[dict[str, Series], pd.DataFrame | None]:
    """The series of the file by name, and its cells where it has dF/F or, without it, raw fluorescence.

    Names that several signals share are told apart by the container and module they lie in.
    """
    found = list(_signals(nwb))
    signals, traces, left, names = {}, [], [], _names(found)
    for name in wanted or ():
        if name not in names:
            raise UnknownName("series", name, names, where=f"{nwb.identifier}")
    for name, (_, container, signal) in zip(names, found, strict=True):
        of_cells = isinstance(signal, RoiResponseSeries)
        if wanted is not None and name not in wanted and not (of_cells and nwb.units is None):
            continue
        try:
            if wanted is None and (rate := _rate(signal)) > FASTEST:
                left.append(f"{name} ({rate:,.0f} samples/s; ask for it by series=[...])")
                continue
            signals[name] = _series(name, container, signal)
            if of_cells:
                traces.append((not isinstance(container, DfOverF), name, signal, _cells(signal, signals[name])))
        except Exception as error:
            left.append(f"{name} ({(str(error) or type(error).__name__).splitlines()[0]})")
    if left:
        warnings.warn(f"{nwb.identifier}: left out the series {', '.join(left)}", stacklevel=2)
    traces.sort(key=lambda t: t[0])                                     # dF/F before raw fluorescence
    others = [name for _, name, signal, _ in traces if signal.rois.table is not traces[0][2].rois.table]
    if others and nwb.units is None:
        warnings.warn(f"{nwb.identifier}: the units are the cells of {traces[0][1]!r}; those of the other planes are "
                      f"series without units: {', '.join(others)}", stacklevel=2)
    return signals, traces[0][3] if traces else None


def _rate(signal: TimeSeries) -> float:
    """Samples per second, as the file says or its first thousand times do; 0 where neither says."""
    if signal.rate:
        return float(signal.rate)
    first = np.asarray(() if signal.timestamps is None else signal.timestamps[:1000], np.float64)
    step = float(np.median(np.diff(first))) if len(first) == 1000 else 0.0
    return 1 / step if step > 0 else 0.0


def _signals(nwb: NWBFile) -> Iterator[tuple[str, object, TimeSeries]]:
    """The signals of the file, each with the module and, where there is one, the container that it lies in."""
    places = {name: module.data_interfaces for name, module in nwb.processing.items()}
    for module, items in (places | {"acquisition": nwb.acquisition}).items():
        for item in items.values():
            yield from ((module, container, signal) for container, signal in _inside(item, None))


def _inside(item, container) -> Iterator[tuple[object, TimeSeries]]:
    if isinstance(item, TimeSeries):
        if not isinstance(item, OTHER):
            yield container, item
    elif not isinstance(item, DynamicTable):
        for child in sorted(getattr(item, "children", ()), key=lambda c: c.name):
            yield from _inside(child, item)


def _names(found: list[tuple[str, object, TimeSeries]]) -> list[str]:
    """One name a signal: its own (its container's where it has only its type's), longer where two are the same."""
    ladders = []
    for module, container, signal in found:
        own, holder = signal.name, getattr(container, "name", "")
        if isinstance(container, DfOverF):
            ladders.append(["dF/F", f"dF/F_{own}", f"dF/F_{module}_{holder}_{own}"])
        else:
            plain = holder if holder and own in (type(signal).__name__, "TimeSeries", "data") else own
            ladders.append([plain, f"{holder}_{own}" if holder else f"{module}_{own}", f"{module}_{holder}_{own}"])
    names = [ladder[0] for ladder in ladders]
    for step in (1, 2):
        clash = Counter(names)
        names = [ladder[step] if clash[name] > 1 else name for name, ladder in zip(names, ladders, strict=True)]
    clash, seen = Counter(names), Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        names[i] = f"{name}_{seen[name]}" if clash[name] > 1 else name
    return names


def _series(name: str, container, signal: TimeSeries) -> Series:
    data = signal.data
    if data is None or (data.dtype if hasattr(data, "dtype") else np.asarray(data).dtype).kind not in "biuf":
        raise ValueError("not numbers")
    values = np.asarray(data[:])
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise ValueError(f"values of shape {values.shape}")
    columns = _roi_ids(signal) if isinstance(signal, RoiResponseSeries) else ()
    times = None if signal.timestamps is None else np.asarray(signal.timestamps[:], np.float64)
    if len(values) != (len(values) if times is None else len(times)) or len(columns) not in (0, values.shape[1]):
        if values.shape[1] == len(times if times is not None else values.T) and len(columns) in (0, len(values)):
            warnings.warn(f"series {name!r} is stored as columns by samples; it is read turned round", stacklevel=2)
            values = values.T
        else:
            raise ValueError(f"values of shape {values.shape} for {len(times) if times is not None else '?'} times")
    if times is None:
        if not signal.rate or signal.rate <= 0:
            raise ValueError("neither timestamps nor a rate")
        times = float(signal.starting_time or 0.0) + np.arange(len(values)) / float(signal.rate)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    scale, shift = float(signal.conversion), float(signal.offset or 0.0)
    if not np.isfinite([scale, shift]).all():
        warnings.warn(f"series {name!r}: its conversion is no number, so its values are as stored, and perhaps not in "
                      f"{signal.unit}", stacklevel=2)
    elif (scale, shift) != (1.0, 0.0):
        values = values * scale + shift
    times, values = increasing(name, times, values)
    unit = "dF/F" if isinstance(container, DfOverF) else str(signal.unit or "")
    return Series(times, values, unit, columns)


def increasing(name: str, times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Only samples later than all before them: clocks stutter, and stray times lie days away from all the others."""
    if not len(times):
        return times, values
    keep = np.isfinite(times)
    keep &= np.abs(times - (np.median(times[keep]) if keep.any() else 0.0)) <= LONGEST
    keep &= times > np.fmax.accumulate(np.r_[-np.inf, np.where(keep, times, -np.inf)[:-1]])
    if keep.all():
        return times, values
    if keep.sum() < 0.5 * len(times):
        raise ValueError(f"{(~keep).sum():,} of {len(times):,} times do not increase")
    warnings.warn(f"series {name!r}: {(~keep).sum():,} of {len(times):,} samples are dropped, since their times "
                  "repeat, go back, lie days away or are not finite", stacklevel=2)
    return times[keep], values[keep]


def _roi_ids(signal: RoiResponseSeries) -> tuple[str, ...]:
    return tuple(str(i) for i in np.asarray(signal.rois.table.id[:])[np.asarray(signal.rois.data[:], np.int64)])


def _cells(signal: RoiResponseSeries, traces: Series) -> pd.DataFrame:
    """The cells of the traces as units: id, the region of the imaging plane, metrics, and x, y of the mask's centre."""
    table, rows = signal.rois.table, np.asarray(signal.rois.data[:], np.int64)
    plane = getattr(table, "imaging_plane", None)
    found = {name: values[rows] for name, values in scalars(table).items() if name not in ("id", "region")}
    if "pixel_mask" in table.colnames and isinstance(table["pixel_mask"], VectorIndex):
        mask, many = np.asarray(table["pixel_mask"].target.data[:]), counts(table["pixel_mask"], "pixel_mask")
        if mask.dtype.names and len(mask):
            of = np.repeat(np.arange(len(many)), many)
            weight = np.maximum(np.bincount(of, weights=mask["weight"], minlength=len(many)), 1e-12)
            for axis in ("x", "y"):
                total = np.bincount(of, weights=mask["weight"] * mask[axis].astype(np.float64), minlength=len(many))
                if total.any():                                         # all 0: nobody measured it
                    found[axis] = (total / weight)[rows]
    return pd.DataFrame({"id": traces.columns, "region": str(getattr(plane, "location", "") or "unknown"), **found})


def pictures(nwb: NWBFile) -> str | None:
    """The name of the stimulus template with the pictures: the one an IndexSeries shows, else the one with the most."""
    sizes = {name: how_many(item) for name, item in (nwb.stimulus_template or {}).items()}
    sizes = {name: size for name, size in sizes.items() if size}
    shown = [target.name for target in map(_target, (nwb.stimulus or {}).values()) if target is not None]
    return next((name for name in shown if name in sizes), None) or max(sizes, key=sizes.__getitem__, default=None)


def _target(item):
    return (item.indexed_timeseries or item.indexed_images) if isinstance(item, IndexSeries) else None


def how_many(item) -> int:
    """The pictures in a stimulus template; 0 where it is something else, or they lie in other files."""
    if isinstance(item, Images):
        return len(item.images)
    inside = isinstance(item, ImageSeries) and item.external_file is None and item.data is not None
    return len(item.data) if inside and len(item.data.shape) in (3, 4) else 0


def index_series(nwb: NWBFile, template: str) -> pd.DataFrame | None:
    """The presentations that the file's IndexSeries of that template lists: each lasts until the next begins."""
    rows = []
    for item in (nwb.stimulus or {}).values():
        if _target(item) is not None and _target(item).name == template and len(item.data):
            start = (np.asarray(item.timestamps[:], np.float64) if item.timestamps is not None else
                     (item.starting_time or 0.0) + np.arange(len(item.data)) / item.rate)
            usual = float(np.median(np.diff(start))) if len(start) > 1 else 0.0
            rows.append(pd.DataFrame({"start": start, "stop": np.r_[start[1:], start[-1] + usual],
                                      "image": np.asarray(item.data[:], np.int64)}))
    return pd.concat(rows).sort_values("start", kind="stable", ignore_index=True) if rows else None


def picture_data(template, path: Path) -> np.ndarray:
    """The pictures [n, height, width(, 3)] of an ImageSeries or of Images, these in their stated or counted order."""
    if not isinstance(template, Images):
        return template.data[:]
    order = template.order_of_images
    items = list(order.data) if order is not None else sorted(template.images.values(), key=lambda i: _counted(i.name))
    shapes = {tuple(item.data.shape) for item in items}
    if len(shapes) > 1:
        raise BadRecording(f"{path}: the pictures of {template.name!r} have {len(shapes)} different shapes; bring them "
                           "to one size")
    return np.stack([item.data[:] for item in items])


def _counted(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
