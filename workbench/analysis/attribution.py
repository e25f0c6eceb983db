"""What each modality is worth to a forecast, in bits per spike: with it, without it, and with another window's instead.

    windows [W] of history and horizon ─┬→ everything shown ──────────────────────┐
                                        ├→ a modality withheld ───────────────────┼→ forecast → gain [W, N, H], bits
                                        └→ the modality of another window instead ┘
    gains → groups of units and bins (region, stimulus, phase, lag) → differences, paired, intervals over trials

The difference is what the modality adds to all the others, its unique contribution (Musall et al. 2019, Nature
Neuroscience 22, 1677): of two that say the same neither adds anything. Withholding asks what a network does that was
trained to go without; another window's values (Breiman 2001, Machine Learning 45, 5) need no such training, but they
also mislead, so that their difference is the larger one.

    measure → contributions   or both as `ablation`; a pass over the windows serves any number of groupings
    recovery                  contributions beside the drives that a simulation knows
    influence                 how much each unit's history matters to the forecast of every other
    attention                 where the forecast looks, which is not yet what it uses
    integrated_gradients      the same question by gradients, in `workbench.analysis.gradients`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from workbench.analysis.contributions import Gains, contributions, events_of, recovery, since
from workbench.analysis.gradients import Integrated, integrated_gradients, ledger
from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import SILENT
from workbench.session import Session

__all__ = ["Gains", "Integrated", "ablation", "attention", "contributions", "events_of", "influence",
           "integrated_gradients", "ledger", "measure", "modalities_of", "origins", "recovery", "side_by_side", "since",
           "windows"]

SPIKES = "spikes"                                                       # the modality that is the units' own past


def ablation(model, session: Session, intervals: np.ndarray, *, by: str | Sequence[str] = "region",
             phases: Mapping[str, tuple[str, float, float]] | None = None, **options) -> pd.DataFrame:
    """A row for every modality and group of units and bins; see `measure` for the options, `contributions` for `by`.

    model: one, or several trained with other seeds, which intervals then cover as well: one training makes a little of
    what says nothing, another makes something else of it.

    >>> ablation(model, session, split(session)["test"], by=("region", "phase"),
    ...          modalities={"movement": ["hand_vel"], "plan": ["trials.target_on_time:reach_x,reach_y"]},
    ...          phases={"plan": ("target_on_time", 0.0, 0.4), "reach": ("move_onset_time", 0.0, 0.5)})
    """
    models = model if isinstance(model, Sequence) else [model]
    return contributions([measure(each, session, intervals, **options) for each in models], by, phases)


@torch.no_grad()
def measure(model, session: Session, intervals: np.ndarray, *, modalities: Mapping[str, Sequence[str]] | None = None,
            shuffles: int = 1, samples: int = 8, feedback: str = "mean", stride: float | None = None,
            most: int | None = None, seed: int = 0, batch_size: int = 32,
            progress: Callable[[int, int], None] | None = None) -> Gains:
    """Forecasts of every window under each set of modalities, and what they gain.

    intervals [n, 2]: where the horizons lie; a window may open before, since a forecaster knows the past. modalities:
    name → the model's conditions that are it; by default each condition, and "spikes", the history of all units.
    Without "spikes" the model is shown silence, which no recording is: there `shuffled` says more. shuffles: how often
    another window's values are put in place, drawn from `seed`; the gains are means over these. samples, feedback:
    how the model forecasts. stride: s between origins, the horizon by default; with half of it neighbouring trials
    share bins, and intervals come out narrow by a tenth. most: that many windows, spread evenly. progress: called with
    (forecasts done, forecasts there are).

    WorkbenchError for a model without conditions; UnknownName for a condition that it does not know, or a series that
    the session lacks; BadRecording where fewer than two windows fit.
    """
    wanted = modalities_of(model, modalities)
    for name in {name for names in wanted.values() for name in names} - {SPIKES}:
        session.get_series(name)
    at = origins(model, session, intervals, stride, most)
    read = _reader(model, session, at)
    gains = {("shown", ""): [], **{(how, name): [] for how in ("without", "shuffled") for name in wanted}}
    partners, spikes = [_partners(len(at), [seed, draw]) for draw in range(shuffles)], []
    pieces = np.array_split(np.arange(len(at)), -(-len(at) // batch_size))
    of, done, training = len(pieces) * (1 + len(wanted) * (1 + shuffles)), 0, model.training
    model.eval()
    try:
        for rows in pieces:
            batch = read(rows)
            counts = _horizon(model, batch)
            spikes.append(counts.cpu().numpy())
            sets = [("shown", "", batch, None)] + [("without", name, *_withheld(model, batch, names))
                                                   for name, names in wanted.items()]
            sets += [("shuffled", name, _swapped(batch, read(partner[rows]), names, model.history), None)
                     for partner in partners for name, names in wanted.items()]
            found = {key: [] for key in gains}
            for how, name, seen, given in sets:
                rates = model.forecast(seen, samples=samples, feedback=feedback, given=given, seed=seed).rates
                rates = rates.clamp(min=SILENT)
                found[how, name].append((counts * rates.log2() - rates / np.log(2)).cpu().numpy())
                done += 1
                if progress is not None:
                    progress(done, of)
            for key, draws in found.items():
                gains[key] += [np.mean(draws, axis=0)] if draws else []
    finally:
        model.train(training)
    spikes = np.concatenate(spikes)
    mean = np.maximum(spikes.mean((0, 2)), 0.5 / spikes[:, 0].size)[:, None]
    null = spikes * np.log2(mean) - mean / np.log(2)
    gains = {key: np.concatenate(each) - null for key, each in gains.items() if each}
    return Gains(session, model.bin_size, at, _blocks(session, at), spikes, gains["shown", ""],
                 *({name: each for (how, name), each in gains.items() if how == kind} for kind in (
                     "without", "shuffled")))


def modalities_of(model, modalities: Mapping[str, Sequence[str]] | None = None) -> dict[str, tuple[str, ...]]:
    """name → the model's conditions that are it. UnknownName for a condition that the model does not know."""
    known = [*getattr(model, "conditions", ()), SPIKES]
    if not getattr(model, "forecasts", False) or len(known) < 2:
        raise WorkbenchError(f"model {model.name!r} forecasts from no conditions, so none can be withheld; choose one "
                             "that was built with conditions=")
    found = {name: (names,) if isinstance(names, str) else tuple(names)
             for name, names in (modalities or {name: (name,) for name in known}).items()}
    for name in (name for names in found.values() for name in names):
        if name not in known:
            raise UnknownName("condition", name, known, where=f"model {model.name!r}")
    return found


