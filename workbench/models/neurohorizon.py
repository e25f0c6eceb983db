"""NeuroHorizon: forecasts of all units' spikes, far ahead, of sessions never trained on, given whatever else is known.

This project's own. Spikes as tokens are POYO's (Azabou et al. 2023, arXiv 2310.16046), who a unit is comes from its own
activity as in SPINT (Le et al. 2025, arXiv 2507.08402), own samples are trained on as in scheduled sampling (Bengio et
al. 2015, arXiv 1506.03099).

    history ──┬─ last `recent` s, spike by spike → Perceiver → latents [B, M, width]
              └─ all of it: each unit's counts, fading at several paces → own activity
    condition → a token a bin that has a sample of it, at its time
    bin t of the horizon asks the latents, and each condition's tokens, by cross-attention ─┐
    counts of bin t − 1 (true, sampled or expected) → Σ over units (counts − mean) × vector ┴→ GRU → state of bin t
    log rate of unit n in bin t = ⟨map of n's vector, state⟩ + n's own activity so far + n's mean
        → counts: Poisson, negative binomial, or a softened categorical over 0 … `classes` − 1

The GRU has heard the recent bins before the first of the horizon, and its state and the fading counts are all that a
bin leaves behind: the ten-thousandth costs what the first did. In training some windows are fed their own samples from
a random bin on, and each condition is withheld at times, so that any of them may be missing later. Log rates are linear
in a unit's vector, so what is inferred of a new unit can be corrected by a regression on what it fired (`identify`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch, Target
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.losses import negative_binomial_nll, poisson_nll, softened_cross_entropy
from workbench.models.base import Output, SpikeModel, scaling, unit_names
from workbench.nn.chunks import ChunkAttention
from workbench.nn.conditions import Conditions, Samples
from workbench.nn.factors import factors, spread_windows
from workbench.nn.identity import Identity
from workbench.nn.near import near, paces
from workbench.nn.perceiver import CrossAttention, FeedForward
from workbench.nn.rollout import Rollout, State, Who, logits
from workbench.nn.rotary import RotaryTime
from workbench.nn.stitcher import unit_weights
from workbench.nn.transformer import Transformer
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session

COUNTS = ("poisson", "negative_binomial", "categorical")
FEEDBACK = ("sampled", "mean", "true")
AHEAD = 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0                              # s, scales on which the horizon is told


class Forecast(NamedTuple):
    """rates [B, N, H]: expected spikes a bin, the mean of rollouts; counts [K, B, N, H] that K of them sampled."""

    rates: Tensor
    counts: Tensor


class NeuroHorizon(SpikeModel):
    """units are names ('<session id>/<unit id>'); times in seconds: bins of bin_size, `history` before the origin, of
    which the encoder reads the `recent` part, `horizon` after it, and `ahead` more of conditions alone.

    conditions: series or events (`workbench.conditions`) → "past", known up to the origin, or "all", known in the whole
    window; scales: each one's mean and deviation [2, D]. identity: "inferred" from a unit's own activity, without
    labels or gradients (nn/identity.py has the reference; from the first `reference_seconds` of what a session has:
    a model that is to know units by a minute learns best from minutes), or a learned "embedding". free: share of
    training windows that go on from their own samples; withheld: chance that a condition is not shown to a window. What
    is to be missed in attribution must have been missing often: with 0.25 the forecasts without are a little worse than
    they need be, and what drives nothing seems to be worth something.
    """

    name = "neurohorizon"
    forecasts = True
    takes = "spikes"
    rows_lr = 5e-2

    def __init__(self, *, units: Sequence[str], bin_size: float = 0.02, chunk: float = 0.1, history: float = 10.0,
                 recent: float = 1.0, horizon: float = 1.0, ahead: float = 0.0,
                 conditions: Mapping[str, str] | None = None, scales: Mapping[str, Sequence] | None = None,
                 dim: int = 64, latents: int = 4, width: int = 128, depth: int = 2, heads: int = 4,
                 dropout: float = 0.1, counts: str = "poisson", classes: int = 8, identity: str = "inferred",
                 free: float = 0.5, withheld: float = 0.4, t_min: float = 1e-3, reference: str = "statistics",
                 reference_windows: int = 16, reference_bins: int = 100, reference_seconds: float | None = None,
                 population: int = 16):
        super().__init__()
        if counts not in COUNTS or identity not in ("embedding", "inferred"):
            asked = ("counts", counts, COUNTS) if counts not in COUNTS else \
                ("identity", identity, ("embedding", "inferred"))
            raise UnknownName(*asked, where="NeuroHorizon")
        for length, part in ((history, bin_size), (horizon, bin_size), (recent, chunk), (chunk, bin_size)):
            if round(length / part) < 1 or abs(round(length / part) * part - length) > 1e-6:
                raise WorkbenchError(f"{length:g} s are no whole number of {part:g} s; choose history= and horizon= in "
                                     "whole bins (bin_size=), chunk= too, and recent= in whole chunks")
        if recent > history + 1e-9:
            raise WorkbenchError(f"a history of {history:g} s has no recent {recent:g} s; give a shorter recent=")
        self.bin_size, self.chunk, self.counts, self.inferred = bin_size, chunk, counts, identity == "inferred"
        self.history, self.recent, self.horizon, self.ahead = history, recent, horizon, ahead
        self.window, self.free, self.withheld = round(history + horizon + ahead, 9), free, withheld
        self.conditions = dict(sorted((conditions or {}).items()))      # in an order that a file keeps
        self.reads = tuple(self.conditions)
        self.units = Vocabulary("unit", units, dim, std=0.2) if not self.inferred else Identity(
            units, dim, bin_size=bin_size, reference=reference, reference_windows=reference_windows,
            reference_bins=reference_bins, reference_drawn=max(reference_windows // 2, 1), population=population)
        self.reference_seconds = reference_seconds
        self.beside = Vocabulary("unit", units, dim, std=0.0) if self.inferred else None        # see `identify`
        if self.inferred:
            self.beside.weight.requires_grad_(False)
        self.level = Vocabulary("unit", units, 1, std=0.0)              # log mean counts a bin
        self.level.weight.requires_grad_(not self.inferred)             # what is inferred has to do without learning
        self.compress = ChunkAttention(dim, latents, chunk, timed=chunk > bin_size, t_min=t_min, dropout=dropout)
        self.widen = nn.Sequential(nn.Linear(dim, width), nn.LayerNorm(width))
        self.place = nn.Parameter(torch.randn(latents, width) * 0.02)
        self.register_buffer("pace", paces(heads), persistent=False)
        self.rotary = RotaryTime(width // heads // 4, 2 * bin_size, 4 * (recent + horizon))
        self.backbone = Transformer(width, depth, heads, 4 * width, dropout=dropout)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.when = nn.Linear(len(AHEAD), width)
        self.read = CrossAttention(width, heads, head_dim=width // heads, dropout=0.0)
        self.ffn = FeedForward(width, dropout)
        self.given = Conditions({name: len(scales[name][0]) for name in self.conditions}, width, heads, dropout)
        for name in self.conditions:
            self.register_buffer(f"scale_{self.reads.index(name)}", torch.tensor(scales[name]), persistent=False)
        self.rollout = Rollout(dim, width, bin_size, counts=counts, classes=classes, dropout=dropout)
        self.register_buffer("scales", torch.tensor(AHEAD), persistent=False)

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, conditions: Mapping[str, str] | Sequence[str] | None = None,
                     **settings) -> NeuroHorizon:
        """Bins of 20 ms, or as fine as the coarsest recording; conditions given as a list are known in all the window.
        UnknownName for a condition that one of the sessions lacks.
        """
        if conditions is not None and not isinstance(conditions, Mapping):
            conditions = dict.fromkeys(conditions, "all")
        for name, known in (conditions or {}).items():
            if known not in ("past", "all"):
                raise UnknownName("time", known, ("past", "all"), where=f"condition {name!r}: when it is known")
        scales = {}
        for name in conditions or {}:
            mean, scale = np.array(scaling(sessions, name))
            constant = np.ptp(np.concatenate([s.get_series(name).values for s in sessions]), axis=0) == 0
            scales[name] = [np.where(constant, 0, mean).tolist(), np.where(constant, 1, scale).tolist()]
        finest = max(s.resolution for s in sessions)
        bin_size = settings.pop("bin_size", None) or max(0.02, finest)
        settings = {"chunk": max(round(0.1 / bin_size), 1) * bin_size, "t_min": max(2 * finest, 1e-3)} | settings
        model = cls(units=unit_names(sessions), bin_size=bin_size, conditions=conditions, scales=scales, **settings)
        model.meet(sessions, unit_names(sessions))
        return model

    def extend(self, sessions: Sequence[Session]) -> None:
        new = [name for name in unit_names(sessions) if name not in self.level.row]
        super().extend(sessions)
        self.meet([s for s in sessions if {*unit_names([s])} & {*new}], new)

    @torch.no_grad()
    def meet(self, sessions: Sequence[Session], names: Sequence[str]) -> None:
        """Start the named units: their rates at their means, their vectors where units that fire together lie near each
        other; or infer the vectors, where that is how they come.
        """
        means = {f"{s.id}/{unit}": rate * self.bin_size for s in sessions
                 for unit, rate in zip(s.units["id"], s.rates().tolist(), strict=True)}
        rows, weight = self.level.rows(names), self.level.weight
        weight[rows, 0] = weight.new_tensor([means[name] for name in names]).clamp(min=1e-4).log()
        for session in sessions:
            if self.inferred:
                self.units.measure(session, _first(session.intervals, self.reference_seconds or np.inf))
                self.beside.weight[self.beside.rows(unit_names([session]))] = 0
            elif batch := spread_windows(session, self.recent, 1000):
                new = torch.tensor([name in {*names} for name in unit_names([session])])
                found = self.units.std * factors(batch.counts(self.chunk), self.units.weight.shape[1])
                self.units.weight[self.units.rows(unit_names([session]))[new]] = found[new].to(self.units.weight)

    def identify(self, session: Session, intervals: np.ndarray, spread: float = 0.0) -> None:
        """Learn who the units of a session are from their activity in `intervals` [n, 2], without labels or gradients;
        a session that the model knows is seen anew.

        spread: above 0, what was inferred is the prior, of this deviation, of a regression: each unit's counts there on
        what the network says of those bins, conditions withheld. Without labels too; 0.2 is a good value.

        WorkbenchError for a model that does not infer who units are, or whose counts are no rates; BadRecording where
        the intervals hold no window.
        """
        if not self.inferred:
            raise WorkbenchError("this NeuroHorizon looks up who units are; adapt it with how='identify', or build it "
                                 "with identity='inferred'")
        seen = session.within(intervals)
        super().extend([seen])
        self.meet([seen], unit_names([seen]))
        if spread:
            self._correct(seen, spread)

    @torch.no_grad()
    def _correct(self, session: Session, spread: float, rounds: int = 3, most: int = 400) -> None:
        if self.counts == "categorical":
            raise WorkbenchError("units are corrected by a regression of rates, and this NeuroHorizon tells counts by "
                                 "class; leave spread= out")
        batch, training = spread_windows(session, self.window, most, self.horizon), self.training
        if batch is None:
            raise BadRecording(f"{session.id}: units are corrected in windows of {self.window:g} s, and no interval is "
                               "so long; give longer ones, or leave spread= out")
        nothing = {name: Target(batch.times.new_empty(0), torch.empty(0, len(getattr(self, f"scale_{i}")[0])),
                                torch.zeros(len(batch) + 1, dtype=torch.long)) for i, name in enumerate(self.reads)}
        batch = replace(batch, targets=nothing).to(self.beside.weight.device)
        rows = self.units.rows(unit_names([session]))
        inferred = self.eval().units(rows)
        for _ in range(rounds):
            who, _, plan, state = self._open(batch, self._shown(batch, ()))
            found = self.rollout.solve(who, plan, state, self._true(batch), inferred, spread)
            self.beside.weight[self.beside.rows(unit_names([session]))] = found - inferred
        self.train(training)

    def forward(self, batch: SpikeBatch, given: Collection[str] | None = None,
                tokens: Mapping[str, Tensor] | None = None) -> Output:
        """Log rates [B, N, H], in log spikes a bin, of the horizon's bins, each knowing the true ones before it.

        given: the conditions that are shown, all by default; tokens: what `tokens` returned, perhaps changed.
        """
        who, latents, plan, state = self._open(batch, self._shown(batch, given), tokens)
        log_rates = self.rollout.all(who, plan, state, self._true(batch))
        return Output(log_rates=self.rollout.log_mean(log_rates, who), latents=latents)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Negative log-likelihood of the horizon's counts, nats an entry, under conditions withheld at random and, in a
        share of windows, own samples instead of the truth from a random bin on.
        """
        shown = torch.rand(len(batch), len(self.conditions), device=batch.device) >= self.withheld
        who, _, plan, state = self._open(batch, shown)
        truth = heard = self._true(batch)
        if self.free:
            alone = torch.rand(len(batch), 1, 1, device=batch.device) < self.free
            since = torch.randint(truth.shape[2], (len(batch), 1, 1), device=batch.device)
            own = alone & (torch.arange(truth.shape[2], device=batch.device) >= since)
            with torch.no_grad():
                heard = self.rollout.roll(who, plan, state, "sampled", torch.where(own, torch.nan, truth))[1]
        log_rates, where = self.rollout.all(who, plan, state, heard), who.mask[..., None].expand_as(truth)
        if self.counts == "categorical":
            return {"loss": softened_cross_entropy(logits(log_rates, who.shape), truth, where)}
        if self.counts == "negative_binomial":
            return {"loss": negative_binomial_nll(log_rates, who.shape.expand_as(truth), truth, where)}
        return {"loss": poisson_nll(log_rates, truth, where)}

    @torch.no_grad()
    def forecast(self, batch: SpikeBatch, *, samples: int = 8, feedback: str = "sampled",
                 given: Collection[str] | None = None, seed: int = 0) -> Forecast:
        """Expected spikes a bin over the horizon: "sampled", the mean of so many rollouts, each fed what it samples;
        "mean", one fed what it expects; "true", each bin knowing the true ones before it.
        """
        if feedback not in FEEDBACK:
            raise UnknownName("feedback", feedback, FEEDBACK, where="the ways to go on from bin to bin")
        who, _, plan, state = self._open(batch, self._shown(batch, given))
        truth = self._true(batch)
        none = truth.new_empty(0, *truth.shape)
        if feedback == "true":
            return Forecast(self.rollout.log_mean(self.rollout.all(who, plan, state, truth), who).exp(), none)
        with torch.random.fork_rng(devices=[batch.device] if batch.device.type == "cuda" else []):
            torch.manual_seed(seed)
            rolled = [self.rollout.roll(who, plan, state, feedback, torch.full_like(truth, torch.nan))
                      for _ in range(samples if feedback == "sampled" else 1)]
        return Forecast(torch.stack([rates for rates, _ in rolled]).mean(0),
                        torch.stack([counts for _, counts in rolled]) if feedback == "sampled" else none)

    def tokens(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Each condition's values by bin [B, bins, D], from the recent past to the window's end, in deviations from
        their mean; 0 where there is no sample.
        """
        return {name: samples.values for name, samples in self._samples(batch).items()}

    def attention(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """How much each bin of the horizon asks each condition's samples, and not the blank [B, H], the mean of heads.
        """
        at, samples = self._bins(batch), [*self._samples(batch).values()]
        asked = self.given(at, samples, self._shown(batch, None), self.rotary, self.pace)[1]
        return {name: each[:, at >= 0] for name, each in zip(self.conditions, asked.unbind(2), strict=True)}

    def _shown(self, batch: SpikeBatch, given: Collection[str] | None) -> Tensor:
        for name in given or ():
            if name not in self.conditions:
                raise UnknownName("condition", name, self.conditions, where="the conditions of this model")
        told = [given is None or name in given for name in self.conditions]
        return torch.tensor(told, dtype=torch.bool, device=batch.device).expand(len(batch), -1)

    def _samples(self, batch: SpikeBatch) -> dict[str, Samples]:
        """Each condition by bin, from the recent past to the window's end; times are from the origin."""
        found, bins = {}, round((self.recent + self.horizon + self.ahead) / self.bin_size)
        for i, (name, known) in enumerate(self.conditions.items()):
            target, (mean, scale) = batch.targets[name], getattr(self, f"scale_{i}")
            given = target.values.to(scale) if len(target.times) else scale.new_zeros(0, len(scale))    # none: no width
            values, times = (given - mean) / scale, target.times.to(scale) - self.history
            bin_ = ((times + self.recent) / self.bin_size + 1e-4).floor().long()
            keep = (bin_ >= 0) & (bin_ < bins) & ((times < -1e-6) | (known == "all"))
            cell = (torch.repeat_interleave(target.offsets.diff()) * bins + bin_)[keep]
            size = torch.bincount(cell, minlength=len(batch) * bins).to(values)
            total = values.new_zeros(len(size), values.shape[1] + 1).index_add(
                0, cell, torch.cat([values, times[:, None]], 1)[keep])
            total = (total / size.clamp(min=1)[:, None]).unflatten(0, (len(batch), bins))
            found[name] = Samples(total[..., :-1], total[..., -1], (size > 0).unflatten(0, (len(batch), bins)))
        return found

    def _true(self, batch: SpikeBatch) -> Tensor:
        """The horizon's counts [B, N, H]."""
        return batch.between(self.history, self.history + self.horizon).counts(self.bin_size)

    def _bins(self, batch: SpikeBatch) -> Tensor:
        """The middles of the recent bins and the horizon's, seconds from the origin."""
        recent, ahead = round(self.recent / self.bin_size), round(self.horizon / self.bin_size)
        return (torch.arange(-recent, ahead, device=batch.device) + 0.5) * self.bin_size

    def _open(self, batch: SpikeBatch, shown: Tensor,
              tokens: Mapping[str, Tensor] | None = None) -> tuple[Who, Tensor, Tensor, State]:
        """What a rollout starts from: the units, the latents [B, M, width], what the horizon's bins read of them and of
        the conditions [B, H, width], and the state at the origin. shown [B, conditions].
        """
        distinct, rows = self.units.of_units(batch)                     # once a unit and step
        table = self.units(distinct) + self.beside(distinct) if self.inferred else self.units(distinct) / self.units.std
        who = self.rollout.who(batch.unit_mask, unit_weights(batch, self.level)[..., 0], table, rows)
        recent = batch.between(self.history - self.recent, self.history)
        x = self.widen(self.compress(recent, table, rows)) + self.place
        chunks, per_chunk = x.shape[1:3]
        times = (torch.arange(chunks * per_chunk, device=x.device) + 0.5) * (self.chunk / per_chunk) - self.recent
        turn = self.rotary(times)
        latents = self.backbone(x.flatten(1, 2), turn=turn, mask=near(self.pace, times, times))

        at, samples = self._bins(batch), self._samples(batch)
        for name, values in (tokens or {}).items():
            samples[name] = samples[name]._replace(values=values)
        told = self.given(at, [*samples.values()], shown, self.rotary, self.pace)[0]
        asked, bins = self.query + self.when((-at[at >= 0][:, None] / self.scales).exp()), self.rotary(at[at >= 0])
        read = self.read(asked.expand(len(x), -1, -1), bins.expand(len(x), -1, -1), latents, turn,
                         near(self.pace, at[at >= 0], times))
        plan = asked + read
        plan = plan + self.ffn(plan) + told[:, at >= 0]

        past = batch.between(0, self.history)
        age = round(self.history / self.bin_size) - 1 - past.spike_bins(self.bin_size)
        cell = past.windows * who.mask.shape[1] + past.units
        state = self.rollout.start(recent.counts(self.bin_size), told[:, at < 0], cell, age, self.history, who)
        return who, latents, plan, state


def _first(intervals: np.ndarray, seconds: float) -> np.ndarray:
    """The first so many seconds of the intervals [n, 2]."""
    lengths = np.diff(intervals)[:, 0]
    before = lengths.cumsum() - lengths
    found = intervals[before < seconds].copy()
    found[-1, 1] = min(found[-1, 1], found[-1, 0] + seconds - before[before < seconds][-1])
    return found
