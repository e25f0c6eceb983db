"""Which windows of which sessions: splits that never leak, and samplers that are pure functions of (seed, step).

    split(session) → train, valid, test intervals → RandomWindows (training) or sliding (evaluation) → SpikeBatch
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from workbench.batch import Reader, SpikeBatch
from workbench.conditions import picture_names, presentations
from workbench.errors import BadRecording, UnknownName
from workbench.session import Session, overlap


def split(session: Session, test: float = 0.2, valid: float = 0.1, *, by: str = "time", seed: int = 0,
          train: float = 1.0) -> dict[str, np.ndarray]:
    """{"train", "valid", "test"}: intervals [n, 2] in seconds, of which no two share any time, or any part of a trial.

    by "time": the last share `test` of the valid time, `valid` before it, the rest for training; a cut inside a trial
    moves to its start (trials as long as a whole part are cut). Neighbouring windows share slow drift, so this is the
    honest default for what will be used later than it was trained.
    by "trial": whole trials drawn at random from `seed`. Time outside trials is in no part.
    by "picture": every presentation, from its start to the next one's. All presentations of a picture are in one part,
    and the same picture is in the same part of every session; shares are met on average, for each picture is drawn by
    its own pixels and `seed`. Time before the first picture, and grey screens, are in no part.
    train: the share of the training part that is used, its latest time or its first-drawn trials or pictures; more
    holds less.
    """
    if not 0 < train <= 1:
        raise BadRecording(f"{train:g} of the training part cannot be used; give a share above 0 and up to 1")
    if test < 0 or valid < 0 or test + valid >= 1:
        raise BadRecording(f"a split of {valid:g} valid and {test:g} test leaves nothing to train on; give shares "
                           "whose sum is under 1")
    if by not in ("time", "trial", "picture"):
        raise UnknownName("split", by, ("time", "trial", "picture"), where="the ways to split")
    parts = _by_time(session, test, valid) if by == "time" else \
        (_by_trial if by == "trial" else _by_picture)(session, test, valid, seed, train)
    if by == "time" and train < 1:
        parts["train"] = _latest(parts["train"], train)
    for name, share in (("train", 1), ("valid", valid), ("test", test)):
        if share and not len(parts[name]) and by == "picture":
            raise BadRecording(f"{session.id}: no presentation is left for the {name} part: "
                               f"{len(picture_names(session))} pictures are too few; give other shares or another seed")
        if share and not len(parts[name]):
            raise BadRecording(f"{session.id}: no recording is left for the {name} part, since no cut may go through a "
                               f"trial: {len(session.trials)} trials in {session.duration:.1f} s are too few; give "
                               "other shares, or a session without its trials")
    return parts


def _by_time(session: Session, test: float, valid: float) -> dict[str, np.ndarray]:
    shortest = session.duration * min(part for part in (test, valid, 1 - test - valid) if part)
    cuts = [_cut(session, share, shortest) for share in (1 - test - valid, 1 - test)]
    edges = [session.start, *cuts, session.stop]
    return {name: overlap(session.intervals, np.array([[a, b]]))
            for name, a, b in zip(("train", "valid", "test"), edges[:-1], edges[1:], strict=True)}


def _cut(session: Session, share: float, shortest: float) -> float:
    """The time at which `share` of the valid recording has passed, moved back to where it cuts no trial.

    Trials as long as the `shortest` part cannot be kept whole, and are cut.
    """
    lengths = np.diff(session.intervals)[:, 0]
    passed = np.concatenate([[0], np.cumsum(lengths)])
    at = share * passed[-1]
    i = min(int(np.searchsorted(passed, at, side="right")) - 1, len(lengths) - 1)
    cut = float(session.intervals[i, 0] + at - passed[i])
    start, stop = session.trials["start"].to_numpy(float), session.trials["stop"].to_numpy(float)
    start, stop = start[stop - start < shortest], stop[stop - start < shortest]
    while (through := (start < cut) & (cut < stop)).any():              # trials may overlap
        cut = float(start[through].min())
    return cut


def _latest(intervals: np.ndarray, share: float) -> np.ndarray:
    """The last share of the time in sorted intervals [n, 2]."""
    ends = np.cumsum(np.diff(intervals)[:, 0])
    spare = (1 - share) * ends[-1]
    i = int(np.searchsorted(ends, spare, side="right"))
    return np.concatenate([[[intervals[i, 1] - (ends[i] - spare), intervals[i, 1]]], intervals[i + 1:]])


def _by_trial(session: Session, test: float, valid: float, seed: int, train: float) -> dict[str, np.ndarray]:
    trials = session.trials[["start", "stop"]].to_numpy(float)
    trials = trials[np.argsort(trials[:, 0], kind="stable")]
    trials = trials[trials[:, 1] > trials[:, 0]]
    # Trials that overlap share their time, so they go together.
    first = np.append(True, trials[1:, 0] >= np.maximum.accumulate(trials[:, 1])[:-1]) if len(trials) else []
    group = np.cumsum(first) - 1
    groups = int(group[-1]) + 1 if len(trials) else 0
    order = np.random.default_rng([seed, groups]).permutation(groups)
    tests, valids = round(test * groups), round(valid * groups)
    trains = max(round(train * (groups - tests - valids)), 1)
    drawn = {"test": order[:tests], "valid": order[tests:tests + valids],
             "train": order[tests + valids:tests + valids + trains]}
    parts = {}
    for name in ("train", "valid", "test"):
        rows = trials[np.isin(group, drawn[name])]
        parts[name] = overlap(session.intervals, _joined(rows)) if len(rows) else rows
    return parts


def _by_picture(session: Session, test: float, valid: float, seed: int, train: float) -> dict[str, np.ndarray]:
    starts, image = presentations(session)
    # Between 0 and 1, by what the picture is and nothing else: no other picture, session or order matters.
    place = np.array([int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:13], 16) / 16 ** 13
                      for name in picture_names(session)])[image]
    whatever = np.unique(session.stimuli["start"].dropna())             # a grey screen ends a picture, too
    ends = np.append(whatever, session.stop)[np.searchsorted(whatever, starts, side="right")]
    drawn = {"test": place < test, "valid": (place >= test) & (place < test + valid),
             "train": place >= 1 - train * (1 - test - valid)}
    both = np.stack([starts, np.maximum(ends, starts)], axis=1)
    return {name: overlap(session.intervals, both[drawn[name]]) for name in ("train", "valid", "test")}


def locked(intervals: np.ndarray, times: np.ndarray, duration: float) -> np.ndarray:
    """The windows [n, 2] that begin at one of `times` [T] and lie wholly inside one of the intervals [n, 2]."""
    intervals = np.asarray(intervals, float).reshape(-1, 2)
    which = np.searchsorted(intervals[:, 0], times + 1e-9, side="right") - 1
    inside = (which >= 0) & (times + duration <= intervals[np.maximum(which, 0), 1] + 1e-9) if len(intervals) else \
        np.zeros(len(times), bool)
    return np.stack([times[inside], times[inside] + duration], axis=1)


def _joined(rows: np.ndarray) -> np.ndarray:
    """Sorted intervals [n, 2]; those that overlap or touch become one."""
    reach = np.maximum.accumulate(rows[:, 1])
    first = np.append(True, rows[1:, 0] > reach[:-1])
    return np.stack([rows[first, 0], reach[np.append(np.flatnonzero(first)[1:] - 1, len(rows) - 1)]], axis=1)


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
