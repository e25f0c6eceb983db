"""What a frozen model knows of each trial: the side of a stimulus, a choice, whatever a column of the trials says.

    trials → one window each → frozen model → latents [B, C, F], the chunks side by side [B, C × F]
        → z-scores → principal components → logistic regression, or the nearest neighbours → the trial's label

All three steps are fitted inside the training folds, and so is the choice of how many components, how strong a penalty
and how many neighbours, by folds of the training folds. Folds are stratified and drawn anew in every repeat. They mix
early and late trials: where a session drifts, a decoder that is used later than it was fitted does worse than this.
Counts of the same windows, bin by bin and as a whole, are read in the same way. Five sessions, several seeds of both
kinds of network, or no claim: random weights spread as widely as what pretraining adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from workbench.analysis.probe import bin_seconds, untrained
from workbench.batch import Reader
from workbench.errors import BadRecording, WorkbenchError
from workbench.metrics import balanced_accuracy
from workbench.session import Session, overlap

COMPONENTS = (20, 10_000)                                               # a few, or all that there are
INNER = 3                                                               # folds of the training folds, to choose by
PROBES = {"logistic": [LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=1000)
                       for penalty in (3, 30, 300)],
          "k-NN": [KNeighborsClassifier(number) for number in (1, 5, 25)]}

Expression = str | Callable[[pd.DataFrame], object]


class Trials(NamedTuple):
    """Where the window of each trial starts [n] s, and its label [n]."""

    starts: np.ndarray
    labels: np.ndarray


def trials_of(session: Session, window: float, label: Expression, keep: Expression | None = None,
              after: float = 0.0) -> Trials:
    """The trials that have a label, and `window` s of valid recording from `after` s after their start.

    label, keep: an expression of the trials' columns, or a callable that takes the table; keep: which trials count.

    >>> trials_of(session, 0.4, "contrast_left > contrast_right", "contrast_left != contrast_right")
    """
    table = session.trials
    labels = _evaluate(session, label)
    kept = np.ones(len(table), bool) if keep is None else _evaluate(session, keep).astype(bool)
    starts = table["start"].to_numpy(float) + after
    ends = np.stack([starts, starts + window], axis=1)
    whole = [np.diff(overlap(session.intervals, one[None])).max(initial=0) > window - 1e-6 for one in ends]
    kept &= np.array(whole, bool) & ~pd.isna(labels)
    names, number = np.unique(labels[kept], return_counts=True)
    if len(names) < 2 or number.min() < 2:
        raise BadRecording(f"{session.id}: of {len(table)} trials {int(kept.sum())} are kept and have {window:g} s of "
                           f"recording, with {len(names)} labels ({', '.join(map(str, names))}); two labels of two "
                           "trials each are the least: choose another label, or a model of shorter windows")
    return Trials(starts[kept], labels[kept])


def _evaluate(session: Session, expression: Expression) -> np.ndarray:
    table = session.trials
    try:
        found = expression(table) if callable(expression) else table.eval(expression)
    except Exception as error:
        raise BadRecording(f"{session.id}: cannot tell {expression!r} of the trials ({error}); they have the columns "
                           f"{', '.join(map(str, table.columns))}") from None
    return np.asarray(found)


@torch.no_grad()
def trial_latents(model, session: Session, starts: np.ndarray, chunks: slice | int = slice(None)) -> np.ndarray:
    """What the frozen model says of each trial [n, chunks × F]: its window's chunks side by side, or some."""
    reader, device = Reader([session], also=model.reads), next(model.parameters()).device
    found, training = [], model.training
    model.eval()
    for at in np.array_split(starts, -(-len(starts) // 32)):
        said = model(reader.read(np.zeros(len(at), int), at, model.window).to(device)).latents
        if said is None or said.ndim != 3:
            raise WorkbenchError(f"model {model.name!r} says no latents of a window; choose one that embeds")
        found.append(said[:, chunks].flatten(1).float().cpu().numpy())
    model.train(training)
    return np.concatenate(found)


def trial_counts(session: Session, starts: np.ndarray, window: float, bin_size: float) -> np.ndarray:
    """The spike counts of each trial [n, N × bins]."""
    batch = Reader([session]).read(np.zeros(len(starts), int), starts, window)
    return batch.counts(bin_size).flatten(1).numpy()


def classify(x: np.ndarray, labels: np.ndarray, *, folds: int = 5, repeats: int = 5, seed: int = 0) -> pd.DataFrame:
    """How well labels [n] follow from features x [n, F], on trials that were in no training fold: a row a probe.

    Columns: probe, balanced_accuracy (mean of the repeats), spread (their standard deviation), low and high (95 % of
    what other trials of the same labels would give: bootstrap over trials), trials.
    """
    least = int(np.unique(labels, return_counts=True)[1].min())
    if least < folds:
        raise BadRecording(f"the rarest label has {least} trials, too few for {folds} folds; ask for fewer folds, or "
                           "keep more trials")
    said = {probe: [] for probe in PROBES}
    for repeat in range(repeats):
        drawn = StratifiedKFold(folds, shuffle=True, random_state=seed + repeat).split(x, labels)
        for probe, each in out_of_fold(x, labels, drawn).items():
            said[probe].append(each)
    rows = []
    for probe, each in said.items():
        scores = [balanced_accuracy(labels, one) for one in each]
        low, high = _bootstrap(np.mean([one == labels for one in each], axis=0), labels, seed)
        rows.append({"probe": probe, "balanced_accuracy": float(np.mean(scores)), "spread": float(np.std(scores)),
                     "low": low, "high": high, "trials": len(labels)})
    return pd.DataFrame(rows)


def out_of_fold(x: np.ndarray, labels: np.ndarray, folds) -> dict[str, np.ndarray]:
    """Probe → the label [n] that each trial is given by what was fitted to the other folds. folds: pairs of rows."""
    said = {probe: np.empty_like(labels) for probe in PROBES}
    for train, test in folds:
        number = min(INNER, int(np.unique(labels[train], return_counts=True)[1].min()))
        scores = {probe: 0.0 for probe in PROBES}
        for a, b in StratifiedKFold(number, shuffle=True, random_state=0).split(train, labels[train]):
            a, b = train[a], train[b]
            for probe, each in _candidates(x[a], labels[a], x[b]).items():
                scores[probe] += np.array([balanced_accuracy(labels[b], named()) for named in each])
        for probe, each in _candidates(x[train], labels[train], x[test]).items():
            said[probe][test] = each[int(np.argmax(scores[probe]))]()
    return said


def _candidates(x: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> dict[str, list[Callable[[], np.ndarray]]]:
    """Probe → for every choice of components and settings, a call that fits it to x and names what is asked."""
    def named(model, x, asked):
        return lambda: model.fit(x, labels).predict(asked)

    pieces = _components(x, asked)
    return {probe: [named(clone(model), *piece) for piece in pieces for model in models
                    if getattr(model, "n_neighbors", 0) <= len(x)] for probe, models in PROBES.items()}


def _components(x: np.ndarray, asked: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first few principal components of z-scored x, and the same of what is asked, for each number of them."""
    mean, scale = x.mean(0), x.std(0)
    known = scale > 1e-6 * scale.max(initial=0)                         # what never varies there says nothing
    x, asked = ((each[:, known] - mean[known]) / scale[known] for each in (x, asked))
    most = min(max(COMPONENTS), *x.shape)
    if not most:
        return [(np.zeros((len(x), 1)), np.zeros((len(asked), 1)))] * len(COMPONENTS)
    found = PCA(most, svd_solver="full").fit(x)
    x, asked = found.transform(x), found.transform(asked)
    return [(x[:, :k], asked[:, :k]) for k in COMPONENTS]


def _bootstrap(right: np.ndarray, labels: np.ndarray, seed: int, draws: int = 1000) -> tuple[float, float]:
    """The middle 95 % of the mean over labels of the share of trials that are right [n], trials drawn anew."""
    random = np.random.default_rng(seed)
    each = [right[labels == one] for one in np.unique(labels)]
    means = np.mean([one[random.integers(len(one), size=(draws, len(one)))].mean(1) for one in each], axis=0)
    return tuple(float(q) for q in np.quantile(means, (0.025, 0.975)))


def trial_table(models: Sequence, sessions: Sequence[Session], label: Expression, keep: Expression | None = None, *,
                after: float = 0.0, chunks: slice | int = slice(None), folds: int = 5, repeats: int = 5,
                seed: int = 0) -> pd.DataFrame:
    """The rows of `classify` for each session, pretrained seed, its random twin, and counts; see `trials_of`.

    Columns before those of `classify`: session, features, seed (of the model). Every row of a session is of the same
    trials and folds.
    """
    if not len(models):
        raise WorkbenchError("no model was given to probe; pass pretrained ones, each from a seed of its own")
    rows = []
    for session in sessions:
        trials = trials_of(session, models[0].window, label, keep, after)
        for name, number, x in _every(models, session, trials.starts, chunks):
            found = classify(x, trials.labels, folds=folds, repeats=repeats, seed=seed)
            rows.append(found.assign(session=session.id, features=name, seed=number))
    table = pd.concat(rows, ignore_index=True)
    return table[["session", "features", "seed", *table.columns[:-3]]]


def _every(models: Sequence, session: Session, starts: np.ndarray,
           chunks: slice | int) -> Iterator[tuple[str, int, np.ndarray]]:
    for number, model in enumerate(models):
        yield "pretrained latents", number, trial_latents(model, session, starts, chunks)
        yield "random latents", number, trial_latents(untrained(model, number), session, starts, chunks)
    window, chunk = models[0].window, bin_seconds(models[0], "latents")
    yield "counts, chunk by chunk", 0, trial_counts(session, starts, window, chunk)
    yield "counts, whole window", 0, trial_counts(session, starts, window, window)
