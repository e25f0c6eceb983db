"""Which windows of which sessions: splits that never leak, and samplers that are pure functions of (seed, step).

    split(session) → train, valid, test intervals → RandomWindows (training) or sliding (evaluation) → SpikeBatch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, UnknownName
from workbench.session import Session
from workbench.splits import split

__all__ = ["RandomWindows", "aligned", "locked", "reaching_back", "sliding", "split"]


def locked(intervals: np.ndarray, times: np.ndarray, duration: float) -> np.ndarray:
    """The windows [n, 2] that begin at one of `times` [T] and lie wholly inside one of the intervals [n, 2]."""
    intervals = np.asarray(intervals, float).reshape(-1, 2)
    which = np.searchsorted(intervals[:, 0], times + 1e-9, side="right") - 1
    inside = (which >= 0) & (times + duration <= intervals[np.maximum(which, 0), 1] + 1e-9) if len(intervals) else \
        np.zeros(len(times), bool)
    return np.stack([times[inside], times[inside] + duration], axis=1)


def sliding(intervals: np.ndarray, duration: float, step: float) -> np.ndarray:
    """Starts of windows that slide through each interval, the last one flush with its end [W]."""
    starts = []
    for start, stop in np.asarray(intervals, float).reshape(-1, 2):
        room = stop - start - duration
        if room >= -1e-9:
            here = start + step * np.arange(int(room / step + 1e-6) + 1)
            starts.append(here if room - (here[-1] - start) < 1e-6 else np.append(here, start + room))
    if not starts:
        longest = np.diff(np.asarray(intervals, float).reshape(-1, 2)).max(initial=0)
        raise BadRecording(f"no interval is as long as a window of {duration:g} s (the longest lasts {longest:.3f} s); "
                           "choose a shorter window")
    return np.concatenate(starts)


def reaching_back(intervals: np.ndarray, seconds: float, valid: np.ndarray) -> np.ndarray:
    """The intervals [n, 2], each from that many seconds earlier on, as far as the `valid` recording [m, 2] goes: for
    windows that open with a history. They may overlap.
    """
    intervals = np.array(intervals, float).reshape(-1, 2)
    inside = np.searchsorted(valid[:, 0], intervals[:, 0] + 1e-9, side="right") - 1
    return np.stack([np.maximum(intervals[:, 0] - seconds, valid[inside, 0]), intervals[:, 1]], axis=1)


def aligned(intervals: np.ndarray, times: np.ndarray, interval: float, duration: float) -> np.ndarray:
    """The intervals, each starting half a sampling interval before its first sample: bins from there centre on samples.

    Half a bin of misalignment between training and held-out time costs a lagged ridge 0.02 of R² on real reaches. An
    interval that would no longer hold a window of `duration` stays as it is.
    """
    intervals = np.array(intervals, float).reshape(-1, 2)
    first = np.searchsorted(times, intervals[:, 0] + interval / 2 - 1e-6 * interval)
    start = times[np.minimum(first, len(times) - 1)] - interval / 2 if len(times) else intervals[:, 0]
    fits = (first < len(times)) & (intervals[:, 1] - start >= duration - 1e-9)
    intervals[fits, 0] = start[fits]
    return intervals


class RandomWindows:
    """Training windows with random starts, each wholly inside one interval of its session.

    sessions and intervals ([n, 2] seconds, one array a session) go together. `batch(k)` depends on (seed, k) alone, so
    that a run resumed anywhere sees what it would have seen; no part of a recording is read before a window asks.

    targets      every window holds a sample of each of them
    also         series that batches carry where there are samples
    align        windows start half a sampling interval before a sample of that target, as models of counts want
    power        a dataset of N seconds is drawn in proportion to N^power: 1 by its time, 0.5 by √N, 0 all alike
    opens        dataset → the batch from which on it is drawn (a curriculum); the others are there from the start
    drop_spikes, drop_units   the largest share that a window loses: each draws its own below it, and loses at random
    jitter       seconds by which every spike is moved at most
    """

    def __init__(self, sessions: Sequence[Session], intervals: Sequence[np.ndarray], *, duration: float,
                 batch_size: int, seed: int = 0, targets: Sequence[str] = (), also: Sequence[str] = (),
                 align: str | None = None, power: float = 1.0, opens: Mapping[str, int] | None = None,
                 drop_spikes: float = 0.0, drop_units: float = 0.0, jitter: float = 0.0):
        self.duration, self.batch_size, self.seed = duration, batch_size, seed
        self.drop_spikes, self.drop_units, self.jitter = drop_spikes, drop_units, jitter
        self.reader, self.targets = Reader(sessions, targets, also), tuple(targets)
        rows = [(s, a, b - duration) for s, part in enumerate(intervals) for a, b in part if b - a >= duration - 1e-9]
        if not rows:
            longest = max((float(np.diff(part).max(initial=0)) for part in intervals), default=0.0)
            raise BadRecording(f"no training interval is as long as a window of {duration:g} s (the longest lasts "
                               f"{longest:.3f} s); choose a shorter window (model.window=)")
        self.session, self.first, last = (np.array(column) for column in zip(*rows, strict=True))
        self.room = np.maximum(last - self.first, 0)
        self.clocks = [(s.get_series(align).times, s.get_series(align).interval) for s in sessions] if align else None
        self.stages = self._stages([s.dataset or s.id for s in sessions], power, dict(opens or {}))

    def _stages(self, datasets: list[str], power: float, opens: dict[str, int]) -> list[tuple[int, np.ndarray]]:
        """(first batch, cumulated chance of every row) of each stage of the curriculum."""
        for name in opens:
            if name not in datasets:
                raise UnknownName("dataset", name, dict.fromkeys(datasets), where="the recordings to train on")
        dataset = np.array(datasets)[self.session]
        chance = self.room + 1e-3                                       # a row as long as a window still holds one
        opening = np.array([opens.get(name, 0) for name in dataset])
        for name in np.unique(dataset):
            own = dataset == name
            chance[own] *= chance[own].sum() ** (power - 1)
        stages = [(int(first), np.cumsum(np.where(opening <= first, chance, 0))) for first in np.unique(opening)]
        if stages[0][0] > 0:
            raise BadRecording(f"every dataset opens later than the first batch (the first at {stages[0][0]}); let one "
                               "open at 0")
        return stages

    def batch(self, k: int) -> SpikeBatch:
        """Batch number k of the run."""
        random = np.random.default_rng([self.seed, k])
        session, starts = self._draw(random, k, self.batch_size)
        batch = self.reader.read(session, starts, self.duration)
        for _ in range(100):
            empty = np.zeros(self.batch_size, bool)
            for target in self.targets:
                empty |= (batch.targets[target].offsets.diff() == 0).numpy()
            if not empty.any():
                return self._augment(batch, random)
            session[empty], starts[empty] = self._draw(random, k, int(empty.sum()))
            batch = self.reader.read(session, starts, self.duration)
        raise BadRecording(f"hardly any window of {self.duration:g} s of the training part holds a sample of "
                           f"{', '.join(self.targets)}; choose a longer window (model.window=) or another series")

    def _draw(self, random: np.random.Generator, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        upto = [chances for first, chances in self.stages if first <= k][-1]
        row = np.searchsorted(upto, random.random(n) * upto[-1], side="right")
        starts = self.first[row] + random.random(n) * self.room[row]
        for i, s in enumerate(self.session[row] if self.clocks else ()):
            times, interval = self.clocks[s]
            sample = max(np.searchsorted(times, starts[i] + interval / 2, side="right") - 1, 0)
            start = times[sample] - interval / 2
            near = max(self.first[row[i]], starts[i] - 1.001 * interval) <= start <= starts[i]
            starts[i] = start if near else starts[i]
        return self.session[row], starts

    def _augment(self, batch: SpikeBatch, random: np.random.Generator) -> SpikeBatch:
        lost = lambda share, offsets: torch.from_numpy(random.random(int(offsets[-1])) < np.repeat(
            share * random.random(self.batch_size), offsets.diff().numpy()))
        if self.drop_units:
            batch = batch.keep_units(~lost(self.drop_units, batch.unit_offsets))
        if self.drop_spikes:
            batch = batch.drop(lost(self.drop_spikes, batch.offsets))
        if self.jitter:
            shift = random.uniform(-self.jitter, self.jitter, len(batch.times)).astype(np.float32)
            batch = batch.jitter(torch.from_numpy(shift))
        return batch
