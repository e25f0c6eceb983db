"""What a model that was never asked for behaviour knows of it: one linear map from what it says of each bin.

    batch → model → rates [B, N, T] (or latents [B, T, D], one a bin) → the bin of each sample → ridge → behavior [Q, D]

As the Neural Latents Benchmark scores velocity (Pei et al. 2021, arXiv 2109.04463), without its lag between rates and
behaviour. The map sees one bin; compare it with what sees as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from workbench.batch import Reader, SpikeBatch
from workbench.errors import BadRecording
from workbench.metrics import r2
from workbench.models.base import Output, known_session, sample_bins
from workbench.models.ridge import Ridge, solve
from workbench.session import Session
from workbench.windows import aligned, sliding


class Probe(nn.Module):
    """A model with one linear map a session behind it, a decoder like any other.

    source: "rates" or "latents"; maps: session → [F + 1, D], the last row the bias.
    """

    decodes = True

    def __init__(self, model: nn.Module, target: str, source: str, maps: dict[str, Tensor]):
        super().__init__()
        self.model, self.target, self.source, self.maps = model, target, source, maps
        self.window, self.warmup, self.bin_size, self.reads = model.window, model.warmup, model.bin_size, model.reads

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, D] at the target's times."""
        found, target = _features(self.model, batch, self.target), batch.targets[self.target]
        session = batch.session[torch.repeat_interleave(target.offsets.diff())]
        behavior, known = found.new_empty(target.values.shape), list(self.maps)
        for which in batch.session.unique().tolist():
            weight = self.maps[known[known_session(batch.sessions[which].id, known)]].to(found)
            at = session == which
            behavior[at] = found[at, :len(weight) - 1] @ weight[:-1] + weight[-1]
        return Output(behavior=behavior)


def fit(model: nn.Module, sessions: Sequence[Session], train: Sequence[np.ndarray], valid: Sequence[np.ndarray],
        target: str) -> Probe | None:
    """The probe of a model's rates, or of its latents where it has none; None for one that says nothing bin by bin.

    train, valid: intervals [n, 2] a session. The penalty is the one that does best on the validation part.
    """
    source, maps = _source(model, sessions[0], target), {}
    if source is None:
        return None
    for session, *parts in zip(sessions, train, valid, strict=True):
        (x, y), (x_valid, y_valid) = (_samples(model, session, part, target) for part in parts)
        scale = x.std(0).clip(min=1e-6)
        found = solve(x / scale, y, Ridge.PENALTIES)
        scores = [np.nan_to_num(np.nanmean(r2(y_valid, x_valid / scale @ w[:-1] + w[-1])), nan=-np.inf) for w in found]
        best = found[int(np.argmax(scores))]
        maps[session.id] = torch.from_numpy(np.concatenate([best[:-1] / scale[:, None], best[-1:]]))
    return Probe(model, target, source, maps)


@torch.no_grad()
def _samples(model: nn.Module, session: Session, part: np.ndarray, target: str) -> tuple[np.ndarray, np.ndarray]:
    """What the model says [M, F] in the bin of every sample, and the samples [M, D], after the warm-up."""
    reader, device = Reader([session], (target,), also=model.reads), next(model.parameters()).device
    series, x, y = session.get_series(target), [], []
    starts = sliding(aligned(part, series.times, series.interval, model.window), model.window,
                     model.window - model.warmup)
    training = model.training
    model.eval()
    for at in np.array_split(starts, -(-len(starts) // 32)):
        batch = reader.read(np.zeros(len(at), int), at, model.window).to(device)
        used = batch.targets[target].times >= model.warmup - 1e-6
        x.append(_features(model, batch, target)[used].float().cpu().numpy())
        y.append(batch.targets[target].values[used].cpu().numpy())
    model.train(training)
    x, y = np.concatenate(x), np.concatenate(y)
    if len(x) < 2:
        raise BadRecording(f"{session.id}: {len(x)} samples of {target!r} lie in the time to fit a probe to; choose a "
                           "series that is sampled there")
    return x, y


def _features(model: nn.Module, batch: SpikeBatch, target: str) -> Tensor:
    """Rates [Q, N] or latents [Q, D] in the bin of each sample."""
    output = model(batch)
    found = output.log_rates.exp().transpose(1, 2) if output.log_rates is not None else output.latents
    return found[sample_bins(batch.targets[target], model.bin_size, found.shape[1])]


@torch.no_grad()
def _source(model: nn.Module, session: Session, target: str) -> str | None:
    """Whether there are rates, or latents one a bin, to fit a map to."""
    if not model.bin_size:
        return None
    start = max(session.start, float(session.get_series(target).times[0]))
    training = model.training
    reader = Reader([session], (target,), also=model.reads)
    batch = reader.read([0], [start], model.window).to(next(model.parameters()).device)
    output = model.eval()(batch)
    model.train(training)
    if output.log_rates is not None:
        return "rates"
    binned = output.latents is not None and output.latents.ndim == 3
    return "latents" if binned and output.latents.shape[1] == batch.bins(model.bin_size) else None
