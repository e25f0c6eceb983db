"""CEBRA through its own package: an embedding of the population at every bin, learnt by contrast, and ridge from it.

Schneider, Lee & Mathis 2023, "Learnable latent embeddings for joint behavioural and neural analysis", Nature 617;
the package cebra 0.6 (Apache-2.0), an extra: pip install 'spike-workbench[cebra]'.

    counts of the bins around one [N, offset] → the package's network → embedding on the unit sphere [D]
    embedding → ridge → behavior [Q, outputs]

The package trains the network; what it learnt lives here, with the weights of any model. One network a session: the
embeddings of two sessions are turned against each other. An "offset10-model" sees 5 bins from a sample on, so it is not
causal. The package decodes by nearest neighbours; ridge needs no copy of the training part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.batch import SpikeBatch
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import r2
from workbench.models.base import Output, SpikeModel, columns, default_bins, known_session, sample_bins
from workbench.models.ridge import Ridge, solve
from workbench.session import Session
from workbench.windows import aligned


class CEBRA(SpikeModel):
    """sessions: their ids; units: how many each has; bin_size in seconds, window too. The rest as the package calls it:
    `conditional` "time" learns from time alone, "time_delta" and "delta" from the behaviour too.
    """

    name = "cebra"
    decodes = embeds = True

    def __init__(self, *, sessions: Sequence[str], units: Sequence[int], target: str, outputs: int,
                 bin_size: float = 0.05, window: float = 1.0, architecture: str = "offset10-model", hidden: int = 32,
                 dim: int = 8, conditional: str = "time_delta", time_offsets: int = 10, iterations: int = 5000,
                 batch_size: int = 512, lr: float = 3e-4, temperature: float = 1.0):
        super().__init__()
        package = _package()
        known = package.models.get_options()
        if architecture not in known:
            raise UnknownName("architecture", architecture, known, where="the package cebra")
        self.sessions, self.target, self.bin_size, self.window = list(sessions), target, bin_size, window
        self.networks = nn.ModuleList(package.models.init(architecture, n, hidden, dim) for n in units)
        self.offset = self.networks[0].get_offset()
        self.maps = nn.ParameterList(nn.Parameter(torch.zeros(dim + 1, outputs)) for _ in units)    # last row: bias
        self.training_settings = dict(
            model_architecture=architecture, num_hidden_units=hidden, output_dimension=dim, conditional=conditional,
            time_offsets=time_offsets, max_iterations=iterations, batch_size=batch_size, learning_rate=lr,
            temperature=temperature)

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, **settings) -> CEBRA:
        """Bins as wide as the target's sampling interval, 20 ms at least; windows of about 1 s."""
        bin_size = settings.pop("bin_size", None) or default_bins(sessions, target)
        window = settings.pop("window", None) or max(round(1.0 / bin_size), 1) * bin_size
        return cls(sessions=[s.id for s in sessions], units=[len(s.units) for s in sessions], target=target,
                   outputs=columns(sessions, target), bin_size=bin_size, window=window, **settings)

    def fit(self, sessions: Sequence[Session], train: Sequence[np.ndarray], valid: Sequence[np.ndarray]) -> dict:
        """Train every session's network on its intervals `train` [n, 2], and its ridge on both; returns the penalties.

        The penalty is the one that does best on `valid`.
        """
        chosen = {}
        for session, *parts in zip(sessions, train, valid, strict=True):
            (x, y), (x_valid, y_valid) = (self._samples(session, part) for part in parts)
            at = known_session(session.id, self.sessions)
            learner = _package().CEBRA(**self.training_settings)
            learner.fit(x, *([] if self.training_settings["conditional"] == "time" else [y]))
            self.networks[at].load_state_dict(learner.model_.state_dict())
            with torch.no_grad():
                z, z_valid = (self._embed(at, torch.from_numpy(part).T[None])[0].numpy() for part in (x, x_valid))
                scores = [np.nan_to_num(np.nanmean(r2(y_valid, z_valid @ w[:-1] + w[-1])), nan=-np.inf)
                          for w in solve(z, y, Ridge.PENALTIES)]
                chosen[session.id] = Ridge.PENALTIES[int(np.argmax(scores))]
                both = np.concatenate([z, z_valid]), np.concatenate([y, y_valid])
                self.maps[at].copy_(torch.from_numpy(solve(*both, [chosen[session.id]])[0]))
        return chosen

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, and embeddings [B, T, D], on the unit sphere."""
        counts = batch.counts(self.bin_size)
        latents = counts.new_zeros(len(batch), counts.shape[2], len(self.maps[0]) - 1)
        target = batch.targets[self.target]
        window, bins = sample_bins(target, self.bin_size, counts.shape[2])
        behavior = target.times.new_zeros(len(target.times), self.maps[0].shape[1])
        for which in batch.session.unique().tolist():
            at = known_session(batch.sessions[which].id, self.sessions)
            own, mine = batch.session == which, batch.session[window] == which
            latents[own] = self._embed(at, counts[own, :len(batch.sessions[which].units)])
            behavior[mine] = latents[window[mine], bins[mine]] @ self.maps[at][:-1] + self.maps[at][-1]
        return Output(behavior=behavior, latents=latents)

    def _embed(self, at: int, counts: Tensor) -> Tensor:
        """Counts [B, N, T] → embeddings [B, T, D]; beyond a window its edge bins go on, as in the package."""
        around = pad(counts, (self.offset.left, self.offset.right - 1), mode="replicate").unfold(2, len(self.offset), 1)
        network = self.networks[at].eval()
        return network(around.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(counts), -1))

    def _samples(self, session: Session, intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts [T, N] float32 of the intervals' bins, end to end, and the behaviour at their centres [T, outputs]."""
        series = session.get_series(self.target)
        part = session.within(aligned(intervals, series.times, series.interval, self.window))
        series, counts = part.get_series(self.target), part.counts(self.bin_size)
        good = np.isfinite(series.values).all(1)
        if len(counts.times) <= len(self.offset) or not good.any():
            raise BadRecording(f"{session.id}: nothing to fit CEBRA to: {len(counts.times)} bins, {good.sum()} samples "
                               f"of {self.target!r}; choose a longer part, or a session with behaviour")
        y = [np.interp(counts.times, series.times[good], column) for column in series.values[good].T]
        return counts.values.astype(np.float32), np.stack(y, axis=1).astype(np.float32)


def _package():
    try:
        import cebra
    except ImportError:
        raise WorkbenchError("CEBRA is trained by its own package, which is not installed; run: "
                             "pip install 'spike-workbench[cebra]'") from None
    return cebra