def origins(model, session: Session, intervals: np.ndarray, stride: float | None = None,
            most: int | None = None) -> np.ndarray:
    """Where forecasts begin [W], s: each horizon inside one of `intervals`, each whole window in valid recording."""
    stride, found = stride or model.horizon, []
    for start, stop in np.asarray(intervals, float).reshape(-1, 2):
        at = start + stride * np.arange(max(int((stop - start - model.horizon) / stride + 1e-6) + 1, 0))
        first = at - model.history
        row = np.searchsorted(session.intervals[:, 0], first + 1e-9, side="right") - 1
        found.append(at[(row >= 0) & (first + model.window <= session.intervals[row, 1] + 1e-9)])
    found = np.concatenate(found or [np.empty(0)])
    if len(found) < 2:
        raise BadRecording(f"{session.id}: {len(found)} windows of {model.history:g} s before and {model.horizon:g} s "
                           "inside the intervals lie in valid recording, and 2 are needed; give longer intervals, or a "
                           "smaller stride")
    if most == 1:
        raise BadRecording("most=1 leaves one window, its own stand-in where it is shuffled; ask for 2 or more")
    keep = np.linspace(0, len(found) - 1, min(most or len(found), len(found))).round().astype(int)
    return found[keep]


# What is shown.

def windows(model, session: Session, at: np.ndarray) -> SpikeBatch:
    """The windows whose forecasts begin at origins [W], s, as a batch that the model can be shown."""
    return _reader(model, session, np.asarray(at, float))(np.arange(len(at)))


def _reader(model, session: Session, at: np.ndarray) -> Callable[[np.ndarray], SpikeBatch]:
    reader, device = Reader([session], also=model.reads), next(model.parameters()).device
    return lambda rows: reader.read(np.zeros(len(rows), int), at[rows] - model.history, model.window).to(device)


def _horizon(model, batch: SpikeBatch) -> torch.Tensor:
    """The counts [B, N, H] that are forecast."""
    first = round(model.history / model.bin_size)
    return batch.counts(model.bin_size)[..., first:first + round(model.horizon / model.bin_size)]


def _withheld(model, batch: SpikeBatch, names: Sequence[str]) -> tuple[SpikeBatch, tuple[str, ...]]:
    """The batch, and the conditions that are left to show; the history of "spikes" is dropped."""
    given = tuple(name for name in model.conditions if name not in names)
    return batch.drop(batch.times < model.history) if SPIKES in names else batch, given


def _swapped(batch: SpikeBatch, other: SpikeBatch, names: Sequence[str], history: float) -> SpikeBatch:
    """The batch with what `names` are in the windows of another."""
    if SPIKES in names:
        past = other.drop(other.times >= history)
        batch = batch.drop(batch.times < history).add(past.windows, past.units, past.times)
    return replace(batch, targets=dict(batch.targets) | {n: other.targets[n] for n in names if n != SPIKES})


def _partners(windows: int, seed: Sequence[int]) -> np.ndarray:
    """Another window for each [W], every one taken once."""
    order, partner = np.random.default_rng(seed).permutation(windows), np.empty(windows, int)
    partner[order] = np.roll(order, 1)
    return partner


