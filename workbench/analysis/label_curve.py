"""What a frozen model is worth with few labels: beside the same network with random weights, and beside counts.

    pretrained models, their untrained twins → latents of each sample's chunk ─┐
    counts of the same bin, of the last ten, of as many as a window has ───────┴→ ridge, k-NN → R²

Name what a probe sees: lagged counts read by a ridge are the bar, and a random network whose window is long clears
counts of one bin by its length alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from torch import nn

from workbench.analysis import probe
from workbench.analysis.probe import Samples
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import r2
from workbench.session import Session, overlap
from workbench.windows import aligned


def label_curve(models: Sequence[nn.Module], session: Session, parts: dict[str, np.ndarray], target: str, *,
                seconds: Sequence[float | None] = (31, 124, None), draws: Sequence[str | int] = (0, 1, 2),
                source: str = "latents") -> pd.DataFrame:
    """R² on the test part by seconds of labels, for pretrained seeds, their random twins, and counts: a row a fit.

    models      the same network pretrained from several seeds; each gets a twin with random weights
    parts       "train", "valid" and "test" intervals of the session, as `split` gives them
    seconds     of the training part that have labels; None: all, with the validation part once the penalty is chosen
    draws       which seconds these are, see `labelled`

    Columns: features, seed (of the model), labels (s), draw, probe ("ridge" or "k-NN"), r2 (mean of dimensions), size
    (features a sample). The penalty, or the number of neighbours, is chosen on the validation part, whose labels
    `labels` does not count; all rows have that alike.
    """
    if not len(models):
        raise WorkbenchError("no model was given to probe; pass pretrained ones, each from a seed of its own")
    length, rows = {name: float(np.diff(part).sum()) for name, part in parts.items()}, []
    for name, seed, samples in _every(models, session, parts, target, source):
        for wanted in seconds:
            for draw in draws if wanted else ("all",):
                train = samples["train"].within(labelled(parts["train"], wanted, draw) if wanted else parts["train"])
                said, both = samples["test"], wanted is None
                weight = probe.linear(train, samples["valid"], both)
                found = {"ridge": said.x @ weight[:-1] + weight[-1],
                         "k-NN": probe.nearest(train, samples["valid"], said.x, both)}
                rows += [{"features": name, "seed": seed, "labels": wanted or length["train"] + length["valid"],
                          "draw": draw, "probe": kind, "r2": float(np.nanmean(r2(said.y, behavior))),
                          "size": train.x.shape[1]} for kind, behavior in found.items()]
    return pd.DataFrame(rows)


def _every(models: Sequence[nn.Module], session: Session, parts: dict[str, np.ndarray], target: str,
           source: str) -> Iterator[tuple[str, int, dict[str, Samples]]]:
    """What is compared: name, seed and the samples of each part."""
    for seed, model in enumerate(models):
        probe.check_source(source, probe.sources(model, session, target), model)
        for name, one in ((f"pretrained {source}", model), (f"random {source}", probe.untrained(model, seed))):
            yield name, seed, {part: probe.read(one, session, time, target, source) for part, time in parts.items()}
    size = probe.bin_seconds(models[0], "latents")
    around = round(models[0].window / size)
    for name, lags in (("counts, own bin", [0]), ("counts, last 10 bins", range(-9, 1)),
                       (f"counts, {around} bins around", range(-(around // 2), around - around // 2))):
        yield name, 0, {part: lagged_counts(session, time, target, size, lags) for part, time in parts.items()}


def labelled(part: np.ndarray, seconds: float, draw: str | int = "last") -> np.ndarray:
    """The intervals [n, 2] of `seconds` of the time in `part` [n, 2], that which lies between its intervals left out.

    draw: the "first" seconds, the "last", or a run that begins where the random number of that seed says.
    """
    if isinstance(draw, str) and draw not in ("first", "last"):
        raise UnknownName("draw of labels", draw, ("first", "last"), where="the ways to limit labels",
                          hint="give a whole number to draw at random")
    part = np.asarray(part, float).reshape(-1, 2)
    lengths = np.diff(part)
    passed = np.cumsum(lengths, axis=0) - lengths
    room = lengths.sum() - seconds
    if seconds <= 0 or room < -1e-6:
        raise BadRecording(f"labels of {seconds:g} s cannot be drawn from {lengths.sum():.1f} s; ask for fewer, or for "
                           "None: all of them")
    first = {"first": 0.0, "last": room}[draw] if isinstance(draw, str) else np.random.default_rng(draw).random() * room
    found = part[:, :1] + np.clip([[first, first + seconds]] - passed, 0, lengths)
    return found[found[:, 1] > found[:, 0]]


def lagged_counts(session: Session, part: np.ndarray, target: str, bin_size: float, lags: Sequence[int]) -> Samples:
    """Spike counts of every unit in the bins `lags` from that of every sample of `part` [n, 2] (0: its own).

    At the ends of an interval the outermost bin stands in, so that nothing outside of it is seen.
    """
    series, found = session.get_series(target), []
    part = overlap(session.intervals, np.asarray(part, float).reshape(-1, 2))
    for one in aligned(part, series.times, series.interval, bin_size):
        if one[1] - one[0] < bin_size - 1e-9:
            continue
        piece = session.between(*one)
        counts, (times, values, *_) = piece.counts(bin_size).values, piece.get_series(target)
        known = np.isfinite(values).all(1)
        if not known.any():
            continue
        bins = ((times[known] - one[0]) / bin_size + 1e-4).astype(int)[:, None] + np.asarray(lags)
        found.append(Samples(times[known], counts[bins.clip(0, len(counts) - 1)].reshape(len(bins), -1), values[known]))
    times, x, y = (np.concatenate(each) for each in zip(*found, strict=True)) if found else (np.empty(0),) * 3
    return probe.samples_of(session, target, times, x.astype(np.float32), y)
