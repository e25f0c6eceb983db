"""Splits of a recording that never leak: by time, by trial, by picture. Known elsewhere as `workbench.windows.split`.

    session → {"train", "valid", "test"}: intervals [n, 2] s. No torch, so that whoever only shows them need not wait.
"""

from __future__ import annotations

import hashlib

import numpy as np

from workbench.conditions import picture_names, presentations
from workbench.errors import BadRecording, UnknownName
from workbench.session import Session, joined, overlap


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
    if not session.duration > 0:
        raise BadRecording(f"{session.id} has no valid time to split: {len(session.spike_times):,} spikes, "
                           f"{len(session.series)} series; check what was read")
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
        parts[name] = overlap(session.intervals, joined(rows)) if len(rows) else rows
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
