"""Which picture was shown? Presentations of held-out pictures, what is read from their spikes, and how well it tells
their picture from others: by a model, and by ridge regression into the same space.

    sessions, parts → Presented: windows from onset, the distinct pictures and their vectors
        → model → vectors [n, D] → two-way identification, retrieval from pools, contrast
        → counts of the same windows → ridge, penalty by the validation pictures → the same scores

Single presentations, unless averaged. Intervals are over pictures: presentations of one picture go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from workbench.batch import Reader
from workbench.conditions import picture_names, presentations
from workbench.errors import BadRecording
from workbench.images import metrics
from workbench.models.ridge import solve
from workbench.session import Session
from workbench.windows import locked

PENALTIES = tuple(10.0 ** np.arange(-1, 6.5, 0.5))                      # of counts in standard deviations
POOL = 64                                                               # candidates, if there are as many


class Presented(NamedTuple):
    """Presentations, one row each, and the distinct pictures that they show.

    session [n] rows of the sessions; start [n] s; which [n] rows of `vectors` [P, D], the pictures in the image space;
    number [n] of the picture in its own session; duration: seconds of the windows.
    """

    session: np.ndarray
    start: np.ndarray
    which: np.ndarray
    vectors: np.ndarray
    number: np.ndarray
    duration: float


def presented(sessions: Sequence[Session], parts: Sequence[np.ndarray], target: str, duration: float) -> Presented:
    """The presentations whose windows of `duration` s lie in `parts` ([n, 2] s, one array a session).

    BadRecording where there is none.
    """
    rows, names, vectors = [], [], []
    for i, (session, part) in enumerate(zip(sessions, parts, strict=True)):
        starts, image = presentations(session)
        series = session.get_series(target)
        spans = locked(part, starts, duration)
        at = np.searchsorted(starts, spans[:, 0] - 1e-9)
        rows += [(i, starts[row], image[row]) for row in at]
        names += picture_names(session)[image[at]].tolist()
        vectors.append(series.values[np.searchsorted(series.times, spans[:, 0] - 1e-9)])
    if not rows:
        raise BadRecording(f"no presentation lies whole, {duration:g} s from onset, in the given time; choose another "
                           "part, or a shorter window")
    session, start, number = (np.array(column) for column in zip(*rows, strict=True))
    first, which = np.unique(names, return_index=True, return_inverse=True)[1:]
    return Presented(session, start, which, np.concatenate(vectors)[first], number, duration)


@torch.no_grad()
def read_out(model: nn.Module, sessions: Sequence[Session], shown: Presented, batch: int = 128,
             vectors: bool = False) -> np.ndarray:
    """What the model says of each presentation [n, D]: unit vectors in the image space less its mean, by which pictures
    are found; or `vectors` as a generator wants them.
    """
    reader, training = Reader(sessions), model.training
    device, found = next(model.parameters()).device, []
    model.eval()
    for at in np.array_split(np.arange(len(shown.start)), -(-len(shown.start) // batch)):
        spikes = reader.read(shown.session[at], shown.start[at], shown.duration).to(device)
        found.append((model.embedding(spikes) if vectors else model(spikes).latents[:, 0]).cpu().numpy())
    model.train(training)
    return np.concatenate(found)


def contrast(model: nn.Module, sessions: Sequence[Session], parts: Sequence[np.ndarray],
             each: dict[str, float] | None = None) -> float:
    """The validation score: nats that it takes to find the picture of a presentation among all pictures of the part.

    each: takes in the mean of every session's presentations, by its id.
    """
    shown = presented(sessions, parts, model.target, model.window)
    device = next(model.parameters()).device
    found = torch.from_numpy(read_out(model, sessions, shown)).to(device)
    keys = normalize(torch.from_numpy(shown.vectors).float().to(device) - model.mean, dim=1)
    with torch.no_grad():
        logits, which = found @ keys.T / model.temperature, torch.from_numpy(shown.which).to(device)
        for i in np.unique(shown.session) if each is not None else ():
            own = torch.from_numpy(shown.session == i).to(device)
            each[sessions[i].id] = cross_entropy(logits[own], which[own]).item()
        return cross_entropy(logits, which).item()


def counts_of(sessions: Sequence[Session], shown: Presented, step: float) -> list[np.ndarray]:
    """Counts of each session's presentations in steps of `step` s, one array [n, units × steps] a session."""
    each = []
    for i, session in enumerate(sessions):
        reader, starts = Reader([session]), shown.start[shown.session == i]
        parts = [reader.read(np.zeros(len(at), int), at, shown.duration).counts(step).flatten(1).numpy()
                 for at in np.array_split(starts, max(-(-len(starts) // 256), 1)) if len(at)]
        each.append(np.concatenate(parts) if parts else np.empty((0, 0), np.float32))
    return each


def ridge(sessions: Sequence[Session], train: Presented, valid: Presented, test: Presented, wanted: np.ndarray,
          wanted_valid: np.ndarray, step: float) -> tuple[np.ndarray, dict[str, float]]:
    """Ridge regression from counts to `wanted` [pictures of train, D], a map a session; the penalty is the one that
    does best on the pictures of `valid`, then both are fitted. Returns what it says of the test presentations [n, D],
    and the penalties.
    """
    said, chosen = np.full((len(test.start), wanted.shape[1]), np.nan, np.float32), {}
    for i, (session, *counts) in enumerate(zip(sessions, *(counts_of(sessions, each, step) for each in (
            train, valid, test)), strict=True)):
        if not len(counts[2]):
            continue
        if not len(counts[0]) or not len(counts[1]):
            raise BadRecording(f"{session.id} has presentations to test and none to fit or to choose by; choose a "
                               "split with some in each part")
        mean, spread = counts[0].mean(0), counts[0].std(0)
        x, x_valid, x_test = ((each - mean) / np.where(spread > 0, spread, np.inf) for each in counts)
        y, y_valid = wanted[train.which[train.session == i]], wanted_valid[valid.which[valid.session == i]]
        errors = [((x_valid @ w[:-1] + w[-1] - y_valid) ** 2).mean() for w in solve(x, y, PENALTIES)]
        chosen[session.id] = float(PENALTIES[int(np.argmin(errors))])
        w = solve(np.concatenate([x, x_valid]), np.concatenate([y, y_valid]), [chosen[session.id]])[0]
        said[test.session == i] = x_test @ w[:-1] + w[-1]
    return said, chosen


def scores(found: np.ndarray, shown: Presented, mean: np.ndarray, pool: int = POOL) -> dict[str, Any]:
    """How well vectors [n, D] (less `mean`) tell the pictures of the presentations from the others of the part.

    two_way, with its 95 % interval over pictures; top1, top5: the picture is found, or among five, in a pool of so many
    candidates, expected over all pools; cosine: with the picture's own vector. Chance: 0.5, 1 / pool, 5 / pool.
    """
    keys = shown.vectors - mean
    two_way = metrics.two_way(keys, found, shown.which)
    low, high = metrics.bootstrap(two_way, shown.which)[1:]
    pool = min(pool, len(keys))
    told = metrics.retrieval(found, keys, which=shown.which, pool=pool)
    own = normalize(torch.from_numpy(keys), dim=1)[shown.which]
    cosine = (normalize(torch.from_numpy(np.asarray(found, np.float64)), dim=1) * own).sum(1).mean().item()
    return {"two_way": float(two_way.mean()), "two_way_interval": [float(low), float(high)],
            **{name: float(told["neural_to_image"][name]) for name in ("top1", "top5")},
            "median_rank": float(told["neural_to_image"]["median_rank"]), "pool": pool, "cosine": cosine,
            "presentations": len(found), "pictures": len(keys)}


def held_out(model: nn.Module, sessions: Sequence[Session], *parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """The scores of a model that reads pictures from spikes, on the test part, and those of ridge into the same space
    beside it, with the paired difference; parts: train, valid and test.
    """
    train, valid, test = (presented(sessions, part, model.target, model.window) for part in parts)
    mean = model.mean.cpu().numpy().astype(np.float64)
    found = read_out(model, sessions, test)
    said, chosen = ridge(sessions, train, valid, test, train.vectors - mean, valid.vectors - mean, model.step)
    own, other = scores(found, test, mean), scores(said, test, mean)
    both = [metrics.two_way(test.vectors - mean, each, test.which) for each in (found, said)]
    difference, low, high = metrics.paired(*both, test.which)
    return {**own, "ridge": other, "over_ridge": [float(difference), float(low), float(high)],
            "protocol": f"single presentations, {model.window:g} s from onset; two-way: share of other pictures of the "
                        f"test part that are less correlated; top1, top5 of pools of {own['pool']} by cosine; "
                        f"intervals over pictures; ridge: counts in {1e3 * model.step:g} ms steps into the same space, "
                        f"penalty by validation pictures {chosen}"}