def _blocks(session: Session, at: np.ndarray) -> np.ndarray:
    """What the bootstrap draws: the trial in which, or after whose start, a horizon begins; windows without trials."""
    starts = np.sort(session.trials["start"].to_numpy(float))
    return np.unique(np.searchsorted(starts, at + 1e-9, side="right") if len(starts) else np.arange(len(at)),
                     return_inverse=True)[1]


class SideBySide(NamedTuple):
    """One window: its spikes, as seconds from the origin and units' rows; spikes a bin [N, H], and as expected of them
    with everything shown and without a modality.
    """

    spikes: tuple[np.ndarray, np.ndarray]
    counts: np.ndarray
    shown: np.ndarray
    without: np.ndarray


@torch.no_grad()
def side_by_side(model, session: Session, at: float, names: Sequence[str], *, feedback: str = "mean",
                 seed: int = 0) -> SideBySide:
    """The window whose horizon begins at `at` s, and its forecast with and without the conditions `names`."""
    batch, training = windows(model, session, np.array([at])), model.training
    model.eval()
    try:
        rates = [model.forecast(seen, feedback=feedback, given=given, seed=seed).rates[0].cpu().numpy()
                 for seen, given in ((batch, None), _withheld(model, batch, names))]
    finally:
        model.train(training)
    there = (batch.times >= model.history) & (batch.times < model.history + model.horizon)
    spikes = (batch.times[there] - model.history).double().cpu().numpy(), batch.units[there].cpu().numpy()
    return SideBySide(spikes, _horizon(model, batch)[0].cpu().numpy(), *rates)


@torch.no_grad()
def attention(model, batch: SpikeBatch, modalities: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """How much each bin of the horizon asks of each modality, the mean over windows: [modality, s from the origin].

    What is missing to 1 goes to a blank. Large where a network looks, whether or not it makes use of what it sees there
    (Jain & Wallace 2019, arXiv 1902.10186). WorkbenchError for a model that does not say.
    """
    if not hasattr(model, "attention"):
        raise WorkbenchError(f"model {model.name!r} does not say where it looks; ablation asks what it uses")
    training, bins = model.training, round(model.horizon / model.bin_size)
    model.eval()
    try:
        asked = {name: each.mean(0).cpu().numpy() for name, each in model.attention(batch).items()}
    finally:
        model.train(training)
    wanted = {name: names for name, names in modalities_of(model, modalities).items() if SPIKES not in names}
    lags = pd.Index(np.round((np.arange(bins) + 1) * model.bin_size, 9), name="lag")
    return pd.DataFrame({name: sum(asked[each] for each in names) for name, names in wanted.items()},
                        index=lags).T.rename_axis("modality")


# Units on each other.

@torch.no_grad()
def influence(model, batch: SpikeBatch, *, by: Sequence | None = None, feedback: str = "mean", seed: int = 0,
              ) -> pd.DataFrame:
    """What silencing the history of some units does to the forecast of others: bits per spike, [silenced, forecast].

    by: a label a unit [N], such as `session.units["region"]`; units with the same are silenced together, and their
    forecasts are summed. By default every unit by itself, under its id. λ being the forecast with all spikes and λ′ the
    one without, an entry is Σ(λ log2(λ / λ′) − (λ − λ′) / ln 2) / Σλ: what would be lost if the first were true.

    BadRecording for windows of several sessions or another number of labels than units.
    """
    names = {batch.sessions[row] for row in batch.session.tolist()}
    if len(names) != 1:
        raise BadRecording(f"influence between units is that of one session, and these windows are of {len(names)}; "
                           "give windows of one")
    (session,) = names
    labels = np.asarray(session.units if by is None else by)
    if len(labels) != len(session.units):
        raise BadRecording(f"{session.id}: {len(labels)} labels for {len(session.units)} units; give one a unit")
    training, known = model.training, pd.unique(labels)
    model.eval()
    try:
        forecast = lambda seen: model.forecast(seen, feedback=feedback, seed=seed).rates.clamp(min=SILENT).double()
        rates, past, changes = forecast(batch), batch.times < model.history, []
        for label in known:
            silenced = torch.from_numpy(labels == label).to(batch.device)[batch.units]
            other = forecast(batch.drop(silenced & past))
            lost = rates * (rates / other).log2() - (rates - other) / np.log(2)
            changes.append([float(each.sum()) for each in _of_labels(lost, labels, known)])
    finally:
        model.train(training)
    total = [float(each.sum()) for each in _of_labels(rates, labels, known)]
    return pd.DataFrame(np.array(changes) / total, index=pd.Index(known, name="silenced"),
                        columns=pd.Index(known, name="forecast"))


def _of_labels(values: torch.Tensor, labels: np.ndarray, known: np.ndarray) -> list[torch.Tensor]:
    return [values[:, torch.from_numpy(labels == label).to(values.device)] for label in known]
