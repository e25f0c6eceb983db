"""Who a unit is, read off a short stretch of its own activity: no labels, no gradient step, any number of units.

The IDEncoder of Le et al. 2025, "SPINT: Spatial Permutation-Invariant Neural Transformer for Consistent Intracortical
Motor Decoding", arXiv 2507.08402. No public code was at hand: written from the paper's description.

    measure   session → counts of M windows of R bins [N, M, R] → as they are, or summed up [N, M, W] → one row a unit
    forward   rows → their windows [U, M, W] → MLP → mean over windows → MLP → vectors [U, D]

Each unit goes through by itself, so that permuting units permutes vectors.

Departs from the paper. Windows are cut evenly from the recording (theirs are trials, stretched to one length).
`standardise` gives counts in standard deviations of the unit's reference, and norms before and after the MLPs: without
it nothing is learnt from one day in the same time. Reference "windows" are counts, as published: told apart soonest, by
heart where sessions are few. "statistics", how a unit fires and goes with the others, are slower to learn and say more
of units never met. `reference_drawn`: a training step sees so many of each unit's windows, drawn anew, so that it is
the unit that is learnt and not these windows, in more steps; afterwards all are seen. One session does not teach to
tell the units of another animal, with or without it: train on several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.nn.factors import loadings
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session
from workbench.windows import sliding

LAGS = 8                                                                # bins, of the statistics
BROAD = 0.1                                                             # s, of the bins that loadings come from


class Identity(Vocabulary):
    """A vocabulary of units whose vectors [U, dim] are worked out, not looked up; used as one, once `measure` has seen
    the session.

    `weight` [1 + units, 2 + M × W (+ 1 + population)] holds what was measured: mean and deviation of a unit's counts a
    bin, its windows, then its session's number and its loadings. It is saved, and never learned. bin_size in seconds;
    a window has `reference_bins`. In evaluation the last vectors are kept, and given again for the same rows while what
    they come from is the same, to the bit.
    """

    def __init__(self, units: Sequence[str], dim: int, *, bin_size: float, reference: str = "windows",
                 reference_windows: int = 8, reference_bins: int = 200, reference_drawn: int | None = None,
                 standardise: bool = True, population: int = 0):
        if reference not in SUMMARIES:
            raise UnknownName("reference", reference, SUMMARIES, where="the references that tell units apart")
        if reference_drawn is not None and not 1 <= reference_drawn <= reference_windows:
            raise WorkbenchError(f"a step cannot draw {reference_drawn} of {reference_windows} reference windows; give "
                                 f"a reference_drawn= of 1 to {reference_windows}, or more reference_windows=")
        super().__init__("unit", units, 0, std=0.0)
        self.bin_size, self.summary, self.standardise = bin_size, reference, standardise
        self.windows, self.bins, self.drawn = reference_windows, reference_bins, reference_drawn or reference_windows
        wide = SUMMARIES[reference](torch.zeros(1, 1, reference_bins)).shape[2]
        self.population, self.own = population, 2 + reference_windows * wide
        width = self.own + (1 + population if population else 0)
        self.weight = nn.Parameter(torch.zeros(1 + len(self.words), width), requires_grad=False)
        norm = nn.LayerNorm if standardise else lambda *_: nn.Identity()
        self.per_window = nn.Sequential(norm(wide), nn.Linear(wide, dim), nn.GELU(), nn.Linear(dim, dim))
        self.per_unit = nn.Sequential(norm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), norm(dim))
        self.place = nn.Linear(population, dim, bias=False) if population else None
        self._last: tuple[torch.dtype | None, list[Tensor], Tensor] = None, [], torch.empty(0)

    @torch.no_grad()
    def measure(self, session: Session, intervals: np.ndarray) -> None:
        """Learn who the units of a session are from their activity in `intervals` [n, 2], without labels or gradients.

        Units that are known are seen anew. BadRecording where the intervals are too short.
        """
        span, longest = self.bins * self.bin_size, float(np.diff(intervals).max(initial=0))
        if longest < span - 1e-9:
            raise BadRecording(f"{session.id}: units are known by {span:g} s on end ({self.bins} bins), and "
                               f"the longest interval lasts {longest:g} s; give a smaller reference_bins=")
        starts = sliding(intervals, span, span / 4)
        starts = starts[np.linspace(0, len(starts) - 1, self.windows).round().astype(int)]
        batch = Reader([session]).read(np.zeros(len(starts), int), starts, span)
        counts = batch.counts(self.bin_size).transpose(0, 1)                                        # [N, M, R]
        mean, deviation = counts.mean((1, 2)), counts.std((1, 2)).clamp(min=0.05)
        if self.summary == "windows" and self.standardise:
            counts = (counts - mean[:, None, None]) / deviation[:, None, None]
        found = torch.cat([mean[:, None], deviation[:, None], SUMMARIES[self.summary](counts).flatten(1)], dim=1)
        names = [f"{session.id}/{unit}" for unit in session.units["id"]]
        self.extend(names)
        if self.population:
            found = torch.cat([found, self._among(session, intervals, names[0], span)], dim=1)
        self.weight[self.rows(names)] = found.to(self.weight)

    def _among(self, session: Session, intervals: np.ndarray, name: str, span: float) -> Tensor:
        """The number of a session, its own or the next, and its units' loadings, of unit variance [N, 1 + population].
        """
        known, numbers = self.weight[self.row[name]], self.weight[:, self.own]
        number = known[self.own] if known[1] else numbers.max() + 1
        starts, broad = sliding(intervals, span, span), max(round(BROAD / self.bin_size), 1)
        counts = Reader([session]).read(np.zeros(len(starts), int), starts, span).counts(self.bin_size)
        found = loadings(counts[..., :self.bins - self.bins % broad].unflatten(2, (-1, broad)).sum(3), self.population)
        found = pad(found / found.square().mean().sqrt().clamp(min=1e-6), (0, self.population - found.shape[1]))
        return torch.cat([number.cpu().expand(len(found), 1), found], dim=1)

    def level(self, rows: Tensor) -> Tensor:
        """Mean and standard deviation of the units' counts a bin [U, 2]; the deviation is 0.05 at least."""
        return self.weight[rows, :2]

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors [U, dim] of the units in these rows; each unit is worked out once, in however many windows it is."""
        distinct, at = rows.unique(return_inverse=True)
        measured = self.weight.index_select(0, distinct)
        if self.training or torch.is_grad_enabled():
            return self._encode(measured).index_select(0, at)
        # Compared by value: whatever changed them, and however, is noticed.
        sources = [measured, *(p for p in self.parameters() if p is not self.weight)]
        kind = measured.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        was, kept, vectors = self._last
        if not (was == precision and len(kept) == len(sources) and all(map(_same, kept, sources))):
            vectors = self._encode(measured)
            self._last = precision, [source.clone() for source in sources], vectors
        return vectors.index_select(0, at)

    def _encode(self, measured: Tensor) -> Tensor:
        windows = measured[:, 2:self.own].unflatten(1, (self.windows, -1))
        if self.training and self.drawn < self.windows:
            lot = torch.rand(windows.shape[:2], device=windows.device).topk(self.drawn).indices
            windows = windows.take_along_dim(lot[..., None], dim=1)
        found = self.per_unit(self.per_window(windows).mean(1))
        if not self.population:
            return found
        session, among = measured[:, self.own].long(), measured[:, self.own + 1:]
        if self.training:
            signs = torch.randint(2, (int(session.max()) + 1, self.population), device=among.device) * 2.0 - 1
            among = among * signs[session]
        return found + self.place(among)

    def _session_rows(self, session: str, units: tuple[str, ...]) -> Tensor:
        try:
            rows = super()._session_rows(session, units)
            if self.weight[rows, 1].all():                              # no deviation: a name that was never measured
                return rows
        except UnknownName:
            pass
        known = {word for word, there in zip(self.words, self.weight[1:, 1].tolist(), strict=True) if there}
        new, sessions = [u for u in units if f"{session}/{u}" not in known], {w.rpartition("/")[0] for w in known}
        if session in sessions:
            raise BadRecording(f"{session}: {len(new)} of {len(units)} units are new to this model ({new[0]} is one); "
                               "let model.identify(session, intervals) see this session again")
        raise UnknownName("session", session, sorted(sessions), where="the sessions that this model knows",
                          hint="model.identify(session, intervals) makes it known, without labels")


def statistics(counts: Tensor) -> Tensor:
    """How units fire and go with each other: [N, M, T] counts of M windows → [N, M, 3 × LAGS + 3].

    Log rate, log Fano factor, correlation with itself 1 to LAGS bins ago, and with the sum of all other units −LAGS to
    LAGS bins away. Correlations are times √T: of noise, each has a standard deviation of 1.
    """
    bins = counts.shape[2]
    mean, variance = counts.mean(2), counts.var(2, unbiased=False)
    z = (counts - mean[..., None]) / variance.sqrt().clamp(min=1e-3)[..., None]
    others = z.sum(0) - z
    others = others / others.square().mean(2, keepdim=True).sqrt().clamp(min=1e-3)
    shifted = lambda x, back, ahead: pad(x, (back, ahead)).unfold(2, bins, 1)                       # [N, M, lags, T]
    own = torch.einsum("nmt,nmlt->nml", z, shifted(z, LAGS, 0)[:, :, :LAGS])
    cross = torch.einsum("nmt,nmlt->nml", z, shifted(others, LAGS, LAGS))
    rate = torch.stack([(mean + 0.01).log(), (variance / mean.clamp(min=1e-3) + 0.01).log()], dim=2)
    return torch.cat([rate, torch.cat([own, cross], dim=2) / bins ** 0.5], dim=2)


SUMMARIES = {"statistics": statistics, "windows": lambda counts: counts}


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape) and torch.equal(one, other)
