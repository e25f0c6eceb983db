"""Which windows of which sessions: splits that never leak, and samplers that are pure functions of (seed, step).

    split(session) → train, valid, test intervals → RandomWindows (training) or sliding (evaluation) → SpikeBatch
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording
from workbench.session import Session, overlap


def split(session: Session, test: float = 0.2, valid: float = 0.1) -> dict[str, np.ndarray]:
    """Chronological split: the last share `test` of the valid time, `valid` before it, the rest for training.

    Returns {"train", "valid", "test"}: intervals [n, 2] in seconds. No trial lies in two parts: a cut inside one moves
    to its start (trials as long as a whole part are cut). Chronological, because neighbouring windows share slow drift
    and random windows would leak it.
    """
    if test < 0 or valid < 0 or test + valid >= 1:
        raise BadRecording(f"a split of {valid:g} valid and {test:g} test leaves nothing to train on; give shares "
                           "whose sum is under 1")
    shortest = session.duration * min(part for part in (test, valid, 1 - test - valid) if part)
    cuts = [_cut(session, share, shortest) for share in (1 - test - valid, 1 - test)]
    edges = [session.start, *cuts, session.stop]
    parts = {name: overlap(session.intervals, np.array([[a, b]]))
             for name, a, b in zip(("train", "valid", "test"), edges[:-1], edges[1:], strict=True)}
    for name, share in (("train", 1), ("valid", valid), ("test", test)):
        if share and not len(parts[name]):
            raise BadRecording(f"{session.id}: no recording is left for the {name} part, since no cut may go through a "
                               f"trial: {len(session.trials)} trials in {session.duration:.1f} s are too few; give "
                               "other shares, or a session without its trials")
    return parts


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


def covered(times: np.ndarray, interval: float, gap: float) -> np.ndarray:
    """Where a series was sampled: intervals [n, 2] around runs of samples less than `gap` seconds apart."""
    if not len(times):
        return np.empty((0, 2))
    breaks = np.flatnonzero(np.diff(times) >= gap)
    first, last = times[np.append(0, breaks + 1)], times[np.append(breaks, len(times) - 1)]
    return np.stack([first - interval / 2, last + interval / 2], axis=1)


class RandomWindows:
    """Training windows with random starts, each wholly inside one interval of its session.

    sessions and intervals ([n, 2] seconds, one array a session) go together. `batch(k)` depends on (seed, k) alone, so
    that a resumed run sees what it would have seen. All possible starts are equally likely; with `align`, those half a
    sampling interval before a sample of that target, which models of binned counts want. `drop_spikes` is the largest
    share of spikes that a window loses: each window draws its own share below it, and loses spikes at random.
    """

    def __init__(self, sessions: Sequence[Session], intervals: Sequence[np.ndarray], *, duration: float,
                 batch_size: int, seed: int = 0, targets: Sequence[str] = (), align: str | None = None,
                 drop_spikes: float = 0.0):
        self.duration, self.batch_size, self.seed, self.drop_spikes = duration, batch_size, seed, drop_spikes
        self.reader = Reader(sessions, targets)
        for name in targets:                                            # windows without samples teach nothing
            sampled = [covered(times, session.get_series(name).interval, duration)
                       for session, (times, _) in zip(sessions, self.reader.targets[name], strict=True)]
            intervals = [overlap(np.asarray(part), there) for part, there in zip(intervals, sampled, strict=True)]
        rows = [(s, a, b - duration) for s, part in enumerate(intervals) for a, b in part if b - a >= duration - 1e-9]
        if not rows:
            longest = max((float(np.diff(part).max(initial=0)) for part in intervals), default=0.0)
            what = f" with samples of {', '.join(targets)}" if targets else ""
            raise BadRecording(f"no training interval{what} is as "
                               f"long as a window of {duration:g} s (the longest lasts {longest:.3f} s); choose a "
                               "shorter window (model.window=)")
        self.session, self.first, last = (np.array(column) for column in zip(*rows, strict=True))
        self.room = np.maximum(last - self.first, 0)
        # An interval exactly as long as a window still holds one window.
        self.upto = np.cumsum(self.room + 1e-3)
        self.clocks = [(times, s.get_series(align).interval) for s, (times, _)
                       in zip(sessions, self.reader.targets[align], strict=True)] if align else None

    def batch(self, k: int) -> SpikeBatch:
        """Batch number k of the run."""
        random = np.random.default_rng([self.seed, k])
        row = np.searchsorted(self.upto, random.random(self.batch_size) * self.upto[-1])
        starts = self.first[row] + random.random(self.batch_size) * self.room[row]
        if self.clocks:
            for i, s in enumerate(self.session[row]):
                times, interval = self.clocks[s]
                sample = max(np.searchsorted(times, starts[i] + interval / 2, side="right") - 1, 0)
                start = times[sample] - interval / 2
                near = max(self.first[row[i]], starts[i] - 1.001 * interval) <= start <= starts[i]
                starts[i] = start if near else starts[i]
        batch = self.reader.read(self.session[row], starts, self.duration)
        if self.drop_spikes:
            share = np.repeat(self.drop_spikes * random.random(self.batch_size), batch.offsets.diff().numpy())
            batch = batch.drop(torch.from_numpy(random.random(len(share)) < share))
        return batch
