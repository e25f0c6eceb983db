"""How well a model fills in what a mask hides, beside simple fills on the very same masks of held-out time.

    test part → windows side by side → mask of one mode ─┬→ model, from the spikes that the mask leaves → rates
                                                         └→ fills, from the same spikes → rates
    gain over the mean rate in training, window by window → bits per spike, intervals by a bootstrap over blocks

    mean          each unit's mean rate in training, 0 bits by definition
    running_mean  what the unit did in the 30 s of valid recording before the window and in its visible bins
    neighbours    the unit's visible bins in the window, the nearer the more; None where all of them are hidden
    glm           20 factors of the visible units around the bin, and the time in the trial where windows start with
                  trials → a Poisson regression a hidden unit; None where masks leave every unit some bins

Each window is a problem of its own: what came before it counts as seen, of hidden units too. So `running_mean` knows
what a model of one window cannot; rates drift, and it is the score to have beside any score over a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm, t

from workbench.align import spikes_before
from workbench.analysis import masked_fills
from workbench.analysis.cosmoothing import MEMORY, _whole_bins
from workbench.analysis.masked_fills import Seen
from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.masking import Mask
from workbench.metrics import SILENT
from workbench.session import Session
from workbench.windows import sliding

MODES = ("temporal", "neuron", "intra_region", "inter_region", "causal")
BLOCK = 20.0                                        # s, of a stretch that the bootstrap draws
LEARNT_FROM = 1000                                  # training windows at most, spread evenly


class Part(NamedTuple):
    """Windows of a part of a session: starts [W] in s, all of them as one batch, counts [W, N, T] of all units, and of
    the `MEMORY` s before each window spikes [W, N] and length in bins [W].
    """

    starts: np.ndarray
    batch: SpikeBatch
    counts: np.ndarray
    before: np.ndarray
    bins_before: np.ndarray


class Task(NamedTuple):
    """One mask over the windows: rows [U] of the units scored, and a mask [W, N, T] on the windows of each part."""

    name: str
    units: np.ndarray
    masks: Mapping[str, Mask]


def evaluate(model, session: Session, train: np.ndarray, test: np.ndarray, mode: str, *, seed: int = 0, draws: int = 3,
             least: int = 20, align: str | None = None, fills: bool = True, batch_size: int = 32) -> dict:
    """{"mode", "bits", "interval", "fills", "windows", "entries", "spikes", "protocol"}, by region too "regions".

    model: one, or several that agree in window and bins, such as trainings with other seeds: their log rates averaged.
    train, test: intervals [n, 2], sorted; fills are fitted on at most `LEARNT_FROM` windows of `train`. "fills": name →
    None or {"bits", "interval", "difference", "difference_interval"}, the difference being the model's bits less the
    fill's, paired. seed: of the masks, which are the same for the model and the fills. align: a series on whose samples
    bins are centred.

    temporal, causal: `model.draw` for every window. neuron: `draws` times 30 % of units, the same in all windows.
    intra_region, inter_region: in turn every known region of `least` units; intra hides 60 % of its units, the scored
    ones, and all units elsewhere. Units that are silent in training count as half a spike there.

    UnknownName for another mode; BadRecording for a region mode without two known regions or one of `least` units, or
    a part without a window; WorkbenchError for a model that predicts no rates, none, or some that do not agree.
    """
    if mode not in MODES:
        raise UnknownName("mode", mode, MODES, where="the modes that hide something to fill in")
    models = _several(model)
    model = models[0]
    parts = {"train": _part(model, session.within(train), train, align, LEARNT_FROM),
             "test": _part(model, session, test, align, None)}
    starts, counts = parts["test"].starts, parts["test"].counts
    learnt = parts["train"].counts
    mean = np.maximum(learnt.mean((0, 2)), 0.5 / learnt[:, 0].size)[:, None]
    onsets = session.trials["start"].to_numpy(float).round(3)
    locked = all(np.isin(part.starts.round(3), onsets).all() for part in parts.values())
    gains, spikes, entries = {}, {}, 0
    for task in _tasks(model, session, parts, mode, seed, draws, least):
        mask = task.masks["test"]
        scored = mask.grid(counts.shape[2]).scored.numpy()[:, task.units]
        rates = {"model": _predict(models, session, starts, mask, mode, batch_size)[:, task.units]}
        rates |= _fills(parts, task, mean, model.bin_size, locked) if fills else \
            {"mean": np.broadcast_to(mean[task.units], counts[:, task.units].shape)}
        y = counts[:, task.units] * scored
        gains[task.name] = {name: None if each is None else _gain(each, y, scored, mean[task.units])
                            for name, each in rates.items()}
        spikes[task.name], entries = y.sum((1, 2)), entries + int(scored.sum())
    blocks = _blocks(test, starts)
    whole = {name: None if one is None else sum(each[name] for each in gains.values()) for name, one in
             next(iter(gains.values())).items()}
    found = {"mode": mode} | _told(whole, sum(spikes.values()), blocks)
    found |= {"windows": len(starts), "entries": entries,
              "protocol": f"bits per spike of what {mode} masks hide in {len(starts)} windows of {model.window:g} s, "
                          f"bins of {model.bin_size:g} s, above each unit's mean rate in training; 95 % intervals over "
                          f"{blocks.max() + 1} blocks"}
    if mode.endswith("region"):
        found["regions"] = {name: _told(each, spikes[name], blocks) for name, each in gains.items()}
    return found


def table(model, sessions: Sequence[Session], parts: Sequence[Mapping[str, np.ndarray]],
          modes: Iterable[str] | None = None, **options) -> pd.DataFrame:
    """One row a session and mode: bits of the model, or of several averaged, every fill's, and how far it is above the
    best of them.

    parts: {"train", "test"} of each session, as `windows.split` gives them. modes: by default the model's own; those by
    region are left out of sessions without two regions. options: as in `evaluate`.
    """
    rows, first = [], _several(model)[0]
    for session, part in zip(sessions, parts, strict=True):
        for mode in modes or getattr(first, "modes", MODES):
            if mode.endswith("region") and not _regions(session, options.get("least", 20)):
                continue
            found = evaluate(model, session, part["train"], part["test"], mode, **options)
            fills = {name: each for name, each in found["fills"].items() if each}
            best = max(fills, key=lambda name: fills[name]["bits"])
            rows.append({"session": session.id, "mode": mode, "bits": found["bits"], "interval": found["interval"]}
                        | {name: each["bits"] if each else np.nan for name, each in found["fills"].items()}
                        | {"best_fill": best, "difference": fills[best]["difference"],
                           "difference_interval": fills[best]["difference_interval"], "spikes": found["spikes"]})
    return pd.DataFrame(rows)


def _several(model) -> list:
    models = list(model) if isinstance(model, Sequence) else [model]
    for one in models:
        if not one.reconstructs:
            raise WorkbenchError(f"model {one.name!r} predicts no firing rates, so it fills in nothing; choose one "
                                 "that reconstructs")
    if len({(one.window, one.bin_size) for one in models}) != 1:
        raise WorkbenchError(f"{len(models)} models have no one window and bin size, so that no rates of theirs can be "
                             "averaged; give one model, or trainings of the same recipe")
    return models


def _part(model, session: Session, intervals: np.ndarray, align: str | None, most: int | None) -> Part:
    starts = sliding(_whole_bins(session, intervals, model.window, align, model.window), model.window, model.window)
    if most and len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    batch = Reader([session], also=getattr(model, "reads", ())).read(np.zeros(len(starts), int), starts, model.window)
    before, seconds = spikes_before(session, starts, MEMORY)
    return Part(starts, batch, batch.counts(model.bin_size).numpy(), before, seconds / model.bin_size)


def _regions(session: Session, least: int) -> list[str]:
    """The known regions of at least `least` units; none where there is no other region beside it."""
    sizes = session.units["region"][session.units["region"] != "unknown"].value_counts()
    return sorted(sizes.index[sizes >= max(least, 2)]) if len(sizes) > 1 else []


def _tasks(model, session: Session, parts: Mapping[str, Part], mode: str, seed: int, draws: int, least: int):
    units = len(session.units)
    if mode in ("temporal", "causal"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            masks = {name: model.draw(parts[name].batch, mode) for name in ("test", "train")}
        yield Task(mode, np.arange(units), masks)
        return
    regions = session.units["region"].to_numpy()
    if units < 2:
        raise BadRecording(f"{session.id}: {units} units, and some have to be hidden and some seen; choose a session "
                           "of more, or the mode temporal or causal")
    names = [f"draw {i}" for i in range(draws)] if mode == "neuron" else _regions(session, least)
    if not names:
        raise BadRecording(f"{session.id}: masks by {mode} need two known regions, one of them of {least} units; "
                           "choose another mode, or fewer units (least=)")
    for i, name in enumerate(names):
        inner = np.ones(units, bool) if mode == "neuron" else regions == name
        share = {"neuron": 0.3, "intra_region": 0.6, "inter_region": 1.0}[mode]
        rows = np.random.default_rng([seed, i]).permutation(np.flatnonzero(inner))
        scored = np.isin(np.arange(units), rows[:max(round(share * len(rows)), 1)])
        hidden = scored | ~inner if mode == "intra_region" else scored
        yield Task(name, np.flatnonzero(scored), {part: Mask(*(
            torch.from_numpy(each)[:, None].expand(len(of.starts), -1, of.counts.shape[2])
            for each in (hidden, scored))) for part, of in parts.items()})


@torch.no_grad()
def _predict(models: Sequence, session: Session, starts: np.ndarray, mask: Mask, mode: str,
             batch_size: int) -> np.ndarray:
    """Expected spikes a bin [W, N, T] from what the mask leaves: the exponential of the models' mean log rate."""
    total = 0.0
    for model in models:
        reader, device, training = Reader([session], also=getattr(model, "reads", ())), \
            next(model.parameters()).device, model.training
        model.eval()
        rates = []
        for rows in np.array_split(np.arange(len(starts)), -(-len(starts) // batch_size)):
            batch = reader.read(np.zeros(len(rows), int), starts[rows], model.window).to(device)
            here = Mask(*(each[rows] for each in mask)).to(device)
            rates.append(model.reconstruct(batch, here, mode).log_rates.double().cpu())
        model.train(training)
        total = total + torch.cat(rates)
    return (total / len(models)).exp().numpy()


def _fills(parts: Mapping[str, Part], task: Task, mean: np.ndarray, bin_size: float, locked: bool) -> dict:
    """Rates [W, U, T] of every fill of the task's units, or None."""
    own, masks = mean[task.units], {name: mask.grid(parts[name].counts.shape[2]) for name, mask in task.masks.items()}
    seen = {name: Seen(part.counts[:, task.units], masks[name].hidden.numpy()[:, task.units],
                       masks[name].scored.numpy()[:, task.units], part.before[:, task.units], part.bins_before)
            for name, part in parts.items()}
    visible = ~masks["test"].hidden.any(0).any(1).numpy()
    whole = seen["test"].hidden.all()
    return {"mean": np.broadcast_to(own, seen["test"].counts.shape),
            "running_mean": masked_fills.running_mean(seen["train"], seen["test"], own),
            "neighbours": masked_fills.neighbours(seen["train"], seen["test"], own),
            "glm": masked_fills.glm({name: part.counts[:, visible] for name, part in parts.items()},
                                    seen["train"].counts, own, bin_size, psth=locked) if whole else None}


def _gain(rates: np.ndarray, y: np.ndarray, scored: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Log-likelihood above the mean rate of the scored counts y [W, U, T], in bits [W]: what `bits_per_spike` sums."""
    rates = np.maximum(rates, SILENT)
    return (y * np.log(rates / mean) - (rates - mean) * scored).sum((1, 2)) / np.log(2)


def _blocks(intervals: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The block of each window [W]: its interval, such as a trial, or a stretch of `BLOCK` s of a longer one."""
    first = np.asarray(intervals, float).reshape(-1, 2)[:, 0]
    which = np.searchsorted(first, starts + 1e-6, side="right") - 1
    stretch = np.floor((starts - first[which] + 1e-6) / BLOCK)
    return np.unique(np.stack([which, stretch]), axis=1, return_inverse=True)[1].ravel()


def _told(gains: Mapping[str, np.ndarray | None], spikes: np.ndarray, blocks: np.ndarray) -> dict:
    """Bits per spike with intervals, from gains and spikes of windows [W]."""
    total = spikes.sum() or np.nan
    bits = lambda gain: float(gain.sum() / total)
    model, fills = gains["model"], {name: gain for name, gain in gains.items() if name != "model"}
    beside = {name: None if gain is None else
              {"bits": bits(gain), "interval": bootstrap(gain, spikes, blocks), "difference": bits(model - gain),
               "difference_interval": bootstrap(model - gain, spikes, blocks)} for name, gain in fills.items()}
    return {"bits": bits(model), "interval": bootstrap(model, spikes, blocks), "fills": beside,
            "spikes": int(spikes.sum())}


def bootstrap(gain: np.ndarray, spikes: np.ndarray, blocks: np.ndarray, drawn: int = 4000) -> list[float]:
    """The 95 % interval of Σ gain / Σ spikes over windows [W] in `blocks` [W]; NaN for one block, or without a spike.

    Percentiles, wider the fewer the blocks, by the t distribution: with 8 blocks plain ones cover too seldom
    (Hesterberg 2015, The American Statistician 69, 371).
    """
    gain, spikes = np.bincount(blocks, gain), np.bincount(blocks, spikes)
    if (k := len(gain)) < 2 or not spikes.any():
        return [float("nan")] * 2
    times = np.random.default_rng(0).multinomial(k, np.full(k, 1 / k), drawn)
    there = times @ spikes
    tail = norm.cdf(t.ppf(0.025, k - 1) * np.sqrt(k / (k - 1)))
    return np.quantile((times @ gain)[there > 0] / there[there > 0], [tail, 1 - tail]).tolist()
