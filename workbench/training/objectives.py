"""What a run is chosen by and scored by: what its model does, on time that it was not trained on.

    decodes         chosen by the R² of the target                 scores[target]: R², averaged and causal
    anything else   chosen by its own loss on fixed windows        scores["spikes"]: loss
                    where a target is named                        scores[target]: the same R², of a linear probe
    reconstructs                                                   scores["spikes"]: co-smoothing, bits per spike
    and fills in masks                                             the same by mode of masking
    forecasts bins                                                 scores["spikes"]: bits per spike by horizon
    reads pictures  chosen by how well it finds them               scores[target]: identification, beside ridge's

Losses of different models are different things: they say which weights of one run are best, never which model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.analysis import decoding, probe
from workbench.batch import Reader
from workbench.errors import BadRecording
from workbench.images import identify
from workbench.session import Session
from workbench.windows import aligned, reaching_back, sliding

MOST = 256                                                              # windows that a loss is the mean of
DRAWS = 3                                                               # of held-out units


def takes_target(kind: type) -> bool:
    """Whether a model is built for a series of the recording."""
    return "target" in signature(kind.for_sessions).parameters


def needs_target(kind: type) -> bool:
    """Whether it cannot be built without one."""
    return takes_target(kind) and signature(kind.for_sessions).parameters["target"].default is Parameter.empty


def valid_name(model: nn.Module) -> str:
    """The name of what `valid` returns."""
    return "R²" if model.decodes else "loss"


def valid(model: nn.Module, sessions: Sequence[Session], parts: Sequence[np.ndarray],
          target: str | None) -> dict[str, Any]:
    """`valid`, what the best weights are chosen by: R², the higher the better, or the loss, the lower the better; and
    where there are several sessions `valid_sessions`, session id → the same of it alone."""
    each: dict[str, float] = {}
    if model.decodes:                                                   # four windows over every sample choose as well
        found = decoding.score(model, sessions, parts, target, causal=False, step=model.window / 4)
        score, each = found["r2"], found.get("sessions", {})
    elif model.locked:
        score = identify.contrast(model, sessions, parts, each=each)
    else:
        score = own_loss(model, sessions, parts, target, each=each)
    return {"valid": score} | ({"valid_sessions": each} if len(sessions) > 1 else {})


def held_out(model: nn.Module, sessions: Sequence[Session], train: Sequence[np.ndarray], valid: Sequence[np.ndarray],
             test: Sequence[np.ndarray], target: str | None) -> tuple[dict[str, dict], str]:
    """The scores on the test part, by target and under "spikes", and how they were measured."""
    if model.locked:
        found = identify.held_out(model, sessions, train, valid, test)
        return {target: found}, found.pop("protocol")
    scores: dict[str, dict[str, Any]] = {}
    shown = target in model.reads                                       # so that a probe would find what was put in
    if model.decodes:
        scores[target] = decoding.score(model, sessions, test, target)
        scores |= {task: _task(model, sessions, test, task, kind)
                   for task, kind in getattr(model, "kinds", {}).items() if task != target}
    elif target is not None and not shown and (probed := probe.fit(model, sessions, train, valid, target)):
        found = decoding.score(probed, sessions, test, target)
        scores[target] = found | {"protocol": f"ridge from {probed.source} in the sample's bin, fitted to the training "
                                  f"part, penalty chosen on the validation part; {found['protocol']}"}
    if not model.decodes:
        why = "is shown it" if shown else "says nothing bin by bin"
        blind = "" if target is None or target in scores else f" · no probe of {target}: the model {why}"
        scores["spikes"] = {"loss": own_loss(model, sessions, test, target), "protocol": "the model's own loss, the "
                            f"mean of windows of {model.window:g} s of the held-out time{blind}"}
    if model.reconstructs:
        own = scores.get("spikes", {})
        found = _co_smoothing(model, sessions, test, target)
        filled = _filled(model, sessions, train, test, target) if hasattr(model, "reconstruct") else {}
        told = [score["protocol"] for score in (own, found, filled) if "protocol" in score]
        scores["spikes"] = own | found | filled | {"protocol": " · ".join(told)}
    if hasattr(model, "forecast"):
        told = _forecast(model, sessions, train, valid, test)
        scores["spikes"] |= told | {"protocol": f"{scores['spikes']['protocol']} · {told['protocol']}"}
    return scores, " · ".join(dict.fromkeys([score.pop("protocol") for score in scores.values()]))


def _task(model: nn.Module, sessions: Sequence[Session], test: Sequence[np.ndarray], task: str, kind: str) -> dict:
    """The score of one more thing that a model of several tasks decodes, in the sessions that have it."""
    having = [(s, part) for s, part in zip(sessions, test, strict=True) if task in s.series]
    score = decoding.score if kind == "numbers" else decoding.score_classes
    try:
        return score(model, *zip(*having, strict=True), task)
    except BadRecording as error:                                       # hardly a sample there: the rest stands
        return {"protocol": f"no score of {task!r} ({error})"}


def _co_smoothing(model: nn.Module, sessions: Sequence[Session], test: Sequence[np.ndarray],
                  target: str | None) -> dict[str, Any]:
    """Bits per spike of units that the model is not shown, the mean of draws, then of sessions."""
    from workbench.analysis import cosmoothing  # brings scikit-learn, which takes seconds
    own, each = getattr(model, "_hub_mixin_config", {}).get("held_out") or [], {}
    for session, part in zip(sessions, test, strict=True):
        names = [unit for unit in session.units["id"] if f"{session.id}/{unit}" in own]
        try:
            draws = [names] if names else [cosmoothing.draw_held_out(session, seed=seed) for seed in range(DRAWS)]
            found = [cosmoothing.cosmooth(model, session, part, held, align=target) for held in draws]
        except BadRecording as error:                                   # too few units, too short: the rest stands
            return {"protocol": f"no bits per spike ({error})"}
        each[session.id] = [np.mean([one[key] for one in found]) for key in ("bits_per_spike", "running_mean")]
    bits, drift = np.mean(list(each.values()), axis=0)
    by_session = {name: float(one[0]) for name, one in each.items()}
    drawn = "" if own else f", the mean of {DRAWS} draws"
    return {"bits_per_spike": float(bits), "running_mean_bits": float(drift), "by_session": by_session,
            "protocol": found[0]["protocol"] + drawn}


def _filled(model: nn.Module, sessions: Sequence[Session], train: Sequence[np.ndarray], test: Sequence[np.ndarray],
            target: str | None) -> dict[str, Any]:
    """Bits per spike of what masks of every mode hide, trained with or not, the mean of the sessions that allow it."""
    from workbench.analysis import masked
    found: dict[str, list[float]] = {}
    for session, *parts in zip(sessions, train, test, strict=True):
        for mode in masked.MODES:
            try:
                told = masked.evaluate(model, session, *parts, mode, align=target, fills=False)
            except BadRecording:                                        # no regions, or hardly a window
                continue
            found.setdefault(mode, []).append(told["bits"])
    return {"filled": {mode: float(np.mean(bits)) for mode, bits in found.items()},
            "protocol": "filled: bits per spike of what masks hide above each unit's mean rate in training, the mean "
                        "of sessions"}


def _forecast(model: nn.Module, sessions: Sequence[Session], *parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """Bits per spike by milliseconds ahead, of the model run free and of what units did in the last 30 s."""
    from workbench.analysis import forecasting
    curves: dict[str, list[dict]] = {}
    for session, *own in zip(sessions, *parts, strict=True):
        try:
            found = forecasting.evaluate(model, session, *own, stride=model.horizon, feedback=("sampled",),
                                         baselines=("running_mean",))
        except BadRecording as error:                                   # a short test part: the rest stands
            return {"protocol": f"no forecasts ({error})"}
        for name, told in ("forecast", found["model"]["sampled"]), ("forecast_running_mean",
                                                                    found["baselines"]["running_mean"]):
            curves.setdefault(name, []).append(dict(zip(*(told["curve"][of] for of in ("horizon_ms", "bits")),
                                                        strict=True)))
    return {name: {f"{ms:g}": float(np.mean([each[ms] for each in several])) for ms in several[0]}
            for name, several in curves.items()} | {"protocol": f"forecast: {found['protocol']}"}


@torch.no_grad()
def own_loss(model: nn.Module, sessions: Sequence[Session], parts: Sequence[np.ndarray], target: str | None = None, *,
             seed: int = 0, batch_size: int = 16, each: dict[str, float] | None = None) -> float:
    """The mean of the model's loss over windows side by side in `parts` ([n, 2] seconds, one array a session); only a
    history that they open with may lie before.

    The same windows and the same random numbers (a masked model hides something in evaluation too) at every call.
    each: takes in the mean of every session, by its id.
    """
    reader = Reader(sessions, (target,) if target is not None else (), also=model.reads)
    starts = [sliding(reaching_back(_edges(model, s, part, target), model.history, s.intervals), model.window,
                      model.window - model.history) for s, part in zip(sessions, parts, strict=True)]
    session, starts = np.repeat(np.arange(len(sessions)), [len(s) for s in starts]), np.concatenate(starts)
    if len(starts) > MOST:
        chosen = np.linspace(0, len(starts) - 1, MOST).round().astype(int)
        session, starts = session[chosen], starts[chosen]
    device, training, total, own = next(model.parameters()).device, model.training, 0.0, np.zeros(len(sessions))
    cuda = [device] if device.type == "cuda" else []
    loss = lambda at: model.loss(reader.read(session[at], starts[at], model.window).to(device))["loss"].item() * len(at)
    model.eval()
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        for at in np.array_split(np.arange(len(starts)), -(-len(starts) // batch_size)):
            found = loss(at)
            total += found
            there = np.unique(session[at])
            if len(there) == 1:
                own[there] += found
            elif each is not None:                                      # few batches hold windows of two sessions
                for one in there:
                    with torch.random.fork_rng(devices=cuda):           # the whole does not depend on it
                        own[one] += loss(at[session[at] == one])
    model.train(training)
    if each is not None:
        windows = np.bincount(session, minlength=len(sessions))
        each |= {s.id: float(sum_ / n) for s, sum_, n in zip(sessions, own, windows, strict=True) if n}
    return total / len(starts)


def _edges(model: nn.Module, session: Session, part: np.ndarray, target: str | None) -> np.ndarray:
    """Bins of counts lie around the target's samples, as in training."""
    if target is None or not model.bin_size:
        return part
    series = session.get_series(target)
    return aligned(part, series.times, series.interval, model.window)
