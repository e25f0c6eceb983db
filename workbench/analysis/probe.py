"""What a model that was never asked for behaviour knows of it: one linear map from what it says of each bin.

    batch → frozen model → rates [B, N, T], or latents [B, C, F], one a bin or chunk of it
        → those of each sample's bin → ridge (or the nearest neighbours) → behavior [Q, D]

As the Neural Latents Benchmark scores velocity (Pei et al. 2021, arXiv 2109.04463), without its lag between rates and
behaviour. The map sees one bin; compare it with what sees as much, as `label_curve` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import r2
from workbench.models.base import Output, known_session, sample_bins
from workbench.models.ridge import Ridge, solve
from workbench.session import Session, inside
from workbench.windows import aligned, sliding

SOURCES = ("rates", "latents")
NEIGHBOURS = (1, 3, 10, 30, 100)


class Samples(NamedTuple):
    """Samples of a series: times [M] s, what is known of the bin of each x [M, F], and values y [M, D]."""

    times: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def within(self, intervals: np.ndarray) -> Samples:
        """Those inside `intervals` [n, 2]."""
        rows = inside(self.times, intervals)
        return Samples(*(each[rows] for each in self))

    def and_(self, other: Samples) -> Samples:
        """These and the others."""
        return Samples(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Probe(nn.Module):
    """A model with one linear map a session behind it, a decoder like any other.

    source: "rates" or "latents"; maps: session → [F + 1, D], the last row the bias; units: session → the ids of those
    whose rates its map takes.
    """

    decodes = True

    def __init__(self, model: nn.Module, target: str, source: str, maps: dict[str, Tensor],
                 units: dict[str, Sequence[str]]):
        super().__init__()
        self.model, self.target, self.source, self.maps, self.units = model, target, source, maps, units
        self.window, self.warmup, self.bin_size, self.reads = model.window, model.warmup, model.bin_size, model.reads

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, D] at the target's times."""
        found, target = _features(self.model, batch, self.target, self.source), batch.targets[self.target]
        session = batch.session[torch.repeat_interleave(target.offsets.diff())]
        behavior, known = found.new_empty(target.values.shape), list(self.maps)
        for which in batch.session.unique().tolist():
            name = known[known_session(batch.sessions[which].id, known)]
            weight, at = self.maps[name].to(found), session == which
            features = found[at, :len(weight) - 1]
            if self.source == "rates":
                features = found[at][:, self._columns(name, batch.sessions[which].units)]
            behavior[at] = features @ weight[:-1] + weight[-1]
        return Output(behavior=behavior)

    def _columns(self, session: str, units: Sequence[str]) -> list[int]:
        row = {unit: i for i, unit in enumerate(units)}
        gone = [unit for unit in self.units[session] if unit not in row]
        if gone:
            raise WorkbenchError(f"{len(gone)} of the units whose rates the probe was fitted to, such as {gone[0]!r}, "
                                 f"are not in {session!r}; fit it to this session")
        return [row[unit] for unit in self.units[session]]


def fit(model: nn.Module, sessions: Sequence[Session], train: Sequence[np.ndarray], valid: Sequence[np.ndarray],
        target: str, source: str | None = None) -> Probe | None:
    """The probe of a model's rates, or of its latents where it has none; None for one that says nothing bin by bin.

    train, valid: intervals [n, 2] a session. The penalty is the one that does best on the validation part. source:
    "rates" or "latents"; WorkbenchError for one that the model does not say.
    """
    said, maps = sources(model, sessions[0], target), {}
    if source is None and not said:
        return None
    source = check_source(source, said, model) if source else said[0]
    for session, *parts in zip(sessions, train, valid, strict=True):
        step = model.window - model.warmup
        maps[session.id] = torch.from_numpy(linear(*(read(model, session, part, target, source, step)
                                                     for part in parts)))
    return Probe(model, target, source, maps, {s.id: tuple(s.units["id"]) for s in sessions})


def linear(train: Samples, valid: Samples, both: bool = False) -> np.ndarray:
    """The ridge map [F + 1, D], last row the bias, whose penalty does best on the validation part.

    both: fitted to the two parts once the penalty is chosen, as `Ridge` is.
    """
    scale = train.x.std(0).mean().clip(min=1e-6)                        # one: by its own, a rare unit would be loud
    found = solve(train.x / scale, train.y, Ridge.PENALTIES)
    best = _best([r2(valid.y, valid.x / scale @ w[:-1] + w[-1]) for w in found])
    if both:
        every = train.and_(valid)
        found[best] = solve(every.x / scale, every.y, [Ridge.PENALTIES[best]])[0]
    return np.concatenate([found[best][:-1] / scale, found[best][-1:]])


def nearest(train: Samples, valid: Samples, x: np.ndarray, both: bool = False) -> np.ndarray:
    """Behaviour [Q, D] at features x [Q, F]: the mean of the nearest samples, as many as `valid` says.

    both: neighbours come from the two parts, once their number is chosen.
    """
    from sklearn.neighbors import NearestNeighbors  # takes seconds
    numbers = [k for k in NEIGHBOURS if k <= len(train.x)]

    def means(of: Samples, at: np.ndarray, numbers: Sequence[int]) -> list[np.ndarray]:
        search = NearestNeighbors(n_neighbors=max(numbers), algorithm="brute").fit(of.x)
        rows = search.kneighbors(at, return_distance=False)
        return [of.y[rows[:, :k]].mean(1) for k in numbers]

    best = _best([r2(valid.y, said) for said in means(train, valid.x, numbers)])
    return means(train.and_(valid) if both else train, x, [numbers[best]])[0]


