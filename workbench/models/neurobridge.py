"""NeuroBridge: masked pretraining on single spikes, compressed by a Perceiver; what is hidden leaves no trace.

This project's own. From POYO it takes spikes as tokens (Azabou et al. 2023, arXiv 2310.16046), from MtM the modes of
masking (Zhang et al. 2024, arXiv 2407.14668), from Perceiver IO queries that read latents (Jaegle et al. 2021,
arXiv 2107.14795).

    spikes that the mask leaves → unit vector, rotary time inside the chunk ─┐ (and one blank token a chunk)
    `latents` learned queries a chunk, spread over it ───────────────────────┴→ cross-attention [B, C, L, dim]
    counts of each chunk beside the units' means → Σ over visible units × vector [B, C, dim]
    → linear, both, added → transformer over all latents, both ways in time, rotary → latents [B, C × L, width]
    one query a bin ──→ cross-attention to the latents → what the time is like [B, T, width]
    log rate of unit n in bin t = ⟨map of n's vector, t⟩ + n's own visible counts around t + n's mean
        → Poisson likelihood of what was hidden, and of nothing else

All modes share one decoder and one grid; only the mask differs. `decoder="queries"` is the plan's first form: one query
a unit and bin reads the latents, which costs a hundred times as much and is trained on a sample of the hidden entries.

Three things make it learn in minutes: attention is local from the start (`near`), without which it learns nothing for
thousands of steps; units start where they fire together (`factors`), a third of the steps that random rows take; and
what units fire beside their means is summed (`hear`), which attention, a mean over spikes, has to learn to do. And
units of a session met after training are solved for (`recognise`), so that they start in the network's own space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import poisson_nll
from workbench.masking import Controller, Mask
from workbench.models.base import Output, SpikeModel, unit_names
from workbench.nn.chunks import ChunkAttention
from workbench.nn.factors import factors, spread_windows
from workbench.nn.grid import DECODERS, Factorised, OwnActivity, Queries
from workbench.nn.identity import Identity
from workbench.nn.near import near, paces
from workbench.nn.regions import Regions, possible, region_names
from workbench.nn.rotary import RotaryTime
from workbench.nn.solve import Equations
from workbench.nn.stitcher import unit_weights, window_weights
from workbench.nn.transformer import Transformer
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session

MODES = {"temporal": 1.0, "neuron": 1.0, "intra_region": 1.0, "inter_region": 1.0, "causal": 1.0}


class NeuroBridge(SpikeModel):
    """units are names ('<session id>/<unit id>'), regions theirs; bin_size, chunk, window and t_min in seconds.

    dim: of tokens; width, depth, heads: of the transformer; latents: a chunk. clock: windows begin with trials, so that
    chunks may know which they are; else only distances in time are known. modes: mode → chance, see
    `masking.Controller`. For comparison, sums: False leaves spikes to attention alone; prompt: tell the transformer the
    mode by a token, as MtM does; after: hide latents of whole chunks after compression, not spikes before it, which
    only modes of time can. sample: hidden entries of a window that the decoder of queries is trained on. identity: who
    a unit is, a learned "embedding" or "inferred" from its own activity without labels or gradients (nn/identity.py has
    reference, reference_windows and reference_bins). `SIZES` have 2, 10, 30 and 100 million parameters.
    """

    name = "neurobridge"
    reconstructs = embeds = True
    takes = "spikes"
    rows_dropout, rows_alike = False, True                              # rows start near, and few steps are taken
    SIZES: ClassVar = {"2m": dict(width=128, depth=8, heads=4), "10m": dict(width=256, depth=12, heads=8),
                       "30m": dict(width=448, depth=12, heads=8), "100m": dict(width=832, depth=12, heads=8)}

    def __init__(self, *, units: Sequence[str], regions: Mapping[str, str], bin_size: float = 0.01, chunk: float = 0.05,
                 window: float = 1.0, dim: int = 128, latents: int = 4, width: int = 512, depth: int = 12,
                 heads: int = 8, dropout: float = 0.1, modes: Mapping[str, float] = MODES, decoder: str = "factorised",
                 clock: bool = False, sample: int = 256, sums: bool = True, prompt: bool = False, after: bool = False,
                 t_min: float = 1e-3, identity: str = "embedding", reference: str = "statistics",
                 reference_windows: int = 16, reference_bins: int = 100):
        super().__init__()
        if decoder not in DECODERS:
            raise UnknownName("decoder", decoder, DECODERS, where="the decoders of NeuroBridge")
        self.bin_size, self.chunk, self.window, self.per_chunk = bin_size, chunk, window, latents
        self.chunk_bins = _whole(chunk, bin_size, "chunks")
        chunks = _whole(window, chunk, "windows")
        if after and not {*modes} <= {"temporal", "causal"}:
            raise WorkbenchError("latents mix all units, so that hidden after compression only modes of time can be; "
                                 "give after=True with the modes temporal and causal alone")
        self.controller, self.sample = Controller(modes), sample
        if identity not in ("embedding", "inferred"):
            raise UnknownName("identity", identity, ("embedding", "inferred"), where="NeuroBridge")
        self.inferred, self.regions = identity == "inferred", Regions(regions)
        self.units = Vocabulary("unit", units, dim, std=0.2) if not self.inferred else Identity(
            units, dim, bin_size=bin_size, reference=reference, reference_windows=reference_windows,
            reference_bins=reference_bins, reference_drawn=max(reference_windows // 2, 1))
        self.rates = Vocabulary("unit", units, 1, std=0.0)              # log mean counts a bin
        self.rates.weight.requires_grad_(not self.inferred)             # what is inferred has to do without learning
        # Where a chunk is one bin, the grid is as coarse as the recording: where a spike lies in it says nothing.
        self.compress = ChunkAttention(dim, latents, chunk, timed=self.chunk_bins > 1, t_min=t_min, dropout=dropout)
        self.widen, self.widen_norm = nn.Linear(dim, width), nn.LayerNorm(width)
        self.heard = nn.Linear(dim, width, bias=False) if sums else None
        self.place = nn.Parameter(torch.randn(latents, width) * 0.02)
        self.register_buffer("pace", paces(heads), persistent=False)
        self.clock = nn.Parameter(torch.randn(chunks, 1, width) * 0.02) if clock else None
        self.rotary = RotaryTime(width // heads // 4, 2 * chunk, 4 * window)
        self.prompt = nn.Parameter(torch.randn(len(modes), width) * 0.02) if prompt else None
        self.absent = nn.Parameter(torch.randn(width) * 0.02) if after else None
        self.register_buffer("no_prompt", torch.empty(0, width), persistent=False)
        self.backbone = Transformer(width, depth, heads, 4 * width, dropout=dropout)
        self.decoder = DECODERS[decoder](dim, width, heads, dropout)
        self.own = OwnActivity(dim, bin_size)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that it was trained with."""
        return tuple(self.controller.chances)

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, size: str | None = None, **settings) -> NeuroBridge:
        """Bins of 10 ms, or as fine as the coarsest recording; without region modes where no session has two regions,
        which a warning says.
        """
        if size is not None and size not in cls.SIZES:
            raise UnknownName("size", size, cls.SIZES, where="the sizes of NeuroBridge")
        finest, regions = max(s.resolution for s in sessions), region_names(sessions)
        bin_size = settings.pop("bin_size", None) or max(0.01, finest)
        chunk = settings.pop("chunk", None) or max(round(0.05 / bin_size), 1) * bin_size
        modes = dict(settings.pop("modes", MODES))
        modes = {mode: modes[mode] for mode in possible(modes, sessions, "NeuroBridge")}
        settings = dict(t_min=min(max(2 * finest, 1e-3), 2 * chunk)) | (cls.SIZES[size] if size else {}) | settings
        model = cls(units=unit_names(sessions), regions=regions, bin_size=bin_size, chunk=chunk, modes=modes,
                    **settings)
        model.meet(sessions, unit_names(sessions))
        model.centre_(sessions)
        return model

    def extend(self, sessions: Sequence[Session]) -> None:
        new = [name for name in unit_names(sessions) if name not in self.rates.row]
        super().extend(sessions)
        unmet = [s for s in sessions if {*unit_names([s])} & {*new}]
        self.meet(unmet, new)
        self.regions = Regions(region_names(sessions) | self.regions.names)
        self._hub_mixin_config["regions"] = self.regions.names
        if not self.inferred and self.absent is None and isinstance(getattr(self, "decoder", None), Factorised):
            for session in unmet:
                self.recognise(session, new)

    @torch.no_grad()
    def meet(self, sessions: Sequence[Session], names: Sequence[str]) -> None:
        """Start the named units: their rates at their means, their vectors where units that fire together lie near each
        other, which random ones take thousands of steps to find; or infer the vectors, where that is how they come.
        """
        means = {f"{s.id}/{unit}": rate * self.bin_size for s in sessions
                 for unit, rate in zip(s.units["id"], s.rates().tolist(), strict=True)}
        rows, weight = self.rates.rows(names), self.rates.weight
        weight[rows, 0] = weight.new_tensor([means[name] for name in names]).clamp(min=1e-4).log()
        for session in sessions:
            if self.inferred:
                self.units.measure(session, session.intervals)
            elif batch := spread_windows(session, self.window, 1000):
                new = torch.tensor([name in {*names} for name in unit_names([session])])
                found = self.units.std * factors(batch.counts(self.chunk), self.units.weight.shape[1])
                rows = self.units.rows(unit_names([session]))[new]
                self.units.weight[rows] += found[new].to(self.units.weight)

    @torch.no_grad()
    def recognise(self, session: Session, names: Sequence[str], rounds: int = 3, seconds: float = 160.0) -> None:
        """Turn the vectors of the named units of a session to where a trained network would have them, without a
        gradient: it reads one half of the units, and the vectors of the other half are solved for, again and again; at
        last all are, also by what is hidden in time, which tells how a unit's own counts matter. seconds: of the
        recording that it looks at.
        """
        whole = spread_windows(session, self.window, round(seconds / self.window))
        if whole is None:
            return
        words, training, device = unit_names([session]), self.training, self.units.weight.device
        rows, everyone = self.units.rows(words), torch.ones(len(words), dtype=torch.bool, device=device)
        new = torch.tensor([word in {*names} for word in words], device=device)
        level = self.rates.weight[self.rates.rows(words)]
        known = torch.ones(len(self.units.weight), dtype=torch.bool, device=device).index_fill(0, rows[new], False)
        length = self.units.weight[known].std()                         # decay has made it another than it began with
        some = max(2 ** 22 // (whole.bins(self.bin_size) * len(words)), 1)     # windows at once, for memory
        batches = [whole.take(at).to(device) for at in torch.arange(len(whole)).split(some)]
        self.eval()

        def gather(equations: Equations, hidden: Tensor | None = None, mode: str = "") -> None:
            for batch in batches:
                counts = batch.counts(self.bin_size)
                mask = self.draw(batch, mode) if hidden is None else Mask(*[hidden[:, None].expand_as(counts)] * 2)
                at = mask.grid(counts.shape[2]).scored.any(1)           # those bins are hidden of all units, or of none
                times = self.decoder.times(self.encode(batch, mask), *self.asked(batch))[at]
                if hidden is None:
                    ratios = self.own.ratios(counts, self.visible(batch, mask), level).transpose(1, 2)[at]
                    equations.add(times, counts.transpose(1, 2)[at], everyone, ratios)
                else:
                    equations.add(times, counts[:, hidden].transpose(1, 2)[at], hidden)

        halves = lambda: (half := torch.rand(len(words), device=device) < 0.5, ~half)
        for _ in range(rounds):
            equations = Equations(self.decoder, self.own, len(words))
            for hidden in halves():
                gather(equations, hidden)
                self.units.weight[rows[hidden & new]] = equations.solve()[hidden & new] * length
        equations = Equations(self.decoder, self.own, len(words))
        for _ in range(2):                                              # once more with what the new vectors tell
            for hidden in halves():
                gather(equations, hidden)
            for mode in (mode for mode in ("temporal", "causal") if mode in self.modes):
                gather(equations, mode=mode)
            self.units.weight[rows[new]] = equations.solve()[new] * length
        self.train(training)

    @torch.no_grad()
    def centre_(self, sessions: Sequence[Session]) -> None:
        """Start `widen` where what chunks have in common is 0 and how they differ is 1: a mean over a hundred spikes is
        nearly the same in every chunk, and what differs would drown.
        """
        batches = [batch for session in sessions if (batch := spread_windows(session, self.window, 32))]
        found = []
        for batch in batches:
            distinct, rows = self.units.of_units(batch)
            found.append(self.widen(self.compress(batch, self.units(distinct), rows)).flatten(0, 2))
        if found:
            mean, scale = torch.cat(found).mean(0), torch.cat(found).std(0).clamp(min=1e-3)
            self.widen.weight.div_(scale[:, None])
            self.widen.bias.sub_(mean).div_(scale)

    def identify(self, session: Session, intervals: np.ndarray) -> None:
        """Learn who the units of a session are from their activity in `intervals` [n, 2], without labels or gradients;
        a session that the model knows is seen anew. WorkbenchError for a model that does not infer who units are.
        """
        if not self.inferred:
            raise WorkbenchError("this NeuroBridge looks up who units are; adapt it with how='identify', or build it "
                                 "with identity='inferred'")
        seen = session.within(intervals)
        known = unit_names([seen])[0] in self.rates.row
        self.extend([seen])                                             # meets the units that are new
        if known:
            self.meet([seen], unit_names([seen]))

    def forward(self, batch: SpikeBatch) -> Output:
        """Log rates [B, N, T], in log spikes per bin, and latents [B, C, L × width], from all spikes of the batch."""
        return self.reconstruct(batch)

    def reconstruct(self, batch: SpikeBatch, mask: Mask | None = None, mode: str | None = None) -> Output:
        """The same from the spikes that the mask leaves. mode: what a model with prompts is told."""
        (known, weights), latents = self._known(batch), self.encode(batch, mask, mode)
        log_rates = self.decoder(latents, known, *self.asked(batch))
        return Output(log_rates=log_rates + self.beside(batch, mask, weights), latents=self.by_chunk(latents))

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Poisson negative log-likelihood of the counts that a random mask hides, nats an entry."""
        mode, mask = self._drawn(batch)
        scored = mask.grid(batch.bins(self.bin_size)).scored
        if isinstance(self.decoder, Queries) and scored.any():          # else there is none to ask, and the loss is 0
            loss = poisson_nll(*self._sampled(batch, mask, mode, scored))
        else:
            loss = poisson_nll(self.reconstruct(batch, mask, mode).log_rates, batch.counts(self.bin_size), where=scored)
        return {"loss": loss, mode: loss.detach()}

    def draw(self, batch: SpikeBatch, mode: str | None = None, ratio: float | None = None) -> Mask:
        """A mask for every window of the batch, as in training; mode and ratio are drawn at random where not given."""
        return self._drawn(batch, mode, ratio)[1]

    def _drawn(self, batch: SpikeBatch, mode: str | None = None, ratio: float | None = None) -> tuple[str, Mask]:
        # Runs of 25 to 40 ms need a grid of 5 ms; a chunk of one bin can only be hidden whole.
        fine = max(round(self.bin_size / 0.005), 1) if self.chunk_bins > 1 else 1
        long = self.chunk_bins * fine
        asked = dict(regions=self.regions.numbers(batch), mode=mode, ratio=ratio)
        if self.absent is None:
            return self.controller.draw(batch.unit_mask, batch.bins(self.chunk) * long, chunk=long, **asked)
        mode, mask = self.controller.draw(batch.unit_mask, batch.bins(self.chunk), **asked)         # whole chunks
        return mode, Mask(*(part.repeat_interleave(long, 2) for part in mask))

    def unit_vectors(self, batch: SpikeBatch) -> Tensor:
        """Who each unit is [B, N, dim], zeros in padding."""
        return unit_weights(batch, self.units)

    def encode(self, batch: SpikeBatch, mask: Mask | None = None, mode: str | None = None) -> Tensor:
        """The latents [B, C × L, width] of the spikes that the mask leaves. mode: what a model with prompts is told,
        by name the first of its own where it is none of them.
        """
        which = sorted(self.modes).index(mode) if mode in self.modes else 0         # in an order that a file keeps
        told = self.no_prompt if self.prompt is None else self.prompt[[which]]
        return self.encode_with(batch, told, mask)[1]

    def encode_with(self, batch: SpikeBatch, tokens: Tensor, mask: Mask | None = None) -> tuple[Tensor, Tensor]:
        """The same with tokens [n, width] beside the latents, near to all of them: tokens [B, n, width], latents."""
        before, after = (mask, None) if self.absent is None else (None, mask)
        seen = batch if before is None else before.of_spikes(batch)
        distinct, rows = self.units.of_units(batch)                     # once a unit, not a spike
        x = self.compress(seen, self.units(distinct), rows)
        x = self.widen_norm(self.widen(x))
        if self.heard is not None:
            x = x + self.hear(batch, before)[:, :, None]
        times, n = self.latent_times(seen), len(tokens)
        if self.clock is not None and x.shape[1] != len(self.clock):
            raise WorkbenchError(f"this NeuroBridge knows the time in windows of {self.window:g} s and was given "
                                 f"{seen.duration:g} s; cut windows of its own length, or build it without clock=True")
        if after is not None:
            hidden = after.grid(x.shape[1]).hidden.any(1)
            x = torch.where(hidden[..., None, None], self.absent, x)
        x = (x + self.place if self.clock is None else x + self.place + self.clock).flatten(1, 2)
        closer, times = pad(near(self.pace, times, times), (n, 0, n, 0)), pad(times, (n, 0))
        x = self.backbone(torch.cat([tokens.expand(len(x), -1, -1), x], dim=1), turn=self.rotary(times), mask=closer)
        return x[:, :n], x[:, n:]

    def hear(self, batch: SpikeBatch, mask: Mask | None) -> Tensor:
        """What visible units fire beside their means, in standard deviations that chance would have, times their
        vectors and summed over units, chunk by chunk [B, C, width].
        """
        counts, visible = batch.counts(self.bin_size), self.visible(batch, mask)
        mean = window_weights(batch, self.rates).detach().exp()
        beside = ((counts - mean) * visible).unflatten(2, (-1, self.chunk_bins)).sum(3)
        beside = beside * (mean * self.chunk_bins + 0.02).rsqrt()       # a nearly silent unit is not the loudest
        many = visible.sum(1).to(mean).mean(1).clamp(min=1)[:, None, None]
        vectors = window_weights(batch, self.units) / (1.0 if self.inferred else self.units.std)
        return self.heard(beside.transpose(1, 2) @ vectors * many.rsqrt())

    def visible(self, batch: SpikeBatch, mask: Mask | None) -> Tensor:
        """Which bins of which units the mask leaves whole [B, N, T]; padding is not."""
        there = batch.unit_mask[..., None].expand(-1, -1, batch.bins(self.bin_size))
        return there if mask is None else there & ~mask.grid(there.shape[2]).hidden

    def by_chunk(self, latents: Tensor) -> Tensor:
        """Latents [B, C × L, width] → one vector a chunk [B, C, L × width]."""
        return latents.unflatten(1, (-1, self.per_chunk)).flatten(2)

    def latent_times(self, batch: SpikeBatch) -> Tensor:
        """When the latents are [C × L], spread evenly over their chunks, in seconds from the window's start."""
        step = self.chunk / self.per_chunk
        return (torch.arange(batch.bins(self.chunk) * self.per_chunk, device=batch.device) + 0.5) * step

    def asked(self, batch: SpikeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """For a decoder: rotary codes of the latents [M, pairs] and of the bins' middles [T, pairs], and how near each
        bin is to each latent [heads, T, M].
        """
        bins = (torch.arange(batch.bins(self.bin_size), device=batch.device) + 0.5) * self.bin_size
        times = self.latent_times(batch)
        return self.rotary(times), self.rotary(bins), near(self.pace, bins, times)

    def beside(self, batch: SpikeBatch, mask: Mask | None, weights: Tensor) -> Tensor:
        """What each unit brings by itself to its log rates [B, N, T]: its mean, and its visible counts by weights."""
        level = window_weights(batch, self.rates)
        return level + self.own(batch.counts(self.bin_size), self.visible(batch, mask), level, weights)

    def _known(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """What the decoder takes of units' vectors, and their own counts' weights: looked up, or inferred, once."""
        both = lambda vectors: torch.cat([self.decoder.known(vectors), self.own.known(vectors)], dim=1)
        return window_weights(batch, self.units, both).tensor_split([-len(self.own.WIDTHS)], dim=2)

    def _sampled(self, batch: SpikeBatch, mask: Mask, mode: str, where: Tensor) -> tuple[Tensor, Tensor]:
        """Log rates and counts [B, sample] of entries drawn from `where` [B, N, T], from windows that have any."""
        able = where.flatten(1).any(1)
        at = torch.multinomial(where.flatten(1)[able].float(), self.sample, replacement=True)
        chosen = lambda each: each.flatten(1)[able].gather(1, at)
        known, weights = self._known(batch)
        known = known.expand(len(batch), -1, -1)
        unit, bin_ = at // where.shape[2], at % where.shape[2]
        asked = known[able].gather(1, unit[..., None].expand(-1, -1, known.shape[2]))
        turn, bins, near = self.asked(batch)
        latents = self.encode(batch, mask, mode)[able]
        found = self.decoder.ask(latents, asked, turn, bins[bin_], near[:, bin_].transpose(0, 1))
        return found + chosen(self.beside(batch, mask, weights)), chosen(batch.counts(self.bin_size))


def _whole(length: float, part: float, what: str) -> int:
    number = round(length / part)
    if number < 1 or abs(number * part - length) > 1e-6:
        raise WorkbenchError(f"{what} of {length:g} s are no whole number of {part:g} s; choose others")
    return number
