"""Decoding of held-out time: windows slide over it, and every sample of the target gets two predictions.

    averaged   the mean over all windows that hold the sample: sees spikes before and after it
    causal     from the window that ends with the sample: sees spikes up to one step after it, and none later
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName
from workbench.metrics import accuracy, balanced_accuracy, r2
from workbench.models.base import Output
from workbench.session import Session, inside, overlap
from workbench.windows import aligned, sliding


class Decoded(NamedTuple):
    """Samples of a target and their predictions: times [T], true, averaged and causal [T, D]; NaN where none is.

    Of a task of classes true is their numbers [T, 1], and predictions are probabilities [T, K].
    """

    times: np.ndarray
    true: np.ndarray
    averaged: np.ndarray
    causal: np.ndarray


@torch.no_grad()
def decode(model, session: Session, intervals: np.ndarray, target: str, *, step: float | None = None,
           batch_size: int = 64) -> Decoded:
    """Predictions of `target` inside `intervals` [n, 2], where it is finite; no window reaches out of them.

    step: seconds between windows; by default as many of the target's sampling intervals as make 50 ms, or for a series
    that is sampled more seldom than windows are long a quarter of one. Time that is not valid recording is left out.
    """
    intervals = overlap(session.intervals, np.asarray(intervals, float).reshape(-1, 2))
    reader = Reader([session], (target,), also=getattr(model, "reads", ()))
    times, true = reader.targets[target][0]
    interval = session.get_series(target).interval
    step = step or _step(interval, model)
    often = interval <= model.window - model.warmup                     # else no bin can be centred on each sample
    starts = sliding(aligned(intervals, times, interval, model.window) if often else intervals, model.window, step)
    known = np.isfinite(true).all(1)                                    # batches leave out the others
    times, true = times[known], true[known]
    total, number = {}, {name: np.zeros(len(times)) for name in ("averaged", "causal")}
    training = model.training
    model.eval()
    for at in np.array_split(starts, -(-len(starts) // batch_size)):
        batch = reader.read(np.zeros(len(at), int), at, model.window).to(_device(model))
        if not len(batch.targets[target].times):                        # of a series that is sampled seldom
            continue
        behavior = _said(model(batch), target).double().cpu().numpy()
        when, offsets = batch.targets[target].times.cpu().numpy(), batch.targets[target].offsets.cpu().numpy()
        rows = np.arange(offsets[-1]) + np.repeat(np.searchsorted(times, at) - offsets[:-1], np.diff(offsets))
        last = when >= model.window - step - 1e-4 * step
        for name, use in (("averaged", when >= model.warmup - 1e-6), ("causal", last)):
            np.add.at(total.setdefault(name, np.zeros((len(times), behavior.shape[1]))), rows[use], behavior[use])
            np.add.at(number[name], rows[use], 1)
    model.train(training)
    held_out = inside(times, intervals)
    mean = {}
    for name in number:
        with np.errstate(invalid="ignore"):
            mean[name] = (total.get(name, np.zeros(true.shape)) / number[name][:, None])[held_out]
    return Decoded(times[held_out], true[held_out], mean["averaged"], mean["causal"])


def _said(output: Output, target: str) -> torch.Tensor:
    """What a model says of the target: its one behaviour, or one of its tasks."""
    if output.tasks is None:
        return output.behavior
    if target not in output.tasks:
        raise UnknownName("task", target, output.tasks, where="what the model decodes")
    return output.tasks[target]


def score(model, sessions: Sequence[Session], intervals: Sequence[np.ndarray], target: str, *,
          step: float | None = None, causal: bool = True) -> dict:
    """R² of `target` on held-out intervals, one array [n, 2] a session; the mean of dimensions, then of sessions.

    {"r2", "r2_per_dim", "r2_causal", "r2_causal_per_dim", "samples", "samples_causal", "window", "step", "protocol"},
    and "sessions" with the R² of each where there are several. "r2": predictions averaged over overlapping windows.
    """
    each, samples, steps = {"r2": [], "r2_causal": []}, {"r2": 0, "r2_causal": 0}, []
    for session, part in zip(sessions, intervals, strict=True):
        steps.append(step or _step(session.get_series(target).interval, model))
        found = decode(model, session, part, target, step=steps[-1])
        for name, predicted in (("r2", found.averaged), ("r2_causal", found.causal)):
            there = np.isfinite(predicted).all(1)
            if name == "r2" and there.sum() < 2:
                raise BadRecording(f"{session.id}: only {there.sum()} finite samples of {target!r} could be predicted "
                                   "in the held-out time; choose a series that is sampled there")
            samples[name] += int(there.sum())
            nothing = np.full(found.true.shape[1], np.nan)
            each[name].append(r2(found.true[there], predicted[there]) if there.any() else nothing)
    result = {}
    for name in each if causal else ("r2",):
        result[name] = _mean(each[name])
        result[f"{name}_per_dim"] = [_mean(column) for column in np.transpose(each[name])]
    every = " or ".join(f"{s:g}" for s in sorted(set(steps)))
    result |= {"samples": samples["r2"], "samples_causal": samples["r2_causal"], "window": model.window,
               "step": max(steps), "protocol":
               f"R², mean of dimensions; windows of {model.window:g} s slide by {every} s inside held-out time; r2: "
               f"predictions averaged over overlapping windows; r2_causal: the last {every} s of each window only"}
    if len(sessions) > 1:
        result["sessions"] = {s.id: _mean(one) for s, one in zip(sessions, each["r2"], strict=True)}
    return result


def score_classes(model, sessions: Sequence[Session], intervals: Sequence[np.ndarray], target: str, *,
                  step: float | None = None) -> dict:
    """Accuracy of a task of classes on held-out intervals, one array [n, 2] a session; the mean of sessions.

    {"accuracy", "balanced_accuracy", "most_frequent", "samples", "protocol"}: the class most probable in the mean of
    overlapping windows, at least four a sample; "most_frequent": what naming one class always would reach.
    """
    each = []
    for session, part in zip(sessions, intervals, strict=True):
        if target not in session.series:
            continue
        most = min(_step(session.get_series(target).interval, model), model.window / 4)
        found = decode(model, session, part, target, step=step or most)
        there = np.isfinite(found.averaged).all(1)
        if there.any():
            true, named = found.true[there, 0].astype(int), found.averaged[there].argmax(1)
            each.append((accuracy(true, named), balanced_accuracy(true, named),
                         np.unique(true, return_counts=True)[1].max() / len(true), len(true)))
    if not each:
        raise BadRecording(f"no sample of {target!r} lies in the held-out time; choose a series that is sampled there")
    right, balanced, most, samples = np.transpose(each)
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(balanced.mean()),
            "most_frequent": float(most.mean()), "samples": int(samples.sum()), "protocol":
            f"share of samples of {target!r} whose class is right; probabilities averaged over windows of "
            f"{model.window:g} s that overlap inside held-out time"}


def _mean(values) -> float:
    """The mean of what is a number: a column that does not vary has no R²."""
    values = np.asarray(values, float)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def _step(interval: float, model) -> float:
    if not interval > 0:                                                # a series of a single sample has none
        return 0.05
    step = interval * max(1, int(np.ceil(0.05 / interval - 1e-6)))
    return step if step <= model.window - model.warmup + 1e-9 else min(model.window / 4, model.window - model.warmup)


def _device(model) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
