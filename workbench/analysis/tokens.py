"""What each way to make tokens of spikes keeps and what it costs, measured on a recording.

    windows → SpikeBatch → view (bins, patches, spikes, neurons, events) → spikes again → compared with the recording

Every view is turned back into spikes, so that what it loses is seen and not argued. Sources of the views: NDT1 (bins:
Ye & Pandarinath 2021), NDT2 (patches: Ye et al. 2023), POYO (spikes: Azabou et al. 2023), SPINT (neurons: Le et al.
2025), Neuroformer (events: Antoniades et al. 2024).

    model → reading_of → Reading → tokens_in(session, reading, start, stop) → Tokens, as the raster draws them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, WorkbenchError
from workbench.session import Session, overlap
from workbench.windows import sliding

VIEWS = ("bins", "patches", "spikes", "neurons", "events")


class Reading(NamedTuple):
    """How spikes become tokens: one of VIEWS, and its measures; by default those that `compare` has.

    bin_size: seconds. k: units a patch. width: seconds of one neuron's token. window: seconds that a model sees at
    once, chunk: seconds of the steps in which it takes single spikes together; 0 where there is no model.
    """

    view: str
    bin_size: float = 0.02
    k: int = 8
    width: float = 1.0
    window: float = 0.0
    chunk: float = 0.0

    @property
    def step(self) -> float:
        """Seconds from one token of a unit to the next; 0 for tokens that are single spikes."""
        return {"bins": self.bin_size, "patches": self.bin_size, "neurons": self.width}.get(self.view, 0.0)

    @property
    def holds(self) -> str:
        """What one token is, in words."""
        each = f"{1e3 * self.bin_size:g} ms"
        return {"bins": f"the counts of all units in {each}",
                "patches": f"the counts of {self.k} neighbouring units of the table in {each}",
                "spikes": "one spike: its unit and its time",
                "neurons": f"one unit: its counts in {round(self.width / self.bin_size)} bins of {each}",
                "events": "one spike: its unit and the time since the spike before"}[self.view]


class Tokens(NamedTuple):
    """Tokens of one stretch of a recording. Those of counts have columns of time and rows of units; others are spikes.

    starts, stops [T] seconds; rows [N] the token of each unit in a column; counts [T, R] spikes in each token.
    times [S] seconds and units [S] rows of the unit table, in order of time, of tokens that are single spikes.
    """

    starts: np.ndarray
    stops: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    times: np.ndarray
    units: np.ndarray

    def __len__(self) -> int:
        return self.counts.size + len(self.times)


def reading_of(model) -> Reading:
    """What a model makes of spikes. WorkbenchError for one that reads none."""
    if not model.spikes:
        raise WorkbenchError(f"model {model.name!r} reads calcium traces, so that no token of it holds spikes; choose "
                             "another run or another view")
    bin_size, window = model.bin_size or Reading("").bin_size, getattr(model, "recent", model.window)
    if model.takes == "patches":
        return Reading("patches", bin_size, model.patches.size, window=window)
    if model.takes == "neurons" and model.bin_size is None:             # NuCLR: tokens are patches of one neuron
        return Reading("neurons", model.patch / model.patch_bins, width=model.patch, window=window)
    if model.takes == "neurons":
        return Reading("neurons", bin_size, width=model.lags * bin_size, window=window)
    chunk = getattr(model, "chunk", None) or getattr(model, "step", None) or model.bin_size or 0.0
    return Reading(model.takes, bin_size, window=window, chunk=chunk if model.takes in ("spikes", "events") else 0.0)


def tokens_in(session: Session, reading: Reading, start: float, stop: float) -> Tokens:
    """The tokens that have a part in [start, stop) seconds, read by the views of `SpikeBatch`.

    Their grid begins at the start of each valid interval; what is left of one at its end, less than a token, has none.
    Single spikes are those in [start, stop) and in valid time.
    """
    n, reader = len(session.units), Reader([session])
    rows = {"bins": np.zeros(n, int), "patches": np.arange(n) // reading.k}.get(reading.view, np.arange(n))
    starts, counts = [np.empty(0)], [np.empty((0, int(rows.max(initial=-1)) + 1))]
    times, units = [np.empty(0)], [np.empty(0, int)]
    for first, last in pieces(session.intervals, start, stop, reading.step) if n else ():
        if not reading.step:
            batch = reader.read([0], [first], last - first)
            events = batch.events() if reading.view == "events" else None
            times.append(first + (batch.times.double() if events is None else events.dt.double().cumsum(0)).numpy())
            units.append((batch.units if events is None else events.units).numpy())
            continue
        columns = round((last - first) / reading.step)
        starts.append(at := first + reading.step * np.arange(columns))
        if reading.view == "neurons":
            batch = reader.read(np.zeros(columns, int), at, reading.step)
            found = batch.neurons(reading.bin_size).sum(1).view(columns, n)
        else:
            batch = reader.read([0], [first], columns * reading.step)
            found = batch.counts(reading.step).sum(1)[0, :, None] if reading.view == "bins" else (
                batch.patches(reading.k, reading.step).sum(3)[0])
        counts.append(found.numpy())
    starts = np.concatenate(starts)
    return Tokens(starts, starts + reading.step, rows, np.concatenate(counts), *map(np.concatenate, (times, units)))


def pieces(intervals: np.ndarray, start: float, stop: float, step: float = 0.0) -> np.ndarray:
    """The parts [n, 2] of [start, stop) in valid `intervals` [m, 2], rounded out to whole steps from an interval's
    start, of which none reaches beyond its end."""
    found = overlap(intervals, np.array([[start, stop]]))
    if not step or not len(found):
        return found
    begins, ends = intervals[np.searchsorted(intervals[:, 0], found[:, 0], side="right") - 1].T
    last = np.minimum(np.ceil((found[:, 1] - begins) / step - 1e-6), np.floor((ends - begins) / step + 1e-6))
    first = np.floor((found[:, 0] - begins) / step + 1e-6)
    return np.stack([begins + first * step, begins + last * step], axis=1)[last > first]


def some_windows(session: Session, window: float = 1.0, number: int = 64) -> SpikeBatch:
    """At most `number` windows of `window` seconds, spread evenly over the valid recording: side by side, the
    last one of an interval flush with its end."""
    starts = sliding(session.intervals, window, window)
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(number, len(starts))).round().astype(int))]
    return Reader([session]).read(np.zeros(len(starts), int), starts, window)


def compare(session: Session, *, window: float = 1.0, bin_size: float = 0.02, k: int = 8,
            number: int = 64) -> pd.DataFrame:
    """One row a view, measured on `number` windows of `window` seconds; patches of `k` units, bins of `bin_size` s.

    tokens_per_s; numbers a token holds; kb_per_s of the tensors as they are; empty: share of their numbers that are
    zero; pairs that attention compares in one window; timing_ms: median distance from a spike to where the view puts
    it; order_lost: share of neighbouring spikes whose order cannot be told; unseen: share of units without a token in a
    window, since they were silent. Raises BadRecording where the windows hold no spikes.
    """
    batch = some_windows(session, window, number)
    seconds, true = len(batch) * window, _recorded(session, batch)
    if not len(true):
        raise BadRecording(f"{session.id}: no spikes in {len(batch)} windows of {window:g} s, so there is nothing to "
                           "compare; choose another recording or longer windows")
    owners, windows = batch.spikes().units.numpy(), batch.windows.numpy()
    by_unit = np.lexsort([true, owners])                                # as spikes_of sorts them
    apart = (np.diff(windows) == 0) & (np.diff(true) > 0)               # neighbours in time, in one window
    rows = {}
    for view in VIEWS:
        tensors, tokens, numbers = _made(batch, view, bin_size, k)
        placed = np.empty_like(true)
        placed[by_unit] = spikes_of(batch, view, bin_size, k)[1]
        told = np.diff(placed)[apart] > 0
        binned = view in ("bins", "patches", "neurons")
        rows[view] = {"tokens_per_s": tokens / seconds, "numbers": numbers,
                      "kb_per_s": sum(t.nbytes for t in tensors) / seconds / 1e3,
                      "empty": float((tensors[0] == 0).float().mean()) if binned else 0.0,
                      "pairs": (tokens / len(batch)) ** 2, "timing_ms": 1e3 * float(np.median(np.abs(placed - true))),
                      "order_lost": float(1 - told.mean()) if len(told) else 0.0,
                      "unseen": 0.0 if binned else 1 - len(np.unique(owners)) / len(batch.window_units)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("view")


def by_bin_size(session: Session, bin_sizes: Sequence[float], *, window: float = 1.0, k: int = 8,
                number: int = 64) -> pd.DataFrame:
    """`compare` for several bin sizes (s): one row a bin size and view that has bins, with the column `bin_ms`."""
    parts = [compare(session, window=window, bin_size=size, k=k, number=number).loc[["bins", "patches", "neurons"]]
             .assign(bin_ms=1e3 * size) for size in bin_sizes]
    return pd.concat(parts).reset_index()


def spikes_of(batch: SpikeBatch, view: str, bin_size: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The spikes that can be read back from a view: rows of the packed unit list [S] and times [S] in the window.

    Sorted by unit, then time. A spike in a bin is put into its middle.
    """
    if view in ("bins", "patches", "neurons"):
        if view == "neurons":
            counts = batch.neurons(bin_size)
        else:
            counts = batch.counts(bin_size) if view == "bins" else (
                batch.patches(k, bin_size).permute(0, 2, 3, 1).flatten(1, 2)[:, :batch.unit_mask.shape[1]])
            counts = counts[batch.unit_mask]                            # [U, T], in the order of window_units
        units, bins = counts.nonzero(as_tuple=True)
        times = (bins.double() + 0.5) * bin_size
        spikes = counts[units, bins].long()
        return units.repeat_interleave(spikes).numpy(), times.repeat_interleave(spikes).numpy()
    tokens, times = batch.spikes(), batch.times
    if view == "events":
        events = batch.events()
        runs = [part.cumsum(0) for part in events.dt.split(events.offsets.diff().tolist())]
        times = torch.cat(runs)
    times, units = times.double().numpy(), tokens.units.numpy()
    order = np.lexsort([times, units])
    return units[order], times[order]


