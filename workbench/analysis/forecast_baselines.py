"""Simple ways to tell what units will do after an origin from what they did before it: what a forecast has to beat.

    train, valid → fit(names) → baseline(Origins) → rates [W, N, H], NaN at bins that it says nothing of

    running_mean         what each unit did in the 30 s of valid recording before the origin
    psth                 each unit's mean by the time since the last trial start, after the origin too; None without
                         trials
    own_glm              a Poisson regression of each unit on its own last 0.5 s, for each horizon by itself
    population_glm       the same on the last 0.5 s of all units
    population_glm_free  the one for the first bin run on, its own rates in the place of counts
    gru, gru_mean        a recurrent network run on, with samples in the place of counts, averaged; with its own rates
    masked_forecast      any model that fills in what is hidden, every bin after the origin hidden from it

The regressions are in `forecast_glm`. The network is Cho et al.'s (2014, arXiv 1406.1078), forward prediction by hiding
NDT1's (Ye & Pandarinath 2021, arXiv 2108.01210). A baseline is a plain object: it can be pickled, and given to
`forecasting.evaluate` again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workbench.align import spikes_before
from workbench.analysis import forecast_glm
from workbench.analysis.cosmoothing import MEMORY, _binned, _whole_bins
from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.losses import poisson_nll
from workbench.masking import Mask
from workbench.session import Session

BASELINES = ("running_mean", "psth", "own_glm", "population_glm", "population_glm_free", "gru", "gru_mean")
STEPS, EVERY, BATCH, SECONDS = 1000, 50, 32, 3.0    # of the network: steps, and between looks at validation; windows


class Origins(NamedTuple):
    """Where forecasts start: times [W] in s, counts of the past [W, N, P] up to there, `bins` of `bin_size` s to tell.

    The session is there for what reaches further back than P bins, and for its trials.
    """

    session: Session
    times: np.ndarray
    past: np.ndarray
    bins: int
    bin_size: float


class Learning(NamedTuple):
    """What a baseline learns from: counts [T, N] of every interval of both parts, starts [T] of the bins in training,
    each unit's mean and highest count [N] there. at: the horizons of direct regressions, in bins from 1.
    """

    train: list[np.ndarray]
    valid: list[np.ndarray]
    times: list[np.ndarray]
    mean: np.ndarray
    cap: np.ndarray
    bin_size: float
    bins: int
    at: np.ndarray


Baseline = Callable[[Origins], np.ndarray]


def fit(names: Iterable[str], session: Session, train: np.ndarray, valid: np.ndarray, *, bin_size: float, bins: int,
        at: Iterable[int] | None = None, samples: int = 8, seed: int = 0) -> dict[str, Baseline | None]:
    """The baselines of these names, for forecasts of `bins` bins of `bin_size` s; None for a psth without trials.

    train, valid: intervals [n, 2]; penalties and the network's length of training are chosen on `valid`, and nothing is
    learned there. at: the horizons, in bins from 1, that direct regressions are fitted for, all by default. samples,
    seed: of the network's rollouts. A rate is never above the unit's highest count in training.

    UnknownName for another name; BadRecording where a part has no room for a history and the longest horizon.
    """
    names = list(names)
    for name in names:
        if name not in BASELINES:
            raise UnknownName("baseline", name, BASELINES, where="the baselines of forecasts")
    learning, found = learn(session, train, valid, bin_size, bins, at), {}
    if "running_mean" in names:
        found["running_mean"] = RunningMean(learning.mean)
    if "psth" in names:
        found["psth"] = _psth(session, learning)
    if "own_glm" in names:
        found["own_glm"] = forecast_glm.direct(session, learning, own=True)
    if {"population_glm", "population_glm_free"} & set(names):
        asked = learning if "population_glm" in names else learning._replace(at=np.ones(1, int))
        direct = forecast_glm.direct(session, asked)
        found |= {"population_glm": direct, "population_glm_free": forecast_glm.FreeGLM(direct)}
    if {"gru", "gru_mean"} & set(names):
        net = _train(session, learning, seed)
        found |= {"gru": FreeGRU(net, learning.cap, samples, seed), "gru_mean": FreeGRU(net, learning.cap, 0, seed)}
    return {name: found[name] for name in names}


def learn(session: Session, train: np.ndarray, valid: np.ndarray, bin_size: float, bins: int,
          at: Iterable[int] | None = None) -> Learning:
    """The counts of both parts. Units that are silent in training count as half a spike there."""
    parts = [[_binned(session, one[None], bin_size) for one in _whole_bins(session, part, bin_size, None, bin_size)]
             for part in (train, valid)]
    times, counts = zip(*parts[0], strict=True)
    whole = np.concatenate(counts)
    mean = np.maximum(whole.mean(0, dtype=float), 0.5 / len(whole))
    at = np.unique([1, *at]) if at is not None else np.arange(1, bins + 1)
    return Learning(list(counts), [each for _, each in parts[1]], list(times), mean, np.maximum(whole.max(0), mean),
                    bin_size, bins, at)


@dataclass(frozen=True)
class RunningMean:
    """The mean over the 30 s before the origin; the mean in training weighs as one bin more."""

    mean: np.ndarray

    def __call__(self, origins: Origins) -> np.ndarray:
        spikes, seconds = spikes_before(origins.session, origins.times, MEMORY)
        rates = (spikes + self.mean) / (seconds[:, None] / origins.bin_size + 1)
        return np.repeat(rates[:, :, None], origins.bins, axis=2)


@dataclass(frozen=True)
class PSTH:
    """rates [K, N] by bins since the last trial start, and the mean [N] before the first trial and after K bins."""

    rates: np.ndarray
    mean: np.ndarray

    def __call__(self, origins: Origins) -> np.ndarray:
        times = origins.times[:, None] + np.arange(origins.bins) * origins.bin_size
        since = _since(origins.session, times, origins.bin_size)
        known = (since >= 0) & (since < len(self.rates))
        return np.where(known[..., None], self.rates[np.where(known, since, 0)], self.mean).transpose(0, 2, 1)


def _since(session: Session, times: np.ndarray, bin_size: float) -> np.ndarray:
    """How many bins ago the last trial started, of bins by their starts; −1 before the first trial."""
    starts, middle = np.sort(session.trials["start"].dropna().to_numpy(float)), times + bin_size / 2
    last = np.searchsorted(starts, middle, side="right") - 1
    return np.where(last >= 0, (middle - starts[np.maximum(last, 0)]) / bin_size, -1).astype(int)


def _psth(session: Session, learning: Learning) -> PSTH | None:
    lasts = (session.trials["stop"] - session.trials["start"]).max() if len(session.trials) else np.nan
    if not lasts > 0:                                                   # no trials, or none that is known
        return None
    since, counts = _since(session, np.concatenate(learning.times), learning.bin_size), np.concatenate(learning.train)
    # The time after a trial belongs to it until the next one starts, but a long pause to none.
    longest = int(np.ceil(lasts / learning.bin_size)) + 1
    there = (since >= 0) & (since < longest)
    total = np.zeros((longest, counts.shape[1]))
    np.add.at(total, since[there], counts[there])
    number = np.bincount(since[there], minlength=longest)[:, None]
    return PSTH((total + learning.mean) / (number + 1), learning.mean)


class Network(nn.Module):
    """Counts [B, T, N] and a state → log rates of the bin after each [B, T, N], and the state after the last."""

    def __init__(self, mean: np.ndarray, dim: int = 128, dropout: float = 0.3):
        super().__init__()
        self.read_in, self.dropout = nn.Linear(len(mean), dim), nn.Dropout(dropout)
        self.gru, self.read_out = nn.GRU(dim, dim, batch_first=True), nn.Linear(dim, len(mean))
        nn.init.normal_(self.read_out.weight, std=0.01)
        self.read_out.bias.data = torch.from_numpy(np.log(mean)).float()

    def forward(self, counts: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, state = self.gru(self.dropout(self.read_in(counts)), state)
        return self.read_out(self.dropout(x)), state


def _train(session: Session, learning: Learning, seed: int) -> Network:
    """The network after that of `STEPS` steps at which it tells each next bin of `valid` best."""
    length = min(round(SECONDS / learning.bin_size), *(max(map(len, part)) - 1 for part in learning[:2]))
    if length < 2:
        raise BadRecording(f"{session.id}: no interval to learn from holds 3 bins of {learning.bin_size:g} s; give a "
                           "split of longer parts")
    cut = lambda part: np.concatenate([np.lib.stride_tricks.sliding_window_view(piece, length + 1, axis=0)
                                       for piece in part if len(piece) > length])
    pick = lambda part, rows: torch.from_numpy(part[rows].transpose(0, 2, 1).astype(np.float32))
    train, valid = cut(learning.train), cut(learning.valid)
    held, random = pick(valid, np.arange(0, len(valid), length)), np.random.default_rng(seed)
    best, kept = np.inf, None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Network(learning.mean)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        for step in range(1, STEPS + 1):
            counts = pick(train, random.integers(len(train), size=BATCH))
            loss = poisson_nll(net(counts[:, :-1])[0], counts[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % EVERY == 0:
                with torch.no_grad():
                    now = poisson_nll(net.eval()(held[:, :-1])[0], held[:, 1:]).item()
                net.train()
                if now < best:
                    best, kept = now, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    return net.eval()


@dataclass(frozen=True)
class FreeGRU:
    """The network run on after the past: the mean of `samples` rollouts of Poisson counts; of its own rates for 0."""

    net: Network
    cap: np.ndarray
    samples: int
    seed: int

    @torch.no_grad()
    def __call__(self, origins: Origins) -> np.ndarray:
        random, cap = torch.Generator().manual_seed(self.seed), torch.from_numpy(self.cap).float()
        logs, state = self.net(torch.from_numpy(origins.past).float().transpose(1, 2))
        logs, state = (each.repeat_interleave(max(self.samples, 1), dim)
                       for each, dim in ((logs[:, -1:], 0), (state, 1)))
        found = []
        for _ in range(origins.bins):
            rates = torch.minimum(logs.exp(), cap)
            found.append(rates.unflatten(0, (len(origins.times), -1)).mean(1)[:, 0])
            counts = torch.minimum(torch.poisson(rates, random), 2 * cap + 10) if self.samples else rates
            logs, state = self.net(counts, state)
        return torch.stack(found, dim=2).double().numpy()


@dataclass(frozen=True, eq=False)
class Masked:
    """A model that fills in what is hidden, shown the time up to the origin. See `masked_forecast`."""

    model: nn.Module
    batch_size: int = 32

    @torch.no_grad()
    def __call__(self, origins: Origins) -> np.ndarray:
        model, size = self.model, origins.bin_size
        if not model.bin_size or abs(model.bin_size - size) > 1e-9:
            raise WorkbenchError(f"model {model.name!r} tells bins of {model.bin_size or 0:g} s, which cannot be set "
                                 f"beside forecasts in bins of {size:g} s; build both for the same bin_size=")
        window = round(model.window / size)
        seen = min(max(window - origins.bins, window // 2), origins.past.shape[2])
        ahead = min(window - seen, origins.bins)
        reader = Reader([origins.session], also=getattr(model, "reads", ()))
        rates, training = np.full((*origins.past.shape[:2], origins.bins), np.nan), model.training
        model.eval()
        for rows in np.array_split(np.arange(len(origins.times)), -(-len(origins.times) // self.batch_size)):
            batch = reader.read(np.zeros(len(rows), int), origins.times[rows] - seen * size, model.window)
            found = self.shown(batch.to(next(model.parameters()).device), seen)
            rates[rows, :, :ahead] = found[:, :, seen:seen + ahead].double().exp().cpu().numpy()
        model.train(training)
        return rates

    def shown(self, batch: SpikeBatch, seen: int) -> Tensor:
        """Log rates [B, N, T] from the spikes of the first `seen` bins; a model that knows it is told what is asked."""
        hidden = torch.arange(batch.bins(self.model.bin_size), device=batch.device) >= seen
        hidden = hidden.expand(*batch.unit_mask.shape, -1) & batch.unit_mask[..., None]
        if hasattr(self.model, "reconstruct"):
            return self.model.reconstruct(batch, Mask(hidden, hidden), "causal").log_rates
        asked = {"scheme": "causal"} if "causal" in getattr(self.model, "schemes", ()) else {}
        return self.model(Mask(hidden, hidden).of_spikes(batch), **asked).log_rates


def masked_forecast(model: nn.Module) -> Masked:
    """A baseline of a model that reconstructs: its window opens before the origin, and all that follows is hidden.

    The window ends with the horizon, but shows half its length at least: what is left of the horizon is not told. Its
    bins have to be those of the forecast. WorkbenchError for a model that predicts no rates.
    """
    if not model.reconstructs:
        raise WorkbenchError(f"model {model.name!r} predicts no firing rates, so it cannot tell what is hidden after "
                             "an origin; choose one that reconstructs")
    return Masked(model)
