"""How far to believe a picture of latents: whether neighbours in it are neighbours, and whether it tells a label.

    values [P, D], layouts [P, 2], labels [P], folds [P] → judge → trustworthiness, scores on stretches of time held out

Neighbouring moments share spikes, trials and drift, so folds are stretches of time with a gap between them; and the
same label moved by half the recording says what slow drift alone would reach.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

SCORED = 4_000                                                          # points that scores are taken from, evenly
NEIGHBORS = 25                                                          # whose mean is the prediction of a score


class Score(NamedTuple):
    """How well a label is told from positions on time held out: of `measure`, "R²" or "balanced accuracy"."""

    measure: str
    neighbors: float                                                    # by the mean of the nearest points
    linear: float                                                       # by a linear map
    chance: float                                                       # of knowing nothing


def score(positions: np.ndarray, label: pd.Series, fold: np.ndarray) -> Score:
    """Predict a label [P] from positions [P, D], in each of the `folds` [P] from the others.

    Words: balanced accuracy, every class weighing the same in training too; numbers: R². NaN where too few are known.
    Points without a label, and of fold −1, are left out.
    """
    known = np.flatnonzero(label.notna().to_numpy() & (fold >= 0))
    known = known[::max(len(known) // SCORED, 1)]
    x, y, fold = np.asarray(positions, float)[known], label.iloc[known], fold[known]
    words = not pd.api.types.is_numeric_dtype(y)
    classes, code = np.unique(y.astype(str), return_inverse=True) if words else (None, None)
    measure, chance = ("balanced accuracy", 1 / max(len(classes), 1)) if words else ("R²", 0.0)
    if len(known) < 50 or (words and len(classes) < 2) or len(np.unique(fold)) < 2:
        return Score(measure, np.nan, np.nan, chance)
    wanted = np.eye(len(classes))[code] if words else y.to_numpy(float)[:, None]
    weight = 1 / np.bincount(code)[code] if words else np.ones(len(known))
    x = (x - x.mean(0)) / (x.std(0) + 1e-9)
    return Score(measure, *(_scored(_crossed(x, wanted, weight, fold, by), wanted, words)
                            for by in (_by_neighbors, _by_line)), chance)


def folds(times: np.ndarray, session: np.ndarray, gap: float, trial: np.ndarray | None = None) -> np.ndarray:
    """Five folds [P] of stretches of time, −1 for points that no fold may have.

    Every session is cut into 5 to 20 stretches in turn of fold 0, 1, … 4, 0, …. Points of two stretches are more than
    `gap` seconds apart, so that no window that saw one saw the other. trial: its number of every point, −1 for none;
    no trial is cut. Points are in the order of time within each session.
    """
    fold = np.full(len(times), -1)
    for which in np.unique(session):
        own = np.flatnonzero(session == which)
        length = times[own[-1]] - times[own[0]]
        stretch = np.arange(len(own)) * (5 * int(np.clip(length / (50 * max(gap, 1e-3)), 1, 4))) // len(own)
        if trial is not None:
            number, first, of = np.unique(trial[own], return_index=True, return_inverse=True)
            stretch = np.where(number[of] >= 0, stretch[first[of]], stretch)
            stretch = np.maximum.accumulate(stretch)
        for later in np.flatnonzero(np.diff(stretch)) + 1:
            near = (times[own] <= times[own[later - 1]] + gap) & (np.arange(len(own)) >= later)
            fold[own] = np.where(near, -2, fold[own])
        fold[own] = np.where(fold[own] == -2, -1, stretch % 5)
    return fold


def _crossed(x, wanted, weight, fold, predict) -> np.ndarray:
    """Predictions [P, K] of every fold from the other ones."""
    found = np.full(wanted.shape, np.nan)
    for test in np.unique(fold):
        at, rest = fold == test, fold != test
        found[at] = predict(x[rest], wanted[rest], weight[rest], fold[rest], x[at])
    return found


def _by_neighbors(x, wanted, weight, fold, asked) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(x))).fit(x).kneighbors(asked, return_distance=False)
    return (wanted[near] * weight[near][..., None]).sum(1) / weight[near].sum(1)[:, None]


def _by_line(x, wanted, weight, fold, asked) -> np.ndarray:
    """Ridge; its penalty is the one that does best on one of the folds to train on."""
    from sklearn.linear_model import Ridge

    inner = fold != fold.max()
    fit = lambda rows, penalty: Ridge(penalty * weight[rows].sum()).fit(x[rows], wanted[rows], weight[rows])
    penalties = (1e-3, 1e-2, 1e-1, 1.0)
    if inner.any():
        lost = [(weight[~inner, None] * (fit(inner, p).predict(x[~inner]).reshape(-1, wanted.shape[1]) -
                                         wanted[~inner]) ** 2).sum() for p in penalties]
    best = penalties[int(np.argmin(lost))] if inner.any() else 0.1
    return fit(np.ones(len(x), bool), best).predict(asked).reshape(-1, wanted.shape[1])


def _scored(found, wanted, words: bool) -> float:
    if words:
        true, said = wanted.argmax(1), found.argmax(1)
        return float(np.mean([(said[true == c] == c).mean() for c in np.unique(true)]))
    spread = ((wanted - wanted.mean(0)) ** 2).sum()
    return float(1 - ((wanted - found) ** 2).sum() / spread) if spread > 0 else np.nan


def trustworthiness(values: np.ndarray, positions: np.ndarray, neighbors: int = 15, most: int = 2_000) -> float:
    """How few of a point's neighbours in the picture are none in full (Venna & Kaski 2001): 1 none, about 0.5 chance.

    Of at most `most` points, evenly chosen.
    """
    from sklearn.manifold import trustworthiness

    some = slice(None, None, -(-len(values) // most))
    neighbors = min(neighbors, (len(values[some]) - 1) // 2)
    return float(trustworthiness(values[some], positions[some], n_neighbors=neighbors)) if neighbors > 0 else np.nan


def judge(values: np.ndarray, layouts: dict[str, np.ndarray], label: pd.Series, fold: np.ndarray,
          drifts: bool = False) -> pd.DataFrame:
    """How far to believe layouts [P, 2] of `values` [P, D]: trustworthiness, and a label's scores beside those in full.

    One row for all dimensions, one a layout, and one for all dimensions with the label moved by half the recording:
    what slow drift alone reaches. drifts: the label is slow itself (time, session), so that such a row means nothing.
    """
    rows = {f"all {values.shape[1]} dimensions": (values, label, np.nan)}
    rows |= {f"{name}, 2 dimensions": (at, label, trustworthiness(values, at)) for name, at in layouts.items()}
    if not drifts:
        moved = pd.Series(np.roll(label.to_numpy(), len(label) // 2))
        rows["label moved by half the recording"] = (values, moved, np.nan)
    table = {}
    for name, (x, y, trust) in rows.items():
        found = score(x, y, fold)
        table[name] = {"trustworthiness": trust, "neighbours": found.neighbors, "linear": found.linear,
                       "chance": found.chance, "measure": found.measure}
    return pd.DataFrame.from_dict(table, orient="index")