def intervals_seen(session: Session, unit: int, *, bin_size: float = 0.02, longest: float = 0.1,
                   step: float = 0.001) -> pd.DataFrame:
    """Times between a unit's spikes, as single spikes and as bins show them: interval_ms, spikes, bins (counts [T])."""
    times = session.spike_times[session.spike_units == unit]
    binned = (np.floor(times / bin_size) + 0.5) * bin_size
    edges = np.arange(0, longest + step, step) - step / 2
    return pd.DataFrame({"interval_ms": 1e3 * (edges[:-1] + step / 2), "spikes": np.histogram(np.diff(times), edges)[0],
                         "bins": np.histogram(np.diff(binned), edges)[0]})


def _recorded(session: Session, batch: SpikeBatch) -> np.ndarray:
    """The spike times [S] of the batch's windows as the recording has them, float64 seconds from each start."""
    starts = batch.starts.numpy()
    edges = np.searchsorted(session.spike_times, np.stack([starts, starts + batch.duration]))
    return np.concatenate([session.spike_times[a:b] - start for a, b, start in zip(*edges, starts, strict=True)])


def _made(batch: SpikeBatch, view: str, bin_size: float, k: int) -> tuple[list[Tensor], int, int]:
    """The tensors of a view, how many tokens they are, and how many numbers each token holds."""
    if view == "bins":
        made = batch.counts(bin_size)
        return [made], made.shape[0] * made.shape[2], made.shape[1]
    if view == "patches":
        made = batch.patches(k, bin_size)
        return [made], made[..., 0].numel(), k
    if view == "neurons":
        made = batch.neurons(bin_size)
        return [made], len(made), made.shape[1]
    made = batch.spikes() if view == "spikes" else batch.events()
    return list(made), len(made.units), 2