def _best(scores: list[np.ndarray]) -> int:
    """Which R² [D] are the highest on average; columns that do not vary have none."""
    return int(np.argmax([each[np.isfinite(each)].mean() if np.isfinite(each).any() else -np.inf for each in scores]))


@torch.no_grad()
def read(model: nn.Module, session: Session, part: np.ndarray, target: str, source: str = "latents",
         step: float | None = None) -> Samples:
    """What the frozen model says in the bin of every sample of `part` [n, 2], after its warm-up.

    The mean over all windows inside `part` that hold the sample; they slide by `step` s, a quarter of one by default.
    """
    reader, series, device = Reader([session], (target,), also=model.reads), session.get_series(target), _device(model)
    times, values = reader.targets[target][0]
    known = np.isfinite(values).all(1)                                  # batches leave out the others
    times, values, size = times[known], values[known], bin_seconds(model, source)
    step = max(round((step or model.window / 4) / size), 1) * size
    starts = sliding(aligned(part, series.times, series.interval, model.window), model.window, step)
    times, values = (each[slice(*np.searchsorted(times, [starts.min(), starts.max() + model.window + size]))]
                     for each in (times, values))                       # no room for the rest of the session
    total, number, training = None, np.zeros(len(times)), model.training
    model.eval()
    for at in np.array_split(starts, -(-len(starts) // 32)):
        batch = reader.read(np.zeros(len(at), int), at, model.window).to(device)
        found, when = (each.float().cpu().numpy() for each in (_features(model, batch, target, source),
                                                               batch.targets[target].times))
        offsets, used = batch.targets[target].offsets.cpu().numpy(), when >= model.warmup - 1e-6
        rows = np.arange(offsets[-1]) + np.repeat(np.searchsorted(times, at) - offsets[:-1], np.diff(offsets))
        total = np.zeros((len(times), found.shape[1]), np.float32) if total is None else total
        np.add.at(total, rows[used], found[used])
        np.add.at(number, rows[used], 1)
    model.train(training)
    there = number > 0
    mean = total[there] / number[there, None].astype(np.float32)
    return samples_of(session, target, times[there], mean, values[there])


def samples_of(session: Session, target: str, times: np.ndarray, x: np.ndarray, y: np.ndarray) -> Samples:
    if len(x) < 2:
        raise BadRecording(f"{session.id}: {len(x)} samples of {target!r} lie in the time to fit a probe to; choose a "
                           "series that is sampled there")
    return Samples(times, x, y)


def untrained(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same network with random weights: settings, units and what it measured (buffers) as they are.

    Not always the network before its first step: one that starts from the recording (NeuroBridge's units begin where
    they fire together) knows more than random weights do. `models.build` gives that one; show both.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = type(model)(**model._hub_mixin_config)
    twin.load_state_dict(dict(model.named_buffers()), strict=False)
    return twin.to(_device(model)).eval()


def _features(model: nn.Module, batch: SpikeBatch, target: str, source: str) -> Tensor:
    """Rates [Q, N] or latents [Q, F] in the bin of each sample."""
    output = model(batch)
    found = output.log_rates.exp().transpose(1, 2) if source == "rates" else output.latents
    return found[sample_bins(batch.targets[target], bin_seconds(model, source), found.shape[1])]


def bin_seconds(model: nn.Module, source: str) -> float:
    """How long a bin of its rates, or a chunk of its latents, lasts."""
    return getattr(model, "chunk", model.bin_size) if source == "latents" else model.bin_size


def check_source(source: str, said: Sequence[str], model: nn.Module) -> str:
    if source not in SOURCES:
        raise UnknownName("source", source, SOURCES, where="what a probe can read")
    if source not in said:
        raise WorkbenchError(f"model {getattr(model, 'name', type(model).__name__)!r} says no {source} bin by bin, so "
                             f"no probe can read them; it says {' and '.join(said) or 'nothing bin by bin'}")
    return source


@torch.no_grad()
def sources(model: nn.Module, session: Session, target: str) -> list[str]:
    """Which of the sources the model gives bin by bin, or chunk by chunk."""
    if not model.bin_size:
        return []
    start = max(session.start, float(session.get_series(target).times[0]))
    training = model.training
    batch = Reader([session], (target,), also=model.reads).read([0], [start], model.window).to(_device(model))
    output = model.eval()(batch)
    model.train(training)
    latents = output.latents is not None and output.latents.ndim == 3
    binned = latents and output.latents.shape[1] == batch.bins(bin_seconds(model, "latents"))
    of_all = output.log_rates is not None and output.log_rates.shape[2] == batch.bins(model.bin_size)   # no forecast
    return ["rates"] * of_all + ["latents"] * binned


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
